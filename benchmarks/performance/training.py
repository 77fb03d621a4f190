"""Training on sets against a loss at every epoch of every curve, and where its time goes.

    python -m benchmarks.performance.training [--quick] [--turns N] [--pairs P] [--seed 0]

`lensml train` cuts a few samples from each observed curve and makes only the maps that they need.
The reference, which takes turns with it in the same run, is what a time-distributed network does
as it is written: all maps of a curve, the network at all its epochs, a loss at each. Both observe
the same noise-free curves afresh, use every core, and step once for as many curves. Then, for ours
alone: what a core makes in samples, what the network takes in steps, float32 beside bfloat16, and
the operations of a sample against the rate of this device. Runs unchanged on a GPU.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import save_record
from benchmarks.timing import resampled
from lensml.network import (
    DataSetEpochs,
    JointInputs,
    Network,
    bf16_supported,
    event_inputs,
    find_device,
    joint_epochs,
)
from lensml.paths import available_cores, tune_allocator
from lensml.simulation import Simulation, Survey, draw_numpy, observe, simulate
from lensml.training import (
    Learner,
    Trainer,
    TrainingConfig,
    TrainingData,
    load_training_data,
    logits_of,
    pair_samples,
    tensors_of,
)

PAIRS_AT_ONCE = 16


def synchronize() -> None:
    """Wait for the device, where there is one to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable, repeats: int = 1) -> float:
    """Wall time of `work`, per repeat [s]."""
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - started) / repeats


def start_worker() -> None:
    torch.set_num_threads(1)
    tune_allocator()


def whole_inputs(clean: NDArray, time_: NDArray, survey: Survey, seed: int) -> list[JointInputs]:
    """All inputs of both rows of a pair, observed afresh."""
    draws = draw_numpy([np.random.default_rng(seed)], len(time_))
    columns = observe(torch.from_numpy(clean), draws, survey, torch.from_numpy(time_))
    found = []
    for delta, sigma, seen in zip(*(x.numpy() for x in columns), strict=True):
        values = time_[seen], delta[seen].astype(float), sigma[seen].astype(float)
        found.append(event_inputs(joint_epochs([DataSetEpochs(*values, 0.0, True)]), False))
    return found


def at_every_epoch(learner: Learner, pool: Pool, data: TrainingData, seeds: list[int]) -> None:
    """One step of the reference on all pairs of `data`."""
    network, device = learner.network, learner.device
    clean = data.pairs.values
    tasks = [(clean[k % len(clean)], data.time, data.survey, seed) for k, seed in enumerate(seeds)]
    for pair in pool.starmap(whole_inputs, tasks, 4):
        for label, inputs in enumerate(pair):
            maps, summaries, states = (torch.from_numpy(x).to(device) for x in inputs[1:4])
            temporal = network.at_every_epoch(torch.from_numpy(inputs.epochs).to(device))
            begun = torch.from_numpy(inputs.active >= 0).to(device)
            active = torch.from_numpy(inputs.active).to(device)[begun]
            counts = torch.from_numpy(inputs.counts).to(device)
            held = torch.arange(1, len(begun) + 1, device=device)[begun] - counts[active]
            embedding = network.embed_refits(maps, summaries, states)
            logits = network.join(temporal[begun], embedding[active], held)
            p = network.binary_of_two(logits).clamp(1e-6, 1 - 1e-6)
            loss = F.binary_cross_entropy(p, torch.full_like(p, float(label)))
            (loss / (2 * len(seeds))).backward()
    learner.update()


def by_samples(trainer: Trainer, pool: Pool, seeds: list[int]) -> None:
    """One step of ours on as many pairs."""
    data, per_curve = trainer.data, trainer.config.per_curve
    places = np.arange(len(seeds)) % len(data.pairs.second)
    tasks = [
        (data.pairs.some(places[k : k + PAIRS_AT_ONCE]), data.time, data.survey,
         seeds[k : k + PAIRS_AT_ONCE], per_curve)
        for k in range(0, len(seeds), PAIRS_AT_ONCE)
    ]  # fmt: skip
    total = 2 * per_curve * len(seeds)
    for samples in pool.starmap(pair_samples, tasks, 1):
        trainer.learner.gradients(tensors_of(samples, trainer.device), total)
    trainer.learner.update()


