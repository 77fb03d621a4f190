"""What a training run is asked to do, and the batches that follow from it.

Every random number follows from (seed, epoch, step). Several processes draw the same global batch
and keep their shares of it. On a GPU the batches of a group also share the choice of refits that
training leaves out, and how many make a group depends on the card's memory.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lensml.network import Network, NetworkConfig, PackedCurves, encode, pack
from lensml.paths import InputError
from lensml.seeds import derived_seed
from lensml.simulation import Survey, draw_torch, observe
from lensml.training.data import TrainingData

__all__ = ["BatchSampler", "TrainingConfig"]

log = logging.getLogger(__name__)
GPU_CURVES = 16384  # of which a GPU makes the refits together, if it has the memory
BYTES_PER_CURVE = 2**21  # that this may take, three times what it took on an H100
LENGTH_STEP = 16  # curves of a batch are padded to a multiple: shapes recur


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the outcome of a training run, given the data."""

    epochs: int = 50  # of the schedule
    max_epochs: int | None = None  # end the run after so many of them
    batch_size: int = 512  # curves, half of them binaries, over all devices
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_fraction: float = 0.03  # share of the run
    grad_clip_norm: float = 1.0  # largest norm of the gradient
    patience: int = 15  # epochs without a better validation loss
    validation_fraction: float = 0.1
    seed: int = 0
    surveys: tuple[tuple[float, Survey], ...] = ()  # (weight, survey); () = the set's own
    hide_blending_fraction: float = (
        0.25  # share of unblended pairs of which it is not told that they are
    )
    curriculum: float = 0.4  # share of the run in which errors rise and hard pairs are let in
    curriculum_start_fraction: float = (
        0.2  # pairs the curriculum starts with, those furthest from their twins
    )
    curriculum_sigma_max: float = 0.02  # ceiling at the start [mag]
    curriculum_sigma_min: float = (
        0.003  # errors are drawn down to this while the ceiling rises [mag]
    )
    mixed_precision: bool = True
    compile: bool | None = None  # torch.compile; None = on a GPU, for on a CPU it gains nothing
    start_from: str | None = None  # run folder or a name in NAMED_WEIGHTS: go on from these
    network: NetworkConfig = NetworkConfig()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but at least 1 was expected")


def _survey_now(survey: Survey, config: TrainingConfig, progress: float) -> Survey:
    """The survey under the rising ceiling of errors: the easy events come first.

    At 0.1 mag from the start a network sits at chance for a long time and may never leave it.
    """
    low, high = np.broadcast_to(survey.sigma, 2).astype(float)
    if (
        config.curriculum <= 0
        or progress >= config.curriculum
        or high <= config.curriculum_sigma_max
    ):
        return survey
    rise = progress / config.curriculum
    ceiling = config.curriculum_sigma_max * (high / config.curriculum_sigma_max) ** rise
    return replace(survey, sigma=(min(low, config.curriculum_sigma_min), float(ceiling)))


def _curves_at_once(device: torch.device) -> int:
    """Of how many curves refits are made together; on a CPU a batch at a time."""
    if device.type != "cuda":
        return 0
    room = torch.cuda.get_device_properties(device).total_memory // BYTES_PER_CURVE
    return min(GPU_CURVES, 2 ** int(np.log2(max(1, room))))


