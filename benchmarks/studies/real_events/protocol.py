"""A frozen protocol for real events that others have classified: same files, same numbers.

A folder holds light curves and a `catalogue.csv`. `freeze` lists its files with their checksums and
labels; `classify_all` classifies each event, and refuses a file that has changed since. The
photometry itself belongs to the surveys.

An event is all files of one name and label: its data sets are classified together. The *time span*
is what the network is given: "whole", every epoch with baselines unknown, or "season", the event's
own season with the baselines of those before. Errors are as published; the fit scales them. The
threshold is that of the survey which observed the event (`survey_of`).
"""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from lensml.network import STEP, Network
from lensml.paths import InputError, atomic_path
from lensml.photometry import Event, read_photometry, seasons
from lensml.simulation import noise_third
from lensml.streaming import Classification, classify_event

__all__ = [
    "MIN_EPOCHS",
    "SPANS",
    "CataloguedEvent",
    "Summary",
    "Target",
    "classify_all",
    "events_of",
    "freeze",
    "read_frozen",
    "read_target",
    "select_span",
    "summarise",
    "survey_of",
]

COLUMNS = ("file", "event", "class", "t0", "tE", "label_quality")
SPANS = ("whole", "season")
MIN_EPOCHS = 30  # of all data sets together
MAX_SINGLE_SEASON = 400.0  # a longer event is cut into seasons [day]
MAX_PHASE = 3.0  # an alert further from the published peak does not count as a detection [tE]
SINGLE = ("PSPL", "FSPL")
# Beginning of an observatory's name -> survey of `lensml.simulation` that has its thresholds.
OBSERVATORIES = {
    "OGLE": "ogle", "KMT": "kmtnet", "MOA": "moa", "WFIRST": "roman", "Roman": "roman",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One file of the frozen list, and the published classification of its event."""

    file: str
    sha256: str
    event: str
    label: str  # PSPL, FSPL, binary, other
    quality: str  # A published, B catalogue, C by eye or by a fit, S simulation
    t0: float | None  # published peak [day]
    tE: float | None  # [day]
    observatory: str = ""


@dataclass(frozen=True)
class CataloguedEvent:
    """All files of one event and label."""

    name: str
    label: str
    quality: str
    t0: float | None
    tE: float | None
    files: tuple[Target, ...]

    @property
    def survey(self) -> str:
        """Whose threshold it has."""
        return survey_of(target.observatory for target in self.files)


@dataclass(frozen=True)
class Summary:
    """P(binary) along one event over one time span."""

    event: str
    label: str
    quality: str
    span: str
    survey: str  # whose thresholds
    num_sets: int
    num_epochs: int
    factor: float  # median over data sets of fitted over quoted errors
    final: float  # P(binary) at the last epoch
    highest: float  # the largest P(binary) at any epoch
    called: str  # the likeliest class at the last epoch
    alerted: dict[str, bool]  # threshold's name -> whether P ever exceeded it
    phase: dict[str, float | None]  # the same -> (first alert - t0) / tE; None if never or unknown

    def detected(self, threshold: str) -> bool:
        """Whether there was a first alert, and not long before or after the event."""
        phase = self.phase[threshold]
        return self.alerted[threshold] and (phase is None or abs(phase) <= MAX_PHASE)

    @property
    def set_aside(self) -> bool:
        """Whether it is a single lens that the simulated noise may have been measured on."""
        return self.label in SINGLE and noise_third(self.event)


def survey_of(observatories: Iterable[str]) -> str:
    """Survey whose threshold is used: that of `OBSERVATORIES` if all are of one, else "default".

    An event of OGLE data alone has the threshold of `ogle`, and so on; one that several surveys or
    any other telescope observed has that of all surveys together.
    """
    found = {
        next((name for begin, name in OBSERVATORIES.items() if one.startswith(begin)), "default")
        for one in observatories
    }
    return found.pop() if len(found) == 1 else "default"


def read_catalogue(folder: Path) -> list[dict[str, str]]:
    """Rows of the folder's catalogue; InputError if it is not there or lacks a column."""
    path = folder / "catalogue.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the folder that holds it")
    with open(path, newline="") as catalogue:
        rows = list(csv.DictReader(catalogue))
    if not rows or (missing := [name for name in COLUMNS if name not in rows[0]]):
        raise InputError(f"{path} lacks {missing if rows else 'rows'}; expected {COLUMNS}")
    return rows


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be read ({reason}); the list names it") from None