def by_part(trainer: Trainer, repeats: int) -> dict[str, float]:
    """Samples a second of one core, of the network, and operations of a sample."""
    data, device = trainer.data, trainer.device
    some, per_curve = data.pairs.some(slice(PAIRS_AT_ONCE)), trainer.config.per_curve
    seeds = list(range(len(some.second)))
    count = 2 * per_curve * len(seeds)

    def make():
        return pair_samples(some, data.time, data.survey, seeds, per_curve)

    make()
    found = {"samples_per_s_of_a_core": count / seconds_of(make, repeats)}
    rows = tensors_of(make(), device)
    rates = {}
    for name, half in (("float32", False), ("bfloat16", True)):
        learner = Learner(trainer.network, 1e-9, 0.0, mixed_precision=half)

        def step(learner=learner):
            learner.gradients(rows, count)
            learner.update()

        step()
        rates[name] = count / seconds_of(step, 4 * repeats)
        found[f"{name}_samples_per_s"] = rates[name]
    found["bfloat16_over_float32"] = rates["bfloat16"] / rates["float32"]
    with FlopCounterMode(display=False) as counter:
        logits_of(trainer.network, rows, False).sum().backward()
    trainer.learner.optimizer.zero_grad()
    found["megaoperations_a_sample"] = counter.get_total_flops() / count / 1e6
    best = "bfloat16" if bf16_supported(device) else "float32"
    square = torch.randn(1024, 1024, device=device, dtype=getattr(torch, best))
    seconds = seconds_of(lambda: square @ square, 20)
    found["gigaoperations_per_s_of_products"] = 2 * 1024**3 / seconds / 1e9
    reached = rates[best] * found["megaoperations_a_sample"] / 1e3
    found["fraction_of_products"] = reached / found["gigaoperations_per_s_of_products"]
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--turns", type=int)
    parser.add_argument("--pairs", type=int, help="of a step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started, turns = time.time(), args.turns or (2 if args.quick else 8)
    pairs = args.pairs or (16 if args.quick else 128)
    torch.set_flush_denormal(True)
    tune_allocator()
    workers, device = available_cores(), find_device()
    torch.set_num_threads(1)  # the workers have the others
    with (
        tempfile.TemporaryDirectory() as scratch,
        get_context("spawn").Pool(workers, start_worker) as pool,
    ):
        path = Path(scratch) / "set.npz"
        simulate(path, Simulation(num_pairs=min(pairs, 256), seed=args.seed), progress=False)
        data = load_training_data([path], 0.0)
        trainer = Trainer(TrainingConfig(), data, Path(), device)
        other = Learner(Network().to(device), 1e-3, 0.0, mixed_precision=False)
        seconds = []
        for turn in range(turns + 1):  # the first is not counted
            seeds = [args.seed + turn * pairs + k for k in range(pairs)]
            ours = seconds_of(lambda seeds=seeds: by_samples(trainer, pool, seeds))
            theirs = seconds_of(lambda seeds=seeds: at_every_epoch(other, pool, data, seeds))
            seconds.append((ours, theirs))
        ours, theirs = np.array(seconds[1:]).T
    numbers: dict = {"curves_of_a_step": 2 * pairs, "workers": workers}
    numbers["curves_per_s"] = 2 * pairs * turns / ours.sum()
    numbers["every_epoch_curves_per_s"] = 2 * pairs * turns / theirs.sum()
    numbers["over_every_epoch"] = resampled(lambda i: theirs[i].sum() / ours[i].sum(), turns)
    numbers["hours_per_million_x_50"] = 50e6 / numbers["curves_per_s"] / 3600
    numbers |= by_part(trainer, 1 if args.quick else 5)
    targets = {"over_every_epoch": ">= 3"}
    save_record("training", numbers, targets, seed=args.seed, started=started, quick=args.quick)


if __name__ == "__main__":
    main()
