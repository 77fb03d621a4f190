"""Verdicts on real events: who was recognised, who cried wolf, and why. Numbers only, no data.

An event with several data sets counts once: it alerts if one of them does. Shares come with
Wilson's 95 % interval. Calls come from `protocol`.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from lensml.evaluation import proportion
from lensml.experiments.protocol import ARMS, Call
from lensml.paths import InputError

__all__ = [
    "GROUPS",
    "MARKS",
    "by_event",
    "failures",
    "headline",
    "published_events",
    "season_thresholds",
    "summary_table",
]

MARKS = ("1pct", "0_1pct")  # thresholds by the share of simulated single lenses that pass them
GROUPS = {  # whose share of alerts is a headline: classes and qualities of label
    "single_lenses": (("PSPL", "FSPL"), "ABC"),
    "published_binaries": (("binary",), "A"),
    "clear_caustics": (("binary",), "C"),
    "simulated_binaries": (("binary",), "S"),
}


def season_thresholds(early_detection: Mapping | None) -> dict[str, float]:
    """Alert thresholds by mark, from the stored record of the chapter on early detection.

    Raises:
        InputError: If there is no record, or it keeps no threshold.
    """
    numbers = (early_detection or {}).get("numbers", {})
    kept = numbers.get("policies") or {}
    found = dict(zip(MARKS, (kept.get(name) for name in ("1_pct", "0.1_pct")), strict=True))
    if not kept:  # results from before there were two rates
        found = {"1pct": numbers.get("alerts", {}).get("baseline")}
    marks = {mark: row["threshold"] for mark, row in found.items() if row}
    if not marks:
        raise InputError("no stored result of chapter 07 keeps an alert threshold; give one")
    return marks


def _grouped(calls: Iterable[Call], key: Callable[[Call], Hashable]) -> dict:
    groups = defaultdict(list)
    for call in calls:
        groups[key(call)].append(call)
    return dict(groups)


def by_event(calls: Iterable[Call]) -> dict[str, list[Call]]:
    """Calls of each event's data sets, by event."""
    return _grouped(calls, lambda call: call.event)


def alert_shares(calls: Iterable[Call], mark: str, binary: bool) -> dict[str, dict]:
    """Share of files and of events with an alert, with Wilson's interval.

    An event counts if one of its data sets does. Of binaries, a first alert long before or after
    the event does not count; of single lenses, every alert is a false one.
    """
    calls = list(calls)
    hit = {id(c): c.recognised(mark) if binary else c.alerted[mark] for c in calls}
    events = [any(hit[id(c)] for c in group) for group in by_event(calls).values()]
    return {"files": proportion(list(hit.values())), "events": proportion(events)}


def summary_table(calls: Sequence[Call], marks: Sequence[str]) -> list[dict]:
    """One row for each view, arm, class and quality of the label."""
    groups = _grouped(calls, lambda c: (c.view, c.arm, c.label, c.quality))
    rows = []
    for (view, arm, label, quality), group in sorted(groups.items()):
        rows.append(
            {
                "view": view,
                "arm": arm,
                "class": label,
                "label_quality": quality,
                "files": len(group),
                "events": len(by_event(group)),
                "median_factor": float(np.median([c.factor for c in group])),
                "alerts": {m: alert_shares(group, m, label == "binary") for m in marks},
            }
        )
    return rows


def in_group(call: Call, group: str) -> bool:
    """Whether a call belongs to one of GROUPS."""
    labels, qualities = GROUPS[group]
    return call.label in labels and call.quality in qualities


def headline(calls: Sequence[Call], marks: Sequence[str]) -> dict[str, dict | float | int]:
    """Flat numbers of the season view: share of events with an alert by group, arm and mark.

    Beside them their counts, and for published binaries the median phase of the first alert [tE].
    """
    numbers: dict[str, dict | float | int] = {}
    season = [c for c in calls if c.view == "season"]
    for group in GROUPS:
        own = [c for c in season if in_group(c, group)]
        if not own:
            continue
        numbers[f"{group}_events"] = len(by_event(own))
        for arm in ARMS:
            chosen = [c for c in own if c.arm == arm]
            for mark in marks:
                shares = alert_shares(chosen, mark, group != "single_lenses")
                numbers[f"{group}_{arm}_{mark}"] = share = shares["events"]
                numbers[f"{group}_{arm}_{mark}_count"] = round(share["value"] * len(by_event(own)))
    published = published_events(calls, marks)
    for arm, mark in product(ARMS, marks):
        firsts = [row["first"][mark] for row in published if row["arm"] == arm]
        firsts = [phase for phase in firsts if phase is not None]
        if firsts:
            numbers[f"published_phase_{arm}_{mark}"] = float(np.median(firsts))
    return numbers


def published_events(calls: Sequence[Call], marks: Sequence[str]) -> list[dict]:
    """One row for each published binary and arm: which data sets alerted in the season, and when.

    `first` is the phase of the earliest alert that recognises it [tE]; None if there is none.
    """
    season = [c for c in calls if c.view == "season" and in_group(c, "published_binaries")]
    rows = []
    for (event, arm), sets in sorted(_grouped(season, lambda c: (c.event, c.arm)).items()):
        row = {"event": event, "arm": arm, "data_sets": len(sets), "recognised": {}, "first": {}}
        for mark in marks:
            good = [c for c in sets if c.recognised(mark)]
            phases = [c.phase[mark] for c in good if c.phase[mark] is not None]
            row["recognised"][mark] = len(good)
            row["first"][mark] = round(min(phases), 3) if phases else None
        row["highest"] = round(max(c.highest for c in sets), 4)
        rows.append(row)
    return rows


def failures(calls: Sequence[Call], mark: str, causes: Mapping[str, str]) -> list[dict]:
    """Files that failed in the season view in either arm, with a cause where one has been noted.

    A real single lens fails by an alert; a published binary or a clear caustic by none.
    `event_recognised` says whether another data set made up for it, in both arms.
    """
    found: dict[str, dict] = {}
    for call in calls:
        single = in_group(call, "single_lenses")
        binary = in_group(call, "published_binaries") or in_group(call, "clear_caustics")
        if call.view != "season" or not (single or binary):
            continue
        failed = call.alerted[mark] if single else not call.recognised(mark)
        row = found.setdefault(
            call.file,
            {
                "file": call.file,
                "event": call.event,
                "class": call.label,
                "label_quality": call.quality,
                "epochs": call.num_epochs,
                "failed": {},
                "highest": {},
                "cause": causes.get(call.file, "not looked at"),
            },
        )
        row["failed"][call.arm] = failed
        row["highest"][call.arm] = round(call.highest, 4)
    rescued = {
        event
        for event, sets in by_event(c for c in calls if c.view == "season").items()
        if all(any(c.recognised(mark) for c in sets if c.arm == arm) for arm in ARMS)
    }
    rows = [row for row in found.values() if any(row["failed"].values())]
    for row in rows:
        row["event_recognised"] = row["class"] == "binary" and row["event"] in rescued
    return rows
