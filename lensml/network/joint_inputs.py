"""Network inputs of an event from joint fits: innovations of each epoch, maps at each refit.

As `residual_maps`, for any number of data sets: an epoch is compared with the fit in force of its
own data set, a map adds the residuals of all, and neither order nor number of data sets matters.
Residuals are in units of quoted errors, which the scatter between neighbours corrects where they
are not exact. Causal: what belongs to epoch i uses epochs up to i.

Axes: N epochs, K data sets, J refits, 2 models (all flux lensed, every f_s free).
"""

from collections.abc import Sequence
from math import asinh, exp, log, log10, sinh
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lensml.lensing import FIT_CENTRE, MAG, QUICK, brightness, error_factors, log_ratio, refit

STEP, DENSE, MOST_STEPS = 8, 1536, 4  # epochs between refits: 8, 16 after DENSE, ..., 32 at most
MOST_EPOCHS = 2048  # of the past that a fit has, the older ones merged
KEPT_LATEST = 64  # epochs of a data set that are never merged
PHASE_BINS, NEAR_PHASE, FAR_PHASE = 96, 0.03, 8.0  # evenly in asinh(phase / NEAR_PHASE)
WINDOWS = (4, 16)  # epochs of a data set whose residuals are summed, then squared
NUM_CHANNELS = 2 * (3 + len(WINDOWS)) + 1  # of both models, and how data sets agree
NUM_INPUTS = 2 * 5 + 5
NUM_SUMMARY = 2 * 8 + 3
NUM_STATE = 8  # what the summary of one data set with exact errors does not need
CLIP = 50.0  # residuals beyond, in errors, are cut
BRIGHTEST, SIGMAS = 12.0, (1e-3, 1e3)  # magnitudes from the zero point, errors [mag]: cut there
UNKNOWN = 2.0  # width of the prior of a baseline that is not known [mag]
GIVEN = 0.05  # and of one that an observer gives
SCALE = asinh(FAR_PHASE / NEAR_PHASE)
EDGES = np.array(
    [NEAR_PHASE * sinh(SCALE * (2 * j / PHASE_BINS - 1)) for j in range(1, PHASE_BINS)]
)


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
def _asinh_half(x):
    size = abs(x)
    value = 0.5 * np.log(size + np.sqrt(size * size + 1.0))
    return value if x >= 0 else -value


@njit(**QUICK)
def _map(fit, times, flux, w, low, high, residual, out, agreement):
    """Residuals in errors, binned in phase: `out` (5, PHASE_BINS); chi-squared and peak signal.

    `agreement` (PHASE_BINS,): what the data sets' own sums in a bin hold, squared, each alone.
    """
    t0, rate, uu = fit[0], exp(-fit[2]), exp(2.0 * fit[1])
    sums, held = np.zeros((4, PHASE_BINS)), np.zeros(PHASE_BINS)
    alone, number = np.zeros(PHASE_BINS), np.zeros(PHASE_BINS)
    own, mine = np.empty(PHASE_BINS), np.empty(PHASE_BINS)
    chi2, top = 0.0, 0.0
    for k in range(len(low)):
        f, gain = exp(fit[3 + 2 * k]), exp(-fit[4 + 2 * k] / MAG)
        first, stop = low[k], high[k]
        for i in range(first, stop):
            tau = (times[i] - t0) * rate
            x = tau * tau + uu
            root = np.sqrt(x * (x + 4.0))
            below = root * (root + x + 2.0)
            e = MAG * log_ratio(flux[i] * gain * below, below + 4.0 * f) * w[i]
            residual[i] = min(max(e, -CLIP), CLIP)
            chi2 += residual[i] * residual[i]
            top = max(top, f / below)
        own[:] = 0.0
        mine[:] = 0.0
        four = sixteen = 0.0
        b = 0
        for i in range(first, stop):
            tau = (times[i] - t0) * rate
            while b < PHASE_BINS - 1 and tau >= EDGES[b]:
                b += 1
            r = residual[i]
            mine[b] += 1.0
            own[b] += r
            sums[1, b] += r * r - 1.0
            # Sums of 4 and 16 neighbours count where their middle lies.
            if stop - first >= 4 and first + 2 <= i <= stop - 2:
                four = residual[i - 2] + residual[i - 1] + r + residual[i + 1]
                sums[2, b] += four * four / 4.0 - 1.0
            if stop - first >= 16 and first + 8 <= i <= stop - 8:
                if i == first + 8:
                    sixteen = 0.0
                    for j in range(i - 8, i + 8):
                        sixteen += residual[j]
                else:
                    sixteen += residual[i + 7] - residual[i - 9]
                sums[3, b] += sixteen * sixteen / 16.0 - 1.0
        for b in range(PHASE_BINS):
            if mine[b] > 0.0:
                held[b] += mine[b]
                sums[0, b] += own[b]
                alone[b] += own[b] * own[b] / mine[b] - 1.0
                number[b] += 1.0
    norm = (1.0, 2.0, 8.0, 32.0)
    for b in range(PHASE_BINS):
        for c in range(4):
            out[c, b] = 2.0 * _asinh_half(sums[c, b] / np.sqrt(max(held[b], 1.0) * norm[c]))
        agreement[b] = _asinh_half(alone[b] / np.sqrt(2.0 * max(number[b], 1.0)))
        out[4, b] = np.log(1.0 + held[b]) / 4.0
    return chi2, MAG * np.log(1.0 + 4.0 * top)


