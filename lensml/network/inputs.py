"""Network inputs of an event from joint fits: innovations and maps.

An event has any number of data sets: an epoch is compared with the fit in force of its own data
set, a map adds the residuals of all, and neither order nor number of data sets matters.
Residuals are in units of quoted errors, which the scatter between neighbours corrects where they
are not exact. Causal: what belongs to epoch i uses epochs up to i.

Axes: N epochs, K data sets, J refits, 2 models (all flux lensed, every f_s free).
"""

from collections.abc import Iterator, Sequence
from math import exp
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lensml.lensing import MAG, QUICK, brightness, put
from lensml.network.residuals import (
    NUM_CHANNELS,
    NUM_INPUTS,
    NUM_STATE,
    NUM_SUMMARY,
    PHASE_BINS,
    innovate,
    refit_and_map,
    start_fits,
)
from lensml.paths import renew_compiled

renew_compiled(__file__, refit_and_map.py_func.__code__.co_filename)

STEP, DENSE, MOST_STEPS = 8, 1536, 4  # epochs between refits: 8, 16 after DENSE, ..., 32 at most
MOST_EPOCHS = 2048  # of the past that a fit has, the older ones merged
KEPT_LATEST = 64  # epochs of a data set that are not merged, fewer where there are many sets
BRIGHTEST, SIGMAS = 12.0, (1e-3, 1e3)  # magnitudes from the zero point, errors [mag]: cut there
UNKNOWN = 2.0  # width of the prior of a baseline that is not known [mag]
GIVEN = 0.05  # and of one that an observer gives


class DataSetEpochs(NamedTuple):
    """Epochs of one data set, sorted by time."""

    times: NDArray  # (n,) [day]
    mag: NDArray  # (n,) [mag]
    sigma: NDArray  # (n,) quoted [mag]
    m_base: float | None = None  # baseline, if it is known [mag]
    exact: bool = False  # whether `m_base` and `sigma` hold exactly, as on the thesis' grid


class JointEpochs(NamedTuple):
    """Data sets one behind the other, as the compiled functions take them."""

    times: NDArray  # (N,) [day]
    bright: NDArray  # (N,) float32 zero point minus magnitude [mag]
    weight: NDArray  # (N,) float32 1 / quoted error [1 / mag]
    owner: NDArray  # (N,) int64, data set of the i-th epoch in time
    place: NDArray  # (N,) int64, where that epoch lies
    width: NDArray  # (K,) of the prior of the baseline [mag]; 0 = exact
    zero: NDArray  # (K,) zero points [mag]


class JointInputs(NamedTuple):
    """Inputs of one event."""

    epochs: NDArray  # (N, NUM_INPUTS) float32, in order of time
    maps: NDArray  # (J, NUM_CHANNELS, PHASE_BINS) float32
    summaries: NDArray  # (J, NUM_SUMMARY) float32
    states: NDArray  # (J, NUM_STATE) float32
    fits: NDArray  # (J, 2, 3 + 2 K), `lensing.joint_fits`
    factors: NDArray  # (J, K) true over quoted errors
    active: NDArray  # (N,) int64, the refit in force; -1 = none yet
    counts: NDArray  # (J,) int64, epochs at each refit
    covariance: NDArray  # (2, K, 15), of the last refit


class Histories(NamedTuple):
    """What S events keep, of constant size: C epochs and K data sets at most."""

    times: NDArray  # (S, C) float64 [day]
    bright: NDArray  # (S, C) float32 zero point minus magnitude [mag]
    weight: NDArray  # (S, C) float32 [1 / mag]
    owner: NDArray  # (S, C) int16, data set
    used: NDArray  # (S,) int64, of C
    count: NDArray  # (S,) int64, epochs so far
    due: NDArray  # (S,) int64, epochs at the next refit
    sets: NDArray  # (S,) int64, data sets so far
    width: NDArray  # (S, K) prior of each baseline [mag]; 0 = exact
    fits: NDArray  # (S, 2, 3 + 2 K)
    covariances: NDArray  # (S, 2, K, 15)
    factors: NDArray  # (S, K)
    sums: NDArray  # (S, 2, 2), of innovations since the refit and of their squares
    number: NDArray  # (S,) of these
    last: NDArray  # (S,) time of the last epoch [day]


def new_histories(events: int, sets: int, capacity: int = MOST_EPOCHS) -> Histories:
    """Histories of events without epochs."""
    return Histories(
        np.empty((events, capacity)),
        np.empty((events, capacity), dtype=np.float32),
        np.empty((events, capacity), dtype=np.float32),
        np.empty((events, capacity), dtype=np.int16),
        np.zeros(events, dtype=np.int64),
        np.zeros(events, dtype=np.int64),
        np.full(events, STEP),
        np.zeros(events, dtype=np.int64),
        np.full((events, sets), UNKNOWN),
        np.zeros((events, 2, 3 + 2 * sets)),
        np.zeros((events, 2, sets, 15)),
        np.ones((events, sets)),
        np.zeros((events, 2, 2)),
        np.zeros(events),
        np.zeros(events),
    )


