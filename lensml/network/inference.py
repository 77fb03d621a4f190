"""P(binary) of sets and of single light curves, from the whole curve at once.

P at epoch k depends on epochs <= k only; `streaming` gives the same probabilities one epoch at a
time.
"""

from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lensml.network.checkpoint import load_network
from lensml.network.features import encode, observed_epochs
from lensml.network.model import Network
from lensml.paths import InputError
from lensml.simulation import LightCurves

__all__ = [
    "BASELINE_MAX",
    "BASELINE_MIN",
    "bf16_supported",
    "causal_baseline",
    "classify",
    "find_device",
    "is_finite",
    "predict_proba",
]

BASELINE_MIN = 20  # epochs before a baseline estimated from the past is used
BASELINE_MAX = 200  # epochs after which it is fixed


def find_device() -> torch.device:
    """CUDA or ROCm where there is one (both answer to `cuda`), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_supported(device: torch.device) -> bool:
    """Whether bfloat16 is computed, not emulated, on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


@torch.no_grad()
def predict_proba(
    network: Network,
    curves: LightCurves,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """P(binary) at every epoch of every curve, in float32 without TF32 or autocast.

    Args:
        network: The classifier; moved to `device` if one is given.
        curves: Light curves; `X` is used as it is.
        batch_size: Curves at a time.
        device: Where to compute; None = where the network is.
        progress: Whether to show a bar.

    Returns:
        Array (n, T), NaN where an epoch was not observed. Entry k depends on epochs <= k only.
    """
    if device is not None:
        network = network.to(device)
    device = next(network.parameters()).device
    network.eval()
    times, sigmas = curves.times(), curves.sigmas()
    result = np.full(curves.X.shape, np.nan, dtype=np.float32)
    for first in tqdm(range(0, len(curves), batch_size), "classify", disable=not progress):
        rows = slice(first, first + batch_size)
        observed = observed_epochs(
            curves.X[rows], sigmas[rows], times[rows], curves.m_base[rows], device
        )
        logits = network(encode(observed), network.refits(observed, blended=curves.blended))
        p = torch.sigmoid(logits).cpu().numpy()
        row, column = np.nonzero(observed.valid.cpu().numpy())
        result[first + row, observed.index.cpu().numpy()[row, column]] = p[row, column]
    return result


def causal_baseline(magnitude: NDArray) -> NDArray[np.float64]:
    """Baseline estimated for epoch k from epochs <= k alone, shape (n,) [mag].

    The median so far, fixed after BASELINE_MAX epochs: later brightening cannot shift it. Epochs
    before BASELINE_MIN carry the first value in use; P is 0.5 there.
    """
    magnitude = np.asarray(magnitude, dtype=float)
    base = np.empty(len(magnitude))
    for k in range(min(len(magnitude), BASELINE_MAX)):
        base[k] = np.median(magnitude[: max(k + 1, min(BASELINE_MIN, len(magnitude)))])
    base[BASELINE_MAX:] = base[BASELINE_MAX - 1] if len(magnitude) > BASELINE_MAX else 0.0
    return base


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float; an integer of 400 digits is not."""
    try:
        return isfinite(value)
    except OverflowError:
        return False


def _check_curve(time: NDArray, mag: NDArray, mag_err: NDArray) -> None:
    for name, values in (("time", time), ("mag", mag), ("mag_err", mag_err)):
        if values.shape != time.shape or values.ndim != 1:
            raise InputError(f"`{name}` has shape {values.shape}, but {time.shape} was expected")
        if not np.isfinite(values).all():
            raise InputError(f"`{name}` holds values that are not finite; drop those epochs first")
    if (np.diff(time) <= 0).any():
        raise InputError("`time` must increase strictly; sort the epochs and drop repeated times")
    if (mag_err <= 0).any():
        raise InputError("`mag_err` must be positive; drop epochs without an error first")


@torch.no_grad()
def classify(
    time: NDArray,
    mag: NDArray,
    mag_err: NDArray,
    m_base: float | None = None,
    network: Network | None = None,
    blended: bool = True,
) -> NDArray[np.float64]:
    """P(binary) at every epoch of one curve, from epochs up to it alone.

    Args:
        time: Epochs, shape (n,), strictly increasing [day].
        mag: Magnitudes, (n,) [mag].
        mag_err: 1-sigma errors, (n,) [mag].
        m_base: Baseline magnitude if it is known; else it is estimated from the past only, and
            P = 0.5 until BASELINE_MIN epochs are there.
        network: The classifier; None = the shipped one.
        blended: Whether f_s may be less than 1; False = it is known that all flux is lensed.

    Returns:
        P(binary), shape (n,).

    Raises:
        InputError: If epochs do not increase, or values are not finite or errors not positive.
    """
    time, mag, mag_err = (np.asarray(x, dtype=float) for x in (time, mag, mag_err))
    _check_curve(time, mag, mag_err)
    if m_base is not None and not is_finite(m_base):
        raise InputError(
            f"`m_base` is {m_base}, but a magnitude was expected; leave it out if unknown"
        )
    if not len(time):
        return np.empty(0)
    network = network or load_network()[0]
    base = causal_baseline(mag) if m_base is None else np.full(len(mag), float(m_base))
    # The difference is taken in float64; only then does float32 suffice.
    observed = observed_epochs((mag - base)[None], mag_err[None], time[None], np.zeros(1))
    logits = network(encode(observed), network.refits(observed, blended=blended))
    p = torch.sigmoid(logits)[0].double().numpy()
    if m_base is None:
        p[: BASELINE_MIN - 1] = 0.5
    return p
