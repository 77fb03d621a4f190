"""How fast the live stream advances on one core, and what it remembers of an event.

    python -m benchmarks.performance.stream [--quick] [--model RUN]

The reference of the same run is what a classifier without memory does, as brokers do today: read
the whole prefix again for each new epoch. Events are of all ages, so that as many are refitted in
each call as in a survey. Rates and exponents count the time of one core, so that a busy machine
does not slow them; single updates are timed by the clock on the wall as well.
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

from benchmarks.record import save_record
from benchmarks.scaling import growth_exponent
from benchmarks.timing import CYCLE, aged_stream, fresh_epochs, stream_seconds_in_batches
from lensml.network import (
    DataSetEpochs,
    Network,
    load_network,
    predict_event,
    refit_counts,
)
from lensml.streaming import StreamingClassifier

TARGETS = {
    "updates_per_s_batch_1000": ">= 20000",
    "single_p99_ms": "< 2",
    "single_p99_core_ms": "< 2",
    "single_refit_p99_core_ms": "< 2",
    "exponent_of_time_in_events": "<= 1.05",
    "exponent_of_time_in_epochs": "<= 1.05",
    "million_events_gb": "<= 24",
}


def single_seconds(
    stream: StreamingClassifier, count: int, generator
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each update of one event after its first cycle: on the wall, and of the core."""
    seconds = []
    for k in range(CYCLE + count):
        epoch = [float(x[0]) for x in fresh_epochs(generator, 1, k)]
        core, started = time.process_time(), time.perf_counter()
        stream.update("event", *epoch)
        seconds.append((time.perf_counter() - started, time.process_time() - core))
    wall, core = np.array(seconds[CYCLE:]).T
    return wall, core


def of_refits(seconds: np.ndarray) -> np.ndarray:
    """Of the seconds of each update after the first cycle, those of updates that refit."""
    counts = refit_counts(CYCLE + len(seconds))
    return seconds[counts[counts > CYCLE] - CYCLE - 1]


def rereading_seconds(network: Network, length: int, generator) -> float:
    """Seconds of one call that reads the prefix again, in the mean over an event of `length`."""
    columns = np.array([fresh_epochs(generator, 1, k) for k in range(length)])[:, :3, 0].T
    ends = np.linspace(0, length, 11)[1:].astype(int)
    started = time.process_time()
    for last in ends:
        predict_event(network, [DataSetEpochs(*columns[:, :last], 18.0)])
    return (time.process_time() - started) / len(ends)


def pipe_rate(num_events: int, num_lines: int, generator, model: Path | None) -> float:
    """Lines a second through `lensml stream`, start not counted: JSON in, JSON out."""
    parts = []
    for k in range(num_lines // num_events):
        columns = (x.tolist() for x in fresh_epochs(generator, num_events, k))
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


def growth_in_epochs(network: Network, lengths: list[int], generator) -> dict[int, list[float]]:
    """Core-seconds of a whole event by its length, ten events together, three times each."""
    seconds = {length: [] for length in lengths}
    for _ in range(3):
        for length in lengths:
            stream, names = StreamingClassifier(network), [f"e{i}" for i in range(10)]
            started = time.process_time()
            for k in range(length):
                stream.update_many(names, *fresh_epochs(generator, 10, k))
            seconds[length].append(time.process_time() - started)
    return seconds


def growth_in_events(network: Network, numbers: list[int], calls: int, generator):
    """Core-seconds of `calls` epochs of every event by their number, 1000 a call, three times."""
    seconds = {number: [] for number in numbers}
    streams = [aged_stream(network, number, generator) for number in numbers]
    for turn in range(3):
        for stream, names in streams:
            spent = 0.0
            for k in range(calls):
                for first in range(0, len(names), 1000):
                    some = names[first : first + 1000]
                    columns = fresh_epochs(generator, len(some), CYCLE + calls * turn + k)
                    started = time.process_time()
                    stream.update_many(some, *columns)
                    spent += time.process_time() - started
            seconds[len(names)].append(spent)
    return seconds


def exponent(seconds: dict[int, list[float]]) -> dict[str, float]:
    """Exponent of growth over all measurements."""
    sizes = np.repeat(list(seconds), [len(s) for s in seconds.values()])
    return growth_exponent(sizes, np.concatenate(list(seconds.values())))


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
        seconds = stream_seconds_in_batches(network, size, calls[size], generator)
        numbers[f"updates_per_s_batch_{size}"] = size * len(seconds) / seconds.sum()
    stream = StreamingClassifier(network)
    wall, core = single_seconds(stream, 2048 if args.quick else 20_480, generator)
    numbers["single_median_ms"] = 1e3 * np.median(wall)
    numbers["single_p99_ms"] = 1e3 * np.quantile(wall, 0.99)
    numbers["single_max_ms"] = 1e3 * wall.max()
    numbers["single_median_core_ms"] = 1e3 * np.median(core)
    numbers["single_p99_core_ms"] = 1e3 * np.quantile(core, 0.99)
    numbers["single_refit_p99_core_ms"] = 1e3 * np.quantile(of_refits(core), 0.99)
    numbers["rereading_1200_epochs_core_ms"] = 1e3 * rereading_seconds(network, 1200, generator)
    numbers["gain_over_rereading"] = (
        numbers["updates_per_s_batch_1000"] * numbers["rereading_1200_epochs_core_ms"] / 1e3
    )
    numbers["pipe_lines_per_s"] = pipe_rate(
        1000, 30_000 if args.quick else 200_000, generator, args.model
    )
    counts, lengths = ([1000, 2000, 4000], [256, 512, 1024])
    if not args.quick:
        counts, lengths = [1000, 4000, 16_000], [512, 1024, 2048, 4096]
    seconds = {
        "events": growth_in_events(network, counts, 8, generator),
        "epochs": growth_in_epochs(network, lengths, generator),
    }
    for what, measured in seconds.items():
        numbers[f"exponent_of_time_in_{what}"] = exponent(measured)
    numbers["state_bytes_per_event"] = stream.bytes_per_event
    numbers["million_events_gb"] = stream.bytes_per_event / 1e3
    save_record(
        "stream", numbers, TARGETS, seed=11, started=started, quick=args.quick, seconds=seconds
    )


if __name__ == "__main__":
    main()
