"""Cache of the streaming classifier: fixed-size state of every event, and how it advances.

The state of an event is as large at its first epoch as at its millionth. Ring buffers hold the last
epochs, cumulative sums that features need, and for each block of the network the tokens of its past
that its convolution sees: a new entry is written over the oldest. Beside them lie the active
point-lens fits and the embedding of the last refit.

Axes: B events of a call, K tokens. A buffer holds one quantity of all events, event by event.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensml import network as net
from lensml.network import FEATURE_WINDOW, MAX_HISTORY, NUM_BINS, PATCH_SIZE, Fits, Network

CHUNK = 512  # events that advance together on a CPU: what they touch then stays in its cache
# Lengths to which prefixes are padded before a refit: few, as each group of a length costs most.
LENGTHS = np.array([256, 512, 1024, MAX_HISTORY])
REFITTED = 2**17  # epochs, pads included, that are refitted together: bounds the memory
ON_GPU = 64  # times as many
MAX_MAG = 1e3  # brightening is clipped to this [mag]: sums must not keep what has no float32
# Epochs back from the last one to the edges of the bins of each width but the first.
EDGES = np.array([[k * width for width in net.BIN_WIDTHS[1:]] for k in range(NUM_BINS + 1)])


def completed_levels(count: int, num_levels: int) -> int:
    """Levels whose tokens end with the epoch number `count` (from 1)."""
    groups, rest = divmod(count, PATCH_SIZE)
    return 0 if rest else min((groups & -groups).bit_length(), num_levels)


class RingLayout:
    """Where the tokens that `Network.step` reads and writes lie in an event's row of `tokens`.

    A ring for each block, then single tokens. Places by phase: `read` (phases, K), two tokens of
    each block, then the single ones; `write` (phases, K'), new tokens of blocks, then the group's.
    """

    def __init__(self, pasts: list[int], phases: int, singles: int, rotating: int) -> None:
        starts = np.cumsum([0, *pasts])
        self.tokens = int(starts[-1]) + singles
        own = range(int(starts[-1]), self.tokens)
        rings, read, write = list(zip(pasts, starts, strict=False)), [], []
        for phase in range(phases):
            old = [s + (phase + half) % past for past, s in rings for half in (0, past // 2)]
            new = [s + phase % past for past, s in rings]
            read.append([*old, *own])
            write.append([*new, own[phase % rotating]] if rotating else new)
        self.read, self.write = np.array(read), np.array(write)


class EventCache:
    """Slots for events; each call of `advance` takes one more epoch of some of them.

    The network moves to `device` (None = where it is); `blended`: f_s may be less than 1.
    """

    def __init__(
        self, network: Network, device: str | torch.device | None = None, blended: bool = True
    ) -> None:
        self.device = torch.device(device or next(network.parameters()).device)
        self.on_cpu = self.device.type == "cpu"
        self.network, self.blended = network.to(self.device).eval(), blended
        config = network.config
        self.has_refits = config.embedding_channels > 0
        self.history = MAX_HISTORY if self.has_refits else NUM_BINS  # epochs kept
        # Rings of tokens: of the stem at every epoch, of a level at every token of it.
        stem, last = [block.past for block in network.stem], config.num_levels - 1
        self.rings = {"near": RingLayout(stem, PATCH_SIZE, PATCH_SIZE - 1, PATCH_SIZE - 1)}
        for k in range(config.num_levels):
            pasts = [block.past for block in (*network.encoder[k], *network.decoder[k])]
            self.rings[f"level{k}"] = RingLayout(pasts, 2, 2 * (k < last), int(k < last))
        #: Of each buffer its entries an event, the shape of an entry and its type.
        self.shapes = {
            name: (ring.tokens, (config.channels,), np.float32) for name, ring in self.rings.items()
        }
        self.shapes |= {
            "near": (self.rings["near"].tokens, (config.stem_channels,), np.float32),
            "context": (1, (config.channels,), np.float32),
            "times": (self.history, (), np.float64),
            "photometry": (self.history, (2,), np.float32),  # brightening and error [mag]
            "totals": (FEATURE_WINDOW, (3,), np.float64),  # of weight, and times bright and time
        }
        if self.has_refits:
            self.shapes |= {
                "theta": (1, (2, 4), np.float64),
                "covariance": (1, (2, 16), np.float64),
                "innovation_sums": (1, (2, 2), np.float64),
                "epochs_since_fit": (1, (), np.float64),
                "embedding": (1, (config.channels,), np.float32),
            }
        self.buffers = {name: self._zeros(0, name) for name in self.shapes}
        self.used, self.count, self.first = 0, np.zeros(0, np.int64), np.zeros(0)
        cycle = PATCH_SIZE << last
        depths = [completed_levels(n or cycle, config.num_levels) for n in range(cycle)]
        self._depths, self._is_due = np.array(depths), np.zeros(0, bool)

    @property
    def bytes_per_event(self) -> int:
        """Bytes of one slot, at any number of epochs."""
        sizes = (n * np.dtype((kind, shape)).itemsize for n, shape, kind in self.shapes.values())
        return 16 + sum(sizes)

    def _zeros(self, capacity: int, name: str) -> Tensor:
        """A buffer, (capacity x entries, ...): numpy's zeros cost no memory until written to."""
        entries, shape, kind = self.shapes[name]
        return torch.from_numpy(np.zeros((capacity * entries, *shape), kind)).to(self.device)

    def reserve(self, capacity: int) -> None:
        """Make room for so many events, buffer by buffer: never twice the whole in memory."""
        more = capacity - len(self.count)
        if more <= 0:
            return
        for name, (entries, *_) in self.shapes.items():
            larger = self._zeros(capacity, name)
            larger[: self.used * entries] = self.buffers[name][: self.used * entries]
            self.buffers[name] = larger
        self.count = np.concatenate([self.count, np.zeros(more, np.int64)])
        self.first = np.concatenate([self.first, np.zeros(more)])

    def new_slots(self, number: int) -> range:
        """Slots for so many further events; room grows by doubling."""
        last = self.used + number
        if last > len(self.count):
            self.reserve(max(last, 2 * len(self.count), 16))
        self.used = last
        return range(last - number, last)

    @np.errstate(all="ignore")  # magnitudes beyond float32
    @torch.inference_mode()
    def advance(
        self, slots: NDArray, times: NDArray, bright: NDArray, sigma: NDArray
    ) -> NDArray[np.float64]:
        """Take one epoch of the events in these slots (B,), none twice; P(binary), (B,).

        `times` (B,) [day] are later than the ones before, `bright` is baseline minus magnitude and
        `sigma` its error, each (B,) [mag].
        """
        count = self.count[slots] = self.count[slots] + 1
        photometry = np.stack([np.clip(bright, -MAX_MAG, MAX_MAG), sigma], axis=1, dtype=np.float32)
        np.maximum(photometry[:, 1], np.float32(1e-3), out=photometry[:, 1])
        self.first[slots] = np.where(count == 1, times, self.first[slots])
        # Events that complete most levels first, so that those of a level are the first rows.
        depth = self._depths[count % len(self._depths)]
        order, answers = np.argsort(-depth, kind="stable"), np.empty(len(slots))
        together = CHUNK if self.on_cpu else max(len(order), 1)
        with net.one_thread():
            for first in range(0, len(order), together):
                part = order[first : first + together]
                epochs = times[part], photometry[part]
                answers[part] = self._advance(slots[part], count[part], depth[part], *epochs)
        return answers

    def _advance(
        self, slots: NDArray, count: NDArray, depth: NDArray, times: NDArray, photometry: NDArray
    ) -> NDArray:
        """`advance` of some events together."""
        features = self._features(slots, count, times, photometry)
        innovations = embedding = None
        if self.has_refits:
            self._refit_those_due(slots, count)
            innovations, embedding = self._residual_features(slots, count, times, photometry)
        # Gather the tokens of the past that this epoch needs.
        phase = (count - 1) % PATCH_SIZE
        near, levels, phases = self._gather("near", slots, phase), [], []
        for k in range(int(depth[0])):
            n = int(np.count_nonzero(depth > k))
            phases.append((count[:n] // (PATCH_SIZE << k) - 1) % 2)
            levels.append(self._gather(f"level{k}", slots[:n], phases[k]))
        context = self._take("context", slots)
        step = self.network.step(features, innovations, embedding, near, context, levels)
        logits, stem, tokens, sent = step
        # Write the new ones over the oldest; what a level sends is held by the finer one.
        self._scatter("near", slots, phase, stem)
        for k, phase in enumerate(phases):
            own = slots[: len(phase)]
            self._scatter(f"level{k}", own, phase, tokens[k])
            finer = f"level{k - 1}" if k else "context"
            entries = self.shapes[finer][0]
            self._put(finer, own * entries + entries - 1, sent[k])
        return torch.sigmoid(logits).double().cpu().numpy()

    def _features(
        self, slots: NDArray, count: NDArray, times: NDArray, photometry: NDArray
    ) -> Tensor:
        """Append an epoch of each event to its history and sums; its features (B, F)."""
        # Cumulative sums as `encode` takes them: weight, weight x brightening, weight x time.
        bright, sigma = photometry.astype(np.float64).T
        weight = np.maximum(sigma**-2.0, 1e-30)
        terms = np.stack([weight, weight * bright, weight * (times - self.first[slots])], axis=1)
        ring, now = slots * FEATURE_WINDOW, count - 1
        before = self._take("totals", ring + (now - 1) % FEATURE_WINDOW)
        self._put("totals", ring + now % FEATURE_WINDOW, before + self._own(terms))
        # The last epochs.
        place = slots * self.history + now % self.history
        self._put("times", place, self._own(times))
        self._put("photometry", place, self._own(photometry))
        last = slots * self.history + (now - np.arange(NUM_BINS)[:, None]) % self.history
        bright, sigma = self._take("photometry", last).double().unbind(2)
        totals = self._take("totals", ring + (now - EDGES[..., None]) % FEATURE_WINDOW)
        inputs = bright, sigma, self._take("times", last), totals, self._own(count)
        if self.on_cpu:
            return torch.from_numpy(net.encode_latest(*(x.numpy() for x in inputs))).float()
        return net.encode_latest(*inputs).float()

    def _refit_those_due(self, slots: NDArray, count: NDArray) -> None:
        """Refit events that the schedule refits now, in groups of the same padded length."""
        if len(count) and count.max() >= len(self._is_due):
            most = 2 * int(count.max())
            self._is_due = np.isin(np.arange(most), net.refit_schedule(most))
        due = np.flatnonzero(self._is_due[count])
        lengths = LENGTHS[np.searchsorted(LENGTHS[:-1], count[due])]
        for length in sorted({*lengths.tolist()}):
            most = (1 if self.on_cpu else ON_GPU) * REFITTED // length
            own = due[lengths == length]
            for first in range(0, len(own), most):
                part = own[first : first + most]
                self._refit(slots[part], count[part], length)

    def _refit(self, slots: NDArray, count: NDArray, length: int) -> None:
        """Refit events, their prefixes padded to `length`, and embed the residual maps."""
        # Epochs in time order, the last one repeated behind them without weight.
        kept, place = np.minimum(count, self.history)[:, None], np.arange(length)
        past = (count[:, None] - kept + np.minimum(place, kept - 1)) % self.history
        index = slots[:, None] * self.history + past
        times, photometry = self._take("times", index), self._take("photometry", index).double()
        bright, root = photometry[..., 0], photometry[..., 1].reciprocal()
        bright, root = (torch.where(self._own(place < kept), x, 0.0) for x in (bright, root))
        # Begin from the active fits, a first refit from the prior.
        fits, begin = self._fits(slots), net.prior_fits(len(slots), times[:, -1]).theta
        is_first = self._own(count == net.next_refit_epoch(0))[:, None, None]
        fits = fits._replace(theta=torch.where(is_first, begin, fits.theta))
        blended = torch.full((len(slots),), self.blended, device=self.device)
        counts = self._own(count)
        fits, maps, fit_summary = net.refit_and_map(fits, counts, times, bright, root, blended)
        for name, values in fits._asdict().items():
            self._put(name, slots, values)
        maps, fit_summary = maps.nan_to_num_(), fit_summary.nan_to_num_()
        self._put("embedding", slots, self.network.embed_refits(maps, fit_summary))

    def _residual_features(
        self, slots: NDArray, count: NDArray, times: NDArray, photometry: NDArray
    ) -> tuple[Tensor, Tensor]:
        """Innovations (B, I) of the latest epoch, and the embedding (B, C) of the last refit."""
        times, photometry = self._own(times)[:, None], self._own(photometry).double()
        bright, root = photometry[:, :1], photometry[:, 1:].reciprocal()
        innovations, fits = net.innovation_features(self._fits(slots), times, bright, root)
        self._put("innovation_sums", slots, fits.innovation_sums)
        self._put("epochs_since_fit", slots, fits.epochs_since_fit)
        has_fit = self._own(count >= net.next_refit_epoch(0))[:, None]
        innovations = innovations[:, 0].float().nan_to_num_(0.0, 0.0, 0.0) * has_fit
        return innovations, self._take("embedding", slots)

    def _fits(self, slots: NDArray) -> Fits:
        return Fits(*(self._take(name, slots) for name in Fits._fields))

    def _own(self, values: NDArray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _gather(self, name: str, slots: NDArray, phase: NDArray) -> Tensor:
        """Tokens that `Network.step` reads, (B, K, C)."""
        ring = self.rings[name]
        return self._take(name, slots[:, None] * ring.tokens + ring.read[phase])

    def _scatter(self, name: str, slots: NDArray, phase: NDArray, tokens: Tensor) -> None:
        """Write the tokens (B, K', C) that `Network.step` returned."""
        ring = self.rings[name]
        self._put(name, slots[:, None] * ring.tokens + ring.write[phase], tokens)

    def _take(self, name: str, index: NDArray) -> Tensor:
        """Entries of a buffer, (*index, ...)."""
        buffer = self.buffers[name]
        if self.on_cpu:  # numpy takes few entries in a quarter of the time
            return torch.from_numpy(buffer.numpy().take(index, axis=0))
        return buffer[self._own(index)]

    def _put(self, name: str, index: NDArray, values: Tensor) -> None:
        """Write entries (*index, ...) of a buffer."""
        if self.on_cpu:
            self.buffers[name].numpy()[index] = values.numpy()
        else:
            self.buffers[name][self._own(index)] = values

    def tensors(self) -> dict[str, Tensor]:
        """All that is kept, by name; views of the buffers, not copies."""
        used = self.used
        kept = {name: x[: used * self.shapes[name][0]] for name, x in self.buffers.items()}
        host = {"count": self.count, "first": self.first}
        return kept | {name: torch.from_numpy(x[:used]) for name, x in host.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave in place of all that is kept."""
        self.used, self.count, self.first = 0, np.zeros(0, np.int64), np.zeros(0)
        self.buffers = {name: self._zeros(0, name) for name in self.shapes}
        used = len(tensors["count"])
        self.reserve(used)
        self.used = used
        self.count[:], self.first[:] = tensors["count"].numpy(), tensors["first"].numpy()
        for name, buffer in self.buffers.items():
            buffer[:] = tensors[name]
