"""First alerts and onsets, counted by hand on a few epochs."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from sets import toy_set

from lensml.evaluation import early_detection as early
from lensml.evaluation import metrics
from lensml.evaluation.ideal_observer import expected_ideal
from lensml.lensing import point_lens_magnification
from lensml.network import max_probability
from lensml.simulation import FRACTIONS, partner_rows, until_fraction

NAN = np.nan


def test_a_threshold_holds_over_the_whole_season():
    p = np.full((100, 5), 0.1)
    p[:, 2] = np.arange(100) / 100  # the peak is in mid-season, the last probability is small
    threshold = metrics.threshold_at_fpr(max_probability(p), 0.05)
    assert np.isfinite(early.first_alert(p, np.arange(5.0), threshold)).mean() == 0.05


def test_first_alert_is_the_first_epoch_above():
    p = np.array([[0.1, NAN, 0.8, 0.2, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5], [NAN] * 5])
    np.testing.assert_array_equal(
        early.first_alert(p, np.arange(5.0) * 2, 0.5), np.array([4.0, NAN, NAN])
    )
    np.testing.assert_array_equal(max_probability(p), [0.9, 0.5, 0.5])


def test_an_onset_exists_only_where_the_whole_curve_shows_the_anomaly():
    curves = toy_set(8, num_epochs=60, sigma=0.05, bump=2.0)
    onset = early.onset_times(curves, early.refit_prefixes(curves, 8, above=25.0))
    strong = (curves.y == 1) & (curves.dchi2 > 25)
    assert strong.any() and np.isfinite(onset[strong]).any()
    assert not np.isfinite(onset[~strong]).any()
    known = onset[np.isfinite(onset)]
    assert np.all((known >= curves.time[0]) & (known <= curves.time[-1]))


def test_the_refit_limited_bound_never_exceeds_the_oracle_bound():
    curves = toy_set(6, num_epochs=60)
    windows = {"0.5": {}, "1.0": {}}
    refits = early.refit_prefixes(curves, 6)
    early.add_refit_limited(windows, refits, curves)
    assert np.all(refits.dchi2[:, -1] <= curves.dchi2[refits.rows] * (1 + 1e-6) + 1e-6)
    assert windows["1.0"]["refit_limited"]["pairs"] == 6
    assert (
        windows["0.5"]["refit_limited"]["roc_auc"]
        <= windows["1.0"]["refit_limited"]["roc_auc"] + 1e-6
    )


def test_bounds_of_a_few_refits_are_those_of_all_pairs_where_both_bounds_agree():
    curves = toy_set(12, num_epochs=60, sigma=0.05, bump=1.0)
    dchi2_at = np.repeat(curves.dchi2[:, None], 7, axis=1) * np.arange(1, 8) / 7
    curves, windows = replace(curves, dchi2_at=dchi2_at), {"1.0": {}}
    refits = early.refit_prefixes(curves, 4)
    refits = replace(
        refits, dchi2=np.repeat(curves.dchi2[refits.rows, None], len(early.PREFIXES), axis=1)
    )
    early.add_refit_limited(windows, refits, curves)
    wanted = expected_ideal(curves.dchi2[curves.y == 1])
    found = windows["1.0"]["refit_limited"]
    assert found["pairs"] == 4 and found["roc_auc"] == pytest.approx(wanted["roc_auc"], abs=1e-9)


def test_refit_limited_delta_chi2_lies_between_zero_and_the_oracle_bound():
    curves = toy_set(24, bump=1.0)
    refits = early.refit_rows(curves)
    rows, reachable = refits.rows, refits.dchi2
    assert (curves.y[rows] == 1).all() and reachable.shape == (24, 7)
    clean, partner = curves.noise_free(), partner_rows(curves)
    terms = ((clean - clean[partner]) / 0.05) ** 2 * np.isfinite(curves.X)
    for k, fraction in enumerate(FRACTIONS):
        bound = terms[rows][:, until_fraction(curves.time, fraction)].sum(axis=1)
        assert (reachable[:, k] <= bound * (1 + 1e-9)).all()
    half, late = reachable[:, 3], reachable[:, -1]
    assert (half <= late).all()  # more data cannot fit better
    assert late.max() > 100


def best_single_lens(curves, row, until):
    """Least chi2 of any single lens to a binary's noise-free prefix, by scipy."""
    clean = curves.noise_free()[row]
    seen = (curves.time <= until) & np.isfinite(curves.X[row])
    t, m = curves.time[seen], clean[seen]

    def chi2(x):
        u = np.hypot(np.exp(x[1]), (t - x[0]) / np.exp(x[2]))
        return np.sum(((m - 18 + 2.5 * np.log10(point_lens_magnification(u))) / 0.05) ** 2)

    starts = [(t, u, tE) for t in (curves.params[row, 0], t[m.argmin()])
              for u in (0.1, 0.5) for tE in (4, 20)]  # fmt: skip
    options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-6, "fatol": 1e-6}
    begin = [[t, np.log(u), np.log(tE)] for t, u, tE in starts]
    return min(minimize(chi2, x, method="Nelder-Mead", options=options).fun for x in begin)


def test_refit_limited_delta_chi2_is_the_best_single_lens_of_the_prefix():
    curves = toy_set(4, bump=1.0, seed=3)
    refits = early.refit_rows(curves, [0.6])
    for row, got in zip(refits.rows, refits.dchi2[:, 0], strict=True):
        assert got <= best_single_lens(curves, row, 20.0) * 1.001 + 1e-3


def test_the_onset_lies_within_half_a_day_of_where_a_search_from_other_starts_places_it():
    curves = toy_set(6, num_epochs=801, bump=1.0, seed=5)  # an epoch every quarter of a day
    refits = early.refit_prefixes(curves, 6, above=25.0)
    known = np.flatnonzero(np.isfinite(refits.onset))
    assert known.size >= 3
    for k in known:
        row, onset = refits.rows[k], refits.onset[k]
        assert best_single_lens(curves, row, onset - 0.5) <= 25
        assert best_single_lens(curves, row, onset + 0.5) > 25 * 0.999


def test_a_jump_is_dated_to_the_epoch_at_which_it_happens():
    curves = toy_set(6, num_epochs=801, shuffle=False)
    magnification = curves.magnification.copy()
    jump = np.array([30.3, 35.0, 41.7, 44.4, 52.1, 58.8])  # a caustic entered after the peak [day]
    magnification[1::2] = magnification[::2] * (1 + (curves.time >= jump[:, None]))
    curves = replace(curves, magnification=magnification, dchi2=np.full(12, 1e4))
    refits = early.refit_prefixes(curves, 6, above=25.0)
    for row, at, onset in zip(refits.rows, jump, refits.onset, strict=True):
        observed = curves.time[np.isfinite(curves.X[row])]
        assert onset == observed[observed >= at][0]


def test_a_higher_level_is_reached_later_and_delta_chi2_only_grows():
    curves = toy_set(12, num_epochs=401, bump=1.0)
    low, high = (early.refit_prefixes(curves, 12, level=level) for level in (10.0, 60.0))
    assert (np.diff(low.dchi2, axis=1) >= 0).all()
    reached = np.isfinite(high.onset)
    assert 3 <= reached.sum() < np.isfinite(low.onset).sum()
    assert (low.onset[reached] <= high.onset[reached]).all()
