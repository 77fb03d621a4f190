"""How fast the live stream advances on this machine's device, by the clock on the wall.

    python -m benchmarks.performance.stream_device [--quick]

Events are of all ages; names go in and probabilities come out as Python has them, so that what is
counted is what a broker would wait for. The reference of the same run is one core of this machine.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks.record import save_record
from benchmarks.timing import CYCLE, aged_stream, fresh_epochs
from lensml.network import Network, find_device, load_network, one_thread

TARGETS = {"updates_per_s_batch_100000": ">= 1000000"}


def rate(network: Network, size: int, calls: int, generator: np.random.Generator) -> float:
    """Updates a second in batches of `size` events, in the mean over `calls` calls."""
    stream, names = aged_stream(network, size, generator)
    seconds = 0.0
    for k in range(calls):
        columns = fresh_epochs(generator, size, CYCLE + k)
        started = time.perf_counter()
        stream.update_many(names, *columns)
        seconds += time.perf_counter() - started
    return size * calls / seconds


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    started, generator = time.time(), np.random.default_rng(11)
    with one_thread(), torch.inference_mode():
        numbers = {"core_updates_per_s": rate(load_network()[0], 1000, 48, generator)}
    network = load_network()[0].to(find_device())
    calls = {1000: 48} if args.quick else {1000: 96, 10_000: 48, 100_000: 32}
    for size, count in calls.items():
        numbers[f"updates_per_s_batch_{size}"] = rate(network, size, count, generator)
        print(f"{size} events a call: {numbers[f'updates_per_s_batch_{size}']:.0f} updates/s")
    best = max(numbers[f"updates_per_s_batch_{size}"] for size in calls)
    numbers["times_a_core"] = best / numbers["core_updates_per_s"]
    targets = {name: target for name, target in TARGETS.items() if name in numbers}
    save_record("stream_device", numbers, targets, quick=args.quick, seed=11, started=started)


if __name__ == "__main__":
    main()
