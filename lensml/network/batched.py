"""Inputs and logits of many events at once on a GPU: the kernels' side of `inputs`.

Kernels need Triton, which comes with torch for a GPU; on a CPU its interpreter runs them, for tests
alone. Histories of more than `MOST_EPOCHS` epochs are merged by `inputs` alone.

Axes: R events, N epochs at most, K data sets, J refits at most, P refits whose maps are wanted.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, wraps
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lensml.lensing import MAG
from lensml.network.inputs import (
    BRIGHTEST,
    MOST_EPOCHS,
    SIGMAS,
    DataSetEpochs,
    JointEpochs,
    event_inputs,
    joint_epochs,
    refit_counts,
)
from lensml.network.model import CLASSES, RECEPTIVE_FIELD, Network
from lensml.network.residuals import (
    NUM_CHANNELS,
    NUM_INPUTS,
    NUM_STATE,
    NUM_SUMMARY,
    PHASE_BINS,
)
from lensml.paths import InputError

log = logging.getLogger(__name__)
KERNELS = "LENSML_KERNELS"  # environment variable; 0: fits stay on the CPU
MAPS_AT_ONCE = 8192  # whose residuals lie in memory meanwhile


class PackedEvents(NamedTuple):
    """Events on one device; epochs of a data set lie together, in order of time."""

    times: Tensor  # (R, N) from the event's first epoch on [day]
    bright: Tensor  # (R, N) zero point minus magnitude [mag]
    weight: Tensor  # (R, N) 1 / quoted error [1 / mag]
    owner: Tensor  # (R, N) int32, data set of the i-th epoch in time
    place: Tensor  # (R, N) int32, where that epoch lies
    low: Tensor  # (R, K) int32, where each data set begins
    high: Tensor  # (R, J, K) int32, where it ends at each refit
    width: Tensor  # (R, K) of the prior of the baseline [mag]; 0 = exact
    free: Tensor  # (R,) int32, whether f_s is free
    total: Tensor  # (R,) int32 epochs
    refits: Tensor  # (R,) int32
    counts: Tensor  # (J,) int32, epochs at each refit
    some_free: bool
    some_bases: bool  # whether any baseline is not exact


class JointFits(NamedTuple):
    """All refits of events, as `lensing.joint_fits`; t0 counts as `PackedEvents.times` do."""

    fits: Tensor  # (R, J, 2, 3 + 2 K)
    covariances: Tensor  # (R, J, 2, K, 15)
    factors: Tensor  # (R, J, K)


def pack_events(
    joints: Sequence[JointEpochs],
    free: Sequence[bool],
    device: torch.device,
    dtype: torch.dtype = torch.float64,
) -> PackedEvents:
    """Events of any number of epochs and data sets side by side.

    InputError if one has more than `MOST_EPOCHS` epochs.
    """
    rows, most = len(joints), max(len(joint.times) for joint in joints)
    if most > MOST_EPOCHS:
        raise InputError(
            f"an event has {most} epochs, but at most {MOST_EPOCHS} were expected; "
            "`event_inputs` takes longer ones"
        )
    sets = max(len(joint.width) for joint in joints)
    counts = refit_counts(most)
    times, bright, weight = np.zeros((3, rows, most))
    owner, place = np.zeros((2, rows, most), dtype=np.int32)
    low, high = np.zeros((rows, sets), np.int32), np.zeros((rows, len(counts), sets), np.int32)
    width, total = np.zeros((rows, sets)), np.zeros(rows, np.int32)
    for row, joint in enumerate(joints):
        total[row] = n = len(joint.times)
        num = len(joint.width)
        times[row, :n] = joint.times - joint.times[joint.place[0]]
        bright[row, :n], weight[row, :n] = joint.bright, joint.weight
        owner[row, :n], place[row, :n] = joint.owner, joint.place
        size = np.bincount(joint.owner, minlength=num)
        low[row, :num] = np.cumsum(size) - size
        width[row, :num] = joint.width
        so_far = np.cumsum(joint.owner[:, None] == np.arange(num), axis=0)
        at = np.minimum(counts, n) - 1
        high[row, :, :num] = low[row, :num] + (so_far[at] if n else 0)
    floats = (torch.from_numpy(x).to(device, dtype) for x in (times, bright, weight))
    whole = [torch.from_numpy(x).to(device) for x in (owner, place, low, high)]
    refits = np.searchsorted(counts, total, side="right").astype(np.int32)
    flags = np.asarray(free, dtype=np.int32)
    rest = (torch.from_numpy(x).to(device) for x in (flags, total, refits))
    return PackedEvents(
        *floats, *whole, torch.from_numpy(width).to(device, dtype), *rest,
        torch.from_numpy(counts.astype(np.int32)).to(device), bool(flags.any()),
        bool((width > 0).any()),
    )  # fmt: skip


def pack_rows(
    times: Tensor, bright: Tensor, sigma: Tensor, seen: Tensor, free: Tensor,
    width: float = 0.0, dtype: torch.dtype = torch.float32,
) -> PackedEvents:  # fmt: skip
    """Rows of a set, one data set each, whose baselines are given with an error `width` [mag].

    `times` (T,) or (R, T) [day], `bright` (R, T) baseline minus magnitude and `sigma` (R, T) [mag],
    `seen` (R, T) bool; `free` (R,) bool.
    """
    device, (rows, num) = bright.device, bright.shape
    total = seen.sum(1, dtype=torch.int32)
    most = max(int(total.max()), 1)
    if most > MOST_EPOCHS:
        raise InputError(f"a row has {most} epochs, but at most {MOST_EPOCHS} were expected")
    order = torch.argsort(~seen, dim=1, stable=True)[:, :most]
    inside = torch.arange(most, device=device) < total[:, None]
    times = times.double().expand(rows, num).gather(1, order)
    values = torch.where(seen, bright, 0).clamp(-BRIGHTEST, BRIGHTEST), 1 / sigma.clamp(*SIGMAS)
    columns = [times - times[:, :1], *(x.float().gather(1, order) for x in values)]
    columns = [torch.where(inside, x, 0).to(dtype) for x in columns]
    counts = torch.from_numpy(refit_counts(most).astype(np.int32)).to(device)
    high = torch.minimum(counts[None], total[:, None])[:, :, None].contiguous()
    zeros = torch.zeros((rows, 1), dtype=torch.int32, device=device)
    return PackedEvents(
        *columns, torch.zeros_like(order, dtype=torch.int32),
        torch.arange(most, dtype=torch.int32, device=device).expand(rows, most).contiguous(),
        zeros, high, (zeros + width).to(dtype), free.to(torch.int32), total,
        torch.searchsorted(counts, total, right=True).to(torch.int32), counts,
        bool(free.any()), width > 0,
    )  # fmt: skip


def _lanes(sets: int) -> int:
    return 1 << (sets - 1).bit_length()


def on_its_device(launch: Callable) -> Callable:
    """Launch kernels on the GPU where the events lie, not on the current one."""

    @wraps(launch)
    def launched(events: PackedEvents, *others, **options):
        device = events.times.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return launch(events, *others, **options)

    return launched


@on_its_device
def fit_events(events: PackedEvents, tile: int = 64, bins_tile: int = 32) -> JointFits:
    """All refits of all events, one program an event."""
    from lensml.lensing import _triton_fits as kernels

    rows, most = events.times.shape
    sets, refits = events.low.shape[1], len(events.counts)
    flux = torch.exp(events.bright / MAG)
    num_bins = most // kernels.BIN.value + sets
    columns = (events.times.new_zeros(rows, num_bins) for _ in range(4))  # each aligned
    time, bright, bin_flux, weight = columns
    kernels.bin_kernel[(rows, sets)](
        events.times, events.bright, events.weight, events.low, _ends(events), time,
        bin_flux, bright, weight, most, num_bins, sets, TILE=16, BIN=kernels.BIN.value,
    )  # fmt: skip
    found = JointFits(
        events.times.new_zeros(rows, refits, 2, 3 + 2 * sets),
        events.times.new_zeros(rows, refits, 2, sets, 15),
        events.times.new_ones(rows, refits, sets),
    )
    kernels.refit_kernel[(rows,)](
        events.times, events.bright, flux, events.weight, time, bright, bin_flux, weight,
        events.low, events.high, events.width, events.free, events.refits, *found, most, num_bins,
        sets, refits, MODELS=1 + events.some_free, BASES=events.some_bases, SETS=_lanes(sets),
        TILE=tile, BIN_TILE=bins_tile, num_warps=1,
    )  # fmt: skip
    return found


def _ends(events: PackedEvents) -> Tensor:
    """Where each data set ends (R, K); those that an event does not have are empty."""
    none = events.low == 0
    none[:, 0] = False
    starts = torch.where(none, events.total[:, None], events.low)
    ends = torch.cat([starts[:, 1:], events.total[:, None]], dim=1)
    return torch.where(none, events.low, ends).to(torch.int32).contiguous()


@on_its_device
def map_refits(
    events: PackedEvents, found: JointFits, rows: Tensor, refits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, summaries and states of refits (P,) of rows (P,), as `JointInputs` has them."""
    from lensml.network import _triton_inputs as kernels

    most, sets = events.times.shape[1], events.low.shape[1]
    flux = torch.exp(events.bright / MAG)
    num, device = len(rows), rows.device
    maps = torch.empty(num, NUM_CHANNELS, PHASE_BINS, device=device)
    summaries = torch.empty(num, NUM_SUMMARY, device=device)
    states = torch.empty(num, NUM_STATE, device=device)
    scratch = events.times.new_empty(min(num, MAPS_AT_ONCE), most)
    for first in range(0, num, MAPS_AT_ONCE):
        some = slice(first, first + MAPS_AT_ONCE)
        kernels.map_kernel[(len(rows[some]),)](
            events.times, flux, events.weight, events.low, events.high, events.width, events.free,
            events.counts, rows[some].int(), refits[some].int(), *found, scratch, maps[some],
            summaries[some], states[some], most, sets, len(events.counts), SETS=_lanes(sets),
            TILE=16, num_warps=4,
        )  # fmt: skip
    return tuple(_finite(x) for x in (maps, summaries, states))


