"""Compiled point-lens fits to all data sets of an event; each begins at the last.

Data set k has a zero point: its baseline B_k, with a Gaussian prior, and f_s,k, the lensed part of
its baseline flux. Its brightness is B_k + MAG ln(1 + f_s,k (A(t) - 1)), with t0, u0, tE common.
Two models are fitted: all flux lensed, and every f_s,k free. Residuals stay in magnitudes, where
quoted errors are normal; Huber's loss bounds the pull of outliers. The Gauss-Newton matrix is an
arrow: the 2 x 2 block of each data set is eliminated, so that the cost is linear in their number.
A refit takes a fixed number of Levenberg-Marquardt steps from several starting points (`fit_pspl`
goes on to convergence): its cost is bounded, and a stream gets the same fits.

Epochs of a data set lie together, in time order; `low` and `high` (K,) bound those in use. A fit
is a row (3 + 2 K,): t0 [day], ln u0, ln tE, then ln f_s,k and B_k [mag] of each data set.
"""

from math import exp, log

import numpy as np
from numba import njit

from lensml.lensing.normal_equations import MAG

HUBER = 3.0  # residuals beyond, in errors, count linearly where errors are not exact
NEVER = 1e9
ITERATIONS, SEARCH_ITERATIONS = 3, 4  # of a refit, of a search
BIN = 8  # epochs of a data set averaged in the search
# Priors: centre and width of t0 (from the last epoch) [day], ln u0, ln tE; width of ln f_s.
FIT_CENTRE = (0.0, log(0.5), log(22.4))
WIDTH = (100.0, 2.0, 0.9)
BLEND_WIDTH = 1.0
LOW_U, HIGH_U, LOW_T, HIGH_T = log(1e-5), log(5.0), log(0.1), log(2000.0)
LOW_F = log(0.01)
BLEND_SHIFTS = (-0.4, 0.3)  # changes of ln f_s that are tried as starting points
SEARCH_TE = np.array([3.0, 8.0, 20.0, 50.0, 8.0, 25.0, 15.0, 40.0])  # [day]
SEARCH_PEAK = np.array([0, 0, 0, 0, 1, 1, 2, 2])  # brightest, second brightest, ahead
FIXED = 1e30  # precision of a parameter that does not move
FEW_ERRORS = 30  # weight of quoted errors against measured scatter [epochs]
LAST_ERRORS = 256  # epochs of a data set whose scatter is measured
QUICK = {"cache": True, "nogil": True, "error_model": "numpy"}
QUICK["fastmath"] = {"reassoc", "contract", "nsz", "arcp"}
# A function that is compiled apart has two versions, of which another process may take the other:
QUICK["forceinline"] = True  # sums would differ in their last bits from those of this one


@njit(**QUICK)
def put(source, target):
    """`target[:] = source` of one axis; Numba's own takes a second to compile, each time."""
    for i in range(len(source)):
        target[i] = source[i]


@njit(**QUICK)
def log_ratio(top, bottom):
    """ln(top / bottom) of positive numbers, to 1e-6 within a factor of two, at most 3.6."""
    z = (top - bottom) / (top + bottom)
    q = z * z
    return 2.0 * z * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q / 9))))


@njit(**QUICK)
def _sums(t0, rate, uu, f, gain, limit, times, flux, w, low, high, out):
    """Sums of one data set over Huber's weights; `out` (20,) gets them."""
    g0 = g1 = g2 = g3 = g4 = 0.0
    r0 = r1 = r2 = cost = 0.0
    d0 = d1 = d2 = dr = dd = 0.0
    b0 = b1 = b2 = bd = br = bb = 0.0
    for i in range(low, high):
        tau = (times[i] - t0) * rate
        tau2 = tau * tau
        x = tau2 + uu
        y = x * (x + 4.0)
        root = np.sqrt(y)
        below = root * (root + x + 2.0)
        above = below + 4.0 * f
        e = MAG * log_ratio(flux[i] * gain * below, above) * w[i]
        size = abs(e)
        inside = min(size, limit)
        cost += inside * (2.0 * size - inside)
        h = limit / max(size, limit)
        lensed = 4.0 * MAG * f * w[i] / above  # change of the brightness with ln f_s
        g = -lensed * below / (y * root)  # and with x
        hg, hd, hw = h * g, h * lensed, h * w[i]
        g0 += hg * g
        g1 += hg * g * tau
        g2 += hg * g * tau2
        g3 += hg * g * tau2 * tau
        g4 += hg * g * tau2 * tau2
        r0 += hg * e
        r1 += hg * e * tau
        r2 += hg * e * tau2
        d0 += hd * g
        d1 += hd * g * tau
        d2 += hd * g * tau2
        dr += hd * e
        dd += hd * lensed
        b0 += hw * g
        b1 += hw * g * tau
        b2 += hw * g * tau2
        bd += hw * lensed
        br += hw * e
        bb += hw * w[i]
    out[0], out[1], out[2], out[3], out[4] = g0, g1, g2, g3, g4
    out[5], out[6], out[7], out[8] = r0, r1, r2, cost
    out[9], out[10], out[11], out[12], out[13] = d0, d1, d2, dr, dd
    out[14], out[15], out[16], out[17], out[18], out[19] = b0, b1, b2, bd, br, bb


