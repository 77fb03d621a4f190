"""`joint_fits` on a GPU (Triton; NVIDIA and AMD): a program makes all refits of an event.

The arithmetic is that of `joint_fits`, in the precision of the arrays; sums over epochs lie in
registers, values of data sets in vectors of SETS lanes, of which the first K are in use. Normal
equations are solved without the cofactors, which float32 could not bear. On a CPU Triton's
interpreter runs it (`TRITON_INTERPRET=1`).

Axes: R events, N epochs (data sets one behind the other), K data sets, J refits.
"""

import triton
import triton.language as tl

from lensml.lensing import joint_fits as host
from lensml.lensing.normal_equations import MAG as _MAG

MAG = tl.constexpr(_MAG)
BIN = tl.constexpr(host.BIN)
HUBER, NEVER = tl.constexpr(host.HUBER), tl.constexpr(host.NEVER)
C1, C2 = tl.constexpr(host.FIT_CENTRE[1]), tl.constexpr(host.FIT_CENTRE[2])
P0, P1, P2 = (tl.constexpr(1 / width**2) for width in host.WIDTH)
PF = tl.constexpr(1 / host.BLEND_WIDTH**2)
LOW_U, HIGH_U = tl.constexpr(host.LOW_U), tl.constexpr(host.HIGH_U)
LOW_T, HIGH_T = tl.constexpr(host.LOW_T), tl.constexpr(host.HIGH_T)
LOW_F = tl.constexpr(host.LOW_F)
DOWN, UP = (tl.constexpr(x) for x in host.BLEND_SHIFTS)
ITERATIONS = tl.constexpr(host.ITERATIONS)
SEARCH_ITERATIONS = tl.constexpr(host.SEARCH_ITERATIONS)
FEW_ERRORS, LAST_ERRORS = tl.constexpr(host.FEW_ERRORS), tl.constexpr(host.LAST_ERRORS)
FIXED = tl.constexpr(1e15)  # its square is a float32
LOW_START, HIGH_START = tl.constexpr(-9.210340371976182), tl.constexpr(0.4054651081081644)


@triton.jit
def pick(values, sets, k):
    """The value of data set k."""
    return tl.sum(tl.where(sets == k, values, 0), 0)


@triton.jit
def clip(x, low, high):
    """As NumPy does; a GPU's own instructions would turn NaN into a bound."""
    nan: tl.constexpr = tl.PropagateNan.ALL
    return tl.minimum(tl.maximum(x, low, propagate_nan=nan), high, propagate_nan=nan)


@triton.jit
def log_ratio(top, bottom):
    z = (top - bottom) / (top + bottom)
    q = z * z
    return 2.0 * z * (1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q / 9))))


@triton.jit
def _epochs(column, i, stop, extra, extra_at, BINNED: tl.constexpr):
    """Values at places `i`, 0 from `stop` on; with BINNED `extra` at `extra_at`."""
    found = tl.load(column + i, mask=i < stop, other=0.0)
    if BINNED:
        found = tl.where(i == extra_at, extra, found)
    return found


@triton.jit
def _sums(T, F, W, first, stop, t, f, w, at, t0, rate, uu, f_s, gain, scale, limit,
          FREE: tl.constexpr, BASES: tl.constexpr, BINNED: tl.constexpr,
          TILE: tl.constexpr):  # fmt: skip
    """`joint_fits._sums` of one data set: its epochs, or full bins and one more at `at`."""
    z = tl.zeros([TILE], T.dtype.element_ty)
    g0, g1, g2, g3, g4, r0, r1, r2, cost = z, z, z, z, z, z, z, z, z
    d0, d1, d2, dr, dd = z, z, z, z, z
    b0, b1, b2, bd, br, bb = z, z, z, z, z, z
    until = stop
    if BINNED:
        until = tl.maximum(stop, at + 1)
    for begin in range(first, until, TILE):
        i = begin + tl.arange(0, TILE)
        tau = (_epochs(T, i, stop, t, at, BINNED) - t0) * rate
        flux = _epochs(F, i, stop, f, at, BINNED)
        weight = _epochs(W, i, stop, w, at, BINNED) * scale
        tau2 = tau * tau
        x = tau2 + uu
        y = x * (x + 4.0)
        root = tl.sqrt(y)
        below = root * (root + x + 2.0)
        above = below + 4.0 * f_s
        e = log_ratio(flux * gain * below, above) * weight * MAG
        size = tl.abs(e)
        inside = tl.minimum(size, limit)
        cost += inside * (2.0 * size - inside)
        h = limit / tl.maximum(size, limit)
        lensed = f_s * (4.0 * MAG) * weight / above
        g = -lensed * below / (y * root)
        hg = h * g
        gg, rg = hg * g, hg * e
        g0 += gg
        g1 += gg * tau
        g2 += gg * tau2
        g3 += gg * tau2 * tau
        g4 += gg * tau2 * tau2
        r0 += rg
        r1 += rg * tau
        r2 += rg * tau2
        if FREE:
            hd = h * lensed
            dg = hd * g
            d0 += dg
            d1 += dg * tau
            d2 += dg * tau2
            dr += hd * e
            dd += hd * lensed
        if BASES:
            hw = h * weight
            bg = hw * g
            b0 += bg
            b1 += bg * tau
            b2 += bg * tau2
            bd += hw * lensed
            br += hw * e
            bb += hw * weight
    return (
        tl.sum(cost, 0), tl.sum(g0, 0), tl.sum(g1, 0), tl.sum(g2, 0), tl.sum(g3, 0),
        tl.sum(g4, 0), tl.sum(r0, 0), tl.sum(r1, 0), tl.sum(r2, 0),
        tl.sum(d0, 0), tl.sum(d1, 0), tl.sum(d2, 0), tl.sum(dr, 0), tl.sum(dd, 0),
        tl.sum(b0, 0), tl.sum(b1, 0), tl.sum(b2, 0), tl.sum(bd, 0), tl.sum(br, 0), tl.sum(bb, 0),
    )  # fmt: skip