@njit(**QUICK)
def _summary(fit, covariance, latest, chi2, top, n, mean_w, shares, out):
    """Summary (8,) of a fit: shape, phase, errors, misfit, signal."""
    f = t = u = 0.0
    for k in range(len(shares)):
        f += shares[k] * exp(fit[3 + 2 * k])
    u = np.sqrt(max(covariance[0, 3], 1e-12))
    t = np.sqrt(max(covariance[0, 0], 1e-12)) * exp(-fit[2])
    out[0] = fit[1] / 3.0
    out[1] = (fit[2] - FIT_CENTRE[2]) / 2.0
    out[2] = f
    out[3] = 2.0 * _asinh_half((latest - fit[0]) * exp(-fit[2]))
    out[4] = log10(min(max(u, 1e-4), 1e2)) / 2.0
    out[5] = log10(min(max(t, 1e-4), 1e2)) / 2.0
    out[6] = _asinh_half((chi2 - n) / np.sqrt(2.0 * n))
    out[7] = 2.0 * _asinh_half(top * mean_w) / 3.0


@njit(**QUICK)
def _innovation(fit, cov, k, time, flux, w, sums, number, out):
    """Five inputs of an epoch against a fit made before it; `sums` (2,) go on; its brightness."""
    t0, rate, uu = fit[0], exp(-fit[2]), exp(2.0 * fit[1])
    f, gain = exp(fit[3 + 2 * k]), exp(-fit[4 + 2 * k] / MAG)
    tau = (time - t0) * rate
    x = tau * tau + uu
    y = x * (x + 4.0)
    root = np.sqrt(y)
    below = root * (root + x + 2.0)
    above = below + 4.0 * f
    r = MAG * log_ratio(flux * gain * below, above) * w
    d = 4.0 * MAG * f / above
    g = -d * below / (y * root)
    a, b, c = -2.0 * rate * tau * g, 2.0 * uu * g, -2.0 * tau * tau * g
    s = cov[k]
    spread = a * (s[0] * a + 2.0 * (s[1] * b + s[2] * c + s[6] * d + s[9]))
    spread += b * (s[3] * b + 2.0 * (s[4] * c + s[7] * d + s[10]))
    spread += c * (s[5] * c + 2.0 * (s[8] * d + s[11])) + d * (s[12] * d + 2.0 * s[13]) + s[14]
    error = np.sqrt(max(spread, 0.0)) * w
    z = min(max(r / np.sqrt(1.0 + error * error), -CLIP), CLIP)
    sums[0] += z
    sums[1] += z * z
    out[0] = _asinh_half(r)
    out[1] = _asinh_half(z)
    out[2] = np.log10(min(max(error, 1e-2), 1e2)) / 2.0
    out[3] = _asinh_half(sums[0] / np.sqrt(number))
    out[4] = _asinh_half((sums[1] - number) / np.sqrt(2.0 * number))
    return tau, d * w


