"""Train event networks on samples that other processes make meanwhile.

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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lensml.network import (
    CONFIG,
    EventNetwork,
    EventNetworkConfig,
    find_device,
    load_event_network,
    load_network,
    load_tensors,
    save_network,
    save_tensors,
)
from lensml.paths import InputError, atomic_path, available_cores, git_commit
from lensml.simulation import BLOCK, worker_pool
from lensml.training.event_samples import CLASS_FRACTIONS, SETS, Samples, make_samples

log = logging.getLogger(__name__)
SAVED = "training_state.safetensors"
HISTORY = "training_history.csv"
OPTIMIZER = "optimizer."
VALIDATION_SEED_OFFSET = 1  # the seed of validation samples, from that of training


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the networks that are trained side by side."""

    name: str = ""  # its run folder below that of the training; "" = the training's own
    seed: int = 0  # of the first weights, added to that of the samples
    labels: str = "soft"  # soft: P(binary) of who knows both curves; hard: the class
    pretrained: bool = True  # begin with `start_from`, or the maps of the shipped network
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
    start_from: str | None = None  # run folder of an event network; None = maps of the shipped one
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
        new = [torch.from_numpy(x) for x in samples]
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


def logits_of(network: EventNetwork, rows: Samples) -> Tensor:
    """Logits (S, 5) in float32 of samples, computed in bfloat16 where that is fast."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        found = network(*(x.float() for x in rows[:4]), rows.held)
    return found.float()


@torch.no_grad()
def validate(network: EventNetwork, buffer: SampleBuffer, chunk: int = 4096) -> dict[str, float]:
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


def _start(config: EventTrainingConfig, variant: Variant, device: torch.device) -> EventNetwork:
    if config.start_from and variant.pretrained:
        return load_event_network(config.start_from, device)[0].train()
    torch.manual_seed(config.seed + variant.seed)
    shape = {k: getattr(variant, k) for k in ("channels", "embedding_channels", "head_channels")}
    network = EventNetwork(EventNetworkConfig(class_fractions=CLASS_FRACTIONS, **shape))
    if variant.pretrained:
        known = load_network()[0].residual_encoder.state_dict()
        first = network.residual_encoder.first.weight.detach().zero_()
        first[:, : known["first.weight"].shape[1]] = known["first.weight"]
        network.residual_encoder.load_state_dict(known | {"first.weight": first})
    return network.to(device)


class _Learner:
    """A network, its optimizer and its steps on the rows of a buffer.

    On a GPU the step is recorded once and replayed: its hundreds of small kernels would wait for
    Python.
    """

    def __init__(self, config: EventTrainingConfig, variant: Variant, device: torch.device) -> None:
        self.variant, self.device, self.graph = variant, device, None
        self.recorded = device.type == "cuda" and bool(config.cuda_graph)
        self.network = _start(config, variant, device)
        self.rate = torch.tensor(config.learning_rate, device=device)
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        plain = [p for p in self.network.parameters() if p.dim() <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        options = {"lr": self.rate if self.recorded else config.learning_rate}
        options |= {"weight_decay": config.weight_decay, "capturable": self.recorded}
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True, **options)
        self.running, self.steps = torch.zeros((), device=device), 0

    @property
    def loss(self) -> float:
        """Mean loss of about the latest 200 steps; NaN before the first."""
        return self.running.item() / (1 - 0.995**self.steps) if self.steps else math.nan

    def state(self) -> dict[str, Tensor]:
        """Weights, and under `optimizer.` what the optimizer remembers of each parameter."""
        found = dict(self.network.state_dict())
        for k, parameter in enumerate(self.network.parameters()):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{OPTIMIZER}{k}.{name}"] = value
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; without an optimizer's memory, with a fresh one."""
        weights = {k: x for k, x in tensors.items() if not k.startswith(OPTIMIZER)}
        self.network.load_state_dict(weights)
        parameters = list(self.network.parameters())
        for key in tensors.keys() - weights.keys():
            place, name = key.removeprefix(OPTIMIZER).split(".")
            self.optimizer.state[parameters[int(place)]][name] = tensors[key].to(
                self.device, copy=True
            )

    def _step(self, rows: Samples) -> None:
        logp = F.log_softmax(logits_of(self.network, rows), dim=1)
        if self.variant.labels == "soft":
            loss = -(rows.targets * logp).sum(1).mean()
        else:
            loss = F.nll_loss(logp, rows.labels.long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graph is None)
        self.running.lerp_(loss.detach(), 0.005)

    def _record(self, buffer: SampleBuffer, index: Tensor) -> None:
        """Record the step as a CUDA graph that reads its rows at `self.index`."""
        self.index = index.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # real steps: allocations and choices of kernels are made here
                self._step(buffer.rows(self.index))
                self.steps += 1
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(buffer.rows(self.index))
        self.graph = graph

    def step(self, buffer: SampleBuffer, index: Tensor, rate: float) -> None:
        """One step on rows `index` at a learning rate."""
        self.rate.fill_(rate)
        self.steps += 1
        if self.recorded:
            if self.graph is None:
                self._record(buffer, index)
            self.index.copy_(index)
            self.graph.replay()
            return
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._step(buffer.rows(index))


