"""What each refit leaves of a light curve, in two GPU kernels (Triton, float32 or float64).

`maps` bins the residuals of the past of a refit by phase, (t - t0) / tE, into an image of 10 x 96
and describes the fit by 19 scalars; a program has one (curve, refit, model). `residuals` compares
every epoch with the fit in force, made before it; a program has one (curve, refit). The plain form
does both refit by refit.
"""

from math import asinh, log

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["maps", "residuals"]

PHASE_BINS, CHANNELS, NUM_SCALARS = 96, 10, 19
RUNNING_SUMS = 2**31  # bytes that these may take at a time
MAG = tl.constexpr(2.5 / log(10.0))
LN10 = tl.constexpr(log(10.0))
LN_TE = tl.constexpr(log(22.4))  # centre of the prior
FAR = tl.constexpr(asinh(8.0 / 0.03))  # phases up to 8 are binned evenly in asinh(phase / 0.03)


@triton.jit
def asinh_of(x):
    """asinh, by the logarithm of |x| and the sign of x."""
    a = tl.abs(x)
    s = tl.log(a + tl.sqrt(a * a + 1.0))
    return tl.where(x < 0, -s, s)


@triton.jit
def clip(x, low, high):
    """`x` within [low, high]."""
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def residual_of(times, bright, root, i, n, t0, rate, u0_squared, f_s):
    """Phase, brightening of the fit, residual in errors (50 at most), whether `i` is in [0, n).

    Outside of that the residual is 0.
    """
    inside = (i >= 0) & (i < n)
    tau = (tl.load(times + i, mask=inside, other=0.0) - t0) * rate
    x = tau * tau + u0_squared
    root_y = tl.sqrt(x * (x + 4.0))
    curve = MAG * tl.log(1.0 + f_s * (4.0 / (root_y * (root_y + x + 2.0))))
    off = tl.load(bright + i, mask=inside, other=0.0) - curve
    off = clip(off * tl.load(root + i, mask=inside, other=0.0), -50.0, 50.0)
    return tau, curve, tl.where(inside, off, 0.0), inside


@triton.jit
def difference(sums, left, right, live):
    """Running sum at `right` less that at `left`, of sums four apart."""
    after = tl.load(sums + 4 * right, mask=live, other=0.0)
    return after - tl.load(sums + 4 * left, mask=live, other=0.0)