@njit(**QUICK)
def start_fits(num, last):
    """Prior means of both models of `num` data sets, centred on the time `last`."""
    fits = np.zeros((2, 3 + 2 * num))
    fits[:, 0], fits[:, 1], fits[:, 2] = last + FIT_CENTRE[0], FIT_CENTRE[1], FIT_CENTRE[2]
    return fits


@njit(**QUICK)
def refit_and_map(
    fits,
    cov,
    factors,
    count,
    width,
    free,
    times,
    flux,
    bright,
    weight,
    low,
    high,
    maps,
    summary,
    state,
):
    """One refit after `count` epochs, of which data set k has low[k] to high[k] in use.

    In place: `fits`, covariances `cov`, `factors`; outputs `maps` (10, PHASE_BINS), `summary` and
    `state`, unless `maps` is empty.
    """
    num = len(low)
    centre, w = np.zeros(num), np.empty(len(times))
    last, n = -np.inf, 0
    for k in range(num):
        n += high[k] - low[k]
        if high[k] > low[k]:
            last = max(last, times[high[k] - 1])
    error_factors(fits[1], width, times, bright, weight, low, high, factors)
    total, shares, square = 0.0, np.zeros(num), 0.0
    for k in range(num):
        mean = share = 0.0
        for i in range(low[k], high[k]):
            w[i] = weight[i] / factors[k]
            mean += bright[i]
            share += w[i] * w[i]
            total += w[i]
        shares[k], square = share, square + share
        if width[k] > 1.0 and high[k] > low[k]:  # a baseline nobody gave
            centre[k] = mean / (high[k] - low[k])
    shares /= max(square, 1e-30)
    refit(fits, cov, last, centre, width, free, times, flux, bright, w, low, high)
    if maps.shape[0] == 0:
        return
    residual = np.empty(len(times))
    chi2, top = _map(fits[0], times, flux, w, low, high, residual, maps[:5], maps[10])
    _summary(fits[0], cov[0], last, chi2, top, n, total / n, shares, summary[:8])
    chi2_free = chi2
    if free:
        chi2_free, top = _map(fits[1], times, flux, w, low, high, residual, maps[5:10], maps[10])
        _summary(fits[1], cov[1], last, chi2_free, top, n, total / n, shares, summary[8:16])
    else:
        maps[5:10] = maps[:5]
        summary[8:16] = summary[:8]
    summary[16] = 2.0 * _asinh_half((chi2 - chi2_free) / 4.0) / 3.0
    summary[17] = log10(n / total / 0.03)
    summary[18] = log(count) / 5.0
    # Beside these: what baselines and errors are worth, and how the sets share the event.
    base = spread = scatter = together = 0.0
    first = np.inf
    for k in range(num):
        if high[k] > low[k]:
            base += shares[k] * np.sqrt(max(cov[1, k, 14], 0.0) * square)
            spread += shares[k] * log(factors[k])
            scatter = max(scatter, factors[k])
            together += shares[k] * shares[k]
            first = min(first, times[low[k]])
    state[0] = 1.0 if width.max() <= 0.0 else 0.0
    state[1] = 1.0 if width.max() > 1.0 else 0.0
    state[2] = _asinh_half(base)
    state[3] = spread
    state[4] = log(max(scatter, 1e-3))
    state[5] = log(1.0 / max(together, 1e-3))
    state[6] = _asinh_half((fits[1, 0] - first) * exp(-fits[1, 2]))
    state[7] = log10(max(last - first, 1e-3) * exp(-fits[1, 2]) / n + 1e-6) / 3.0


