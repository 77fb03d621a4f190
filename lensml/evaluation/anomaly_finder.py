"""Search for anomalies in residuals of single-lens fits, after KMTNet's AnomalyFinder.

Templates of every place and duration are fitted to the residuals of the best single lens (Zang et
al. 2021, AJ 162, 163). Axes: n rows, T epochs, F fractions of the window, S durations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lensml.evaluation import metrics
from lensml.lensing import fit_prefixes, pspl_delta_mag
from lensml.simulation import FRACTIONS, LightCurves, until_fraction

CHUNK = 256  # rows fitted and scanned together
DURATIONS = tuple(float(0.3 * 1.5**k) for k in range(10))  # t_eff of the templates, to 11.5 [day]
REACH = 3.0  # half a template's window, in t_eff
STEP = 1 / 3  # between templates, in t_eff
FEWEST = 3  # epochs a window must hold
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
    parameters, chi2, dof = [], [], []
    for start in range(0, len(curves), CHUNK):
        times, delta, sigma = observed(curves.rows(slice(start, start + CHUNK)))
        weight = np.where(np.isfinite(delta), sigma**-2.0, 0.0)
        prefixes = [until_fraction(times, fraction) for fraction in fractions]
        tensors = map(torch.from_numpy, (times, np.nan_to_num(delta)))
        options = {"weight": torch.from_numpy(weight), "blended": blended}
        fits = fit_prefixes(*tensors, list(map(torch.from_numpy, prefixes)), **options)
        parameters.append(torch.stack([fit.start()[:, 0] for fit in fits], dim=1).numpy())
        chi2.append(torch.stack([fit.chi2 for fit in fits], dim=1).numpy())
        epochs = np.stack([((weight > 0) & p).sum(axis=1) for p in prefixes], axis=1)
        dof.append(epochs - (4 if blended else 3))
    return PrefixFits(*(np.concatenate(column) for column in (parameters, chi2, dof)))


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


def pspl_residuals(curves: LightCurves) -> NDArray:
    """Residuals of the best single lens of the whole curve of each row, (n, T), in errors."""
    return residuals(curves, fit_curves(curves, (1.0,)).parameters[:, 0])


def shapes(tau: NDArray) -> NDArray:
    """The two anomalies of Kim et al. (2018) at (t - t0) / t_eff, (w, 2): u0 -> 0 and u0 = 1."""
    q = 1 + tau**2
    return np.stack([q**-0.5, (1 - (q / 2 + 1) ** -2.0) ** -0.5 - 1], axis=-1)


def anomaly_scan(curves: LightCurves, residual: NDArray) -> AnomalyScan:
    """Fit templates of every place and duration to `residuals` (n, T) of the best single lens.

    A template is f1 A(t) + f0 in a window of three t_eff to either side, its two factors free, in
    magnitudes: an anomaly of a per cent weighs the same at the peak and beside it.
    """
    one_grid = curves.time.ndim == 1
    result = np.zeros((3, len(curves), len(DURATIONS)))
    for start in range(0, len(curves), CHUNK if one_grid else 1):
        rows = slice(start, start + CHUNK if one_grid else start + 1)
        sigma = np.asarray(curves.sigmas()[rows], dtype=float)
        seen = np.isfinite(residual[rows])
        weight = np.where(seen, sigma**-2.0, 0.0)
        data = np.where(seen, residual[rows] * sigma, 0.0)
        times = curves.time if one_grid else curves.time[start]
        for k, duration in enumerate(DURATIONS):
            result[:, rows, k] = best_template(times, data, weight, duration)
    return AnomalyScan(*result)


def best_template(times: NDArray, data: NDArray, weight: NDArray, duration: float) -> NDArray:
    """Gain over zero, gain over flat and place of the best template of one duration, (3, m)."""
    best = np.zeros((3, len(data)))
    weighted, counted = weight * data, (weight > 0).astype(float)
    for centre in np.arange(times[0], times[-1] + duration * STEP, duration * STEP):
        first, last = np.searchsorted(times, [centre - REACH * duration, centre + REACH * duration])
        if last - first < FEWEST:
            continue
        window = slice(first, last)
        shape = shapes((times[window] - centre) / duration)
        enough = counted[:, window].sum(axis=1) >= FEWEST
        one = np.ones((last - first, 1))
        # Sums over the window, with both shapes and their squares.
        w, w1, w2, w11, w22 = (weight[:, window] @ np.hstack([one, shape, shape**2])).T
        d, d1, d2 = (weighted[:, window] @ np.hstack([one, shape])).T
        flat = d**2 / np.maximum(w, 1e-300)
        for a, aa, b in ((w1, w11, d1), (w2, w22, d2)):
            # Gain of the shape alone, once the constant is taken out.
            variance, slope = aa - a * a / np.maximum(w, 1e-300), b - a * d / np.maximum(w, 1e-300)
            shaped = slope**2 / np.maximum(variance, 1e-300) * (variance > 1e-9 * aa)
            better = enough & (flat + shaped > best[0])
            best[0][better], best[1][better] = (flat + shaped)[better], shaped[better]
            best[2][better] = centre
    return best


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

    Returns:
        By rule of `RULES`: `false_positives`, the fraction of single lenses detected; `recall` of
        all binaries; `recall_by_dchi2` with `bin`, `binaries`, `recall`. Then, under "1 % false
        positives" or the like, the same at the pooled threshold, with `threshold`.
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