class BatchSampler:
    """Batches of one process of a training run."""

    network: Network

    def __init__(self, config: TrainingConfig, data: TrainingData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        wanted = device.type == "cuda" if config.compile is None else config.compile
        self.compiling, self.compiled = wanted, {}
        self.pairs_per_batch = max(1, config.batch_size // 2 // self.world) * self.world
        self.steps = max(1, len(data.train_pairs) // self.pairs_per_batch)
        self.batches_at_once = max(1, _curves_at_once(device) // (2 * self.pairs_per_batch))
        self.easiest = data.curriculum_order()

    def batch(self, pairs: Tensor, seed: int, survey: Survey | None) -> tuple[Tensor, ...]:
        """Features, labels, validity and refits of a process' share of a global batch of pairs."""
        return self.batches([(pairs, seed, survey)])[0]

    def batches(self, wanted: Sequence[tuple[Tensor, int, Survey | None]]) -> list[tuple]:
        """As `batch`, of several batches whose refits are made together.

        They are many small operations, which a GPU starts more slowly than it does them.
        """
        seen = [self.seen(*one) for one in wanted]
        length = max(self.padded_length(s[2], one[2]) for s, one in zip(seen, wanted, strict=True))
        each = [pack(*s, self.data.time, length) for s in seen]
        observed = each[0]
        if len(each) > 1:
            observed = PackedCurves(*(torch.cat(columns) for columns in zip(*each, strict=True)))
        features = self.attempt(lambda encoder: encoder(observed), encode)
        subsample_seed = wanted[0][1] % 2**32 if self.network.training else None
        told = torch.cat([self.blended(*one)[self.rows_of(one[0])] for one in wanted])
        refits = self.network.refits(observed, subsample_seed, told)
        found, first = [], 0
        for pairs, *_ in wanted:
            labels = self.data.labels[self.rows_of_set(pairs)]
            part = slice(first, first + len(labels))
            first = part.stop
            found.append(
                (features[part], labels, observed.valid[part], refits and refits.rows(part))
            )
        return found

    def share(self, pairs: Tensor) -> slice:
        """Which pairs of a global batch are this process' own."""
        first = self.rank * len(pairs) // self.world
        return slice(first, (self.rank + 1) * len(pairs) // self.world)

    def rows_of(self, pairs: Tensor) -> slice:
        """Their rows in the batch."""
        share = self.share(pairs)
        return slice(2 * share.start, 2 * share.stop)

    def rows_of_set(self, pairs: Tensor) -> Tensor:
        """Their rows in the set: single lens, binary, single lens, ..."""
        own = pairs[self.share(pairs)]
        return torch.stack([2 * own, 2 * own + 1], dim=1).flatten()

    def seen(
        self, pairs: Tensor, seed: int, survey: Survey | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """This process' share of a batch as `observe` returns it."""
        rows = self.rows_of_set(pairs)
        if survey is None:
            return self.data.as_observed(rows)
        generator = torch.Generator(self.device).manual_seed(seed)
        outliers = survey.outlier_fraction > 0
        draws = draw_torch(len(pairs), self.data.num_epochs, generator, outliers=outliers)
        of_rows = (d if d is None else d[self.rows_of(pairs)] for d in draws[1:])
        draws = type(draws)(draws.pair[self.share(pairs)], *of_rows)
        return observe(self.data.clean[rows], draws, survey, self.data.time)

    def blended(self, pairs: Tensor, seed: int, survey: Survey | None) -> Tensor:
        """Of which rows of a global batch of P pairs the blend is left open, (2 P,).

        It always is for surveys whose baseline is not known to the end.
        """
        open_ended = self.data.blended[2 * pairs]
        if survey is not None and survey.baseline_error > 0:
            open_ended = torch.ones_like(open_ended)
        elif self.network.training:
            generator = torch.Generator(self.device).manual_seed(seed // 2)
            draw = torch.rand(len(pairs), generator=generator, device=self.device)
            open_ended = open_ended | (draw < self.config.hide_blending_fraction)
        return open_ended.repeat_interleave(2)

    def padded_length(self, seen: Tensor, survey: Survey | None) -> int:
        """Epochs to which a batch is padded: few different shapes, and no waiting for a GPU."""
        if seen.is_cuda and survey is not None:
            most = survey.max_epochs_kept(seen.shape[1])
        else:
            most = int(seen.sum(1).max())
        return max(1, -(-most // LENGTH_STEP)) * LENGTH_STEP

    def survey_of(self, chooser: np.random.Generator, progress: float) -> Survey | None:
        """Which survey a step sees; None = the set is used as it was observed."""
        if self.data.clean is None:
            return None
        surveys = self.config.surveys or ((1.0, self.data.survey),)
        weights = np.array([w for w, _ in surveys])
        survey = surveys[chooser.choice(len(surveys), p=weights / weights.sum())][1]
        return _survey_now(survey, self.config, progress)

    def easy_pairs(self, chooser: np.random.Generator, risen: float) -> Tensor:
        """A batch from the pairs that lie furthest apart; all are let in once `risen` is 1."""
        share = (
            self.config.curriculum_start_fraction
            + (1 - self.config.curriculum_start_fraction) * risen
        )
        admitted = self.easiest[: max(self.pairs_per_batch, int(share * len(self.easiest)))]
        picked = chooser.choice(
            admitted, self.pairs_per_batch, replace=len(admitted) < self.pairs_per_batch
        )
        return torch.from_numpy(picked).to(self.device)

    def progress(self, epoch: int, step: int) -> float:
        """Share of the schedule that lies behind a step."""
        return (epoch + step / self.steps) / self.config.epochs

    def wanted(
        self, epoch: int, step: int, order: Tensor, chooser: np.random.Generator
    ) -> tuple[Tensor, int, Survey | None]:
        """What `batch` is asked for at a step, given the `order` of this epoch's pairs."""
        progress, num = self.progress(epoch, step), self.pairs_per_batch
        pairs = order[step * num : (step + 1) * num]
        if progress < self.config.curriculum:
            pairs = self.easy_pairs(chooser, progress / self.config.curriculum)
        seed = derived_seed(self.config.seed, "noise", epoch, step)
        return pairs, seed, self.survey_of(chooser, progress)

    def attempt(self, work: Callable, plain: Callable):
        """`work` with `plain` compiled, or, once the compiler has failed, with `plain` itself."""
        if not self.compiling:
            return work(plain)
        try:
            if plain not in self.compiled:
                self.compiled[plain] = torch.compile(plain)
            return work(self.compiled[plain])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of compilers there are many, each with its own errors
            problem = str(error).strip().partition("\n")[0]
            log.warning("torch.compile failed (%s); training goes on without it", problem)
            self.compiling = False
            return work(plain)
