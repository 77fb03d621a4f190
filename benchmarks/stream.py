"""How fast the live stream advances on one core, and what it remembers of an event.

    python benchmarks/stream.py [--quick] [--model RUN]

The reference of the same run is what a classifier without memory does, as brokers do today: read
the whole prefix again for each new epoch. Events are of all ages, so that every level of the
pyramid is completed as often as in a survey. Rates and exponents count the time of one core, so
that a busy machine does not slow them; single updates are timed by the clock on the wall as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lensml.benchmark import growth_exponent, keep_benchmark
from lensml.checkpoint import load_network
from lensml.export import ExportedStep, export_step
from lensml.model import Network
from lensml.stream import Stream, classify_curve

MARKS = {
    "updates_per_s_batch_1000": ">= 20000",
    "single_p99_ms": "< 2",
    "single_p99_core_ms": "< 2",
    "single_all_levels_p99_core_ms": "< 2",
    "exponent_of_time_in_events": "1.00 +- 0.05",
    "exponent_of_time_in_epochs": "1.00 +- 0.05",
    "million_events_gb": "<= 24",
}
AGE = 256  # epochs after which all levels have been completed


def epochs(generator: np.random.Generator, num: int, k: int) -> list[np.ndarray]:
    """Epoch number k of `num` events: times, magnitudes, errors, baselines."""
    times = 2.46e6 + k + generator.uniform(0, 0.5, num)
    return [times, generator.normal(17.9, 0.1, num), np.full(num, 0.05), np.full(num, 18.0)]


def aged(network: Network, num: int, generator: np.random.Generator) -> tuple[Stream, list[str]]:
    """A stream of `num` events whose ages are spread over a whole cycle of the pyramid."""
    stream, names = Stream(network), [f"event-{i}" for i in range(num)]
    for k in range(AGE):
        young = names[: num - num * k // AGE]
        stream.update_many(young, *epochs(generator, len(young), k))
    return stream, names


def batch_seconds(network: Network, size: int, calls: int, generator) -> np.ndarray:
    """Seconds of each call that advances `size` events by one epoch."""
    stream, names = aged(network, size, generator)
    seconds = []
    for k in range(calls):
        columns = epochs(generator, size, AGE + k)
        started = time.process_time()
        stream.update_many(names, *columns)
        seconds.append(time.process_time() - started)
    return np.array(seconds)


def single_seconds(stream: Stream, count: int, generator) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each update of one event after its first cycle: on the wall, and of the core."""
    seconds = []
    for k in range(AGE + count):
        epoch = [float(x[0]) for x in epochs(generator, 1, k)]
        core, started = time.process_time(), time.perf_counter()
        stream.update("event", *epoch)
        seconds.append((time.perf_counter() - started, time.process_time() - core))
    wall, core = np.array(seconds[AGE:]).T
    return wall, core


def rereading_seconds(network: Network, length: int, generator) -> float:
    """Seconds of one call that reads the prefix again, in the mean over an event of `length`."""
    columns = np.array([epochs(generator, 1, k) for k in range(length)])[:, :3, 0].T
    ends = np.linspace(0, length, 11)[1:].astype(int)
    started = time.process_time()
    for last in ends:
        classify_curve(*columns[:, :last], 18.0, network)
    return (time.process_time() - started) / len(ends)


