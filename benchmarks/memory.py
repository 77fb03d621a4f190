"""Peak memory of `lensml simulate` and `lensml train` against the number of events.

    python benchmarks/memory.py [--events 20000 100000] [--workers W] [--folder DIR] [--json OUT]
                                [--train_seconds S]

Each set goes to a folder of shards of the default size and is then trained on for one epoch.
Simulation must stay flat beyond one shard; training holds the resident set, 4 bytes an epoch and
curve, and one shard. Two events are one binary and its twin. The peaks are the kernel's VmHWM of
the process and of its children.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from lensml.paths import atomic_path, available_cores
from lensml.results import provenance
from lensml.speed import BENCHMARKS, peak_memory

SHARD = 10_000  # the default, events with their twins
EPOCHS = 1500
LENSML = [sys.executable, "-m", "lensml"]


def measure(events: int, workers: int, shard_size: int, folder: Path, seconds: float) -> dict:
    """Peaks of simulating `events` curves into `folder` and of one epoch of training on them."""
    data, run, pairs = folder / f"set{events}", folder / f"run{events}", str(events // 2)
    simulate = [*LENSML, "simulate", "--output", str(data), "--n_pspl", pairs, "--n_binary", pairs]
    simulate += ["--workers", str(workers), "--shard_size", str(shard_size)]
    row = {"events": events, "simulate": peak_memory(simulate)}
    train = [*LENSML, "train", "--data", str(data), "--output", str(run), "--epochs", "1"]
    row["train"] = peak_memory(train, seconds)
    row["resident_mb"] = round(4 * EPOCHS * events / 2**20, 1)
    row["shard_mb"] = round((data / "part-00000.npz").stat().st_size / 2**20, 1)
    shutil.rmtree(data)
    return row


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--shard_size", type=int, default=SHARD)
    parser.add_argument(
        "--train_seconds", type=float, default=float("inf"), help="then it is ended"
    )
    parser.add_argument("--folder", type=Path, help="where the sets are put for the time being")
    parser.add_argument("--json", type=Path, default=BENCHMARKS / "memory.json")
    args = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        rows = [
            measure(n, args.workers, args.shard_size, Path(scratch), args.train_seconds)
            for n in args.events
        ]
    print("events    simulate [MB]  its workers  train [MB]  resident set  one shard")
    for row in rows:
        peaks = row["simulate"]["main_mb"], row["simulate"]["largest_child_mb"]
        peaks += row["train"]["main_mb"], row["resident_mb"], row["shard_mb"]
        print(f"{row['events']:<9} " + "  ".join(f"{x:12.0f}" for x in peaks))
    record = {"shard_size": args.shard_size, "workers": args.workers, "rows": rows}
    record["train_seconds"] = args.train_seconds if args.train_seconds < float("inf") else None
    record["provenance"] = provenance(size="desk", seed=0, started=started)
    with atomic_path(args.json) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(args.json)


if __name__ == "__main__":
    main()