def freeze(folder: Path, path: Path) -> list[Target]:
    """Write files, checksums and labels to `path` (JSON), in the order of the catalogue.

    The catalogue's column `observatory` may be missing; all events have the default threshold then.
    """
    targets = [
        Target(
            row["file"],
            _sha256(folder / row["file"]),
            row["event"],
            row["class"],
            row["label_quality"],
            *(float(row[k]) if row[k].strip() else None for k in ("t0", "tE")),
            row.get("observatory", ""),
        )
        for row in read_catalogue(folder)
    ]
    record = {
        "spans": SPANS,
        "fewest_epochs": MIN_EPOCHS,
        "near": MAX_PHASE,
        "files": [asdict(target) for target in targets],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return targets


def read_frozen(path: Path) -> list[Target]:
    """Files of a list that `freeze` wrote.

    Raises:
        InputError: If it is no such list, or was frozen under other rules than this code's.
    """
    try:
        record = json.loads(path.read_text())
        targets = [Target(**entry) for entry in record["files"]]
        rules = tuple(record["spans"]), record["fewest_epochs"], record["near"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no frozen list ({error}); --freeze writes one") from None
    if rules != (SPANS, MIN_EPOCHS, MAX_PHASE):
        raise InputError(f"{path}: frozen under other rules, {rules}; --freeze writes it anew")
    return targets


def events_of(targets: Iterable[Target]) -> list[CataloguedEvent]:
    """Events in the order of their first file; one for each label where files differ in it."""
    groups: dict[tuple, list[Target]] = defaultdict(list)
    for target in targets:
        groups[target.event, target.label, target.quality].append(target)
    found = []
    for key, files in groups.items():
        published = next((f for f in files if f.t0 is not None and f.tE is not None), files[0])
        found.append(CataloguedEvent(*key, published.t0, published.tE, tuple(files)))
    return found


def read_target(folder: Path, target: CataloguedEvent) -> Event:
    """All data sets of an event; InputError if a file is missing, not read or has changed."""
    curves = []
    for one in target.files:
        path = folder / one.file
        if _sha256(path) != one.sha256:
            raise InputError(f"{path} has changed since the list was frozen")
        curve = read_photometry(path)
        curves.append(replace(curve, name=curve.name.removeprefix(f"{target.name}_")))
    return Event(target.name, tuple(curves))


def _event_season(event: Event, times: NDArray, t0: float | None) -> tuple[float, float]:
    """First and last epoch of the season that holds `t0` [day], of all data sets' sorted `times`.

    Without a `t0` that was observed, of the brightest median-filtered epoch of the longest one.
    """
    if t0 is None or not times[0] <= t0 <= times[-1]:
        longest = max(event.datasets, key=len)
        t0 = longest.time[median_filter(longest.mag, 5, mode="nearest").argmin()]
    found = [(times[part.start], times[part.stop - 1]) for part in seasons(times)]
    return min(found, key=lambda ends: max(ends[0] - t0, t0 - ends[1]))


def select_span(event: Event, span: str, t0: float | None) -> Event:
    """The epochs to classify; data sets of a season with the median of those before as baseline.

    An event shorter than MAX_SINGLE_SEASON is its own season, and no baseline is known.
    """
    times = np.sort(np.concatenate([curve.time for curve in event.datasets]))
    if span == "whole" or times[-1] - times[0] <= MAX_SINGLE_SEASON:
        return event
    start, end = _event_season(event, times, t0)
    found = []
    for curve in event.datasets:
        inside = (curve.time >= start) & (curve.time <= end)
        columns = {name: getattr(curve, name)[inside] for name in ("time", "mag", "mag_err")}
        before = curve.mag[curve.time < start]
        base = float(np.median(before)) if before.size else None
        if inside.any():
            found.append(replace(curve, **columns, m_base=base))
    return Event(event.name, tuple(found))


def summarise(
    target: CataloguedEvent, span: str, found: Classification, thresholds: Mapping[str, float]
) -> Summary:
    """Summarise a classification against thresholds by name, from the first refit on."""
    known = target.t0 is not None and target.tE is not None
    alerted, phase, first = {}, {}, STEP - 1
    times, p = found.found.times[first:], found.p[first:]
    for name, threshold in thresholds.items():
        above = np.flatnonzero(p > threshold)
        alerted[name] = bool(above.size)
        after = known and above.size
        phase[name] = float((times[above[0]] - target.t0) / target.tE) if after else None
    return Summary(
        event=target.name,
        label=target.label,
        quality=target.quality,
        span=span,
        survey=target.survey,
        num_sets=len(found.event.datasets),
        num_epochs=len(found.p),
        factor=float(np.median([fit.error_factor for fit in found.fits])),
        final=float(p[-1]),
        highest=float(p.max()),
        called=max(found.answer["classes"], key=found.answer["classes"].get),
        alerted=alerted,
        phase=phase,
    )


def classify_all(
    folder: Path,
    events: Sequence[CataloguedEvent],
    network: Network,
    thresholds: Mapping[str, Mapping[str, float]],
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Summary], dict[str, int]]:
    """Classify every event in both time spans.

    Args:
        folder: Where the files are.
        events: As `events_of` makes them.
        network: The classifier.
        thresholds: By survey, thresholds of an alert by name, set beforehand.
        progress: Wraps the list, such as `tqdm`.

    Returns:
        All summaries, and how many events had too few epochs, by time span.

    Raises:
        InputError: If a file is missing, cannot be read or is not the one that was frozen.
    """
    found: list[Summary] = []
    skipped: dict[str, int] = defaultdict(int)
    for target in progress(events):
        event, whole = read_target(folder, target), None
        for span in SPANS:
            part = select_span(event, span, target.t0)
            if sum(map(len, part.datasets)) < MIN_EPOCHS:
                skipped[span] += 1
                continue
            result = whole if part is event and whole else classify_event(part, network)
            whole = result if part is event else whole
            found.append(summarise(target, span, result, thresholds[target.survey]))
    return found, dict(skipped)
