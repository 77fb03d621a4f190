"""All single-lens refits of a light curve in one GPU program (Triton, float32 or float64).

A curve is refitted at growing counts of its epochs, with all flux lensed (theta = t0, ln u0, ln tE)
and, where the blend is open, with a free share f_s of it (theta with ln f_s as well). Each refit
begins where the last one ended or in a better valley found from eight starts on binned epochs, and
takes always as many steps of Levenberg and Marquardt. One program walks through the refits of one
curve; its epochs stay in the cache between them. The plain form is a chain of small operations for
each refit, over all curves.

`refit_all` is the entry. Sums over epochs are made in tiles, in an order that does not depend on
the other curves, so the same input gives the same bits.
"""

from math import log

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["refit_all"]

BIN_EPOCHS = 8  # epochs averaged where only the valley of a fit is sought

MAG = tl.constexpr(2.5 / log(10.0))
BIN = tl.constexpr(BIN_EPOCHS)
# Weak priors: centres (t0 has the latest epoch) and precisions.
LN_U0 = tl.constexpr(log(0.5))
LN_TE = tl.constexpr(log(22.4))
T0_PRECISION = tl.constexpr(1e-4)
LN_U0_PRECISION = tl.constexpr(0.25)
LN_TE_PRECISION = tl.constexpr(1 / 0.81)
LN_FS_PRECISION = tl.constexpr(1.0)
# Bounds of the parameters; ln f_s ends at 0.
LN_U0_LOW = tl.constexpr(log(1e-5))
LN_U0_HIGH = tl.constexpr(log(5.0))
LN_TE_LOW = tl.constexpr(log(0.1))
LN_TE_HIGH = tl.constexpr(log(2000.0))
LN_FS_LOW = tl.constexpr(log(0.01))
# Starts of the search keep u0 in [1e-4, 1.5].
START_LOW = tl.constexpr(-9.210340371976182)
START_HIGH = tl.constexpr(0.4054651081081644)


@triton.jit
def clip(x, low, high):
    """`x` within [low, high]."""
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def state_all_lensed(times, mags, root, n, last, t0, ln_u0, ln_tE, TILE: tl.constexpr):
    """Cost, gradient (3) and Gauss-Newton matrix (6, upper rows) with all flux lensed.

    `times`, `mags` and `root` (1 / sigma) point at `n` epochs; priors are included.
    """
    rate = tl.exp(-ln_tE)
    u0_squared = tl.exp(2.0 * ln_u0)
    zero = tl.zeros([TILE], times.dtype.element_ty)
    g0, g1, g2, g3, g4 = zero, zero, zero, zero, zero  # g^2 tau^k
    r0, r1, r2, rr = zero, zero, zero, zero  # r g tau^k, r^2
    for first in range(0, n, TILE):
        at = first + tl.arange(0, TILE)
        inside = at < n
        tau = (tl.load(times + at, mask=inside, other=0.0) - t0) * rate
        m = tl.load(mags + at, mask=inside, other=0.0)
        w = tl.load(root + at, mask=inside, other=0.0)
        tau2 = tau * tau
        x = tau2 + u0_squared
        y = (x + 4.0) * x
        root_y = tl.sqrt(y)
        flux = 1.0 + 4.0 / ((x + 2.0 + root_y) * root_y)
        r = (-MAG * tl.log(flux) - m) * w
        g = 4.0 * MAG / (y * root_y * flux) * w  # slope of the magnitude in x
        gg = g * g
        rg = r * g
        g0 += gg
        g1 += gg * tau
        g2 += gg * tau2
        g3 += gg * tau2 * tau
        g4 += gg * tau2 * tau2
        r0 += rg
        r1 += rg * tau
        r2 += rg * tau2
        rr += r * r
    a = -2.0 * rate  # d x / d t0 = a tau, d x / d ln u0 = b, d x / d ln tE = c tau^2
    b = 2.0 * u0_squared
    c = -2.0
    off0 = t0 - last
    off1 = ln_u0 - LN_U0
    off2 = ln_tE - LN_TE
    prior = T0_PRECISION * off0 * off0
    cost = tl.sum(rr, 0) + prior + LN_U0_PRECISION * off1 * off1 + LN_TE_PRECISION * off2 * off2
    return (
        cost,
        a * tl.sum(r1, 0) + T0_PRECISION * off0,
        b * tl.sum(r0, 0) + LN_U0_PRECISION * off1,
        c * tl.sum(r2, 0) + LN_TE_PRECISION * off2,
        a * a * tl.sum(g2, 0) + T0_PRECISION,
        a * b * tl.sum(g1, 0),
        a * c * tl.sum(g3, 0),
        b * b * tl.sum(g0, 0) + LN_U0_PRECISION,
        b * c * tl.sum(g2, 0),
        c * c * tl.sum(g4, 0) + LN_TE_PRECISION,
    )