@triton.jit
def _linearise(data, first, stop, scale, extra, fit, last, centre, width, num, sets,
               FREE: tl.constexpr, BASES: tl.constexpr, BINNED: tl.constexpr,
               TILE: tl.constexpr):  # fmt: skip
    """`joint_fits.linearise`: cost, gradient (3), matrix (6) and 11 vectors of the data sets.

    `data` three columns; `first`, `stop`, `scale` of the data sets; `extra` time, flux, weight and
    place of their last bins; `fit` t0, ln u0, ln tE, and vectors of ln f_s and B.
    """
    t0, u, e, ln_f, base = fit
    T, F, W = data
    rate, uu = tl.exp(-e), tl.exp(2.0 * u)
    a, b, c = -2.0 * rate, 2.0 * uu, -2.0
    o0, o1, o2 = t0 - last, u - C1, e - C2
    cost = o0 * o0 * P0 + o1 * o1 * P1 + o2 * o2 * P2
    g0, g1, g2 = o0 * P0, o1 * P1, o2 * P2
    none = ln_f * 0.0
    m00, m01, m02 = t0 * 0.0 + P0, t0 * 0.0, t0 * 0.0
    m11, m12, m22 = t0 * 0.0 + P1, t0 * 0.0, t0 * 0.0 + P2
    gf, gb, fb = none, none, none
    ff, bb = none + FIXED, none + FIXED
    f0, f1, f2, b0, b1, b2 = none, none, none, none, none, none
    for k in range(num):
        here = sets == k
        lf, bk, wide = pick(ln_f, sets, k), pick(base, sets, k), pick(width, sets, k)
        limit = tl.where(wide > 0.0, HUBER, NEVER)
        s = _sums(T, F, W, pick(first, sets, k), pick(stop, sets, k), pick(extra[0], sets, k),
                  pick(extra[1], sets, k), pick(extra[2], sets, k), pick(extra[3], sets, k),
                  t0, rate, uu, tl.exp(lf), tl.exp(-bk / MAG), pick(scale, sets, k), limit,
                  FREE, BASES, BINNED, TILE)  # fmt: skip
        cost += s[0]
        g0 -= a * s[7]
        g1 -= b * s[6]
        g2 -= c * s[8]
        m00 += a * a * s[3]
        m01 += a * b * s[2]
        m02 += a * c * s[4]
        m11 += b * b * s[1]
        m12 += b * c * s[3]
        m22 += c * c * s[5]
        if FREE:
            cost += lf * lf * PF
            gf = tl.where(here, lf * PF - s[12], gf)
            ff = tl.where(here, s[13] + PF, ff)
            f0 = tl.where(here, a * s[10], f0)
            f1 = tl.where(here, b * s[9], f1)
            f2 = tl.where(here, c * s[11], f2)
        if BASES:
            p = 1.0 / tl.maximum(wide * wide, 1e-30)
            off = bk - pick(centre, sets, k)
            held = here & (width > 0.0)
            cost += tl.where(wide > 0.0, p * off * off, 0.0)
            gb = tl.where(held, p * off - s[18], gb)
            bb = tl.where(held, s[19] + p, bb)
            b0 = tl.where(held, a * s[15], b0)
            b1 = tl.where(held, b * s[14], b1)
            b2 = tl.where(held, c * s[16], b2)
            if FREE:
                fb = tl.where(held, s[17], fb)
    return (cost, g0, g1, g2, m00, m01, m02, m11, m12, m22,
            gf, gb, ff, fb, bb, f0, f1, f2, b0, b1, b2)  # fmt: skip


