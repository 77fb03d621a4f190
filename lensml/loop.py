"""One process' share of training: configuration, loss, epochs, what is saved to resume.

Every random number follows from (seed, epoch, step), so a killed run resumes to the same bits, and
several processes with the same global batch follow the trajectory of one.
"""

import csv
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lensml.checkpoint import load_network, load_tensors, save_network, save_tensors
from lensml.features import Observed, compact, encode
from lensml.metrics import roc_auc
from lensml.model import Network, NetworkConfig
from lensml.paths import WEIGHTS, InputError, atomic_path
from lensml.resident import Resident
from lensml.seeds import derived_seed
from lensml.survey import Survey, draw_torch, observe
from lensml.unexplained import Refits

__all__ = ["HISTORY", "LAST", "Run", "TrainingConfig", "bf16_supported", "find_device"]

log = logging.getLogger(__name__)
LAST = "last.safetensors"
NAMED_WEIGHTS = {"shipped": None, "first_stage": WEIGHTS / "first_stage"}  # values of `start_from`
EPOCHS_AT_ONCE = 320_000  # through the network on a CPU; fewer are slower, more only take memory
GPU_CURVES = 16384  # of which a GPU makes the refits together
LENGTH_STEP = 16  # curves of a batch are padded to a multiple: shapes recur
HISTORY = ("epoch", "train_loss", "validation_loss", "validation_auc", "learning_rate", "seconds")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the outcome of a training run, given the data."""

    epochs: int = 50  # of the schedule
    stop_after: int | None = None  # end the run after so many of them
    batch_size: int = 512  # curves, half of them binaries, over all devices
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the run
    clip: float = 1.0  # largest norm of the gradient
    patience: int = 15  # epochs without a better validation loss
    validation_fraction: float = 0.1
    seed: int = 0
    surveys: tuple[tuple[float, Survey], ...] = ()  # (weight, survey); () = the set's own
    unsure: float = 0.25  # share of unblended pairs of which it is not told that they are
    curriculum: float = 0.4  # share of the run in which errors rise and hard pairs are let in
    easy_share: float = 0.2  # pairs the curriculum starts with, those furthest from their twins
    sigma_start: float = 0.02  # ceiling at the start [mag]
    sigma_floor: float = 0.003  # errors are drawn down to this while the ceiling rises [mag]
    mixed_precision: bool = True
    compile: bool | None = None  # torch.compile; None = on a GPU, for on a CPU it gains nothing
    start_from: str | None = None  # run folder or a name in NAMED_WEIGHTS: go on from these
    network: NetworkConfig = NetworkConfig()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}, but at least 1 was expected")


def find_device() -> torch.device:
    """CUDA or ROCm where there is one (both answer to `cuda`), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_supported(device: torch.device) -> bool:
    """Whether bfloat16 is computed, not emulated, on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def _learning_rate(config: TrainingConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine down to one hundredth; `progress` in [0, 1]."""
    if progress < config.warmup:
        return config.learning_rate * max(progress / config.warmup, 1e-3)
    turn = (progress - config.warmup) / (1 - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * turn)))


def _survey_now(survey: Survey, config: TrainingConfig, progress: float) -> Survey:
    """The survey under the rising ceiling of errors: the easy events come first.

    At 0.1 mag from the start a network sits at chance for a long time and may never leave it.
    """
    low, high = np.broadcast_to(survey.sigma, 2).astype(float)
    if config.curriculum <= 0 or progress >= config.curriculum or high <= config.sigma_start:
        return survey
    rise = progress / config.curriculum
    ceiling = config.sigma_start * (high / config.sigma_start) ** rise
    return replace(survey, sigma=(min(low, config.sigma_floor), float(ceiling)))


