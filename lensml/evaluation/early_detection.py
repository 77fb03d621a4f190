"""Predictions over a set, by fraction of the window and by phase; onset of the anomaly.

Axes: n rows, T epochs, F fractions of the window, K bins of phase, P binaries. `p_epochs` (n, T)
is P(binary) at each observed epoch, from that epoch and those before it; NaN where nothing was
observed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import metrics
from lensml.evaluation.ideal_observer import (
    expected_ideal,
    pair_curves,
    partner_rows,
    until_fraction,
)
from lensml.lensing import fit_prefixes
from lensml.network import Network, predict_proba
from lensml.simulation import FRACTIONS, LightCurves

__all__ = [
    "FRACTION_KEYS",
    "PHASE_EDGES",
    "PREFIXES",
    "Predictions",
    "PrefixRefits",
    "add_refit_limited",
    "alerts_before_peak",
    "at_fractions",
    "by_phase",
    "calibration_half",
    "first_alert",
    "interpolate_onset",
    "max_probability",
    "onset_times",
    "predict",
    "prefix_dchi2",
    "refit_prefixes",
    "scores_by_phase",
]

PHASE_EDGES = np.linspace(-3, 3, 25)  # (t - t0) / tE
PREFIXES = tuple(sorted({*FRACTIONS, *(k / 20 for k in range(1, 21))}))  # refitted, of the window
FRACTION_KEYS = tuple(f"{f:g}" if f < 1 else "1.0" for f in FRACTIONS)  # in results
CHUNK = 4096  # rows whose probabilities at every epoch are held at a time
SEASON_ROWS = 10_000  # rows whose probabilities at every epoch are kept, for alerts


@dataclass(frozen=True)
class Predictions:
    """Probabilities of a network on each row of a set."""

    p: NDArray  # (n, 7) float32, P(binary) at FRACTIONS
    by_phase: NDArray  # (n, K) float32, the last by the end of each bin of PHASE_EDGES
    max_probability: NDArray  # (n,) float32, the highest at any epoch
    season: NDArray  # (m, T) float32, at every epoch of the first m rows


def predict(
    network: Network,
    curves: LightCurves,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    season_rows: int = SEASON_ROWS,
) -> Predictions:
    """P(binary) of every row, reduced `CHUNK` rows at a time.

    Args:
        network: The classifier.
        curves: The set; its observations are used as they are stored.
        batch_size: Curves the network reads at a time.
        device: Where it runs; None = where the network is.
        season_rows: Rows, the first ones, whose probabilities at every epoch are kept.
    """
    parts = []
    for start in range(0, len(curves), CHUNK):
        rows = curves.rows(slice(start, start + CHUNK))
        times, t0, tE = rows.times(), rows.param("t0"), rows.param("tE")
        p_epochs = predict_proba(network, rows, batch_size=batch_size, device=device)
        parts.append(
            (
                at_fractions(p_epochs, times),
                by_phase(p_epochs, times, t0, tE).astype(np.float32),
                max_probability(p_epochs),
                p_epochs[: max(0, season_rows - start)],
            )
        )
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def latest_epoch(p_epochs: NDArray) -> NDArray:
    """Index of the latest observed epoch by each epoch, (n, T); -1 before the first."""
    index = np.where(np.isfinite(p_epochs), np.arange(p_epochs.shape[1]), -1)
    return np.maximum.accumulate(index, axis=1)


def at_fractions(
    p_epochs: NDArray, times: NDArray, fractions: Sequence[float] = FRACTIONS
) -> NDArray:
    """P(binary) at fractions of the window, (n, F): at the last epoch by then, 0.5 if none.

    The window is the grid `times` (n, T) or (T,), not the observed part of it.
    """
    times, latest = np.broadcast_to(times, p_epochs.shape), latest_epoch(p_epochs)
    result = np.full((p_epochs.shape[0], len(fractions)), 0.5, dtype=np.float32)
    for k, fraction in enumerate(fractions):
        epoch = until_fraction(times, fraction).sum(axis=1) - 1
        at = np.where(epoch >= 0, latest[np.arange(epoch.size), np.maximum(epoch, 0)], -1)
        rows = np.flatnonzero(at >= 0)
        result[rows, k] = p_epochs[rows, at[rows]]
    return result


def by_phase(
    p_epochs: NDArray, times: NDArray, t0: ArrayLike, tE: ArrayLike, edges: ArrayLike = PHASE_EDGES
) -> NDArray:
    """P(binary) at the last epoch by the end of each bin of phase (t - t0) / tE, (n, K).

    Bins that no epoch of a row falls in, observed or not, are NaN: the window ended or had not
    begun. `t0` [day] and `tE` [day] are (n,).
    """
    times, latest = np.broadcast_to(times, p_epochs.shape), latest_epoch(p_epochs)
    phase = (times - np.asarray(t0)[:, None]) / np.asarray(tE)[:, None]
    edges = np.asarray(edges)
    result = np.full((p_epochs.shape[0], edges.size - 1), np.nan)
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = (phase >= low) & (phase < high)
        epoch = (phase < high).sum(axis=1) - 1
        at = latest[np.arange(epoch.size), epoch]
        rows = np.flatnonzero(inside.any(axis=1))
        result[rows, k] = np.where(at[rows] >= 0, p_epochs[rows, at[rows]], 0.5)
    return result


def scores_by_phase(y: NDArray, p_by_phase: NDArray) -> dict[str, list[float]]:
    """Scores at P = 0.5 by event phase, over rows whose window holds that phase.

    Args:
        y: Class of each row (n,).
        p_by_phase: Of `by_phase`, (n, K).
    """
    inside = [np.isfinite(column) for column in p_by_phase.T]
    columns = [(y[i], p[i]) for i, p in zip(inside, p_by_phase.T, strict=True)]
    return {
        "phase": ((PHASE_EDGES[1:] + PHASE_EDGES[:-1]) / 2).tolist(),
        "balanced_accuracy": [metrics.balanced_accuracy(*column) for column in columns],
        "recall": [metrics.fraction(p[y == 1] > 0.5) for y, p in columns],
        "false_positives": [metrics.fraction(p[y == 0] > 0.5) for y, p in columns],
        "rows": [int(i.sum()) for i in inside],
    }


def max_probability(p_epochs: NDArray) -> NDArray:
    """Highest P(binary) of each row at any epoch, (n,); 0.5 for a row without observed epoch."""
    peak = np.where(np.isfinite(p_epochs), p_epochs, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(peak), peak, 0.5)


def first_alert(p_epochs: NDArray, times: NDArray, threshold: float) -> NDArray:
    """Time [day] of the first P(binary) above `threshold` of each row, (n,); NaN if none."""
    above = np.nan_to_num(p_epochs, nan=-np.inf) > threshold
    times = np.broadcast_to(times, p_epochs.shape)
    first = np.take_along_axis(times, above.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(above.any(axis=1), first, np.nan)


def calibration_half(pair: ArrayLike) -> NDArray:
    """Rows (n,) of the half that sets the threshold; pairs stay together, lone rows two by two.

    Lone rows come as single, binary, single, ...: one by one they would be split by class.
    """
    pair = np.asarray(pair)
    return np.where(pair >= 0, pair, np.arange(pair.size) // 2) % 2 == 0


def alerts_before_peak(curves: LightCurves, first_alert: NDArray) -> dict[str, float]:
    """`before_peak`: fraction of the alerts on binaries (n,) [day] before the twin's peak."""
    pairs = partner_rows(curves)
    rows = (curves.y == 1) & (pairs >= 0) & np.isfinite(first_alert)
    return {"before_peak": metrics.fraction(first_alert[rows] < curves.param("t0")[pairs[rows]])}


