"""Ablation of the network: small trainings on the same rows, one change at a time.

    python -m benchmarks.studies.ablation [--only NAME ...] [--quick]

Every variant begins from fresh weights of the same seed and sees the same curves in the same order;
refits are made once for all. Trainings are short, a few hundred steps, so a number here compares
parts and is no result. Kept are area and recall on fresh baseline pairs at two errors, the gain in
area over the network as it is built (paired over the test pairs, one training each), parameters
and the time of a step.
"""

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.record import save_record
from lensml import evaluation
from lensml.network import (
    PATCH_SIZE,
    Network,
    NetworkConfig,
    ResidualInputs,
    bf16_supported,
    causal_upsample,
    encode,
    observed_epochs,
    residual_inputs,
)
from lensml.paths import tune_allocator
from lensml.simulation import LightCurves, Simulation, Survey, load, reobserve, simulate

SEED = 8642
BATCH = 128
SPARSE = {"keep_every": (2, 2), "missing_fraction": 0.2}  # half the epochs, for time
ERRORS = {"100_mmag": 0.1, "10_mmag": 0.01}


class Rows(NamedTuple):
    """Curves ready for training, in halves of precision where they are large."""

    features: Tensor  # (n, L, F)
    refits: ResidualInputs
    valid: Tensor  # (n, L)
    labels: Tensor  # (n,)
    dchi2: Tensor  # (n,)

    def batch(self, rows: Tensor) -> tuple[Tensor, ResidualInputs, Tensor, Tensor, Tensor]:
        refits = ResidualInputs(*(x[rows] for x in self.refits))
        refits = ResidualInputs(*(x.float() for x in refits[:3]), refits.active_refit)
        return (self.features[rows].float(), refits, *(x[rows] for x in self[2:]))


def prepared(curves: LightCurves, length: int) -> Rows:
    """Features and refits of a set, all curves padded to `length` epochs."""
    parts = []
    for first in tqdm(range(0, len(curves), 256), "refit"):
        part = curves.rows(slice(first, first + 256))
        observed = observed_epochs(part.X, part.sigmas(), part.times(), part.m_base)
        short = length - observed.valid.shape[1]
        features = F.pad(encode(observed), (0, 0, 0, short))
        refits = residual_inputs(observed, blended=False)
        refits = ResidualInputs(
            F.pad(refits.innovations, (0, 0, 0, short)).half(),
            refits.maps.half(),
            refits.fit_summary,
            F.pad(refits.active_refit, (0, short), value=refits.maps.shape[1]),
        )
        parts.append((features.half(), refits, F.pad(observed.valid, (0, short))))
    most = max(refits.maps.shape[1] for _, refits, _ in parts)

    def joined(name: str) -> Tensor:
        columns = [getattr(refits, name) for _, refits, _ in parts]
        if name in ("maps", "fit_summary"):
            columns = [F.pad(x, (0, 0) * (x.dim() - 2) + (0, most - x.shape[1])) for x in columns]
        return torch.cat(columns)

    return Rows(
        torch.cat([features for features, *_ in parts]),
        ResidualInputs(*(joined(name) for name in ResidualInputs._fields)),
        torch.cat([valid for *_, valid in parts]),
        torch.as_tensor(curves.y).float(),
        torch.as_tensor(curves.dchi2).float(),
    )


class Recurrent(Network):
    """Tokens of PATCH epochs through two layers of gated recurrent units, not through a pyramid."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.core = self.make_core(config.channels)

    def make_core(self, channels: int) -> nn.Module:
        return nn.GRU(channels, channels, num_layers=2, batch_first=True)

    def run_core(self, tokens: Tensor) -> Tensor:
        return self.core(tokens)[0]

    def forward(self, features: Tensor, refits: ResidualInputs | None = None) -> Tensor:
        x = self.embed(features)
        if refits is not None:
            x = x + self.embed_innovations(refits.innovations)
        for block in self.stem:
            x = block(x)
        context = causal_upsample(
            self.run_core(self._downsample(x, 0)), PATCH_SIZE, features.shape[1]
        )
        embedding = None if refits is None else self._held_embedding(refits)
        return self._logit(x, context, embedding)


class Averages(nn.Module):
    """A diagonal linear state space: running averages over learned times, mixed and gated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter = nn.Linear(channels, channels)
        self.leave = nn.Linear(channels, 2 * channels)
        self.log_time = nn.Parameter(torch.linspace(0, math.log(200.0), channels))

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.exp(-torch.exp(-self.log_time))
        new = self.enter(self.norm(x)) * (1 - keep)
        state, states = torch.zeros_like(new[:, 0]), []
        for token in new.unbind(1):
            state = state * keep + token
            states.append(state)
        return x + F.glu(self.leave(torch.stack(states, dim=1)), dim=2)


