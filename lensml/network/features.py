"""What the network may see at epoch t: the past and the present, on fixed physical scales.

Axes: B curves, L observed epochs in time order (gaps removed), F features. Nothing here is fitted
to data and nothing looks ahead: feature k of a curve is a function of its epochs <= k.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FEATURE_WINDOW", "NUM_FEATURES", "PackedCurves", "pack", "encode", "observed_epochs"]

BIN_WIDTHS = (1, 4, 16, 64)  # epochs averaged before a deviation from smoothness is measured
FEATURE_WINDOW = 4 * BIN_WIDTHS[-1] + 1  # epochs of the past that one feature vector depends on
NUM_FEATURES = 7 + 2 * len(BIN_WIDTHS)
BLOCK = 200_000  # epochs encoded at a time on a CPU: few calls, and arrays that fit in its cache


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

    Args:
        delta_mag, sigma: Magnitude minus baseline and its error, (B, T) [mag].
        seen: Which epochs were observed, (B, T).
        times: Epochs, (T,) or (B, T) [day].
        length: L; later epochs are cut off. None = that of the longest curve, which a GPU has to
            be waited for.
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
    """ln u^2 of the point lens that would be this bright: a parabola in time for a single lens."""
    gain = torch.expm1((0.4 * math.log(10)) * brightening.clamp(0.005, 8.0))  # A - 1
    root = torch.sqrt(gain * (gain + 2))
    return math.log(2) - torch.log((1 + gain + root) * root)


def _asinh_(x: Tensor) -> Tensor:
    """asinh in place to 1e-7: torch's own takes 15 ns a value on a CPU, this 2 ns."""
    root = x.square().add_(1).sqrt_()
    return x.copy_(torch.copysign(root.add_(x.abs()).log_(), x))


def _moving_sum(total: Tensor, width: int) -> Tensor:
    """Sum of the last `width` epochs, shorter at the start, of cumulative sums (B, L)."""
    moving = total.clone()
    moving[:, width:] -= total[:, :-width]
    return moving


def _extrapolation_deviates(
    mean: Tensor, when: Tensor, variance: Tensor, width: int, out: Tensor
) -> None:
    """How far the mean of the last `width` epochs lies from what the bins before it foretell.

    Args:
        mean, when, variance: Of the last `width` epochs at every epoch, (B, L) float64.
        width: Epochs in a bin.
        out: (2, B, L) float32, zeros; takes the deviation from the linear and from the parabolic
            extrapolation in units of its own error, where there is enough past.

    Differences of means are taken in float64, for they may be far below one part in 10^7; errors
    of deviations need no more than float32. Newton's divided differences share what they can:
    with bins k = 0, 1, 2, 3 back in time, `gap` and `change` are from bin k + 1 to bin k.
    """
    length = mean.shape[1]
    if length < 3 * width:
        return

    def back(x: Tensor, bins: int, order: int) -> Tensor:  # x starts `width - 1 + order` bins late
        first = (order - bins) * width
        return x[:, first : x.shape[1] - bins * width]

    mean, when, variance = (x[:, width - 1 :] for x in (mean, when, variance.float()))
    gap, change = (x[:, width:] - x[:, :-width] for x in (when, mean))
    slope = change / gap
    linear = torch.addcmul(change[:, width:], slope[:, :-width], gap[:, width:], value=-1)
    span = gap[:, width:] + gap[:, :-width]  # two bins
    near, wide = gap.float(), span.float()
    g0, g1 = near[:, width:], near[:, :-width]
    v0, v1, v2 = (back(variance, k, 2) for k in range(3))
    r = g0 / g1
    ahead = 1 + r
    scatter = torch.addcmul(torch.addcmul(v0, ahead * ahead, v1), r * r, v2)
    out[0, :, 3 * width - 1 :] = linear * scatter.rsqrt_()
    if length < 4 * width:
        return
    bend = (slope[:, width:-width] - slope[:, : -2 * width]) / span[:, :-width]
    bend *= gap[:, 2 * width :]
    parabolic = torch.addcmul(linear[:, width:], bend, span[:, width:], value=-1)
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
    out[0] = b32.clamp(-3, 8) / 2
    out[1] = _asinh_(b32 / sigma.float()).div_(3)
    out[2] = torch.log10(sigma.float() / 0.03)
    out[3, :, 1:] = torch.diff(times, dim=1)
    out[3, :, 0] = 1
    out[3].clamp_(1e-4, 1e3).log10_().mul_(0.5)
    out[4] = _log_u_squared(b32) / 4
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
    """Features (B, L, F) float32 of curves without gaps.

    Sums and differences are taken in float64, so that long time bases and small errors lose
    nothing; compressed with asinh, so that one sigma and a thousand are both seen. Padding gives
    zeros. On a CPU a few rows are worked on at a time, which stay in the cache.
    """
    rows, length = observed.valid.shape
    blocks = 1 if observed.valid.is_cuda else -(-rows * length // BLOCK)
    at_once = max(1, -(-rows // max(1, blocks)))
    features = observed.brightening.new_empty(rows, length, NUM_FEATURES)
    for first in range(0, rows, at_once):
        part = slice(first, first + at_once)
        block = _encode_block(PackedCurves(*(x[part] for x in observed)))
        features[part] = block.permute(1, 2, 0)
    return features