def prefix_dchi2(
    lightcurves: LightCurves,
    fractions: Sequence[float] = FRACTIONS,
    *,
    device: str | None = None,
    chunk: int = 256,
) -> tuple[NDArray, NDArray]:
    """Delta-chi2 of each binary's prefix relative to the best single lens *of that prefix*.

    The twin is fitted to the whole curve, which no observer has yet: the refit-limited delta-chi2
    is what remains after a fit to the noise-free prefix.

    Args:
        lightcurves: Matched set with `magnification`.
        fractions: Of the window, rising (F,).
        device: Where the fits run; CPU by default.
        chunk: Binaries fitted together.

    Returns:
        The row of each binary that has a twin, (P,), and its delta-chi2, (P, F).
    """
    partner = partner_rows(lightcurves)
    binaries = np.flatnonzero((np.asarray(lightcurves.y) == 1) & (partner >= 0))
    names = [str(name) for name in lightcurves.param_names]
    columns = [names.index(name) for name in ("t0", "u0", "tE", "f_s")]
    result = np.empty((binaries.size, len(fractions)))
    for start in range(0, binaries.size, chunk):
        rows = binaries[start : start + chunk]
        own, single, binary = pair_curves(lightcurves, rows, partner)
        twin = lightcurves.params[partner[rows]][:, columns]
        delta = binary - np.asarray(own.m_base, dtype=float)[:, None]
        weight = np.isfinite(own.X) / np.asarray(own.sigmas(), dtype=float) ** 2
        against_twin = weight * (binary - single) ** 2
        blended = bool((twin[:, 3] < 1).any())
        prefixes = [until_fraction(own.times(), fraction) for fraction in fractions]
        fits = fit_prefixes(
            torch.as_tensor(np.array(own.times()), device=device),
            torch.as_tensor(delta, device=device),
            [torch.as_tensor(prefix) for prefix in prefixes],
            weight=torch.as_tensor(weight, device=device),
            starts=torch.as_tensor(twin[:, None], device=device),
            blended=blended,
        )
        for k, (fit, prefix) in enumerate(zip(fits, prefixes, strict=True)):
            bound = (against_twin * prefix).sum(axis=1)
            result[start : start + chunk, k] = np.minimum(fit.chi2.cpu().numpy(), bound)
    return binaries, result


