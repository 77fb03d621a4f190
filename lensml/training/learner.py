"""A network and its optimizer: loss, gradients and steps on samples.

On a GPU a step can be recorded once and replayed: its hundreds of small kernels would wait for
Python.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lensml.network import Network, bf16_supported
from lensml.training.samples import Samples

OPTIMIZER = "optimizer."  # before the names of what the optimizer remembers
AT_ONCE = 1024  # samples through the network together on a CPU; more only take memory


def tensors_of(samples: Samples, device: torch.device) -> Samples:
    """Samples as tensors on a device."""
    return Samples(*(torch.as_tensor(x).to(device) for x in samples))


def rows_of(samples: Samples, chosen: Tensor | slice) -> Samples:
    """Some of the samples."""
    return Samples(*(x[chosen] for x in samples))


def logits_of(network: Network, rows: Samples, mixed_precision: bool = True) -> Tensor:
    """Logits (S, 5) in float32 of samples, computed in bfloat16 where that is fast."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
        found = network(*(x.float() for x in rows[:4]), rows.held)
    return found.float()


@torch.no_grad()
def two_class_probability(network: Network, rows: Samples, chunk: int = 4096) -> Tensor:
    """P(binary) of two classes (S,) at samples, in float32."""
    parts = [rows_of(rows, slice(k, k + chunk)) for k in range(0, len(rows.held), chunk)]
    return torch.cat([network.binary_of_two(logits_of(network, x, False)) for x in parts])


class Learner:
    """A network, its optimizer and its steps.

    `labels` soft: P(binary) of who knows both curves; hard: the class. Classes that are no part of
    the network's training (`class_fractions` 0) are no part of the loss.
    """

    def __init__(
        self,
        network: Network,
        learning_rate: float,
        weight_decay: float,
        *,
        labels: str = "soft",
        recorded: bool = False,
        mixed_precision: bool = True,
    ) -> None:
        self.network, self.labels, self.recorded = network, labels, recorded
        self.device = next(network.parameters()).device
        self.mixed_precision = mixed_precision and bf16_supported(self.device)
        self.graph = None
        fractions = network.config.class_fractions
        # A list would be copied to the device at every step, which a recorded one must not do.
        known = [k for k, fraction in enumerate(fractions) if fraction > 0]
        self.classes = torch.tensor(known, device=self.device)
        self.rate = torch.tensor(learning_rate, device=self.device)
        decayed = [p for p in network.parameters() if p.dim() > 1]
        plain = [p for p in network.parameters() if p.dim() <= 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        options = {"lr": self.rate if recorded else learning_rate, "capturable": recorded}
        options |= {"weight_decay": weight_decay, "betas": (0.9, 0.98), "fused": True}
        self.optimizer = torch.optim.AdamW(groups, **options)
        self.running, self.steps = torch.zeros((), device=self.device), 0
        self.inputs: Samples | None = None  # of the graph, where rows come batch by batch
        self.losses = torch.zeros(2, device=self.device)  # of its step

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

    def total_loss(self, rows: Samples) -> tuple[Tensor, Tensor]:
        """Cross entropy (), summed over samples; and that of two classes, as it is reported."""
        logits = logits_of(self.network, rows, self.mixed_precision)
        logp = F.log_softmax(logits.index_select(1, self.classes), dim=1)
        if self.labels == "soft":
            target = rows.targets.index_select(1, self.classes)
        else:
            target = F.one_hot(rows.labels.long(), logits.shape[1])
            target = target.index_select(1, self.classes)
        with torch.no_grad():
            p = self.network.binary_of_two(logits).clamp(1e-7, 1 - 1e-7)
            of_two = F.binary_cross_entropy(p, rows.targets[:, 1:3].sum(1), reduction="sum")
        return -(target * logp).sum(), of_two

    def gradients(self, rows: Samples, total: int) -> Tensor:
        """Adds the gradients of samples of a batch of `total`; both losses (2,), over `total`."""
        size, losses = len(rows.held), torch.zeros(2, device=self.device)
        at_once = max(size, 1) if self.device.type == "cuda" else AT_ONCE
        for first in range(0, size, at_once):
            loss, of_two = self.total_loss(rows_of(rows, slice(first, first + at_once)))
            (loss / total).backward()
            losses += torch.stack([loss.detach(), of_two]) / total
        return losses

    def update(self) -> None:
        """A step of the optimizer along the gradients, which are cleared."""
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=self.graph is None)

    def _step(self, rows: Samples) -> None:
        loss, _ = self.gradients(rows, len(rows.held))
        self.update()
        self.running.lerp_(loss, 0.005)

    def _record(self, read: Callable[[Tensor], Samples], index: Tensor) -> None:
        """Record the step as a CUDA graph that reads its rows at `self.index`."""
        self.index = index.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # real steps: allocations and choices of kernels are made here
                self._step(read(self.index))
                self.steps += 1
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(read(self.index))
        self.graph = graph

    def _record_rows(self, rows: Samples) -> None:
        """Record a step on rows of this size; weights and optimizer are left as they were."""
        self.inputs = Samples(*(x.clone() for x in rows))
        state = {name: x.clone() for name, x in self.state().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # allocations and choices of kernels are made here
                self.gradients(self.inputs, len(rows.held))
                self.update()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.no_grad():  # in place: the graph holds these tensors
            for name, value in self.state().items():
                value.copy_(state[name]) if name in state else value.zero_()
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.losses.copy_(self.gradients(self.inputs, len(rows.held)))
                self.graph = graph  # gradients keep their place from here on
                self.update()
        except BaseException:
            self.graph = None
            raise

    def step_on(self, rows: Samples) -> Tensor:
        """One step on rows, replayed where a step of this size is recorded; both losses (2,)."""
        if self.recorded and self.graph is None:
            self._record_rows(rows)
        if self.recorded and all(
            x.shape == y.shape for x, y in zip(rows, self.inputs, strict=True)
        ):
            for place, values in zip(self.inputs, rows, strict=True):
                place.copy_(values)
            self.graph.replay()
            return self.losses.clone()
        losses = self.gradients(rows, len(rows.held))
        self.update()
        return losses

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps to come."""
        self.rate.fill_(rate)
        if not self.recorded:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def step(self, read: Callable[[Tensor], Samples], index: Tensor, rate: float) -> None:
        """One step on the rows that `read` finds at `index`, at a learning rate."""
        self.set_rate(rate)
        self.steps += 1
        if not self.recorded:
            self._step(read(index))
            return
        if self.graph is None:
            self._record(read, index)
        self.index.copy_(index)
        self.graph.replay()
