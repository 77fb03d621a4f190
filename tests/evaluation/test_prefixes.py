"""What a prefix could tell never exceeds what the whole curve tells, and shares carry intervals."""

import numpy as np
import pytest
from sets import toy_set

from lensml.evaluation import prefixes


def test_an_onset_exists_only_where_the_whole_curve_shows_the_anomaly():
    curves = toy_set(8, num_epochs=60, sigma=0.05, bump=2.0)
    onset = prefixes.onsets(curves, 8)
    strong = (curves.y == 1) & (curves.dchi2 > 25)
    assert strong.any() and np.isfinite(onset[strong]).any()
    assert not np.isfinite(onset[~strong]).any()
    known = onset[np.isfinite(onset)]
    assert np.all((known >= curves.time[0]) & (known <= curves.time[-1]))


def test_what_is_reachable_on_a_prefix_never_exceeds_the_bound():
    curves = toy_set(6, num_epochs=60)
    windows = {"0.5": {}, "1.0": {}}
    prefixes.add_reachable(windows, curves, 6)
    rows, dchi2 = prefixes.refit_prefixes(curves, 6)
    assert np.all(dchi2[:, -1] <= curves.dchi2[rows] * (1 + 1e-6) + 1e-6)
    assert windows["1.0"]["reachable"]["pairs"] == 6
    assert windows["0.5"]["reachable"]["roc_auc"] <= windows["1.0"]["reachable"]["roc_auc"] + 1e-6


def test_alerts_are_compared_with_the_peak_of_the_twin():
    curves = toy_set(4, shuffle=False)
    peak = np.repeat(curves.param("t0")[::2], 2)
    early = np.where(np.arange(8) < 4, peak - 1, peak + 1)
    assert prefixes.alerts_by_peak(curves, early)["before_peak"] == 0.5


def test_a_wilson_interval_stays_within_zero_and_one():
    none = prefixes.proportion(np.zeros(20, bool))
    assert none["value"] == 0 and none["low"] == pytest.approx(0, abs=1e-9) and none["high"] < 0.2
    assert np.isnan(prefixes.proportion([])["value"])
