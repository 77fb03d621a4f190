"""All benchmarks one after the other, and one table of their marks.

    python benchmarks [--full] [NAME ...]

Short runs by default, some minutes in all; with --full those whose numbers are kept under
data/results/benchmarks. Nothing else should run beside them. Each can also be run by itself.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from lensml.experiments import (
    BENCHMARK_NAMES,
    BENCHMARKS,
    QUICK,
    benchmark_table,
    device_folder,
    latest_benchmark,
    met_counts,
)

HERE = Path(__file__).parent


def main() -> int:
    """Run what was asked for; 1 if a script failed. A missed mark is shown, not a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARK_NAMES], metavar="NAME")
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args()
    failed, records = [], {}
    for name in args.names or BENCHMARK_NAMES:
        print(f"\n== {name}", flush=True)
        started = time.time()
        command = [sys.executable, str(HERE / f"{name}.py"), *([] if args.full else ["--quick"])]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"{time.time() - started:.0f} s")
        found = latest_benchmark(name, BENCHMARKS if args.full else QUICK)
        if device_folder() in found:
            records[name] = found[device_folder()]
    print("\n== marks")
    for name, record in records.items():
        for quantity, value, mark, verdict in benchmark_table(record["numbers"], record["marks"]):
            if mark:
                print(f"{name:12} {quantity:40} {value:28} {mark:24} {verdict}")
    met, total = met_counts(list(records.values()))
    print(f"{met} of {total} marks met" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
