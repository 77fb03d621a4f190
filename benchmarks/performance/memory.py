"""Peak memory of `lensml simulate` and `lensml train` against the number of events.

    python -m benchmarks.performance.memory [--quick] [--events 40000 120000] [--workers W]
        [--folder DIR] [--train_seconds S]

Each set goes to a folder of shards of the default size and is then trained on for one epoch.
Simulation must stay flat beyond one shard; training holds the resident set, 4 bytes an epoch and
curve, and one shard. Two events are one binary and its twin. The peaks are the kernel's VmHWM of
the process and of its children. The quick form takes smaller sets and shards, and no training.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import save_record
from benchmarks.scaling import peak_memory
from lensml.paths import available_cores

SHARD = 10_000  # the default, events with their twins
EPOCHS = 1500
LENSML = [sys.executable, "-m", "lensml"]
TARGETS = {"simulate_growth": "<= 1.05", "train_growth_beyond_its_set": "<= 1.05"}


def measure(events: int, workers: int, shard: int, folder: Path, seconds: float) -> dict:
    """Peaks of simulating `events` curves into `folder` and of one epoch of training on them."""
    data, run, pairs = folder / f"set{events}", folder / f"run{events}", str(events // 2)
    simulate = [*LENSML, "simulate", "--output", str(data), "--n_pspl", pairs, "--n_binary", pairs]
    simulate += ["--workers", str(workers), "--shard_size", str(shard)]
    peaks = peak_memory(simulate)
    row = {"simulate_mb": peaks["main_mb"], "simulate_worker_mb": peaks["largest_child_mb"]}
    row["shard_mb"] = round((data / "part-00000.npz").stat().st_size / 2**20, 1)
    if seconds > 0:
        train = [*LENSML, "train", "--data", str(data), "--output", str(run), "--epochs", "1"]
        row["train_mb"] = peak_memory(train, seconds)["main_mb"]
        row["resident_set_mb"] = round(4 * EPOCHS * events / 2**20, 1)
    shutil.rmtree(data)
    return row


def summarise(rows: dict[int, dict]) -> tuple[dict, dict]:
    """Numbers by quantity and events, growth from the smallest set to the largest, and targets."""
    numbers = {f"{name}_{n}": row[name] for n, row in rows.items() for name in row}
    first, last = rows[min(rows)], rows[max(rows)]
    numbers["simulate_growth"] = last["simulate_mb"] / first["simulate_mb"]
    if "train_mb" in first:
        rest = [row["train_mb"] - row["resident_set_mb"] for row in (first, last)]
        numbers["train_growth_beyond_its_set"] = rest[1] / rest[0]
    return numbers, {name: target for name, target in TARGETS.items() if name in numbers}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--events", type=int, nargs="+")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--shard_size", type=int)
    parser.add_argument("--train_seconds", type=float, default=75.0, help="then it is ended")
    parser.add_argument("--folder", type=Path, help="where the sets are put for the time being")
    args = parser.parse_args()
    started = time.time()
    events = args.events or ([1000, 4000] if args.quick else [40_000, 120_000])
    shard = args.shard_size or (500 if args.quick else SHARD)
    seconds = 0.0 if args.quick else args.train_seconds
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        rows = {n: measure(n, args.workers, shard, Path(scratch), seconds) for n in events}
    settings = {"shard_size": shard, "workers": args.workers, "train_seconds": seconds}
    save_record(
        "memory", *summarise(rows), seed=0, started=started, quick=args.quick, settings=settings
    )


if __name__ == "__main__":
    main()
