"""Simulation beside the bare solver in the same run, on the same events.

    python benchmarks/simulation.py [--events 20000] [--preset baseline] [--workers W] [--json OUT]

Every block of events is first given to VBMicrolensing's curve function in a loop, one process per
core, and then to `lensml simulate`'s own workers: a busy machine slows both. Two events are one
binary and its twin. The marks: throughput without twins at least 0.85 of the solver's, twins at
most half of its cost, one million events within two core-hours.
"""

import argparse
import json
import time
from pathlib import Path

from lensml.paths import atomic_path
from lensml.results import format_number, provenance
from lensml.simulate import Simulation
from lensml.speed import BENCHMARKS, simulation_speed

MARKS = {"throughput": "at least 0.85", "twins": "at most 0.5", "core_hours_per_million": "2"}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--preset", default="baseline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", type=Path, default=BENCHMARKS / "simulation.json")
    args = parser.parse_args()
    started = time.time()
    sim = Simulation(preset=args.preset, num_pairs=args.events // 2, seed=args.seed)
    numbers = simulation_speed(sim, workers=args.workers, progress=True)
    for name, value in numbers.items():
        print(f"{name:24} {format_number(value):28} {MARKS.get(name, '')}")
    record = {"preset": args.preset, "numbers": numbers}
    record["provenance"] = provenance(size="desk", seed=args.seed, started=started)
    with atomic_path(args.json) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(args.json)


if __name__ == "__main__":
    main()