def joint_epochs(datasets: Sequence[DataSetEpochs]) -> JointEpochs:
    """Join data sets in the order in which they begin; equal epochs go by that order, too."""
    kept = [d for d in datasets if len(d.times)]
    kept.sort(key=lambda d: (d.times[0], d.sigma[0], d.mag[0]))
    zero = np.array([d.mag[0] if d.m_base is None else d.m_base for d in kept], dtype=float)
    times = np.concatenate([np.asarray(d.times, float) for d in kept])
    bright = np.concatenate([z - np.asarray(d.mag, float) for z, d in zip(zero, kept, strict=True)])
    sigma = np.concatenate([np.asarray(d.sigma, float) for d in kept])
    owner = np.repeat(np.arange(len(kept)), [len(d.times) for d in kept])
    order = np.lexsort((owner, times))
    width = [0.0 if d.exact else UNKNOWN if d.m_base is None else GIVEN for d in kept]
    return JointEpochs(
        times, *rounded_epochs(bright, sigma), owner[order], order, np.array(width), zero
    )


def rounded_epochs(bright: NDArray, sigma: NDArray) -> tuple[NDArray, NDArray]:
    """What a history keeps of epochs: zero point minus magnitude, 1 / error, both float32."""
    bright = np.clip(bright, -BRIGHTEST, BRIGHTEST)
    return bright.astype(np.float32), (1 / np.clip(sigma, *SIGMAS)).astype(np.float32)


