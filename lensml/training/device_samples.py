"""Training samples made on the device that trains: the kernels' side of `samples`.

The same samples as `cut_samples` cuts on a CPU, of many events at once; only what is drawn differs,
for it comes from a generator of the device.

Axes: R rows (events), N epochs, S samples, P pairs, T grid epochs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lensml.network import (
    CLASSES,
    GIVEN,
    RECEPTIVE_FIELD,
    STEP,
    PackedEvents,
    fit_events,
    innovations,
    joint_epochs,
    map_refits,
    pack_events,
    pack_rows,
)
from lensml.simulation import Draws, Survey, draw_torch, observe
from lensml.training.data import UNKNOWN_MASS
from lensml.training.samples import LATE, Observation, Samples


class DevicePairs(NamedTuple):
    """`Pairs` of `data` as tensors; `of` takes some of them to a device."""

    values: Tensor  # (P, 2, T) magnitude less baseline: noise-free, or with gaps (NaN)
    sigma: Tensor | None  # (P, 2, T) of what was observed [mag]; None = noise-free
    second: Tensor  # (P,) int64 class of the second row; 0 = a contaminant, in the loss alone
    blended: Tensor  # (P,) bool
    begins: Tensor  # (P,) [day]

    def of(self, places: NDArray, device: torch.device) -> "DevicePairs":
        """Pairs at `places` on a device."""
        index = torch.from_numpy(places)
        return DevicePairs(*(x if x is None else x[index].to(device) for x in self))


class BatchDraws(NamedTuple):
    """Random numbers of P pairs: whatever part of them a process has, it has the same ones."""

    survey: Draws
    hidden: Tensor  # (P,) uniform, whether blending is
    epochs: Tensor  # (2, 2 P, M) uniform, where samples are cut

    def part(self, first: int, stop: int) -> "BatchDraws":
        """Draws of the pairs from `first` to `stop`."""
        rows = slice(2 * first, 2 * stop)
        pair, *other = self.survey
        survey = Draws(pair[first:stop], *(x if x is None else x[rows] for x in other))
        return BatchDraws(survey, self.hidden[first:stop], self.epochs[:, rows])


class ObservedRows(NamedTuple):
    """Rows on a device, and what an observer who knows both curves of a pair believes of them."""

    events: PackedEvents
    ratio: Tensor  # (R, N) ln L(second curve) - ln L(first) of the epochs so far, in order of time
    labels: Tensor  # (R,) int64, class of the event
    of_pair: Tensor  # (R,) int64, class of its pair's second curve; 0: the target is the label
    begins: Tensor  # (R,) int64, the first epoch after the event has begun
    exact: Tensor  # (R,) bool, baselines and errors hold exactly
    row: Tensor  # (R,) int64, of the pairs' 2 P rows


def draw_batch(
    num_pairs: int, num_epochs: int, per_curve: int, generator: torch.Generator, survey: Survey
) -> BatchDraws:
    """All that is drawn for pairs, from one generator, on its device."""
    draws = draw_torch(num_pairs, num_epochs, generator, outliers=survey.outlier_fraction > 0)
    options = {"generator": generator, "device": generator.device}
    hidden = torch.rand(num_pairs, **options)
    return BatchDraws(draws, hidden, torch.rand(2, 2 * num_pairs, per_curve, **options))


def joined_draws(parts: Sequence[BatchDraws]) -> BatchDraws:
    """Draws of several batches behind one another."""
    columns = zip(*(part.survey for part in parts), strict=True)
    survey = Draws(*(None if c[0] is None else torch.cat(c) for c in columns))
    hidden, epochs = (torch.cat([p[k] for p in parts], dim=k - 1) for k in (1, 2))
    return BatchDraws(survey, hidden, epochs)


def draw_epochs(rows: ObservedRows, uniform: Tensor, last: bool = False) -> tuple[Tensor, Tensor]:
    """Rows (R',) that have a refit, and epochs (R', M) of samples as `cut_samples` draws.

    `uniform` (2, 2 P, M) of all rows of the pairs.
    """
    kept = torch.nonzero(rows.events.refits > 0)[:, 0]
    total = rows.events.total[kept, None]
    late, where = uniform[:, rows.row[kept]]
    first = torch.minimum(rows.begins[kept, None], total - 1).clamp_min(STEP - 1)
    low = torch.where(late < LATE, first, STEP - 1)
    epoch = torch.minimum(low + (where * (total - low)).long(), total - 1)
    if last:
        epoch[:, -1] = total[:, 0] - 1
    return kept, epoch


def samples_at(rows: ObservedRows, kept: Tensor, epoch: Tensor) -> Samples:
    """Samples at epochs (R', M) of rows (R',), one row behind the other, as tensors."""
    events = rows.events
    active = torch.searchsorted(events.counts, (epoch + 1).int(), right=True) - 1
    # Refits after the last sample are not made.
    needed = torch.zeros_like(events.refits)
    needed[kept] = active.max(1).values.int() + 1
    found = fit_events(events._replace(refits=needed))
    index = kept[:, None].expand(epoch.shape).flatten()
    epoch, active = epoch.flatten(), active.flatten()
    inputs = F.pad(innovations(events, found), (0, 0, RECEPTIVE_FIELD - 1, 0))
    span = torch.arange(RECEPTIVE_FIELD, device=epoch.device)
    windows = inputs[index[:, None], epoch[:, None] + span]
    half = (x.half() for x in (windows, *map_refits(events, found, index, active)))
    held = (epoch + 1 - events.counts[active]).clamp_max(255).to(torch.uint8)
    labels, of_pair = rows.labels[index], rows.of_pair[index]
    second = torch.sigmoid(rows.ratio[index, epoch].clamp(-60, 60))
    soft = of_pair > 0
    place = torch.where(soft, of_pair, labels)
    unknown = place == UNKNOWN_MASS  # of any q: half planetary, half stellar
    place = torch.where(unknown, 2, place)
    targets = F.one_hot(place, len(CLASSES)) * torch.where(soft, second, 1.0)[:, None]
    targets[:, 0] += torch.where(soft, 1 - second, 0.0)
    targets[:, 1] += torch.where(unknown, targets[:, 2] / 2, 0.0)
    targets[:, 2] *= torch.where(unknown, 0.5, 1.0)
    labels = torch.where(labels == UNKNOWN_MASS, 2, labels).to(torch.uint8)
    return Samples(*half, held, targets, labels, rows.exact[index])


def observe_pairs(
    pairs: DevicePairs, times: Tensor, survey: Survey, draws: Draws, free: Tensor
) -> ObservedRows:
    """Rows of pairs that count, observed anew by `survey` where they are noise-free.

    `times` (T,) [day]; `free` (P,) bool, whether f_s is.
    """
    values, sigma, second, _, begins = pairs
    clean, soft = values.flatten(0, 1), sigma is None and survey.exact and not survey.photon_noise
    if sigma is None:
        delta, errors, seen = observe(clean, draws, survey, times)
    else:
        delta, errors, seen = clean, sigma.flatten(0, 1), clean.isfinite()
    counted = torch.ones(len(values), 2, dtype=torch.bool, device=values.device)
    counted[:, 0] = second > 0  # a contaminant's single lens does not
    row = torch.nonzero(counted.flatten())[:, 0]
    pair, is_second = row // 2, row % 2 > 0
    delta, errors, seen = delta[row], errors[row], seen[row]
    width = 0.0 if survey.exact else GIVEN
    events = pack_rows(times, -delta, errors, seen, free[pair], width)
    ratio = torch.zeros_like(events.times)
    if soft:
        one, two = ((delta - values[pair, k]).double() / errors for k in (0, 1))
        terms = torch.where(seen, (one * one - two * two) / 2, 0)
        order = torch.argsort(~seen, dim=1, stable=True)[:, : ratio.shape[1]]
        ratio = terms.gather(1, order).cumsum(1).float()
    starts = torch.searchsorted(times, begins.to(times.dtype))
    before = seen & (torch.arange(len(times), device=values.device) < starts[pair, None])
    binary = second[pair]
    return ObservedRows(
        events, ratio, torch.where(is_second, binary, 0),
        binary if soft else torch.zeros_like(binary), before.sum(1),
        torch.full_like(is_second, survey.exact), row,
    )  # fmt: skip


def observed_rows(seen: Sequence[tuple[Observation, int, int]]) -> ObservedRows:
    """Events that were observed elsewhere, as arrays: observation, class, class of the second.

    Arrays pass between processes; `joined_rows` makes tensors of them.
    """
    joints = [joint_epochs(one.datasets) for one, *_ in seen]
    free = [one.free for one, *_ in seen]
    events = pack_events(joints, free, torch.device("cpu"), torch.float32)
    ratio = np.zeros(tuple(events.times.shape), dtype=np.float32)
    begins = np.zeros(len(seen), dtype=np.int64)
    for row, (one, *_) in enumerate(seen):
        ratio[row, : len(one.times)] = one.ratio
        begins[row] = np.searchsorted(one.times, one.begins)
    labels, of_pair = np.array([x[1:] for x in seen], dtype=np.int64).T
    exact = np.array([all(d.exact for d in one.datasets) for one, *_ in seen])
    arrays = (x.numpy() if isinstance(x, Tensor) else x for x in events)
    row = np.arange(len(seen))
    return ObservedRows(PackedEvents(*arrays), ratio, labels, of_pair, begins, exact, row)


def joined_rows(parts: Sequence[ObservedRows], device: torch.device) -> ObservedRows:
    """Rows of `observed_rows` behind one another, as tensors on a device."""
    events = [part.events for part in parts]
    longest = max((x.counts for x in events), key=len)
    columns = {}
    for name in PackedEvents._fields[:11]:
        values = [torch.from_numpy(getattr(x, name)) for x in events]
        if name == "high":  # a refit that an event does not have is like its last
            last = [x[:, -1:].expand(-1, len(longest) - x.shape[1], -1) if x.shape[1]
                    else x.new_zeros(len(x), len(longest), x.shape[2]) for x in values]  # fmt: skip
            values = [torch.cat(pair, dim=1) for pair in zip(values, last, strict=True)]
        columns[name] = _padded(values).to(device)
    some = any(x.some_free for x in events), any(x.some_bases for x in events)
    packed = PackedEvents(**columns, counts=torch.from_numpy(longest).to(device), some_free=some[0],
                          some_bases=some[1])  # fmt: skip
    rest = ([torch.from_numpy(part[k]) for part in parts] for k in range(1, 6))
    row = torch.arange(len(packed.total), device=device)
    return ObservedRows(packed, *(_padded(values).to(device) for values in rest), row)


def _padded(values: list[Tensor]) -> Tensor:
    """Tensors behind one another, zeros where one is smaller in its other dimensions."""
    size = [max(x.shape[k] for x in values) for k in range(1, values[0].dim())]
    out = values[0].new_zeros(sum(len(x) for x in values), *size)
    first = 0
    for x in values:
        out[(slice(first, first + len(x)), *(slice(n) for n in x.shape[1:]))] = x
        first += len(x)
    return out


def rows_samples(rows: ObservedRows, per_curve: int, generator: torch.Generator) -> Samples:
    """`per_curve` samples of every row that has a refit."""
    size = (2, len(rows.labels), per_curve)
    uniform = torch.rand(size, generator=generator, device=generator.device)
    return samples_at(rows, *draw_epochs(rows, uniform))


def device_samples(
    pairs: DevicePairs,
    times: Tensor,
    survey: Survey,
    draws: BatchDraws,
    hide_blending: float = 0.0,
    last: bool = False,
) -> tuple[Samples, Tensor]:
    """`data.pair_samples` of pairs on a device, as tensors; and the pair (S,) of each sample."""
    free = pairs.blended | (draws.hidden < hide_blending)
    if not survey.exact:
        free = torch.ones_like(free)
    rows = observe_pairs(pairs, times, survey, draws.survey, free)
    kept, epochs = draw_epochs(rows, draws.epochs, last)
    of = (rows.row[kept] // 2).repeat_interleave(epochs.shape[1])
    return samples_at(rows, kept, epochs), of
