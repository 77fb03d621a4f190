"""`residuals` on a GPU (Triton; NVIDIA and AMD): maps, summaries, inputs of epochs.

From the fits that `lensing` made of whole events. One program makes the map of one refit; another
the inputs of the epochs between a refit and the next. On a CPU Triton's interpreter runs them.

Axes: R events, N epochs, K data sets, J refits, P refits whose maps are wanted.
"""

import triton
import triton.language as tl

from lensml.lensing import _triton_fits as fits
from lensml.network import residuals as host

MAG = fits.MAG
clip, magnitude, pick, log_ratio = fits.clip, fits.magnitude, fits.pick, fits.log_ratio
C2 = fits.C2
BINS = tl.constexpr(host.PHASE_BINS)
LANES = tl.constexpr(triton.next_power_of_2(host.PHASE_BINS))
NEAR, PER_PHASE = tl.constexpr(host.NEAR_PHASE), tl.constexpr(host.PHASE_BINS / 2 / host.SCALE)
CLIP = tl.constexpr(host.CLIP)
CHANNELS, INPUTS = tl.constexpr(host.NUM_CHANNELS), tl.constexpr(host.NUM_INPUTS)
SUMMARY, STATE = tl.constexpr(host.NUM_SUMMARY), tl.constexpr(host.NUM_STATE)
LOG10 = tl.constexpr(0.4342944819032518)  # of e
FLOOR = tl.constexpr(1e-30)


@triton.jit
def asinh_half(x):
    size = tl.abs(x)
    value = 0.5 * tl.log(size + tl.sqrt(size * size + 1.0))
    return tl.where(x >= 0.0, value, -value)


@triton.jit
def log10(x):
    return tl.log(x) * LOG10


@triton.jit
def _map(T, F, W, R, OUT, low, high, scale, fit, ln_f, base, num, sets, TILE: tl.constexpr):
    """`residuals._map`: channels at OUT, agreement beside them; chi-squared and peak signal.

    R (N,) holds the residuals meanwhile.
    """
    t0, rate, uu = fit[0], tl.exp(-fit[2]), tl.exp(2.0 * fit[1])
    chi2, top = t0 * 0.0, t0 * 0.0
    for k in range(num):
        first, stop, grow = pick(low, sets, k), pick(high, sets, k), pick(scale, sets, k)
        f_s, gain = tl.exp(pick(ln_f, sets, k)), tl.exp(-pick(base, sets, k) / MAG)
        for begin in range(first, stop, TILE):
            i = begin + tl.arange(0, TILE)
            inside = i < stop
            tau = (tl.load(T + i, mask=inside, other=0.0) - t0) * rate
            x = tau * tau + uu
            root = tl.sqrt(x * (x + 4.0))
            below = root * (root + x + 2.0)
            flux = tl.load(F + i, mask=inside, other=0.0)
            w = tl.load(W + i, mask=inside, other=0.0) * grow
            e = clip(log_ratio(flux * gain * below, below + 4.0 * f_s) * w * MAG, -CLIP, CLIP)
            tl.store(R + i, e, mask=inside)
            chi2 += tl.sum(e * e, 0)
            top = tl.maximum(top, tl.max(tl.where(inside, f_s / below, 0.0), 0))
    tl.debug_barrier()  # every thread reads what others have written
    lanes = tl.arange(0, LANES)
    z = tl.zeros([LANES], T.dtype.element_ty)
    s0, s1, s2, s3, held, alone, number = z, z, z, z, z, z, z
    for k in range(num):
        first, stop = pick(low, sets, k), pick(high, sets, k)
        mine, own = z, z
        for begin in range(first, stop, TILE):
            i = begin + tl.arange(0, TILE)
            inside = i < stop
            tau = (tl.load(T + i, mask=inside, other=0.0) - t0) * rate
            place = 2.0 * asinh_half(tau / NEAR) * PER_PHASE + BINS / 2
            b = clip(tl.floor(place), 0.0, BINS - 1.0).to(tl.int32)
            r = tl.load(R + i, mask=inside, other=0.0)
            mid4 = (i >= first + 2) & (i <= stop - 2) & (stop - first >= 4)
            four = r * 0.0
            for step in range(-2, 2):
                four += tl.load(R + i + step, mask=mid4, other=0.0)
            mid16 = (i >= first + 8) & (i <= stop - 8) & (stop - first >= 16)
            sixteen = r * 0.0
            for step in range(-8, 8):
                sixteen += tl.load(R + i + step, mask=mid16, other=0.0)
            of = (b[:, None] == lanes[None, :]) & inside[:, None]
            one = tl.where(of, 1.0, 0.0).to(z.dtype)
            mine += tl.sum(one, 0)
            own += tl.sum(one * r[:, None], 0)
            s1 += tl.sum(one * (r * r - 1.0)[:, None], 0)
            s2 += tl.sum(one * tl.where(mid4, four * four / 4.0 - 1.0, 0.0)[:, None], 0)
            s3 += tl.sum(one * tl.where(mid16, sixteen * sixteen / 16.0 - 1.0, 0.0)[:, None], 0)
        held += mine
        s0 += own
        alone += tl.where(mine > 0.0, own * own / tl.maximum(mine, 1.0) - 1.0, 0.0)
        number += tl.where(mine > 0.0, 1.0, 0.0)
    root = tl.sqrt(tl.maximum(held, 1.0))
    used = lanes < BINS
    tl.store(OUT + lanes, 2.0 * asinh_half(s0 / root), mask=used)
    tl.store(OUT + BINS + lanes, 2.0 * asinh_half(s1 / (root * 2.0**0.5)), mask=used)
    tl.store(OUT + 2 * BINS + lanes, 2.0 * asinh_half(s2 / (root * 8.0**0.5)), mask=used)
    tl.store(OUT + 3 * BINS + lanes, 2.0 * asinh_half(s3 / (root * 32.0**0.5)), mask=used)
    tl.store(OUT + 4 * BINS + lanes, tl.log(held + 1.0) / 4.0, mask=used)
    agreement = asinh_half(alone / tl.sqrt(2.0 * tl.maximum(number, 1.0)))
    tl.debug_barrier()
    return chi2, tl.log(4.0 * top + 1.0) * MAG, agreement


