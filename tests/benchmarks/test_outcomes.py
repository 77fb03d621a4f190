"""An event counts once, an alert far from its peak recognises nothing, and failures have causes."""

import pytest

from lensml.experiments import protocol, verdicts
from lensml.experiments.protocol import Call
from lensml.paths import InputError

MARKS = {"1pct": 0.8, "0_1pct": 0.95}


def calls_of(file, event, label, quality, highest, phase=None):
    """The same answer in both views and both arms."""
    alerted = {mark: highest > threshold for mark, threshold in MARKS.items()}
    phases = {mark: phase if alerted[mark] else None for mark in MARKS}
    return [
        Call(file, event, label, quality, view, arm, 90, 1.0, 0.5, highest, alerted, phases)
        for view in protocol.VIEWS
        for arm in protocol.ARMS
    ]


@pytest.fixture
def calls():
    return [
        *calls_of("s1", "s1", "PSPL", "B", 0.6),
        *calls_of("s2", "s2", "PSPL", "C", 0.9),  # whose peak nobody knows
        *calls_of("s3", "s3", "PSPL", "S", 0.99),  # somebody's simulation
        *calls_of("b1-quiet", "b1", "binary", "A", 0.6),
        *calls_of("b1-alert", "b1", "binary", "A", 0.9, phase=-0.5),
        *calls_of("b1-late", "b1", "binary", "A", 0.9, phase=2.5),
        *calls_of("b2-early", "b2", "binary", "A", 0.9, phase=-4.5),
    ]


def test_an_event_of_several_data_sets_counts_once_and_far_alerts_recognise_nothing(calls):
    numbers = verdicts.headline(calls, verdicts.MARKS)
    assert numbers["published_binaries_events"] == 2 and numbers["single_lenses_events"] == 2
    for arm in protocol.ARMS:
        assert numbers[f"published_binaries_{arm}_1pct"]["value"] == 0.5
        assert numbers[f"single_lenses_{arm}_1pct"]["value"] == 0.5
        assert numbers[f"single_lenses_{arm}_1pct_count"] == 1
        assert numbers[f"single_lenses_{arm}_0_1pct"]["value"] == 0.0
        assert numbers[f"published_phase_{arm}_1pct"] == -0.5
        assert f"published_phase_{arm}_0_1pct" not in numbers
    assert not any(name.startswith("clear_caustics") for name in numbers), "there are none"
    low, high = (numbers["single_lenses_quoted_0_1pct"][k] for k in ("low", "high"))
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(3.8416 / 5.8416, abs=1e-3)


def test_published_events_say_how_many_data_sets_alerted_and_when_the_first(calls):
    rows = verdicts.published_events(calls, verdicts.MARKS)
    b1, b2 = (row for row in rows if row["arm"] == "quoted")
    assert (b1["data_sets"], b1["recognised"]["1pct"], b1["first"]["1pct"]) == (3, 2, -0.5)
    assert (b2["data_sets"], b2["recognised"]["1pct"], b2["first"]["1pct"]) == (1, 0, None)


def test_table_has_a_row_for_each_view_arm_class_and_quality(calls):
    rows = verdicts.summary_table(calls, verdicts.MARKS)
    assert len(rows) == 4 * 4
    published = next(row for row in rows if row["class"] == "binary")
    assert (published["files"], published["events"]) == (4, 2)
    shares = published["alerts"]["1pct"]
    assert (shares["files"]["value"], shares["events"]["value"]) == (0.5, 0.5)


def test_failures_carry_their_cause_and_whether_another_data_set_made_up(calls):
    rows = {r["file"]: r for r in verdicts.failures(calls, "1pct", {"s2": "a cloud"})}
    assert set(rows) == {"s2", "b1-quiet", "b2-early"}
    assert rows["s2"]["cause"] == "a cloud" and rows["b2-early"]["cause"] == "not looked at"
    assert rows["b1-quiet"]["event_recognised"] and not rows["b2-early"]["event_recognised"]
    assert rows["s2"]["failed"] == {"quoted": True, "rescaled": True}


def test_thresholds_come_from_the_stored_chapter_whichever_way_it_keeps_them():
    two = {"policies": {"1_pct": {"threshold": 0.8}, "0.1_pct": {"threshold": 0.9}}}
    assert verdicts.season_thresholds({"numbers": two}) == {"1pct": 0.8, "0_1pct": 0.9}
    one = {"alerts": {"baseline": {"threshold": 0.7}}}
    assert verdicts.season_thresholds({"numbers": one}) == {"1pct": 0.7}
    for record in (None, {"numbers": {}}):
        with pytest.raises(InputError, match="chapter 07 keeps an alert threshold"):
            verdicts.season_thresholds(record)