@triton.jit
def state_blended(times, mags, root, n, last, t0, ln_u0, ln_tE, ln_fs, TILE: tl.constexpr):
    """Cost, gradient (4) and Gauss-Newton matrix (10, upper rows) with a free share f_s."""
    rate = tl.exp(-ln_tE)
    u0_squared = tl.exp(2.0 * ln_u0)
    f_s = tl.exp(ln_fs)
    zero = tl.zeros([TILE], times.dtype.element_ty)
    g0, g1, g2, g3, g4 = zero, zero, zero, zero, zero  # g^2 tau^k
    r0, r1, r2, rr = zero, zero, zero, zero  # r g tau^k, r^2
    d0, d1, d2, dr, dd = zero, zero, zero, zero, zero  # d g tau^k, d r, d^2; d: slope in ln f_s
    for first in range(0, n, TILE):
        at = first + tl.arange(0, TILE)
        inside = at < n
        tau = (tl.load(times + at, mask=inside, other=0.0) - t0) * rate
        m = tl.load(mags + at, mask=inside, other=0.0)
        w = tl.load(root + at, mask=inside, other=0.0)
        tau2 = tau * tau
        x = tau2 + u0_squared
        y = (x + 4.0) * x
        root_y = tl.sqrt(y)
        excess = 4.0 / ((x + 2.0 + root_y) * root_y)
        flux = 1.0 + excess * f_s
        r = (-MAG * tl.log(flux) - m) * w
        g = 4.0 * MAG * f_s / (y * root_y * flux) * w
        d = -MAG * excess * f_s / flux * w
        gg = g * g
        rg = r * g
        dg = d * g
        g0 += gg
        g1 += gg * tau
        g2 += gg * tau2
        g3 += gg * tau2 * tau
        g4 += gg * tau2 * tau2
        r0 += rg
        r1 += rg * tau
        r2 += rg * tau2
        rr += r * r
        d0 += dg
        d1 += dg * tau
        d2 += dg * tau2
        dr += d * r
        dd += d * d
    a = -2.0 * rate
    b = 2.0 * u0_squared
    c = -2.0
    off0 = t0 - last
    off1 = ln_u0 - LN_U0
    off2 = ln_tE - LN_TE
    prior = T0_PRECISION * off0 * off0
    cost = tl.sum(rr, 0) + prior + LN_U0_PRECISION * off1 * off1 + LN_TE_PRECISION * off2 * off2
    cost += LN_FS_PRECISION * ln_fs * ln_fs
    return (
        cost,
        a * tl.sum(r1, 0) + T0_PRECISION * off0,
        b * tl.sum(r0, 0) + LN_U0_PRECISION * off1,
        c * tl.sum(r2, 0) + LN_TE_PRECISION * off2,
        tl.sum(dr, 0) + LN_FS_PRECISION * ln_fs,
        a * a * tl.sum(g2, 0) + T0_PRECISION,
        a * b * tl.sum(g1, 0),
        a * c * tl.sum(g3, 0),
        a * tl.sum(d1, 0),
        b * b * tl.sum(g0, 0) + LN_U0_PRECISION,
        b * c * tl.sum(g2, 0),
        b * tl.sum(d0, 0),
        c * c * tl.sum(g4, 0) + LN_TE_PRECISION,
        c * tl.sum(d2, 0),
        tl.sum(dd, 0) + LN_FS_PRECISION,
    )


