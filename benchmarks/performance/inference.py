"""How fast whole curves are classified, every epoch of every curve called.

    python -m benchmarks.performance.inference [--quick] [--rows 1000] [--model RUN]

The reference of the same run is what a classifier without memory must do: read the whole prefix
again for each call. It is measured at ten prefixes of each curve and scaled to all of them. The
live stream, one epoch at a time, has a script of its own. And how fast they are classified at the
end of the window alone, in turns with every epoch.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import save_record
from benchmarks.timing import batch_speed, resampled
from lensml.network import Network, load_network, predict_at_fractions, predict_proba
from lensml.simulation import LightCurves, Simulation, load, simulate

PREFIXES = 10
TARGETS = {"gain_over_reading_again": ">= 100"}


def reading_again(network: Network, curves: LightCurves) -> float:
    """Calls a second when the prefix is read from its start for each call."""
    calls = np.linspace(0, curves.X.shape[1], PREFIXES + 1)[1:].astype(int)
    started = time.perf_counter()
    for last in calls:
        prefix = curves.X.copy()
        prefix[:, last:] = np.nan
        predict_proba(network, LightCurves(**(vars(curves) | {"X": prefix})))
    return len(curves) * PREFIXES / (time.perf_counter() - started)


def at_the_end(network: Network, curves: LightCurves, turns: int = 8) -> dict:
    """Rows a second at the end of the window alone, and over those at every epoch."""
    seconds = []
    for turn in range(turns + 1):  # the first is not counted
        some, taken = curves.rows(slice(turn % 2, None, 2)), []
        for work in (predict_proba, predict_at_fractions):
            started = time.process_time()
            work(network, some)
            taken.append(time.process_time() - started)
        seconds.append(taken)
    every, end = np.array(seconds[1:]).T
    found = {"end_rows_per_s_of_a_core": len(curves) / 2 / float(np.median(end))}
    return found | {
        "end_over_every_epoch": resampled(lambda i: every[i].sum() / end[i].sum(), turns)
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    started = time.time()
    rows = args.rows or (100 if args.quick else 1000)
    network = load_network(args.model)[0]
    network = network.to("cuda") if torch.cuda.is_available() else network
    with tempfile.TemporaryDirectory() as scratch:
        curves = load(simulate(Path(scratch) / "set.npz", Simulation(num_pairs=rows // 2, seed=77)))
    numbers = {"rows": len(curves), "threads": torch.get_num_threads()}
    numbers |= batch_speed(network, curves)
    numbers["calls_per_s_reading_again"] = reading_again(network, curves.rows(slice(0, rows // 4)))
    again = numbers["calls_per_s_reading_again"]
    numbers["gain_over_reading_again"] = numbers["calls_per_s"] / again
    numbers |= at_the_end(network, curves.rows(slice(0, rows // 4)))
    numbers["parameters"] = network.num_parameters
    save_record("inference", numbers, TARGETS, seed=77, started=started, quick=args.quick)


if __name__ == "__main__":
    main()
