"""Scores by phase, first alerts, and the onset of the anomaly from refits of prefixes.

Axes: n rows, T epochs, F fractions of the window, K bins of phase, P binaries. `p_epochs` (n, T)
is P(binary) from each observed epoch and those before it; NaN where nothing was observed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import metrics
from lensml.evaluation.ideal_observer import expected_ideal, paired_rows
from lensml.lensing import fit_prefixes
from lensml.network import PHASE_EDGES
from lensml.simulation import FRACTIONS, LightCurves, partner_rows, until_fraction

PREFIXES = tuple(sorted({*FRACTIONS, *(k / 20 for k in range(1, 21))}))  # refitted, of the window
FRACTION_KEYS = tuple(f"{f:g}" if f < 1 else "1.0" for f in FRACTIONS)  # in results
REFIT_ROWS = 256  # binaries whose prefixes are fitted together


def scores_by_phase(y: NDArray, p_by_phase: NDArray) -> dict[str, list[float]]:
    """Scores at P = 0.5 by event phase of `by_phase` (n, K), over rows that have that phase."""
    inside = [np.isfinite(column) for column in p_by_phase.T]
    columns = [(y[i], p[i]) for i, p in zip(inside, p_by_phase.T, strict=True)]
    return {
        "phase": ((PHASE_EDGES[1:] + PHASE_EDGES[:-1]) / 2).tolist(),
        "balanced_accuracy": [metrics.balanced_accuracy(*column) for column in columns],
        "recall": [metrics.fraction(p[y == 1] > 0.5) for y, p in columns],
        "false_positives": [metrics.fraction(p[y == 0] > 0.5) for y, p in columns],
        "rows": [int(i.sum()) for i in inside],
    }


def first_alert(p_epochs: NDArray, times: NDArray, threshold: float) -> NDArray:
    """Time [day] of the first P(binary) above `threshold` of each row, (n,); NaN if none."""
    above = np.nan_to_num(p_epochs, nan=-np.inf) > threshold
    times = np.broadcast_to(times, p_epochs.shape)
    first = np.take_along_axis(times, above.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(above.any(axis=1), first, np.nan)


def calibration_half(pair: ArrayLike) -> NDArray:
    """Rows (n,) of the half that sets the threshold; pairs and two lone rows stay together.

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
    curves: LightCurves, fractions: Sequence[float] = FRACTIONS
) -> tuple[NDArray, NDArray]:
    """Refit-limited delta-chi2: of a binary's noise-free prefix to the best single lens of it.

    The twin is fitted to the whole curve, which no observer has yet.

    Args:
        curves: Matched set with `magnification`.
        fractions: Of the window, rising (F,).

    Returns:
        The row of each binary that has a twin, (P,), and its delta-chi2, (P, F).
    """
    numbers, parts = [np.empty(0, int)], [np.empty((0, len(fractions)))]
    for rows, own, other, single, binary in paired_rows(curves, REFIT_ROWS, curves.y == 1):
        times, names = np.array(own.times()), ("t0", "u0", "tE", "f_s")
        twin = torch.from_numpy(np.stack([other.param(name) for name in names], axis=1))[:, None]
        weight = np.isfinite(own.X) / np.asarray(own.sigmas(), dtype=float) ** 2
        prefixes = [until_fraction(times, fraction) for fraction in fractions]
        tensors = map(torch.from_numpy, (times, binary - own.m_base[:, None].astype(float)))
        options = {"starts": twin, "blended": bool((twin[..., 3] < 1).any())}
        options["weight"] = torch.from_numpy(weight)
        fits = fit_prefixes(*tensors, list(map(torch.from_numpy, prefixes)), **options)
        # No fit may be worse than the twin itself.
        terms = weight * (binary - single) ** 2
        of_twin = [(terms * prefix).sum(axis=1) for prefix in prefixes]
        numbers.append(rows)
        parts.append(np.minimum([fit.chi2.numpy() for fit in fits], of_twin).T)
    return np.concatenate(numbers), np.concatenate(parts)


@dataclass(frozen=True)
class PrefixRefits:
    """Refit-limited delta-chi2 of prefixes of some binaries."""

    rows: NDArray  # (P,) of the set
    dchi2: NDArray  # (P, F) at PREFIXES, of `prefix_dchi2`


def refit_prefixes(curves: LightCurves, num: int, above: float = -np.inf) -> PrefixRefits:
    """Refit the prefixes of the first `num` binaries whose delta-chi2 exceeds `above`.

    The delta-chi2 of a prefix never exceeds that of the whole curve.
    """
    wanted = (curves.y == 1) & (partner_rows(curves) >= 0) & ~(curves.dchi2 <= above)
    chosen = np.flatnonzero(np.isin(curves.pair, np.unique(curves.pair[wanted])[:num]))
    at, dchi2 = prefix_dchi2(curves.rows(chosen), PREFIXES)
    return PrefixRefits(chosen[at], dchi2)


def add_refit_limited(by_fraction: dict[str, dict[str, Any]], refits: PrefixRefits) -> None:
    """Set `reachable`, the expected refit-limited scores, at each of FRACTIONS."""
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
    """Time [day] at which delta-chi2 (P, F) first exceeds `level`, (P,); NaN if never.

    Linear in time between prefixes at `fractions` (F,) of the grid `times`, (P, T) or (T,).
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
