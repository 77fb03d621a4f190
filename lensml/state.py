"""What the stream remembers of its events: slabs with one slot an event, and how a slot advances.

The state of an event is as large at its first epoch as at its millionth: the recent epochs that
features reach, and for each block of the network the two tokens of past that its convolution sees.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensml.model import PATCH, Network
from lensml.step import (
    MIN_ROWS,
    RECENT,
    Step,
    depth_of,
    latest_features,
    level_width,
    near_width,
)

__all__ = ["States"]

SHIFT = 16  # epochs after which a window's past is moved back to the start of its row
ROW = RECENT + SHIFT - 1
CHUNK = 512  # events that advance together: what they touch then stays in the cache


class States:
    """Slots for events; each call of `advance` takes one more epoch of some of them."""

    def __init__(self, network: Network, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or next(network.parameters()).device)
        self.step = Step(network.to(self.device).eval())
        self.num_levels = network.config.num_levels
        self.count = np.zeros(0, np.int64)  # epochs taken
        self.used = 0
        floats, doubles = torch.float32, torch.float64
        self.shapes = {"near": (near_width(network), floats)}
        self.shapes |= {
            f"level{k}": (level_width(network, k), floats) for k in range(self.num_levels)
        }
        self.shapes |= {"times": (ROW, doubles), "weight": (ROW, floats), "bright": (ROW, floats)}
        self.slabs = {name: self._zeros(0, name) for name in self.shapes}
        cycle = PATCH << (self.num_levels - 1)
        self._depths = np.array([depth_of(n or cycle, self.num_levels) for n in range(cycle)])

    @property
    def bytes_per_event(self) -> int:
        """Bytes of one slot, whatever has been seen."""
        return 8 + sum(width * dtype.itemsize for width, dtype in self.shapes.values())

    def _zeros(self, capacity: int, name: str) -> Tensor:
        width, dtype = self.shapes[name]
        if self.device.type != "cpu":
            return torch.zeros((capacity, width), dtype=dtype, device=self.device)
        # numpy's zeros cost no memory before they are written to; torch's do.
        kind = np.float32 if dtype is torch.float32 else np.float64
        return torch.from_numpy(np.zeros((capacity, width), kind))

    def reserve(self, capacity: int) -> None:
        """Make room for so many events, slab by slab: never twice the whole in memory."""
        if capacity <= len(self.count):
            return
        for name in self.slabs:
            larger = self._zeros(capacity, name)
            larger[: self.used] = self.slabs[name][: self.used]
            self.slabs[name] = larger
        self.count = np.concatenate([self.count, np.zeros(capacity - len(self.count), np.int64)])

    def new_slots(self, number: int) -> range:
        """Slots for so many further events; room grows by doubling."""
        first, self.used = self.used, self.used + number
        if self.used > len(self.count):
            last, self.used = self.used, first
            self.reserve(max(last, 2 * len(self.count), 16))
            self.used = last
        return range(first, self.used)

    @torch.inference_mode()
    def advance(
        self, slots: NDArray, times: NDArray, bright: NDArray, sigma: NDArray
    ) -> NDArray[np.float64]:
        """Take one epoch of each of these events.

        Args:
            slots: Their slots, (n,) int64, none twice.
            times: Epochs, later than the ones before, (n,) float64 [day].
            bright: Baseline minus magnitude, (n,) [mag].
            sigma: 1-sigma errors, (n,) [mag].

        Returns:
            P(binary), (n,).
        """
        self.count[slots] += 1
        depth = self._depths[self.count[slots] % len(self._depths)]
        order = np.argsort(-depth, kind="stable")
        weight = np.maximum(np.asarray(sigma, np.float32).astype(float), 1e-3) ** -2
        epochs = [
            np.asarray(times, float),
            np.maximum(weight, 1e-30).astype(np.float32),
            np.asarray(bright, float).astype(np.float32),
        ]
        answers = np.empty(len(slots))
        for part in self._parts(order):
            answers[part] = self._advance_part(slots[part], [e[part] for e in epochs], depth[part])
        return answers

    def _parts(self, order: NDArray) -> Iterator[NDArray]:
        size = CHUNK if self.device.type == "cpu" else max(len(order), 1)
        for first in range(0, len(order), size):
            yield order[first : first + size]

    def _advance_part(self, slots: NDArray, epochs: list[NDArray], depth: NDArray) -> NDArray:
        count = self.count[slots]
        self._write(slots, count - 1, epochs)
        # Too few rows are filled up with the last event again; its copies are thrown away.
        padded = np.concatenate([slots, slots[-1:].repeat(max(MIN_ROWS - len(slots), 0))])
        rows = [int(np.count_nonzero(depth > k)) for k in range(int(depth[0]))]
        index = torch.from_numpy(padded).to(self.device)
        counts = torch.from_numpy(self.count[padded]).to(self.device)
        starts = index * ROW + (counts - 1) % SHIFT
        windows = [self._windows(name, starts) for name in ("times", "weight", "bright")]
        features = latest_features(*windows, counts)
        names = ["near", *(f"level{k}" for k in range(len(rows)))]
        sizes = [len(padded), *(max(n, MIN_ROWS) for n in rows)]
        states = [
            self.slabs[name].index_select(0, index[:n])
            for name, n in zip(names, sizes, strict=True)
        ]
        p, *after = self.step(features, *states, rows=rows)
        for name, state, n in zip(names, after, [len(slots), *rows], strict=True):
            self.slabs[name].index_copy_(0, index[:n], state[:n])
        return p[: len(slots)].double().cpu().numpy()

    def _windows(self, name: str, starts: Tensor) -> Tensor:
        """The recent epochs of each event, (B, RECENT), one stretch of memory each."""
        flat = self.slabs[name].view(-1)
        return flat.as_strided((len(flat) - RECENT + 1, RECENT), (1, 1)).index_select(0, starts)

    def _write(self, slots: NDArray, before: NDArray, epochs: list[NDArray]) -> None:
        """Put epochs behind the `before` that each event has; full rows are moved back first."""
        phase = before % SHIFT
        full = torch.from_numpy(slots[(phase == 0) & (before > 0)]).to(self.device)
        places = torch.from_numpy(slots * ROW + RECENT - 1 + phase).to(self.device)
        for name, values in zip(("times", "weight", "bright"), epochs, strict=True):
            slab = self.slabs[name]
            if len(full):
                slab[full, : RECENT - 1] = slab[full, SHIFT:]
            slab.view(-1).index_copy_(0, places, torch.from_numpy(values).to(self.device))

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name; views of the slabs, not copies."""
        kept = {name: slab[: self.used] for name, slab in self.slabs.items()}
        return kept | {"count": torch.from_numpy(self.count[: self.used])}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave; everything remembered before is forgotten."""
        self.used, self.count = 0, np.zeros(0, np.int64)
        self.slabs = {name: self._zeros(0, name) for name in self.shapes}
        used = len(tensors["count"])
        self.reserve(used)
        self.used = used
        self.count[:] = tensors["count"].numpy()
        for name, slab in self.slabs.items():
            slab[:used] = tensors[name]
