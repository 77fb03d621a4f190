"""Ablation of the network: small trainings on the same samples, one change at a time.

    python -m benchmarks.studies.ablation [--only NAME ...] [--workers W] [--quick]

Every variant begins from random weights and takes the same samples in the same order: simulated
blocks as the shipped network is trained on (`lensml.training.make_samples`), seen twice. Trainings
are short, some hundred steps, so a number here compares parts and is no result. A part is taken
away by zeros in its place, in training and in test. The network as built is trained from three
seeds, whose scatter says how much a difference is worth.

Kept are the loss of five classes on blocks of another seed, and for pairs of the baseline set at
two errors the area under the ROC curve at the last epoch, with its gain over the network as built
(paired over the test pairs).
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.record import save_record
from lensml import evaluation
from lensml.network import Network, NetworkConfig
from lensml.paths import tune_allocator
from lensml.simulation import Simulation, Survey, load, simulate
from lensml.training import (
    CLASS_FRACTIONS,
    Learner,
    Samples,
    load_training_data,
    logits_of,
    make_samples,
    pair_samples,
    two_class_probability,
)

SEED = 8642
BATCH, PASSES, PER_CURVE = 256, 2, 4
ERRORS = {"100_mmag": 0.1, "10_mmag": 0.01}


class Variant(NamedTuple):
    """One change: zeros in place of inputs, the labels, the shape, or the seed."""

    without: tuple[str, ...] = ()  # fields of `Samples`
    without_free: bool = False  # the model with free f_s
    labels: str = "soft"
    shape: dict = {}
    seed: int = 0


VARIANTS = {
    "as_built": Variant(),
    "as_built_seed_1": Variant(seed=1),
    "as_built_seed_2": Variant(seed=2),
    "no_maps": Variant(without=("maps",)),
    "no_epochs": Variant(without=("windows",)),
    "no_summaries": Variant(without=("summaries", "states")),
    "maps_alone": Variant(without=("windows", "summaries", "states")),
    "no_free_blend": Variant(without_free=True),
    "hard_labels": Variant(labels="hard"),
    "half_as_wide": Variant(
        shape={"channels": 24, "embedding_channels": 32, "head_channels": (64, 32)}
    ),
}


def seen_by(variant: Variant, rows: Samples) -> Samples:
    """Samples with zeros where a variant sees nothing."""
    changed = {name: torch.zeros_like(getattr(rows, name)) for name in variant.without}
    if variant.without_free:
        for name, place in (("windows", (..., slice(5, 10))), ("maps", (slice(None), slice(5, 10))),
                            ("summaries", (slice(None), slice(8, 16)))):  # fmt: skip
            changed[name] = getattr(rows, name).clone()
            changed[name][place] = 0
    return rows._replace(**changed)


def kept(folder: Path) -> Samples:
    """Samples that lie in a folder, mapped into memory."""
    return Samples(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Samples._fields))


def keep(folder: Path, found: list[Samples]) -> None:
    """Put samples into a folder."""
    folder.mkdir()
    for name, column in zip(Samples._fields, zip(*found, strict=True), strict=True):
        np.save(folder / f"{name}.npy", np.concatenate(column))


def take(samples: Samples, rows: np.ndarray | slice) -> Samples:
    """Some of the samples as tensors."""
    return Samples(*(torch.from_numpy(np.array(x[rows])) for x in samples))


def trained(variant: Variant, samples: Samples) -> tuple[Network, float]:
    """A network after its passes, and seconds a step."""
    torch.manual_seed(SEED + variant.seed)
    network = Network(NetworkConfig(class_fractions=CLASS_FRACTIONS, **variant.shape))
    learner = Learner(network, 2e-3, 0.01, labels=variant.labels)
    total = len(samples.held)
    steps, started = PASSES * (total // BATCH), time.time()
    order = np.concatenate(
        [np.random.default_rng([SEED, k]).permutation(total)[: total // BATCH * BATCH]
         for k in range(PASSES)]
    )  # fmt: skip
    for step, chosen in enumerate(order.reshape(-1, BATCH)):
        rate = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = seen_by(variant, take(samples, np.sort(chosen)))
        learner.step(lambda _, rows=rows: rows, torch.empty(0), 2e-3 * (0.01 + 0.99 * rate))
    return network.eval(), (time.time() - started) / steps


@torch.no_grad()
def loss_of(network: Network, variant: Variant, samples: Samples) -> float:
    """Cross entropy of five classes with the true class."""
    losses = []
    for first in range(0, len(samples.held), 4096):
        rows = seen_by(variant, take(samples, slice(first, first + 4096)))
        losses.append(F.cross_entropy(logits_of(network, rows, False), rows.labels.long(),
                                      reduction="sum"))  # fmt: skip
    return float(sum(losses)) / len(samples.held)


def study(folder: Path, name: str) -> tuple[str, dict, dict]:
    """Numbers of a variant, and its probabilities on the test pairs by error."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    variant = VARIANTS[name]
    network, seconds = trained(variant, kept(folder / "training"))
    numbers = {"parameters": network.num_parameters, "seconds_a_step": seconds}
    numbers["loss"] = loss_of(network, variant, kept(folder / "others"))
    found = {}
    for error in ERRORS:
        rows = seen_by(variant, take(kept(folder / error), slice(None)))
        found[error] = two_class_probability(network, rows).numpy()
    return name, numbers, found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    started = time.time()
    tune_allocator()
    blocks, others, pairs = (3, 1, 40) if args.quick else (40, 15, 1000)
    names = list(dict.fromkeys(["as_built", *args.only]))
    numbers: dict = {"test_pairs": pairs}
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch, context.Pool(args.workers) as pool:
        folder = Path(scratch)
        for what, num, seed in (("training", blocks, SEED), ("others", others, SEED + 1)):
            make: Callable = partial(make_samples, seed, per_curve=PER_CURVE, times=1)
            found = list(tqdm(pool.imap(make, range(num)), f"{what} samples", total=num))
            keep(folder / what, found)
        numbers["training_samples"] = len(kept(folder / "training").held)
        path = folder / "pairs.npz"
        simulate(path, Simulation(num_pairs=pairs, seed=SEED + 2), progress=False)
        curves, data = load(path), load_training_data([path], 0.0)
        # Their noise is drawn from one seed a pair; so are ratios of the ideal observer.
        for error, sigma in ERRORS.items():
            tasks = [
                (data.pairs.some(slice(k, k + 20)), data.time, Survey(sigma=sigma),
                 list(range(k, min(k + 20, pairs))), 1, 0.0, True)
                for k in range(0, pairs, 20)
            ]  # fmt: skip
            keep(folder / error, pool.starmap(pair_samples, tasks))
            target = kept(folder / error).targets[:, 1:3].sum(1)
            numbers[f"ideal_roc_auc_{error}"] = evaluation.roc_auc(curves.y, target)
        reference: dict = {}
        studied = pool.imap(partial(study, folder), names)
        for name, own, found in tqdm(studied, "variants", total=len(names)):
            numbers |= {f"{name}_{key}": value for key, value in own.items()}
            for error, p in found.items():
                numbers[f"{name}_roc_auc_{error}"] = evaluation.roc_auc(curves.y, p)
                reference.setdefault(error, p)
                if name != "as_built":
                    numbers[f"{name}_gain_in_roc_auc_{error}"] = evaluation.bootstrap(
                        lambda y, p, r: evaluation.roc_auc(y, p) - evaluation.roc_auc(y, r),
                        [curves.y, p, reference[error]],
                        curves.pair,
                        num=60 if args.quick else 400,
                        seed=SEED,
                    )
    save_record("ablation", numbers, seed=SEED, started=started, quick=args.quick)


if __name__ == "__main__":
    main()