@dataclass(frozen=True)
class PrefixRefits:
    """Refit-limited delta-chi2 of prefixes of some binaries."""

    rows: NDArray  # (P,) of the set
    dchi2: NDArray  # (P, F) at PREFIXES, of `prefix_dchi2`


def refit_prefixes(curves: LightCurves, num: int, above: float = -np.inf) -> PrefixRefits:
    """Refit the prefixes of the first `num` binaries whose delta-chi2 at the end exceeds `above`.

    Args:
        curves: Matched set with `magnification`.
        num: Of binaries, at most.
        above: Delta-chi2; that of a prefix never exceeds that of the whole curve.
    """
    wanted = (curves.y == 1) & (partner_rows(curves) >= 0) & ~(curves.dchi2 <= above)
    chosen = np.flatnonzero(np.isin(curves.pair, np.unique(curves.pair[wanted])[:num]))
    if not chosen.size:
        return PrefixRefits(np.empty(0, int), np.empty((0, len(PREFIXES))))
    at, dchi2 = prefix_dchi2(curves.rows(chosen), PREFIXES)
    return PrefixRefits(chosen[at], dchi2)


def add_refit_limited(by_fraction: dict[str, dict[str, Any]], refits: PrefixRefits) -> None:
    """Set `reachable`, the expected scores of the refit-limited observer, at each of FRACTIONS."""
    for key, row in by_fraction.items():
        if refits.rows.size:
            bound = expected_ideal(refits.dchi2[:, PREFIXES.index(float(key))])
            row["reachable"] = bound | {"pairs": int(refits.rows.size)}


def onset_times(curves: LightCurves, refits: PrefixRefits, level: float = 25.0) -> NDArray:
    """Onset of each row (n,) [day]: refit-limited delta-chi2 first exceeds `level`.

    NaN for single lenses, for binaries that never reach it and for those not refitted.
    """
    onset = np.full(len(curves), np.nan)
    times = curves.times()[refits.rows]
    onset[refits.rows] = interpolate_onset(refits.dchi2, times, PREFIXES, level)
    return onset


def interpolate_onset(
    dchi2: NDArray, times: NDArray, fractions: Sequence[float], level: float = 25.0
) -> NDArray:
    """Time [day] at which delta-chi2 first exceeds `level`, linear in time between prefixes, (P,).

    Args:
        dchi2: Of each prefix (P, F).
        times: Grid (P, T) or (T,) [day].
        fractions: Of the window, rising (F,).
        level: Delta-chi2 of onset; NaN is returned where it is never reached.
    """
    times = np.broadcast_to(times, (dchi2.shape[0], np.shape(times)[-1]))
    start, stop = times[:, 0], times[:, -1]
    above = dchi2 > level
    k, rows = above.argmax(axis=1), np.arange(len(dchi2))
    # The empty prefix, with nothing in it, stands before the first.
    fractions = np.concatenate([[0.0], fractions])
    padded = np.concatenate([np.zeros((k.size, 1)), dchi2], axis=1)
    low, high = padded[rows, k], padded[rows, k + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((level - low) / (high - low), 0, 1)
    at = fractions[k] + part * (fractions[k + 1] - fractions[k])
    return np.where(above.any(axis=1), start + at * (stop - start), np.nan)
