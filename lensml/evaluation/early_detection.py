"""What the network knew, and when: calls at fractions of the window, against phase, and alerts.

Axes: n rows, T epochs, F fractions. `p_epochs` (n, T) is P(binary) at each observed epoch, using
that epoch and those before it; NaN where nothing was observed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import metrics
from lensml.evaluation.ideal_observer import until_fraction
from lensml.evaluation.metrics import threshold_at_fpr
from lensml.simulation import FRACTIONS

__all__ = [
    "PHASE_EDGES",
    "against_phase",
    "alert_summary",
    "at_fractions",
    "first_alert",
    "calibration_half",
    "onset_times",
    "max_probability",
    "season_threshold",
]

PHASE_EDGES = np.linspace(-3, 3, 25)  # (t - t0) / tE


def at_fractions(
    p_epochs: NDArray, times: NDArray, fractions: Sequence[float] = FRACTIONS
) -> NDArray:
    """P(binary) at fractions of the window, (n, F): the last call made by then, 0.5 if none.

    The window is the grid `times` (n, T) or (T,), not the observed part of it.
    """
    times = np.broadcast_to(times, p_epochs.shape)
    # Index of the latest observed epoch so far; -1 before the first.
    latest = np.where(np.isfinite(p_epochs), np.arange(p_epochs.shape[1]), -1)
    latest = np.maximum.accumulate(latest, axis=1)
    result = np.full((p_epochs.shape[0], len(fractions)), 0.5, dtype=np.float32)
    for k, fraction in enumerate(fractions):
        epoch = until_fraction(times, fraction).sum(axis=1) - 1
        at = np.where(epoch >= 0, latest[np.arange(epoch.size), np.maximum(epoch, 0)], -1)
        rows = np.flatnonzero(at >= 0)
        result[rows, k] = p_epochs[rows, at[rows]]
    return result


def against_phase(
    p_epochs: NDArray,
    times: NDArray,
    t0: ArrayLike,
    tE: ArrayLike,
    edges: ArrayLike = PHASE_EDGES,
) -> NDArray:
    """Last call of each row by the end of each bin of phase (t - t0) / tE, (n, K).

    Bins that no epoch of a row falls in, observed or not, are NaN: the window ended or had not
    begun. `t0` [day] and `tE` [day] are (n,).
    """
    times = np.broadcast_to(times, p_epochs.shape)
    phase = (times - np.asarray(t0)[:, None]) / np.asarray(tE)[:, None]
    latest = np.where(np.isfinite(p_epochs), np.arange(p_epochs.shape[1]), -1)
    latest = np.maximum.accumulate(latest, axis=1)
    edges = np.asarray(edges)
    result = np.full((p_epochs.shape[0], edges.size - 1), np.nan)
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = (phase >= low) & (phase < high)
        epoch = (phase < high).sum(axis=1) - 1
        at = latest[np.arange(epoch.size), epoch]
        rows = np.flatnonzero(inside.any(axis=1))
        result[rows, k] = np.where(at[rows] >= 0, p_epochs[rows, at[rows]], 0.5)
    return result


def max_probability(p_epochs: NDArray) -> NDArray:
    """Highest call each row ever gets, (n,); 0.5 for a row without any observed epoch."""
    peak = np.where(np.isfinite(p_epochs), p_epochs, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(peak), peak, 0.5)


def season_threshold(p_epochs: NDArray, y: ArrayLike, rate: float = 0.01) -> float:
    """Threshold that at most `rate` of the single-lens rows ever pass, at any epoch."""
    return threshold_at_fpr(max_probability(p_epochs[np.asarray(y) == 0]), rate)


def first_alert(p_epochs: NDArray, times: NDArray, threshold: float) -> NDArray:
    """Time [day] of the first call above `threshold` of each row, (n,); NaN if there is none."""
    above = np.nan_to_num(p_epochs, nan=-np.inf) > threshold
    first = np.take_along_axis(
        np.broadcast_to(times, p_epochs.shape), above.argmax(axis=1)[:, None], axis=1
    )[:, 0]
    return np.where(above.any(axis=1), first, np.nan)


def onset_times(
    dchi2_at: NDArray, times: NDArray, fractions: Sequence[float], level: float = 25.0
) -> NDArray:
    """Time [day] at which the anomaly becomes reachable, (n,): delta-chi2 first passes `level`.

    Args:
        dchi2_at: Reachable delta-chi2 by each fraction (n, F), as `limits.prefix_dchi2` gives.
        times: Grid (n, T) or (T,) [day].
        fractions: Of the window, rising (F,).
        level: Delta-chi2 of onset; NaN is returned where it is never reached.
    """
    times = np.broadcast_to(times, (dchi2_at.shape[0], np.shape(times)[-1]))
    first, last = times[:, 0], times[:, -1]
    above = dchi2_at > level
    k = above.argmax(axis=1)
    rows = np.arange(k.size)
    fractions = np.concatenate([[0.0], fractions])
    padded = np.concatenate([np.zeros((k.size, 1)), dchi2_at], axis=1)
    low, high = padded[rows, k], padded[rows, k + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((level - low) / (high - low), 0, 1)
    at = fractions[k] + part * (fractions[k + 1] - fractions[k])
    return np.where(above.any(axis=1), first + at * (last - first), np.nan)


def calibration_half(pair: ArrayLike) -> NDArray:
    """Rows (n,) of the half that sets the threshold; pairs stay together, lone rows two by two.

    Lone rows come as single, binary, single, ...: one by one they would be split by class.
    """
    pair = np.asarray(pair)
    return np.where(pair >= 0, pair, np.arange(pair.size) // 2) % 2 == 0


def alert_summary(
    p_epochs: NDArray,
    times: NDArray,
    y: ArrayLike,
    pair: ArrayLike,
    onset: ArrayLike,
    *,
    rate: float = 0.01,
) -> dict[str, float]:
    """Alerts over a whole season, threshold set on one half of the pairs and reported on the other.

    Args:
        p_epochs: P(binary), (n, T).
        times: Grid (n, T) or (T,) [day].
        y, pair: Class and pair of each row (n,).
        onset: When each binary's anomaly became reachable, (n,) [day]; NaN if never, or a single.
        rate: Share of single lenses that may ever alert.

    Returns:
        `threshold`; on the other half `false_alarms` (share of singles that ever alert),
        `binaries`, `detected` (share of binaries that alert); and of those with an onset
        `with_onset`, `detected_with_onset`, `premature` (alert before onset, share of the alerts)
        and `median_lag`, `lag_16`, `lag_84` (alert after onset) [day].
    """
    y, onset = np.asarray(y), np.asarray(onset, dtype=float)
    half = calibration_half(pair)
    threshold = season_threshold(p_epochs[half], y[half], rate)
    p_other, y, onset = p_epochs[~half], y[~half], onset[~half]
    alert = first_alert(p_other, np.broadcast_to(times, p_epochs.shape)[~half], threshold)
    alerted, reachable = np.isfinite(alert), (y == 1) & np.isfinite(onset)
    lag = (alert - onset)[reachable & alerted]
    late = lag[lag >= 0]
    quantiles = np.quantile(late, [0.5, 0.16, 0.84]) if late.size else np.full(3, np.nan)
    return {
        "threshold": threshold,
        "rate": rate,
        "false_alarms": metrics.fraction(alerted[y == 0]),
        "singles": int((y == 0).sum()),
        "binaries": int((y == 1).sum()),
        "detected": metrics.fraction(alerted[y == 1]),
        "with_onset": int(reachable.sum()),
        "detected_with_onset": metrics.fraction(alerted[reachable]),
        "premature": metrics.fraction(lag < 0),
        "median_lag": float(quantiles[0]),
        "lag_16": float(quantiles[1]),
        "lag_84": float(quantiles[2]),
    }
