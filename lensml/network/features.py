"""Features of each epoch, from it and the epochs before it, on fixed physical scales.

Axes: B curves, L observed epochs in time order (gaps removed), F features, W widths of bins.
Nothing here is fitted to data: feature k of a curve is a function of its epochs <= k.

Of the epoch: brightening, brightening over its error, error, time since the last epoch, ln u^2 of
the point lens that would be as bright. Of bins of 1, 4, 16 and 64 epochs: how far the last bin lies
from the linear and from the parabolic extrapolation of those before it, in units of its error; and
the mean of the last 16 and 64 epochs in units of its error.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BIN_WIDTHS = (1, 4, 16, 64)  # epochs averaged before a deviation from smoothness is measured
NUM_BINS = 4  # adjacent bins of a width that an extrapolation uses, the last one included
FEATURE_WINDOW = NUM_BINS * BIN_WIDTHS[-1] + 1  # epochs that one feature vector depends on
NUM_FEATURES = 7 + 2 * len(BIN_WIDTHS)
LN10 = math.log(10)
BLOCK = 200_000  # epochs encoded at a time on a CPU: few calls, arrays that fit in its cache

Array = NDArray | Tensor


class PackedCurves(NamedTuple):
    """Curves without their gaps, left-aligned; beyond a curve's last epoch, padding."""

    brightening: Tensor  # (B, L) baseline minus magnitude [mag]
    sigma: Tensor  # (B, L) [mag]
    times: Tensor  # (B, L) float64 [day]
    valid: Tensor  # (B, L) bool
    index: Tensor  # (B, L) int64, the epoch's place on the grid it came from


def pack(
    delta_mag: Tensor, sigma: Tensor, seen: Tensor, times: Tensor, length: int | None = None
) -> PackedCurves:
    """Drop unobserved epochs and left-align the rest.

    `delta_mag`, `sigma` [mag] and `seen` are (B, T), `times` [day] (T,) or (B, T). Epochs beyond
    `length` are cut off; None = that of the longest curve, which a GPU has to be waited for.
    """
    place = torch.cumsum(seen, dim=1)
    counts = place[:, -1:]
    length = max(int(counts.max()), 1) if length is None else length
    # What does not belong goes to one place behind the end.
    place = torch.where(seen, place - 1, length).clamp_(max=length)
    valid = torch.arange(length, device=seen.device) < counts

    def pick(x: Tensor, padding: float) -> Tensor:
        picked = x.new_full((len(seen), length + 1), padding)
        return picked.scatter_(1, place, x.expand_as(seen))[:, :length]

    return PackedCurves(
        pick(-delta_mag, 0.0),
        pick(sigma, 0.1),
        pick(times.double(), 0.0),
        valid,
        pick(torch.arange(seen.shape[1], device=seen.device), 0),
    )


def observed_epochs(
    magnitude: NDArray, sigma: NDArray, times: NDArray, m_base: NDArray, device: str = "cpu"
) -> PackedCurves:
    """`pack` of magnitudes (B, T) with NaN gaps and known baselines (B,) or (B, T) [mag]."""
    base = m_base if np.ndim(m_base) == 2 else np.asarray(m_base)[:, None]
    delta = torch.as_tensor(np.float32(magnitude - base), device=device)
    seen = torch.isfinite(delta)
    errors = torch.as_tensor(np.array(sigma, dtype=np.float32), device=device)
    epochs = torch.as_tensor(np.array(times, dtype=np.float64), device=device)
    return pack(delta.nan_to_num(), errors, seen, epochs)


def _log_u_squared(brightening: Tensor) -> Tensor:
    """ln u^2 of the point lens that is this bright, a parabola in time for a single lens."""
    gain = torch.expm1((0.4 * LN10) * brightening.clamp(0.005, 8.0))  # A - 1
    root = torch.sqrt(gain * (gain + 2))
    return math.log(2) - torch.log((1 + gain + root) * root)


def _asinh_(x: Tensor) -> Tensor:
    """asinh in place to 1e-7: torch's own takes 15 ns a value on a CPU, this 2 ns."""
    root = x.square().add_(1).sqrt_()
    return x.copy_(torch.copysign(root.add_(x.abs()).log_(), x))


def _moving_sum(total: Tensor, width: int) -> Tensor:
    """Sum of the last `width` epochs, fewer at the start, of cumulative sums (B, L)."""
    moving = total.clone()
    moving[:, width:] -= total[:, :-width]
    return moving