@njit(**QUICK)
def next_refit(count):
    """The count of epochs after `count` at which an event is refitted."""
    step = STEP * min(max((count + DENSE - 1) // DENSE, 1), MOST_STEPS)
    return (count // STEP) * STEP + step


@njit(**QUICK, inline="always")
def _merge(h, s):
    """Average neighbours of a data set until a quarter of event `s`'s history is free.

    Neighbours are merged that lie close for their distance from the peak: far from it a fit needs
    no more. The latest epochs of each data set stay as they are.
    """
    times, bright, weight, owner = h.times[s], h.bright[s], h.weight[s], h.owner[s]
    whole, near, num = h.used[s], 0.005, h.sets[s]
    used, t0, rate = whole, h.fits[s, 1, 0], exp(-h.fits[s, 1, 2])
    latest = min(KEPT_LATEST, whole // (2 * num))
    left, before = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
    while used > whole * 3 // 4 and near < 1e6:
        left[:] = 0
        before[:] = -1
        for i in range(used):
            left[owner[i]] += 1
        to = 0
        for i in range(used):
            k = owner[i]
            left[k] -= 1
            j = before[k]  # the neighbour before, where it may still grow
            merged = False
            if j >= 0 and left[k] >= latest:
                tau = abs(times[j] - t0) * rate
                if (times[i] - times[j]) * rate < near * (tau + 0.02):
                    p, q = np.float64(weight[j]) ** 2, np.float64(weight[i]) ** 2
                    times[j] = (p * times[j] + q * times[i]) / (p + q)
                    bright[j] = (p * bright[j] + q * bright[i]) / (p + q)
                    weight[j] = np.sqrt(p + q)
                    before[k] = -1
                    merged = True
            if not merged:
                times[to], bright[to], weight[to], owner[to] = times[i], bright[i], weight[i], k
                before[k] = to
                to += 1
        used = to
        near *= 2.0
    h.used[s] = used


@njit(**QUICK, inline="always")
def _refit_event(h, s, free, maps, summary, state):
    """Refit event `s` from its history; outputs as `refit_and_map`."""
    used, num = h.used[s], h.sets[s]
    high = np.zeros(num, dtype=np.int64)
    for i in range(used):
        high[h.owner[s, i]] += 1
    low = np.cumsum(high) - high
    put(low, high)
    times, bright, flux, w = np.empty(used), np.empty(used), np.empty(used), np.empty(used)
    for i in range(used):
        at = high[h.owner[s, i]]
        high[h.owner[s, i]] = at + 1
        times[at], bright[at], w[at] = h.times[s, i], h.bright[s, i], h.weight[s, i]
        flux[at] = exp(bright[at] / MAG)
    fits = h.fits[s][:, : 3 + 2 * num].copy()
    cov = h.covariances[s][:, :num].copy()
    if h.count[s] == STEP:
        fits = start_fits(num, h.last[s])
    refit_and_map(
        fits, cov, h.factors[s, :num], h.count[s], h.width[s, :num], free, times, flux, bright, w,
        low, high, maps, summary, state,
    )  # fmt: skip
    for m in range(2):
        put(fits[m], h.fits[s, m])
        for k in range(num):
            put(cov[m, k], h.covariances[s, m, k])
    h.sums[s] = 0.0
    h.number[s] = 0.0
    h.due[s] = next_refit(h.count[s])


@njit(**QUICK, inline="always")
def take_epoch(h, s, k, time, bright, weight, free, inputs, maps, summary, state):
    """Take one epoch of data set `k` of event `s`; whether that led to a refit.

    `inputs` (NUM_INPUTS,) are filled; `maps`, `summary` and `state` at a refit, unless `maps` is
    empty. A data set that no fit has seen is assumed to begin on the curve, its baseline unknown.
    """
    i = h.used[s]
    h.times[s, i], h.bright[s, i], h.weight[s, i], h.owner[s, i] = time, bright, weight, k
    h.used[s] = i + 1
    h.count[s] += 1
    before = h.last[s] if h.count[s] > 1 else time
    h.last[s] = time
    if k == h.sets[s]:
        h.sets[s] = k + 1
        for m in range(2):
            h.fits[s, m, 3 + 2 * k] = 0.0
            h.fits[s, m, 4 + 2 * k] = 0.0
            if h.width[s, k] > 1.0 and h.count[s] > STEP:
                h.fits[s, m, 4 + 2 * k] = bright - brightness(h.fits[s, m], k, time)[0]
            h.covariances[s, m, k, :] = 0.0
            h.covariances[s, m, k, 14] = h.width[s, k] ** 2
    if h.used[s] == h.times.shape[1]:
        _merge(h, s)
    refitted = h.count[s] == h.due[s]
    if refitted:
        _refit_event(h, s, free, maps, summary, state)
    inputs[:] = 0.0
    if h.count[s] >= STEP:
        h.number[s] += 1.0
        innovate(
            h.fits[s], h.covariances[s], h.factors[s], k, time, before, exp(bright / MAG), weight,
            h.sums[s], h.number[s], inputs,
        )  # fmt: skip
    return refitted


@njit(**QUICK)
def _all_inputs(
    h, times, bright, weight, owner, place, free, wanted, counts,
    epochs, maps, summaries, states, fits, factors, active,
):  # fmt: skip
    """`take_epoch` of all epochs of one event; `wanted` (J,) bool says which maps."""
    nothing, j = np.empty((0, PHASE_BINS), dtype=np.float32), 0
    spare = len(counts) - 1
    for i in range(len(owner)):
        p, n = place[i], min(j, spare)
        into = maps[n] if j <= spare and wanted[n] else nothing
        if take_epoch(
            h, 0, owner[i], times[p], np.float64(bright[p]), np.float64(weight[p]), free,
            epochs[i], into, summaries[n], states[n],
        ):  # fmt: skip
            fits[j], factors[j] = h.fits[0], h.factors[0]
            j += 1
        active[i] = j - 1


def refit_counts(total: int) -> NDArray[np.int64]:
    """Counts of epochs, up to `total`, at which an event is refitted."""
    counts = []
    while (count := next_refit(counts[-1] if counts else 0)) <= total:
        counts.append(count)
    return np.array(counts, dtype=np.int64)


def event_inputs(
    joint: JointEpochs,
    free: bool = True,
    wanted: NDArray | None = None,
    stop: int | None = None,
) -> JointInputs:
    """All inputs of an event; `wanted` (J,) bool, maps of other refits are zeros.

    `free` False: it is known that all flux is lensed, and the second model is the first. Only the
    first `stop` epochs in order of time, None = all.
    """
    joint = joint._replace(owner=joint.owner[:stop])
    return next(input_blocks(joint, free, wanted, max(len(joint.owner), 1)))[2]


def input_blocks(
    joint: JointEpochs, free: bool, wanted: NDArray | None, size: int
) -> Iterator[tuple[slice, slice, JointInputs]]:
    """`event_inputs` in blocks of epochs: where its epochs and refits lie, and the inputs.

    `epochs` and `maps` are of the block alone; the others are filled up to its end.
    """
    total, num = len(joint.owner), len(joint.width)
    counts = refit_counts(total)
    refits = len(counts)
    wanted = np.ones(refits, dtype=bool) if wanted is None else wanted
    h = new_histories(1, num, min(total + 1, MOST_EPOCHS))
    h.width[0] = joint.width
    out = (
        np.zeros((refits, NUM_SUMMARY), dtype=np.float32),
        np.zeros((refits, NUM_STATE), dtype=np.float32),
        np.zeros((refits, 2, 3 + 2 * num)),
        np.ones((refits, num)),
        np.full(total, -1),
        counts,
        h.covariances[0],
    )
    for first in range(0, max(total, 1), size):
        rows = slice(first, min(first + size, total))
        mine = slice(*np.searchsorted(counts, (rows.start, rows.stop), side="right").tolist())
        epochs = np.zeros((rows.stop - first, NUM_INPUTS), dtype=np.float32)
        maps = np.zeros((mine.stop - mine.start, NUM_CHANNELS, PHASE_BINS), dtype=np.float32)
        own = epochs, maps, *(x[mine] for x in out[:4]), (active := out[4][rows])
        taken = *joint[:3], joint.owner[rows], joint.place[rows]
        _all_inputs(h, *taken, free, wanted[mine], counts[mine], *own)
        active += mine.start
        for values in own[:4]:
            np.nan_to_num(values, copy=False, nan=0.0, posinf=10.0, neginf=-10.0)
        yield rows, mine, JointInputs(epochs, maps, *out)