@triton.jit
def solve3(a, b, c, d, e, f, x, y, z):
    """Solve (a b c; b d e; c e f) s = (x y z), positive definite, hence without pivots."""
    l1 = b / a
    l2 = c / a
    d1 = d - l1 * b
    e1 = e - l1 * c
    m = e1 / d1
    f2 = f - l2 * c - m * e1
    y1 = y - l1 * x
    z2 = z - l2 * x - m * y1
    s2 = z2 / f2
    s1 = (y1 - e1 * s2) / d1
    s0 = (x - b * s1 - c * s2) / a
    return s0, s1, s2


@triton.jit
def solve4(a, b, c, d, e, f, g, h, i, j, x, y, z, w):
    """Solve (a b c d; b e f g; c f h i; d g i j) s = (x y z w), as `solve3`."""
    l1 = b / a
    l2 = c / a
    l3 = d / a
    e1 = e - l1 * b
    f1 = f - l1 * c
    g1 = g - l1 * d
    h1 = h - l2 * c
    i1 = i - l2 * d
    j1 = j - l3 * d
    m2 = f1 / e1
    m3 = g1 / e1
    h2 = h1 - m2 * f1
    i2 = i1 - m2 * g1
    j2 = j1 - m3 * g1
    k3 = i2 / h2
    j3 = j2 - k3 * i2
    y1 = y - l1 * x
    z2 = z - l2 * x - m2 * y1
    w3 = w - l3 * x - m3 * y1 - k3 * z2
    s3 = w3 / j3
    s2 = (z2 - i2 * s3) / h2
    s1 = (y1 - f1 * s2 - g1 * s3) / e1
    s0 = (x - b * s1 - c * s2 - d * s3) / a
    return s0, s1, s2, s3


@triton.jit
def either3(choose, p, q):
    """`p` where `choose`, else `q`, of states of `state_all_lensed`."""
    return (
        tl.where(choose, p[0], q[0]),
        tl.where(choose, p[1], q[1]),
        tl.where(choose, p[2], q[2]),
        tl.where(choose, p[3], q[3]),
        tl.where(choose, p[4], q[4]),
        tl.where(choose, p[5], q[5]),
        tl.where(choose, p[6], q[6]),
        tl.where(choose, p[7], q[7]),
        tl.where(choose, p[8], q[8]),
        tl.where(choose, p[9], q[9]),
    )


@triton.jit
def either4(choose, p, q):
    """`p` where `choose`, else `q`, of states of `state_blended`."""
    return (
        tl.where(choose, p[0], q[0]),
        tl.where(choose, p[1], q[1]),
        tl.where(choose, p[2], q[2]),
        tl.where(choose, p[3], q[3]),
        tl.where(choose, p[4], q[4]),
        tl.where(choose, p[5], q[5]),
        tl.where(choose, p[6], q[6]),
        tl.where(choose, p[7], q[7]),
        tl.where(choose, p[8], q[8]),
        tl.where(choose, p[9], q[9]),
        tl.where(choose, p[10], q[10]),
        tl.where(choose, p[11], q[11]),
        tl.where(choose, p[12], q[12]),
        tl.where(choose, p[13], q[13]),
        tl.where(choose, p[14], q[14]),
    )


