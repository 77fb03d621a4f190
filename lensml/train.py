"""Main job 2: the training loop. Clean curves stay on the device; what is observed is drawn there.

Every random number follows from (seed, epoch, step), so a killed run resumes to the same bits, and
several processes with the same global batch follow the trajectory of one.
"""

import csv
import json
import logging
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lensml.checkpoint import CONFIG, load_network, load_tensors, save_network, save_tensors
from lensml.features import compact, encode
from lensml.model import Network, NetworkConfig
from lensml.paths import InputError, atomic_path
from lensml.resident import Resident, load_resident
from lensml.seeds import derived_seed
from lensml.simulate import git_commit
from lensml.survey import Survey, draw_torch, observe

__all__ = ["TrainingConfig", "train"]

log = logging.getLogger(__name__)
LAST = "last.safetensors"
HISTORY = ("epoch", "train_loss", "validation_loss", "validation_auc", "learning_rate", "seconds")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides the outcome of a training run, given the data."""

    epochs: int = 50
    batch_size: int = 512  # curves, half of them binaries, over all devices
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.03  # share of the run
    clip: float = 1.0  # largest norm of the gradient
    patience: int = 15  # epochs without a better validation loss
    validation_fraction: float = 0.1
    seed: int = 0
    surveys: tuple[tuple[float, Survey], ...] = ()  # (weight, survey); () = the set's own
    curriculum: float = 0.4  # share of the run in which errors rise and hard pairs are let in
    easy_share: float = 0.2  # pairs the curriculum starts with, those furthest from their twins
    sigma_start: float = 0.02  # ceiling at the start [mag]
    sigma_floor: float = 0.003  # errors are drawn down to this while the ceiling rises [mag]
    mixed_precision: bool = True
    start_from: str | None = None  # run folder or "shipped": continue from these weights
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

    Uniform weights would spend most of the gradient on epochs before anything has happened.
    """
    position = torch.cumsum(valid, dim=1) / valid.sum(1, keepdim=True).clamp_min(1)
    weight = valid * (0.2 + position**2)
    each = F.binary_cross_entropy_with_logits(
        logits.float(), labels[:, None].expand_as(logits), reduction="none"
    )
    return ((each * weight).sum(1) / weight.sum(1).clamp_min(1e-9)).mean()