@njit(**QUICK)
def linearise(fit, free, last, centre, width, times, flux, w, low, high, state):
    """Cost at `fit` with priors; gradient and Gauss-Newton matrix into `state` (K + 1, 11).

    Row 0: gradient (3) and upper triangle (6) of the common parameters; row k + 1: gradient of
    ln f_s and B, their 2 x 2 block as (ff, fB, BB), coupling to the common ones (6).
    """
    t0, rate, uu = fit[0], exp(-fit[2]), exp(2.0 * fit[1])
    a, b, c = -2.0 * rate, 2.0 * uu, -2.0
    state[0, :] = 0.0
    total = 0.0
    s = np.empty(20)
    for j in range(3):
        off = fit[j] - FIT_CENTRE[j] - (last if j == 0 else 0.0)
        p = 1.0 / WIDTH[j] ** 2
        total += p * off * off
        state[0, j] = p * off
    state[0, 3] = 1.0 / WIDTH[0] ** 2
    state[0, 6] = 1.0 / WIDTH[1] ** 2
    state[0, 8] = 1.0 / WIDTH[2] ** 2
    for k in range(len(low)):
        ln_f, base = fit[3 + 2 * k], fit[4 + 2 * k]
        limit = HUBER if width[k] > 0.0 else NEVER
        _sums(t0, rate, uu, exp(ln_f), exp(-base / MAG), limit, times, flux, w, low[k], high[k], s)
        total += s[8]
        own = state[k + 1]
        # J' e: the residual is data less model, so that the gradient has a minus.
        state[0, 0] -= a * s[6]
        state[0, 1] -= b * s[5]
        state[0, 2] -= c * s[7]
        state[0, 3] += a * a * s[2]
        state[0, 4] += a * b * s[1]
        state[0, 5] += a * c * s[3]
        state[0, 6] += b * b * s[0]
        state[0, 7] += b * c * s[2]
        state[0, 8] += c * c * s[4]
        if free:
            p = 1.0 / BLEND_WIDTH**2
            total += p * ln_f * ln_f
            own[0] = p * ln_f - s[12]
            own[2] = s[13] + p
            own[5], own[6], own[7] = a * s[10], b * s[9], c * s[11]
            own[3] = s[17]
        else:
            own[0] = own[3] = own[5] = own[6] = own[7] = 0.0
            own[2] = FIXED
        if width[k] > 0.0:
            p = 1.0 / width[k] ** 2
            off = base - centre[k]
            total += p * off * off
            own[1] = p * off - s[18]
            own[4] = s[19] + p
            own[8], own[9], own[10] = a * s[15], b * s[14], c * s[16]
        else:
            own[1] = own[3] = own[8] = own[9] = own[10] = 0.0
            own[4] = FIXED
    return total


@njit(**QUICK)
def _inverse3(m, out):
    """Inverse of a symmetric matrix given as its upper triangle (6,), into `out` (6,)."""
    a, b, c, d, e, f = m[0], m[1], m[2], m[3], m[4], m[5]
    c0, c1, c2 = d * f - e * e, c * e - b * f, b * e - c * d
    det = a * c0 + b * c1 + c * c2
    if not det > 0.0:
        det = np.inf
    out[0], out[1], out[2] = c0 / det, c1 / det, c2 / det
    out[3], out[4], out[5] = (a * f - c * c) / det, (b * c - a * e) / det, (a * d - b * b) / det