@triton.jit
def descend3(
    times, mags, root, n, last, t0, ln_u0, ln_tE, state, steps, TILE: tl.constexpr
):  # fmt: skip
    """So many steps of Levenberg and Marquardt with all flux lensed; the end and its state."""
    damping = state[0] * 0.0 + 1e-3
    for _ in range(steps):
        q = 1.0 + damping
        s0, s1, s2 = solve3(
            state[4] * q + 1e-30, state[5], state[6], state[7] * q + 1e-30, state[8],
            state[9] * q + 1e-30, state[1], state[2], state[3],
        )  # fmt: skip
        far = 1.5 * tl.exp(ln_tE)
        new0 = t0 - clip(s0, -far, far)
        new1 = clip(ln_u0 - clip(s1, -1.5, 1.5), LN_U0_LOW, LN_U0_HIGH)
        new2 = clip(ln_tE - clip(s2, -1.5, 1.5), LN_TE_LOW, LN_TE_HIGH)
        new = state_all_lensed(times, mags, root, n, last, new0, new1, new2, TILE)
        better = new[0] < state[0]
        t0 = tl.where(better, new0, t0)
        ln_u0 = tl.where(better, new1, ln_u0)
        ln_tE = tl.where(better, new2, ln_tE)
        state = either3(better, new, state)
        damping = tl.where(better, damping / 10.0, damping * 10.0)
    return t0, ln_u0, ln_tE, state


@triton.jit
def descend4(
    times, mags, root, n, last, t0, ln_u0, ln_tE, ln_fs, state, steps, TILE: tl.constexpr
):  # fmt: skip
    """`descend3` with a free share f_s."""
    damping = state[0] * 0.0 + 1e-3
    for _ in range(steps):
        q = 1.0 + damping
        s0, s1, s2, s3 = solve4(
            state[5] * q + 1e-30, state[6], state[7], state[8], state[9] * q + 1e-30, state[10],
            state[11], state[12] * q + 1e-30, state[13], state[14] * q + 1e-30, state[1], state[2],
            state[3], state[4],
        )  # fmt: skip
        far = 1.5 * tl.exp(ln_tE)
        new0 = t0 - clip(s0, -far, far)
        new1 = clip(ln_u0 - clip(s1, -1.5, 1.5), LN_U0_LOW, LN_U0_HIGH)
        new2 = clip(ln_tE - clip(s2, -1.5, 1.5), LN_TE_LOW, LN_TE_HIGH)
        new3 = clip(ln_fs - clip(s3, -1.5, 1.5), LN_FS_LOW, 0.0)
        new = state_blended(times, mags, root, n, last, new0, new1, new2, new3, TILE)
        better = new[0] < state[0]
        t0 = tl.where(better, new0, t0)
        ln_u0 = tl.where(better, new1, ln_u0)
        ln_tE = tl.where(better, new2, ln_tE)
        ln_fs = tl.where(better, new3, ln_fs)
        state = either4(better, new, state)
        damping = tl.where(better, damping / 10.0, damping * 10.0)
    return t0, ln_u0, ln_tE, ln_fs, state


@triton.jit
def u_squared(excess):
    """u^2 at which a point lens has magnification 1 + `excess`."""
    root = tl.sqrt(excess * (excess + 2.0))
    return 2.0 / ((1.0 + excess + root) * root)


@triton.jit
def along_the_valley(ln_u0, ln_tE, ln_fs, shift: tl.constexpr):
    """A fit with ln f_s moved by `shift`, peak flux and width at half of it as they were."""
    moved = clip(ln_fs + shift, LN_FS_LOW, 0.0)
    x = tl.exp(2.0 * ln_u0)
    root = tl.sqrt(x * (x + 4.0))
    peak = 4.0 / (root * (root + x + 2.0))
    new_peak = peak * tl.exp(ln_fs - moved)
    new = u_squared(new_peak)
    width = (u_squared(peak / 2.0) - x) / (u_squared(new_peak / 2.0) - new)
    return 0.5 * tl.log(new), ln_tE + 0.5 * tl.log(width), moved


@triton.jit
def tried_tE(start):
    """tE [day] of the starts of a search: 3, 8, 20, 50, 8, 25, 15, 40."""
    late = tl.where(start == 3, 50.0, tl.where(start == 5, 25.0, tl.where(start == 6, 15.0, 40.0)))
    middle = tl.where((start == 1) | (start == 4), 8.0, tl.where(start == 2, 20.0, late))
    return tl.where(start == 0, 3.0, middle)


