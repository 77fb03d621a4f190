"""What the stream remembers of its events: slabs with one slot an event, and how a slot advances.

The state of an event is as large at its first epoch as at its millionth: the recent epochs that
features reach, sums over them, and for each block of the network the tokens of past that its
convolution sees. Tokens lie in rings: an epoch is written over the one that is needed no more. For
refits, the last KEEP epochs, the fits in force and what the expert last said.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensml.network import (
    BIN_WIDTHS,
    MAX_HISTORY,
    PATCH_SIZE,
    CausalBlock,
    Fits,
    Network,
    innovation_features,
    next_refit_epoch,
    one_thread,
    prior_fits,
    refit_and_map,
    refit_schedule,
)
from lensml.streaming.step import (
    BINS,
    LAGS,
    RECENT,
    Array,
    Opinions,
    Step,
    bin_sums,
    depth_of,
    latest_features,
    library,
    moved_sums,
)

__all__ = ["EventCache"]

SHIFT = 16  # epochs after which a row's past moves back to its start, and sums are taken anew
ROW = RECENT + SHIFT
CHUNK = 512  # events that advance together: what they touch then stays in the cache
LENGTHS = np.array(
    [256, 512, 1024, MAX_HISTORY]
)  # to which prefixes are padded: few, as groups cost most
REFITTED = 2**17  # epochs, pads included, that are refitted together: bounds the memory
ON_GPU = 64  # times as many
SUMS = (3, 3, BINS)
EPOCH = ("times", "weight", "bright")
KEPT = ("kept_times", "kept_bright", "kept_sigma")
NUM_FITS = 2 * (4 + 16 + 2) + 1
LAGS_BACK = np.array(LAGS)


class _RingLayout:
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


class EventCache:
    """Slots for events; each call of `advance` takes one more epoch of some of them.

    Args:
        network: The classifier; it is moved to `device`.
        device: Where to compute; None = where the network is.
        on_cpu: Whether slabs are numpy's, which calls for less per event; None = on a CPU. As
            torch's they can lie on any device.
        blended: Whether f_s may be less than 1.
    """

    def __init__(
        self,
        network: Network,
        device: str | torch.device | None = None,
        on_cpu: bool | None = None,
        blended: bool = True,
    ) -> None:
        self.device = torch.device(device or next(network.parameters()).device)
        self.step = Step(network.to(self.device).eval())
        config = network.config
        self.num_levels = config.num_levels
        self.on_cpu = self.device.type == "cpu" if on_cpu is None else on_cpu
        self._widths = self._index(np.array(BIN_WIDTHS))
        self.count = np.zeros(0, np.int64)  # epochs taken
        self.used = 0
        self.rings = {"near": _RingLayout(network.stem, PATCH_SIZE, PATCH_SIZE - 1, PATCH_SIZE - 1)}
        for k in range(self.num_levels):
            singles = 0 if k + 1 == self.num_levels else 2
            blocks = [*network.encoder[k], *network.decoder[k]]
            self.rings[f"level{k}"] = _RingLayout(blocks, 2, singles, min(singles, 1))
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
        self.embedding_channels, self.blended = config.embedding_channels, blended
        if self.embedding_channels:
            self.shapes |= {
                "kept_times": ((MAX_HISTORY, 1), doubles),
                "kept_bright": ((MAX_HISTORY, 1), floats),
                "kept_sigma": ((MAX_HISTORY, 1), floats),
                "fits": ((1, NUM_FITS), doubles),
                "said": ((1, config.channels), floats),
            }
            self.residual_encoder = Opinions(network)
        self._is_due = np.zeros(0, bool)
        self.slabs = {name: self._zeros(0, name) for name in self.shapes}
        cycle = PATCH_SIZE << (self.num_levels - 1)
        self._depths = np.array([depth_of(n or cycle, self.num_levels) for n in range(cycle)])

    @property
    def bytes_per_event(self) -> int:
        """Bytes of one slot, whatever has been seen."""
        return 8 + sum(
            shape[0] * shape[1] * np.dtype(kind).itemsize for shape, kind in self.shapes.values()
        )

    def _zeros(self, capacity: int, name: str) -> Array:
        """A slab, (capacity x tokens, width): numpy's zeros cost no memory until written to."""
        (tokens, width), kind = self.shapes[name]
        if self.on_cpu:
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

    @np.errstate(all="ignore")  # averages not yet filled, magnitudes beyond float32
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
        with one_thread():
            return self._advance(slots, times, bright, sigma)

    def _advance(
        self, slots: NDArray, times: NDArray, bright: NDArray, sigma: NDArray
    ) -> NDArray[np.float64]:
        count = self.count[slots] + 1
        self.count[slots] = count
        depth = self._depths[count % len(self._depths)]
        sigma = np.maximum(np.asarray(sigma, np.float32), np.float32(1e-3))
        weight = np.maximum(sigma.astype(float) ** -2.0, 1e-30)
        epochs = (times, weight, bright, sigma)
        if self.embedding_channels:
            self._append_history(slots, count, epochs)
        if len(slots) == 1:
            return self._advance_part(slots, epochs, count, depth)
        answers = np.empty(len(slots))
        for part in self._parts(np.argsort(-depth, kind="stable")):
            own = [column[part] for column in epochs]
            answers[part] = self._advance_part(slots[part], own, count[part], depth[part])
        return answers

    def _parts(self, order: NDArray) -> Iterator[NDArray]:
        size = CHUNK if self.on_cpu else max(len(order), 1)
        for first in range(0, len(order), size):
            yield order[first : first + size]

    def _advance_part(
        self, slots: NDArray, epochs: Sequence[NDArray], count: NDArray, depth: NDArray
    ) -> NDArray:
        num = len(slots)
        self._write(slots, (count - 1) % SHIFT, count, epochs)
        if num < (least := self.step.min_rows):
            # Filled up with the last event again; its copies are thrown away.
            filled = np.minimum(np.arange(least), num - 1)
            slots, count, depth = slots[filled], count[filled], depth[filled]
        rows = [int(np.count_nonzero(depth[:num] > k)) for k in range(int(depth[0]))]
        features = self._features(slots, count, num)
        if self.embedding_channels:
            features = torch.cat([features, self._residual_features(slots, num)], dim=1)
        phase = (count - 1) % PATCH_SIZE
        near = self._past("near", slots, phase)
        levels, parity = [], []
        for k, n in enumerate(max(n, least) for n in rows):
            parity.append((count[:n] // (PATCH_SIZE << k) - 1) % 2)
            levels.append(self._past(f"level{k}", slots[:n], parity[k]))
        context = torch.as_tensor(self._take("context", slots))
        p, tokens, *after = self.step(features, near, context, *levels, rows=rows)
        self._keep("near", slots[:num], phase[:num], tokens)
        for k, n in enumerate(rows):
            self._keep(f"level{k}", slots[:n], parity[k][:n], after[2 * k])
            rings = self.rings[f"level{k - 1}"] if k else None
            place = slots[:n] * rings.tokens + rings.singles[1] if rings else slots[:n]
            self._put(f"level{k - 1}" if k else "context", place, self._own(after[2 * k + 1]))
        return p[:num].double().cpu().numpy()

    def _features(self, slots: NDArray, count: NDArray, num: int) -> Tensor:
        """Features of the epochs just written, and the sums behind them brought up to date."""
        phase = (count - 1) % SHIFT
        origin = slots * ROW + RECENT  # where the row's times count from
        places = (origin + phase)[:, None] - LAGS_BACK
        since = self._take("times", origin)
        lagged = _weighed(*(self._take(name, places) for name in EPOCH), since)
        sums = moved_sums(self._take("sums", slots).reshape(-1, *SUMS), lagged)
        if len(fresh := np.flatnonzero(phase == 0)):
            whole = origin[fresh][:, None] - np.arange(RECENT - 1, -1, -1)
            recent = (self._take(name, whole) for name in EPOCH)
            fresh = self._index(fresh)
            sums[fresh] = bin_sums(_weighed(*recent, since[fresh]))
        self._put("sums", slots[:num], sums.reshape(len(slots), -1))
        features = latest_features(lagged, sums, self._index(count), self._widths)
        return torch.as_tensor(features).float()

    def _append_history(self, slots: NDArray, count: NDArray, epochs: Sequence[NDArray]) -> None:
        """Keep an epoch of each event for refits, and refit those whose time has come."""
        places = slots * MAX_HISTORY + (count - 1) % MAX_HISTORY
        for name, values in zip(KEPT, (epochs[0], epochs[2], epochs[3]), strict=True):
            self._put(name, places, self._values(name, values))
        if len(count) and count.max() >= len(self._is_due):
            most = 2 * int(count.max())
            self._is_due = np.isin(np.arange(most), refit_schedule(most))
        due = np.flatnonzero(self._is_due[count])
        lengths = _padded(count[due])
        for length in sorted({*lengths.tolist()}):
            most = (1 if self.on_cpu else ON_GPU) * REFITTED // length
            own = due[lengths == length]
            for first in range(0, len(own), most):
                part = own[first : first + most]
                self._refit(slots[part], count[part], length)

    def _refit(self, slots: NDArray, count: NDArray, length: int) -> None:
        """Refit events, their prefixes padded to `length`, and hear the expert."""
        kept, place = np.minimum(count, MAX_HISTORY)[:, None], np.arange(length)
        past = (count[:, None] - kept + np.minimum(place, kept - 1)) % MAX_HISTORY
        index = slots[:, None] * MAX_HISTORY + past
        times, bright, sigma = (torch.as_tensor(self._take(name, index)).double() for name in KEPT)
        own = torch.from_numpy(place < kept).to(times.device)
        bright, root = (torch.where(own, x, 0.0) for x in (bright, 1 / sigma))
        fits = _unpacked(torch.as_tensor(self._take("fits", slots)))
        first = torch.from_numpy(count == next_refit_epoch(0)).to(times.device)
        begun = prior_fits(len(slots), times[:, -1]).theta
        fits = fits._replace(theta=torch.where(first[:, None, None], begun, fits.theta))
        blended = torch.full((len(slots),), self.blended, device=times.device)
        counts = torch.from_numpy(count).to(times.device)
        fits, maps, fit_summary = refit_and_map(fits, counts, times, bright, root, blended)
        self._put("fits", slots, self._own(_packed(fits)))
        self._put("said", slots, self._own(self.residual_encoder(maps, fit_summary)))

    def _residual_features(self, slots: NDArray, num: int) -> Tensor:
        """The latest epoch against the fits in force, and what the expert last said."""
        embedding = torch.as_tensor(self._take("said", slots))
        last = slots[:, None] * MAX_HISTORY + (self.count[slots] - 1)[:, None] % MAX_HISTORY
        times, bright, sigma = (torch.as_tensor(self._take(name, last)).double() for name in KEPT)
        fits = _unpacked(torch.as_tensor(self._take("fits", slots)))
        columns, fits = innovation_features(fits, times, bright, 1 / sigma)
        self._put("fits", slots[:num], self._own(_packed(fits)))
        begun = torch.as_tensor(self.count[slots] >= next_refit_epoch(0), device=embedding.device)
        columns = columns[:, 0].float().nan_to_num_(0.0, 0.0, 0.0) * begun[:, None]
        return torch.cat([columns, embedding], dim=1)

    def _write(
        self, slots: NDArray, phase: NDArray, count: NDArray, epochs: Sequence[NDArray]
    ) -> None:
        """Put an epoch behind each event's past; full rows are moved back first."""
        full = slots[(phase == 0) & (count > 1)]
        places = slots * ROW + RECENT + phase
        for name, values in zip(EPOCH, epochs, strict=False):
            if len(full):
                rows = self.slabs[name].reshape(-1, ROW)
                index = self._index(full)
                rows[index, :RECENT] = rows[index, SHIFT:]
            self._put(name, places, self._values(name, values))

    def _values(self, name: str, values: NDArray) -> Array:
        values = np.asarray(values, self.shapes[name][1])[:, None]
        return values if self.on_cpu else torch.from_numpy(values).to(self.device)

    def _past(self, name: str, slots: NDArray, phase: NDArray) -> Tensor:
        rings = self.rings[name]
        return torch.as_tensor(self._take(name, slots[:, None] * rings.tokens + rings.read[phase]))

    def _keep(self, name: str, slots: NDArray, phase: NDArray, tokens: Tensor) -> None:
        rings = self.rings[name]
        index = slots[:, None] * rings.tokens + rings.write[phase]
        self._put(name, index.reshape(-1), self._own(tokens[: len(slots)].flatten(0, 1)))

    def _own(self, values: Tensor) -> Array:
        """Values of the step as the slabs are: numpy's on a CPU."""
        return values.numpy() if self.on_cpu else values

    def _index(self, index: NDArray) -> Array:
        return index if self.on_cpu else torch.from_numpy(index).to(self.device)

    def _take(self, name: str, index: NDArray) -> Array:
        """Rows of a slab, (*index, width); the axis of a width of one is left out."""
        slab = self.slabs[name]
        if self.on_cpu:
            return slab.take(index, axis=0) if slab.shape[1] > 1 else slab.take(index)
        rows = slab.index_select(0, self._index(index.reshape(-1)))
        return rows.view(*index.shape, *slab.shape[1:][: slab.shape[1] > 1])

    def _put(self, name: str, index: NDArray, values: Array) -> None:
        """Write the first len(index) rows of `values`."""
        slab, values = self.slabs[name], values[: len(index)]
        if self.on_cpu:
            slab[index] = values
        else:
            slab.index_copy_(0, self._index(index), values)

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered, by name; views of the slabs, not copies."""
        kept = {
            name: torch.as_tensor(slab[: self.used * self.shapes[name][0][0]])
            for name, slab in self.slabs.items()
        }
        return kept | {"count": torch.from_numpy(self.count[: self.used])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave; everything remembered before is forgotten."""
        self.used, self.count = 0, np.zeros(0, np.int64)
        self.slabs = {name: self._zeros(0, name) for name in self.shapes}
        used = len(tensors["count"])
        self.reserve(used)
        self.used = used
        self.count[:] = tensors["count"].numpy()
        for name, slab in self.slabs.items():
            slab[:] = tensors[name].numpy() if self.on_cpu else tensors[name]


def _padded(count: NDArray) -> NDArray:
    """The length that prefixes of so many epochs are padded to, by nothing but their own count."""
    return LENGTHS[np.searchsorted(LENGTHS[:-1], count)]


def _packed(fits: Fits) -> Tensor:
    """Fits of B events as rows (B, NUM_FITS)."""
    return torch.cat([*(x.flatten(1) for x in fits[:3]), fits.count[:, None]], dim=1)


def _unpacked(rows: Tensor) -> Fits:
    theta, covariance, since, count = rows.split((8, 32, 4, 1), dim=1)
    return Fits(
        theta.unflatten(1, (2, 4)),
        covariance.unflatten(1, (2, 16)),
        since.unflatten(1, (2, 2)),
        count[:, 0],
    )


def _weighed(times: Array, weight: Array, bright: Array, origin: Array) -> Array:
    """Weight, weight x brightening, weight x time since `origin` (B,): each (B, R), stacked."""
    xp = library(times)
    heavy = weight.astype(float) if xp is np else weight.double()
    return xp.stack([heavy, heavy * bright, heavy * (times - origin[:, None])], axis=1)