@njit(**QUICK)
def innovate(fits, cov, factors, k, time, before, flux, weight, sums, number, out):
    """Inputs (NUM_INPUTS,) of one epoch of data set k; `before` is the time of the last epoch."""
    w = weight / factors[k]
    _innovation(fits[0], cov[0], k, time, flux, w, sums[0], number, out[:5])
    tau, signal = _innovation(fits[1], cov[1], k, time, flux, w, sums[1], number, out[5:10])
    step = max(time - before, 0.0)
    out[10] = _asinh_half(tau)
    out[11] = np.log10(step * exp(-fits[1, 2]) + 1e-5) / 4.0
    out[12] = np.log10(step + 1e-4) / 4.0
    out[13] = _asinh_half(signal) / 2.0
    out[14] = np.log10(1.0 / w / 0.03) / 2.0


@njit(**QUICK)
def next_refit(count):
    """The count of epochs after `count` at which an event is refitted."""
    step = STEP * min(max((count + DENSE - 1) // DENSE, 1), MOST_STEPS)
    return (count // STEP) * STEP + step


@njit(**QUICK)
def _merge(h, s):
    """Average neighbours of a data set until a quarter of event `s`'s history is free.

    Neighbours are merged that lie close for their distance from the peak: far from it a fit needs
    no more. The latest epochs of each data set stay as they are.
    """
    times, bright, weight, owner = h.times[s], h.bright[s], h.weight[s], h.owner[s]
    whole, near, num = h.used[s], 0.005, h.sets[s]
    used, t0, rate = whole, h.fits[s, 1, 0], exp(-h.fits[s, 1, 2])
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
            if j >= 0 and left[k] >= KEPT_LATEST:
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


@njit(**QUICK)
def _refit_event(h, s, free, maps, summary, state):
    """Refit event `s` from its history; outputs as `refit_and_map`."""
    used, num = h.used[s], h.sets[s]
    high = np.zeros(num, dtype=np.int64)
    for i in range(used):
        high[h.owner[s, i]] += 1
    low = np.cumsum(high) - high
    high[:] = low
    times, bright, flux, w = np.empty(used), np.empty(used), np.empty(used), np.empty(used)
    for i in range(used):
        at = high[h.owner[s, i]]
        high[h.owner[s, i]] = at + 1
        times[at], bright[at], w[at] = h.times[s, i], h.bright[s, i], h.weight[s, i]
        flux[at] = exp(bright[at] / MAG)
    fits = h.fits[s][:, : 3 + 2 * num].copy()
    cov = h.covariances[s][:, :num].copy()
    if h.count[s] == STEP:
        fits[:] = start_fits(num, h.last[s])
    refit_and_map(
        fits, cov, h.factors[s, :num], h.count[s], h.width[s, :num], free, times, flux, bright, w,
        low, high, maps, summary, state,
    )  # fmt: skip
    h.fits[s][:, : 3 + 2 * num] = fits
    h.covariances[s][:, :num] = cov
    h.sums[s] = 0.0
    h.number[s] = 0.0
    h.due[s] = next_refit(h.count[s])


@njit(**QUICK)
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
        into = maps[n] if wanted[n] and j <= spare else nothing
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
    total, num = len(joint.owner), len(joint.width)
    counts = refit_counts(total)
    refits = len(counts)
    wanted = np.ones(refits, dtype=bool) if wanted is None else wanted[:refits]
    out = JointInputs(
        np.zeros((total, NUM_INPUTS), dtype=np.float32),
        np.zeros((refits, NUM_CHANNELS, PHASE_BINS), dtype=np.float32),
        np.zeros((refits, NUM_SUMMARY), dtype=np.float32),
        np.zeros((refits, NUM_STATE), dtype=np.float32),
        np.zeros((refits, 2, 3 + 2 * num)),
        np.ones((refits, num)),
        np.full(total, -1),
        counts,
        np.zeros((2, num, 15)),
    )
    if refits:
        h = new_histories(1, num, min(total + 1, MOST_EPOCHS))
        h.width[0] = joint.width
        _all_inputs(h, *joint[:5], free, wanted, counts, *out[:7])
        out.covariance[:] = h.covariances[0]
        for values in out[:4]:
            np.nan_to_num(values, copy=False, nan=0.0, posinf=10.0, neginf=-10.0)
    return out