@triton.jit
def _select(chosen, A, B):
    """A where `chosen`, else B, of what `_linearise` gives."""
    return (
        tl.where(chosen, A[0], B[0]), tl.where(chosen, A[1], B[1]), tl.where(chosen, A[2], B[2]),
        tl.where(chosen, A[3], B[3]), tl.where(chosen, A[4], B[4]), tl.where(chosen, A[5], B[5]),
        tl.where(chosen, A[6], B[6]), tl.where(chosen, A[7], B[7]), tl.where(chosen, A[8], B[8]),
        tl.where(chosen, A[9], B[9]), tl.where(chosen, A[10], B[10]),
        tl.where(chosen, A[11], B[11]), tl.where(chosen, A[12], B[12]),
        tl.where(chosen, A[13], B[13]), tl.where(chosen, A[14], B[14]),
        tl.where(chosen, A[15], B[15]), tl.where(chosen, A[16], B[16]),
        tl.where(chosen, A[17], B[17]), tl.where(chosen, A[18], B[18]),
        tl.where(chosen, A[19], B[19]), tl.where(chosen, A[20], B[20]),
    )  # fmt: skip


@triton.jit
def _select_fit(chosen, A, B):
    return (tl.where(chosen, A[0], B[0]), tl.where(chosen, A[1], B[1]),
            tl.where(chosen, A[2], B[2]), tl.where(chosen, A[3], B[3]),
            tl.where(chosen, A[4], B[4]))  # fmt: skip


@triton.jit
def _solve(a, b, c, d, e, f, x, y, z):
    """(a b c; b d e; c e f) s = (x, y, z); zeros where the matrix is not positive definite."""
    l1, l2 = b / a, c / a
    d1, e1 = d - l1 * b, e - l1 * c
    m = e1 / d1
    f2 = f - l2 * c - m * e1
    y1 = y - l1 * x
    s2 = (z - l2 * x - m * y1) / f2
    s1 = (y1 - e1 * s2) / d1
    s0 = (x - b * s1 - c * s2) / a
    ok = (a > 0.0) & (d1 > 0.0) & (f2 > 0.0)
    return tl.where(ok, s0, 0.0), tl.where(ok, s1, 0.0), tl.where(ok, s2, 0.0)


@triton.jit
def _reduce(S, damping):
    """`joint_fits._reduce`: matrix (6), gradient (3), inverse blocks (3 vectors)."""
    grow = 1.0 + damping
    ff, bb = S[12] * grow, S[14] * grow
    ratio = S[13] / ff
    rest = bb - S[13] * ratio
    if ff.dtype == tl.float32:  # near the peak alone, blend and baseline are nearly one
        rest = tl.maximum(rest, 1e-6 * bb)
    r = 1.0 / rest
    q = -ratio * r
    p = 1.0 / ff - ratio * q
    f0, f1, f2, b0, b1, b2 = S[15], S[16], S[17], S[18], S[19], S[20]
    u0, v0 = p * f0 + q * b0, q * f0 + r * b0
    u1, v1 = p * f1 + q * b1, q * f1 + r * b1
    u2, v2 = p * f2 + q * b2, q * f2 + r * b2
    return (
        S[4] * grow - tl.sum(u0 * f0 + v0 * b0, 0), S[5] - tl.sum(u0 * f1 + v0 * b1, 0),
        S[6] - tl.sum(u0 * f2 + v0 * b2, 0), S[7] * grow - tl.sum(u1 * f1 + v1 * b1, 0),
        S[8] - tl.sum(u1 * f2 + v1 * b2, 0), S[9] * grow - tl.sum(u2 * f2 + v2 * b2, 0),
        S[1] - tl.sum(u0 * S[10] + v0 * S[11], 0), S[2] - tl.sum(u1 * S[10] + v1 * S[11], 0),
        S[3] - tl.sum(u2 * S[10] + v2 * S[11], 0), p, q, r,
    )  # fmt: skip


