"""What simple and classical methods achieve on the same rows and the same points as the network.

The scalar auditor looks for shortcuts: on a matched set it must stay at chance where the anomaly is
invisible. The two classical scores are a single-lens refit to the noisy data and, like the anomaly
finders of the surveys, a scan of its residuals. Axes: n rows, T epochs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d

from lensml.evaluation import metrics
from lensml.evaluation.ideal_observer import until_fraction
from lensml.lensing import fit_pspl
from lensml.simulation import LightCurves

__all__ = [
    "PsplResiduals",
    "shortcut_probe",
    "pspl_refit_score",
    "pspl_residuals",
    "residual_scan_score",
    "scalars_of",
    "summary_statistics",
    "window_deviates",
]

CHUNK = 512
SCAN_WIDTHS = (3, 5, 9, 17, 33, 65, 129)  # observed epochs in a window


def summary_statistics(lightcurves: LightCurves) -> dict[str, NDArray]:
    """Numbers (n,) that know nothing of anomalies, each computed from the observed curve alone."""
    times = lightcurves.times()
    parts: dict[str, list[NDArray]] = {}
    for start in range(0, len(lightcurves.y), CHUNK):
        rows = lightcurves.rows(np.arange(start, min(start + CHUNK, len(lightcurves.y))))
        chunk = scalars_of(
            np.asarray(rows.X, dtype=float) - np.asarray(rows.m_base, dtype=float)[:, None],
            np.asarray(times[start : start + CHUNK]),
            np.asarray(rows.sigmas(), dtype=float),
        )
        for name, values in chunk.items():
            parts.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in parts.items()}


def scalars_of(delta: NDArray, times: NDArray, sigma: NDArray) -> dict[str, NDArray]:
    """`summary_statistics` of one chunk: magnitude change, epochs and errors, each (m, T)."""
    seen = np.isfinite(delta)
    some = seen.any(axis=1)
    points = seen.sum(axis=1)
    filled = np.where(seen, delta, np.inf)
    peak = filled.argmin(axis=1)
    rows = np.arange(len(delta))
    safe = np.where(some[:, None], delta, 0.0)  # a row without data is a flat one
    bright = np.nanpercentile(safe, 1, axis=1)
    steps = np.abs(np.diff(np.where(seen, delta, np.nan), axis=1))
    step = np.array([np.median(s[np.isfinite(s)]) if np.isfinite(s).any() else 0.0 for s in steps])
    return {
        "peak": np.where(some, filled[rows, peak], 0.0),
        "faintest": np.nanmax(safe, axis=1),
        "mean": np.nanmean(safe, axis=1),
        "median": np.nanmedian(safe, axis=1),
        "width": (np.where(seen, delta, 0.0) < 0.5 * bright[:, None]).sum(axis=1) / (points + 1),
        "peak time": np.where(some, times[rows, peak], 0.0),
        "points": points.astype(float),
        "first gap": (~seen).argmax(axis=1).astype(float),
        "first epoch": seen.argmax(axis=1).astype(float),
        "last epoch": seen[:, ::-1].argmax(axis=1).astype(float),
        "step": step,
        "mean error": np.where(seen, sigma, 0.0).sum(axis=1) / np.maximum(points, 1),
    }


def shortcut_probe(
    lightcurves: LightCurves, *, folds: int = 5, seed: int = 0, num_bootstrap: int = 200
) -> dict[str, dict[str, float]]:
    """ROC area of each scalar and of gradient boosting on all of them, with intervals over pairs.

    Returns:
        By scalar, and under "all together" for boosting cross-validated with pairs kept together:
        `value`, `low`, `high`. On rows whose anomaly is invisible 0.5 is expected.

    Raises:
        ValueError: If there are fewer pairs than `folds`.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    y, pair = np.asarray(lightcurves.y), np.asarray(lightcurves.pair)
    scalars = summary_statistics(lightcurves)
    groups = np.where(pair >= 0, pair, pair.max(initial=0) + 1 + np.arange(pair.size))
    if np.unique(groups).size < folds:
        raise ValueError(f"{np.unique(groups).size} pairs cannot be split into {folds} `folds`")
    model = HistGradientBoostingClassifier(max_iter=100, max_depth=4, random_state=seed)
    scores = dict(scalars)
    scores["all together"] = cross_val_predict(
        model,
        np.column_stack(list(scalars.values())),
        y,
        groups=groups,
        cv=GroupKFold(folds),
        method="predict_proba",
    )[:, 1]
    return {
        name: metrics.bootstrap(metrics.roc_auc, [y, score], pair, num=num_bootstrap, seed=seed)
        for name, score in scores.items()
    }


