"""What the network says about real light curves that others have classified.

    python benchmarks/real_events.py FOLDER [--model RUN] [--threshold P ...] [--json OUT]

FOLDER holds light curves and a `catalogue.csv` with at least the columns file, class, t0, tE and
label_quality. Every curve is called twice: "whole", from its first epoch to its last with the
baseline estimated from the past, and "season", its event's season alone (that of the catalogue's
t0, else of the brightest epochs) with the baseline known from the seasons before. A curve shorter
than 400 d is its own season. Printed are, by class and quality of the label, how often P(binary)
ever passes each threshold, and every published binary one by one. No photometry is written.
"""

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from tqdm import tqdm

from lensml.checkpoint import load_network
from lensml.events import Photometry, read_photometry, seasons
from lensml.paths import InputError, atomic_path
from lensml.results import device_name, git
from lensml.stream import classify_curve

COLUMNS = ("file", "class", "t0", "tE", "label_quality")
THRESHOLDS = (0.5, 0.9, 0.99)
FEWEST_EPOCHS = 30
LONG = 400.0  # a longer curve has a season of its own [day]


@dataclass(frozen=True)
class Call:
    """What the network said along one curve."""

    file: str
    view: str  # "whole" or "season"
    label: str
    quality: str
    num_epochs: int
    final: float  # P(binary) at the last epoch
    highest: float  # the largest P(binary) at any epoch
    first_alert: dict[str, float | None]  # threshold -> (time - t0) / tE, None if never or unknown
    last_phase: float | None  # (last epoch - t0) / tE, None if unknown


def number(text: str) -> float:
    """A cell of the catalogue, NaN where it is blank."""
    return float(text) if text.strip() else np.nan


