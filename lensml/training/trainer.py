"""One process of a training on sets: batches, steps, epochs, what is saved to resume.

Each epoch observes every pair afresh and cuts samples from its curves (`data.pair_samples`), which
other processes do meanwhile, or kernels where there is a GPU. Every random number follows from
(seed, epoch, pair), or on a GPU (seed, epoch, step), so a killed run resumes: on a CPU to the same
bits, on a GPU of one kind to rounding. Several processes draw the same global batch, keep their own
part and add up their gradients, and so follow the trajectory of one.
"""

import csv
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from lensml.limits import MAX_PAIRS
from lensml.network import (
    MOST_EPOCHS,
    Network,
    NetworkConfig,
    kernels_agree,
    load_network,
    load_tensors,
    save_network,
    save_tensors,
)
from lensml.paths import InputError, atomic_path, check_keys, progress_bar
from lensml.seeds import check_seed, derived_seed
from lensml.simulation import Survey
from lensml.training.data import TrainingData, pair_samples
from lensml.training.device_samples import (
    BatchDraws,
    DevicePairs,
    device_samples,
    draw_batch,
    joined_draws,
)
from lensml.training.learner import Learner, rows_of, tensors_of, two_class_probability
from lensml.training.samples import Samples, joined

LAST = "last.safetensors"
SHIPPED = "shipped"  # value of `start_from`: the weights of the package
ROWS_TOGETHER = 8192  # curves that kernels fit together
PAIRS_AT_ONCE = 16  # of a worker
HISTORY = ("epoch", "train_loss", "validation_loss", "validation_auc", "learning_rate", "seconds")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the outcome of a training run, given the data."""

    epochs: int = 50  # length of the learning-rate schedule
    max_epochs: int | None = None  # stop after this many; None = at the end of the schedule
    batch_size: int = 512  # curves, half of them binaries, over all devices
    per_curve: int = 8  # samples of a curve in an epoch
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.03  # of the run
    patience: int = 15  # epochs without a better validation loss
    validation_fraction: float = 0.1
    seed: int = 0
    hide_blending_fraction: float = 0.25  # unblended pairs that are fitted with f_s free
    curriculum: float = (
        0.4  # fraction of the run in which errors rise, where it begins from scratch
    )
    curriculum_sigma_max: float = 0.02  # largest error at the start [mag]
    curriculum_sigma_min: float = 0.003  # smallest error while the largest one rises [mag]
    mixed_precision: bool = True
    start_from: str | None = None  # run folder, or "shipped"
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("epochs", "batch_size", "per_curve"):
            if not 1 <= getattr(self, name) <= MAX_PAIRS:
                what = f"`{name}` is {getattr(self, name)}"
                raise InputError(f"{what}, but 1 to {MAX_PAIRS} was expected")
        if not 0 < self.learning_rate < 10:
            raise InputError(f"`learning_rate` is {self.learning_rate}, but 0 to 10 was expected")

    def describe(self) -> dict:
        """Plain values for JSON."""
        return json.loads(json.dumps(asdict(self)))


def learning_rate(config: TrainingConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine down to one hundredth; `progress` in [0, 1]."""
    if progress < config.warmup_fraction:
        return config.learning_rate * max(progress / config.warmup_fraction, 1e-3)
    turn = (progress - config.warmup_fraction) / (1 - config.warmup_fraction)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * turn)))


def survey_now(survey: Survey, config: TrainingConfig, progress: float) -> Survey:
    """The survey with errors limited by the curriculum: the largest one rises with `progress`.

    A network that has learned nothing yet finds it at small errors, and keeps it at large ones.
    """
    low, high = np.broadcast_to(survey.sigma, 2).astype(float)
    over = config.start_from or progress >= config.curriculum
    if over or high <= config.curriculum_sigma_max:
        return survey
    rise = progress / config.curriculum
    ceiling = config.curriculum_sigma_max * (high / config.curriculum_sigma_max) ** rise
    return replace(survey, sigma=(min(low, config.curriculum_sigma_min), float(ceiling)))