@triton.jit
def _summary(OUT, fit, ln_f, cov, last, chi2, top, n, mean_w, fractions, sets, num):
    """`residuals._summary`."""
    f = tl.sum(tl.where(sets < num, fractions * tl.exp(ln_f), 0.0), 0)
    u = tl.sqrt(tl.maximum(tl.load(cov + 3), 1e-12))
    t = tl.sqrt(tl.maximum(tl.load(cov), 1e-12)) * tl.exp(-fit[2])
    tl.store(OUT, fit[1] / 3.0)
    tl.store(OUT + 1, (fit[2] - C2) / 2.0)
    tl.store(OUT + 2, f)
    tl.store(OUT + 3, 2.0 * asinh_half((last - fit[0]) * tl.exp(-fit[2])))
    tl.store(OUT + 4, log10(clip(u, 1e-4, 1e2)) / 2.0)
    tl.store(OUT + 5, log10(clip(t, 1e-4, 1e2)) / 2.0)
    tl.store(OUT + 6, asinh_half((chi2 - n) / tl.sqrt(2.0 * n)))
    tl.store(OUT + 7, 2.0 * asinh_half(top * mean_w) / 3.0)


@triton.jit
def _fit_of(FITS, sets, K):
    fit = (tl.load(FITS), tl.load(FITS + 1), tl.load(FITS + 2))
    ln_f = tl.load(FITS + 3 + 2 * sets, mask=sets < K, other=0.0)
    return fit, ln_f, tl.load(FITS + 4 + 2 * sets, mask=sets < K, other=0.0)


