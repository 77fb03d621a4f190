"""A frozen protocol for real light curves that others have classified: same files, same numbers.

A folder holds light curves and a `catalogue.csv`. `freeze` writes down which files there are, byte
by byte, and what is believed of each; `classify_all` calls every one of them as a survey would
have, and refuses a file that has changed since. The photometry itself belongs to the surveys.

A *view* is what the network is given: "whole", the curve from its first epoch with a baseline
estimated from the past, or "season", the event's own season with the baseline of those before.
An *arm* is what is believed of the errors: "quoted", or "rescaled" from the past (`rescale`).
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

from lensml.network import Network, classify
from lensml.paths import InputError, atomic_path
from lensml.photometry import Photometry, Rescaling, read_photometry, rescaled_errors, seasons

__all__ = [
    "ARMS",
    "VIEWS",
    "Call",
    "Case",
    "classify_all",
    "classify_case",
    "freeze",
    "read_frozen",
    "view_of",
]

COLUMNS = ("file", "event", "class", "t0", "tE", "label_quality")
VIEWS, ARMS = ("season", "whole"), ("quoted", "rescaled")
FEWEST_EPOCHS = 30
LONG = 400.0  # a longer curve has a season of its own [day]
NEAR = 3.0  # an alert further from the published peak recognises nothing [tE]


@dataclass(frozen=True)
class Case:
    """One file of the frozen list, and what others say about it."""

    file: str
    sha256: str
    event: str
    label: str  # PSPL, FSPL, binary, other
    quality: str  # A published, B catalogue, C by eye or by a fit, S simulation
    t0: float | None  # published peak [day]
    tE: float | None  # [day]


@dataclass(frozen=True)
class Call:
    """What the network said along one curve in one view, with one kind of errors."""

    file: str
    event: str
    label: str
    quality: str
    view: str
    arm: str
    num_epochs: int
    factor: float  # median of error used over error quoted
    final: float  # P(binary) at the last epoch
    highest: float  # the largest P(binary) at any epoch
    alerted: dict[str, bool]  # mark -> whether P ever passed it
    phase: dict[str, float | None]  # mark -> (first alert - t0) / tE; None if never or unknown

    def recognised(self, mark: str) -> bool:
        """Whether there was a first alert, and not long before or after the event."""
        phase = self.phase[mark]
        return self.alerted[mark] and (phase is None or abs(phase) <= NEAR)


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


def freeze(folder: Path, path: Path) -> list[Case]:
    """Write files, sums and labels of the folder to `path` (JSON), in its catalogue's order."""
    cases = [
        Case(
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
        "views": VIEWS,
        "arms": ARMS,
        "rescaling": asdict(Rescaling()),
        "fewest_epochs": FEWEST_EPOCHS,
        "near": NEAR,
        "files": [asdict(case) for case in cases],
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    return cases


def read_frozen(path: Path) -> tuple[list[Case], Rescaling]:
    """Files and settings of a list that `freeze` wrote.

    Raises:
        InputError: If it is no such list, or was frozen under other rules than this code's.
    """
    try:
        record = json.loads(path.read_text())
        cases = [Case(**entry) for entry in record["files"]]
        rescaling = Rescaling(**record["rescaling"])
        rules = tuple(record["views"]), record["fewest_epochs"], record["near"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no frozen list ({error}); --freeze writes one") from None
    if rules != (VIEWS, FEWEST_EPOCHS, NEAR):
        raise InputError(f"{path}: frozen under other rules, {rules}; --freeze writes it anew")
    return cases, rescaling


def event_season(photometry: Photometry, t0: float | None) -> slice:
    """The season that holds `t0` [day], else the one of the brightest epochs, one outlier safe."""
    time = photometry.time
    if t0 is None or not time[0] <= t0 <= time[-1]:
        t0 = time[median_filter(photometry.mag, 5, mode="nearest").argmin()]
    distance = [max(time[s.start] - t0, t0 - time[s.stop - 1]) for s in seasons(time)]
    return seasons(time)[int(np.argmin(distance))]


def view_of(photometry: Photometry, view: str, t0: float | None) -> tuple[slice, float | None]:
    """Which epochs to call, and the baseline known beforehand [mag].

    A curve shorter than LONG is its own season, and nothing is known of its baseline.
    """
    if view == "whole" or photometry.time[-1] - photometry.time[0] <= LONG:
        return slice(0, len(photometry)), None
    season = event_season(photometry, t0)
    before = photometry.mag[: season.start]
    return season, float(np.median(before)) if before.size else None


def classify_case(
    photometry: Photometry, case: Case, view: str, errors: NDArray, network: Network
) -> tuple[slice, NDArray]:
    """Which epochs were called, and P(binary) at each of them, from the past alone."""
    part, m_base = view_of(photometry, view, case.t0)
    columns = (x[part] for x in (photometry.time, photometry.mag, errors))
    if part.stop - part.start < FEWEST_EPOCHS:
        return part, np.empty(0)
    return part, np.asarray(classify(*columns, m_base, network), dtype=float)


def make_call(
    case: Case, view: str, arm: str, time: NDArray, p: NDArray, factor: float, marks: Mapping
) -> Call:
    """Summarise P(binary) `p` (n,) at `time` (n,) [day] against thresholds by name."""
    known = case.t0 is not None and case.tE is not None
    alerted, phase = {}, {}
    for mark, threshold in marks.items():
        above = np.flatnonzero(p > threshold)
        alerted[mark] = bool(above.size)
        after = known and above.size
        phase[mark] = float((time[above[0]] - case.t0) / case.tE) if after else None
    said = (len(p), factor, float(p[-1]), float(p.max()), alerted, phase)
    return Call(case.file, case.event, case.label, case.quality, view, arm, *said)


def classify_all(
    folder: Path,
    cases: Sequence[Case],
    network: Network,
    marks: Mapping[str, float],
    rescaling: Rescaling | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Call], dict[str, int]]:
    """Call every file of the list in both views and both arms.

    Args:
        folder: Where the files are.
        cases: As frozen.
        network: The classifier.
        marks: Thresholds of an alert by name, set beforehand.
        rescaling: Of the arm "rescaled".
        progress: Wraps the list, such as `tqdm`.

    Returns:
        All calls, and how many were left out for want of epochs, by view.

    Raises:
        InputError: If a file is missing, cannot be read or is not the one that was frozen.
    """
    calls: list[Call] = []
    skipped: dict[str, int] = defaultdict(int)
    for case in progress(cases):
        if _sha256(folder / case.file) != case.sha256:
            raise InputError(f"{folder / case.file} has changed since the list was frozen")
        photometry = read_photometry(folder / case.file)
        quoted = photometry.mag_err
        rescaled = rescaled_errors(photometry.time, photometry.mag, quoted, rescaling)
        for view in VIEWS:
            for arm, errors in zip(ARMS, (quoted, rescaled), strict=True):
                part, p = classify_case(photometry, case, view, errors, network)
                if not p.size:
                    skipped[view] += arm == ARMS[0]
                    continue
                factor = float(np.median((errors / quoted)[part]))
                calls.append(make_call(case, view, arm, photometry.time[part], p, factor, marks))
    return calls, dict(skipped)
