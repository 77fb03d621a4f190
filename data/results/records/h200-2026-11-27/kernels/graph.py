"""A training run whose step is one captured graph of calls, replayed: `GraphRun` for `loop.Run`.

Shapes must recur: batches have as many rows, are padded to the same length, and their number of
refits is filled up to a multiple of REFITS with pictures that no epoch hears.
"""

import time

import numpy as np
import torch
import torch.nn.functional as F

from lensml.loop import Run, _learning_rate, _loss, _network_from
from lensml.seeds import derived_seed
from lensml.unexplained import Refits

REFITS = 4


def filled(refits: Refits) -> Refits:
    """Refits filled up with zeros to a multiple of REFITS."""
    more = -refits.images.shape[1] % REFITS
    images = F.pad(refits.images, (0, 0, 0, 0, 0, more))
    return refits._replace(images=images, scalars=F.pad(refits.scalars, (0, 0, 0, more)))


class GraphRun(Run):
    """`Run` with captured steps; on one process and one GPU."""

    def __init__(self, config, data, run, device, captured: bool = True) -> None:
        super().__init__(config, data, run, device)
        groups = self.optimizer.param_groups
        groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in groups]
        self.rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.rate, betas=(0.9, 0.98), fused=True, capturable=True
        )
        self.captured, self.graphs, self.inputs, self.pool = captured, {}, {}, None
        self.first = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.seconds = {"data": 0.0}

    def restart(self, config, run) -> None:
        """Another run of the same recipe: first weights and an empty optimiser, in place."""
        self.config, self.run, self.history, self.best = config, run, [], float("inf")
        torch.manual_seed(derived_seed(config.seed, "weights"))
        first = _network_from(config).state_dict() if config.start_from else self.first
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                value.copy_(first[name])
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
        if not config.start_from:
            raise ValueError("only runs that start from given weights can be restarted")

    def eager(self, features, labels, valid, refits):
        """One step, call by call; its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            logits = self.network(features, refits)
        loss = _loss(logits, labels, valid)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip, foreach=True)
        self.optimizer.step()
        return loss.detach()

    def step(self, features, labels, valid, refits=None):
        """One step; from the second time on that a shape is seen, by a graph."""
        refits = filled(refits)
        key = (*features.shape, refits.images.shape[1])
        if not self.captured:
            return self.eager(features, labels, valid, refits)
        if key not in self.graphs:
            loss = self.eager(features, labels, valid, refits)
            self.graphs[key] = self.capture(key, features, labels, valid, refits)
            return loss
        graph, loss, held = self.graphs[key]
        force = refits.in_force[0]
        given = features, labels, valid, refits.residuals, refits.images, refits.scalars, force
        for place, value in zip(held, given, strict=True):
            place.copy_(value)
        graph.replay()
        return loss

    def capture(self, key, features, labels, valid, refits):
        """The calls of a step on inputs of these shapes, as a graph; nothing is computed."""
        rows = len(features)
        given = features, labels, valid, refits.residuals
        if key[:3] not in self.inputs:
            self.inputs[key[:3]] = [x.clone() for x in (*given, refits.in_force[0])]
        shared = self.inputs[key[:3]]
        held = [*shared[:4], refits.images.clone(), refits.scalars.clone(), shared[4]]
        of_rows = Refits(held[3], held[4], held[5], held[6].expand(rows, -1))
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream()):
            loss = self.eager(held[0], held[1], held[2], of_rows)
        return graph, loss, held

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """As `Run.train_epoch`."""
        config, read = self.config, []
        chooser = np.random.default_rng([derived_seed(config.seed, "epoch", epoch)])
        order = torch.from_numpy(chooser.permutation(self.data.train_pairs)).to(self.device)
        self.model.train()
        waiting: list[tuple] = []
        for step in range(self.steps):
            if not waiting:
                ahead = range(step, min(step + self.batches_at_once, self.steps))
                started = time.perf_counter()
                waiting = self.batches([self.wanted(epoch, k, order, chooser) for k in ahead])
                self.seconds["data"] += time.perf_counter() - started
            rate = _learning_rate(config, self.progress(epoch, step))
            self.rate.fill_(rate)
            loss = self.step(*waiting.pop(0))
            if step % 10 == 0 or step == self.steps - 1:
                read.append(float(loss))
                if not np.isfinite(read[-1]):
                    raise FloatingPointError(f"loss {read[-1]} at epoch {epoch}, step {step}")
        return sum(read) / len(read), rate
