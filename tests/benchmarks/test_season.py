"""A season's rates from made rows, and its events by their number."""

import numpy as np
import pytest

from benchmarks.studies.season import COLUMNS, FRACTIONS, curve, draw, summary

THRESHOLDS = {"1pct": 0.9, "0_1pct": 0.99}


def rows_of(kinds, highest, dchi2=1000.0):
    """Rows of COLUMNS: an alert at each threshold that `highest` passes."""
    table = {name: np.zeros(len(kinds)) for name in COLUMNS}
    table["kind"] = np.array([list(FRACTIONS).index(kind) for kind in kinds], dtype=float)
    table |= {"highest": np.array(highest), "dchi2": np.full(len(kinds), dchi2)}
    for name, threshold in THRESHOLDS.items():
        table[f"alert_{name}"] = np.where(table["highest"] > threshold, 5.0, np.nan)
    return np.stack([table[name] for name in COLUMNS], axis=1)


def test_purity_counts_alerts_and_completeness_counts_binaries():
    highest = [0.95, 0.995, 0.2, 0.3, *[0.95] * 2, *[0.1] * 14]
    rows = rows_of(["binary"] * 4 + ["single"] * 16, highest)
    found = summary(rows, THRESHOLDS)
    assert found["purity_1pct"]["value"] == 0.5 and found["completeness_1pct"]["value"] == 0.5
    assert found["purity_0_1pct"]["value"] == 1 and found["completeness_0_1pct"]["value"] == 0.25
    assert found["alerts_of_single_1pct"]["value"] == pytest.approx(2 / 16)
    assert found["alerts_per_night_1pct"] == pytest.approx(4 / 200)


def test_weak_binaries_are_left_out_of_the_strong_ones():
    weak = summary(rows_of(["binary"] * 5, [0.95] * 5, dchi2=10.0), THRESHOLDS)
    assert weak["strong_binaries"] == 0 and weak["completeness_strong_1pct"]["value"] is None


def test_purity_rises_with_the_threshold_where_binaries_stand_out():
    rng = np.random.default_rng(0)
    kinds = ["binary"] * 100 + ["single"] * 1900
    rows = rows_of(kinds, np.concatenate([rng.beta(8, 2, 100), rng.beta(2, 4, 1900)]))
    found = curve(rows)
    assert found["purity"][-1] > 3 * found["purity"][0]
    assert (np.diff(found["threshold"]) > 0).all() and (np.diff(found["completeness"]) <= 0).all()


def test_an_event_does_not_depend_on_the_others_and_kinds_come_as_drawn():
    first, again = draw("ogle", 3), draw("ogle", 3)
    assert first[0] == again[0] and np.array_equal(first[1][0].mag, again[1][0].mag)
    kinds = [draw("ogle", k)[0] for k in range(60)]
    assert set(kinds) <= set(FRACTIONS) and kinds.count("single") > 30
