"""Timings of chapter 10: simulation against its solver, inference by row and by epoch.

Reference and product run in turn, block by block, so that a busy machine slows both alike.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from lensml import simulation
from lensml.lensing import binary_magnification
from lensml.network import Network, predict_proba
from lensml.paths import available_cores
from lensml.seeds import event_generator
from lensml.simulation import BLOCK, LightCurves, Simulation, draw_binary, parameter_set, save
from lensml.streaming import StreamingClassifier

__all__ = [
    "CYCLE",
    "aged_stream",
    "batch_speed",
    "fresh_epochs",
    "pipeline_seconds",
    "resampled",
    "simulation_speed",
    "stream_rate",
    "stream_seconds",
    "stream_seconds_in_batches",
    "worker_map",
]

TURN = 64 * BLOCK  # events between two changes of turn: the idle ends of a turn stay small
MIN_TURNS = 6  # of each, where there are events enough
SHARD = 8 * BLOCK  # events a file, within a turn: one is written while the next is made
FULL_PAIRS = 500_000  # of a set of one million events
CYCLE = 256  # epochs over which ages are spread: an eighth of the events is refitted in each call
Task = tuple[Simulation, range]


def _reference(task: Task) -> tuple[float, float]:
    """Seconds of the bare solver, and of the twins, over the events of one task."""
    sim, indices = task
    times = sim.survey.times
    window, parameters = (times[0], times[-1]), parameter_set(sim.preset)
    generators = [event_generator(sim.seed, sim.preset, i) for i in indices]
    events = [draw_binary(parameters, g, window) for g in generators]
    started = time.perf_counter()
    curves = np.array([binary_magnification(e, times, every_epoch=True) for e in events])
    solved = time.perf_counter()
    for first in range(0, len(events), BLOCK):
        part = slice(first, first + BLOCK)
        ones = np.ones(len(events[part]))
        simulation.fit_twins(events[part], curves[part], ones, times, False)
    return solved - started, time.perf_counter() - solved


@contextmanager
def worker_map(workers: int) -> Iterator[Callable]:
    """`map` over `workers` processes, started before anything is measured."""
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield map
        torch.set_num_threads(threads)
        return
    with simulation.worker_pool(workers) as pool:
        warm = Simulation(num_pairs=1)
        pool.map(_reference, [(warm, range(1))] * 4 * workers, chunksize=1)
        yield pool.imap


def _tasks(sim: Simulation, first: int, stop: int) -> list[Task]:
    return [(sim, range(k, min(k + BLOCK, stop))) for k in range(first, stop, BLOCK)]


def pipeline_seconds(over: Callable, sim: Simulation, first: int = 0, stop: int = 0) -> float:
    """Wall time of `lensml simulate` on events `first` to `stop` (0 = all) [s].

    Args:
        over: From `worker_map`: starting processes and importing is no part of the time.
        sim: What to simulate; files go to a temporary folder.
        first, stop: Range of events.
    """
    stop = stop or sim.num_pairs
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        results = over(simulation.make_block, _tasks(sim, first, stop))
        for begin in range(first, stop, SHARD):
            events = range(begin, min(begin + SHARD, stop))
            chunks = [next(results) for _ in range(-(-len(events) // BLOCK))]
            save(Path(scratch) / f"{begin}.npz", simulation.shard_set(sim, events, chunks))
        return time.perf_counter() - started


def simulation_speed(
    sim: Simulation, *, workers: int | None = None, progress: bool = False
) -> dict[str, Any]:
    """Core-seconds of `lensml simulate` beside the bare solver on the same events.

    Args:
        sim: What to simulate; its pairs are made twice, and written to a temporary folder.
        workers: Processes; None = one per core.
        progress: Whether to show a bar.

    Returns:
        `throughput` of the pipeline without its twins over that of the bare solver (which solves
        every epoch) and `whole`, the same with twins; `twins` over the bare solver's cost (each
        `{"value", "low", "high"}`, 95 % over turns); milliseconds per binary of each part;
        `core_hours_per_million` events.
    """
    workers = workers or available_cores()
    blocks = []
    turn = max(SHARD, min(TURN, sim.num_pairs // MIN_TURNS // SHARD * SHARD))
    with worker_map(workers) as over:
        list(over(_reference, [(replace(sim, num_pairs=1), range(1))]))  # first calls are slow
        for first in tqdm(range(0, sim.num_pairs, turn), "blocks", disable=not progress):
            stop = min(first + turn, sim.num_pairs)
            bare, twins = np.sum(list(over(_reference, _tasks(sim, first, stop))), axis=0)
            # Wall time of all workers: idle ones, transfer and writing count as cost.
            whole = pipeline_seconds(over, sim, first, stop) * workers
            blocks.append((bare, twins, whole))
    bare, twins, whole = np.array(blocks).T
    per_pair = whole.sum() / sim.num_pairs
    return {
        "events": 2 * sim.num_pairs,
        "workers": workers,
        "throughput": resampled(lambda i: bare[i].sum() / (whole[i] - twins[i]).sum(), len(bare)),
        "whole": resampled(lambda i: bare[i].sum() / whole[i].sum(), len(bare)),
        "twins": resampled(lambda i: twins[i].sum() / bare[i].sum(), len(bare)),
        "solver_ms": 1e3 * bare.sum() / sim.num_pairs,
        "twin_ms": 1e3 * twins.sum() / sim.num_pairs,
        "pair_ms": 1e3 * per_pair,
        "core_hours_per_million": per_pair * FULL_PAIRS / 3600,
    }


def resampled(statistic: Callable[[NDArray], float], num: int) -> dict[str, float]:
    """A ratio over `num` blocks with its 95 % interval over resampled blocks."""
    generator = np.random.default_rng(0)
    draws = [statistic(generator.integers(0, num, num)) for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"value": float(statistic(np.arange(num))), "low": float(low), "high": float(high)}


def batch_speed(network: Network, curves: LightCurves, *, repeats: int = 3) -> dict[str, float]:
    """Rows and epochs a second when whole curves are classified at every epoch."""
    predict_proba(network, curves.rows(slice(0, 8)))  # first calls are slow
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        predict_proba(network, curves)
        seconds.append(time.perf_counter() - started)
    rate = len(curves) / float(np.median(seconds))
    calls = float(np.isfinite(curves.X).sum(1).mean())
    return {"rows_per_s": rate, "calls_per_s": rate * calls}


def stream_seconds(
    network: Network,
    time_: ArrayLike,
    mag: ArrayLike,
    mag_err: ArrayLike,
    m_base: float | None,
) -> tuple[NDArray, StreamingClassifier]:
    """Seconds of each update of one event, shape (n,), and the stream that holds its state."""
    stream, seconds = StreamingClassifier(network), []
    for epoch in zip(*(np.asarray(x).tolist() for x in (time_, mag, mag_err)), strict=True):
        started = time.perf_counter()
        stream.update("event", *epoch, m_base)
        seconds.append(time.perf_counter() - started)
    return np.array(seconds), stream


def fresh_epochs(generator: np.random.Generator, num: int, k: int) -> list[NDArray]:
    """Epoch number k of `num` events for a stream: times, magnitudes, errors, baselines."""
    times = 2.46e6 + k + generator.uniform(0, 0.5, num)
    return [times, generator.normal(17.9, 0.1, num), np.full(num, 0.05), np.full(num, 18.0)]


def aged_stream(
    network: Network, num: int, generator: np.random.Generator
) -> tuple[StreamingClassifier, list[str]]:
    """A stream of `num` events whose ages are spread over a whole cycle, and their names."""
    stream, names = StreamingClassifier(network), [f"event-{i}" for i in range(num)]
    for k in range(CYCLE):
        young = names[: num - num * k // CYCLE]
        stream.update_many(young, *fresh_epochs(generator, len(young), k))
    return stream, names


def stream_seconds_in_batches(
    network: Network, size: int, calls: int, generator: np.random.Generator
) -> NDArray:
    """Core-seconds of each of `calls` calls that advance `size` events by one epoch."""
    stream, names = aged_stream(network, size, generator)
    seconds = []
    for k in range(calls):
        columns = fresh_epochs(generator, size, CYCLE + k)
        started = time.process_time()
        stream.update_many(names, *columns)
        seconds.append(time.process_time() - started)
    return np.array(seconds)


def stream_rate(network: Network, size: int, *, calls: int = 64, seed: int = 0) -> float:
    """Updates a second of one core when each call holds `size` events of all ages."""
    generator = np.random.default_rng(seed)
    return size * calls / float(stream_seconds_in_batches(network, size, calls, generator).sum())
