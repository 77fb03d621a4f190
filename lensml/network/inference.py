"""P(binary) of sets and of single light curves, from the whole curve at once.

P at epoch k depends on epochs <= k only; `streaming` gives the same probabilities one epoch at a
time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from lensml.network.checkpoint import load_network
from lensml.network.event_inference import predict_events
from lensml.network.event_model import EventNetwork
from lensml.network.features import encode, observed_epochs
from lensml.network.model import Network
from lensml.paths import InputError
from lensml.simulation import FRACTIONS, LightCurves, until_fraction

BASELINE_MIN = 20  # epochs before a baseline estimated from the past is used
BASELINE_MAX = 200  # epochs after which it is fixed
PHASE_EDGES = np.linspace(-3, 3, 25)  # (t - t0) / tE
SET_CHUNK = 4096  # rows whose probabilities at every epoch are held at a time
SEASON_ROWS = 10_000  # rows whose probabilities at every epoch are kept, for alerts


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
    network: Network | EventNetwork,
    curves: LightCurves,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """P(binary) (n, T) at every epoch, in float32; NaN where not observed.

    No TF32, no autocast. Entry k depends on epochs <= k only. `device` None = the network's own.
    Of an event network P is that of two classes.
    """
    if isinstance(network, EventNetwork):
        return predict_events(network, curves, progress=progress)
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
    """P(binary) (n,) at every epoch of one curve, from epochs up to it alone.

    `time` increases strictly [day], `mag` and `mag_err` [mag]. Without `m_base` the baseline is
    estimated from the past only, and P = 0.5 until BASELINE_MIN epochs are there. `network` None =
    the shipped one; `blended` False = it is known that all flux is lensed. InputError if epochs do
    not increase, values are not finite or errors not positive.
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


@dataclass(frozen=True)
class Predictions:
    """Probabilities of a network on each row of a set."""

    p: NDArray  # (n, 7) float32, P(binary) at FRACTIONS
    by_phase: NDArray  # (n, K) float32, the last by the end of each bin of PHASE_EDGES
    max_probability: NDArray  # (n,) float32, the highest at any epoch
    season: NDArray  # (m, T) float32, at every epoch of the first m rows


def predict(
    network: Network | EventNetwork,
    curves: LightCurves,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    season_rows: int = SEASON_ROWS,
) -> Predictions:
    """P(binary) of every row, reduced `SET_CHUNK` rows at a time; else as `predict_proba`.

    Of the first `season_rows` rows the probabilities at every epoch are kept.
    """
    parts = []
    for start in range(0, len(curves), SET_CHUNK):
        rows = curves.rows(slice(start, start + SET_CHUNK))
        times, t0, tE = rows.times(), rows.param("t0"), rows.param("tE")
        p_epochs = predict_proba(network, rows, batch_size=batch_size, device=device)
        reduced = at_fractions(p_epochs, times), by_phase(p_epochs, times, t0, tE)
        season = p_epochs[: max(0, season_rows - start)]
        parts.append((*reduced, max_probability(p_epochs), season))
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def last_by(p_epochs: NDArray, epoch: NDArray) -> NDArray:
    """P(binary) at the last observed epoch up to each index `epoch` (n, K); 0.5 if none."""
    index = np.where(np.isfinite(p_epochs), np.arange(p_epochs.shape[1]), -1)
    latest = np.take_along_axis(np.maximum.accumulate(index, axis=1), epoch.clip(0), axis=1)
    found = (epoch >= 0) & (latest >= 0)
    return np.where(found, np.take_along_axis(p_epochs, latest.clip(0), axis=1), 0.5)


def at_fractions(
    p_epochs: NDArray, times: NDArray, fractions: Sequence[float] = FRACTIONS
) -> NDArray:
    """P(binary) at fractions of the window, (n, F): at the last epoch by then, 0.5 if none.

    The window is the grid `times` (n, T) or (T,), not the observed part of it.
    """
    times = np.broadcast_to(times, p_epochs.shape)
    seen = [until_fraction(times, fraction).sum(axis=1) for fraction in fractions]
    return last_by(p_epochs, np.stack(seen, axis=1) - 1).astype(np.float32)


def by_phase(
    p_epochs: NDArray, times: NDArray, t0: ArrayLike, tE: ArrayLike, edges: ArrayLike = PHASE_EDGES
) -> NDArray:
    """P(binary) at the last epoch by the end of each bin of phase (t - t0) / tE, (n, K).

    Bins without an epoch of a row, observed or not, are NaN: the window ended or had not begun.
    """
    times = np.broadcast_to(times, p_epochs.shape)
    phase = (times - np.asarray(t0)[:, None]) / np.asarray(tE)[:, None]
    before = np.stack([(phase < edge).sum(axis=1) for edge in np.asarray(edges)], axis=1)
    # A bin holds an epoch where the number of epochs before its edges differs.
    last = last_by(p_epochs, before[:, 1:] - 1)
    return np.where(np.diff(before, axis=1) > 0, last, np.nan)


def max_probability(p_epochs: NDArray) -> NDArray:
    """Highest P(binary) of each row at any epoch, (n,); 0.5 for a row without observed epoch."""
    peak = np.where(np.isfinite(p_epochs), p_epochs, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(peak), peak, 0.5)
