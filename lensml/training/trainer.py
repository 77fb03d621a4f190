"""One process of a training run: loss, steps, epochs, validation, what is saved to resume.

Every random number follows from (seed, epoch, step), so a killed run resumes to the same bits, and
several processes with the same global batch follow the trajectory of one.

Axes: B rows, L epochs of a batch.
"""

import csv
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lensml.network import (
    Network,
    ResidualInputs,
    bf16_supported,
    load_network,
    load_tensors,
    save_network,
    save_tensors,
)
from lensml.paths import WEIGHTS, atomic_path, progress_bar
from lensml.seeds import derived_seed
from lensml.training.data import TrainingData
from lensml.training.sampler import BatchPlan, BatchSampler, TrainingConfig

LAST = "last.safetensors"
NAMED_WEIGHTS = {"shipped": None, "first_stage": WEIGHTS / "first_stage"}  # values of `start_from`
EPOCHS_AT_ONCE = 320_000  # through the network on a CPU; fewer are slower, more only take memory
HISTORY = ("epoch", "train_loss", "validation_loss", "validation_auc", "learning_rate", "seconds")


def _learning_rate(config: TrainingConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine down to one hundredth; `progress` in [0, 1]."""
    if progress < config.warmup_fraction:
        return config.learning_rate * max(progress / config.warmup_fraction, 1e-3)
    turn = (progress - config.warmup_fraction) / (1 - config.warmup_fraction)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * turn)))


def training_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy over epochs, mean over curves; later epochs weigh more.

    `logits` and `valid` (observed) are (B, L), `labels` (B,) 0, 1 or NaN, which does not count.
    Uniform weights would spend most of the gradient on epochs before the event.
    """
    labelled = torch.isfinite(labels)
    labels, valid = labels.nan_to_num(), valid & labelled[:, None]
    position = torch.cumsum(valid, dim=1) / valid.sum(1, keepdim=True).clamp_min(1)
    weight = valid * (0.2 + position**2)
    each = F.binary_cross_entropy_with_logits(
        logits.float(), labels[:, None].expand_as(logits), reduction="none"
    )
    return ((each * weight).sum(1) / weight.sum(1).clamp_min(1e-9)).mean()


def _network_from(config: TrainingConfig) -> Network:
    """Network of `config.network`, with weights of `config.start_from` where present.

    A residual branch that those weights lack starts with an output of zero.
    """
    earlier = load_network(NAMED_WEIGHTS.get(config.start_from, config.start_from))[0]
    if earlier.config.embedding_channels or not config.network.embedding_channels:
        return earlier
    network = Network(replace(earlier.config, embedding_channels=config.network.embedding_channels))
    network.load_state_dict(earlier.state_dict(), strict=False)
    return network


def _optimizer(network: Network, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; biases and gains are not decayed."""
    decayed = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    return torch.optim.AdamW(groups, **options, betas=(0.9, 0.98), fused=True)


def _last_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """ROC AUC of the two classes; NaN if only one is there."""
    single, binary = np.sort(scores[labels == 0]), scores[labels == 1]
    below = [np.searchsorted(single, binary, side) for side in ("left", "right")]  # ties: half
    return float(np.mean(below)) / len(single) if len(single) and len(binary) else math.nan


class Trainer:
    """One process of a training run; `run` is the folder it writes to."""

    def __init__(
        self, config: TrainingConfig, data: TrainingData, run: Path, device: torch.device
    ) -> None:
        self.config, self.data, self.run, self.device = config, data, run, device
        torch.manual_seed(derived_seed(config.seed, "weights"))
        network = _network_from(config) if config.start_from else Network(config.network)
        self.network = network.to(device)
        self.sampler = BatchSampler(config, data, self.network, device)
        self.model = self.network
        if self.sampler.world > 1:
            ids = [device] if device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(self.network, device_ids=ids)
        self.optimizer = _optimizer(self.network, config)
        use_bf16 = config.mixed_precision and bf16_supported(device)
        self.cast = torch.autocast(device.type, torch.bfloat16) if use_bf16 else nullcontext()
        self.history: list[dict] = []
        self.best = math.inf

    def step(
        self, features: Tensor, labels: Tensor, valid: Tensor, refits: ResidualInputs | None = None
    ) -> Tensor:
        """One step of the optimiser on this process' rows; their loss, still on the device."""
        loss = self.gradients(features, labels, valid, refits)
        largest = self.config.grad_clip_norm
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), largest, foreach=True)
        self.optimizer.step()
        return loss

    def gradients(
        self, features: Tensor, labels: Tensor, valid: Tensor, refits: ResidualInputs | None = None
    ) -> Tensor:
        """Loss of this process' rows (), and its gradients in the parameters.

        A CPU takes some rows at a time: the memory of activations no longer grows with the batch.
        """
        rows, at_once = len(labels), self.rows_at_once(features)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.device)
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            # Processes exchange gradients once, with the last part.
            last = part.stop >= rows or self.sampler.world == 1
            with nullcontext() if last else self.model.no_sync():
                with self.cast:
                    logits = self.model(features[part], refits and refits.rows(part))
                fraction = len(logits) / rows
                mean = training_loss(logits, labels[part], valid[part]) * fraction
                mean.backward()
            loss += mean.detach()
        return loss

    @staticmethod
    def rows_at_once(features: Tensor) -> int:
        """How many rows of a batch go through the network together."""
        rows, length = features.shape[:2]
        return max(1, rows if features.is_cuda else min(rows, EPOCHS_AT_ONCE // length))

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training pairs; mean loss and the last learning rate."""
        config, sampler, read = self.config, self.sampler, []
        chooser = np.random.default_rng([derived_seed(config.seed, "epoch", epoch)])
        order = torch.from_numpy(chooser.permutation(self.data.train_pairs)).to(self.device)
        self.model.train()
        label = f"epoch {epoch + 1}/{config.epochs}"
        bar = progress_bar(range(sampler.steps), label, disable=sampler.rank > 0, leave=True)
        waiting: list[tuple] = []
        for step in bar:
            if not waiting:
                ahead = range(step, min(step + sampler.batches_at_once, sampler.steps))
                waiting = sampler.batches([sampler.plan(epoch, k, order, chooser) for k in ahead])
            for group in self.optimizer.param_groups:
                rate = group["lr"] = _learning_rate(config, sampler.progress(epoch, step))
            loss = self.step(*waiting.pop(0))
            if step % 10 == 0 or step == sampler.steps - 1:  # reading waits for the device
                read.append(float(loss))
                bar.set_postfix(loss=f"{read[-1]:.4f}")
        total = torch.tensor(sum(read) / len(read), dtype=torch.float64, device=self.device)
        if sampler.world > 1:  # processes, whose parts of a batch are equal
            dist.all_reduce(total)
        return float(total) / sampler.world, rate

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Loss and AUC at the last epoch on the validation pairs, under fixed noise, in float32."""
        self.network.eval()
        chooser = np.random.default_rng([derived_seed(self.config.seed, "validation")])
        losses, scores, labels_of = [], [], []
        for first in range(0, len(self.data.validation_pairs), 256):
            pairs = torch.from_numpy(self.data.validation_pairs[first : first + 256])
            seed = derived_seed(self.config.seed, "validation", first)
            survey = self.sampler.draw_survey(chooser, 1.0)
            plan = BatchPlan(pairs.to(self.device), seed, survey)
            features, labels, valid, refits = self.sampler.batch(plan, whole=True)
            at_once = self.rows_at_once(features)
            parts = [slice(k, k + at_once) for k in range(0, len(features), at_once)]
            inputs = [(features[k], refits and refits.rows(k)) for k in parts]
            logits = torch.cat([self.network(*x) for x in inputs])
            losses.append(float(training_loss(logits, labels, valid)) * len(pairs))
            last = (valid.sum(1) - 1).clamp_min(0)[:, None]
            scores.append(logits.gather(1, last)[:, 0].cpu().numpy())
            labels_of.append(labels.cpu().numpy())
        loss = sum(losses) / max(len(self.data.validation_pairs), 1)
        return loss, _last_auc(np.concatenate(labels_of), np.concatenate(scores))

    def save(self, epoch: int) -> None:
        """Best weights first, then the state to resume from; each atomically."""
        row = self.history[-1]
        if row["validation_loss"] < self.best:
            self.best = row["validation_loss"]
            save_network(self.run, self.network, {"epoch": epoch})
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        notes = {"epoch": epoch, "best": self.best, "history": self.history}
        save_tensors(self.run / LAST, tensors, notes)
        with atomic_path(self.run / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, HISTORY)
            writer.writeheader()
            writer.writerows(self.history)

    def restore(self) -> int:
        """Load the state after the last finished epoch; the number of the next one."""
        tensors, notes = load_tensors(self.run / LAST)
        own, state = {}, {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            if kind == "network":
                own[name] = value
            elif kind == "optimizer":
                index, _, name = name.partition(".")
                state.setdefault(int(index), {})[name] = value
        self.network.load_state_dict(own)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history, self.best = notes["history"], notes["best"]
        return notes["epoch"] + 1

    def should_stop(self) -> bool:
        """Whether the loss has not improved for `patience` epochs, the curriculum being over."""
        losses = [row["validation_loss"] for row in self.history]
        rising = len(losses) < self.config.curriculum * self.config.epochs
        return not rising and len(losses) - 1 - int(np.argmin(losses)) >= self.config.patience