@triton.jit
def maps_kernel(
    times, bright, root, own_epochs, counts, blended, theta, covariance, scratch, images, scalars,
    chi_squared, L, J, K: tl.constexpr, K_TILE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Image and scalars of one (curve, refit, model): program (curve J + refit) 2 + model.

    `scratch` takes (L + 1, 4) running sums a program, of residuals, of their squares and of the
    squares of sums over windows of 4 and of 16 epochs, each less its expectation; the sum in a bin
    of phase is a difference of two. Where the blend is told, the first model writes for both.
    """
    pid = tl.program_id(0)
    row = tl.program_id(0) // (2 * J)
    j = (pid // 2) % J
    model = pid % 2
    n = tl.load(counts + j)
    own = tl.load(own_epochs + row)
    is_open = tl.load(blended + row)
    if (n <= own) & ((model == 0) | (is_open != 0)):
        times += row.to(tl.int64) * L
        bright += row.to(tl.int64) * L
        root += row.to(tl.int64) * L
        fit = theta + ((row * J + j) * 2 + model) * 4
        inverse = covariance + ((row * J + j) * 2 + model).to(tl.int64) * 16
        t0 = tl.load(fit)
        ln_u0 = tl.load(fit + 1)
        ln_tE = tl.load(fit + 2)
        ln_fs = tl.load(fit + 3)
        rate = tl.exp(-ln_tE)
        u0_squared = tl.exp(2.0 * ln_u0)
        f_s = tl.exp(ln_fs)
        sums = scratch + pid.to(tl.int64) * (4 * (L + 1))
        sum0 = t0 * 0.0
        sum1 = sum0
        sum2 = sum0
        sum3 = sum0
        chi2 = sum0
        peak = sum0 - 1e30
        roots = sum0
        for first in range(0, n, TILE):
            i = first + tl.arange(0, TILE)
            tau, curve, off, inside = residual_of(
                times, bright, root, i, n, t0, rate, u0_squared, f_s
            )
            chi2 += tl.sum(off * off, 0)
            peak = tl.maximum(peak, tl.max(tl.where(inside, curve, -1e30), 0))
            roots += tl.sum(tl.load(root + i, mask=inside, other=0.0), 0)
            # Windows of 4 and 16 epochs count where their middle lies.
            window4 = tl.zeros([TILE], off.dtype)
            window16 = window4
            for q in range(16):
                _, _, near, _ = residual_of(
                    times, bright, root, i - 8 + q, n, t0, rate, u0_squared, f_s
                )
                window16 += near
                window4 += tl.where((q >= 6) & (q < 10), near, 0.0)
            whole4 = (i >= 2) & (i + 2 <= n)
            whole16 = (i >= 8) & (i + 8 <= n)
            run0 = tl.cumsum(off, 0) + sum0
            run1 = tl.cumsum(tl.where(inside, off * off - 1.0, 0.0), 0) + sum1
            run2 = tl.cumsum(tl.where(whole4, window4 * window4 / 4.0 - 1.0, 0.0), 0) + sum2
            run3 = tl.cumsum(tl.where(whole16, window16 * window16 / 16.0 - 1.0, 0.0), 0) + sum3
            tl.store(sums + 4 * (i + 1), run0, mask=inside)
            tl.store(sums + 4 * (i + 1) + 1, run1, mask=inside)
            tl.store(sums + 4 * (i + 1) + 2, run2, mask=inside)
            tl.store(sums + 4 * (i + 1) + 3, run3, mask=inside)
            end = tl.arange(0, TILE) == TILE - 1
            sum0 = tl.sum(tl.where(end, run0, 0.0), 0)
            sum1 = tl.sum(tl.where(end, run1, 0.0), 0)
            sum2 = tl.sum(tl.where(end, run2, 0.0), 0)
            sum3 = tl.sum(tl.where(end, run3, 0.0), 0)
        tl.store(sums, sum0 * 0.0)
        tl.store(sums + 1, sum0 * 0.0)
        tl.store(sums + 2, sum0 * 0.0)
        tl.store(sums + 3, sum0 * 0.0)
        tl.debug_barrier()  # the sums are read by other threads than wrote them
        # Where each bin begins and ends: two binary searches in the times.
        b = tl.arange(0, K_TILE)
        live = b < K
        number = b.to(t0.dtype)
        x_left = (2.0 * number / K - 1.0) * FAR
        x_right = (2.0 * (number + 1.0) / K - 1.0) * FAR
        left_edge = 0.015 * (tl.exp(x_left) - tl.exp(-x_left))
        right_edge = 0.015 * (tl.exp(x_right) - tl.exp(-x_right))
        left = tl.zeros([K_TILE], tl.int32)
        left_stop = left + n
        right = left
        right_stop = left_stop
        for _ in range(12):
            m = (left + left_stop) // 2
            less = (tl.load(times + m, mask=live & (m < n), other=0.0) - t0) * rate < left_edge
            go = left < left_stop
            left = tl.where(go & less, m + 1, left)
            left_stop = tl.where(go & (less == 0), m, left_stop)
            m = (right + right_stop) // 2
            less = (tl.load(times + m, mask=live & (m < n), other=0.0) - t0) * rate < right_edge
            go = right < right_stop
            right = tl.where(go & less, m + 1, right)
            right_stop = tl.where(go & (less == 0), m, right_stop)
        left = tl.where(b == 0, 0, left)
        right = tl.where(b == K - 1, n, right)
        held = (right - left).to(t0.dtype)
        scale = 1.0 / tl.sqrt(tl.maximum(held, 1.0))
        out = images + ((row * J + j).to(tl.int64) * 10 + 5 * model) * K + b
        # Sums in units of their scatter: variances of a term are 1, 2, 8 and 32.
        c0 = asinh_of(difference(sums, left, right, live) * scale)
        c1 = asinh_of(difference(sums + 1, left, right, live) * scale * 0.7071067811865476)
        c2 = asinh_of(difference(sums + 2, left, right, live) * scale * 0.35355339059327373)
        c3 = asinh_of(difference(sums + 3, left, right, live) * scale * 0.17677669529663687)
        c4 = tl.log(1.0 + held) / 4.0
        tl.store(out, c0, mask=live)
        tl.store(out + K, c1, mask=live)
        tl.store(out + 2 * K, c2, mask=live)
        tl.store(out + 3 * K, c3, mask=live)
        tl.store(out + 4 * K, c4, mask=live)
        if is_open == 0:
            tl.store(out + 5 * K, c0, mask=live)
            tl.store(out + 6 * K, c1, mask=live)
            tl.store(out + 7 * K, c2, mask=live)
            tl.store(out + 8 * K, c3, mask=live)
            tl.store(out + 9 * K, c4, mask=live)
        told = scalars + (row * J + j) * 19 + 8 * model
        many = n.to(t0.dtype)
        error0 = tl.sqrt(tl.maximum(tl.load(inverse), 1e-12))
        error1 = tl.sqrt(tl.maximum(tl.load(inverse + 5), 1e-12))
        v0 = ln_u0 / 3.0
        v1 = (ln_tE - LN_TE) / 2.0
        v3 = asinh_of((tl.load(times + n - 1) - t0) * rate)
        v4 = tl.log(clip(error1, 1e-4, 1e2)) / LN10 / 2.0
        v5 = tl.log(clip(error0 * rate, 1e-4, 1e2)) / LN10 / 2.0
        v6 = asinh_of((chi2 - many) / tl.sqrt(2.0 * many)) / 2.0
        v7 = asinh_of(peak * (roots / many)) / 3.0
        chi = chi_squared + (row * J + j) * 2 + model
        tl.store(told, v0)
        tl.store(told + 1, v1)
        tl.store(told + 2, f_s)
        tl.store(told + 3, v3)
        tl.store(told + 4, v4)
        tl.store(told + 5, v5)
        tl.store(told + 6, v6)
        tl.store(told + 7, v7)
        tl.store(chi, chi2)
        if is_open == 0:
            tl.store(told + 8, v0)
            tl.store(told + 9, v1)
            tl.store(told + 10, f_s)
            tl.store(told + 11, v3)
            tl.store(told + 12, v4)
            tl.store(told + 13, v5)
            tl.store(told + 14, v6)
            tl.store(told + 15, v7)
            tl.store(chi + 1, chi2)
        if model == 0:
            level = tl.log(1.0 / (roots / many) / 0.03) / LN10
            tl.store(scalars + (row * J + j) * 19 + 17, level)
            tl.store(scalars + (row * J + j) * 19 + 18, tl.log(many) / 5.0)


@triton.jit
def residuals_kernel(
    times, bright, root, own_epochs, starts, theta, covariance, out, L, J, TILE: tl.constexpr
):  # fmt: skip
    """Epochs starts[j] - 1 <= i < starts[j + 1] - 1 against the refit j, program (curve, j).

    Of each model: residual, innovation (in the error of epoch and prediction together), error of
    the prediction, and running sums of innovations and of their squares.
    """
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1)
    n = tl.load(starts + j)
    stop = tl.load(starts + j + 1) - 1
    own = tl.load(own_epochs + row)
    stop = tl.minimum(stop, own)
    if n <= own:
        times += row * L
        bright += row * L
        root += row * L
        for model in range(2):
            fit = theta + ((row * J + j) * 2 + model) * 4
            inverse = covariance + ((row * J + j) * 2 + model) * 16
            t0 = tl.load(fit)
            ln_u0 = tl.load(fit + 1)
            ln_tE = tl.load(fit + 2)
            ln_fs = tl.load(fit + 3)
            rate = tl.exp(-ln_tE)
            u0_squared = tl.exp(2.0 * ln_u0)
            f_s = tl.exp(ln_fs)
            sum0 = t0 * 0.0
            sum1 = sum0
            for first in range(n - 1, stop, TILE):
                i = first + tl.arange(0, TILE)
                inside = i < stop
                seen_bright = tl.load(bright + i, mask=inside, other=0.0)
                w = tl.load(root + i, mask=inside, other=0.0)
                tau = (tl.load(times + i, mask=inside, other=0.0) - t0) * rate
                x = tau * tau + u0_squared
                y = x * (x + 4.0)
                root_y = tl.sqrt(y)
                excess = 4.0 / (root_y * (root_y + x + 2.0))
                flux = 1.0 + f_s * excess
                slope = -4.0 * MAG * f_s / (y * root_y * flux)
                g0 = -2.0 * rate * tau * slope
                g1 = 2.0 * u0_squared * slope
                g2 = -2.0 * tau * tau * slope
                g3 = MAG * f_s * excess / flux
                # g^T covariance g, by upper rows
                cross0 = tl.load(inverse + 1) * g1 + tl.load(inverse + 2) * g2
                cross0 = cross0 + tl.load(inverse + 3) * g3
                cross1 = tl.load(inverse + 6) * g2 + tl.load(inverse + 7) * g3
                q = g0 * (tl.load(inverse) * g0 + 2.0 * cross0)
                q += g1 * (tl.load(inverse + 5) * g1 + 2.0 * cross1)
                q += (
                    g2 * (tl.load(inverse + 10) * g2 + 2.0 * tl.load(inverse + 11) * g3)
                    + tl.load(inverse + 15) * g3 * g3
                )
                unsure = tl.sqrt(tl.maximum(q, 0.0)) * w
                off = (seen_bright - MAG * tl.log(flux)) * w
                new = clip(off / tl.sqrt(1.0 + unsure * unsure), -50.0, 50.0)
                new = tl.where(inside, new, 0.0)
                run0 = tl.cumsum(new, 0) + sum0
                run1 = tl.cumsum(new * new, 0) + sum1
                seen = (i - n + 2).to(t0.dtype)
                seen = tl.where(inside, seen, 1.0)
                told = out + (row * L + i) * 10 + 5 * model
                tl.store(told, asinh_of(off) / 2.0, mask=inside)
                tl.store(told + 1, asinh_of(new) / 2.0, mask=inside)
                tl.store(told + 2, tl.log(clip(unsure, 1e-2, 1e2)) / LN10 / 2.0, mask=inside)
                tl.store(told + 3, asinh_of(run0 / tl.sqrt(seen)) / 2.0, mask=inside)
                tl.store(told + 4, asinh_of((run1 - seen) / tl.sqrt(2.0 * seen)) / 2.0, mask=inside)
                sum0 += tl.sum(new, 0)
                sum1 += tl.sum(new * new, 0)


def maps(
    times: Tensor, bright: Tensor, root: Tensor, own: Tensor, counts: Tensor, blended: Tensor,
    theta: Tensor, covariance: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Images (B, J, 10, 96) and scalars (B, J, 19) float32 of all refits; zeros where none is.

    Arguments are those of `refits.refit_all`, then what it returned. The running sums take
    J * 8 * (L + 1) numbers a curve; curves are done in groups so that they fit RUNNING_SUMS.
    """
    B, L = times.shape
    J = len(counts)
    images = torch.zeros(
        B, J, CHANNELS, PHASE_BINS, dtype=torch.float32, device=times.device
    )  # fmt: skip
    scalars = images.new_zeros(B, J, NUM_SCALARS)
    chi_squared = theta.new_zeros(B, J, 2)
    each = 2 * J * 4 * (L + 1) * theta.element_size()
    at_once = max(1, min(B, RUNNING_SUMS // each))
    scratch = theta.new_empty(at_once * J * 2, 4 * (L + 1))
    blended = blended.to(torch.int32)
    for first in range(0, B, at_once):
        p = slice(first, first + at_once)
        maps_kernel[(len(times[p]) * J * 2,)](
            times[p], bright[p], root[p], own[p], counts, blended[p], theta[p], covariance[p],
            scratch, images[p], scalars[p], chi_squared[p], L, J,
            K=PHASE_BINS, K_TILE=128, TILE=128, num_warps=4,
        )  # fmt: skip
    gain = (chi_squared[..., 0] - chi_squared[..., 1]) / 4
    scalars[..., 16] = torch.asinh(gain) / 3
    return images, scalars


def residuals(
    times: Tensor, bright: Tensor, root: Tensor, own: Tensor, counts: Tensor, theta: Tensor,
    covariance: Tensor,
) -> Tensor:  # fmt: skip
    """Every epoch against the fit in force, (B, L, 10) float32; zeros before the first refit."""
    B, L = times.shape
    J = len(counts)
    out = torch.zeros(B, L, CHANNELS, dtype=torch.float32, device=times.device)
    starts = torch.cat([counts, counts.new_full((1,), L + 1)])
    residuals_kernel[(B, J)](
        times, bright, root, own, starts, theta, covariance, out, L, J, TILE=32, num_warps=1
    )
    return out
