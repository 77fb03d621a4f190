"""What a prefix could tell: refits of the single lens to it, onsets, and shares of alerts.

Axes: n rows, P binaries, F fractions of the window.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.simulation import FRACTIONS, LightCurves

__all__ = [
    "PREFIXES",
    "add_reachable",
    "alerts_by_peak",
    "onsets",
    "proportion",
    "wilson_interval",
    "refit_prefixes",
]

PREFIXES = tuple(sorted({*FRACTIONS, *(k / 20 for k in range(1, 21))}))  # refitted, of the window


def refit_prefixes(
    curves: LightCurves, num: int, above: float = -np.inf
) -> tuple[NDArray, NDArray]:
    """Reachable delta-chi2 of prefixes (P, F at `PREFIXES`) of the first `num` binaries.

    Only binaries whose delta-chi2 exceeds `above` at the end count; also returns their rows (P,).
    """
    pairs = np.unique(curves.pair[(curves.y == 1) & (curves.dchi2 > above)])[:num]
    chosen = np.flatnonzero(np.isin(curves.pair, pairs) & (curves.pair >= 0))
    if not chosen.size:
        return np.empty(0, int), np.empty((0, len(PREFIXES)))
    at, dchi2 = limits.prefix_dchi2(curves.rows(chosen), PREFIXES)
    return chosen[at], dchi2


def onsets(curves: LightCurves, num: int, level: float = 25.0) -> NDArray:
    """Time [day] at which a refit of the prefix first leaves delta-chi2 above `level`, (n,).

    NaN for single lenses, for binaries that never get there, and beyond the first `num` that might.
    What is reachable never exceeds the whole curve's delta-chi2, so the others are not fitted.
    """
    onset = np.full(len(curves), np.nan)
    rows, dchi2 = refit_prefixes(curves, num, above=level)
    onset[rows] = early.onset_times(dchi2, curves.times()[rows], PREFIXES, level)
    return onset


def add_reachable(windows: Mapping[str, dict], curves: LightCurves, num: int) -> None:
    """Set `reachable` in each entry of an `early_detection` object, from the first `num` pairs."""
    rows, dchi2 = refit_prefixes(curves, num)
    for fraction, row in windows.items():
        column = dchi2[:, PREFIXES.index(float(fraction))]
        row["reachable"] = limits.expected_ideal(column) | {"pairs": int(rows.size)}


def alerts_by_peak(curves: LightCurves, first_alert: NDArray) -> dict[str, float]:
    """`before_peak`: fraction of the alerts on binaries (n,) [day] before the twin's peak."""
    pairs = limits.partner_rows(curves)
    rows = (curves.y == 1) & (pairs >= 0) & np.isfinite(first_alert)
    return {"before_peak": metrics.fraction(first_alert[rows] < curves.param("t0")[pairs[rows]])}


def proportion(hits: ArrayLike) -> dict[str, float]:
    """Share of true entries with its 95 % Wilson interval."""
    hits = np.asarray(hits, dtype=bool)
    return wilson_interval(metrics.fraction(hits), hits.size)


def wilson_interval(fraction: float, count: int) -> dict[str, float]:
    """A fraction of `count` events with its 95 % Wilson interval (Wilson 1927)."""
    if count == 0:
        return {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    z = float(ndtri(0.975))
    scale = 1 + z**2 / count
    centre = (fraction + z**2 / (2 * count)) / scale
    half = z / scale * np.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return {"value": fraction, "low": float(centre - half), "high": float(centre + half)}
