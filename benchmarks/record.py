"""What a benchmark leaves: its numbers beside their marks, by device and date."""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lensml.experiments.results import device_name, format_number, provenance
from lensml.paths import RESULTS, ROOT, atomic_path

__all__ = [
    "BENCHMARKS",
    "BENCHMARK_NAMES",
    "ON_DEMAND",
    "benchmark_table",
    "growth_exponent",
    "keep_benchmark",
    "latest_benchmark",
    "mark_met",
    "met_counts",
    "newest_benchmark",
]

BENCHMARKS = RESULTS / "benchmarks"  # one folder a device, one file a benchmark and date
BENCHMARK_NAMES = ("simulation", "pspl_fit", "training", "inference", "stream", "memory")
# Kept and quoted alike, but need data, programs or a GPU that do not come with the package.
TUNED = ("baseline_seeds", "distinct_seeds", "stellar_seeds")
ON_DEMAND = ("real_events", "rtmodel", "search", "seeds", *TUNED, "stream_device")
QUICK = ROOT / "_build" / "benchmarks"  # short runs are for the eye and are not kept
MARK = re.compile(r"(>=|<=|<|>) *([\d.,]+)|([\d.]+) *\+- *([\d.]+)")
Number = float | Mapping[str, float]


def mark_met(value: Number, mark: str) -> bool | None:
    """Whether `value` meets a mark such as `>= 50`, `< 2` or `1.00 +- 0.05`; None for no mark."""
    if not mark:
        return None
    if (found := MARK.match(mark)) is None:
        raise ValueError(f"`mark` is {mark!r}, but '>= 50', '< 2' or '1.00 +- 0.05' was expected")
    value = value["value"] if isinstance(value, Mapping) else value
    relation, limit, centre, width = found.groups()
    if centre:
        return abs(value - float(centre)) <= float(width)
    limit = float(limit.replace(",", ""))
    passed = {
        ">=": value >= limit,
        "<=": value <= limit,
        "<": value < limit,
        ">": value > limit,
    }
    return passed[relation]


def benchmark_table(numbers: Mapping[str, Number], marks: Mapping[str, str]) -> list[list[str]]:
    """Rows `[quantity, value, mark, met or missed]` of one benchmark, as text."""
    rows = []
    for name, value in numbers.items():
        met = mark_met(value, marks.get(name, ""))
        verdict = {None: "", True: "met", False: "missed"}[met]
        text = format_number(value)
        rows.append([name.replace("_", " "), text, marks.get(name, ""), verdict])
    return rows


def keep_benchmark(
    name: str,
    numbers: Mapping[str, Number],
    marks: Mapping[str, str] | None = None,
    *,
    seed: int,
    started: float,
    quick: bool = False,
    **more: Any,
) -> Path:
    """Print a benchmark's table and write it beside those of other devices and days.

    Args:
        name: Of the benchmark, as of its script.
        numbers: Quantity to a number, or to `{"value", "low", "high"}`.
        marks: Quantity to what it should reach, as `mark_met` reads it.
        seed: Of the events it was run on.
        started: `time.time()` at its beginning [s].
        quick: Whether this was a short run; it then goes to `_build`.
        **more: Further plain values to keep (settings, curves).

    Returns:
        The file written.

    Raises:
        ValueError: If a mark names no quantity.
    """
    marks = dict(marks or {})
    if unknown := marks.keys() - numbers.keys():
        raise ValueError(
            f"`marks` name {sorted(unknown)}, but only {sorted(numbers)} were measured"
        )
    rows = benchmark_table(numbers, marks)
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    record = {"name": name, "quick": quick, "numbers": dict(numbers), "marks": marks, **more}
    record["provenance"] = provenance(size="desk", seed=seed, started=started)
    folder = (QUICK if quick else BENCHMARKS) / device_folder()
    path = folder / f"{name}-{time.strftime('%Y-%m-%d', time.gmtime())}.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(path)
    return path


def device_folder() -> str:
    """Name of this machine's device as a folder: `cpu-amd-epyc`, `nvidia-h200`."""
    plain = re.sub(r"\(.*?\)", "", device_name().lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def latest_benchmark(name: str, root: Path = BENCHMARKS) -> dict[str, dict]:
    """The newest record of a benchmark on each device, by the device's folder."""
    found = {}
    dated = re.compile(re.escape(name) + r"-\d{4}-\d\d-\d\d\.json")
    for path in sorted(root.glob("*/*.json"), key=lambda p: p.name):
        if dated.fullmatch(path.name):
            found[path.parent.name] = json.loads(path.read_text())
    return found


def newest_benchmark(name: str, root: Path = BENCHMARKS) -> dict | None:
    """The newest record of a benchmark on any device; None if there is none."""
    records = latest_benchmark(name, root).values()
    return max(records, key=lambda record: record["provenance"]["date"], default=None)


def growth_exponent(sizes: ArrayLike, costs: ArrayLike) -> dict[str, float]:
    """Exponent k of cost ~ size^k, by least squares in logarithms over all measurements.

    Args:
        sizes: Sizes, shape (n,), positive; repeat a size for repeated measurements.
        costs: Seconds or bytes at each, shape (n,), positive.

    Returns:
        `value` with `low` and `high`, its 95 % interval under normal scatter (Student's t).

    Raises:
        ValueError: If there are fewer than three measurements or a single size.
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(costs, float))
    if len(x) < 3 or np.ptp(x) == 0:
        raise ValueError(
            f"`sizes` holds {len(x)} measurements of {len(set(x))} sizes; "
            "at least three, of two sizes, are needed to see a growth"
        )
    from scipy.stats import linregress, t

    fit = linregress(x, y)
    half = 0.0 if math.isnan(fit.stderr) else float(t.ppf(0.975, len(x) - 2) * fit.stderr)
    slope = float(fit.slope)
    return {"value": slope, "low": slope - half, "high": slope + half}


def met_counts(records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many marks were met, of how many, over several records."""
    verdicts = [
        mark_met(record["numbers"][name], mark)
        for record in records
        for name, mark in record["marks"].items()
    ]
    return sum(bool(v) for v in verdicts), len(verdicts)
