"""First alerts, halves of the pairs and onsets, counted by hand on a few epochs."""

import numpy as np
from scipy.optimize import minimize
from sets import toy_set

from lensml.evaluation import early_detection as early
from lensml.evaluation import metrics
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


def test_onset_is_interpolated_where_delta_chi2_passes_the_level():
    dchi2 = np.array([[0, 10, 40], [30, 50, 60], [0, 1, 2]])
    got = early.interpolate_onset(dchi2, np.linspace(0, 100, 11), [0.25, 0.5, 1.0], level=25)
    np.testing.assert_allclose(got, [75.0, 25 * 25 / 30, NAN])


def test_halves_keep_pairs_together():
    half = early.calibration_half([4, 4, 7, 7, -1, -1])
    assert half.tolist() == [True, True, False, False, True, True]


def test_halves_of_lone_rows_hold_both_classes():
    half = early.calibration_half([-1] * 8)
    label = np.tile([0, 1], 4)
    assert half[label == 0].sum() == half[label == 1].sum() == 2


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
    early.add_refit_limited(windows, refits)
    assert np.all(refits.dchi2[:, -1] <= curves.dchi2[refits.rows] * (1 + 1e-6) + 1e-6)
    assert windows["1.0"]["reachable"]["pairs"] == 6
    assert windows["0.5"]["reachable"]["roc_auc"] <= windows["1.0"]["reachable"]["roc_auc"] + 1e-6


def test_alerts_are_compared_with_the_peak_of_the_twin():
    curves = toy_set(4, shuffle=False)
    peak = np.repeat(curves.param("t0")[::2], 2)
    alert = np.where(np.arange(8) < 4, peak - 1, peak + 1)
    assert early.alerts_before_peak(curves, alert)["before_peak"] == 0.5


def test_refit_limited_delta_chi2_lies_between_zero_and_the_oracle_bound():
    curves = toy_set(24, bump=1.0)
    rows, reachable = early.prefix_dchi2(curves)
    assert (curves.y[rows] == 1).all() and reachable.shape == (24, 7)
    clean, partner = curves.noise_free(), partner_rows(curves)
    terms = ((clean - clean[partner]) / 0.05) ** 2 * np.isfinite(curves.X)
    for k, fraction in enumerate(FRACTIONS):
        bound = terms[rows][:, until_fraction(curves.time, fraction)].sum(axis=1)
        assert (reachable[:, k] <= bound * (1 + 1e-9)).all()
    half, late = reachable[:, 3], reachable[:, -1]
    assert (half <= late * 1.01 + 0.1).all()  # more data cannot fit better
    assert late.max() > 100


def test_refit_limited_delta_chi2_is_the_best_single_lens_of_the_prefix():
    curves = toy_set(4, bump=1.0, seed=3)
    rows, reachable = early.prefix_dchi2(curves, [0.6])
    clean = curves.noise_free()
    for row, got in zip(rows, reachable[:, 0], strict=True):
        seen = until_fraction(curves.time, 0.6) & np.isfinite(curves.X[row])
        t, m = curves.time[seen], clean[row, seen]

        def chi2(x, t=t, m=m):
            u = np.hypot(np.exp(x[1]), (t - x[0]) / np.exp(x[2]))
            return np.sum(((m - 18 + 2.5 * np.log10(point_lens_magnification(u))) / 0.05) ** 2)

        t0, u0, tE = curves.params[row, :3]
        options = {"maxiter": 4000, "maxfev": 4000, "xatol": 1e-6, "fatol": 1e-6}
        best = min(
            minimize(chi2, [t0, np.log(u), np.log(tE)], method="Nelder-Mead", options=options).fun
            for u in (u0, 0.3 * u0)
        )
        assert got <= best * 1.001 + 1e-3
