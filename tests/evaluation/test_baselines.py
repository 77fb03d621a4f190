"""Simple and classical methods: they see what is there, and nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import toy_set

from lensml.evaluation import baselines, metrics
from lensml.evaluation import ideal_observer as limits
from lensml.lensing import pspl_delta_mag


@pytest.fixture(scope="module")
def curves():
    return toy_set(60, bump=1.0)


@pytest.fixture(scope="module")
def fitted(curves):
    return baselines.pspl_residuals(curves)


def test_scalars_are_those_of_the_observed_curve(curves):
    got = baselines.summary_statistics(curves)
    delta = curves.X - curves.m_base[:, None]
    np.testing.assert_allclose(got["peak"], np.nanmin(delta, axis=1))
    np.testing.assert_allclose(got["median"], np.nanmedian(delta, axis=1))
    np.testing.assert_array_equal(got["points"], np.isfinite(delta).sum(axis=1))
    np.testing.assert_array_equal(got["first gap"], np.isnan(delta).argmax(axis=1))
    np.testing.assert_allclose(got["peak time"], curves.time[np.nanargmin(delta, axis=1)])


def test_a_row_without_data_has_finite_scalars(curves):
    empty = replace(curves, X=np.full_like(curves.X, np.nan)).rows(slice(3))
    assert all(np.isfinite(values).all() for values in baselines.summary_statistics(empty).values())


def test_auditor_finds_a_planted_shortcut_and_nothing_else():
    honest = toy_set(150, bump=1e-4)
    found = baselines.shortcut_probe(honest, num_bootstrap=100)
    for name, auc in found.items():
        error = max((auc["high"] - auc["low"]) / 3.92, 1e-3)
        assert abs(auc["value"] - 0.5) < 4.5 * error, name
    X = honest.X.copy()
    X[honest.y == 1, :10] = np.nan  # binaries begin later
    leak = baselines.shortcut_probe(replace(honest, X=X), num_bootstrap=100)
    assert leak["first epoch"]["value"] > 0.95 and leak["all together"]["low"] > 0.9
    with pytest.raises(ValueError, match="`folds`"):
        baselines.shortcut_probe(honest.rows(honest.pair < 3))


def test_refit_of_a_twin_leaves_noise_only(curves, fitted):
    twins = curves.y == 0
    score = baselines.pspl_refit_score(curves, fitted)
    assert abs(score[twins].mean()) < 5 / np.sqrt(twins.sum())
    assert score[twins].std() == pytest.approx(1, abs=0.35)
    # At least as good as the true curve, whose chi2 no fitted one may exceed.
    names = ("t0", "u0", "tE", "f_s")
    truth = pspl_delta_mag(
        torch.as_tensor(curves.time), *(torch.as_tensor(curves.param(n)) for n in names)
    ).numpy()
    chi2 = np.nansum(((curves.X - 18.0 - truth) / 0.05) ** 2, axis=1)
    assert (fitted.chi2[twins] <= chi2[twins] * (1 + 1e-6)).all()
    observed = np.nansum(fitted.residual[twins] ** 2, axis=1)
    np.testing.assert_allclose(observed, fitted.chi2[twins], rtol=1e-3)
    np.testing.assert_array_equal(fitted.dof, np.isfinite(curves.X).sum(axis=1) - 3)


def test_classical_scores_see_anomalies_but_not_beyond_the_ideal_observer(curves, fitted):
    ideal = limits.ideal_log_ratio(curves)
    for score in (baselines.pspl_refit_score, baselines.residual_scan_score):
        values = score(curves, fitted)
        assert metrics.roc_auc(curves.y, values) > 0.75
        excess = limits.excess_over_ideal(values, ideal, curves.y, curves.pair)
        assert excess["roc_auc"]["z"] < 3


def test_prefix_fit_uses_nothing_later(curves):
    X = curves.X.copy()
    X[:, curves.time > 0] = 12.0
    half = baselines.pspl_residuals(curves.rows(slice(6)), until=0.5)
    wild = baselines.pspl_residuals(replace(curves, X=X).rows(slice(6)), until=0.5)
    np.testing.assert_array_equal(half.residual, wild.residual)
    assert np.isnan(half.residual[:, curves.time > 0]).all()


def test_scan_finds_bumps_and_scatter_that_a_whole_curve_hides():
    rng = np.random.default_rng(0)
    flat = np.array([baselines.scan(rng.normal(size=800)) for _ in range(60)])
    bump = rng.normal(size=800)
    bump[400:409] += 3.0
    noisy = rng.normal(size=800)
    noisy[400:465] *= 2.0
    assert baselines.scan(bump) == pytest.approx(9.0, abs=2.0)  # 3 sigma on nine epochs
    assert baselines.scan(bump) > flat.max() and baselines.scan(noisy) > flat.max()
    assert baselines.scan(np.empty(0)) == 0