def _extrapolation_deviates(
    mean: Tensor, when: Tensor, variance: Tensor, width: int, out: Tensor
) -> None:
    """Deviation of the last bin from extrapolations of the bins before it, over its error.

    `mean`, `when`, `variance` are those of the last `width` epochs at every epoch, (B, L) float64.
    `out` (2, B, L) float32, zeros, takes those from line and parabola where there is enough past.

    Differences of means are taken in float64, for they may be far below one part in 10^7; errors
    need no more than float32. Newton's divided differences have terms in common: with bins k = 0,
    1, 2, 3 back in time, `gap` and `change` are from bin k + 1 to bin k.
    """
    length = mean.shape[1]
    if length < 3 * width:
        return

    def back(x: Tensor, bins: int, order: int) -> Tensor:  # x starts `width - 1 + order` bins late
        first = (order - bins) * width
        return x[:, first : x.shape[1] - bins * width]

    # First differences, and the deviation from the line through bins 1 and 2.
    mean, when, variance = (x[:, width - 1 :] for x in (mean, when, variance.float()))
    gap, change = (x[:, width:] - x[:, :-width] for x in (when, mean))
    slope = change / gap
    linear = torch.addcmul(change[:, width:], slope[:, :-width], gap[:, width:], value=-1)
    span = gap[:, width:] + gap[:, :-width]  # two bins
    # Its error: bin 0 and the extrapolated bins 1 and 2.
    near, wide = gap.float(), span.float()
    g0, g1 = near[:, width:], near[:, :-width]
    v0, v1, v2 = (back(variance, k, 2) for k in range(3))
    r = g0 / g1
    ahead = 1 + r
    scatter = torch.addcmul(torch.addcmul(v0, ahead * ahead, v1), r * r, v2)
    out[0, :, 3 * width - 1 :] = linear * scatter.rsqrt_()
    if length < 4 * width:
        return
    # Second differences, and the deviation from the parabola through bins 1, 2 and 3.
    bend = (slope[:, width:-width] - slope[:, : -2 * width]) / span[:, :-width]
    bend *= gap[:, 2 * width :]
    parabolic = torch.addcmul(linear[:, width:], bend, span[:, width:], value=-1)
    # Its error, with the coefficients of Lagrange's parabola.
    v0, v1, v2, v3 = (back(variance, k, 3) for k in range(4))
    g0, g2 = near[:, 2 * width :], near[:, : -2 * width]
    s0, s1 = wide[:, width:], wide[:, :-width]
    whole = g0 + s1
    c1 = ahead[:, width:] * (whole / s1)
    c2 = r[:, width:] * (whole / g2)
    c3 = (g0 / s1) * (s0 / g2)
    scatter = torch.addcmul(torch.addcmul(v0, c1.square_(), v1), c2.square_(), v2)
    scatter.addcmul_(c3.square_(), v3)
    out[1, :, 4 * width - 1 :] = parabolic * scatter.rsqrt_()


def _encode_block(observed: PackedCurves) -> Tensor:
    """`encode` of a few rows, (F, B, L): each feature's values together."""
    b32 = observed.brightening
    sigma = observed.sigma.double().clamp_min_(1e-3)
    b = b32.double()
    times = observed.times - observed.times[:, :1]
    out = b32.new_zeros(NUM_FEATURES, *b32.shape)
    # Of single epochs.
    out[0] = b32.clamp(-3, 8) / 2
    out[1] = _asinh_(b32 / sigma.float()).div_(3)
    out[2] = torch.log10(sigma.float() / 0.03)
    out[3, :, 1:] = torch.diff(times, dim=1)
    out[3, :, 0] = 1
    out[3].clamp_(1e-4, 1e3).log10_().mul_(0.5)
    out[4] = _log_u_squared(b32) / 4
    # Of bins: inverse-variance weighted means of brightening and time, from cumulative sums.
    variance, mean, when = sigma.square_(), b, times  # of a single epoch
    weight = variance.reciprocal()
    totals = [torch.cumsum(x, dim=1) for x in (weight, weight * b, weight * times)]
    for k, width in enumerate(BIN_WIDTHS):
        if width > 1:
            variance, mean, when = (_moving_sum(total, width) for total in totals)
            variance.reciprocal_()
            mean *= variance
            when *= variance
        _extrapolation_deviates(mean, when, variance, width, out[5 + 2 * k : 7 + 2 * k])
        if k >= 2:
            out[11 + k] = mean * variance.rsqrt_()
    _asinh_(out[5:])
    out[5:13] *= 0.5
    out[13:] *= 0.25
    return out.nan_to_num_(0.0, 0.0, 0.0).mul_(observed.valid)


