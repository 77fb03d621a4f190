"""An alert far from its peak is no detection, lenses that set the noise are not counted."""

import pytest

from benchmarks.studies.real_events import outcomes, protocol
from benchmarks.studies.real_events.protocol import Summary
from lensml.simulation import noise_third

THRESHOLDS = {"1pct": 0.8, "0_1pct": 0.95}
NAMES = tuple(THRESHOLDS)
MEASURED = [name for name in map("s{}".format, range(40)) if not noise_third(name)]
NOISE = next(name for name in map("s{}".format, range(40)) if noise_third(name))


def summaries(event, label, quality, highest, phase=None, final=0.5):
    """The same summary for both time spans."""
    alerted = {name: highest > threshold for name, threshold in THRESHOLDS.items()}
    phases = {name: phase if alerted[name] else None for name in THRESHOLDS}
    return [
        Summary(
            event=event, label=label, quality=quality, span=span, survey="ogle", num_sets=2,
            num_epochs=90, factor=1.2, final=final, highest=highest, called="single",
            alerted=alerted, phase=phases,
        )
        for span in protocol.SPANS
    ]  # fmt: skip


@pytest.fixture
def found():
    return [
        *summaries(MEASURED[0], "PSPL", "B", 0.6),
        *summaries(MEASURED[1], "PSPL", "C", 0.9),  # whose peak is not known
        *summaries(MEASURED[2], "PSPL", "S", 0.99),  # a simulation
        *summaries(NOISE, "PSPL", "C", 0.99),
        *summaries("b1", "binary", "A", 0.9, phase=-0.5, final=0.7),
        *summaries("b2", "binary", "A", 0.9, phase=-4.5, final=0.2),
        *summaries("b3", "binary", "A", 0.6),
        *summaries(NOISE, "binary", "C", 0.99, phase=0.5),
    ]


def test_far_alerts_are_no_detections_and_lenses_that_set_the_noise_are_left_out(found):
    numbers = outcomes.headline(found, NAMES)
    assert numbers["single_lenses_set_aside"] == 1
    assert (numbers["single_lenses_events"], numbers["published_binaries_events"]) == (2, 3)
    for span in protocol.SPANS:
        assert numbers[f"published_binaries_{span}_1pct"]["of"] == 3
        assert numbers[f"single_lenses_{span}_1pct"]["of"] == 2
        assert numbers[f"published_binaries_{span}_1pct"]["value"] == pytest.approx(1 / 3)
        assert numbers[f"single_lenses_{span}_1pct"]["value"] == 0.5
        assert numbers[f"single_lenses_{span}_1pct_count"] == 1
        assert numbers[f"single_lenses_{span}_0_1pct"]["value"] == 0.0
        assert numbers[f"published_binaries_{span}_1pct_phase"] == -0.5
        assert f"published_binaries_{span}_0_1pct_phase" not in numbers
        assert numbers[f"published_binaries_{span}_lowest_end"] == 0.2
        # A binary is none of the single lenses, whatever its name.
        assert numbers[f"clear_caustics_{span}_1pct_count"] == 1
    assert not any(name.startswith("simulated") for name in numbers), "there are none"
    few = numbers["single_lenses_whole_0_1pct"]
    assert few["low"] is None and few["high"] is None  # fewer than twenty events


def test_published_events_say_when_they_were_found_and_how_they_end(found):
    rows = outcomes.published_events(found, NAMES)
    b1, b2, b3 = (row for row in rows if row["span"] == "whole")
    assert (b1["detected"]["1pct"], b1["first"]["1pct"], b1["end"]) == (True, -0.5, 0.7)
    assert (b2["detected"]["1pct"], b2["first"]["1pct"], b2["end"]) == (False, -4.5, 0.2)
    assert (b3["detected"]["1pct"], b3["first"]["1pct"]) == (False, None)


def test_table_has_a_row_for_each_time_span_class_and_quality(found):
    rows = outcomes.summary_table(found, NAMES)
    assert len(rows) == 2 * 5
    published = next(r for r in rows if (r["class"], r["label_quality"]) == ("binary", "A"))
    assert (published["events"], published["alerts"]["1pct"]["hits"]) == (3, 1)
    single = next(r for r in rows if (r["class"], r["label_quality"]) == ("PSPL", "C"))
    assert (single["events"], single["set_aside"]) == (1, 1)
    assert single["alerts"]["1pct"]["hits"] == 1 and single["alerts"]["0_1pct"]["hits"] == 0


def test_failures_carry_their_cause(found):
    rows = {r["event"]: r for r in outcomes.failures(found, "1pct", {MEASURED[1]: "a cloud"})}
    assert set(rows) == {MEASURED[1], "b2", "b3"}
    assert rows[MEASURED[1]]["cause"] == "a cloud" and rows["b2"]["cause"] == "not looked at"
    assert rows[MEASURED[1]]["failed"] == {"whole": True, "season": True}