@dataclass(frozen=True)
class PsplResiduals:
    """Best single-lens fit to the noisy observed data of each row."""

    residual: NDArray  # (data - model) / sigma, float32 (n, T), NaN = not observed
    chi2: NDArray  # (n,)
    dof: NDArray  # observed epochs less free parameters (n,)


def pspl_residuals(
    lightcurves: LightCurves, *, until: float = 1.0, device: str | None = None
) -> PsplResiduals:
    """Fit a single lens to the data of each row, from several starts, the baseline known.

    Args:
        lightcurves: Any set; only X, time, sigma and m_base are used (and whether f_s is free).
        until: Fraction of the window that may be used; later epochs become NaN.
        device: Where the fits run; CPU by default.
    """
    n = len(lightcurves.y)
    names = [str(name) for name in lightcurves.param_names]
    blended = bool((lightcurves.params[:, names.index("f_s")] < 1).any())
    residual = np.full(lightcurves.X.shape, np.nan, dtype=np.float32)
    chi2 = np.empty(n)
    for start in range(0, n, CHUNK):
        rows = lightcurves.rows(np.arange(start, min(start + CHUNK, n)))
        times, sigma = np.array(rows.times()), np.asarray(rows.sigmas(), dtype=float)
        delta = np.asarray(rows.X, dtype=float) - np.asarray(rows.m_base, dtype=float)[:, None]
        seen = np.isfinite(delta) & until_fraction(times, until)
        stop = max(4, int(until_fraction(times, until).sum(axis=1).max()))
        fit = fit_pspl(
            torch.as_tensor(times[:, :stop], device=device),
            torch.as_tensor(np.where(seen, delta, 0.0)[:, :stop], device=device),
            weight=torch.as_tensor(np.where(seen, 1 / sigma**2, 0.0)[:, :stop], device=device),
            blended=blended,
            num_refined=3,
        )
        model = fit.delta_mag(torch.as_tensor(times, device=device)).cpu().numpy()
        residual[start : start + CHUNK] = np.where(seen, (delta - model) / sigma, np.nan)
        chi2[start : start + CHUNK] = fit.chi2.cpu().numpy()
    dof = np.isfinite(residual).sum(axis=1) - (4 if blended else 3)
    return PsplResiduals(residual, chi2, dof)


def pspl_refit_score(
    lightcurves: LightCurves, fitted: PsplResiduals | None = None, *, device: str | None = None
) -> NDArray:
    """Chi2 of the best single lens above its expectation, in its standard deviations, (n,)."""
    fitted = pspl_residuals(lightcurves, device=device) if fitted is None else fitted
    return (fitted.chi2 - fitted.dof) / np.sqrt(2 * np.maximum(fitted.dof, 1))


def residual_scan_score(
    lightcurves: LightCurves, fitted: PsplResiduals | None = None, *, device: str | None = None
) -> NDArray:
    """Most surprising window of residuals, (n,): the larger of two tests over many widths.

    In windows of 3 to 129 successive observed epochs: the chi2 gained by a constant offset (a bump)
    and the summed chi2 (any scatter), both as standard normal deviates, the second by Wilson &
    Hilferty (1931). In the spirit of Yang et al. (2025) and of KMTNet's AnomalyFinder (Zang et al.
    2021), which see the same residuals.
    """
    fitted = pspl_residuals(lightcurves, device=device) if fitted is None else fitted
    return np.array([scan(row[np.isfinite(row)].astype(float)) for row in fitted.residual])


def scan(residual: NDArray) -> float:
    """Largest deviate of any window of the observed residuals (k,); 0 for fewer than three."""
    return float(np.nanmax(window_deviates(residual), initial=0.0))


def window_deviates(residual: NDArray) -> NDArray:
    """Largest deviate of any window of each width, bumps before scatter; NaN for a longer one."""
    best = np.full((2, len(SCAN_WIDTHS)), np.nan)
    for k, width in enumerate(SCAN_WIDTHS):
        if width > residual.size:
            break
        inner = slice(width // 2, residual.size - width // 2)
        bump = np.abs(uniform_filter1d(residual, width)[inner]) * np.sqrt(width)
        ratio = uniform_filter1d(residual**2, width)[inner]
        spread = 2 / (9 * width)
        scatter = (np.cbrt(np.maximum(ratio, 0)) - (1 - spread)) / np.sqrt(spread)
        best[:, k] = bump.max(), scatter.max()
    return best.ravel()