class _Run:
    """State of one process of a training run."""

    def __init__(
        self, config: TrainingConfig, data: Resident, run: Path, device: torch.device
    ) -> None:
        self.config, self.data, self.run, self.device = config, data, run, device
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        torch.manual_seed(derived_seed(config.seed, "weights"))
        if config.start_from:
            start = None if config.start_from == "shipped" else config.start_from
            self.network = load_network(start, device)[0]
        else:
            self.network = Network(config.network).to(device)
        self.model = self.network
        if self.world > 1:
            ids = [device] if device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(self.network, device_ids=ids)
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        plain = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        use_bf16 = config.mixed_precision and bf16_supported(device)
        self.cast = torch.autocast(device.type, torch.bfloat16) if use_bf16 else nullcontext()
        self.pairs_per_batch = max(1, config.batch_size // 2 // self.world) * self.world
        self.steps = max(1, len(data.train_pairs) // self.pairs_per_batch)
        self.easiest = data.easiest_first()
        self.history: list[dict] = []
        self.best = math.inf

    def batch(self, pairs: Tensor, seed: int, survey: Survey | None) -> tuple[Tensor, ...]:
        """Features, labels and validity of this process' share of a global batch of pairs."""
        share = slice(self.rank * len(pairs) // self.world, None)
        share = slice(share.start, (self.rank + 1) * len(pairs) // self.world)
        rows = torch.stack([2 * pairs[share], 2 * pairs[share] + 1], dim=1).flatten()
        if survey is None:
            delta, sigma, seen = self.data.as_observed(rows)
        else:
            generator = torch.Generator(self.device).manual_seed(seed)
            draws = draw_torch(len(pairs), self.data.num_epochs, generator)
            mine = slice(2 * share.start, 2 * share.stop)
            draws = type(draws)(draws.pair[share], *(d[mine] for d in draws[1:]))
            delta, sigma, seen = observe(self.data.clean[rows], draws, survey, self.data.time)
        observed = compact(delta, sigma, seen, self.data.time)
        return encode(observed), self.data.labels[rows], observed.valid

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
        config, total = self.config, 0.0
        chooser = np.random.default_rng([derived_seed(config.seed, "epoch", epoch)])
        order = torch.from_numpy(chooser.permutation(self.data.train_pairs)).to(self.device)
        self.model.train()
        bar = tqdm(range(self.steps), f"epoch {epoch + 1}/{config.epochs}", disable=self.rank > 0)
        for step in bar:
            progress = (epoch + step / self.steps) / config.epochs
            rate = _learning_rate(config, progress)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            pairs = order[step * self.pairs_per_batch : (step + 1) * self.pairs_per_batch]
            if progress < config.curriculum:
                pairs = self.easy_pairs(chooser, progress / config.curriculum)
            seed = derived_seed(config.seed, "noise", epoch, step)
            features, labels, valid = self.batch(pairs, seed, self.survey_of(chooser, progress))
            with self.cast:
                logits = self.model(features)
            loss = _loss(logits, labels, valid)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
            self.optimizer.step()
            total += float(loss.detach()) if step % 10 == 0 or step == self.steps - 1 else 0.0
            if step % 10 == 0:
                bar.set_postfix(loss=f"{float(loss.detach()):.4f}")
        return total / len({*range(0, self.steps, 10), self.steps - 1}), rate

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
            features, labels, valid = self.batch(
                pairs.to(self.device), seed, self.survey_of(chooser, 1.0)
            )
            self.rank, self.world = rank, world
            logits = self.network(features)
            losses.append(float(_loss(logits, labels, valid)) * len(pairs))
            last = (valid.sum(1) - 1).clamp_min(0)[:, None]
            scores.append(logits.gather(1, last)[:, 0].cpu().numpy())
            labels_seen.append(labels.cpu().numpy())
        loss = sum(losses) / max(len(self.data.validation_pairs), 1)
        return loss, _auc(np.concatenate(scores), np.concatenate(labels_seen))

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


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve by ranks (ties share their rank)."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = float((label == 1).sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return float("nan")
    excess = rank[label == 1].sum() - positives * (positives + 1) / 2
    return float(excess / (positives * negatives))


def _loop(run: _Run, first: int) -> None:
    board = _tensorboard(run.run) if run.rank == 0 else None
    for epoch in range(first, run.config.epochs):
        started = time.perf_counter()
        loss, rate = run.train_epoch(epoch)
        validation_loss, auc = run.validate()
        seconds = time.perf_counter() - started
        values = (epoch + 1, loss, validation_loss, auc, rate, round(seconds, 2))
        run.history.append(dict(zip(HISTORY, values, strict=True)))
        if run.rank == 0:
            run.save(epoch)
            log.info(
                "epoch %d: loss %.4f, validation %.4f, AUC %.4f, %.0f s",
                epoch + 1,
                *values[1:4],
                seconds,
            )
            if board:
                for name in HISTORY[1:]:
                    board.add_scalar(name, run.history[-1][name], epoch + 1)
        if run.out_of_patience():
            log.info("no better validation loss in %d epochs: stopped", run.config.patience)
            break


def _tensorboard(run: Path):
    """A TensorBoard writer where it is installed (`pip install lensml[monitor]`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))


def run_folder(output: Path | str) -> Path:
    """The run folder of `--output`; the thesis' `x.pt` makes the folder `x`."""
    output = Path(output)
    return output.with_suffix("") if output.suffix in (".pt", ".pth") else output


def train(
    data: list[Path] | Path,
    output: Path | str,
    config: TrainingConfig,
    *,
    name: str = "",
    resume: bool = False,
) -> Path:
    """Train a network on one or several sets into a run folder.

    Args:
        data: Sets in the exchange format; noise is drawn afresh where they carry magnifications.
        output: Run folder: config.json, model.safetensors (best), last.safetensors (to resume),
            metrics.json, history.csv, training.log.
        config: What to do.
        name: Label of the experiment, kept with the run.
        resume: Take up a killed run; it ends with the same bits as one that was not killed.

    Returns:
        The run folder.

    Raises:
        InputError: If the sets cannot be read, the folder holds another run, or memory is short.
    """
    run = run_folder(output)
    paths = [Path(p) for p in ([data] if isinstance(data, str | Path) else data)]
    described = {"experiment_name": name, "data": [p.name for p in paths]}
    described["training"] = json.loads(json.dumps(asdict(config)))
    _check_folder(run, described, resume)
    gpus = torch.cuda.device_count()
    if gpus > 1 and "RANK" not in os.environ:
        torch.multiprocessing.spawn(_worker, (gpus, paths, run, config, described), gpus)
    else:
        _process(paths, run, config, described)
    return run


def _check_folder(run: Path, described: dict, resume: bool) -> None:
    if (run / LAST).exists() and not resume:
        raise InputError(
            f"{run}: holds a training run; --resume takes it up, another --output starts anew"
        )
    if (run / CONFIG).exists() and resume:
        found = json.loads((run / CONFIG).read_text())
        if found["training"] != described["training"]:
            raise InputError(f"{run}: was begun with other settings; give the same to resume it")
    run.mkdir(parents=True, exist_ok=True)


def _worker(rank: int, world: int, paths, run, config, described) -> None:
    """One process of `lensml train` on several GPUs of one machine."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29531")
    _process(paths, run, config, described)


def _process(paths: list[Path], run: Path, config: TrainingConfig, described: dict) -> None:
    device = find_device()
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
    handler = logging.FileHandler(run / "training.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    started = time.perf_counter()
    try:
        resident = load_resident(paths, config.validation_fraction, device)
        state = _Run(config, resident, run, device)
        first = state.restore() if (run / LAST).exists() else 0
        if state.rank == 0:
            _write_config(run, described, resident, device)
            log.info("%d parameters on %s", state.network.num_parameters, device)
        _loop(state, first)
        if state.rank == 0:
            _write_metrics(run, state, time.perf_counter() - started)
    except torch.OutOfMemoryError:
        raise InputError(
            f"--batch_size {config.batch_size} does not fit into the memory of {device}; "
            f"try --batch_size {max(2, config.batch_size // 2)}"
        ) from None
    finally:
        log.removeHandler(handler)
        handler.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _write_config(run: Path, described: dict, data: Resident, device: torch.device) -> None:
    config = described | {
        "trained_on": data.trained_on,
        "validated_on": data.validated_on,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "commit": git_commit(),
    }
    with atomic_path(run / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=1))


def _write_metrics(run: Path, state: _Run, seconds: float) -> None:
    best = min(state.history, key=lambda row: row["validation_loss"])
    metrics = {
        "split": "validation",
        "best_epoch": best["epoch"],
        "validation_loss": best["validation_loss"],
        "validation_auc": best["validation_auc"],
        "epochs": len(state.history),
        "seconds": round(sum(row["seconds"] for row in state.history), 1),
        "seconds_this_process": round(seconds, 1),
        "parameters": state.network.num_parameters,
    }
    with atomic_path(run / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=1))
