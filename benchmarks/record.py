"""Write a benchmark's numbers beside their targets, by device and date."""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensml.experiments import BENCHMARKS, benchmark_rows, device_name, provenance
from lensml.paths import ROOT, atomic_path

__all__ = ["QUICK", "device_folder", "save_record"]

QUICK = ROOT / "_build" / "benchmarks"  # short runs are not committed
Number = float | Mapping[str, float]


def save_record(
    name: str,
    numbers: Mapping[str, Number],
    targets: Mapping[str, str] | None = None,
    *,
    seed: int,
    started: float,
    quick: bool = False,
    **more: Any,
) -> Path:
    """Print a benchmark's table and write its record beside those of other devices and days.

    Args:
        name: Of the record.
        numbers: Quantity to a number, or to `{"value", "low", "high"}`.
        targets: Quantity to what it should reach, as `experiments.target_met` reads it.
        seed: Of the events it was run on.
        started: `time.time()` at its beginning [s].
        quick: Whether this was a short run; its record then goes to `_build`.
        **more: Further plain values to keep (settings, curves).

    Returns:
        The file written.

    Raises:
        ValueError: If a target names no quantity.
    """
    targets = dict(targets or {})
    if unknown := targets.keys() - numbers.keys():
        raise ValueError(
            f"`targets` name {sorted(unknown)}, but only {sorted(numbers)} were measured"
        )
    record = {"name": name, "quick": quick, "numbers": dict(numbers), "marks": targets, **more}
    rows = benchmark_rows(record)
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
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
