"""Refits of noisy prefixes against MulensModel's curves, and the scan of what they leave."""

from dataclasses import replace

import MulensModel
import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from sets import toy_set

from lensml.evaluation import anomaly_finder as anomaly
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.lensing import pspl_delta_mag
from lensml.simulation import FRACTIONS


@pytest.fixture(scope="module")
def curves():
    return toy_set(60, bump=1.0)


@pytest.fixture(scope="module")
def searched(curves):
    return anomaly.search_prefixes(curves)


def best_by_mulensmodel(times, delta, sigma, truth):
    """Least chi2 of MulensModel's single lenses, by scipy from six starts."""

    def misfit(x):
        parameters = dict(zip(("t_0", "u_0", "t_E"), (x[0], *np.exp(x[1:])), strict=True))
        magnification = MulensModel.Model(parameters).get_magnification(times)
        return (delta + 2.5 * np.log10(magnification)) / sigma

    t0, u0, tE = truth
    starts = [(t0, u0, tE), (t0, 3 * u0, tE), (t0, u0 / 3, 2 * tE), (t0 + 3, u0, tE / 2)]
    starts += [(times[delta.argmin()], 0.3, 15.0), (times[delta.argmin()], 0.1, 40.0)]
    scale = (1.0, 0.1, 0.1)
    fits = [least_squares(misfit, [t, *np.log(rest)], x_scale=scale) for t, *rest in starts]
    return 2 * min(fit.cost for fit in fits)


def test_refits_are_as_good_as_mulensmodel_from_several_starts(curves, searched):
    """On twenty noisy curves, binaries among them: the same chi2 to a thousandth."""
    rows = np.flatnonzero(curves.param("u0") > 0)[:20]
    times, delta, sigma = anomaly.observed(curves)
    for row in rows:
        seen = np.isfinite(delta[row])
        truth = [curves.param(name)[row] for name in ("t0", "u0", "tE")]
        best = best_by_mulensmodel(times[row][seen], delta[row][seen], sigma[row][seen], truth)
        assert searched.refits.chi2[row, -1] == pytest.approx(best, rel=1e-3)


def test_a_single_lens_fit_of_a_twin_leaves_noise_only(curves, searched):
    refits, twins = searched.refits, curves.y == 0
    score, chi2 = refits.score[twins, -1], refits.chi2[:, -1]
    assert abs(score.mean()) < 5 / np.sqrt(twins.sum())
    assert score.std() == pytest.approx(1, abs=0.35)
    # At least as good as the true curve, whose chi2 no fitted one may exceed.
    names = ("t0", "u0", "tE", "f_s")
    truth = pspl_delta_mag(
        torch.as_tensor(curves.time), *(torch.as_tensor(curves.param(n)) for n in names)
    ).numpy()
    of_truth = np.nansum(((curves.X - 18.0 - truth) / 0.05) ** 2, axis=1)
    assert (chi2[twins] <= of_truth[twins] * (1 + 1e-6)).all()
    np.testing.assert_array_equal(refits.dof[:, -1], np.isfinite(curves.X).sum(axis=1) - 3)


def test_residuals_are_those_of_the_fit(curves, searched):
    chi2 = np.nansum(searched.residual.astype(float) ** 2, axis=1)
    np.testing.assert_allclose(chi2, searched.refits.chi2[:, -1], rtol=1e-4)
    alone = np.nansum(anomaly.search_prefixes(curves, (1.0,)).residual.astype(float) ** 2, axis=1)
    assert (chi2 <= alone * (1 + 1e-5)).all()


def test_prefixes_gain_chi2_as_they_grow_and_see_nothing_later(curves, searched):
    assert (np.diff(searched.refits.chi2, axis=1) > -1e-6 * searched.refits.chi2[:, 1:]).all()
    X = curves.X.copy()
    X[:, curves.time > 0] = 12.0
    rows = slice(12)
    half = anomaly.search_prefixes(curves.rows(rows), (0.25, 0.5))
    wild = anomaly.search_prefixes(replace(curves, X=X).rows(rows), (0.25, 0.5))
    np.testing.assert_array_equal(half.scan_score, wild.scan_score)
    np.testing.assert_array_equal(half.refits.score, wild.refits.score)
    assert np.isnan(half.residual[:, curves.time > 0]).all()


def test_templates_recover_a_bump_of_their_own_shape():
    """Without noise the whole chi2 of the bump is gained, and its place and duration found."""
    flat = toy_set(4, num_epochs=1500)
    tau = (flat.time - 20.0) / anomaly.DURATIONS[4]
    bump = np.where(np.abs(tau) < anomaly.REACH, anomaly.shapes(tau)[:, 0] * 3, 0.0)
    scan = anomaly.anomaly_scan(flat, np.tile(bump, (8, 1)))
    assert scan.score == pytest.approx(np.sum(bump**2), rel=0.02)
    assert (scan.dchi2.argmax(axis=1) == 4).all()
    assert scan.centre[:, 4] == pytest.approx(20.0, abs=anomaly.DURATIONS[4] * anomaly.STEP)


