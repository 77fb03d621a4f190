"""Outcomes on real events: detections, false alarms and their causes. Numbers only, no photometry.

Single lenses that the simulated noise may have been measured on are counted and left out of the
false alarms. Fractions come with Wilson's 95 % interval. Summaries come from `protocol`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from benchmarks.studies.real_events.protocol import SINGLE, SPANS, Summary
from lensml.evaluation import binomial_interval

__all__ = ["GROUPS", "failures", "headline", "published_events", "summary_table"]

GROUPS = {  # classes and label qualities of which the fraction with an alert is a headline
    "single_lenses": (SINGLE, "ABC"),
    "published_binaries": (("binary",), "A"),
    "clear_caustics": (("binary",), "C"),
    "simulated_binaries": (("binary",), "S"),
}


def alert_fraction(found: Iterable[Summary], threshold: str) -> dict:
    """Fraction of events with an alert, with Wilson's interval; None below 20.

    Of binaries, a first alert long before or after the event does not count; of all others, every
    alert is a false one.
    """
    hits = [c.detected(threshold) if c.label == "binary" else c.alerted[threshold] for c in found]
    row = binomial_interval(hits)
    return {key: None if x != x else x for key, x in row.items()}  # no NaN in a record


def summary_table(found: Sequence[Summary], thresholds: Sequence[str]) -> list[dict]:
    """One row for each time span, class and quality of the label."""
    groups = defaultdict(list)
    for c in found:
        groups[c.span, c.label, c.quality].append(c)
    rows = []
    for (span, label, quality), group in sorted(groups.items()):
        kept = [c for c in group if not c.set_aside]
        rows.append(
            {
                "span": span,
                "class": label,
                "label_quality": quality,
                "events": len(kept),
                "set_aside": len(group) - len(kept),
                "median_factor": float(np.median([c.factor for c in group])),
                "alerts": {t: alert_fraction(kept, t) for t in thresholds},
            }
        )
    return rows


def in_group(one: Summary, group: str) -> bool:
    """Whether a summary belongs to one of GROUPS and may be counted there."""
    labels, qualities = GROUPS[group]
    return one.label in labels and one.quality in qualities and not one.set_aside


def headline(
    found: Sequence[Summary], thresholds: Sequence[str]
) -> dict[str, dict | float | int | None]:
    """Fraction of events with an alert, by group, time span and threshold, and their counts.

    `of` of a fraction is less than the group's `events` where a season has too few epochs. Of
    published binaries also the median phase of the first alert [tE] and the lowest P(binary) at the
    last epoch.
    """
    numbers: dict[str, dict | float | int | None] = {}
    aside = {c.event for c in found if c.set_aside and c.quality in GROUPS["single_lenses"][1]}
    numbers["single_lenses_set_aside"] = len(aside)
    for group, span in product(GROUPS, SPANS):
        own = [c for c in found if c.span == span and in_group(c, group)]
        if not own:
            continue
        numbers.setdefault(f"{group}_events", len(own))
        for threshold in thresholds:
            fraction = alert_fraction(own, threshold)
            numbers[f"{group}_{span}_{threshold}"] = fraction
            numbers[f"{group}_{span}_{threshold}_count"] = fraction["hits"]
    published = published_events(found, thresholds)
    for span in SPANS:
        rows = [row for row in published if row["span"] == span]
        for threshold in thresholds:
            firsts = [row["first"][threshold] for row in rows if row["detected"][threshold]]
            if firsts := [phase for phase in firsts if phase is not None]:
                numbers[f"published_binaries_{span}_{threshold}_phase"] = float(np.median(firsts))
        if rows:
            numbers[f"published_binaries_{span}_lowest_end"] = min(row["end"] for row in rows)
    return numbers


def published_events(found: Sequence[Summary], thresholds: Sequence[str]) -> list[dict]:
    """One row for each published binary and time span; first alerts in phase [tE]."""
    rows = []
    for c in sorted(found, key=lambda c: (c.event, SPANS.index(c.span))):
        if in_group(c, "published_binaries"):
            firsts = {t: c.phase[t] for t in thresholds}
            rows.append(
                {
                    "event": c.event,
                    "span": c.span,
                    "threshold_of": c.survey,
                    "data_sets": c.num_sets,
                    "epochs": c.num_epochs,
                    "detected": {t: c.detected(t) for t in thresholds},
                    "first": {t: None if x is None else round(x, 3) for t, x in firsts.items()},
                    "highest": round(c.highest, 4),
                    "end": round(c.final, 4),
                    "called": c.called,
                }
            )
    return rows


def failures(found: Sequence[Summary], threshold: str, causes: Mapping[str, str]) -> list[dict]:
    """Events that failed in either time span, with their cause where it was noted.

    A real single lens fails by an alert; a published binary or a clear caustic by none.
    """
    failed: dict[tuple, dict] = {}
    for c in found:
        single = in_group(c, "single_lenses")
        if not (single or in_group(c, "published_binaries") or in_group(c, "clear_caustics")):
            continue
        row = failed.setdefault(
            (c.event, c.label, c.quality),
            {
                "event": c.event,
                "class": c.label,
                "label_quality": c.quality,
                "data_sets": c.num_sets,
                "epochs": c.num_epochs,
                "failed": {},
                "highest": {},
                "called": {},
                "cause": causes.get(c.event, "not looked at"),
            },
        )
        row["failed"][c.span] = c.alerted[threshold] if single else not c.detected(threshold)
        row["highest"][c.span] = round(c.highest, 4)
        row["called"][c.span] = c.called
    return [row for row in failed.values() if any(row["failed"].values())]
