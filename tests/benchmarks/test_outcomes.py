"""An event counts once, an alert far from its peak is no detection, and failures have causes."""

import pytest

from benchmarks.studies.real_events import outcomes, protocol
from benchmarks.studies.real_events.protocol import Classification

THRESHOLDS = {"1pct": 0.8, "0_1pct": 0.95}


def classifications(file, event, label, quality, highest, phase=None):
    """The same summary for both time spans under both error models."""
    alerted = {name: highest > threshold for name, threshold in THRESHOLDS.items()}
    phases = {name: phase if alerted[name] else None for name in THRESHOLDS}
    return [
        Classification(
            file, event, label, quality, span, errors, 90, 1.0, 0.5, highest, alerted, phases
        )
        for span in protocol.SPANS
        for errors in protocol.ERROR_MODELS
    ]


@pytest.fixture
def found():
    return [
        *classifications("s1", "s1", "PSPL", "B", 0.6),
        *classifications("s2", "s2", "PSPL", "C", 0.9),  # whose peak is not known
        *classifications("s3", "s3", "PSPL", "S", 0.99),  # a simulation
        *classifications("b1-quiet", "b1", "binary", "A", 0.6),
        *classifications("b1-alert", "b1", "binary", "A", 0.9, phase=-0.5),
        *classifications("b1-late", "b1", "binary", "A", 0.9, phase=2.5),
        *classifications("b2-early", "b2", "binary", "A", 0.9, phase=-4.5),
    ]


def test_an_event_of_several_data_sets_counts_once_and_far_alerts_are_no_detections(found):
    numbers = outcomes.headline(found, outcomes.THRESHOLDS)
    assert numbers["published_binaries_events"] == 2 and numbers["single_lenses_events"] == 2
    for errors in protocol.ERROR_MODELS:
        assert numbers[f"published_binaries_{errors}_1pct"]["value"] == 0.5
        assert numbers[f"single_lenses_{errors}_1pct"]["value"] == 0.5
        assert numbers[f"single_lenses_{errors}_1pct_count"] == 1
        assert numbers[f"single_lenses_{errors}_0_1pct"]["value"] == 0.0
        assert numbers[f"published_phase_{errors}_1pct"] == -0.5
        assert f"published_phase_{errors}_0_1pct" not in numbers
    assert not any(name.startswith("clear_caustics") for name in numbers), "there are none"
    few = numbers["single_lenses_quoted_0_1pct"]
    assert few["low"] is None and few["high"] is None  # fewer than twenty events


def test_published_events_say_how_many_data_sets_alerted_and_when_the_first(found):
    rows = outcomes.published_events(found, outcomes.THRESHOLDS)
    b1, b2 = (row for row in rows if row["arm"] == "quoted")
    assert (b1["data_sets"], b1["recognised"]["1pct"], b1["first"]["1pct"]) == (3, 2, -0.5)
    assert (b2["data_sets"], b2["recognised"]["1pct"], b2["first"]["1pct"]) == (1, 0, None)


def test_table_has_a_row_for_each_time_span_error_model_class_and_quality(found):
    rows = outcomes.summary_table(found, outcomes.THRESHOLDS)
    assert len(rows) == 4 * 4
    published = next(row for row in rows if row["class"] == "binary")
    assert (published["files"], published["events"]) == (4, 2)
    fractions = published["alerts"]["1pct"]
    assert (fractions["files"]["value"], fractions["events"]["value"]) == (0.5, 0.5)


def test_failures_carry_their_cause_and_whether_another_data_set_detected_the_event(found):
    rows = {r["file"]: r for r in outcomes.failures(found, "1pct", {"s2": "a cloud"})}
    assert set(rows) == {"s2", "b1-quiet", "b2-early"}
    assert rows["s2"]["cause"] == "a cloud" and rows["b2-early"]["cause"] == "not looked at"
    assert rows["b1-quiet"]["event_recognised"] and not rows["b2-early"]["event_recognised"]
    assert rows["s2"]["failed"] == {"quoted": True, "rescaled": True}