def read_catalogue(path: Path) -> list[dict[str, str]]:
    """Rows of the catalogue; InputError if it is not there or lacks a column."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the folder that holds it")
    with open(path, newline="") as catalogue:
        rows = list(csv.DictReader(catalogue))
    if not rows or (missing := [name for name in COLUMNS if name not in rows[0]]):
        raise InputError(f"{path} lacks {missing if rows else 'rows'}; expected {COLUMNS}")
    return rows


def event_season(photometry: Photometry, t0: float) -> slice:
    """The season that holds `t0` [day], else the one of the brightest epochs, one outlier safe."""
    if not photometry.time[0] <= t0 <= photometry.time[-1]:
        smooth = median_filter(photometry.mag, 5, mode="nearest")
        t0 = photometry.time[smooth.argmin()]
    distance = [
        max(photometry.time[s.start] - t0, t0 - photometry.time[s.stop - 1])
        for s in seasons(photometry.time)
    ]
    return seasons(photometry.time)[int(np.argmin(distance))]


def views(photometry: Photometry, t0: float) -> dict[str, tuple[slice, float | None]]:
    """Which epochs to call, and the baseline known beforehand [mag]."""
    whole = (slice(0, len(photometry)), None)
    if photometry.time[-1] - photometry.time[0] <= LONG:
        return {"whole": whole, "season": whole}
    season = event_season(photometry, t0)
    before = photometry.mag[: season.start]
    return {"whole": whole, "season": (season, float(np.median(before)) if before.size else None)}


def first_alert(p: NDArray, phase: NDArray, threshold: float) -> float | None:
    """Phase at which `p` first reaches `threshold`, None if it never does or has no phase."""
    above = np.flatnonzero(p >= threshold)
    return float(phase[above[0]]) if above.size and np.isfinite(phase[above[0]]) else None


def call(row: dict[str, str], view: str, photometry: Photometry, p: NDArray, marks) -> Call:
    """Summarise P(binary) `p` (n,) along one curve."""
    phase = (photometry.time - number(row["t0"])) / number(row["tE"])
    alerts = {f"{mark:g}": first_alert(p, phase, mark) for mark in marks}
    ending = float(phase[-1]) if np.isfinite(phase[-1]) else None
    sizes = len(p), float(p[-1]), float(p.max())
    label = row["class"], row["label_quality"]
    return Call(row["file"], view, *label, *sizes, alerts, ending)


def classify_folder(folder: Path, network, marks) -> tuple[list[Call], dict[str, int]]:
    """Call every curve of the catalogue in both views; also how many were left out, and why."""
    calls: list[Call] = []
    skipped: dict[str, int] = defaultdict(int)
    rows = read_catalogue(folder / "catalogue.csv")
    for row in tqdm(rows, unit="curve", disable=None):
        try:
            photometry = read_photometry(folder / row["file"])
        except InputError as error:
            tqdm.write(str(error), file=sys.stderr)
            skipped["unreadable"] += 1
            continue
        done: dict[tuple, NDArray] = {}
        for view, (part, m_base) in views(photometry, number(row["t0"])).items():
            time_, mag, err = (
                x[part] for x in (photometry.time, photometry.mag, photometry.mag_err)
            )
            if len(time_) < FEWEST_EPOCHS:
                skipped[f"{view}: fewer than {FEWEST_EPOCHS} usable epochs"] += 1
                continue
            key = (part.start, part.stop, m_base)
            if key not in done:
                p = classify_curve(time_, mag, err, m_base=m_base, network=network)
                done[key] = np.asarray(p, dtype=float)
            calls.append(call(row, view, Photometry("", time_, mag, err), done[key], marks))
    return calls, dict(skipped)


def table(calls: list[Call], marks) -> list[dict]:
    """One row for each view, class and quality of the label."""
    groups = defaultdict(list)
    for c in calls:
        groups[c.view, c.label, c.quality].append(c)
    return [
        {
            "view": view,
            "class": label,
            "label_quality": quality,
            "curves": len(group),
            "ever_above": {
                f"{m:g}": float(np.mean([c.highest >= m for c in group])) for m in marks
            },
            "median_final": float(np.median([c.final for c in group])),
        }
        for (view, label, quality), group in sorted(groups.items(), reverse=True)
    ]


def report(calls: list[Call], skipped: dict[str, int], marks) -> str:
    """Both tables as text."""
    heads = "".join(f"{'ever>=' + format(m, 'g'):>11}" for m in marks)
    lines = [f"{'view':8}{'class':8}{'quality':9}{'curves':>7}{heads}{'median final':>14}"]
    for r in table(calls, marks):
        shares = "".join(f"{share:11.3f}" for share in r["ever_above"].values())
        name = f"{r['view']:8}{r['class']:8}{r['label_quality']:9}{r['curves']:7d}"
        lines.append(f"{name}{shares}{r['median_final']:14.3f}")
    lines += [
        "",
        f"left out: {skipped or 'none'}",
        "",
        "Published binaries; alerts in (t - t0) / tE",
    ]
    heads = "".join(f"{'alert ' + format(m, 'g'):>12}" for m in marks)
    lines.append(f"{'file':44}{'view':8}{'epochs':>7}{'final':>7}{'max':>7}{heads}{'ends':>9}")
    for c in (c for c in calls if (c.label, c.quality) == ("binary", "A")):
        name = c.file.removesuffix(".gz").removesuffix(".csv")
        alerts = "".join(
            "         -  " if a is None else f"{a:12.2f}" for a in c.first_alert.values()
        )
        ending = "        -" if c.last_phase is None else f"{c.last_phase:9.2f}"
        numbers = f"{c.num_epochs:7d}{c.final:7.3f}{c.highest:7.3f}"
        lines.append(f"{name:44}{c.view:8}{numbers}{alerts}{ending}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="light curves and their catalogue.csv")
    parser.add_argument("--model", type=Path, help="run folder; the shipped weights by default")
    parser.add_argument("--threshold", type=float, nargs="+", default=THRESHOLDS, metavar="P")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the numbers here")
    arguments = parser.parse_args()
    started, marks = time.time(), sorted(arguments.threshold)
    try:
        network, _ = load_network(arguments.model)
        calls, skipped = classify_folder(arguments.folder, network, marks)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(calls, skipped, marks))
    if arguments.json:
        record = {
            "model": str(arguments.model or "shipped weights"),
            "commit": git("rev-parse", "HEAD"),
            "device": device_name(),
            "wall_time_s": round(time.time() - started, 1),
            "skipped": skipped,
            "table": table(calls, marks),
            "published_binaries": [
                asdict(c) for c in calls if (c.label, c.quality) == ("binary", "A")
            ],
        }
        with atomic_path(arguments.json) as temporary:
            temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
