"""Calls at fractions, against phase, and alerts, counted by hand on a few epochs."""

import numpy as np
import pytest

from lensml.evaluation import early_detection as early

NAN = np.nan


def test_call_at_a_fraction_is_the_last_one_made_by_then():
    times = np.linspace(0, 10, 11)
    p = np.full((3, 11), NAN)
    p[0, [2, 5, 9]] = [0.2, 0.6, 0.9]  # at days 2, 5 and 9
    p[1] = np.arange(11) / 10
    got = early.at_fractions(p, times, [0.1, 0.25, 0.5, 0.67, 1.0])
    np.testing.assert_allclose(got[0], [0.5, 0.2, 0.6, 0.6, 0.9], atol=1e-7)
    np.testing.assert_allclose(got[1], [0.1, 0.2, 0.5, 0.6, 1.0], atol=1e-7)
    np.testing.assert_allclose(got[2], 0.5)
    assert got.dtype == np.float32


def test_window_is_the_grid_of_the_row_not_its_observed_part():
    times = np.array([[0.0, 5, 10], [0.0, 50, 100]])
    p = np.array([[NAN, 0.7, NAN], [NAN, 0.3, NAN]])
    np.testing.assert_allclose(early.at_fractions(p, times, [0.49, 0.5]), [[0.5, 0.7], [0.5, 0.3]])


def test_future_calls_change_nothing():
    rng = np.random.default_rng(0)
    times, p = np.linspace(-100, 100, 60), rng.uniform(size=(5, 60))
    wild = p.copy()
    wild[:, times > 0] = NAN
    np.testing.assert_array_equal(
        early.at_fractions(p, times)[:, :4], early.at_fractions(wild, times)[:, :4]
    )


def test_phase_counts_from_the_peak_in_einstein_times():
    times = np.arange(10.0)
    p = np.tile(np.arange(10) / 10, (2, 1))
    p[0, 4] = NAN
    got = early.against_phase(p, times, t0=[5, 0], tE=[1, 2], edges=[-1, 0, 1, 30])
    # Row 0: epoch 4 lies in [-1, 0) but was not observed, so the call of epoch 3 stands.
    np.testing.assert_allclose(got[0], [0.3, 0.5, 0.9])
    np.testing.assert_allclose(got[1], [NAN, 0.1, 0.9])  # its window begins at the peak


def test_threshold_holds_over_the_whole_season():
    p = np.full((100, 5), 0.1)
    p[:, 2] = np.arange(100) / 100  # the peak is in mid-season, the last call is harmless
    y = np.zeros(100)
    threshold = early.season_threshold(p, y, rate=0.05)
    assert np.isfinite(early.first_alert(p, np.arange(5.0), threshold)).mean() == 0.05
    with_binaries = np.concatenate([p, np.ones((50, 5))])
    assert early.season_threshold(with_binaries, np.repeat([0, 1], [100, 50]), 0.05) == threshold


def test_first_alert_is_the_first_epoch_above():
    p = np.array([[0.1, NAN, 0.8, 0.2, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5], [NAN] * 5])
    np.testing.assert_array_equal(
        early.first_alert(p, np.arange(5.0) * 2, 0.5), np.array([4.0, NAN, NAN])
    )
    np.testing.assert_array_equal(early.max_probability(p), [0.9, 0.5, 0.5])


def test_onset_is_interpolated_where_delta_chi2_passes_the_level():
    dchi2 = np.array([[0, 10, 40], [30, 50, 60], [0, 1, 2]])
    got = early.onset_times(dchi2, np.linspace(0, 100, 11), [0.25, 0.5, 1.0], level=25)
    np.testing.assert_allclose(got, [75.0, 25 * 25 / 30, NAN])


def test_summary_counts_what_it_says():
    # Pairs 0, 2 (even) set the threshold; pairs 1, 3, 5 are reported.
    times = np.arange(10.0)
    p = np.full((10, 10), 0.1)
    pair = np.array([0, 0, 2, 2, 1, 1, 3, 3, 5, 5])
    y = np.tile([0, 1], 5)
    p[0, 4] = 0.6  # highest single of the first half: the threshold
    p[6, 3] = 0.7  # one of three reported singles passes it
    p[5, 6:] = 0.9  # binary of pair 1: onset at 4, alert at 6
    p[7, 2] = 0.9  # binary of pair 3: alert at 2 before its onset at 5
    onset = np.array([NAN, 1, NAN, 1, NAN, 4.0, NAN, 5.0, NAN, 3.0])
    got = early.alert_summary(p, times, y, pair, onset, rate=0.01)
    assert got["threshold"] == 0.6
    assert got["false_alarms"] == pytest.approx(1 / 3) and got["singles"] == 3
    assert got["detected"] == got["detected_with_onset"] == pytest.approx(2 / 3)
    assert got["premature"] == 0.5 and got["median_lag"] == 2.0
    assert got["with_onset"] == 3


def test_halves_keep_pairs_together():
    half = early.calibration_half([4, 4, 7, 7, -1, -1])
    assert half.tolist() == [True, True, False, False, True, True]


def test_halves_of_lone_rows_hold_both_classes():
    half = early.calibration_half([-1] * 8)
    label = np.tile([0, 1], 4)
    assert half[label == 0].sum() == half[label == 1].sum() == 2
