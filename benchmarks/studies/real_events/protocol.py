"""A frozen protocol for real light curves that others have classified: same files, same numbers.

A folder holds light curves and a `catalogue.csv`. `freeze` lists its files with their checksums and
labels; `classify_all` classifies each of them, and refuses a file that has changed since. The
photometry itself belongs to the surveys.

The *time span* is what the network is given: "whole", the curve from its first epoch with a
baseline estimated from the past, or "season", the event's own season with the baseline of those
before. The *error model* is "quoted", the errors as published, or "rescaled" from the past
(`rescale`).
"""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from benchmarks.studies.real_events.rescale import Rescaling, rescaled_errors
from lensml.network import Network, classify
from lensml.paths import InputError, atomic_path
from lensml.photometry import Photometry, read_photometry, seasons

__all__ = [
    "ERROR_MODELS",
    "MIN_EPOCHS",
    "SPANS",
    "Classification",
    "Target",
    "classify_all",
    "classify_target",
    "freeze",
    "read_frozen",
    "select_span",
]

COLUMNS = ("file", "event", "class", "t0", "tE", "label_quality")
SPANS, ERROR_MODELS = ("season", "whole"), ("quoted", "rescaled")
MIN_EPOCHS = 30
MAX_SINGLE_SEASON = 400.0  # a longer curve is cut into seasons [day]
MAX_PHASE = 3.0  # an alert further from the published peak does not count as a detection [tE]


@dataclass(frozen=True)
class Target:
    """One file of the frozen list, and its published classification."""

    file: str
    sha256: str
    event: str
    label: str  # PSPL, FSPL, binary, other
    quality: str  # A published, B catalogue, C by eye or by a fit, S simulation
    t0: float | None  # published peak [day]
    tE: float | None  # [day]