@triton.jit
def _descend(data, first, stop, scale, extra, fit, S, steps, last, centre, width, num, sets,
             FREE: tl.constexpr, BASES: tl.constexpr, BINNED: tl.constexpr,
             TILE: tl.constexpr):  # fmt: skip
    """`joint_fits._descend` from a fit and its state; both at the end."""
    damping = S[0] * 0.0 + 1e-3
    for _ in range(steps):
        m = _reduce(S, damping)
        s0, s1, s2 = _solve(m[0], m[1], m[2], m[3], m[4], m[5], -m[6], -m[7], -m[8])
        far = 1.5 * tl.exp(fit[2])
        yf = S[10] + S[15] * s0 + S[16] * s1 + S[17] * s2
        yb = S[11] + S[18] * s0 + S[19] * s1 + S[20] * s2
        sf, sb = -(m[9] * yf + m[10] * yb), -(m[10] * yf + m[11] * yb)
        trial = (
            fit[0] + clip(s0, -far, far),
            clip(fit[1] + clip(s1, -1.5, 1.5), LOW_U, HIGH_U),
            clip(fit[2] + clip(s2, -1.5, 1.5), LOW_T, HIGH_T),
            clip(fit[3] + clip(sf, -1.5, 1.5), LOW_F, 0.0),
            fit[4] + clip(sb, -1.5, 1.5),
        )
        there = _linearise(data, first, stop, scale, extra, trial, last, centre, width, num, sets,
                           FREE, BASES, BINNED, TILE)  # fmt: skip
        better = there[0] < S[0]
        fit = _select_fit(better, trial, fit)
        S = _select(better, there, S)
        damping = tl.where(better, damping / 10.0, damping * 10.0)
    return fit, S


@triton.jit
def _store_covariance(S, out, sets, num):
    """`joint_fits._covariance` at `out` (K, 15)."""
    m = _reduce(S, 0.0)
    p, q, r = m[9], m[10], m[11]
    c0, c1, c2 = _solve(m[0], m[1], m[2], m[3], m[4], m[5], 1.0, 0.0, 0.0)
    _, c3, c4 = _solve(m[0], m[1], m[2], m[3], m[4], m[5], 0.0, 1.0, 0.0)
    _, _, c5 = _solve(m[0], m[1], m[2], m[3], m[4], m[5], 0.0, 0.0, 1.0)
    xf0, xb0 = -(p * S[15] + q * S[18]), -(q * S[15] + r * S[18])
    xf1, xb1 = -(p * S[16] + q * S[19]), -(q * S[16] + r * S[19])
    xf2, xb2 = -(p * S[17] + q * S[20]), -(q * S[17] + r * S[20])
    f0 = c0 * xf0 + c1 * xf1 + c2 * xf2
    f1 = c1 * xf0 + c3 * xf1 + c4 * xf2
    f2 = c2 * xf0 + c4 * xf1 + c5 * xf2
    b0 = c0 * xb0 + c1 * xb1 + c2 * xb2
    b1 = c1 * xb0 + c3 * xb1 + c4 * xb2
    b2 = c2 * xb0 + c4 * xb1 + c5 * xb2
    out += 15 * sets
    used, none = sets < num, p * 0.0
    tl.store(out, none + c0, mask=used)
    tl.store(out + 1, none + c1, mask=used)
    tl.store(out + 2, none + c2, mask=used)
    tl.store(out + 3, none + c3, mask=used)
    tl.store(out + 4, none + c4, mask=used)
    tl.store(out + 5, none + c5, mask=used)
    tl.store(out + 6, f0, mask=used)
    tl.store(out + 7, f1, mask=used)
    tl.store(out + 8, f2, mask=used)
    tl.store(out + 9, b0, mask=used)
    tl.store(out + 10, b1, mask=used)
    tl.store(out + 11, b2, mask=used)
    tl.store(out + 12, p + xf0 * f0 + xf1 * f1 + xf2 * f2, mask=used)
    tl.store(out + 13, q + xf0 * b0 + xf1 * b1 + xf2 * b2, mask=used)
    tl.store(out + 14, r + xb0 * b0 + xb1 * b1 + xb2 * b2, mask=used)


@triton.jit
def _u2_of_excess(excess):
    root = tl.sqrt(excess * (excess + 2.0))
    return 2.0 / ((1.0 + excess + root) * root)


