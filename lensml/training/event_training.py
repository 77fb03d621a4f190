"""Train networks for all events on samples that other processes make meanwhile.

Workers simulate, observe and fit on the cores; the networks, on a GPU if there is one, take the
samples as they come, keep the latest and see each a few times. What is to be trained for is a
time, not a number of epochs: the learning rate falls to its end as the time does.

Several networks (`Variant`) can be trained side by side on the same rows in the same steps, which
compares first weights, labels and sizes and costs the simulations once.
"""

import csv
import json
import logging
import math
import platform
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lensml.network import (
    CONFIG,
    Network,
    NetworkConfig,
    find_device,
    kernels_agree,
    load_network,
    load_tensors,
    save_network,
    save_tensors,
)
from lensml.paths import InputError, atomic_path, available_cores, git_commit
from lensml.simulation import BLOCK, worker_pool
from lensml.training.device_samples import joined_rows, rows_samples
from lensml.training.event_samples import CLASS_FRACTIONS, SETS, MadeBlock, make_rows, make_samples
from lensml.training.learner import Learner, logits_of
from lensml.training.samples import Samples

log = logging.getLogger(__name__)
SAVED = "training_state.safetensors"
HISTORY = "training_history.csv"
SHIPPED = "shipped"  # value of `start_from`
SHAPE = ("channels", "embedding_channels", "head_channels")
ROWS_AT_ONCE = 8192  # curves that kernels fit together
VALIDATION_SEED_OFFSET = 1  # the seed of validation samples, from that of training


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the networks that are trained side by side."""

    name: str = ""  # its run folder below that of the training; "" = the training's own
    seed: int = 0  # of the first weights, added to that of the samples
    labels: str = "soft"  # soft: P(binary) of who knows both curves; hard: the class
    pretrained: bool = True  # begin with `start_from`, if there is one
    channels: int = 48
    embedding_channels: int = 64
    head_channels: tuple[int, int] = (128, 64)

    def __post_init__(self) -> None:
        if self.labels not in ("soft", "hard"):
            raise InputError(f"labels are {self.labels!r}; expected soft or hard")


@dataclass(frozen=True, kw_only=True)
class EventTrainingConfig:
    """What decides a training run, given the machine's speed."""

    minutes: float = 60.0
    seed: int = 70001  # of the samples; the next one is validation's
    per_curve: int = 8  # samples of an observed curve
    times: int = 1  # observations of a simulated curve
    batch_size: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    visits: float = 1.3  # times that a sample is seen, on the average; more learns pairs by heart
    capacity: int = 2_000_000  # samples kept
    least: int = 30_000  # samples before the first step
    warmup_steps: int = 200
    validation_blocks: int = 48
    start_from: str | None = None  # run folder, or "shipped"
    cuda_graph: int = 1  # 0: the kernels of a step are launched one by one
    variants: tuple[Variant, ...] = (Variant(),)

    def __post_init__(self) -> None:
        names = "minutes per_curve times batch_size learning_rate visits capacity warmup_steps"
        for name in (*names.split(), "validation_blocks"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}, but more than 0 was expected")