def first_network(config: TrainingConfig, fractions: tuple[float, ...]) -> Network:
    """The network that training begins with, for the classes of a set.

    From earlier weights P(binary) of two classes is what it was; other classes are given up.
    """
    if config.start_from is None:
        torch.manual_seed(derived_seed(config.seed, "weights"))
        return Network(replace(config.network, class_fractions=fractions))
    earlier = load_network(None if config.start_from == SHIPPED else config.start_from)[0]
    single, *binary = earlier.config.class_fractions[:3]
    network = Network(replace(earlier.config, class_fractions=fractions))
    network.load_state_dict(earlier.state_dict())
    with torch.no_grad():
        network.head[-1].bias[1:3] += math.log(single / sum(binary))
    return network


def in_order(
    pool: Pool | None, function: Callable, tasks: Iterable[tuple], ahead: int
) -> Iterator[Samples]:
    """Results in the order of the tasks, of which at most `ahead` are given at a time."""
    if pool is None:
        yield from (function(*task) for task in tasks)
        return
    pending: deque = deque()
    for task in tasks:
        pending.append(pool.apply_async(function, task))
        if len(pending) >= ahead:
            yield pending.popleft().get()
    while pending:
        yield pending.popleft().get()


class Trainer:
    """One process of a training run; `run` is the folder it writes to, `pool` makes samples."""

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        run: Path,
        device: torch.device,
        pool: Pool | None = None,
        workers: int = 1,
    ) -> None:
        self.config, self.data, self.run, self.device = config, data, run, device
        self.pool, self.ahead = pool, 3 * workers
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.pairs_per_batch = max(1, config.batch_size // 2 // self.world) * self.world
        self.steps = max(1, len(data.train_pairs) // self.pairs_per_batch)
        self.network = first_network(config, data.class_fractions).to(device).train()
        rates = config.learning_rate, config.weight_decay
        self.on_device = len(data.time) <= MOST_EPOCHS and kernels_agree(device)
        if self.world > 1:  # all processes or none
            all_of_them = torch.tensor(int(self.on_device), device=device)
            dist.all_reduce(all_of_them, dist.ReduceOp.MIN)
            self.on_device = bool(all_of_them)
        alone = self.world == 1 and device.type == "cuda"
        options = {"mixed_precision": config.mixed_precision, "recorded": self.on_device and alone}
        self.learner = Learner(self.network, *rates, **options)
        self.history: list[dict] = []
        self.best = math.inf
        self._checked: Samples | None = None
        self.pairs = DevicePairs(
            *(None if x is None else torch.from_numpy(x) for x in data.pairs[:2]),
            torch.from_numpy(data.pairs.second.astype(np.int64)),
            *(torch.from_numpy(x) for x in data.pairs[3:]),
        )

    def task(self, places: NDArray, survey: Survey, *names: str | int) -> tuple:
        """Arguments of `pair_samples` for pairs at `places`, whose noise has `names`."""
        seeds = [derived_seed(self.config.seed, *names, int(k)) for k in places]
        pairs, time = self.data.pairs.some(places), self.data.time
        return pairs, time, survey, seeds, self.config.per_curve

    def batches(self, epoch: int) -> Iterator[Samples]:
        """Samples of this process' part of each batch of an epoch."""
        return self.device_batches(epoch) if self.on_device else self.cpu_batches(epoch)

    def _drawn(self, places: NDArray, survey: Survey, *names: str | int) -> BatchDraws:
        """Draws of a batch of pairs on the device, whose noise has `names`."""
        generator = torch.Generator(self.device)
        generator.manual_seed(derived_seed(self.config.seed, *names) % 2**63)
        num_epochs, per_curve = len(self.data.time), self.config.per_curve
        return draw_batch(len(places), num_epochs, per_curve, generator, survey)

    def device_batches(self, epoch: int) -> Iterator[Samples]:
        """The same where kernels make them, many batches together."""
        order = self.order(epoch)
        group = max(1, ROWS_TOGETHER // (2 * self.pairs_per_batch))
        times = torch.from_numpy(self.data.time).to(self.device)
        for begin in range(0, self.steps, group):
            survey = survey_now(self.data.survey, self.config, self.progress(epoch, begin))
            places, drawn = [], []
            for step in range(begin, min(begin + group, self.steps)):
                batch = order[step * self.pairs_per_batch : (step + 1) * self.pairs_per_batch]
                first, stop = (k * len(batch) // self.world for k in (self.rank, self.rank + 1))
                places.append(batch[first:stop])
                drawn.append(self._drawn(batch, survey, "noise", epoch, step).part(first, stop))
            pairs = self.pairs.of(np.concatenate(places), self.device)
            hide = self.config.hide_blending_fraction
            samples, of = device_samples(pairs, times, survey, joined_draws(drawn), hide)
            ends = torch.tensor(np.cumsum([0] + [len(x) for x in places]), device=self.device)
            ends = torch.searchsorted(of, ends).tolist()
            for first, stop in pairwise(ends):
                yield rows_of(samples, slice(first, stop))

    def order(self, epoch: int) -> NDArray:
        """Places of the training pairs in the order of an epoch."""
        generator = np.random.default_rng(derived_seed(self.config.seed, "epoch", epoch))
        return generator.permutation(self.data.train_pairs)

    def cpu_batches(self, epoch: int) -> Iterator[Samples]:
        """The same where other processes make them."""
        order = self.order(epoch)
        tasks, sizes = [], []
        for step in range(self.steps):
            batch = order[step * self.pairs_per_batch : (step + 1) * self.pairs_per_batch]
            first, stop = (k * len(batch) // self.world for k in (self.rank, self.rank + 1))
            own = batch[first:stop]
            parts = np.split(own, range(PAIRS_AT_ONCE, len(own), PAIRS_AT_ONCE))
            survey = survey_now(self.data.survey, self.config, self.progress(epoch, step))
            tasks += [(part, survey, "noise", epoch) for part in parts]
            sizes.append(len(parts))
        hide = (self.config.hide_blending_fraction,)
        given = (self.task(*task) + hide for task in tasks)
        found = in_order(self.pool, pair_samples, given, self.ahead)
        for size in sizes:
            yield joined([next(found) for _ in range(size)])

    def progress(self, epoch: int, step: int) -> float:
        """Fraction of the schedule that is done before a step."""
        return (epoch + step / self.steps) / self.config.epochs

    def step(self, samples: Samples, rate: float) -> torch.Tensor:
        """One step on this process' samples; two-class loss of the global batch, on the device."""
        rows = tensors_of(samples, self.device)
        self.learner.set_rate(rate)
        if self.learner.recorded:
            return self.learner.step_on(rows)[1]
        total = torch.tensor(len(rows.held), device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        _, loss = self.learner.gradients(rows, int(total))
        if self.world > 1:
            parameters = [p for p in self.network.parameters() if p.grad is not None]
            flat = torch.cat([p.grad.flatten() for p in parameters] + [loss[None]])
            dist.all_reduce(flat)
            *parts, last = flat.split([p.numel() for p in parameters] + [1])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad.copy_(part.view_as(parameter))
            loss = last[0]
        self.learner.update()
        return loss

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training pairs; mean loss and the last learning rate."""
        losses = []
        self.network.train()
        label = f"epoch {epoch + 1}/{self.config.epochs}"
        options = {"total": self.steps, "disable": self.rank > 0, "leave": True}
        bar = progress_bar(self.batches(epoch), label, **options)
        for step, samples in enumerate(bar):
            rate = learning_rate(self.config, self.progress(epoch, step))
            losses.append(self.step(samples, rate))
            if step % 10 == 0:  # reading waits for the device
                bar.set_postfix(loss=f"{float(losses[-1]):.4f}", refresh=False)
        return float(torch.stack(losses).double().mean()), rate

    def validation_samples(self) -> Samples:
        """Samples of the validation pairs under fixed noise, the last of a row at its end."""
        if self._checked is None:
            places = self.data.validation_pairs
            if self.on_device:
                self._checked = self._validation_on_device(places)
                return self._checked
            parts = np.split(places, range(PAIRS_AT_ONCE, len(places), PAIRS_AT_ONCE))
            survey, last = self.data.survey, (0.0, True)
            tasks = (self.task(part, survey, "validation") + last for part in parts)
            found = list(in_order(self.pool, pair_samples, tasks, self.ahead))
            self._checked = tensors_of(joined(found), self.device)
        return self._checked

    def _validation_on_device(self, places: NDArray) -> Samples:
        survey, found = self.data.survey, []
        times = torch.from_numpy(self.data.time).to(self.device)
        for k in range(0, len(places), ROWS_TOGETHER // 2):
            part = places[k : k + ROWS_TOGETHER // 2]
            drawn = self._drawn(part, survey, "validation", k)
            pairs = self.pairs.of(part, self.device)
            found.append(device_samples(pairs, times, survey, drawn, last=True)[0])
        return Samples(*(torch.cat(column) for column in zip(*found, strict=True)))

    def validate(self) -> tuple[float, float]:
        """Two-class loss and, at the last epochs, AUC on the validation pairs, in float32."""
        if not len(self.data.validation_pairs):
            return math.nan, math.nan
        rows = self.validation_samples()
        self.network.eval()
        p = two_class_probability(self.network, rows).double().clamp(1e-7, 1 - 1e-7)
        binary = (rows.labels > 0).double()
        loss = float(F.binary_cross_entropy(p, binary))
        last = slice(self.config.per_curve - 1, None, self.config.per_curve)
        y, score = binary[last].cpu().numpy(), p[last].cpu().numpy()
        auc = float(roc_auc_score(y, score)) if 0 < y.sum() < len(y) else math.nan
        found = torch.tensor([loss, auc], dtype=torch.float64, device=self.device)
        if self.world > 1:  # what decides when to stop is the same for all
            dist.broadcast(found, 0)
        return float(found[0]), float(found[1])

    def save(self, epoch: int) -> None:
        """Best weights and history first, then the state to resume from; each atomically."""
        row = self.history[-1]
        if row["validation_loss"] < self.best or not np.isfinite(row["validation_loss"]):
            self.best = row["validation_loss"]
            save_network(self.run, self.network, {"epoch": epoch})
        with atomic_path(self.run / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, HISTORY)
            writer.writeheader()
            writer.writerows(self.history)
        notes = {"epoch": epoch, "best": self.best, "history": self.history}
        save_tensors(self.run / LAST, self.learner.state(), notes)

    def restore(self) -> int:
        """Load the state after the last finished epoch; the number of the next one."""
        tensors, notes = load_tensors(path := self.run / LAST)
        numbers, label = (int, float), f"{path}: notes"
        check_keys(notes, {"history": list, "best": numbers, "epoch": int}, label)
        for row in notes["history"]:
            check_keys(row, dict.fromkeys(HISTORY, numbers), label)
        if not len(notes["history"]) == notes["epoch"] + 1 > 0:
            raise InputError(f"{label}: {len(notes['history'])} epochs up to {notes['epoch']}")
        try:
            self.learner.restore(tensors)
        except (ValueError, IndexError, RuntimeError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: no state of this network's training ({why})") from None
        self.history, self.best = notes["history"], notes["best"]
        return notes["epoch"] + 1

    def should_stop(self) -> bool:
        """Whether the loss has not improved for `patience` epochs, the curriculum being over."""
        losses = [row["validation_loss"] for row in self.history]
        rising = not self.config.start_from and (
            len(losses) < self.config.curriculum * self.config.epochs
        )
        return not rising and len(losses) - 1 - int(np.argmin(losses)) >= self.config.patience
