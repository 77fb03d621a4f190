"""Training samples made on the device that trains: the kernels' side of `samples`.

The same samples as `cut_samples` cuts on a CPU, of many events at once; only what is drawn differs,
for it comes from a generator of the device.

Axes: R rows (events), N epochs, S samples, P pairs, T grid epochs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lensml.network import (
    CLASSES,
    RECEPTIVE_FIELD,
    STEP,
    PackedEvents,
    fit_events,
    innovations,
    map_refits,
    pack_rows,
)
from lensml.simulation import Survey, draw_torch, observe
from lensml.training.samples import LATE, Samples


class ObservedRows(NamedTuple):
    """Rows on a device, and what an observer who knows both curves of a pair believes of them."""

    events: PackedEvents
    ratio: Tensor  # (R, N) ln L(second curve) - ln L(first) of the epochs so far, in order of time
    labels: Tensor  # (R,) int64, class of the event
    of_pair: Tensor  # (R,) int64, class of its pair's second curve; 0: the target is the label
    begins: Tensor  # (R,) int64, the first epoch after the event has begun
    exact: Tensor  # (R,) bool, baselines and errors hold exactly


def draw_epochs(
    rows: ObservedRows, per_curve: int, generator: torch.Generator, last: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows (R',) that have a refit, and epochs (R', per_curve) of samples, as `cut_samples`."""
    kept = torch.nonzero(rows.events.refits > 0)[:, 0]
    total = rows.events.total[kept, None]
    size = (2, len(kept), per_curve)
    late, where = torch.rand(size, generator=generator, device=generator.device)
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
    targets = F.one_hot(place, len(CLASSES)) * torch.where(soft, second, 1.0)[:, None]
    targets[:, 0] += torch.where(soft, 1 - second, 0.0)
    return Samples(*half, held, targets, labels.to(torch.uint8), rows.exact[index])


def cut_on_device(
    rows: ObservedRows, per_curve: int, generator: torch.Generator, last: bool = False
) -> Samples:
    """`per_curve` samples of every row that has a refit."""
    return samples_at(rows, *draw_epochs(rows, per_curve, generator, last))


def observe_pairs(
    values: Tensor,
    sigma: Tensor | None,
    second: Tensor,
    free: Tensor,
    begins: Tensor,
    times: Tensor,
    survey: Survey,
    generator: torch.Generator,
    width: float = 0.0,
) -> ObservedRows:
    """Pairs observed anew; arguments as `Pairs` of `data`, on a device.

    `values`, `sigma` (P, 2, T), `second` (P,) int64, of which 0 is a contaminant beside a single
    lens that does not count; `free` (P,) bool; `begins` (P,) and `times` (T,) [day]. `width` of the
    baselines' prior [mag].
    """
    clean = values.flatten(0, 1)
    if sigma is None:
        outliers = survey.outlier_fraction > 0
        draws = draw_torch(len(values), len(times), generator, outliers=outliers)
        delta, errors, seen = observe(clean, draws, survey, times)
    else:
        delta, errors, seen = clean, sigma.flatten(0, 1), clean.isfinite()
    soft = sigma is None and survey.exact and not survey.photon_noise
    counted = torch.ones(len(values), 2, dtype=torch.bool, device=values.device)
    counted[:, 0] = second > 0
    counted = counted.flatten()
    delta, errors, seen = delta[counted], errors[counted], seen[counted]
    events = pack_rows(
        times, -delta, errors, seen, free.repeat_interleave(2)[counted], width=width
    )
    row = torch.arange(len(counted), device=values.device)[counted]
    pair, is_second = row // 2, row % 2 > 0
    if soft:
        one, two = ((delta - values[pair, k]) / errors for k in (0, 1))
        terms = torch.where(seen, ((one * one - two * two) / 2).double(), 0)
        order = torch.argsort(~seen, dim=1, stable=True)[:, : events.times.shape[1]]
        ratio = terms.gather(1, order).cumsum(1).float()
    else:
        ratio = torch.zeros_like(events.times)
    binary = second[pair]
    labels = torch.where(is_second, binary, 0)
    starts = torch.searchsorted(times, begins.to(times.dtype))
    before = seen & (torch.arange(len(times), device=values.device) < starts[pair, None])
    exact = torch.full_like(is_second, survey.exact)
    return ObservedRows(
        events, ratio, labels, binary if soft else torch.zeros_like(binary), before.sum(1), exact
    )
