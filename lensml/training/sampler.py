"""Configuration of a training run, and the batches that follow from it.

Every random number follows from (seed, epoch, step). Several processes draw the same global batch
and each keeps its own part. On a GPU the refits of several batches are made together; these batches
have one choice of refits that training leaves out, and their number depends on the card's memory.

Axes: P pairs of a global batch, B = 2 P rows (single lens, binary, single lens, ...), T epochs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lensml.network import Network, NetworkConfig, PackedCurves, encode, pack
from lensml.paths import InputError
from lensml.seeds import derived_seed
from lensml.simulation import Survey, draw_torch, observe
from lensml.training.data import TrainingData

GPU_CURVES = 16384  # curves whose refits a GPU makes together, if it has the memory
BYTES_PER_CURVE = 2**21  # memory that their refits may take, three times what an H100 needed
LENGTH_STEP = 16  # curves of a batch are padded to a multiple: shapes recur


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the outcome of a training run, given the data."""

    epochs: int = 50  # length of the learning-rate schedule
    max_epochs: int | None = None  # stop after this many; None = at the end of the schedule
    batch_size: int = 512  # curves, half of them binaries, over all devices
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.03  # of the run
    grad_clip_norm: float = 1.0
    patience: int = 15  # epochs without a better validation loss
    validation_fraction: float = 0.1
    seed: int = 0
    surveys: tuple[tuple[float, Survey], ...] = ()  # (weight, survey); () = the set's own
    hide_blending_fraction: float = 0.25  # unblended pairs whose f_s is left free in the refits
    curriculum: float = 0.4  # fraction of the run in which errors rise and hard pairs are admitted
    curriculum_start_fraction: float = 0.2  # pairs at the start, those furthest from their twins
    curriculum_sigma_max: float = 0.02  # largest error at the start [mag]
    curriculum_sigma_min: float = 0.003  # smallest error while the largest one rises [mag]
    mixed_precision: bool = True
    start_from: str | None = None  # run folder, or a name in NAMED_WEIGHTS
    network: NetworkConfig = NetworkConfig()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but at least 1 was expected")

    def describe(self) -> dict:
        """Plain values for JSON."""
        return json.loads(json.dumps(asdict(self)))


class BatchPlan(NamedTuple):
    """All that decides a global batch."""

    pairs: Tensor  # (P,) int64, places of pairs in the training data
    seed: int  # of noise, masks and the choice of surveys
    survey: Survey | None  # None = the set is used as it was observed


def _survey_now(survey: Survey, config: TrainingConfig, progress: float) -> Survey:
    """The survey with errors limited by the curriculum: the largest one rises with `progress`.

    With 0.1 mag from the start a network stays at chance for a long time and may never leave it.
    """
    low, high = np.broadcast_to(survey.sigma, 2).astype(float)
    if progress >= config.curriculum or high <= config.curriculum_sigma_max:
        return survey
    rise = progress / config.curriculum
    ceiling = config.curriculum_sigma_max * (high / config.curriculum_sigma_max) ** rise
    return replace(survey, sigma=(min(low, config.curriculum_sigma_min), float(ceiling)))


def _curves_at_once(device: torch.device) -> int:
    """How many curves are refitted together; 0 = one batch at a time, as on a CPU."""
    if device.type != "cuda":
        return 0
    room = torch.cuda.get_device_properties(device).total_memory // BYTES_PER_CURVE
    return min(GPU_CURVES, 2 ** int(np.log2(max(1, room))))


