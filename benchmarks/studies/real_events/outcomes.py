"""Outcomes on real events: detections, false alarms and their causes. Numbers only, no photometry.

An event with several data sets counts once: it alerts if one of them does. Fractions come with
Wilson's 95 % interval. Classifications come from `protocol`. The keys of what is returned are those
of the committed records.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from benchmarks.studies.real_events.protocol import ERROR_MODELS, Classification
from lensml.evaluation import binomial_interval

__all__ = [
    "GROUPS",
    "THRESHOLDS",
    "by_event",
    "failures",
    "headline",
    "published_events",
    "summary_table",
]

THRESHOLDS = ("1pct", "0_1pct")  # by the fraction of simulated single lenses that exceed them
GROUPS = {  # classes and label qualities of which the fraction with an alert is a headline
    "single_lenses": (("PSPL", "FSPL"), "ABC"),
    "published_binaries": (("binary",), "A"),
    "clear_caustics": (("binary",), "C"),
    "simulated_binaries": (("binary",), "S"),
}


def _grouped(
    found: Iterable[Classification], key: Callable[[Classification], Hashable]
) -> dict[Hashable, list[Classification]]:
    groups = defaultdict(list)
    for one in found:
        groups[key(one)].append(one)
    return dict(groups)


def by_event(found: Iterable[Classification]) -> dict[str, list[Classification]]:
    """Classifications of each event's data sets, by event."""
    return _grouped(found, lambda one: one.event)


def alert_fractions(
    found: Iterable[Classification], threshold: str, binary: bool
) -> dict[str, dict]:
    """Fraction of files and of events with an alert, with Wilson's interval; None below 20.

    An event counts if one of its data sets does. Of binaries, a first alert long before or after
    the event does not count; of single lenses, every alert is a false one.
    """
    found = list(found)
    hit = {id(c): c.detected(threshold) if binary else c.alerted[threshold] for c in found}
    events = [any(hit[id(c)] for c in group) for group in by_event(found).values()]
    rows = {"files": list(hit.values()), "events": events}
    fractions = {name: binomial_interval(row) for name, row in rows.items()}
    return {
        name: {key: None if x != x else x for key, x in row.items()}  # no NaN in a record
        for name, row in fractions.items()
    }


def summary_table(found: Sequence[Classification], thresholds: Sequence[str]) -> list[dict]:
    """One row for each time span, error model, class and quality of the label."""
    groups = _grouped(found, lambda c: (c.span, c.errors, c.label, c.quality))
    rows = []
    for (span, errors, label, quality), group in sorted(groups.items()):
        rows.append(
            {
                "view": span,
                "arm": errors,
                "class": label,
                "label_quality": quality,
                "files": len(group),
                "events": len(by_event(group)),
                "median_factor": float(np.median([c.factor for c in group])),
                "alerts": {t: alert_fractions(group, t, label == "binary") for t in thresholds},
            }
        )
    return rows


def in_group(one: Classification, group: str) -> bool:
    """Whether a classification belongs to one of GROUPS."""
    labels, qualities = GROUPS[group]
    return one.label in labels and one.quality in qualities


def headline(
    found: Sequence[Classification], thresholds: Sequence[str]
) -> dict[str, dict | float | int]:
    """Fraction of events with an alert in their season, by group, error model and threshold.

    Beside them their counts, and for published binaries the median phase of the first alert [tE].
    """
    numbers: dict[str, dict | float | int] = {}
    season = [c for c in found if c.span == "season"]
    for group in GROUPS:
        own = [c for c in season if in_group(c, group)]
        if not own:
            continue
        numbers[f"{group}_events"] = num_events = len(by_event(own))
        for errors, threshold in product(ERROR_MODELS, thresholds):
            chosen = [c for c in own if c.errors == errors]
            fraction = alert_fractions(chosen, threshold, group != "single_lenses")["events"]
            numbers[f"{group}_{errors}_{threshold}"] = fraction
            numbers[f"{group}_{errors}_{threshold}_count"] = round(fraction["value"] * num_events)
    published = published_events(found, thresholds)
    for errors, threshold in product(ERROR_MODELS, thresholds):
        firsts = [row["first"][threshold] for row in published if row["arm"] == errors]
        firsts = [phase for phase in firsts if phase is not None]
        if firsts:
            numbers[f"published_phase_{errors}_{threshold}"] = float(np.median(firsts))
    return numbers


def published_events(found: Sequence[Classification], thresholds: Sequence[str]) -> list[dict]:
    """One row for each published binary and error model: data sets that alerted in the season.

    `first` is the phase of the earliest alert that detects the event [tE]; None if there is none.
    """
    season = [c for c in found if c.span == "season" and in_group(c, "published_binaries")]
    rows = []
    for (event, errors), sets in sorted(_grouped(season, lambda c: (c.event, c.errors)).items()):
        row = {"event": event, "arm": errors, "data_sets": len(sets), "recognised": {}, "first": {}}
        for threshold in thresholds:
            good = [c for c in sets if c.detected(threshold)]
            phases = [c.phase[threshold] for c in good if c.phase[threshold] is not None]
            row["recognised"][threshold] = len(good)
            row["first"][threshold] = round(min(phases), 3) if phases else None
        row["highest"] = round(max(c.highest for c in sets), 4)
        rows.append(row)
    return rows


def failures(
    found: Sequence[Classification], threshold: str, causes: Mapping[str, str]
) -> list[dict]:
    """Files that failed in their season under either error model, with their cause where noted.

    A real single lens fails by an alert; a published binary or a clear caustic by none.
    `event_recognised` says whether another data set detected it, under both error models.
    """
    failed: dict[str, dict] = {}
    for c in found:
        single = in_group(c, "single_lenses")
        binary = in_group(c, "published_binaries") or in_group(c, "clear_caustics")
        if c.span != "season" or not (single or binary):
            continue
        row = failed.setdefault(
            c.file,
            {
                "file": c.file,
                "event": c.event,
                "class": c.label,
                "label_quality": c.quality,
                "epochs": c.num_epochs,
                "failed": {},
                "highest": {},
                "cause": causes.get(c.file, "not looked at"),
            },
        )
        row["failed"][c.errors] = c.alerted[threshold] if single else not c.detected(threshold)
        row["highest"][c.errors] = round(c.highest, 4)
    detected = {
        event
        for event, sets in by_event(c for c in found if c.span == "season").items()
        if all(any(c.detected(threshold) for c in sets if c.errors == m) for m in ERROR_MODELS)
    }
    rows = [row for row in failed.values() if any(row["failed"].values())]
    for row in rows:
        row["event_recognised"] = row["class"] == "binary" and row["event"] in detected
    return rows