class SampleBuffer:
    """The latest samples on one device."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.capacity, self.device, self.columns = capacity, device, None
        self.size = self.place = self.total = 0

    def add(self, samples: Samples) -> None:
        """Put samples in the place of the oldest."""
        new = [torch.as_tensor(x) for x in samples]
        if self.columns is None:
            shapes = [((self.capacity, *x.shape[1:]), x.dtype) for x in new]
            self.columns = [torch.empty(s, dtype=d, device=self.device) for s, d in shapes]
        num = len(new[0])
        index = (self.place + torch.arange(num)) % self.capacity
        for column, values in zip(self.columns, new, strict=True):
            column[index.to(self.device)] = values.to(self.device)
        self.place = (self.place + num) % self.capacity
        self.size, self.total = min(self.capacity, self.size + num), self.total + num

    def rows(self, index: Tensor | slice) -> Samples:
        """Some of them, as tensors."""
        return Samples(*(column[index] for column in self.columns))


@torch.no_grad()
def validate(network: Network, buffer: SampleBuffer, chunk: int = 4096) -> dict[str, float]:
    """Losses on samples no network is trained on: five classes, and two where a pair exists."""
    parts = [
        buffer.rows(slice(k, min(k + chunk, buffer.size))) for k in range(0, buffer.size, chunk)
    ]
    logits = torch.cat([logits_of(network, rows) for rows in parts])
    labels, exact, targets = (
        torch.cat([getattr(x, name) for x in parts]) for name in ("labels", "exact", "targets")
    )
    logp, pairs = F.log_softmax(logits, dim=1), labels < 3
    p = network.binary_of_two(logits[pairs]).clamp(1e-6, 1 - 1e-6)
    two = F.binary_cross_entropy(p, (labels[pairs] > 0).float(), reduction="none")
    return {
        "loss": float(F.nll_loss(logp, labels.long())),
        "soft_loss": float(-(targets * logp).sum(1).mean()),
        "two_class_exact": float(two[exact[pairs]].mean()),
        "two_class_other": float(two[~exact[pairs]].mean()),
    }


def _learner(config: EventTrainingConfig, variant: Variant, device: torch.device) -> Learner:
    if config.start_from and variant.pretrained:
        start = None if config.start_from == SHIPPED else config.start_from
        network = load_network(start, device)[0].train()
    else:
        torch.manual_seed(config.seed + variant.seed)
        shape = {k: getattr(variant, k) for k in SHAPE}
        network = Network(NetworkConfig(class_fractions=CLASS_FRACTIONS, **shape)).to(device)
    recorded = device.type == "cuda" and bool(config.cuda_graph)
    rates = config.learning_rate, config.weight_decay
    return Learner(network, *rates, labels=variant.labels, recorded=recorded)


class _Makers:
    """Blocks of samples from worker processes, as they are ready; fitted on `device`, if any."""

    def __init__(
        self, pool, workers: int, config: EventTrainingConfig, first: int,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.pool, self.config, self.next, self.pending = pool, config, first, []
        self.ahead, self.device = 2 * workers, device
        self.waiting: list[MadeBlock] = []  # to be fitted together

    def ready(self) -> list[Samples]:
        """What was finished since; as many are begun again."""
        config, make = self.config, make_rows if self.device else make_samples
        make = partial(make, config.seed, per_curve=config.per_curve, times=config.times)
        while len(self.pending) < self.ahead:
            self.pending.append(self.pool.apply_async(make, (self.next,)))
            self.next += 1
        done = [x for x in self.pending if x.ready()]
        self.pending = [x for x in self.pending if x not in done]  # asked once: it may end now
        made = [x.get() for x in done]
        return self._fitted(made) if self.device else made

    def _fitted(self, made: list[MadeBlock]) -> list[Samples]:
        """Samples of the blocks that wait, as soon as they are enough to fill a device."""
        self.waiting += made
        if sum(len(r.labels) for block in self.waiting for r in block.rows) < ROWS_AT_ONCE:
            return []
        found = [block.samples for block in self.waiting if block.samples is not None]
        generator = torch.Generator(self.device).manual_seed(self.waiting[0].seed)
        sizes: dict[bool, list] = {}
        for rows in (rows for block in self.waiting for rows in block.rows):
            sizes.setdefault(rows.events.low.shape[1] > 1, []).append(rows)
        for parts in sizes.values():
            rows = joined_rows(parts, self.device)
            found.append(rows_samples(rows, self.config.per_curve, generator))
        self.waiting = []
        return found


def train_events(
    output: Path | str,
    config: EventTrainingConfig,
    workers: int | None = None,
    stop_after: float = math.inf,
) -> Path:
    """Train into a run folder; one that was interrupted goes on with its weights and its time.

    `stop_after` [s]: of this call, which makes a step in any case; the rest of the time is for
    another one.

    Writes weights every minute, `training_history.csv` and, at the end, `config.json`; of each
    variant in its own folder. Returns the folder.
    """
    output, begun = Path(output), time.monotonic()
    if all(_finished(output / variant.name, config.minutes) for variant in config.variants):
        log.info("%s has had its %g minutes", output, config.minutes)
        return output
    device, workers = find_device(), workers or max(1, available_cores() - 1)
    learners = [_learner(config, variant, device) for variant in config.variants]
    state = {"step": 0, "seconds": 0.0, "next": 0, "samples": 0}
    for variant, learner in zip(config.variants, learners, strict=True):
        folder = output / variant.name
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / SAVED).exists():
            tensors, state = load_tensors(folder / SAVED)
            learner.restore(tensors)
    buffer, checked = SampleBuffer(config.capacity, device), SampleBuffer(1, device)
    torch.set_flush_denormal(True)
    with worker_pool(workers) as pool:
        blocks = range(config.validation_blocks)
        make = partial(make_samples, config.seed + VALIDATION_SEED_OFFSET, per_curve=8, times=1)
        found = list(tqdm(pool.imap(make, blocks), "validation samples", total=len(blocks)))
        checked.capacity = sum(len(x.held) for x in found)
        for samples in found:
            checked.add(samples)
        fits_on = device if kernels_agree(device) else None
        makers = _Makers(pool, workers, config, state["next"], fits_on)
        ends = begun + stop_after
        _loop(learners, buffer, checked, makers, config, output, state, ends)
        pool.terminate()
    start = None if config.start_from == SHIPPED else config.start_from
    before = load_network(start)[1] if config.start_from else {}
    other = config.seed + VALIDATION_SEED_OFFSET
    new = _ranges(config.seed, state["next"]), _ranges(other, config.validation_blocks)
    for variant, learner in zip(config.variants, learners, strict=True):
        settings = asdict(config) | {"variants": asdict(variant)}
        notes = {"training": settings, "commit": git_commit(), "torch": torch.__version__}
        known = before if variant.pretrained else {}
        for name, ranges in zip(("trained_on", "validated_on"), new, strict=True):
            notes[name] = known.get(name, []) + ranges
        notes |= {"state": state, "validation": validate(learner.network, checked)}
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
        notes |= {"device": str(device), "device_name": name}
        folder = output / variant.name
        save_network(folder, learner.network, {})
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(notes, indent=1))
        if state["seconds"] >= 60 * config.minutes:
            (folder / SAVED).unlink(missing_ok=True)
    return output


def _finished(folder: Path, minutes: float) -> bool:
    """Whether a run has had all of its time."""
    if (folder / SAVED).exists() or not (folder / CONFIG).exists():
        return False
    return json.loads((folder / CONFIG).read_text())["state"]["seconds"] >= 60 * minutes


def _ranges(seed: int, blocks: int) -> list[dict]:
    """Events of blocks; each was of one parameter set, all of them are named."""
    presets = dict.fromkeys(name for name, *_ in SETS)
    return [{"preset": x, "seed": seed, "first": 0, "stop": blocks * BLOCK} for x in presets]


def _loop(learners, buffer, checked, makers, config, output, state, ends) -> None:
    """Steps until the time is over."""
    generator = torch.Generator(buffer.device).manual_seed(config.seed + state["step"])
    begun = time.monotonic() - state["seconds"]
    total, earlier = 60 * config.minutes, state["samples"]
    saved, first_step = time.monotonic(), state["step"]
    bar = tqdm(total=round(total), desc="train", unit="s", initial=round(state["seconds"]))
    while (elapsed := time.monotonic() - begun) < total and (
        begun + elapsed < ends or state["step"] == first_step
    ):
        for samples in makers.ready():
            buffer.add(samples)
        steps = state["step"] - first_step
        if buffer.size < min(config.least, config.capacity) or (
            steps * config.batch_size > config.visits * buffer.total
        ):
            time.sleep(0.05)
            continue
        progress = elapsed / total
        rate = config.learning_rate * min(1.0, (steps + 1) / config.warmup_steps)
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
        for _ in range(8):
            index = torch.randint(
                buffer.size, (config.batch_size,), generator=generator, device=buffer.device
            )
            for learner in learners:
                learner.step(buffer.rows, index, rate)
            state["step"] += 1
        text = f"{buffer.total / 1e6:.2f}M samples, loss={learners[0].loss:.4f}"
        bar.set_postfix_str(text, refresh=False)
        bar.update(round(elapsed) - bar.n)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            state |= {"seconds": elapsed, "next": makers.next, "samples": earlier + buffer.total}
            _write(config.variants, learners, checked, output, state)
    state |= {"seconds": elapsed, "next": makers.next, "samples": earlier + buffer.total}
    _write(config.variants, learners, checked, output, state)
    bar.close()


def _write(variants, learners, checked: SampleBuffer, output: Path, state: dict) -> None:
    """Weights, the optimizer's memory and counters in one file, losses as a line."""
    for variant, learner in zip(variants, learners, strict=True):
        folder = output / variant.name
        save_tensors(folder / SAVED, learner.state(), state)
        row = {key: state[key] for key in ("seconds", "step", "samples")}
        row["training_loss"] = learner.loss
        row |= validate(learner.network, checked)
        new = not (folder / HISTORY).exists()
        with (folder / HISTORY).open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(row)
            writer.writerow([f"{x:.5g}" if isinstance(x, float) else x for x in row.values()])
        log.info("%s %s", variant.name, row)