@triton.jit
def _shift_blends(fit, shift, num):
    """`joint_fits._shift_blends`."""
    mean = tl.sum(fit[3], 0) / num
    moved = clip(mean + shift, LOW_F, 0.0)
    x = tl.exp(2.0 * fit[1])
    root = tl.sqrt(x * (x + 4.0))
    peak = 4.0 / (root * (root + x + 2.0))
    new_peak = peak * tl.exp(mean - moved)
    new_x = _u2_of_excess(new_peak)
    wide = (_u2_of_excess(0.5 * peak) - x) / tl.maximum(
        _u2_of_excess(0.5 * new_peak) - new_x, 1e-12
    )
    return (
        fit[0],
        clip(0.5 * tl.log(new_x), LOW_U, HIGH_U),
        clip(fit[2] + 0.5 * tl.log(tl.maximum(wide, 1e-12)), LOW_T, HIGH_T),
        clip(fit[3] + moved - mean, LOW_F, 0.0),
        fit[4],
    )


@triton.jit
def magnitude(t, t0, rate, uu, f_s, base):
    """Brightness of a data set at times `t` [mag], and the phase."""
    tau = (t - t0) * rate
    x = tau * tau + uu
    root = tl.sqrt(x * (x + 4.0))
    below = root * (root + x + 2.0)
    return tl.log((below + 4.0 * f_s) / below) * MAG + base, tau


@triton.jit
def _error_factor(T, M, W, low, high, before, wide, fit, ln_f, base):
    """`joint_fits.error_factors` of one data set, the median by bisection in float32."""
    first = tl.maximum(low, high - LAST_ERRORS)
    n = high - first - 1
    i = first + tl.arange(0, LAST_ERRORS)
    used = i + 1 < high
    rate, uu, f_s = tl.exp(-fit[2]), tl.exp(2.0 * fit[1]), tl.exp(ln_f)
    one = tl.load(M + i, mask=used, other=0.0)
    one -= magnitude(tl.load(T + i, mask=used, other=0.0), fit[0], rate, uu, f_s, base)[0]
    two = tl.load(M + i + 1, mask=used, other=0.0)
    two -= magnitude(tl.load(T + i + 1, mask=used, other=0.0), fit[0], rate, uu, f_s, base)[0]
    one *= tl.load(W + i, mask=used, other=0.0)
    two *= tl.load(W + i + 1, mask=used, other=0.0)
    # Positive floats are in the order of their bits.
    size = tl.minimum(tl.abs(two - one), 1e30).to(tl.float32)
    bits = tl.where(used, size.to(tl.int32, bitcast=True), 0x7F800000)
    down, up = n * 0, n * 0 + 0x7F800000
    for _ in range(31):
        middle = down + (up - down) // 2
        enough = tl.sum((bits <= middle).to(tl.int32), 0) > (n - 1) // 2
        up = tl.where(enough, middle, up)
        down = tl.where(enough, down, middle + 1)
    following = tl.min(tl.where(bits > down, bits, 0x7F800000), 0)
    further = tl.sum((bits <= down).to(tl.int32), 0) > n // 2
    other = tl.where(further, down, following)
    median = 0.5 * (down.to(tl.float32, bitcast=True) + other.to(tl.float32, bitcast=True))
    scatter = median.to(before.dtype) / 0.9539
    factor = tl.sqrt((n * scatter * scatter + FEW_ERRORS) / (n + FEW_ERRORS))
    found = tl.where(n < 4, before, clip(factor, 0.4, 5.0))
    return tl.where(wide > 0.0, found, 1.0)


@triton.jit(do_not_specialize=["N", "B", "K"])  # they differ from batch to batch
def bin_kernel(T, M, W, LOW, HIGH, BT, BF, BM, BW, N, B, K, TILE: tl.constexpr, BIN: tl.constexpr):
    """Averages of eight epochs of each data set, full bins alone; at low // 8 + k onwards."""
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low, high = tl.load(LOW + row * K + k), tl.load(HIGH + row * K + k)
    T += row * N
    M += row * N
    W += row * N
    full = (high - low) // BIN
    out = row * B + low // BIN + k
    for begin in range(0, full, TILE):
        b = begin + tl.arange(0, TILE)
        i = low + b[:, None] * BIN + tl.arange(0, BIN)[None, :]
        inside = (b < full)[:, None] & (i < high)
        w = tl.load(W + i, mask=inside, other=0.0)
        w *= w
        total = tl.maximum(tl.sum(w, 1), 1e-30)
        t = tl.sum(w * tl.load(T + i, mask=inside, other=0.0), 1) / total
        m = tl.sum(w * tl.load(M + i, mask=inside, other=0.0), 1) / total
        tl.store(BT + out + b, t, mask=b < full)
        tl.store(BM + out + b, m, mask=b < full)
        tl.store(BF + out + b, tl.exp(m / MAG), mask=b < full)
        tl.store(BW + out + b, tl.sqrt(total), mask=b < full)


