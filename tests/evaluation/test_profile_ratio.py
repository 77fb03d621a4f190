"""What ideal observers know at every epoch: the bound, and what a refit leaves of it."""

from dataclasses import replace

import numpy as np
import torch
from sets import toy_set

from lensml.evaluation import alerts
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import profile_ratio as ideal
from lensml.lensing import fit_pspl, point_lens_magnification


def test_the_ideal_season_ends_with_the_ideal_ratio(monkeypatch):
    monkeypatch.setattr(limits, "CHUNK", 7)
    curves = toy_set(20, bump=2.0)
    season = ideal.llr_series(curves)
    assert (np.isfinite(season) == np.isfinite(curves.X)).all()
    steps = np.arange(season.shape[1])
    last = np.where(np.isfinite(season), steps, -1).max(axis=1)
    final = season[np.arange(len(curves)), last]
    np.testing.assert_allclose(final, limits.ideal_log_ratio(curves), rtol=1e-9, atol=1e-9)
    at = limits.ideal_log_ratio(curves, [0.5])[:, 0]
    seen = np.isfinite(season) & (curves.time <= 0)
    middle = season[np.arange(len(curves)), np.where(seen, steps, -1).max(axis=1)]
    np.testing.assert_allclose(middle, at, rtol=1e-9, atol=1e-9)


def test_the_ideal_season_ignores_the_future_and_rows_without_a_partner():
    curves = toy_set(6)
    wild = curves.X.copy()
    wild[:, 70:] += 3.0
    season, changed = ideal.llr_series(curves), ideal.llr_series(replace(curves, X=wild))
    np.testing.assert_array_equal(season[:, :70], changed[:, :70])
    assert np.nanmax(np.abs(season[:, 70:] - changed[:, 70:])) > 1
    alone = curves.rows(~((curves.pair == 2) & (curves.y == 1)))
    assert np.isnan(ideal.llr_series(alone)[alone.pair == 2]).all()


def test_no_more_twins_exceed_a_ratio_than_villes_inequality_allows():
    curves = toy_set(3000, num_epochs=60, bump=1.0)
    peak = np.nanmax(ideal.llr_series(curves)[curves.y == 0], axis=1)
    for odds in (10, 100):
        alarms = alerts.counted(peak > np.log(odds))
        assert alarms["low"] <= 1 / odds
    assert alerts.counted(peak > np.log(10))["hits"] >= 10  # and some do


def test_what_is_reachable_is_the_bound_less_what_a_fit_of_the_prefix_gains():
    """Against a fit from many starts to the data of the last prefix that was refitted."""
    curves = toy_set(12, num_epochs=121, bump=2.0, sigma=0.05, shuffle=False)
    bound, reachable = ideal.llr_series(curves), ideal.profile_llr_series(curves)
    assert np.all((reachable <= bound + 1e-9)[np.isfinite(bound)])
    for row in range(len(curves)):
        seen = np.flatnonzero(np.isfinite(curves.X[row]))
        seen = seen[: len(seen) // ideal.BIN * ideal.BIN]
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


def test_another_single_lens_fools_the_bound_and_not_a_refit():
    """A "binary" that is a single lens ten days later is told from its twin, but not reachable."""
    curves = toy_set(12, num_epochs=601, bump=0.0, sigma=0.05, shuffle=False)
    since = (curves.time - 10 - curves.param("t0")[1::2, None]) / 20
    later = point_lens_magnification(np.hypot(curves.param("u0")[1::2, None], since))
    changed = curves.magnification.copy()
    changed[1::2] = later
    curves = replace(curves, magnification=changed)
    noise = 0.05 * np.random.default_rng(1).standard_normal(curves.X.shape)
    data = np.where(np.isfinite(curves.X), curves.noise_free() + noise, np.nan)
    curves = replace(curves, X=data.astype(np.float32))
    bound, reachable = ideal.llr_series(curves)[1::2], ideal.profile_llr_series(curves)[1::2]
    assert np.nanmax(bound, axis=1).min() > 50
    assert np.nanmax(reachable) < 3