@triton.jit(do_not_specialize=["N", "K", "J"])  # they differ from batch to batch
def map_kernel(T, F, W, LOW, HIGH, WIDTH, FREE, COUNTS, ROWS, REFITS, FITS, COV, FACTORS, SCRATCH,
               MAPS, SUMMARIES, STATES, N, K, J, SETS: tl.constexpr,
               TILE: tl.constexpr):  # fmt: skip
    """Map, summary, state of refit REFITS (P,) of event ROWS (P,), as of `refit_and_map`.

    COUNTS (J,) epochs at each refit; SCRATCH (P, N); outputs MAPS (P, CHANNELS, BINS), SUMMARIES
    (P, SUMMARY), STATES (P, STATE); the others as of `refit_kernel`.
    """
    p = tl.program_id(0).to(tl.int64)
    row, j = tl.load(ROWS + p).to(tl.int64), tl.load(REFITS + p)
    T += row * N
    F += row * N
    W += row * N
    place = row * J + j
    FITS += place * 2 * (3 + 2 * K)
    COV += place * 30 * K
    SCRATCH += p * N
    MAPS += p * CHANNELS * BINS
    SUMMARIES += p * SUMMARY
    STATES += p * STATE
    sets = tl.arange(0, SETS)
    used = sets < K
    low = tl.load(LOW + row * K + sets, mask=used, other=0)
    high = tl.where(used, tl.load(HIGH + place * K + sets, mask=used, other=0), low)
    wide = tl.load(WIDTH + row * K + sets, mask=used, other=0.0)
    factor = tl.load(FACTORS + place * K + sets, mask=used, other=1.0)
    began = high > low
    num = tl.sum(began.to(tl.int32), 0)
    scale = 1.0 / factor
    last = tl.max(tl.load(T + tl.maximum(high - 1, 0), mask=began, other=-1e30), 0)
    start = tl.min(tl.load(T + low, mask=began, other=1e30), 0)
    n = tl.sum(high - low, 0).to(last.dtype)
    fractions, total = wide * 0.0, last * 0.0
    for k in range(num):
        grow, stop = pick(scale, sets, k), pick(high, sets, k)
        one = tl.zeros([TILE], T.dtype.element_ty)
        two = one
        for begin in range(pick(low, sets, k), stop, TILE):
            i = begin + tl.arange(0, TILE)
            w = tl.load(W + i, mask=i < stop, other=0.0) * grow
            one += w
            two += w * w
        total += tl.sum(one, 0)
        fractions = tl.where(sets == k, tl.sum(two, 0), fractions)
    square = tl.sum(fractions, 0)
    fractions /= tl.maximum(square, FLOOR)
    fit, ln_f, base = _fit_of(FITS, sets, K)
    chi2, top, agreement = _map(T, F, W, SCRATCH, MAPS, low, high, scale, fit, ln_f, base,
                                num, sets, TILE)  # fmt: skip
    mean_w = total / n
    _summary(SUMMARIES, fit, ln_f, COV, last, chi2, top, n, mean_w, fractions, sets, num)
    lanes = tl.arange(0, LANES)
    inside = lanes < BINS
    chi2_free = chi2
    if tl.load(FREE + row) != 0:
        fit, ln_f, base = _fit_of(FITS + 3 + 2 * K, sets, K)
        chi2_free, top, agreement = _map(T, F, W, SCRATCH, MAPS + 5 * BINS, low, high, scale, fit,
                                         ln_f, base, num, sets, TILE)  # fmt: skip
        _summary(SUMMARIES + 8, fit, ln_f, COV + 15 * K, last, chi2_free, top, n, mean_w,
                 fractions, sets, num)  # fmt: skip
    else:
        for c in range(5):
            values = tl.load(MAPS + c * BINS + lanes, mask=inside, other=0.0)
            tl.store(MAPS + (5 + c) * BINS + lanes, values, mask=inside)
        _summary(SUMMARIES + 8, fit, ln_f, COV, last, chi2, top, n, mean_w,
                 fractions, sets, num)  # fmt: skip
    tl.store(MAPS + 10 * BINS + lanes, agreement, mask=inside)
    count = tl.load(COUNTS + j).to(last.dtype)
    tl.store(SUMMARIES + 16, 2.0 * asinh_half((chi2 - chi2_free) / 4.0) / 3.0)
    tl.store(SUMMARIES + 17, log10(n / total / 0.03))
    tl.store(SUMMARIES + 18, tl.log(count) / 5.0)
    # What baselines and errors are worth, and how the sets divide the event.
    own = tl.load(COV + 15 * K + 15 * sets + 14, mask=began, other=0.0)
    spread = fractions * tl.sqrt(tl.maximum(own, 0.0) * square)
    widest = tl.max(tl.where(began, wide, 0.0), 0)
    scatter = tl.max(tl.where(began, factor, 0.0), 0)
    together = tl.sum(fractions * fractions, 0)
    rate = tl.exp(-fit[2])
    tl.store(STATES, tl.where(widest <= 0.0, 1.0, 0.0))
    tl.store(STATES + 1, tl.where(widest > 1.0, 1.0, 0.0))
    tl.store(STATES + 2, asinh_half(tl.sum(spread, 0)))
    tl.store(STATES + 3, tl.sum(fractions * tl.log(factor), 0))
    tl.store(STATES + 4, tl.log(tl.maximum(scatter, 1e-3)))
    tl.store(STATES + 5, -tl.log(tl.maximum(together, 1e-3)))
    tl.store(STATES + 6, asinh_half((fit[0] - start) * rate))
    tl.store(STATES + 7, log10(tl.maximum(last - start, 1e-3) * rate / n + 1e-6) / 3.0)