def _loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy at every epoch, later ones count more; each curve weighs the same.

    Uniform weights would spend most of the gradient on epochs before anything has happened. Rows
    whose label is NaN do not count.
    """
    told = torch.isfinite(labels)
    labels, valid = labels.nan_to_num(), valid & told[:, None]
    position = torch.cumsum(valid, dim=1) / valid.sum(1, keepdim=True).clamp_min(1)
    weight = valid * (0.2 + position**2)
    each = F.binary_cross_entropy_with_logits(
        logits.float(), labels[:, None].expand_as(logits), reduction="none"
    )
    return ((each * weight).sum(1) / weight.sum(1).clamp_min(1e-9)).mean()


def _network_from(config: TrainingConfig) -> Network:
    """The network of `config.network` with the weights of `config.start_from` where it has them.

    What it has beside them, refits that the other knew nothing of, begins without a say.
    """
    before = load_network(NAMED_WEIGHTS.get(config.start_from, config.start_from))[0]
    if before.config.opinion or not config.network.opinion:
        return before
    network = Network(replace(before.config, opinion=config.network.opinion))
    network.load_state_dict(before.state_dict(), strict=False)
    return network


class Run:
    """State of one process of a training run."""

    def __init__(
        self, config: TrainingConfig, data: Resident, run: Path, device: torch.device
    ) -> None:
        self.config, self.data, self.run, self.device = config, data, run, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        torch.manual_seed(derived_seed(config.seed, "weights"))
        if config.start_from:
            self.network = _network_from(config).to(device)
        else:
            self.network = Network(config.network).to(device)
        self.model = self.network
        if self.world > 1:
            ids = [device] if device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(self.network, device_ids=ids)
        wanted = device.type == "cuda" if config.compile is None else config.compile
        self.compiling, self.compiled = wanted, {}
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        plain = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
            fused=True,
        )
        use_bf16 = config.mixed_precision and bf16_supported(device)
        self.cast = torch.autocast(device.type, torch.bfloat16) if use_bf16 else nullcontext()
        self.pairs_per_batch = max(1, config.batch_size // 2 // self.world) * self.world
        self.steps = max(1, len(data.train_pairs) // self.pairs_per_batch)
        at_once = GPU_CURVES // (2 * self.pairs_per_batch) if device.type == "cuda" else 1
        self.batches_at_once = max(1, at_once)
        self.easiest = data.easiest_first()
        self.history: list[dict] = []
        self.best = math.inf

    def batch(self, pairs: Tensor, seed: int, survey: Survey | None) -> tuple[Tensor, ...]:
        """Features, labels, validity and refits of a process' share of a global batch of pairs."""
        return self.batches([(pairs, seed, survey)])[0]

    def batches(self, wanted: Sequence[tuple[Tensor, int, Survey | None]]) -> list[tuple]:
        """As `batch`, of several batches whose refits are made together.

        They are many small operations, which a GPU starts more slowly than it does them.
        """
        seen = [self.seen(*one) for one in wanted]
        length = max(self.padded_length(s[2], one[2]) for s, one in zip(seen, wanted, strict=True))
        each = [compact(*s, self.data.time, length) for s in seen]
        observed = each[0]
        if len(each) > 1:
            observed = Observed(*(torch.cat(columns) for columns in zip(*each, strict=True)))
        features = self.attempt(lambda encoder: encoder(observed), encode)
        quick = wanted[0][1] % 2**32 if self.network.training else None
        told = torch.cat([self.blended(*one)[self.rows_of(one[0])] for one in wanted])
        refits = self.network.refits(observed, quick, told)
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
            open_ended = open_ended | (draw < self.config.unsure)
        return open_ended.repeat_interleave(2)

    def padded_length(self, seen: Tensor, survey: Survey | None) -> int:
        """Epochs to which a batch is padded: few different shapes, and no waiting for a GPU."""
        if seen.is_cuda and survey is not None:
            most = survey.most_epochs(seen.shape[1])
        else:
            most = int(seen.sum(1).max())
        return max(1, -(-most // LENGTH_STEP)) * LENGTH_STEP

    def step(
        self, features: Tensor, labels: Tensor, valid: Tensor, refits: Refits | None = None
    ) -> Tensor:
        """One step of the optimiser on this process' rows; their loss, still on the device."""
        loss = self.gradients(features, labels, valid, refits)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip, foreach=True)
        self.optimizer.step()
        return loss

    def gradients(
        self, features: Tensor, labels: Tensor, valid: Tensor, refits: Refits | None = None
    ) -> Tensor:
        """Loss of this process' rows (), and its gradients in the parameters.

        A CPU takes some rows at a time: the memory of activations no longer grows with the batch.
        """
        rows, at_once = len(labels), self.rows_at_once(features)

        def by(model: Callable) -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)  # of an attempt that failed half-way, too
            loss = torch.zeros((), device=self.device)
            for first in range(0, rows, at_once):
                part = slice(first, first + at_once)
                last = part.stop >= rows
                later = nullcontext() if last or self.world == 1 else self.model.no_sync()
                with later:
                    with self.cast:
                        logits = model(features[part], refits and refits.rows(part))
                    share = len(logits) / rows
                    mean = _loss(logits, labels[part], valid[part]) * share
                    mean.backward()
                loss += mean.detach()
            return loss

        return self.attempt(by, self.model)

    @staticmethod
    def rows_at_once(features: Tensor) -> int:
        """How many rows of a batch go through the network together."""
        rows, length = features.shape[:2]
        return max(1, rows if features.is_cuda else min(rows, EPOCHS_AT_ONCE // length))

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
        share = self.config.easy_share + (1 - self.config.easy_share) * risen
        admitted = self.easiest[: max(self.pairs_per_batch, int(share * len(self.easiest)))]
        picked = chooser.choice(
            admitted, self.pairs_per_batch, replace=len(admitted) < self.pairs_per_batch
        )
        return torch.from_numpy(picked).to(self.device)

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training pairs; mean loss and the last learning rate."""
        config, read = self.config, []
        chooser = np.random.default_rng([derived_seed(config.seed, "epoch", epoch)])
        order = torch.from_numpy(chooser.permutation(self.data.train_pairs)).to(self.device)
        self.model.train()
        bar = tqdm(range(self.steps), f"epoch {epoch + 1}/{config.epochs}", disable=self.rank > 0)
        waiting: list[tuple] = []
        for step in bar:
            if not waiting:
                ahead = range(step, min(step + self.batches_at_once, self.steps))
                wanted = [self.wanted(epoch, k, order, chooser) for k in ahead]
                waiting = self.batches(wanted)
            for group in self.optimizer.param_groups:
                rate = group["lr"] = _learning_rate(config, self.progress(epoch, step))
            loss = self.step(*waiting.pop(0))
            if step % 10 == 0 or step == self.steps - 1:  # elsewhere nobody waits for the device
                read.append(float(loss))
                bar.set_postfix(loss=f"{read[-1]:.4f}")
        return self.mean_over_processes(sum(read) / len(read)), rate

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

    def mean_over_processes(self, value: float) -> float:
        """Mean of a number over all processes; their shares of a batch are equal."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / self.world

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Loss and AUC at the last epoch on the validation pairs, under fixed noise, in float32."""
        self.network.eval()
        chooser = np.random.default_rng([derived_seed(self.config.seed, "validation")])
        losses, scores, labels_seen = [], [], []
        for first in range(0, len(self.data.validation_pairs), 256):
            pairs = torch.from_numpy(self.data.validation_pairs[first : first + 256])
            seed = derived_seed(self.config.seed, "validation", first)
            rank, world, self.rank, self.world = self.rank, self.world, 0, 1
            features, labels, valid, refits = self.batch(
                pairs.to(self.device), seed, self.survey_of(chooser, 1.0)
            )
            self.rank, self.world = rank, world
            at_once = self.rows_at_once(features)
            parts = [slice(k, k + at_once) for k in range(0, len(features), at_once)]
            logits = torch.cat(
                [self.network(features[k], refits and refits.rows(k)) for k in parts]
            )
            losses.append(float(_loss(logits, labels, valid)) * len(pairs))
            last = (valid.sum(1) - 1).clamp_min(0)[:, None]
            scores.append(logits.gather(1, last)[:, 0].cpu().numpy())
            labels_seen.append(labels.cpu().numpy())
        loss = sum(losses) / max(len(self.data.validation_pairs), 1)
        return loss, roc_auc(np.concatenate(labels_seen), np.concatenate(scores))

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
        with atomic_path(self.run / "history.csv") as temporary:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, HISTORY)
                writer.writeheader()
                writer.writerows(self.history)

    def restore(self) -> int:
        """Take up the last finished epoch; the number of the next one."""
        tensors, notes = load_tensors(self.run / LAST)
        own = {k[8:]: v for k, v in tensors.items() if k.startswith("network.")}
        self.network.load_state_dict(own)
        state: dict[int, dict] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history, self.best = notes["history"], notes["best"]
        return notes["epoch"] + 1

    def out_of_patience(self) -> bool:
        """Whether the validation loss has not improved for `patience` epochs.

        Not before the ceiling of errors has risen: until then the loss of the full task may wait.
        """
        losses = [row["validation_loss"] for row in self.history]
        rising = len(losses) < self.config.curriculum * self.config.epochs
        return not rising and len(losses) - 1 - int(np.argmin(losses)) >= self.config.patience