class StateSpace(Recurrent):
    """The same with three layers of running averages."""

    def make_core(self, channels: int) -> nn.Module:
        return nn.Sequential(*(Averages(channels) for _ in range(3)))

    def run_core(self, tokens: Tensor) -> Tensor:
        return self.core(tokens)


def loss_of(logits: Tensor, valid: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy weighted over time like `training_loss`, and by `weight` over curves."""
    position = torch.cumsum(valid, dim=1) / valid.sum(1, keepdim=True).clamp_min(1)
    over_time = valid * (0.2 + position**2)
    over_time = over_time / over_time.sum(1, keepdim=True).clamp_min(1e-9)
    target = labels[:, None].expand_as(logits)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((each * over_time).sum(1) * weight).mean() / weight.mean()


def plain(logits: Tensor, valid: Tensor, labels: Tensor, dchi2: Tensor) -> Tensor:
    return loss_of(logits, valid, labels, torch.ones_like(dchi2))


def by_strength(logits: Tensor, valid: Tensor, labels: Tensor, dchi2: Tensor) -> Tensor:
    """Weights from 0.1 to 1 with delta-chi2, so that undetectable pairs count least."""
    return loss_of(logits, valid, labels, (dchi2 / 25).clamp(0.1, 1.0))


def contrastive(logits: Tensor, valid: Tensor, labels: Tensor, dchi2: Tensor) -> Tensor:
    """Beside the classes, a binary's last call should lie above its own twin's."""
    last = (valid.sum(1) - 1).clamp_min(0)[:, None]
    final = logits.gather(1, last)[:, 0]
    return plain(logits, valid, labels, dchi2) + 0.5 * F.softplus(final[::2] - final[1::2]).mean()


class Variant(NamedTuple):
    """One change: how the network is built, its inputs, its loss, and which weights are kept."""

    build: Callable[[NetworkConfig], Network] = Network
    changes: dict = {}  # of its configuration
    loss: Callable = plain
    residual_maps: bool = True
    innovations: bool = True
    average: float = 0.0  # decay of a running average of the weights; 0 = the last weights

    def inputs(self, refits: ResidualInputs) -> ResidualInputs | None:
        if not (self.residual_maps or self.innovations):
            return None
        shown = (self.innovations, self.residual_maps, self.residual_maps, True)
        return ResidualInputs(
            *(x if y else torch.zeros_like(x) for x, y in zip(refits, shown, strict=True))
        )


FLAT = {"num_levels": 1, "encoder_blocks": 0, "decoder_blocks": 0}
VARIANTS = {
    "as_built": Variant(),
    "no_refits": Variant(residual_maps=False, innovations=False),
    "no_residual_maps": Variant(residual_maps=False),
    "no_innovations": Variant(innovations=False),
    "four_levels": Variant(changes={"num_levels": 4}),
    "no_pyramid": Variant(changes=FLAT),
    "recurrent": Variant(build=Recurrent, changes=FLAT),
    "state_space": Variant(build=StateSpace, changes=FLAT),
    "weighted_by_dchi2": Variant(loss=by_strength),
    "contrastive": Variant(loss=contrastive),
    "averaged_weights": Variant(average=0.98),
}


def trained(variant: Variant, draws: list[Rows], passes: int, name: str) -> tuple[Network, float]:
    """A network of fresh weights after so many passes, and seconds a step."""
    torch.manual_seed(SEED)
    network = variant.build(NetworkConfig(**variant.changes))
    rate, decayed = 1e-3, [p for p in network.parameters() if p.dim() > 1]
    groups = [{"params": decayed, "weight_decay": 0.01}]
    groups.append({"params": [p for p in network.parameters() if p.dim() <= 1]})
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    half = bf16_supported(torch.device("cpu"))
    cast = torch.autocast("cpu", torch.bfloat16) if half else nullcontext()
    pairs = len(draws[0].labels) // 2
    steps, step = passes * (pairs // (BATCH // 2)), 0
    averaged, chooser, started = copy.deepcopy(network), np.random.default_rng(SEED), time.time()
    bar = tqdm(total=steps, desc=name)
    for turn in range(passes):
        order = torch.from_numpy(chooser.permutation(pairs))
        for chosen in order[: pairs // (BATCH // 2) * (BATCH // 2)].split(BATCH // 2):
            rows = torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()
            features, refits, valid, labels, dchi2 = draws[turn % len(draws)].batch(rows)
            progress = step / steps
            for group in optimizer.param_groups:
                warm = min(1.0, progress / 0.05 + 1e-3)
                group["lr"] = rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
            with cast:
                logits = network(features, variant.inputs(refits)).float()
            loss = variant.loss(logits, valid, labels, dchi2)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            if variant.average:
                for kept, new in zip(averaged.parameters(), network.parameters(), strict=True):
                    kept.data.lerp_(new.data, 1 - min(variant.average, step / (step + 10)))
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(loss=f"{float(loss):.4f}")
    return (averaged if variant.average else network).eval(), (time.time() - started) / steps


@torch.no_grad()
def last_calls(network: Network, variant: Variant, rows: Rows) -> np.ndarray:
    """Logits at the last epoch of each row, (n,)."""
    calls = []
    for part in torch.arange(len(rows.labels)).split(BATCH):
        features, refits, valid, *_ = rows.batch(part)
        last = (valid.sum(1) - 1).clamp_min(0)[:, None]
        calls.append(network(features, variant.inputs(refits)).gather(1, last)[:, 0])
    return torch.cat(calls).numpy()


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    started = time.time()
    torch.set_flush_denormal(True)
    tune_allocator()
    pairs, tests, passes = (64, 40, 1) if args.quick else (2000, 800, 4)
    names = list(dict.fromkeys(["as_built", *args.only]))
    numbers: dict = {"training_pairs": 2 * pairs, "test_pairs": tests}
    with tempfile.TemporaryDirectory() as scratch:
        sets = {}
        for preset, seed, num in (
            ("baseline", SEED, pairs),
            ("stellar", SEED, pairs),
            ("baseline", SEED + 1, tests),
        ):
            path = Path(scratch) / f"{preset}{seed}.npz"
            simulation = Simulation(preset=preset, num_pairs=num, seed=seed)
            sets[preset, seed] = load(simulate(path, simulation, progress=False))
    length = 608
    training = Survey(sigma=(0.01, 0.12), **SPARSE)
    draws = []
    for noise in range(1 if args.quick else 2):
        both = [
            prepared(reobserve(sets[preset, SEED], training, noise), length)
            for preset in ("baseline", "stellar")
        ]
        columns = zip(*both, strict=True)
        first, refits, *rest = columns
        joined = ResidualInputs(*(torch.cat(x) for x in zip(*refits, strict=True)))
        draws.append(Rows(torch.cat(first), joined, *(torch.cat(x) for x in rest)))
    test_curves = {
        k: reobserve(sets["baseline", SEED + 1], Survey(sigma=sigma, **SPARSE), 9)
        for k, sigma in ERRORS.items()
    }
    test_rows = {k: prepared(curves, length) for k, curves in test_curves.items()}
    for k, curves in test_curves.items():
        ideal = evaluation.ideal_log_ratio(curves)
        numbers[f"ideal_roc_auc_{k}"] = evaluation.roc_auc(curves.y, ideal)
        numbers[f"ideal_recall_at_1pct_{k}"] = evaluation.recall_at_fpr(curves.y, ideal, 0.01)
    reference = {}
    for name in names:
        variant = VARIANTS[name]
        network, seconds = trained(variant, draws, passes, name)
        numbers[f"{name}_parameters"] = network.num_parameters
        numbers[f"{name}_seconds_a_step"] = seconds
        for k, curves in test_curves.items():
            calls = last_calls(network, variant, test_rows[k])
            reference.setdefault(k, calls)
            numbers[f"{name}_recall_at_1pct_{k}"] = evaluation.recall_at_fpr(curves.y, calls, 0.01)
            numbers[f"{name}_roc_auc_{k}"] = evaluation.roc_auc(curves.y, calls)
            if name != "as_built":
                numbers[f"{name}_gain_in_roc_auc_{k}"] = evaluation.bootstrap(
                    lambda y, p, r: evaluation.roc_auc(y, p) - evaluation.roc_auc(y, r),
                    [curves.y, calls, reference[k]],
                    curves.pair,
                    num=60 if args.quick else 300,
                    seed=SEED,
                )
    save_record("search", numbers, seed=SEED, started=started, quick=args.quick)


if __name__ == "__main__":
    main()