class BatchSampler:
    """Batches of one process of a training run, of `data` on `device`.

    `network` makes the refits; in training mode some refits are left out and some unblended pairs
    are refitted with f_s free.
    """

    def __init__(
        self, config: TrainingConfig, data: TrainingData, network: Network, device: torch.device
    ) -> None:
        self.config, self.data, self.network, self.device = config, data, network, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.pairs_per_batch = max(1, config.batch_size // 2 // self.world) * self.world
        self.steps = max(1, len(data.train_pairs) // self.pairs_per_batch)
        self.batches_at_once = max(1, _curves_at_once(device) // (2 * self.pairs_per_batch))
        self.easiest = data.curriculum_order()

    def progress(self, epoch: int, step: int) -> float:
        """Fraction of the schedule that is done before a step."""
        return (epoch + step / self.steps) / self.config.epochs

    def plan(self, epoch: int, step: int, order: Tensor, chooser: np.random.Generator) -> BatchPlan:
        """The global batch of a step, given the `order` of this epoch's pairs."""
        progress, num = self.progress(epoch, step), self.pairs_per_batch
        pairs = order[step * num : (step + 1) * num]
        if progress < self.config.curriculum:
            pairs = self._easy_pairs(chooser, progress / self.config.curriculum)
        seed = derived_seed(self.config.seed, "noise", epoch, step)
        return BatchPlan(pairs, seed, self.draw_survey(chooser, progress))

    def draw_survey(self, chooser: np.random.Generator, progress: float) -> Survey | None:
        """The survey of a step; None = the set is used as it was observed."""
        if self.data.clean is None:
            return None
        surveys = self.config.surveys or ((1.0, self.data.survey),)
        weights = np.array([w for w, _ in surveys])
        survey = surveys[chooser.choice(len(surveys), p=weights / weights.sum())][1]
        return _survey_now(survey, self.config, progress)

    def _easy_pairs(self, chooser: np.random.Generator, risen: float) -> Tensor:
        """A batch from the pairs that lie furthest apart; all are admitted once `risen` is 1."""
        start = self.config.curriculum_start_fraction
        num = max(self.pairs_per_batch, int((start + (1 - start) * risen) * len(self.easiest)))
        admitted = self.easiest[:num]
        again = len(admitted) < self.pairs_per_batch
        picked = chooser.choice(admitted, self.pairs_per_batch, replace=again)
        return torch.from_numpy(picked).to(self.device)

    def batch(self, plan: BatchPlan, *, whole: bool = False) -> tuple:
        """The only one of `batches`."""
        return self.batches([plan], whole=whole)[0]

    def batches(self, plans: Sequence[BatchPlan], *, whole: bool = False) -> list[tuple]:
        """Features, labels, validity and residual inputs of this process' rows of each batch.

        With `whole` of all rows, whatever the number of processes. Refits are made together: many
        small operations, which a GPU starts more slowly than it does them.
        """
        rank, world = (0, 1) if whole else (self.rank, self.world)
        sizes = [len(plan.pairs) for plan in plans]
        parts = [slice(rank * n // world, (rank + 1) * n // world) for n in sizes]
        # Observe each batch, pad all to one length, encode.
        seen = [self._observe(plan, part) for plan, part in zip(plans, parts, strict=True)]
        lengths = [padded_length(s[2], plan.survey) for s, plan in zip(seen, plans, strict=True)]
        each = [pack(*s, self.data.time, max(lengths)) for s in seen]
        observed = PackedCurves(*(torch.cat(columns) for columns in zip(*each, strict=True)))
        features = encode(observed)
        # Refit all of them together.
        subsample_seed = plans[0].seed % 2**32 if self.network.training else None
        blended = [
            self.free_blending(plan)[2 * part.start : 2 * part.stop]
            for plan, part in zip(plans, parts, strict=True)
        ]
        refits = self.network.refits(observed, subsample_seed, torch.cat(blended))
        # And take them apart again.
        found, stop = [], 0
        for plan, part in zip(plans, parts, strict=True):
            labels = self.data.labels[_rows_of(plan.pairs[part])]
            rows = slice(stop, stop := stop + len(labels))
            inputs = features[rows], labels, observed.valid[rows]
            found.append((*inputs, refits and refits.rows(rows)))
        return found

    def _observe(self, plan: BatchPlan, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """`(delta_mag, sigma, observed)` of a part of a batch, each (B, T).

        Drawn for the whole batch, so that several processes see the same batch as one.
        """
        rows = _rows_of(plan.pairs[part])
        if plan.survey is None:
            delta, sigma = (x[rows] for x in self.data.observed)
            return delta.nan_to_num(), sigma, torch.isfinite(delta)
        size = len(plan.pairs), len(self.data.time)
        generator = torch.Generator(self.device).manual_seed(plan.seed)
        draws = draw_torch(*size, generator, outliers=plan.survey.outlier_fraction > 0)
        own = slice(2 * part.start, 2 * part.stop)
        of_rows = (d if d is None else d[own] for d in draws[1:])
        draws = type(draws)(draws.pair[part], *of_rows)
        return observe(self.data.clean[rows], draws, plan.survey, self.data.time)

    def free_blending(self, plan: BatchPlan) -> Tensor:
        """Rows refitted with f_s free, (B,) bool: all where the baseline is not known exactly."""
        free = self.data.blended[2 * plan.pairs]
        if plan.survey is not None and plan.survey.baseline_error > 0:
            free = torch.ones_like(free)
        elif self.network.training:
            generator = torch.Generator(self.device).manual_seed(plan.seed // 2)
            draw = torch.rand(len(plan.pairs), generator=generator, device=self.device)
            free = free | (draw < self.config.hide_blending_fraction)
        return free.repeat_interleave(2)


def _rows_of(pairs: Tensor) -> Tensor:
    """Rows of pairs in the set: single lens, binary, single lens, ..."""
    return torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()


def padded_length(observed: Tensor, survey: Survey | None) -> int:
    """Epochs to which a batch (B, T) is padded: few different shapes, and no wait for a GPU."""
    if observed.is_cuda and survey is not None:
        most = survey.max_epochs_kept(observed.shape[1])
    else:
        most = int(observed.sum(1).max())
    return max(1, -(-most // LENGTH_STEP)) * LENGTH_STEP
