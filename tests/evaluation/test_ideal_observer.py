"""The ideal observer against closed forms, brute force and its own expectation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sets import normal_ratio, toy_set

from lensml.evaluation import calibration, metrics
from lensml.evaluation import ideal_observer as limits
from lensml.lensing import fit_pspl, point_lens_magnification
from lensml.paths import InputError
from lensml.simulation import partner_rows


def test_realised_ratio_is_the_sum_over_the_observed_epochs_of_each_row():
    curves = toy_set(6)
    names = zip(curves.pair.tolist(), curves.y.tolist(), strict=True)
    row_of = {name: i for i, name in enumerate(names)}
    got = limits.ideal_log_ratio(curves)
    until = limits.ideal_log_ratio(curves, [0.25, 0.5, 1.0])
    for i in range(len(curves)):
        m0, m1 = (
            18 - 2.5 * np.log10(curves.magnification[row_of[int(curves.pair[i]), c]].astype(float))
            for c in (0, 1)
        )
        terms = ((curves.X[i] - m0) ** 2 - (curves.X[i] - m1) ** 2) / (2 * 0.05**2)
        assert got[i] == pytest.approx(np.nansum(terms), rel=1e-4, abs=1e-3)
        half = np.nansum(terms[curves.time <= 0])
        assert until[i, 1] == pytest.approx(half, rel=1e-4, abs=1e-3)
        assert until[i, 2] == got[i]


def test_realised_ratio_is_normal_with_variance_delta_chi2():
    curves = toy_set(600, num_epochs=60, bump=0.1)
    ratio = limits.ideal_log_ratio(curves)
    # delta-chi2 of the row's own epochs: on the twin's mask it differs from the stored number.
    clean, partner = curves.noise_free(), partner_rows(curves)
    own = np.nansum(((clean - clean[partner]) / 0.05) ** 2 * np.isfinite(curves.X), axis=1)
    keep = own > 1e-4
    z = (ratio - (curves.y - 0.5) * own)[keep] / np.sqrt(own[keep])
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.size)


def test_rows_without_a_partner_have_no_ratio():
    curves = toy_set(5)
    alone = curves.rows(curves.pair != 3)
    alone = replace(alone, pair=np.where(alone.pair == 1, -1, alone.pair))
    assert np.isnan(limits.ideal_log_ratio(alone)[alone.pair == -1]).all()
    assert np.isfinite(limits.ideal_log_ratio(alone)[alone.pair >= 0]).all()
    single = curves.rows(~((curves.pair == 2) & (curves.y == 1)))
    assert np.isnan(limits.ideal_log_ratio(single)[single.pair == 2]).all()


def test_without_magnification_there_is_no_ideal_observer():
    with pytest.raises(InputError, match="magnification"):
        limits.ideal_log_ratio(replace(toy_set(3), magnification=None))


def test_photon_noise_brings_its_own_sigma_to_each_hypothesis():
    """Errors that shrink with brightness: compare with the density written out for one epoch."""
    level, base = 0.1, 18.0

    def sigma_at(change):
        return np.hypot(level * 10 ** (0.2 * change), 0.003)

    curves = toy_set(3, survey={"photon_noise": True})
    quoted = sigma_at(curves.X - base).astype(np.float32)
    curves = replace(curves, sigma=np.where(np.isnan(quoted), 0.1, quoted).astype(np.float32))
    got, partner, clean = (
        limits.ideal_log_ratio(curves),
        partner_rows(curves),
        curves.noise_free(),
    )
    for i in range(len(curves)):
        m1, m0 = (clean[i], clean[partner[i]]) if curves.y[i] else (clean[partner[i]], clean[i])
        densities = [norm.logpdf(curves.X[i], m, sigma_at(m - base)) for m in (m1, m0)]
        assert got[i] == pytest.approx(np.nansum(densities[0] - densities[1]), rel=1e-3, abs=1e-2)


def test_outliers_enter_as_the_mixture_they_were_drawn_from():
    curves = toy_set(3, survey={"outlier_fraction": 0.1, "error_scale": 2.0})
    got, partner, clean = (
        limits.ideal_log_ratio(curves),
        partner_rows(curves),
        curves.noise_free(),
    )
    for i in range(len(curves)):
        m1, m0 = (clean[i], clean[partner[i]]) if curves.y[i] else (clean[partner[i]], clean[i])
        p1, p0 = (
            0.9 * norm.pdf(curves.X[i], m, 0.1) + 0.1 * norm.pdf(curves.X[i], m, 0.5)
            for m in (m1, m0)
        )
        assert got[i] == pytest.approx(np.nansum(np.log(p1 / p0)), rel=1e-4, abs=1e-3)
    assert limits.noise_is_known(curves)
    assert not limits.noise_is_known(toy_set(2, survey={"error_scale": [0.8, 1.5]}))
    assert not limits.noise_is_known(toy_set(2, survey={"baseline_error": 0.3}))


@pytest.mark.parametrize("dchi2", [0.5, 5.0, 40.0])
def test_equal_anomalies_have_closed_forms(dchi2):
    got = limits.expected_ideal(np.full(50, dchi2))
    assert got["balanced_accuracy"] == pytest.approx(norm.cdf(np.sqrt(dchi2) / 2))
    assert got["roc_auc"] == pytest.approx(norm.cdf(np.sqrt(dchi2 / 2)), abs=1e-4)
    recall = norm.cdf(np.sqrt(dchi2) - norm.ppf(0.99))
    assert got["recall_at_1pct"] == pytest.approx(recall, abs=1e-6)
    assert metrics.ideal_recall(dchi2, 0.01) == pytest.approx(recall)
    assert metrics.ideal_recall(norm.ppf(0.99) ** 2, 0.01) == pytest.approx(0.5)


def test_expectation_agrees_with_realised_ratios_of_mixed_anomalies():
    dchi2 = 10 ** np.random.default_rng(1).uniform(-3, 3, 20_000)
    dchi2[:500] = 0  # anomalies that no epoch saw
    ratio, y, _ = normal_ratio(dchi2)
    expected = limits.expected_ideal(dchi2)
    assert metrics.roc_auc(y, ratio) == pytest.approx(expected["roc_auc"], abs=0.008)
    assert metrics.average_precision(y, ratio) == pytest.approx(
        expected["average_precision"], abs=0.008
    )
    accuracy = metrics.balanced_accuracy(y, ratio, 0.0)
    assert accuracy == pytest.approx(expected["balanced_accuracy"], abs=0.008)
    for name, rate in (("recall_at_1pct", 0.01), ("recall_at_0.1pct", 0.001)):
        assert metrics.recall_at_fpr(y, ratio, rate) == pytest.approx(expected[name], abs=0.015)


def test_ideal_probability_is_calibrated():
    ratio, y, _ = normal_ratio(10 ** np.random.default_rng(2).uniform(-1, 2, 30_000))
    assert calibration.ece(y, limits.ideal_probability(ratio)) < 0.006


def test_excess_ignores_rows_without_an_ideal():
    ratio, y, pair = normal_ratio(np.full(100, 4.0))
    p = limits.ideal_probability(ratio)
    extended = [np.append(a, b) for a, b in ((p, 0.9), (ratio, np.nan), (y, 0), (pair, -1))]
    assert limits.excess_over_ideal(*extended) == limits.excess_over_ideal(p, ratio, y, pair)


def test_the_ratio_series_ends_with_the_ideal_ratio(monkeypatch):
    monkeypatch.setattr(limits, "CHUNK", 7)
    curves = toy_set(20, bump=2.0)
    season = limits.llr_series(curves)
    assert (np.isfinite(season) == np.isfinite(curves.X)).all()
    steps = np.arange(season.shape[1])
    last = np.where(np.isfinite(season), steps, -1).max(axis=1)
    final = season[np.arange(len(curves)), last]
    np.testing.assert_allclose(final, limits.ideal_log_ratio(curves), rtol=1e-9, atol=1e-9)
    at = limits.ideal_log_ratio(curves, [0.5])[:, 0]
    seen = np.isfinite(season) & (curves.time <= 0)
    middle = season[np.arange(len(curves)), np.where(seen, steps, -1).max(axis=1)]
    np.testing.assert_allclose(middle, at, rtol=1e-9, atol=1e-9)


def test_the_ratio_series_ignores_the_future_and_rows_without_a_partner():
    curves = toy_set(6)
    wild = curves.X.copy()
    wild[:, 70:] += 3.0
    season, changed = limits.llr_series(curves), limits.llr_series(replace(curves, X=wild))
    np.testing.assert_array_equal(season[:, :70], changed[:, :70])
    assert np.nanmax(np.abs(season[:, 70:] - changed[:, 70:])) > 1
    alone = curves.rows(~((curves.pair == 2) & (curves.y == 1)))
    assert np.isnan(limits.llr_series(alone)[alone.pair == 2]).all()


def test_no_more_twins_exceed_a_ratio_than_villes_inequality_allows():
    curves = toy_set(3000, num_epochs=60, bump=1.0)
    peak = np.nanmax(limits.llr_series(curves)[curves.y == 0], axis=1)
    for odds in (10, 100):
        alarms = metrics.binomial_interval(peak > np.log(odds))
        assert alarms["low"] <= 1 / odds
    assert metrics.binomial_interval(peak > np.log(10))["hits"] >= 10  # and some do


def test_profile_ratio_is_the_ratio_less_what_a_fit_of_the_prefix_gains():
    """Against a fit from many starts to the data of the last prefix that was refitted."""
    curves = toy_set(12, num_epochs=121, bump=2.0, sigma=0.05, shuffle=False)
    bound, reachable = limits.llr_series(curves), limits.profile_llr_series(curves)
    assert np.all((reachable <= bound + 1e-9)[np.isfinite(bound)])
    for row in range(len(curves)):
        seen = np.flatnonzero(np.isfinite(curves.X[row]))
        seen = seen[: len(seen) // limits.STEP * limits.STEP]
        weight = np.zeros(curves.X.shape[1])
        weight[seen] = curves.sigmas()[row][seen] ** -2.0
        data = np.nan_to_num(curves.X[row] - curves.m_base[row]).astype(float)
        best = fit_pspl(
            torch.as_tensor(np.array(curves.times()[row])),
            torch.as_tensor(data[None]),
            weight=torch.as_tensor(weight[None]),
        )
        binary = curves.noise_free()[row | 1] - curves.m_base[row | 1]
        of_binary = float((weight * (data - binary) ** 2).sum())
        expected = 0.5 * (float(best.chi2[0]) - of_binary)
        assert abs(reachable[row, seen[-1]] - expected) < 0.3 + 0.002 * abs(expected), row


def test_another_single_lens_passes_the_oracle_bound_and_not_a_refit():
    """A "binary" that is a single lens ten days later differs from its twin, not from a refit."""
    curves = toy_set(12, num_epochs=601, bump=0.0, sigma=0.05, shuffle=False)
    since = (curves.time - 10 - curves.param("t0")[1::2, None]) / 20
    later = point_lens_magnification(np.hypot(curves.param("u0")[1::2, None], since))
    changed = curves.magnification.copy()
    changed[1::2] = later
    curves = replace(curves, magnification=changed)
    noise = 0.05 * np.random.default_rng(1).standard_normal(curves.X.shape)
    data = np.where(np.isfinite(curves.X), curves.noise_free() + noise, np.nan)
    curves = replace(curves, X=data.astype(np.float32))
    bound, reachable = limits.llr_series(curves)[1::2], limits.profile_llr_series(curves)[1::2]
    assert np.nanmax(bound, axis=1).min() > 50
    assert np.nanmax(reachable) < 3