def encode(observed: PackedCurves) -> Tensor:
    """Features (B, L, F) float32 of curves without gaps; padding gives zeros.

    Float64 sums and differences: long time bases and small errors lose nothing. By asinh deviations
    of 1 and of 1000 sigma are both resolved. On a CPU a few rows at a time, in its cache.
    """
    rows, length = observed.valid.shape
    blocks = 1 if observed.valid.is_cuda else max(1, -(-rows * length // BLOCK))
    features = observed.brightening.new_empty(rows, length, NUM_FEATURES)
    for part, *curves in zip(*(x.chunk(blocks) for x in (features, *observed)), strict=True):
        part.copy_(_encode_block(PackedCurves(*curves)).permute(1, 2, 0))
    return features


def encode_latest(bright: Array, sigma: Array, times: Array, totals: Array, count: Array) -> Array:
    """Features (B, F) of the last epoch alone, `encode(...)[:, -1]` of the whole past.

    Arrays of numpy or of torch, with the functions that have one name in both: for a single event
    numpy takes a third of the time, and many events may lie on a GPU.

    `bright` [mag], `sigma` [mag] and `times` [day, any origin] are of the last NUM_BINS epochs,
    newest first, (NUM_BINS, B); `count` (B,) int64 are all so far. `totals`, (NUM_BINS + 1, W - 1,
    B, 3) float64, are cumulative sums of weight 1 / sigma^2, weight x brightening and weight x time
    at the edges of the bins of each width but the first, newest first; 0 before the first epoch.
    """
    xp = np if isinstance(bright, np.ndarray) else torch
    # Of each bin the variance, mean brightening and mean time, (NUM_BINS, W, B).
    sums = totals[:-1] - totals[1:]
    wide = 1 / sums[..., 0]
    variance = xp.concatenate([(sigma * sigma)[:, None], wide], axis=1)
    mean = xp.concatenate([bright[:, None], sums[..., 1] * wide], axis=1)
    when = xp.concatenate([times[:, None], sums[..., 2] * wide], axis=1)
    # Deviations from the line through two bins and the parabola through three (Lagrange).
    (m0, m1, m2, m3), (v0, v1, v2, v3) = mean, variance
    t1, t2, t3 = when[0] - when[1:]
    t21, t31, t32 = t2 - t1, t3 - t1, t3 - t2
    c1, c2 = t2 / t21, t1 / t21
    scatter = v0 + c1 * c1 * v1 + c2 * c2 * v2
    linear = (m0 - c1 * m1 + c2 * m2) / xp.sqrt(scatter)
    c1, c2, c3 = c1 * (t3 / t31), c2 * (t3 / t32), (t1 / t31) * (t2 / t32)
    scatter = v0 + c1 * c1 * v1 + c2 * c2 * v2 + c3 * c3 * v3
    parabolic = (m0 - c1 * m1 + c2 * m2 - c3 * m3) / xp.sqrt(scatter)
    # They take three and four full bins.
    deviates = xp.stack(
        [
            x[k] * (count >= bins * width)
            for k, width in enumerate(BIN_WIDTHS)
            for bins, x in ((3, linear), (4, parabolic))
        ]
    )
    signal = m0 / xp.sqrt(v0)
    # All features; those in units of an error are compressed.
    squashed = xp.arcsinh(xp.concatenate([signal[:1], deviates, signal[2:]]))
    b, gap = m0[:1], xp.where(count > 1, t1[:1], 1.0).clip(1e-4, 1e3)
    gain = xp.expm1((0.4 * LN10) * b.clip(0.005, 8.0))
    root = xp.sqrt(gain * (gain + 2))
    logs = xp.log(xp.concatenate([v0[:1], gap, (1 + gain + root) * root]))
    columns = [
        b.clip(-3, 8) / 2,
        squashed[:1] / 3,
        logs[:2] / (2 * LN10),
        (math.log(2) - logs[2:]) / 4,
        squashed[1:9] / 2,
        squashed[9:] / 4,
    ]
    features = xp.concatenate(columns).T
    features[:, 2] -= math.log10(0.03)
    return xp.where(xp.isfinite(features), features, 0.0)