@njit(**QUICK)
def _reduce(state, damping, blocks, schur, right):
    """Eliminate data sets: inverse blocks (K, 3), matrix (6,) and gradient (3,) that remain."""
    for j in range(6):
        schur[j] = state[0, 3 + j]
    schur[0] *= 1.0 + damping
    schur[3] *= 1.0 + damping
    schur[5] *= 1.0 + damping
    right[0], right[1], right[2] = state[0, 0], state[0, 1], state[0, 2]
    for k in range(len(blocks)):
        own = state[k + 1]
        ff, fb, bb = own[2] * (1.0 + damping), own[3], own[4] * (1.0 + damping)
        det = ff * bb - fb * fb
        p, q, r = bb / det, -fb / det, ff / det
        blocks[k, 0], blocks[k, 1], blocks[k, 2] = p, q, r
        at = 0
        for i in range(3):
            fi, bi = own[5 + i], own[8 + i]
            gf, gb = p * fi + q * bi, q * fi + r * bi
            right[i] -= gf * own[0] + gb * own[1]
            for j in range(i, 3):
                schur[at] -= gf * own[5 + j] + gb * own[8 + j]
                at += 1


@njit(**QUICK)
def _descend(fit, cost, state, steps, free, last, centre, width, times, flux, w, low, high):
    """`steps` Levenberg-Marquardt steps from `fit`, in place; the cost at the end."""
    num = len(low)
    blocks, schur, inverse, right = np.empty((num, 3)), np.empty(6), np.empty(6), np.empty(3)
    trial, new, damping = np.empty_like(fit), np.empty_like(state), 1e-3
    for _ in range(steps):
        _reduce(state, damping, blocks, schur, right)
        _inverse3(schur, inverse)
        i = inverse
        step0 = -(i[0] * right[0] + i[1] * right[1] + i[2] * right[2])
        step1 = -(i[1] * right[0] + i[3] * right[1] + i[4] * right[2])
        step2 = -(i[2] * right[0] + i[4] * right[1] + i[5] * right[2])
        far = 1.5 * exp(fit[2])
        trial[0] = fit[0] + min(max(step0, -far), far)
        trial[1] = min(max(fit[1] + min(max(step1, -1.5), 1.5), LOW_U), HIGH_U)
        trial[2] = min(max(fit[2] + min(max(step2, -1.5), 1.5), LOW_T), HIGH_T)
        for k in range(num):
            own = state[k + 1]
            gf = own[0] + own[5] * step0 + own[6] * step1 + own[7] * step2
            gb = own[1] + own[8] * step0 + own[9] * step1 + own[10] * step2
            sf = -(blocks[k, 0] * gf + blocks[k, 1] * gb)
            sb = -(blocks[k, 1] * gf + blocks[k, 2] * gb)
            trial[3 + 2 * k] = min(max(fit[3 + 2 * k] + min(max(sf, -1.5), 1.5), LOW_F), 0.0)
            trial[4 + 2 * k] = fit[4 + 2 * k] + min(max(sb, -1.5), 1.5)
        there = linearise(trial, free, last, centre, width, times, flux, w, low, high, new)
        if there < cost:
            cost = there
            put(trial, fit)
            put(new.ravel(), state.ravel())
            damping /= 10.0
        else:
            damping *= 10.0
    return cost


@njit(**QUICK)
def _covariance(state, covariance):
    """Of each data set's five parameters, t0, ln u0, ln tE, ln f_s, B: `covariance` (K, 15)."""
    num = len(covariance)
    blocks, schur, c, right = np.empty((num, 3)), np.empty(6), np.empty(6), np.empty(3)
    _reduce(state, 0.0, blocks, schur, right)
    _inverse3(schur, c)
    for k in range(num):
        own, p, q, r = state[k + 1], blocks[k, 0], blocks[k, 1], blocks[k, 2]
        out = covariance[k]
        put(c, out)
        # X = -(coupling) (block)^-1, so that the cross term is C X and the own one block^-1 + X'CX.
        xf, xb = np.empty(3), np.empty(3)
        for i in range(3):
            xf[i] = -(p * own[5 + i] + q * own[8 + i])
            xb[i] = -(q * own[5 + i] + r * own[8 + i])
        out[6] = c[0] * xf[0] + c[1] * xf[1] + c[2] * xf[2]
        out[7] = c[1] * xf[0] + c[3] * xf[1] + c[4] * xf[2]
        out[8] = c[2] * xf[0] + c[4] * xf[1] + c[5] * xf[2]
        out[9] = c[0] * xb[0] + c[1] * xb[1] + c[2] * xb[2]
        out[10] = c[1] * xb[0] + c[3] * xb[1] + c[4] * xb[2]
        out[11] = c[2] * xb[0] + c[4] * xb[1] + c[5] * xb[2]
        out[12] = p + xf[0] * out[6] + xf[1] * out[7] + xf[2] * out[8]
        out[13] = q + xb[0] * out[6] + xb[1] * out[7] + xb[2] * out[8]
        out[14] = r + xb[0] * out[9] + xb[1] * out[10] + xb[2] * out[11]


