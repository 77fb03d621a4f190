"""What the network may see at epoch t: the past and the present, on fixed physical scales.

Axes: B curves, L observed epochs in time order (gaps removed), F features. Nothing here is fitted
to data and nothing looks ahead: feature k of a curve is a function of its epochs <= k.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HISTORY", "NUM_FEATURES", "Observed", "compact", "encode", "observed_epochs"]

WIDTHS = (1, 4, 16, 64)  # epochs averaged before a deviation from smoothness is measured
HISTORY = 4 * WIDTHS[-1] + 1  # epochs of the past that one feature vector depends on
NUM_FEATURES = 7 + 2 * len(WIDTHS)


class Observed(NamedTuple):
    """Curves without their gaps, left-aligned; beyond a curve's last epoch, padding."""

    brightening: Tensor  # (B, L) baseline minus magnitude [mag]
    sigma: Tensor  # (B, L) [mag]
    times: Tensor  # (B, L) float64 [day]
    valid: Tensor  # (B, L) bool
    index: Tensor  # (B, L) int64, the epoch's place on the grid it came from


def compact(delta_mag: Tensor, sigma: Tensor, seen: Tensor, times: Tensor) -> Observed:
    """Drop unobserved epochs, each (B, T), and left-align the rest; `times` (T,) or (B, T)."""
    counts = seen.sum(1)
    longest = max(int(counts.max()), 1)
    index = torch.argsort(~seen, dim=1, stable=True)[:, :longest]
    valid = torch.arange(longest, device=seen.device) < counts[:, None]

    def pick(x: Tensor, padding: float) -> Tensor:
        return torch.where(valid, x.expand_as(seen).gather(1, index), padding)

    return Observed(
        pick(-delta_mag, 0.0), pick(sigma, 0.1), pick(times.double(), 0.0), valid, index
    )


def observed_epochs(
    magnitude: NDArray, sigma: NDArray, times: NDArray, m_base: NDArray, device: str = "cpu"
) -> Observed:
    """`compact` of magnitudes (B, T) with NaN gaps and known baselines (B,) or (B, T) [mag]."""
    base = m_base if np.ndim(m_base) == 2 else np.asarray(m_base)[:, None]
    delta = torch.as_tensor(np.float32(magnitude - base), device=device)
    seen = torch.isfinite(delta)
    errors = torch.as_tensor(np.array(sigma, dtype=np.float32), device=device)
    epochs = torch.as_tensor(np.array(times, dtype=np.float64), device=device)
    return compact(delta.nan_to_num(), errors, seen, epochs)


def _log_u_squared(brightening: Tensor) -> Tensor:
    """ln u^2 of the point lens that would be this bright: a parabola in time for a single lens."""
    amplitude = 10 ** (0.4 * brightening.clamp(0.005, 8.0))
    root = torch.sqrt(amplitude**2 - 1)
    return torch.log(2 / ((amplitude + root) * root))


def _moving_sum(x: Tensor, width: int) -> Tensor:
    """Sum of the last `width` epochs (B, L), float64; shorter at the start."""
    total = torch.cumsum(x, dim=1)
    return total - torch.nn.functional.pad(total, (width, 0))[:, : x.shape[1]]


def _past(x: Tensor, epochs: int) -> Tensor:
    return torch.nn.functional.pad(x, (epochs, 0))[:, : x.shape[1]]


def _surprise(b: Tensor, weight: Tensor, times: Tensor, width: int) -> list[Tensor]:
    """How far the mean of the last `width` epochs lies from what the bins before it foretell.

    Returns the deviation from the linear and from the parabolic extrapolation in units of its own
    error, and the signal to noise of the mean itself; 0 while there is too little past.
    """
    w0 = _moving_sum(weight, width)
    mean = _moving_sum(weight * b, width) / w0
    when = _moving_sum(weight * times, width) / w0
    variance = 1 / w0
    m1, m2, m3 = (_past(mean, k * width) for k in (1, 2, 3))
    t1, t2, t3 = (when - _past(when, k * width) for k in (1, 2, 3))  # distance back in time
    v1, v2, v3 = (_past(variance, k * width) for k in (1, 2, 3))
    count = torch.arange(1, b.shape[1] + 1, device=b.device)
    r = t1 / (t2 - t1)
    linear = (mean - m1 - (m1 - m2) * r) / torch.sqrt(variance + (1 + r) ** 2 * v1 + r**2 * v2)
    c1 = t2 * t3 / ((t2 - t1) * (t3 - t1))
    c2 = -t1 * t3 / ((t2 - t1) * (t3 - t2))
    c3 = t1 * t2 / ((t3 - t1) * (t3 - t2))
    scatter = torch.sqrt(variance + c1**2 * v1 + c2**2 * v2 + c3**2 * v3)
    parabolic = (mean - c1 * m1 - c2 * m2 - c3 * m3) / scatter
    linear = torch.where(count >= 3 * width, linear, 0.0)
    parabolic = torch.where(count >= 4 * width, parabolic, 0.0)
    return [linear, parabolic, mean * torch.sqrt(w0)]


def encode(observed: Observed) -> Tensor:
    """Features (B, L, F) float32 of curves without gaps.

    Computed in float64, so that long time bases and small errors lose nothing; compressed with
    asinh, so that one sigma and a thousand are both seen. Padding gives zeros.
    """
    valid = observed.valid
    b = observed.brightening.double()
    sigma = observed.sigma.double().clamp_min(1e-3)
    times = torch.where(valid, observed.times - observed.times[:, :1], 0.0)
    # Padding continues with one epoch a day, so that no division by zero arises there.
    times = torch.where(valid, times, times.amax(1, keepdim=True) + torch.cumsum(~valid, 1))
    step = torch.diff(times, dim=1, prepend=times[:, :1] - 1.0)
    weight = sigma**-2
    surprises = [_surprise(b, weight, times, width) for width in WIDTHS]
    columns = [
        b.clamp(-3, 8) / 2,
        torch.asinh(b / sigma) / 3,
        torch.log10(sigma / 0.03),
        torch.log10(step.clamp(1e-4, 1e3)) / 2,
        _log_u_squared(b) / 4,
        *(torch.asinh(x) / 2 for linear, parabolic, _ in surprises for x in (linear, parabolic)),
        *(torch.asinh(surprises[k][2]) / 4 for k in (2, 3)),
    ]
    features = torch.stack(columns, dim=2).float()
    return torch.where(valid[:, :, None], features.nan_to_num(0.0, 0.0, 0.0), 0.0)