@triton.jit
def _innovations(T, M, F, FITS, COV, OUT, t, flux, w, k, low, wide, seen, number, inside, K):
    """Five inputs (TILE,) of epochs against one model; its signal and phase."""
    t0, rate = tl.load(FITS), tl.exp(-tl.load(FITS + 2))
    uu = tl.exp(2.0 * tl.load(FITS + 1))
    f_s = tl.exp(tl.load(FITS + 3 + 2 * k, mask=inside, other=0.0))
    base = tl.load(FITS + 4 + 2 * k, mask=inside, other=0.0)
    # A data set that no fit has seen begins on the curve, unless its baseline is known.
    fresh = inside & (seen == 0)
    begins = fresh & (wide > 1.0)
    first = tl.load(T + low, mask=begins, other=0.0)
    there = tl.load(M + low, mask=begins, other=0.0)
    there -= magnitude(first, t0, rate, uu, 1.0, 0.0)[0]
    base = tl.where(begins, there, base)
    tau = (t - t0) * rate
    x = tau * tau + uu
    y = x * (x + 4.0)
    root = tl.sqrt(y)
    below = root * (root + x + 2.0)
    above = below + 4.0 * f_s
    r = log_ratio(flux * tl.exp(-base / MAG) * below, above) * w * MAG
    d = f_s * (4.0 * MAG) / above
    g = -d * below / (y * root)
    a, b, c = -2.0 * rate * tau * g, 2.0 * uu * g, -2.0 * tau * tau * g
    s = COV + 15 * k
    known = inside & (seen > 0)
    spread = a * a * tl.load(s, mask=known, other=0.0)
    spread += 2.0 * a * b * tl.load(s + 1, mask=known, other=0.0)
    spread += 2.0 * a * c * tl.load(s + 2, mask=known, other=0.0)
    spread += b * b * tl.load(s + 3, mask=known, other=0.0)
    spread += 2.0 * b * c * tl.load(s + 4, mask=known, other=0.0)
    spread += c * c * tl.load(s + 5, mask=known, other=0.0)
    spread += 2.0 * a * d * tl.load(s + 6, mask=known, other=0.0)
    spread += 2.0 * b * d * tl.load(s + 7, mask=known, other=0.0)
    spread += 2.0 * c * d * tl.load(s + 8, mask=known, other=0.0)
    spread += 2.0 * a * tl.load(s + 9, mask=known, other=0.0)
    spread += 2.0 * b * tl.load(s + 10, mask=known, other=0.0)
    spread += 2.0 * c * tl.load(s + 11, mask=known, other=0.0)
    spread += d * d * tl.load(s + 12, mask=known, other=0.0)
    spread += 2.0 * d * tl.load(s + 13, mask=known, other=0.0)
    spread += tl.load(s + 14, mask=known, other=0.0) + tl.where(fresh, wide * wide, 0.0)
    error = tl.sqrt(clip(spread, 0.0, float("inf"))) * w
    z = tl.where(inside, clip(r / tl.sqrt(error * error + 1.0), -CLIP, CLIP), 0.0)
    sums, squares = tl.cumsum(z, 0), tl.cumsum(z * z, 0)
    tl.store(OUT, asinh_half(r), mask=inside)
    tl.store(OUT + 1, asinh_half(z), mask=inside)
    tl.store(OUT + 2, log10(clip(error, 1e-2, 1e2)) / 2.0, mask=inside)
    tl.store(OUT + 3, asinh_half(sums / tl.sqrt(number)), mask=inside)
    tl.store(OUT + 4, asinh_half((squares - number) / tl.sqrt(2.0 * number)), mask=inside)
    return tau, d * w