@njit(**QUICK)
def _quick_cost(t0, ln_u, ln_t, times, bright, w, low, high, centre, width, base):
    """Cost of an unblended start at its best baselines, which `base` (K,) gets; no Huber."""
    rate, uu, total = exp(-ln_t), exp(2.0 * ln_u), 0.0
    for k in range(len(low)):
        s0 = s1 = s2 = 0.0
        for i in range(low[k], high[k]):
            tau = (times[i] - t0) * rate
            x = tau * tau + uu
            root = np.sqrt(x * (x + 4.0))
            below = root * (root + x + 2.0)
            e = bright[i] - MAG * np.log((below + 4.0) / below)
            ww = w[i] * w[i]
            s0 += ww
            s1 += ww * e
            s2 += ww * e * e
        if width[k] > 0.0:
            p = 1.0 / width[k] ** 2
            base[k] = (s1 + p * centre[k]) / (s0 + p)
            total += s2 + p * centre[k] ** 2 - (s0 + p) * base[k] ** 2
        else:
            base[k] = centre[k]
            total += s2 - 2.0 * centre[k] * s1 + centre[k] ** 2 * s0
    return total


@njit(**QUICK, inline="always")
def _search(before, last, centre, width, times, bright, w, low, high, out):
    """Best of a grid of starting points on binned epochs, without blending: `out` (3 + 2 K,)."""
    num, most = len(low), 0
    for k in range(num):
        most += (high[k] - low[k] + BIN - 1) // BIN
    bt, bm, bw, bf = np.empty(most), np.empty(most), np.empty(most), np.empty(most)
    first, stop = np.empty_like(low), np.empty_like(low)
    # Bins of each data set; the brightest, counting one error less, and the latest.
    at, where1, best1, latest, height_last = 0, 0, -np.inf, -np.inf, 0.0
    certain = np.empty(most)
    for k in range(num):
        first[k] = at
        for i in range(low[k], high[k], BIN):
            weight = t = m = 0.0
            for j in range(i, min(i + BIN, high[k])):
                ww = w[j] * w[j]
                weight += ww
                t += ww * times[j]
                m += ww * bright[j]
            weight = max(weight, 1e-30)
            bt[at], bm[at], bw[at] = t / weight, m / weight, np.sqrt(weight)
            bf[at] = exp(bm[at] / MAG)
            certain[at] = bm[at] - before[4 + 2 * k] - 1.0 / bw[at]
            if certain[at] > best1:
                best1, where1 = certain[at], at
            if bt[at] > latest:
                latest, height_last = bt[at], bm[at] - before[4 + 2 * k]
            at += 1
        stop[k] = at
    best2, where2 = -np.inf, 0
    for i in range(at):
        value = certain[i] if abs(bt[i] - bt[where1]) > 15.0 else -1.0
        if value > best2:
            best2, where2 = value, i
    peaks = (bt[where1], bt[where2], last)
    heights = (best1, best2, height_last)
    base, costs = np.empty((len(SEARCH_TE), num)), np.empty(len(SEARCH_TE))
    starts = np.empty((len(SEARCH_TE), 3))
    for j in range(len(SEARCH_TE)):
        p, tE = SEARCH_PEAK[j], SEARCH_TE[j]
        gain = np.expm1(min(max(heights[p], 0.02), 8.0) / MAG)
        ln_u = 0.5 * log(2.0 * (1.0 + gain) / np.sqrt(gain * (gain + 2.0)) - 2.0)
        ln_u = min(max(ln_u, log(1e-4)), log(1.5))
        ahead = p == 2
        starts[j, 0] = peaks[p] + (0.5 * tE if ahead else 0.0)
        starts[j, 1] = ln_u - (0.5 if ahead else 0.0)
        starts[j, 2] = log(tE)
        t0, lu, lt = starts[j]
        costs[j] = _quick_cost(t0, lu, lt, bt, bm, bw, first, stop, centre, width, base[j])
        for i in range(3):
            off = starts[j, i] - FIT_CENTRE[i] - (last if i == 0 else 0.0)
            costs[j] += (off / WIDTH[i]) ** 2
    one = np.argmin(costs)
    costs[one] = np.inf
    two = np.argmin(costs)
    state, least = np.empty((num + 1, 11)), np.inf
    for j in (one, two):
        fit = np.zeros(3 + 2 * num)
        put(starts[j], fit)
        for k in range(num):
            fit[4 + 2 * k] = base[j, k]
        cost = linearise(fit, False, last, centre, width, bt, bf, bw, first, stop, state)
        cost = _descend(
            fit, cost, state, SEARCH_ITERATIONS, False, last, centre, width, bt, bf, bw, first, stop
        )
        if cost < least:
            least = cost
            put(fit, out)