@triton.jit
def refits_kernel(
    times, mags, root, bin_times, bin_mags, bin_root, own_epochs, counts, blended, theta,
    covariance, L, L_BINS, J, TILE: tl.constexpr, BIN_TILE: tl.constexpr,
):  # fmt: skip
    """All refits of one curve; program 0 has the number of the curve.

    Times, magnitudes and roots are (B, L), their bins (B, L_BINS), `counts` (J,), `own_epochs` and
    `blended` (B,); `theta` (B, J, 2, 4) and `covariance` (B, J, 2, 16) are written where a curve
    has as many epochs, the second model only where the blend is open.
    """
    row = tl.program_id(0).to(tl.int64)
    times += row * L
    mags += row * L
    root += row * L
    bin_times += row * L_BINS
    bin_mags += row * L_BINS
    bin_root += row * L_BINS
    own = tl.load(own_epochs + row)
    is_open = tl.load(blended + row)
    t0 = tl.load(times) * 0.0  # a zero of the right kind
    ln_u0 = t0 + LN_U0
    ln_tE = t0 + LN_TE
    open_t0 = t0  # the same of the second model
    open_u0 = ln_u0
    open_tE = ln_tE
    open_fs = t0
    for j in range(J):
        n = tl.load(counts + j)
        if n <= own:
            bins = n // BIN
            last = tl.load(times + n - 1)
            t0 = tl.where(j == 0, last, t0)
            open_t0 = tl.where(j == 0, last, open_t0)
            # The brightest bin, sure of its error.
            high1 = t0 * 0.0 - 1e30
            when1 = t0
            for first in range(0, bins, BIN_TILE):
                i = first + tl.arange(0, BIN_TILE)
                inside = i < bins
                m = tl.load(bin_mags + i, mask=inside, other=0.0)
                sure = tl.where(
                    inside, -m - 1.0 / tl.load(bin_root + i, mask=inside, other=1.0), -1e30
                )
                top = tl.max(sure, 0)
                at = tl.argmax(sure, 0)
                better = top > high1
                when1 = tl.where(better, tl.load(bin_times + first + at), when1)
                high1 = tl.where(better, top, high1)
            # The brightest one more than 15 days away.
            high2 = t0 * 0.0 - 1e30
            when2 = t0
            for first in range(0, bins, BIN_TILE):
                i = first + tl.arange(0, BIN_TILE)
                inside = i < bins
                apart = tl.abs(tl.load(bin_times + i, mask=inside, other=0.0) - when1) > 15.0
                m = tl.load(bin_mags + i, mask=inside, other=0.0)
                sure = tl.where(
                    apart, -m - 1.0 / tl.load(bin_root + i, mask=inside, other=1.0), -1.0
                )
                sure = tl.where(inside, sure, -1e30)
                top = tl.max(sure, 0)
                at = tl.argmax(sure, 0)
                better = top > high2
                when2 = tl.where(better, tl.load(bin_times + first + at), when2)
                high2 = tl.where(better, top, high2)
            latest = -tl.load(bin_mags + bins - 1)
            # Eight starts on bins, of which the two of least cost are kept: p, then q.
            cost_p = t0 * 0.0 + 1e30
            cost_q = cost_p
            p0 = t0
            p1 = t0
            p2 = t0
            q0 = t0
            q1 = t0
            q2 = t0
            for s in range(8):
                kind = tl.where(s < 4, 0, tl.where(s < 6, 1, 2))
                tE = tried_tE(s)
                height = tl.where(kind == 0, high1, tl.where(kind == 1, high2, latest))
                height = clip(height, 0.02, 8.0)
                gain = tl.exp(height / MAG) - 1.0
                s1 = clip(
                    0.5 * tl.log(2.0 * (1.0 + gain) / tl.sqrt(gain * (gain + 2.0)) - 2.0),
                    START_LOW, START_HIGH,
                ) - tl.where(kind == 2, 0.5, 0.0)  # fmt: skip
                s0 = tl.where(kind == 0, when1, tl.where(kind == 1, when2, last + 0.5 * tE))
                s2 = tl.log(tE + t0 * 0.0)
                new = state_all_lensed(
                    bin_times, bin_mags, bin_root, bins, last, s0, s1, s2, BIN_TILE
                )
                best = new[0] < cost_p
                second = new[0] < cost_q
                cost_q = tl.where(best, cost_p, tl.where(second, new[0], cost_q))
                q0 = tl.where(best, p0, tl.where(second, s0, q0))
                q1 = tl.where(best, p1, tl.where(second, s1, q1))
                q2 = tl.where(best, p2, tl.where(second, s2, q2))
                cost_p = tl.where(best, new[0], cost_p)
                p0 = tl.where(best, s0, p0)
                p1 = tl.where(best, s1, p1)
                p2 = tl.where(best, s2, p2)
            # Descents from both; the better end is what the search found.
            least = cost_p * 0.0 + 1e30
            found0 = t0
            found1 = ln_u0
            found2 = ln_tE
            for s in range(2):
                a0 = tl.where(s == 0, p0, q0)
                a1 = tl.where(s == 0, p1, q1)
                a2 = tl.where(s == 0, p2, q2)
                new = state_all_lensed(
                    bin_times, bin_mags, bin_root, bins, last, a0, a1, a2, BIN_TILE
                )
                a0, a1, a2, new = descend3(
                    bin_times, bin_mags, bin_root, bins, last, a0, a1, a2, new, 4, BIN_TILE
                )
                better = new[0] < least
                least = tl.where(better, new[0], least)
                found0 = tl.where(better, a0, found0)
                found1 = tl.where(better, a1, found1)
                found2 = tl.where(better, a2, found2)
            # All flux lensed: from the last end, or from what the search found.
            state = state_all_lensed(times, mags, root, n, last, t0, ln_u0, ln_tE, TILE)
            new = state_all_lensed(times, mags, root, n, last, found0, found1, found2, TILE)
            better = new[0] < state[0]
            state = either3(better, new, state)
            t0 = tl.where(better, found0, t0)
            ln_u0 = tl.where(better, found1, ln_u0)
            ln_tE = tl.where(better, found2, ln_tE)
            t0, ln_u0, ln_tE, state = descend3(
                times, mags, root, n, last, t0, ln_u0, ln_tE, state, 3, TILE
            )
            place = (row * J + j) * 2
            end = theta + place * 4
            inverse = covariance + place * 16
            tl.store(end, t0)
            tl.store(end + 1, ln_u0)
            tl.store(end + 2, ln_tE)
            tl.store(end + 3, t0 * 0.0)
            for c in range(3):
                i0, i1, i2 = solve3(
                    state[4], state[5], state[6], state[7], state[8], state[9],
                    tl.where(c == 0, 1.0, 0.0), tl.where(c == 1, 1.0, 0.0),
                    tl.where(c == 2, 1.0, 0.0),
                )  # fmt: skip
                tl.store(inverse + c, i0)
                tl.store(inverse + 4 + c, i1)
                tl.store(inverse + 8 + c, i2)
            if is_open != 0:
                # A free share: from its last end, from the fit above, or along its valley.
                wide = state_blended(
                    times, mags, root, n, last, open_t0, open_u0, open_tE, open_fs, TILE
                )
                z0 = open_t0
                z1 = open_u0
                z2 = open_tE
                z3 = open_fs
                for s in range(3):
                    down1, down2, down3 = along_the_valley(z1, z2, z3, -0.4)
                    up1, up2, up3 = along_the_valley(z1, z2, z3, 0.3)
                    a0 = tl.where(s == 0, t0, z0)
                    a1 = tl.where(s == 0, ln_u0, tl.where(s == 1, down1, up1))
                    a2 = tl.where(s == 0, ln_tE, tl.where(s == 1, down2, up2))
                    a3 = tl.where(s == 0, 0.0, tl.where(s == 1, down3, up3))
                    other = state_blended(times, mags, root, n, last, a0, a1, a2, a3, TILE)
                    better = other[0] < wide[0]
                    wide = either4(better, other, wide)
                    open_t0 = tl.where(better, a0, open_t0)
                    open_u0 = tl.where(better, a1, open_u0)
                    open_tE = tl.where(better, a2, open_tE)
                    open_fs = tl.where(better, a3, open_fs)
                open_t0, open_u0, open_tE, open_fs, wide = descend4(
                    times, mags, root, n, last, open_t0, open_u0, open_tE, open_fs, wide, 3, TILE
                )
                tl.store(end + 4, open_t0)
                tl.store(end + 5, open_u0)
                tl.store(end + 6, open_tE)
                tl.store(end + 7, open_fs)
                for c in range(4):
                    i0, i1, i2, i3 = solve4(
                        wide[5], wide[6], wide[7], wide[8], wide[9], wide[10], wide[11], wide[12],
                        wide[13], wide[14], tl.where(c == 0, 1.0, 0.0),
                        tl.where(c == 1, 1.0, 0.0), tl.where(c == 2, 1.0, 0.0),
                        tl.where(c == 3, 1.0, 0.0),
                    )  # fmt: skip
                    tl.store(inverse + 16 + c, i0)
                    tl.store(inverse + 20 + c, i1)
                    tl.store(inverse + 24 + c, i2)
                    tl.store(inverse + 28 + c, i3)


