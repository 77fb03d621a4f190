"""Scores by phase, first alerts, and the onset of the anomaly from refits of prefixes.

Axes: n rows, T epochs, F fractions of the window, K bins of phase, P binaries. `p_epochs` (n, T)
is P(binary) from each observed epoch and those before it; NaN where nothing was observed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensml.evaluation import metrics
from lensml.evaluation.ideal_observer import expected_ideal, paired_rows
from lensml.lensing import fit_prefixes, fit_pspl
from lensml.network import PHASE_EDGES
from lensml.simulation import FRACTIONS, LightCurves, partner_rows, until_fraction

PREFIXES = tuple(sorted({*FRACTIONS, *(k / 20 for k in range(1, 21))}))  # refitted, of the window
FRACTION_KEYS = tuple(f"{f:g}" if f < 1 else "1.0" for f in FRACTIONS)  # in results
ONSET_LEVEL = 25.0  # delta-chi2 of the prefix at which an anomaly begins
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


@dataclass(frozen=True)
class PrefixRefits:
    """Noise-free prefixes of some binaries against the best single lens of each prefix."""

    rows: NDArray  # (P,) of the set
    dchi2: NDArray  # (P, F) refit-limited delta-chi2 at the fractions refitted, rising
    onset: NDArray  # (P,) first epoch whose prefix exceeds the level [day]; NaN if none


def refit_rows(
    curves: LightCurves, fractions: Sequence[float] = FRACTIONS, level: float = ONSET_LEVEL
) -> PrefixRefits:
    """Refit-limited delta-chi2 of every binary that has a twin, and its onset at `level`.

    The twin is fitted to the whole curve, which no observer has yet; here the single lens is fitted
    to the prefix alone. `fractions` of the window rise; the onset is searched for up to the last.
    """
    parts = [(np.empty(0, int), np.empty((0, len(fractions))), np.empty(0))]
    for rows, own, other, single, binary in paired_rows(curves, REFIT_ROWS, curves.y == 1):
        times, names = np.array(own.times()), ("t0", "u0", "tE", "f_s")
        twin = torch.from_numpy(np.stack([other.param(name) for name in names], axis=1))[:, None]
        blended = bool((twin[..., 3] < 1).any())
        weight = np.isfinite(own.X) / np.asarray(own.sigmas(), dtype=float) ** 2
        prefixes = [until_fraction(times, fraction) for fraction in fractions]
        epochs = list(map(torch.from_numpy, (times, binary - own.m_base[:, None].astype(float))))
        options = {"weight": torch.from_numpy(weight), "blended": blended}
        fits = fit_prefixes(*epochs, list(map(torch.from_numpy, prefixes)), starts=twin, **options)
        # No fit is worse than the twin, nor than that of a longer prefix, which fits this one too.
        terms = weight * (binary - single) ** 2
        of_twin = [(terms * prefix).sum(axis=1) for prefix in prefixes]
        dchi2 = np.minimum([fit.chi2.numpy() for fit in fits], of_twin).T
        dchi2 = np.minimum.accumulate(dchi2[:, ::-1], axis=1)[:, ::-1]
        ends = np.stack([prefix.sum(axis=1) for prefix in prefixes], axis=1)
        starts = torch.cat([fit.start() for fit in fits], dim=1)
        parts.append((rows, dchi2, bisect_onset(epochs, dchi2, ends, starts, level, **options)))
    return PrefixRefits(*map(np.concatenate, zip(*parts, strict=True)))


def bisect_onset(
    epochs: Sequence[Tensor], dchi2: NDArray, ends: NDArray, starts: Tensor, level: float,
    *, weight: Tensor, blended: bool,
) -> NDArray:  # fmt: skip
    """First epoch [day] whose prefix has delta-chi2 above `level`, (m,); NaN if none.

    Delta-chi2 grows with every epoch, so the interval between two prefixes on either side of the
    level is halved by refits until one epoch is left. `epochs` are times [day] and noise-free
    magnitude change (m, T); `dchi2` (m, F), `ends` (their number of epochs) and `starts` (m, F, 4)
    are of the prefixes refitted before.
    """
    rows = np.flatnonzero(dchi2[:, -1] > level)
    onset, k = np.full(len(dchi2), np.nan), (dchi2[rows] > level).argmax(axis=1)
    high, low = ends[rows, k], np.where(k > 0, ends[rows, np.maximum(k - 1, 0)], 0)
    begin = starts[rows[:, None], np.stack([np.maximum(k - 1, 0), k], axis=1)]
    times, data, weight = epochs[0][rows], epochs[1][rows], weight[rows]
    while (high - low > 1).any():
        middle = (low + high) // 2
        inside = torch.arange(times.shape[1]) < torch.from_numpy(middle)[:, None]
        stop = max(4, int(middle.max()))
        part = (x[:, :stop] for x in (times, data))
        refit = (weight * inside)[:, :stop]
        fit = fit_pspl(*part, weight=refit, starts=begin, blended=blended, search=False)
        passed = fit.chi2.numpy() > level
        low, high = np.where(passed, low, middle), np.where(passed, middle, high)
    onset[rows] = times.numpy()[np.arange(rows.size), high - 1]
    return onset


def refit_prefixes(
    curves: LightCurves, num: int, above: float = -np.inf, level: float = ONSET_LEVEL
) -> PrefixRefits:
    """`refit_rows` at PREFIXES of the first `num` binaries whose delta-chi2 exceeds `above`.

    The delta-chi2 of a prefix never exceeds that of the whole curve.
    """
    wanted = (curves.y == 1) & (partner_rows(curves) >= 0) & ~(curves.dchi2 <= above)
    chosen = np.flatnonzero(np.isin(curves.pair, np.unique(curves.pair[wanted])[:num]))
    refits = refit_rows(curves.rows(chosen), PREFIXES, level)
    return replace(refits, rows=chosen[refits.rows])


def add_refit_limited(
    by_fraction: dict[str, dict[str, Any]], refits: PrefixRefits, curves: LightCurves
) -> None:
    """Set `refit_limited`, the expected refit-limited scores, at each of FRACTIONS.

    They are those of the refitted pairs, plus what the oracle bound of all binaries of `curves`
    exceeds that of the refitted ones by, so that few refits do not make another set of events.
    """
    if not refits.rows.size:
        return
    for key, row in by_fraction.items():
        k = FRACTION_KEYS.index(key)
        bound = expected_ideal(refits.dchi2[:, PREFIXES.index(FRACTIONS[k])])
        if curves.dchi2_at is not None:
            every = expected_ideal(curves.dchi2_at[partner_rows(curves) >= 0, k])
            known = expected_ideal(curves.dchi2_at[refits.rows, k])
            bound = {name: value + every[name] - known[name] for name, value in bound.items()}
        row["refit_limited"] = bound | {"pairs": int(refits.rows.size)}


def onset_times(curves: LightCurves, refits: PrefixRefits) -> NDArray:
    """Onset of each row (n,) [day]: refit-limited delta-chi2 first exceeds the level.

    NaN for single lenses, for binaries that never reach it and for those not refitted.
    """
    onset = np.full(len(curves), np.nan)
    onset[refits.rows] = refits.onset
    return onset
