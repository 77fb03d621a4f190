"""Residuals of joint fits as network inputs: maps, summaries, innovations of epochs.

Compiled; `inputs` calls these epoch by epoch. Between refits the active fit predicts each new epoch
of a data set; the innovation is its deviation in units of the error of the prediction. At a refit
all residuals so far are binned in phase (t - t0) / tE. A map has for either model, in each bin, the
sums of residuals, of their squares, and of squares of sums over 4 and 16 neighbours of a data set,
each less its mean and in units of its scatter for pure noise, and the number of epochs; and one
channel for how data sets agree.
"""

from math import asinh, exp, log, log10, sinh

import numpy as np
from numba import njit

from lensml.lensing import FIT_CENTRE, MAG, QUICK, error_factors, log_ratio, put, refit
from lensml.paths import renew_compiled

renew_compiled(__file__, refit.py_func.__code__.co_filename)

PHASE_BINS, NEAR_PHASE, FAR_PHASE = 96, 0.03, 8.0  # evenly in asinh(phase / NEAR_PHASE)
WINDOWS = (4, 16)  # epochs of a data set whose residuals are summed, then squared
NUM_CHANNELS = 2 * (3 + len(WINDOWS)) + 1  # of both models, and how data sets agree
NUM_INPUTS = 2 * 5 + 5
NUM_SUMMARY = 2 * 8 + 3
NUM_STATE = 8  # what the summary of one data set with exact errors does not need
CLIP = 50.0  # residuals beyond, in errors, are cut
SCALE = asinh(FAR_PHASE / NEAR_PHASE)
EDGES = np.array(
    [NEAR_PHASE * sinh(SCALE * (2 * j / PHASE_BINS - 1)) for j in range(1, PHASE_BINS)]
)


@njit(**QUICK)
def _asinh_half(x):
    size = abs(x)
    value = 0.5 * np.log(size + np.sqrt(size * size + 1.0))
    return value if x >= 0 else -value


@njit(**QUICK)
def _map(fit, times, flux, w, low, high, residual, out, agreement):
    """Residuals binned in phase: `out` (5, PHASE_BINS); chi-squared and peak signal.

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
            top = max(top, f / below)
        for i in range(first, stop):  # not in the loop before: see `refit_and_map`
            chi2 += residual[i] * residual[i]
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
def _summary(fit, covariance, latest, chi2, top, n, mean_w, fractions, out):
    """Summary (8,) of a fit: shape, phase, errors, misfit, signal."""
    f = t = u = 0.0
    for k in range(len(fractions)):
        f += fractions[k] * exp(fit[3 + 2 * k])
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


@njit(**QUICK, inline="always")
def refit_and_map(
    fits, cov, factors, count, width, free, times, flux, bright, weight, low, high, maps,
    summary, state,
):  # fmt: skip
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
    total, fractions, square = 0.0, np.zeros(num), 0.0
    for k in range(num):
        mean = own = 0.0
        scale = 1.0 / factors[k]
        for i in range(low[k], high[k]):
            w[i] = weight[i] * scale
        for i in range(low[k], high[k]):  # in a loop that stores, places in memory decide the order
            mean += bright[i]
            own += w[i] * w[i]
            total += w[i]
        fractions[k], square = own, square + own
        if width[k] > 1.0 and high[k] > low[k]:  # a baseline that is not given
            centre[k] = mean / (high[k] - low[k])
    scale = 1.0 / max(square, 1e-30)
    for k in range(num):
        fractions[k] *= scale
    refit(fits, cov, last, centre, width, free, times, flux, bright, w, low, high)
    if maps.shape[0] == 0:
        return
    residual = np.empty(len(times))
    chi2, top = _map(fits[0], times, flux, w, low, high, residual, maps[:5], maps[10])
    _summary(fits[0], cov[0], last, chi2, top, n, total / n, fractions, summary[:8])
    chi2_free = chi2
    if free:
        chi2_free, top = _map(fits[1], times, flux, w, low, high, residual, maps[5:10], maps[10])
        _summary(fits[1], cov[1], last, chi2_free, top, n, total / n, fractions, summary[8:16])
    else:
        for k in range(5):
            put(maps[k], maps[5 + k])
        put(summary[:8], summary[8:16])
    summary[16] = 2.0 * _asinh_half((chi2 - chi2_free) / 4.0) / 3.0
    summary[17] = log10(n / total / 0.03)
    summary[18] = log(count) / 5.0
    # Beside these: what baselines and errors are worth, and how the sets divide the event.
    base = spread = scatter = together = 0.0
    first = np.inf
    for k in range(num):
        if high[k] > low[k]:
            base += fractions[k] * np.sqrt(max(cov[1, k, 14], 0.0) * square)
            spread += fractions[k] * log(factors[k])
            scatter = max(scatter, factors[k])
            together += fractions[k] * fractions[k]
            first = min(first, times[low[k]])
    state[0] = 1.0 if width.max() <= 0.0 else 0.0
    state[1] = 1.0 if width.max() > 1.0 else 0.0
    state[2] = _asinh_half(base)
    state[3] = spread
    state[4] = log(max(scatter, 1e-3))
    together = np.float64(np.float32(together))  # one data set has 1, in any order of sums
    state[5] = log(1.0 / max(together, 1e-3))
    state[6] = _asinh_half((fits[1, 0] - first) * exp(-fits[1, 2]))
    state[7] = log10(max(last - first, 1e-3) * exp(-fits[1, 2]) / n + 1e-6) / 3.0


@njit(**QUICK, inline="always")
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