# Epochs and bins of a tile: a single warp a curve. On an H200, float32, 16,384 curves: 22.3 ms with
# (64, 32) and one warp, 35.6 ms with (128, 32), 37.3 ms with (128, 64) and two warps.
TILES = {torch.float32: (64, 32), torch.float64: (32, 32)}


def refit_all(
    times: Tensor, bright: Tensor, root: Tensor, own: Tensor, counts: Tensor, blended: Tensor
) -> tuple[Tensor, Tensor]:
    """Every refit of B curves, both models.

    Args:
        times, bright, root: Epochs [day], brightening [mag] and 1 / sigma, (B, L), contiguous, all
            float32 or all float64; L is a multiple of 8, `root` is 0 behind a curve's own epochs.
        own: Epochs of each curve, (B,) int32.
        counts: Epochs at which curves are refitted, multiples of 8 that rise, (J,) int32.
        blended: Whether f_s may be less than 1, (B,) bool; where not, the second model is the
            first again.

    Returns:
        Ends (B, J, 2, 4), that is t0, ln u0, ln tE, ln f_s, and covariances (B, J, 2, 16); zeros
        where a curve has fewer epochs.
    """
    B, L = times.shape
    weight = (root * root).unflatten(1, (-1, BIN_EPOCHS))
    total = weight.sum(2)
    norm = total.clamp_min(torch.finfo(total.dtype).tiny)
    mags = -bright
    bin_times = (weight * times.unflatten(1, (-1, BIN_EPOCHS))).sum(2) / norm
    bin_mags = (weight * mags.unflatten(1, (-1, BIN_EPOCHS))).sum(2) / norm
    J = len(counts)
    theta, covariance = times.new_zeros(B, J, 2, 4), times.new_zeros(B, J, 2, 16)
    tile, bin_tile = TILES[times.dtype]
    refits_kernel[(B,)](
        times, mags, root, bin_times, bin_mags, total.sqrt(), own, counts, blended.to(torch.int32),
        theta, covariance, L, L // BIN_EPOCHS, J, TILE=tile, BIN_TILE=bin_tile, num_warps=1,
    )  # fmt: skip
    told = ~blended[:, None, None]
    theta[:, :, 1] = torch.where(told, theta[:, :, 0], theta[:, :, 1])
    covariance[:, :, 1] = torch.where(told, covariance[:, :, 0], covariance[:, :, 1])
    return theta, covariance.nan_to_num_()