@on_its_device
def innovations(events: PackedEvents, found: JointFits) -> Tensor:
    """Inputs of every epoch in order of time (R, N, NUM_INPUTS); zeros before a refit."""
    from lensml.network import _triton_inputs as kernels

    rows, most = events.times.shape
    sets, refits = events.low.shape[1], len(events.counts)
    flux = torch.exp(events.bright / MAG)
    out = torch.zeros(rows, most, NUM_INPUTS, device=events.times.device)
    end = events.counts.new_tensor([most + 1])
    counts = torch.cat([events.counts, end])
    longest = int(counts.diff().max()) if refits else 0
    if refits:
        kernels.innovation_kernel[(rows, refits)](
            events.times, events.bright, flux, events.weight, events.owner, events.place,
            events.low, events.high, events.width, events.total, counts, *found, out, most, sets,
            refits, TILE=1 << (longest - 1).bit_length(), num_warps=1,
        )  # fmt: skip
    return _finite(out)


def _finite(values: Tensor) -> Tensor:
    return values.nan_to_num_(nan=0.0, posinf=10.0, neginf=-10.0)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products and convolutions of a GPU in float32; by default its convolutions round inputs."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@torch.no_grad()
@without_tf32()
def batch_logits(
    network: Network, events: PackedEvents, found: JointFits | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (R, N, 5) at every epoch in order of time, as `predict_event` gives them.

    And whether a refit came before, (R, N) bool; logits elsewhere mean nothing. `found` None: the
    events are fitted.
    """
    device, most = events.times.device, events.times.shape[1]
    if not len(events.counts):  # no event has a refit
        num = len(events.total)
        none = torch.zeros(num, most, dtype=torch.bool, device=device)
        return torch.zeros(num, most, len(CLASSES), device=device), none
    found = found or fit_events(events)
    rows, refits = torch.nonzero(
        torch.arange(len(events.counts), device=device) < events.refits[:, None], as_tuple=True
    )
    temporal = F.pad(innovations(events, found), (0, 0, RECEPTIVE_FIELD - 1, 0))
    temporal = network.embed(temporal)
    for block in network.blocks:
        temporal = block(temporal)
    temporal = temporal[:, RECEPTIVE_FIELD - 1 :]
    parts = []
    for first in range(0, len(rows), MAPS_AT_ONCE):
        some = slice(first, first + MAPS_AT_ONCE)
        parts.append(network.embed_refits(*map_refits(events, found, rows[some], refits[some])))
    empty = temporal.new_zeros(1, network.embedding_size)
    embedding = torch.cat([*parts, empty])  # the last one where there is no refit yet
    epochs = torch.arange(1, most + 1, device=device)
    latest = torch.searchsorted(events.counts, epochs.int(), right=True) - 1
    starts = torch.cumsum(events.refits, 0) - events.refits
    inside = (latest >= 0) & (epochs <= events.total[:, None])
    index = torch.where(inside, starts[:, None] + latest, len(rows))
    held = (epochs - events.counts[latest.clamp_min(0)]).clamp(0, 255)
    logits = network.join(
        temporal.flatten(0, 1), embedding[index.flatten()], held.repeat(len(inside))
    )
    return logits.unflatten(0, inside.shape), inside


@cache
def kernels_agree(device: torch.device) -> bool:
    """Whether the kernels can be built for a GPU and give the inputs that a CPU gives.

    A warning says what was wrong; whoever asks goes on without them, as with LENSML_KERNELS=0.
    """
    if device.type != "cuda" or os.environ.get(KERNELS) == "0":
        return False
    generator = np.random.default_rng(0)
    times = np.sort(generator.uniform(0, 60, 60))
    mag = 18 - 2 * np.exp(-(((times - 30) / 9) ** 2)) + 0.02 * generator.standard_normal(60)
    known, other = (
        DataSetEpochs(times, mag, np.full(60, 0.02), base, base is not None)
        for base in (18.0, None)
    )
    joint = [joint_epochs([known]), joint_epochs([other, known._replace(times=times + 0.1)])]
    try:
        events = pack_events(joint, [False, True], device)
        found = fit_events(events)
        epochs = innovations(events, found).cpu().numpy()
        for row, free in enumerate((False, True)):
            one = event_inputs(joint[row], free)
            refits = torch.arange(len(one.counts), device=device)
            got = map_refits(events, found, torch.full_like(refits, row), refits)
            for mine, expected in zip(got, one[1:4], strict=True):
                np.testing.assert_allclose(mine.cpu().numpy(), expected, atol=1e-3)
            np.testing.assert_allclose(epochs[row, : len(one.epochs)], one.epochs, atol=1e-3)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # each compiler has its own errors
        first = str(problem).strip().partition("\n")[0]
        log.warning("no kernels for this GPU (%s): fits stay on the CPU", first)
        return False
    return True