@dataclass(frozen=True)
class Classification:
    """P(binary) along one curve, summarised, for one time span and one error model."""

    file: str
    event: str
    label: str
    quality: str
    span: str
    errors: str
    num_epochs: int
    factor: float  # median of error used over error quoted
    final: float  # P(binary) at the last epoch
    highest: float  # the largest P(binary) at any epoch
    alerted: dict[str, bool]  # threshold's name -> whether P ever exceeded it
    phase: dict[str, float | None]  # the same -> (first alert - t0) / tE; None if never or unknown

    def detected(self, threshold: str) -> bool:
        """Whether there was a first alert, and not long before or after the event."""
        phase = self.phase[threshold]
        return self.alerted[threshold] and (phase is None or abs(phase) <= MAX_PHASE)


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
    """Write files, checksums and labels to `path` (JSON), in the order of the catalogue."""
    targets = [
        Target(
            row["file"],
            _sha256(folder / row["file"]),
            row["event"],
            row["class"],
            row["label_quality"],
            *(float(row[k]) if row[k].strip() else None for k in ("t0", "tE")),
        )
        for row in read_catalogue(folder)
    ]
    record = {
        "views": SPANS,
        "arms": ERROR_MODELS,
        "rescaling": asdict(Rescaling()),
        "fewest_epochs": MIN_EPOCHS,
        "near": MAX_PHASE,
        "files": [asdict(target) for target in targets],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return targets


def read_frozen(path: Path) -> tuple[list[Target], Rescaling]:
    """Files and settings of a list that `freeze` wrote.

    Raises:
        InputError: If it is no such list, or was frozen under other rules than this code's.
    """
    try:
        record = json.loads(path.read_text())
        targets = [Target(**entry) for entry in record["files"]]
        rescaling = Rescaling(**record["rescaling"])
        rules = tuple(record["views"]), record["fewest_epochs"], record["near"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no frozen list ({error}); --freeze writes one") from None
    if rules != (SPANS, MIN_EPOCHS, MAX_PHASE):
        raise InputError(f"{path}: frozen under other rules, {rules}; --freeze writes it anew")
    return targets, rescaling


def event_season(photometry: Photometry, t0: float | None) -> slice:
    """The season that holds `t0` [day], else the one of the brightest median-filtered epoch."""
    time = photometry.time
    if t0 is None or not time[0] <= t0 <= time[-1]:
        t0 = time[median_filter(photometry.mag, 5, mode="nearest").argmin()]
    distance = [max(time[s.start] - t0, t0 - time[s.stop - 1]) for s in seasons(time)]
    return seasons(time)[int(np.argmin(distance))]


def select_span(photometry: Photometry, span: str, t0: float | None) -> tuple[slice, float | None]:
    """Which epochs to classify, and the baseline known beforehand [mag].

    A curve shorter than MAX_SINGLE_SEASON is its own season, and its baseline is not known.
    """
    if span == "whole" or photometry.time[-1] - photometry.time[0] <= MAX_SINGLE_SEASON:
        return slice(0, len(photometry)), None
    season = event_season(photometry, t0)
    before = photometry.mag[: season.start]
    return season, float(np.median(before)) if before.size else None


def classify_target(
    photometry: Photometry, target: Target, span: str, errors: NDArray, network: Network
) -> tuple[slice, NDArray]:
    """Epochs of the time span, and P(binary) at each of them, from the past alone."""
    part, m_base = select_span(photometry, span, target.t0)
    columns = (x[part] for x in (photometry.time, photometry.mag, errors))
    if part.stop - part.start < MIN_EPOCHS:
        return part, np.empty(0)
    return part, np.asarray(classify(*columns, m_base, network), dtype=float)


def summarise(
    target: Target,
    span: str,
    errors: str,
    time: NDArray,
    p: NDArray,
    factor: float,
    thresholds: Mapping[str, float],
) -> Classification:
    """Summarise P(binary) `p` (n,) at `time` (n,) [day] against thresholds by name."""
    known = target.t0 is not None and target.tE is not None
    alerted, phase = {}, {}
    for name, threshold in thresholds.items():
        above = np.flatnonzero(p > threshold)
        alerted[name] = bool(above.size)
        after = known and above.size
        phase[name] = float((time[above[0]] - target.t0) / target.tE) if after else None
    return Classification(
        file=target.file,
        event=target.event,
        label=target.label,
        quality=target.quality,
        span=span,
        errors=errors,
        num_epochs=len(p),
        factor=factor,
        final=float(p[-1]),
        highest=float(p.max()),
        alerted=alerted,
        phase=phase,
    )


def classify_all(
    folder: Path,
    targets: Sequence[Target],
    network: Network,
    thresholds: Mapping[str, float],
    rescaling: Rescaling | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Classification], dict[str, int]]:
    """Classify every file of the list in both time spans under both error models.

    Args:
        folder: Where the files are.
        targets: As frozen.
        network: The classifier.
        thresholds: Thresholds of an alert by name, set beforehand.
        rescaling: Of the error model "rescaled".
        progress: Wraps the list, such as `tqdm`.

    Returns:
        All classifications, and how many files had too few epochs, by time span.

    Raises:
        InputError: If a file is missing, cannot be read or is not the one that was frozen.
    """
    found: list[Classification] = []
    skipped: dict[str, int] = defaultdict(int)
    for target in progress(targets):
        if _sha256(folder / target.file) != target.sha256:
            raise InputError(f"{folder / target.file} has changed since the list was frozen")
        photometry = read_photometry(folder / target.file)
        quoted = photometry.mag_err
        rescaled = rescaled_errors(photometry.time, photometry.mag, quoted, rescaling)
        for span in SPANS:
            for model, errors in zip(ERROR_MODELS, (quoted, rescaled), strict=True):
                part, p = classify_target(photometry, target, span, errors, network)
                if not p.size:
                    skipped[span] += model == ERROR_MODELS[0]
                    continue
                factor = float(np.median((errors / quoted)[part]))
                time = photometry.time[part]
                found.append(summarise(target, span, model, time, p, factor, thresholds))
    return found, dict(skipped)