@triton.jit
def _quick_cost(bins, first, stop, scale, extra, t0, u, e, last, centre, width, num, sets,
                BASES: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """`joint_fits._quick_cost` with the priors of t0, u0 and tE; and the best baselines."""
    T, M, W = bins
    rate, uu = tl.exp(-e), tl.exp(2.0 * u)
    o0, o1, o2 = t0 - last, u - C1, e - C2
    total = o0 * o0 * P0 + o1 * o1 * P1 + o2 * o2 * P2
    base = centre
    for k in range(num):
        until, at = pick(stop, sets, k), pick(extra[3], sets, k)
        grow = pick(scale, sets, k)
        s0 = tl.zeros([TILE], T.dtype.element_ty)
        s1, s2 = s0, s0
        for begin in range(pick(first, sets, k), tl.maximum(until, at + 1), TILE):
            i = begin + tl.arange(0, TILE)
            t = _epochs(T, i, until, pick(extra[0], sets, k), at, True)
            m = _epochs(M, i, until, pick(extra[4], sets, k), at, True)
            w = _epochs(W, i, until, pick(extra[2], sets, k), at, True) * grow
            off = m - magnitude(t, t0, rate, uu, 1.0, 0.0)[0]
            s0 += w * w
            s1 += w * w * off
            s2 += w * w * off * off
        a0, a1, a2 = tl.sum(s0, 0), tl.sum(s1, 0), tl.sum(s2, 0)
        c = pick(centre, sets, k)
        if BASES:
            wide = pick(width, sets, k)
            p = tl.where(wide > 0.0, 1.0 / tl.maximum(wide * wide, 1e-30), 0.0)
            best = tl.where(wide > 0.0, (a1 + p * c) / tl.maximum(a0 + p, 1e-30), c)
            total += a2 - 2.0 * best * a1 + best * best * a0 + p * (best - c) * (best - c)
            base = tl.where(sets == k, best, base)
        else:
            total += a2 - 2.0 * c * a1 + c * c * a0
    return total, base


@triton.jit
def _search(bins, flux, first, stop, scale, extra, before, last, centre, width, num, sets,
            BASES: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """`joint_fits._search`: a fit; `before` (vector) the baselines of the last one."""
    T, M, W = bins
    zero = last * 0.0
    # The brightest bin, counting one error less, another far from it, and the latest.
    best1, where1, best2, where2 = zero - 1e30, zero, zero - 1e30, zero
    latest, height = zero - 1e30, zero
    for scan in range(2):
        for k in range(num):
            until, at = pick(stop, sets, k), pick(extra[3], sets, k)
            grow, own = pick(scale, sets, k), pick(before, sets, k)
            for begin in range(pick(first, sets, k), tl.maximum(until, at + 1), TILE):
                i = begin + tl.arange(0, TILE)
                used = i < tl.maximum(until, at + 1)
                t = _epochs(T, i, until, pick(extra[0], sets, k), at, True)
                m = _epochs(M, i, until, pick(extra[4], sets, k), at, True)
                w = _epochs(W, i, until, pick(extra[2], sets, k), at, True) * grow
                above = m - own
                sure = tl.where(used, above - 1.0 / tl.maximum(w, 1e-15), -1e30)
                if scan == 1:
                    apart = tl.abs(t - where1) > 15.0
                    sure = tl.where(used, tl.where(apart, sure, -1.0), -1e30)
                top, place = tl.max(sure, 0), tl.argmax(sure, 0)
                lane = tl.arange(0, TILE)
                time = tl.sum(tl.where(lane == place, t, 0.0), 0)
                if scan == 0:
                    better = top > best1
                    where1, best1 = tl.where(better, time, where1), tl.where(better, top, best1)
                    end = tl.max(tl.where(used, t, -1e30), 0)
                    here = tl.sum(tl.where((t == end) & used, above, 0.0), 0)
                    height, latest = (
                        tl.where(end > latest, here, height),
                        tl.maximum(end, latest),
                    )
                else:
                    better = top > best2
                    where2, best2 = tl.where(better, time, where2), tl.where(better, top, best2)
    # Eight starts, of which the best two are refined.
    x1, x2 = zero + 1e30, zero + 1e30
    one = (zero, zero, zero, centre * 0.0, centre)
    two = one
    for s in range(8):
        kind = tl.where(s < 4, 0, tl.where(s < 6, 1, 2))
        tE = tl.where(s == 0, 3.0, tl.where((s == 1) | (s == 4), 8.0, 40.0))
        tE = tl.where(s == 2, 20.0, tl.where(s == 3, 50.0, tE))
        tE = tl.where(s == 5, 25.0, tl.where(s == 6, 15.0, tE))
        own = tl.where(kind == 0, best1, tl.where(kind == 1, best2, height))
        gain = tl.exp(clip(own, 0.02, 8.0) / MAG) - 1.0
        u = 0.5 * tl.log(2.0 * (1.0 + gain) / tl.sqrt(gain * (gain + 2.0)) - 2.0)
        u = clip(u, LOW_START, HIGH_START) - tl.where(kind == 2, 0.5, 0.0)
        t0 = tl.where(kind == 0, where1, tl.where(kind == 1, where2, last + 0.5 * tE))
        e = tl.log(tE + zero)
        cost, base = _quick_cost(bins, first, stop, scale, extra, t0, u, e, last, centre, width,
                                 num, sets, BASES, TILE)  # fmt: skip
        start = (t0, u, e, centre * 0.0, base)
        least, second = cost < x1, cost < x2
        two = _select_fit(least, one, _select_fit(second, start, two))
        x2 = tl.where(least, x1, tl.where(second, cost, x2))
        one = _select_fit(least, start, one)
        x1 = tl.where(least, cost, x1)
    data = (T, flux, W)
    found, least_cost = one, zero + 1e30
    for s in range(2):
        fit = _select_fit(s == 0, one, two)
        S = _linearise(data, first, stop, scale, extra, fit, last, centre, width, num, sets,
                       False, BASES, True, TILE)  # fmt: skip
        fit, S = _descend(data, first, stop, scale, extra, fit, S, SEARCH_ITERATIONS, last, centre,
                          width, num, sets, False, BASES, True, TILE)  # fmt: skip
        better = S[0] < least_cost
        found = _select_fit(better, fit, found)
        least_cost = tl.where(better, S[0], least_cost)
    return found


@triton.jit(do_not_specialize=["N", "B", "K", "J"])
def refit_kernel(T, M, F, W, BT, BM, BF, BW, LOW, HIGH, WIDTH, FREE, REFITS, FITS, COV, FACTORS,
                 N, B, K, J, MODELS: tl.constexpr, BASES: tl.constexpr, SETS: tl.constexpr,
                 TILE: tl.constexpr, BIN_TILE: tl.constexpr):  # fmt: skip
    """All refits of event `program_id(0)`, each from the one before it.

    T, M, F, W (R, N) times, brightness, flux, 1 / error; BT, BM, BF, BW (R, B) bins; LOW (R, K),
    HIGH (R, J, K) epochs of each data set in use at each refit; WIDTH (R, K); FREE, REFITS (R,).
    Outputs FITS (R, J, 2, 3 + 2 K), COV (R, J, 2, K, 15), FACTORS (R, J, K). MODELS 1: f_s is free
    in no event; without BASES all baselines are exact.
    """
    row = tl.program_id(0).to(tl.int64)
    T += row * N
    M += row * N
    F += row * N
    W += row * N
    BT += row * B
    BM += row * B
    BF += row * B
    BW += row * B
    sets = tl.arange(0, SETS)
    low = tl.load(LOW + row * K + sets, mask=sets < K, other=0)
    wide = tl.load(WIDTH + row * K + sets, mask=sets < K, other=0.0)
    free = tl.load(FREE + row)
    refits = tl.load(REFITS + row)
    none = wide * 0.0
    zero = tl.sum(none, 0)
    factor = none + 1.0
    one = (zero, zero + C1, zero + C2, none, none)
    two = one
    before = low * 0  # epochs of each data set at the last refit
    for j in range(refits):
        high = tl.load(HIGH + (row * J + j) * K + sets, mask=sets < K, other=0)
        high = tl.where(sets < K, high, low)
        began = high > low
        num = tl.sum(began.to(tl.int32), 0)
        ends = tl.load(T + tl.maximum(high - 1, 0), mask=began, other=-1e30)
        last = tl.max(ends, 0)
        if j == 0:
            one = (last, zero + C1, zero + C2, none, none)
            two = one
        else:
            # Data sets that no fit has seen begin on the curve, unless their baseline is known.
            fresh = began & (before == 0) & (wide > 1.0)
            t = tl.load(T + low, mask=fresh, other=0.0)
            m = tl.load(M + low, mask=fresh, other=0.0)
            a = magnitude(t, one[0], tl.exp(-one[2]), tl.exp(2.0 * one[1]), 1.0, 0.0)[0]
            b = magnitude(t, two[0], tl.exp(-two[2]), tl.exp(2.0 * two[1]), 1.0, 0.0)[0]
            one = (one[0], one[1], one[2], one[3], tl.where(fresh, m - a, one[4]))
            two = (two[0], two[1], two[2], two[3], tl.where(fresh, m - b, two[4]))
        before = high - low
        # Errors, centres of the priors of baselines, and the bins that are not full.
        full = before // BIN
        first = low // BIN + sets
        stop, at = first + full, first + full
        at = tl.where(before > full * BIN, at, -1)
        xt, xm, xf, xw, centre = none, none, none, none, none
        for k in range(num):
            here, begin, end = sets == k, pick(low, sets, k), pick(high, sets, k)
            if BASES:
                own = pick(wide, sets, k)
                found = _error_factor(T, M, W, begin, end, pick(factor, sets, k), own, two,
                                      pick(two[3], sets, k), pick(two[4], sets, k))  # fmt: skip
                factor = tl.where(here, found, factor)
                total = tl.zeros([TILE], T.dtype.element_ty)
                for i0 in range(begin, end, TILE):
                    i = i0 + tl.arange(0, TILE)
                    total += tl.load(M + i, mask=i < end, other=0.0)
                mean = tl.sum(total, 0) / tl.maximum(end - begin, 1)
                centre = tl.where(here & (wide > 1.0), mean, centre)
            i = begin + pick(full, sets, k) * BIN + tl.arange(0, BIN)
            w = tl.load(W + i, mask=i < end, other=0.0)
            w *= w
            weight = tl.maximum(tl.sum(w, 0), 1e-30)
            t = tl.sum(w * tl.load(T + i, mask=i < end, other=0.0), 0) / weight
            m = tl.sum(w * tl.load(M + i, mask=i < end, other=0.0), 0) / weight
            xt, xm = tl.where(here, t, xt), tl.where(here, m, xm)
            xf, xw = tl.where(here, tl.exp(m / MAG), xf), tl.where(here, tl.sqrt(weight), xw)
        scale = 1.0 / factor
        extra = (xt, xf, xw, at, xm)
        if BASES:
            one = (one[0], one[1], one[2], one[3], tl.where(wide > 0.0, one[4], centre))
            two = (two[0], two[1], two[2], two[3], tl.where(wide > 0.0, two[4], centre))
        # All flux lensed.
        data = (T, F, W)
        found = _search((BT, BM, BW), BF, first, stop, scale, extra, one[4], last, centre, wide,
                        num, sets, BASES, BIN_TILE)  # fmt: skip
        S = _linearise(data, low, high, scale, extra, one, last, centre, wide, num, sets,
                       False, BASES, False, TILE)  # fmt: skip
        there = _linearise(data, low, high, scale, extra, found, last, centre, wide, num, sets,
                           False, BASES, False, TILE)  # fmt: skip
        better = there[0] < S[0]
        one, S = _select_fit(better, found, one), _select(better, there, S)
        one, S = _descend(data, low, high, scale, extra, one, S, ITERATIONS, last, centre, wide,
                          num, sets, False, BASES, False, TILE)  # fmt: skip
        place = row * J + j
        fits, cov = FITS + place * 2 * (3 + 2 * K), COV + place * 30 * K
        tl.store(FACTORS + place * K + sets, factor, mask=sets < K)
        _store_covariance(S, cov, sets, num)
        if MODELS == 2 and free != 0:
            # Every f_s free.
            old = two
            R = _linearise(data, low, high, scale, extra, two, last, centre, wide, num, sets,
                           True, BASES, False, TILE)  # fmt: skip
            for s in range(3):
                start = _shift_blends(old, tl.where(s == 1, DOWN, UP), num)
                start = _select_fit(s == 0, one, start)
                there = _linearise(data, low, high, scale, extra, start, last, centre, wide, num,
                                   sets, True, BASES, False, TILE)  # fmt: skip
                better = there[0] < R[0]
                two, R = _select_fit(better, start, two), _select(better, there, R)
            two, R = _descend(data, low, high, scale, extra, two, R, ITERATIONS, last, centre,
                              wide, num, sets, True, BASES, False, TILE)  # fmt: skip
            _store_covariance(R, cov + 15 * K, sets, num)
        else:
            two = one
            _store_covariance(S, cov + 15 * K, sets, num)
        _store_fit(one, fits, sets, K)
        _store_fit(two, fits + 3 + 2 * K, sets, K)


@triton.jit
def _store_fit(fit, out, sets, K):
    tl.store(out, fit[0])
    tl.store(out + 1, fit[1])
    tl.store(out + 2, fit[2])
    tl.store(out + 3 + 2 * sets, fit[3], mask=sets < K)
    tl.store(out + 4 + 2 * sets, fit[4], mask=sets < K)