@triton.jit(do_not_specialize=["N", "K", "J"])
def innovation_kernel(T, M, F, W, OWNER, PLACE, LOW, HIGH, WIDTH, TOTAL, COUNTS, FITS, COV,
                      FACTORS, OUT, N, K, J, TILE: tl.constexpr):  # fmt: skip
    """Inputs of the epochs from refit `program_id(1)` to the next: OUT (R, N, INPUTS).

    OWNER, PLACE (R, N) data set and place of the epochs in order of time, of which an event has
    TOTAL (R,); COUNTS (J + 1,) epochs at each refit; the others as of `refit_kernel`.
    """
    row, j = tl.program_id(0).to(tl.int64), tl.program_id(1)
    total = tl.load(TOTAL + row)
    begin = tl.load(COUNTS + j) - 1
    if begin < total:
        end = tl.minimum(tl.load(COUNTS + j + 1) - 1, total)
        lane = tl.arange(0, TILE)
        i = begin + lane
        inside = i < end
        k = tl.load(OWNER + row * N + i, mask=inside, other=0).to(tl.int32)
        place = tl.load(PLACE + row * N + i, mask=inside, other=0)
        previous = tl.load(PLACE + row * N + i - 1, mask=inside, other=0)
        T += row * N
        M += row * N
        t = tl.load(T + place, mask=inside, other=0.0)
        step = tl.maximum(t - tl.load(T + previous, mask=inside, other=0.0), 0.0)
        flux = tl.load(F + row * N + place, mask=inside, other=1.0)
        low = tl.load(LOW + row * K + k, mask=inside, other=0)
        wide = tl.load(WIDTH + row * K + k, mask=inside, other=0.0)
        at = row * J + j
        seen = tl.load(HIGH + at * K + k, mask=inside, other=0) - low
        w = tl.load(W + row * N + place, mask=inside, other=1.0)
        w /= tl.load(FACTORS + at * K + k, mask=inside, other=1.0)
        number = (lane + 1).to(t.dtype)
        out = OUT + (row * N + i) * INPUTS
        FITS += at * 2 * (3 + 2 * K)
        COV += at * 30 * K
        _innovations(T, M, F, FITS, COV, out, t, flux, w, k, low, wide, seen, number, inside, K)
        tau, signal = _innovations(T, M, F, FITS + 3 + 2 * K, COV + 15 * K, out + 5, t, flux, w, k,
                                   low, wide, seen, number, inside, K)  # fmt: skip
        rate = tl.exp(-tl.load(FITS + 3 + 2 * K + 2))
        tl.store(out + 10, asinh_half(tau), mask=inside)
        tl.store(out + 11, log10(step * rate + 1e-5) / 4.0, mask=inside)
        tl.store(out + 12, log10(step + 1e-4) / 4.0, mask=inside)
        tl.store(out + 13, asinh_half(signal) / 2.0, mask=inside)
        tl.store(out + 14, log10(1.0 / w / 0.03) / 2.0, mask=inside)