@njit(**QUICK)
def _shift_blends(fit, shift, out):
    """`fit` with every ln f_s moved, peak and width at half of it unchanged on the average."""
    num, mean = (len(fit) - 3) // 2, 0.0
    for k in range(num):
        mean += fit[3 + 2 * k] / num
    moved = min(max(mean + shift, LOW_F), 0.0)
    x = exp(2.0 * fit[1])
    root = np.sqrt(x * (x + 4.0))
    peak = 4.0 / (root * (root + x + 2.0))
    new_peak = peak * exp(mean - moved)
    new_x = _u2_of_excess(new_peak)
    width = (_u2_of_excess(0.5 * peak) - x) / max(_u2_of_excess(0.5 * new_peak) - new_x, 1e-12)
    put(fit, out)
    out[1] = min(max(0.5 * log(new_x), LOW_U), HIGH_U)
    out[2] = min(max(fit[2] + 0.5 * log(max(width, 1e-12)), LOW_T), HIGH_T)
    for k in range(num):
        out[3 + 2 * k] = min(max(fit[3 + 2 * k] + moved - mean, LOW_F), 0.0)


@njit(**QUICK)
def _u2_of_excess(excess):
    """u^2 at which A - 1 has a given value."""
    root = np.sqrt(excess * (excess + 2.0))
    return 2.0 / ((1.0 + excess + root) * root)


@njit(**QUICK)
def brightness(fit, k, time):
    """Brightness of data set k at one time [mag], and its phase (t - t0) / tE."""
    tau = (time - fit[0]) * exp(-fit[2])
    x = tau * tau + exp(2.0 * fit[1])
    root = np.sqrt(x * (x + 4.0))
    below = root * (root + x + 2.0)
    return fit[4 + 2 * k] + MAG * log((below + 4.0 * exp(fit[3 + 2 * k])) / below), tau


@njit(**QUICK)
def error_factors(fit, width, times, bright, w, low, high, factors):
    """Scatter of each data set over its quoted errors, into `factors` (K,); 1 where exact.

    The median step between neighbours after `fit`: slow residuals, as an anomaly has, cancel.
    """
    for k in range(len(low)):
        first = max(low[k], high[k] - LAST_ERRORS)
        n = high[k] - first - 1
        if width[k] <= 0.0 or n < 4:
            if width[k] <= 0.0:
                factors[k] = 1.0
            continue
        steps, before = np.empty(n), 0.0
        for i in range(first, high[k]):
            r = (bright[i] - brightness(fit, k, times[i])[0]) * w[i]
            if i > first:
                steps[i - first - 1] = abs(r - before)
            before = r
        scatter = np.median(steps) / 0.9539  # the median of |N(0, 2)|
        factor = np.sqrt((FEW_ERRORS + n * scatter * scatter) / (FEW_ERRORS + n))
        factors[k] = min(max(factor, 0.4), 5.0)


@njit(**QUICK, inline="always")
def refit(fits, covariances, last, centre, width, free, times, flux, bright, w, low, high):
    """Refit both models in place: `fits` (2, 3 + 2 K), `covariances` (2, K, 15).

    `times` [day], `flux` = exp(bright / MAG), `bright` [mag] and `w` (1 / error) are (N,); `centre`
    and `width` (K,) the priors of the baselines, of which width 0 is exact. Without `free` the
    second model is the first. From the last ends, from a search, and along the degeneracy of f_s.
    """
    num = len(low)
    state, other = np.empty((num + 1, 11)), np.empty((num + 1, 11))
    trial, best = np.zeros(3 + 2 * num), np.empty(3 + 2 * num)
    for k in range(num):
        if width[k] <= 0.0:
            fits[:, 4 + 2 * k] = centre[k]
    data = last, centre, width, times, flux, w, low, high
    for model in range(1 + free):  # all flux lensed; every f_s free
        cost = np.inf
        for j in range(2 + 2 * model):  # starting points
            if j == 0:
                put(fits[model], trial)
            elif model == 0:
                _search(fits[0], last, centre, width, times, bright, w, low, high, trial)
            elif j == 1:
                put(fits[0], trial)
            else:
                _shift_blends(fits[1], BLEND_SHIFTS[j - 2], trial)
            there = linearise(trial, model == 1, *data, other)
            if j == 0 or there < cost:
                cost = there
                put(trial, best)
                put(other.ravel(), state.ravel())
        _descend(best, cost, state, ITERATIONS, model == 1, *data)
        put(best, fits[model])
        _covariance(state, covariances[model])
    if not free:
        put(fits[0], fits[1])
        put(covariances[0].ravel(), covariances[1].ravel())
