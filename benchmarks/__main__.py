"""Run the performance benchmarks one after the other, and print one table of their targets.

    python benchmarks [--full] [NAME ...]

Short runs by default, some minutes in all; with --full those whose numbers are kept under
data/results/benchmarks. Nothing else should run at the same time. Each can also be run by itself:
`python -m benchmarks.performance.NAME`, from the repository's root; the studies, which need data
or runs of their own, by `python -m benchmarks.studies.NAME`.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # `python benchmarks` puts only this folder there

from benchmarks.record import QUICK, device_folder  # noqa: E402
from lensml.experiments import (  # noqa: E402
    BENCHMARKS,
    PERFORMANCE,
    benchmark_rows,
    benchmarks_by_device,
)


def main() -> int:
    """Run what was asked for; 1 if a script failed. A missed target is shown, not a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *PERFORMANCE], metavar="NAME")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    failed, records = [], {}
    for name in args.names or PERFORMANCE:
        print(f"\n== {name}", flush=True)
        started = time.time()
        command = [sys.executable, "-m", f"benchmarks.performance.{name}"]
        command += [] if args.full else ["--quick"]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
        print(f"{time.time() - started:.0f} s")
        found = benchmarks_by_device(name, BENCHMARKS if args.full else QUICK)
        if device_folder() in found:
            records[name] = found[device_folder()]
    print("\n== targets")
    rows = [[name, *row] for name, record in records.items() for row in benchmark_rows(record)]
    rows = [row for row in rows if row[3]]
    for name, quantity, value, target, outcome in rows:
        print(f"{name:12} {quantity:40} {value:28} {target:24} {outcome}")
    met = sum(row[4] == "met" for row in rows)
    print(
        f"{met} of {len(rows)} targets met" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