def test_an_offset_gains_nothing_over_a_flat_residual():
    curves = toy_set(4, num_epochs=600)
    scan = anomaly.anomaly_scan(curves, np.full((8, 600), 1.0))
    assert scan.score.min() > 100 and scan.flat.max() < 1e-6
    zero_only, both = ((120.0, -np.inf),), ((75.0, 35.0),)
    assert scan.called(zero_only).all() and not scan.called(both).any()


def test_the_best_template_is_the_best_of_least_squares(monkeypatch):
    """One template at one place, fitted by numpy's least squares."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 1, 40))
    data, weight = rng.normal(size=(1, 40)), rng.uniform(0.5, 2, (1, 40))
    monkeypatch.setattr(anomaly, "DURATIONS", (5.0,))
    (group,) = anomaly.template_groups(times)
    flat, shaped = anomaly.template_gains(
        group, anomaly.template_norms(group, weight), weight * data
    )
    best = (flat + shaped).argmax()
    gain, over_flat, centre = (flat + shaped)[0, best], shaped[0, best], group.centre[best]
    expected = []
    for at in np.arange(times[0], times[-1] + 5 * anomaly.STEP, 5 * anomaly.STEP):
        for shape in anomaly.shapes((times - at) / 5.0).T:
            design = np.stack([np.ones(40), shape], axis=1) * np.sqrt(weight[0])[:, None]
            target = data[0] * np.sqrt(weight[0])
            rest = np.linalg.lstsq(design, target, rcond=None)[1][0]
            flat = np.average(data[0], weights=weight[0])
            residual = np.sum(weight[0] * (data[0] - flat) ** 2)
            expected.append((np.sum(target**2) - rest, residual - rest, at))
    best = max(expected)
    assert (gain, over_flat, centre) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_own_epochs_scan_as_shared_ones(curves, searched):
    own = replace(curves, time=np.array(curves.times()))
    rows = slice(6)
    got = anomaly.anomaly_scan(own.rows(rows), searched.residual[rows])
    np.testing.assert_allclose(got.score, searched.scans[-1].score[rows], rtol=1e-9)


def test_the_search_of_every_prefix_is_the_highest_scan_so_far(curves):
    """Prefix by prefix, scanned as one set of residuals each."""
    few = curves.rows(slice(8))
    refits = limits.causal_refits(few)
    series = anomaly.template_series(few, refits)
    times, delta, sigma = anomaly.observed(few)
    best = np.zeros(8)
    for k in range(refits.shape[1]):
        prefix = np.isfinite(delta) & (np.isfinite(delta).cumsum(axis=1) <= 8 * (k + 1))
        theta = [x if i == 0 else np.exp(x) for i, x in enumerate(refits[:, k, 1].T)]
        fit = pspl_delta_mag(torch.from_numpy(times), *map(torch.from_numpy, theta)).numpy()
        whole = prefix.sum(axis=1) == 8 * (k + 1)
        residual = np.where(prefix & whole[:, None], (delta - fit) / sigma, np.nan)
        best = np.maximum(best, anomaly.anomaly_scan(few, residual).score)
        for row in np.flatnonzero(whole):
            last = np.flatnonzero(prefix[row])[-1]
            assert series[row, last] == pytest.approx(best[row], rel=1e-6)
    assert np.isfinite(series).sum(axis=1).tolist() == (np.isfinite(delta).sum(1) // 8).tolist()


def test_the_search_of_every_prefix_sees_nothing_later_and_finds_a_bump_soon(curves):
    X = curves.X.copy()
    X[:, curves.time > 0] = 12.0
    rows = slice(12)
    both = [curves.rows(rows), replace(curves, X=X).rows(rows)]
    whole, wild = (anomaly.template_series(c, limits.causal_refits(c)) for c in both)
    before = curves.time <= 0
    np.testing.assert_allclose(whole[:, before], wild[:, before], rtol=1e-9)
    score = np.nanmax(anomaly.template_series(curves, limits.causal_refits(curves)), axis=1)
    threshold = np.quantile(score[curves.y == 0], 0.95)
    strong = (curves.y == 1) & (curves.dchi2 > 100)
    assert strong.sum() > 5 and (score[strong] > threshold).mean() > 0.8


def test_the_scan_finds_anomalies_but_nothing_beyond_the_ideal_observer(curves, searched):
    ideal = limits.ideal_log_ratio(curves)
    score = searched.scan_score[:, FRACTIONS.index(1.0)]
    assert metrics.roc_auc(curves.y, score) > 0.75
    assert limits.excess_over_ideal(score, ideal, curves.y, curves.pair)["roc_auc"]["z"] < 3


def test_stricter_rules_call_fewer(curves, searched):
    scan = searched.scans[-1]
    found = anomaly.score_at_fixed_thresholds(scan, curves.y, curves.dchi2)
    strict, both, loose, looser, own = found.values()
    for a, b in ((strict, both), (both, loose), (loose, looser)):
        assert a["recall"] <= b["recall"] and a["false_positives"] <= b["false_positives"]
    assert own["false_positives"] <= 0.01 and own["threshold"] > 0
    counts = [row["binaries"] for row in own["recall_by_dchi2"]]
    assert sum(counts) == (curves.y == 1).sum()
