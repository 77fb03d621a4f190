"""What the stream remembers of its events: slabs with one slot an event, and how a slot advances.

The state of an event is as large at its first epoch as at its millionth: the recent epochs that
features reach, sums over them, and for each block of the network the tokens of past that its
convolution sees. Tokens lie in rings: an epoch is written over the one that is needed no more.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensml.model import PATCH, CausalBlock, Network
from lensml.step import (
    BINS,
    LAGS,
    MIN_ROWS,
    RECENT,
    Step,
    bin_sums,
    depth_of,
    latest_features,
    moved_sums,
)

__all__ = ["States"]

SHIFT = 16  # epochs after which a row's past moves back to its start, and sums are taken anew
ROW = RECENT + SHIFT - 1
CHUNK = 512  # events that advance together: what they touch then stays in the cache
SUMS = (3, 3, BINS)
EPOCH = ("times", "weight", "bright")


class _Rings:
    """Where a group of blocks finds its past in a row of tokens, by phase.

    Tokens of a row: a ring for each block, then `singles` that are written in turn or alone.
    """

    def __init__(self, blocks: Sequence[CausalBlock], cycle: int, singles: int, turns: int) -> None:
        starts = np.cumsum([0, *(block.past for block in blocks)])
        self.tokens = int(starts[-1]) + singles
        self.singles = range(int(starts[-1]), self.tokens)
        rings = list(zip(blocks, starts, strict=False))
        #: (cycle, K): two tokens of each block, the older one first, then the singles
        self.read = np.array(
            [
                [s + (phase + i * b.dilation) % b.past for b, s in rings for i in range(2)]
                + list(self.singles)
                for phase in range(cycle)
            ]
        )
        #: (cycle, K'): where each block's new token goes, then the group's own
        self.write = np.array(
            [
                [s + phase % b.past for b, s in rings]
                + ([self.singles[phase % turns]] if turns else [])
                for phase in range(cycle)
            ]
        )


class States:
    """Slots for events; each call of `advance` takes one more epoch of some of them."""

    def __init__(self, network: Network, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or next(network.parameters()).device)
        self.step = Step(network.to(self.device).eval())
        config = network.config
        self.num_levels = config.num_levels
        self.count = np.zeros(0, np.int64)  # epochs taken
        self.used = 0
        self.rings = {"near": _Rings(network.stem, PATCH, PATCH - 1, PATCH - 1)}
        for k in range(self.num_levels):
            singles = 0 if k + 1 == self.num_levels else 2
            blocks = [*network.down[k], *network.up[k]]
            self.rings[f"level{k}"] = _Rings(blocks, 2, singles, min(singles, 1))
        floats, doubles = np.float32, np.float64
        self.shapes = {
            name: (rings.tokens, config.channels if name != "near" else config.stem_channels)
            for name, rings in self.rings.items()
        }
        self.shapes = {name: (shape, floats) for name, shape in self.shapes.items()} | {
            "context": ((1, config.channels), floats),
            "times": ((ROW, 1), doubles),
            "weight": ((ROW, 1), floats),
            "bright": ((ROW, 1), floats),
            "sums": ((1, int(np.prod(SUMS))), doubles),
        }
        self.slabs = {name: self._zeros(0, name) for name in self.shapes}
        cycle = PATCH << (self.num_levels - 1)
        self._depths = np.array([depth_of(n or cycle, self.num_levels) for n in range(cycle)])

    @property
    def bytes_per_event(self) -> int:
        """Bytes of one slot, whatever has been seen."""
        return 8 + sum(
            shape[0] * shape[1] * np.dtype(kind).itemsize for shape, kind in self.shapes.values()
        )

    def _zeros(self, capacity: int, name: str) -> NDArray | Tensor:
        """A slab, (capacity x tokens, width): numpy's zeros cost no memory until written to."""
        (tokens, width), kind = self.shapes[name]
        if self.device.type == "cpu":
            return np.zeros((capacity * tokens, width), kind)
        kind = torch.float32 if kind is np.float32 else torch.float64
        return torch.zeros((capacity * tokens, width), dtype=kind, device=self.device)

    def reserve(self, capacity: int) -> None:
        """Make room for so many events, slab by slab: never twice the whole in memory."""
        if capacity <= len(self.count):
            return
        for name, ((tokens, _), _) in self.shapes.items():
            larger = self._zeros(capacity, name)
            larger[: self.used * tokens] = self.slabs[name][: self.used * tokens]
            self.slabs[name] = larger
        self.count = np.concatenate([self.count, np.zeros(capacity - len(self.count), np.int64)])

    def new_slots(self, number: int) -> range:
        """Slots for so many further events; room grows by doubling."""
        last = self.used + number
        if last > len(self.count):
            self.reserve(max(last, 2 * len(self.count), 16))
        self.used = last
        return range(last - number, last)

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
        count = self.count[slots] + 1
        self.count[slots] = count
        depth = self._depths[count % len(self._depths)]
        weight = np.maximum(np.asarray(sigma, np.float32).astype(float), 1e-3) ** -2.0
        epochs = (times, np.maximum(weight, 1e-30), bright)
        if len(slots) == 1:
            return self._advance_part(slots, epochs, count, depth)
        answers = np.empty(len(slots))
        for part in self._parts(np.argsort(-depth, kind="stable")):
            own = [column[part] for column in epochs]
            answers[part] = self._advance_part(slots[part], own, count[part], depth[part])
        return answers

    def _parts(self, order: NDArray) -> Iterator[NDArray]:
        size = CHUNK if self.device.type == "cpu" else max(len(order), 1)
        for first in range(0, len(order), size):
            yield order[first : first + size]

    def _advance_part(
        self, slots: NDArray, epochs: Sequence[NDArray], count: NDArray, depth: NDArray
    ) -> NDArray:
        num = len(slots)
        self._write(slots, (count - 1) % SHIFT, count, epochs)
        if num < MIN_ROWS:  # filled up with the last event again; its copies are thrown away
            filled = np.minimum(np.arange(MIN_ROWS), num - 1)
            slots, count, depth = slots[filled], count[filled], depth[filled]
        rows = [int(np.count_nonzero(depth[:num] > k)) for k in range(int(depth[0]))]
        features = self._features(slots, count, num)
        phase = (count - 1) % PATCH
        near = self._past("near", slots, phase)
        levels, parity = [], []
        for k, n in enumerate(max(n, MIN_ROWS) for n in rows):
            parity.append((count[:n] // (PATCH << k) - 1) % 2)
            levels.append(self._past(f"level{k}", slots[:n], parity[k]))
        context = self._take("context", slots)
        p, tokens, *after = self.step(features, near, context, *levels, rows=rows)
        self._keep("near", slots[:num], phase[:num], tokens)
        for k, n in enumerate(rows):
            self._keep(f"level{k}", slots[:n], parity[k][:n], after[2 * k])
            rings = self.rings[f"level{k - 1}"] if k else None
            place = slots[:n] * rings.tokens + rings.singles[1] if rings else slots[:n]
            self._put(f"level{k - 1}" if k else "context", place, after[2 * k + 1])
        return p[:num].double().cpu().numpy()

    def _features(self, slots: NDArray, count: NDArray, num: int) -> Tensor:
        """Features of the epochs just written, and the sums behind them brought up to date."""
        phase = (count - 1) % SHIFT
        start = slots * ROW
        places = (start + (RECENT - 1) + phase)[:, None] - LAGS_BACK
        origin = self._take("times", start + (RECENT - 1))
        times, weight, bright = (
            self._take(name, places.reshape(-1)).view(places.shape) for name in EPOCH
        )
        lagged = _weighed(times, weight, bright, origin)
        sums = moved_sums(self._take("sums", slots).view(-1, *SUMS), lagged)
        if len(fresh := np.flatnonzero(phase == 0)):
            whole = start[fresh][:, None] + np.arange(RECENT)
            recent = (self._take(name, whole.reshape(-1)).view(whole.shape) for name in EPOCH)
            rows = torch.from_numpy(fresh).to(self.device)
            sums[rows] = bin_sums(_weighed(*recent, origin[rows]))
        self._put("sums", slots[:num], sums.flatten(1))
        return latest_features(lagged, sums, torch.from_numpy(count).to(self.device))

    def _write(
        self, slots: NDArray, phase: NDArray, count: NDArray, epochs: Sequence[NDArray]
    ) -> None:
        """Put an epoch behind each event's past; full rows are moved back first."""
        full = slots[(phase == 0) & (count > 1)]
        places = slots * ROW + (RECENT - 1) + phase
        for name, values in zip(EPOCH, epochs, strict=True):
            slab = self.slabs[name]
            if len(full):
                rows = slab.reshape(-1, ROW)
                rows[full, : RECENT - 1] = rows[full, SHIFT:]
            if self.device.type == "cpu":
                slab[places, 0] = values
            else:
                values = torch.from_numpy(np.asarray(values, float)).to(slab)
                slab[torch.from_numpy(places).to(self.device), 0] = values

    def _past(self, name: str, slots: NDArray, phase: NDArray) -> Tensor:
        rings = self.rings[name]
        index = slots[:, None] * rings.tokens + rings.read[phase]
        return self._take(name, index.reshape(-1)).view(*index.shape, -1)

    def _keep(self, name: str, slots: NDArray, phase: NDArray, tokens: Tensor) -> None:
        rings = self.rings[name]
        index = slots[:, None] * rings.tokens + rings.write[phase]
        self._put(name, index.reshape(-1), tokens.flatten(0, 1))

    def _take(self, name: str, index: NDArray) -> Tensor:
        slab = self.slabs[name]
        if self.device.type == "cpu":
            return torch.from_numpy(slab.take(index, axis=0))
        return slab.index_select(0, torch.from_numpy(index).to(self.device))

    def _put(self, name: str, index: NDArray, values: Tensor) -> None:
        """Write the first len(index) rows of `values`."""
        slab, values = self.slabs[name], values[: len(index)]
        if self.device.type == "cpu":
            slab[index] = values.numpy()
        else:
            slab.index_copy_(0, torch.from_numpy(index).to(self.device), values)

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name; views of the slabs, not copies."""
        kept = {
            name: torch.as_tensor(slab[: self.used * self.shapes[name][0][0]])
            for name, slab in self.slabs.items()
        }
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
            slab[:] = tensors[name].numpy() if self.device.type == "cpu" else tensors[name]


LAGS_BACK = np.array(LAGS)


def _weighed(times: Tensor, weight: Tensor, bright: Tensor, origin: Tensor) -> Tensor:
    """Weight, weight x brightening, weight x time since `origin` (B, 1): each (B, R), stacked."""
    heavy = weight.double()
    return torch.stack([heavy, heavy * bright, heavy * (times - origin)], dim=1)