class _Makers:
    """Blocks of samples from worker processes, as they are ready."""

    def __init__(self, pool, workers: int, config: EventTrainingConfig, first: int) -> None:
        self.pool, self.config, self.next, self.pending = pool, config, first, []
        self.ahead = 2 * workers

    def ready(self) -> list[Samples]:
        """What was finished since; as many are begun again."""
        config = self.config
        make = partial(make_samples, config.seed, per_curve=config.per_curve, times=config.times)
        while len(self.pending) < self.ahead:
            self.pending.append(self.pool.apply_async(make, (self.next,)))
            self.next += 1
        done = [x for x in self.pending if x.ready()]
        self.pending = [x for x in self.pending if not x.ready()]
        return [x.get() for x in done]


def train_events(
    output: Path | str, config: EventTrainingConfig, workers: int | None = None
) -> Path:
    """Train into a run folder; one that was interrupted goes on with its weights and its time.

    Writes weights every minute, `training_history.csv` and, at the end, `config.json`; of each
    variant in its own folder. Returns the folder.
    """
    output = Path(output)
    device, workers = find_device(), workers or max(1, available_cores() - 1)
    learners = [_Learner(config, variant, device) for variant in config.variants]
    state = {"step": 0, "seconds": 0.0, "next": 0, "samples": 0}
    for learner in learners:
        folder = output / learner.variant.name
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
        makers = _Makers(pool, workers, config, state["next"])
        _loop(learners, buffer, checked, makers, config, output, state)
        pool.terminate()
    before = load_event_network(config.start_from)[1] if config.start_from else {}
    other = config.seed + VALIDATION_SEED_OFFSET
    new = _ranges(config.seed, state["next"]), _ranges(other, config.validation_blocks)
    for learner in learners:
        settings = asdict(config) | {"variants": asdict(learner.variant)}
        notes = {"training": settings, "commit": git_commit(), "torch": torch.__version__}
        known = before if learner.variant.pretrained else {}
        for name, ranges in zip(("trained_on", "validated_on"), new, strict=True):
            notes[name] = known.get(name, []) + ranges
        notes |= {"state": state, "validation": validate(learner.network, checked)}
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
        notes |= {"device": str(device), "device_name": name}
        folder = output / learner.variant.name
        save_network(folder, learner.network, {})
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(json.dumps(notes, indent=1))
        (folder / SAVED).unlink(missing_ok=True)
    return output


def _ranges(seed: int, blocks: int) -> list[dict]:
    """Events of blocks; each was of one parameter set, all of them are named."""
    presets = dict.fromkeys(name for name, *_ in SETS)
    return [{"preset": x, "seed": seed, "first": 0, "stop": blocks * BLOCK} for x in presets]


def _loop(learners, buffer, checked, makers, config, output, state) -> None:
    """Steps until the time is over."""
    generator = torch.Generator(buffer.device).manual_seed(config.seed + state["step"])
    begun = time.monotonic() - state["seconds"]
    total, earlier = 60 * config.minutes, state["samples"]
    saved, first_step = time.monotonic(), state["step"]
    bar = tqdm(total=round(total), desc="train", unit="s", initial=round(state["seconds"]))
    while (elapsed := time.monotonic() - begun) < total:
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
                learner.step(buffer, index, rate)
            state["step"] += 1
        bar.update(round(elapsed) - bar.n)
        bar.set_postfix(loss=f"{learners[0].loss:.4f}", samples=f"{buffer.total / 1e6:.2f}M")
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            state |= {"seconds": elapsed, "next": makers.next, "samples": earlier + buffer.total}
            _write(learners, checked, output, state)
    state |= {"seconds": elapsed, "next": makers.next, "samples": earlier + buffer.total}
    _write(learners, checked, output, state)
    bar.close()


def _write(learners: list[_Learner], checked: SampleBuffer, output: Path, state: dict) -> None:
    """Weights, the optimizer's memory and counters in one file, losses as a line."""
    for learner in learners:
        folder = output / learner.variant.name
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
        log.info("%s %s", learner.variant.name, row)
