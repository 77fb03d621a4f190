"""Search for anomalies in residuals of single-lens fits, after KMTNet's AnomalyFinder.

Templates of every place and duration are fitted to the residuals of the best single lens (Zang et
al. 2021, AJ 162, 163). Axes: n rows, T epochs, F fractions of the window, S durations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lensml.evaluation import metrics
from lensml.lensing import fit_prefixes, pspl_delta_mag
from lensml.network import refit_counts
from lensml.paths import InputError, progress_bar
from lensml.simulation import FRACTIONS, LightCurves, until_fraction

CHUNK = 256  # rows fitted and scanned together
DURATIONS = tuple(float(0.3 * 1.5**k) for k in range(10))  # t_eff of the templates, to 11.5 [day]
REACH = 3.0  # half a template's window, in t_eff
STEP = 1 / 3  # between templates, in t_eff
FEWEST = 3  # epochs a window must hold
GROUP = 48  # templates of one duration scanned together
# What calls an event anomalous: delta-chi2 against no anomaly, and against a flat residual.
RULES = {
    "delta-chi2 > 120": ((120.0, -np.inf),),
    "delta-chi2 > 120, or 75 and 35 against flat": ((120.0, -np.inf), (75.0, 35.0)),
    "delta-chi2 > 75": ((75.0, -np.inf),),
    "delta-chi2 > 35": ((35.0, -np.inf),),
}


@dataclass(frozen=True)
class PrefixFits:
    """Best single lens of each prefix of the observed data, the baseline known."""

    parameters: NDArray  # (n, F, 4) t0 [day], u0 [theta_E], tE [day], f_s
    chi2: NDArray  # (n, F)
    dof: NDArray  # (n, F) observed epochs less free parameters

    @property
    def score(self) -> NDArray:
        """Chi2 above its expectation in its standard deviations, (n, F)."""
        return (self.chi2 - self.dof) / np.sqrt(2 * np.maximum(self.dof, 1))


@dataclass(frozen=True)
class AnomalyScan:
    """Best template of each duration in the residuals of a single lens, each (n, S)."""

    dchi2: NDArray  # chi2 gained over no anomaly
    flat: NDArray  # chi2 gained over a constant residual by the same template
    centre: NDArray  # where it lies [day]

    @property
    def score(self) -> NDArray:
        """Largest gain of any template, (n,)."""
        return self.dchi2.max(axis=1)

    def called(self, rule: Sequence[tuple[float, float]]) -> NDArray:
        """Rows in which a template passes one of the pairs of thresholds of `RULES`, (n,) bool."""
        passes = [(self.dchi2 > zero) & (self.flat > flat) for zero, flat in rule]
        return np.any(passes, axis=(0, 2))


@dataclass(frozen=True)
class PrefixSearch:
    """Single-lens fits and anomaly scans of every prefix of a set of curves."""

    curves: LightCurves
    refits: PrefixFits
    residual: NDArray  # (n, T) of the last prefix, in units of the error
    scans: list[AnomalyScan]  # F of them

    @property
    def scan_score(self) -> NDArray:
        """Largest gain of any template, (n, F)."""
        return np.stack([scan.score for scan in self.scans], axis=1)


def observed(curves: LightCurves) -> tuple[NDArray, NDArray, NDArray]:
    """Epochs [day], magnitude change (NaN = not observed), errors [mag], each (n, T) float64."""
    delta = np.asarray(curves.X, dtype=float) - np.asarray(curves.m_base, dtype=float)[:, None]
    return np.array(curves.times()), delta, np.asarray(curves.sigmas(), dtype=float)


def fit_curves(curves: LightCurves, fractions: Sequence[float] = FRACTIONS) -> PrefixFits:
    """Fit a single lens to each prefix, from several starts and its neighbours' best fits.

    Of any set only X, time, sigma and m_base are used (and whether f_s is free); `fractions` rise.
    """
    blended = bool((curves.param("f_s") < 1).any())
    parts = []
    for start in progress_bar(range(0, len(curves), CHUNK), "fit prefixes"):
        times, delta, sigma = observed(curves.rows(slice(start, start + CHUNK)))
        weight = np.where(np.isfinite(delta), sigma**-2.0, 0.0)
        prefixes = [until_fraction(times, fraction) for fraction in fractions]
        tensors = map(torch.from_numpy, (times, np.nan_to_num(delta)))
        options = {"weight": torch.from_numpy(weight), "blended": blended}
        fits = fit_prefixes(*tensors, list(map(torch.from_numpy, prefixes)), **options)
        parameters = torch.stack([fit.start()[:, 0] for fit in fits], dim=1).numpy()
        chi2 = torch.stack([fit.chi2 for fit in fits], dim=1).numpy()
        epochs = np.stack([((weight > 0) & p).sum(axis=1) for p in prefixes], axis=1)
        parts.append((parameters, chi2, epochs - (4 if blended else 3)))
    return PrefixFits(*map(np.concatenate, zip(*parts, strict=True)))


def residuals(curves: LightCurves, parameters: NDArray, until: float = 1.0) -> NDArray:
    """(Data - fit) / error until a fraction of the window, (n, T); `parameters` are (n, 4)."""
    result = np.empty(curves.X.shape, dtype=np.float32)
    for start in range(0, len(curves), CHUNK):
        rows = slice(start, start + CHUNK)
        times, delta, sigma = observed(curves.rows(rows))
        theta = torch.from_numpy(parameters[rows]).unbind(1)
        deviates = (delta - pspl_delta_mag(torch.from_numpy(times), *theta).numpy()) / sigma
        result[rows] = np.where(until_fraction(times, until), deviates, np.nan)
    return result


def shapes(tau: NDArray) -> NDArray:
    """The two anomalies of Kim et al. (2018) at (t - t0) / t_eff, (w, 2): u0 -> 0 and u0 = 1."""
    q = 1 + tau**2
    return np.stack([q**-0.5, (1 - (q / 2 + 1) ** -2.0) ** -0.5 - 1], axis=-1)


class Templates(NamedTuple):
    """Templates of one duration with neighbouring centres, over the epochs they reach."""

    duration: int  # its place in DURATIONS
    window: slice  # of the epochs, w of them
    centre: NDArray  # (b,) [day]
    basis: NDArray  # (5, w, b): one, both shapes and their squares; 0 outside a template


def template_groups(times: NDArray) -> list[Templates]:
    """Templates of every place and duration on one grid (T,), GROUP centres at a time."""
    groups = []
    for k, duration in enumerate(DURATIONS):
        centres = np.arange(times[0], times[-1] + duration * STEP, duration * STEP)
        first, last = (times.searchsorted(centres + x * duration) for x in (-REACH, REACH))
        for begin in range(0, centres.size, GROUP):
            part = slice(begin, begin + GROUP)
            window = slice(first[begin], last[part][-1])
            epoch = np.arange(window.start, window.stop)[:, None]
            shape = shapes((times[window, None] - centres[part]) / duration)
            basis = np.stack([np.ones_like(shape[..., 0]), *np.moveaxis(shape, 2, 0)])
            basis = np.concatenate([basis, basis[1:] ** 2])
            basis *= (epoch >= first[part]) & (epoch < last[part])
            groups.append(Templates(k, window, centres[part], basis))
    return groups


def template_norms(group: Templates, weight: NDArray) -> tuple[NDArray, ...]:
    """What `template_gains` needs of the weights (m, w) in a window: no data, each (.., m, b).

    1 over the sum of weights, the mean of each shape and 1 over its variance; zeros where a
    template holds too few epochs.
    """
    w, a, squares = np.split(weight @ group.basis, [1, 3])
    enough = (weight > 0).astype(float) @ group.basis[0] >= FEWEST
    inverse = enough / np.maximum(w[0], 1e-300)
    variance = squares - a * a * inverse
    usable = enough & (variance > 1e-9 * squares)
    return inverse, a * inverse, usable / np.maximum(variance, 1e-300)


def template_gains(
    group: Templates, norms: tuple[NDArray, ...], weighted: NDArray
) -> tuple[NDArray, NDArray]:
    """Chi2 gained by a constant and by the better shape beside it, each (m, b).

    `weighted` are weight x residual in the window, (m, w).
    """
    (inverse, mean, scale), (d, *shaped) = norms, weighted @ group.basis[:3]
    return d * d * inverse, np.maximum(*((np.array(shaped) - mean * d) ** 2 * scale))


def anomaly_scan(curves: LightCurves, residual: NDArray) -> AnomalyScan:
    """Fit templates of every place and duration to `residuals` (n, T) of the best single lens.

    A template is f1 A(t) + f0 in a window of three t_eff to either side, its two factors free, in
    magnitudes: an anomaly of a per cent weighs the same at the peak and beside it.
    """
    one_grid = curves.time.ndim == 1
    result = np.zeros((3, len(curves), len(DURATIONS)))
    starts = range(0, len(curves), CHUNK if one_grid else 1)
    for start in progress_bar(starts, "scan for anomalies"):
        rows = slice(start, start + CHUNK if one_grid else start + 1)
        if start == 0 or not one_grid:
            groups = template_groups(curves.time if one_grid else curves.time[start])
        weight, weighted = weighted_residuals(curves.rows(rows), residual[rows])
        best = result[:, rows]
        for group in groups:
            norms = template_norms(group, weight[:, group.window])
            flat, shaped = template_gains(group, norms, weighted[:, group.window])
            at = (flat + shaped).argmax(axis=1)[:, None]
            flat, shaped = (np.take_along_axis(x, at, axis=1)[:, 0] for x in (flat, shaped))
            found = np.stack([flat + shaped, shaped, group.centre[at[:, 0]]])
            better = found[0] > best[0, :, group.duration]
            best[:, better, group.duration] = found[:, better]
    return AnomalyScan(*result)


def weighted_residuals(curves: LightCurves, residual: NDArray) -> tuple[NDArray, NDArray]:
    """Weights and weight x residual [1 / mag] of residuals in errors, (n, T); 0 where NaN."""
    root = np.where(np.isfinite(residual), 1 / np.asarray(curves.sigmas(), dtype=float), 0.0)
    return root**2, np.nan_to_num(residual) * root


def template_series(curves: LightCurves, refits: NDArray) -> NDArray:
    """Largest gain of any template in the residuals of any prefix so far, (n, T).

    The blind competitor of an alert system: it knows neither the binary nor the future. Its single
    lenses are `causal_refits` (n, J, 2, 4); the value of a prefix stands at its last epoch, NaN
    elsewhere.
    """
    if curves.time.ndim != 1:
        raise InputError("`time` is (n, T), but one grid for all rows was expected, shape (T,)")
    result, groups = np.full(curves.X.shape, np.nan), template_groups(curves.time)
    for start in progress_bar(range(0, len(curves), CHUNK), "template search"):
        rows = curves.rows(slice(start, start + CHUNK))
        times, delta, sigma = observed(rows)
        count = np.isfinite(delta).cumsum(axis=1)
        best, complete = np.zeros(len(rows)), {}
        for k, number in enumerate(refit_counts(int(count[:, -1].max()))):
            alive = count[:, -1] >= number
            end = np.where(alive, (count >= number).argmax(axis=1), -1)
            # Residuals of the prefix; none of rows that end before it.
            t0, *logs = torch.from_numpy(refits[start : start + CHUNK, k, 1]).unbind(1)
            fit = pspl_delta_mag(torch.from_numpy(times), t0, *(x.exp() for x in logs)).numpy()
            residual = (delta - fit) / sigma
            residual[np.arange(times.shape[1]) > end[:, None]] = np.nan
            weight, weighted = weighted_residuals(rows, residual)
            for place, group in enumerate(groups):
                if group.window.start > end.max():
                    continue
                norms = complete.get(place) or template_norms(group, weight[:, group.window])
                if group.window.stop <= end[alive].min() + 1:  # its weights change no more
                    complete[place] = norms
                gains = template_gains(group, norms, weighted[:, group.window])
                best = np.maximum(best, np.add(*gains).max(axis=1))
            result[start + np.flatnonzero(alive), end[alive]] = best[alive]
    return result


def search_prefixes(curves: LightCurves, fractions: Sequence[float] = FRACTIONS) -> PrefixSearch:
    """Fit every prefix (`fit_curves`) and scan its residuals for anomalies (`anomaly_scan`)."""
    refits, scans = fit_curves(curves, fractions), []
    for k, fraction in enumerate(fractions):
        residual = residuals(curves, refits.parameters[:, k], fraction)
        scans.append(anomaly_scan(curves, residual))
    return PrefixSearch(curves, refits, residual, scans)


def score_at_fixed_thresholds(
    scan: AnomalyScan, y: NDArray, dchi2: NDArray, rate: float = 0.01
) -> dict[str, dict]:
    """Detections at the surveys' own thresholds, and at `rate` false positives on these rows.

    By rule of `RULES`: `false_positives`, the fraction of single lenses detected; `recall` of all
    binaries; `recall_by_dchi2` with `bin`, `binaries`, `recall`. Then, under "1 % false positives"
    or the like, the same at the pooled `threshold`.
    """
    threshold = metrics.threshold_at_fpr(scan.score[y == 0], rate)
    found = {name: scan.called(rule) for name, rule in RULES.items()}
    last = f"{100 * rate:g} % false positives"
    result = {}
    for name, called in (found | {last: scan.score > threshold}).items():
        rates = [metrics.fraction(called[y == label]) for label in (0, 1)]
        result[name] = {"false_positives": rates[0], "recall": rates[1], "recall_by_dchi2": []}
        for low, high in metrics.DCHI2_BINS:
            rows = metrics.in_bin(dchi2, low, high) & (y == 1)
            row = {"bin": metrics.bin_label(low, high), "binaries": int(rows.sum())}
            row["recall"] = metrics.fraction(called[rows])
            result[name]["recall_by_dchi2"].append(row)
    result[last]["threshold"] = float(threshold)
    return result
