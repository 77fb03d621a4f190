"""What a stream keeps of its events, of constant size, and one more epoch of many of them.

An event lives in a slot, a row of each array. It keeps its history for the next refit (`Histories`
of `network.inputs`), the tokens that the dilated blocks of the temporal branch look back at,
and the embedding of its last refit. A slot that an event leaves is cleared for the next one.

Axes: n entries of a call, S slots, K data sets at most, C channels, E of an embedding.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lensml.lensing import QUICK
from lensml.limits import MOST_SETS
from lensml.network import (
    NUM_CHANNELS,
    NUM_INPUTS,
    NUM_STATE,
    NUM_SUMMARY,
    PHASE_BINS,
    Histories,
    Network,
    new_histories,
    one_thread,
    take_epoch,
)
from lensml.paths import available_cores, renew_compiled

renew_compiled(__file__, take_epoch.py_func.__code__.co_filename)
FEWEST_ENTRIES = 64  # of a call, for each thread
RAGGED = ("times", "bright", "weight", "owner")  # arrays of a history that are used in part


@njit(**QUICK)
def _take_epochs(
    h, slots, sets, times, bright, weight, free, rows, inputs, maps, summaries, states
):
    """`take_epoch` of each entry; refits write into row `rows` (n,) of the others."""
    for i in range(len(slots)):
        j = max(rows[i], 0)
        take_epoch(
            h, slots[i], sets[i], times[i], bright[i], weight[i], free, inputs[i], maps[j],
            summaries[j], states[j],
        )  # fmt: skip


class EventCache:
    """Events of one network; `free` whether f_s may be less than 1."""

    def __init__(self, network: Network, *, free: bool = True) -> None:
        self.network, self.free, self.num_slots = network, free, 0
        self.histories = new_histories(0, 1)
        self._rings, self._idle = _rings(network)
        self.tokens = torch.empty(0, *self._idle.shape)
        self.embedding = torch.empty(0, network.embedding_size)
        self.fitted = np.zeros(0, dtype=np.int64)  # epochs at the last refit
        self._pool = ThreadPoolExecutor(available_cores())

    @property
    def bytes_per_event(self) -> int:
        """Bytes of a slot at most, with the data sets there is room for."""
        if not len(self.fitted):
            self._grow(8, 1)
        return sum(x.nbytes for x in self._arrays().values()) // len(self.fitted)

    def new_slot(self) -> int:
        """A slot for an event without epochs."""
        slot = self.num_slots
        if slot == len(self.fitted):
            self._grow(max(8, 2 * slot), self.histories.width.shape[1])
        self.num_slots += 1
        return slot

    def _grow(self, slots: int, sets: int) -> None:
        """Make room; pages of a history that no epoch has touched take no memory."""
        old, self.histories = self.histories, new_histories(slots, sets)
        used = int(old.used[: self.num_slots].max(initial=0))
        for name in Histories._fields:
            before, after = getattr(old, name), getattr(self.histories, name)
            if name in RAGGED:
                before = before[:, :used]
            after[tuple(slice(n) for n in before.shape)] = before
        more = slots - len(self.fitted)
        self.tokens = torch.cat([self.tokens, self._idle.expand(more, -1, -1)])
        empty = self.embedding.new_zeros(more, self.embedding.shape[1])
        self.embedding = torch.cat([self.embedding, empty])
        self.fitted = np.concatenate([self.fitted, np.zeros(more, dtype=np.int64)])

    def set_width(self, slot: int, dataset: int, width: float) -> None:
        """Say how well the baseline of a new data set is known [mag]."""
        if dataset >= (room := self.histories.width.shape[1]):
            self._grow(len(self.fitted), min(MOST_SETS, max(4 * room, dataset + 1)))
        self.histories.width[slot, dataset] = width

    @one_thread()
    @torch.no_grad()
    def advance(
        self, slots: NDArray, sets: NDArray, times: NDArray, bright: NDArray, weight: NDArray
    ) -> Tensor:
        """Logits (n, 5) after one more epoch of each slot, none of which comes twice.

        `sets` (n,) numbers of data sets, `times` (n,) [day], `bright` (n,) float32 zero point minus
        magnitude [mag], `weight` (n,) float32 1 / quoted error [1 / mag]. Before the first refit
        logits mean nothing.
        """
        h = self.histories
        before = h.count[slots]
        due = np.flatnonzero(before + 1 == h.due[slots])
        rows = np.full(len(slots), -1)
        rows[due] = np.arange(len(due))
        room = max(1, len(due))
        shapes = (len(slots), NUM_INPUTS), (room, NUM_CHANNELS, PHASE_BINS)
        shapes += (room, NUM_SUMMARY), (room, NUM_STATE)
        outputs = [np.zeros(shape, dtype=np.float32) for shape in shapes]
        times = np.ascontiguousarray(times)  # of one entry it is, and that would compile again
        columns = slots, sets, times, bright.astype(float), weight.astype(float)

        def take(part: slice) -> None:
            mine = [x[part] for x in columns]
            _take_epochs(h, *mine, self.free, rows[part], outputs[0][part], *outputs[1:])

        size = max(FEWEST_ENTRIES, -(-len(slots) // self._pool._max_workers))
        list(self._pool.map(take, [slice(k, k + size) for k in range(0, len(slots), size)]))
        for values in outputs:
            np.nan_to_num(values, copy=False, nan=0.0, posinf=10.0, neginf=-10.0)
        inputs, *refits = map(torch.from_numpy, outputs)
        if len(due):
            self.embedding[slots[due]] = self.network.embed_refits(*refits)
            self.fitted[slots[due]] = before[due] + 1
        # The temporal branch: each block with its tokens two and one dilations ago.
        x, tokens = self.network.embed(inputs), self.tokens.flatten(0, 1)  # a view: rows of tokens
        begin = slots * self.tokens.shape[1]
        for block, (first, size) in zip(self.network.blocks, self._rings, strict=True):
            oldest = torch.from_numpy(begin + first + before % size)
            newer = torch.from_numpy(begin + first + (before + size // 2) % size)
            past = [tokens.index_select(0, rows) for rows in (oldest, newer)]
            x, normed = block.step(x, torch.cat(past, dim=1))
            tokens.index_copy_(0, oldest, normed)
        held = torch.from_numpy((before + 1 - self.fitted[slots]).clip(0, 255))
        embedding = self.embedding.index_select(0, torch.from_numpy(slots))
        return self.network.join(x, embedding, held)

    def _arrays(self) -> dict[str, NDArray]:
        """All that is kept, a row of each array a slot."""
        more = {"tokens": self.tokens.numpy(), "embedding": self.embedding.numpy()}
        return self.histories._asdict() | more | {"fitted": self.fitted}

    def tensors(self) -> dict[str, Tensor]:
        """All that is kept; histories one behind the other."""
        found = {name: x[: self.num_slots] for name, x in self._arrays().items()}
        kept = np.arange(found["times"].shape[1]) < found["used"][:, None]
        found |= {name: found[name][kept] for name in RAGGED}
        return {name: torch.from_numpy(x) for name, x in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave in place of all that is kept."""
        n, sets = tensors["width"].shape
        self.histories, self.num_slots = new_histories(0, 1), n
        self.tokens, self.embedding = self.tokens[:0], self.embedding[:0]
        self.fitted = self.fitted[:0]
        self._grow(max(8, n), sets)
        kept = np.arange(self.histories.times.shape[1]) < tensors["used"].numpy()[:, None]
        for name, x in self._arrays().items():
            x[:n][kept if name in RAGGED else slice(n)] = tensors[name].numpy()

    def clear(self, slots: NDArray) -> None:
        """Make slots those of events without epochs."""
        blank = new_histories(1, self.histories.width.shape[1])._asdict()
        blank |= {"tokens": self._idle, "embedding": 0, "fitted": 0}
        for name, x in self._arrays().items():
            if name not in RAGGED:
                x[slots] = blank[name]

    def pack(self, slots: NDArray) -> list[bytes]:
        """All that is kept of each of some slots, as one row of bytes."""
        fixed, sets = self._arrays(), self.histories.width.shape[1]
        ragged, used = [fixed.pop(name) for name in RAGGED], self.histories.used
        columns = [np.full(len(slots), sets), *(x[slots] for x in fixed.values())]
        flat = np.hstack([x.reshape(len(slots), -1).view(np.uint8) for x in columns])
        rows = zip(flat, slots, strict=True)
        return [b"".join([row, *(x[i, : used[i]] for x in ragged)]) for row, i in rows]

    def unpack(self, slots: NDArray, packed: Sequence[memoryview]) -> None:
        """Take up in cleared slots what `pack` gave, perhaps with room for fewer data sets."""
        rooms = np.array([int.from_bytes(row[:8], "little") for row in packed])
        if (most := int(rooms.max())) > self.histories.width.shape[1]:
            self._grow(len(self.fitted), most)
        fixed = self._arrays()
        ragged = [fixed.pop(name) for name in RAGGED]
        for room in set(rooms.tolist()):
            mine, like, end = np.flatnonzero(rooms == room), new_histories(1, room)._asdict(), 8
            like = {name: like.get(name, x[:1]) for name, x in fixed.items()}
            size = 8 + sum(x.nbytes for x in like.values())
            flat = np.stack([np.frombuffer(packed[i], np.uint8, size) for i in mine])
            for name, x in like.items():
                begin, end = end, end + x.nbytes
                values = np.ascontiguousarray(flat[:, begin:end]).view(x.dtype)
                shape = x.shape[1:]
                fixed[name][slots[mine], *map(slice, shape)] = values.reshape(-1, *shape)
            for i in mine:
                at, used = size, self.histories.used[slots[i]]
                for x in ragged:
                    x[slots[i], :used] = np.frombuffer(packed[i], x.dtype, used, at)
                    at += used * x.itemsize


@torch.no_grad()
def _rings(network: Network) -> tuple[list[tuple[int, int]], Tensor]:
    """First token and number of tokens of each block, and the tokens (62, C) of an empty past.

    Before the first epoch inputs are zeros, whose tokens are constant.
    """
    x, rings, tokens = network.embed(torch.zeros(1, NUM_INPUTS)), [], []
    for block in network.blocks:
        normed = block.norm(x)
        rings.append((sum(size for _, size in rings), 2 * block.dilation))
        tokens.append(normed.expand(2 * block.dilation, -1))
        x, _ = block.step(x, torch.cat([normed, normed], dim=1))
    return rings, torch.cat(tokens)