def pipe_rate(num_events: int, num_lines: int, generator, model: Path | None) -> float:
    """Lines a second through `lensml stream`, start not counted: JSON in, JSON out."""
    parts = []
    for k in range(num_lines // num_events):
        columns = (x.tolist() for x in epochs(generator, num_events, k))
        for i, values in enumerate(zip(*columns, strict=True)):
            epoch = dict(zip(("time", "mag", "mag_err", "m_base"), values, strict=True))
            parts.append(json.dumps({"event": f"event-{i}"} | epoch))
    command = [sys.executable, "-m", "lensml", "stream", *(["--model", model] if model else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(b'{"event": "first", "time": 0, "mag": 18, "mag_err": 0.1}\n')
    process.stdin.flush()
    process.stdout.readline()  # it has started
    with tempfile.TemporaryFile() as lines:
        lines.write(("\n".join(parts) + "\n").encode())
        lines.seek(0)
        started = time.perf_counter()
        feeder = subprocess.Popen(["cat"], stdin=lines, stdout=process.stdin)
        process.stdin.close()
        answered = sum(1 for _ in process.stdout)
        seconds = time.perf_counter() - started
    feeder.wait()
    assert process.wait() == 0 and answered == len(parts)
    return answered / seconds


def growth_in_epochs(network: Network, lengths: list[int], generator) -> dict[str, float]:
    """Exponent of the time of a whole event in its length, ten events together."""
    sizes, seconds = [], []
    for _ in range(3):
        for length in lengths:
            stream, names = Stream(network), [f"e{i}" for i in range(10)]
            started = time.process_time()
            for k in range(length):
                stream.update_many(names, *epochs(generator, 10, k))
            sizes.append(length)
            seconds.append(time.process_time() - started)
    return growth_exponent(sizes, seconds)


def growth_in_events(network: Network, numbers: list[int], calls: int, generator):
    """Exponent of the time of `calls` epochs of every event in their number, 1000 a call."""
    sizes, seconds = [], []
    streams = [aged(network, number, generator) for number in numbers]
    for turn in range(3):
        for stream, names in streams:
            spent = 0.0
            for k in range(calls):
                for first in range(0, len(names), 1000):
                    some = names[first : first + 1000]
                    columns = epochs(generator, len(some), AGE + calls * turn + k)
                    started = time.process_time()
                    stream.update_many(some, *columns)
                    spent += time.process_time() - started
            sizes.append(len(names))
            seconds.append(spent)
    return growth_exponent(sizes, seconds)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, generator = time.time(), np.random.default_rng(11)
    network = load_network(args.model)[0]
    numbers = {}
    calls = {1: 500, 10: 300, 100: 200, 1000: 64, 10_000: 0 if args.quick else 16}
    for size in (size for size, count in calls.items() if count):
        seconds = batch_seconds(network, size, calls[size], generator)
        numbers[f"updates_per_s_batch_{size}"] = size * len(seconds) / seconds.sum()
    stream = Stream(network)
    wall, core = single_seconds(stream, 2048 if args.quick else 20_480, generator)
    numbers["single_median_ms"] = 1e3 * np.median(wall)
    numbers["single_p99_ms"] = 1e3 * np.quantile(wall, 0.99)
    numbers["single_max_ms"] = 1e3 * wall.max()
    numbers["single_median_core_ms"] = 1e3 * np.median(core)
    numbers["single_p99_core_ms"] = 1e3 * np.quantile(core, 0.99)
    # The epoch number AGE, 2 AGE, ... completes all levels.
    numbers["single_all_levels_p99_core_ms"] = 1e3 * np.quantile(core[AGE - 1 :: AGE], 0.99)
    numbers["rereading_1200_epochs_core_ms"] = 1e3 * rereading_seconds(network, 1200, generator)
    numbers["gain_over_rereading"] = (
        numbers["updates_per_s_batch_1000"] * numbers["rereading_1200_epochs_core_ms"] / 1e3
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            exported = ExportedStep(network, export_step(network, Path(scratch)))
            _, core = single_seconds(Stream(network, step=exported), 2048, generator)
        numbers["onnxruntime_single_median_core_ms"] = 1e3 * np.median(core)
        numbers["onnxruntime_single_p99_core_ms"] = 1e3 * np.quantile(core, 0.99)
    except (ImportError, ValueError) as error:
        print(f"onnxruntime not measured: {error}")
    numbers["pipe_lines_per_s"] = pipe_rate(
        1000, 30_000 if args.quick else 200_000, generator, args.model
    )
    counts, lengths = ([1000, 2000, 4000], [256, 512, 1024])
    if not args.quick:
        counts, lengths = [1000, 4000, 16_000], [512, 1024, 2048, 4096]
    numbers["exponent_of_time_in_events"] = growth_in_events(network, counts, 8, generator)
    numbers["exponent_of_time_in_epochs"] = growth_in_epochs(network, lengths, generator)
    numbers["state_bytes_per_event"] = stream.bytes_per_event
    numbers["million_events_gb"] = stream.bytes_per_event / 1e3
    keep_benchmark("stream", numbers, MARKS, seed=11, started=started, quick=args.quick)


if __name__ == "__main__":
    main()
