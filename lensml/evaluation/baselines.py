"""Baseline methods on the rows of the network: shortcut probe, classical searches.

The classical methods are single-lens fits of the noisy data, scans of their residuals, and gradient
boosting on features of both. Axes: n rows, T epochs, K features.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scipy.stats import kurtosis, skew
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from lensml.evaluation import metrics
from lensml.evaluation.anomaly_finder import DURATIONS, PrefixSearch, observed
from lensml.simulation import LightCurves

CHUNK = 512  # rows held as float64 at a time
SCAN_WIDTHS = (3, 5, 9, 17, 33, 65, 129)  # observed epochs in a window
PLACES = np.concatenate([-np.geomspace(4, 0.1, 12), [0.0], np.geomspace(0.1, 4, 12)])  # [tE]


def summary_statistics(curves: LightCurves) -> dict[str, NDArray]:
    """Scalars (n,) without anomalies in mind, each from the observed curve alone."""
    parts = [
        scalars_of(*observed(curves.rows(slice(start, start + CHUNK))))
        for start in range(0, len(curves), CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def scalars_of(times: NDArray, delta: NDArray, sigma: NDArray) -> dict[str, NDArray]:
    """`summary_statistics` of epochs, magnitude change and errors, each (m, T), as `observed`."""
    seen, rows = np.isfinite(delta), np.arange(len(delta))
    some, points = seen.any(axis=1), seen.sum(axis=1)
    filled = np.where(seen, delta, np.inf)
    peak = filled.argmin(axis=1)
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
    curves: LightCurves, *, folds: int = 5, seed: int = 0, num_bootstrap: int = 200
) -> dict[str, dict[str, float]]:
    """ROC AUC of each scalar and of gradient boosting on all of them, as intervals.

    Boosting ("all together") is cross-validated with pairs kept together. On rows whose anomaly is
    invisible 0.5 is expected.
    """
    y, pair = np.asarray(curves.y), np.asarray(curves.pair)
    groups = np.where(pair >= 0, pair, pair.max(initial=0) + 1 + np.arange(pair.size))
    if np.unique(groups).size < folds:
        raise ValueError(f"{np.unique(groups).size} pairs cannot be split into {folds} `folds`")
    scores = summary_statistics(curves)
    model = HistGradientBoostingClassifier(max_iter=100, max_depth=4, random_state=seed)
    columns, split = np.column_stack(list(scores.values())), GroupKFold(folds)
    p = cross_val_predict(model, columns, y, groups=groups, cv=split, method="predict_proba")
    scores["all together"] = p[:, 1]
    auc = partial(metrics.bootstrap, metrics.roc_auc, pair=pair, num=num_bootstrap, seed=seed)
    return {name: auc([y, score]) for name, score in scores.items()}


def residual_scan_score(residual: NDArray) -> NDArray:
    """Largest deviate of any window of residuals (n, T), (n,); 0 for too few epochs.

    In windows of 3 to 129 successive observed epochs: the chi2 gained by a constant offset (a bump)
    and the summed chi2 (any scatter), both as standard normal deviates, the second by Wilson &
    Hilferty (1931). In the spirit of Yang et al. (2025).
    """
    best = (window_deviates(row[np.isfinite(row)].astype(float)) for row in residual)
    return np.array([float(np.nanmax(deviates, initial=0.0)) for deviates in best])


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


def classical_scores(
    searched: PrefixSearch, training: PrefixSearch | None = None, *, seed: int = 0
) -> dict[str, NDArray]:
    """Score (n,) of each classical method at the end of the last prefix.

    `training` holds other events through the same survey, to train gradient boosting on.
    """
    scores = {
        "single-lens refit": searched.refits.score[:, -1],
        "residual windows": residual_scan_score(searched.residual),
        "anomaly templates": searched.scans[-1].score,
    }
    if training is not None:
        (*here, events), (*there, others) = searched.curves.events(), training.curves.events()
        if here == there and np.isin(events, others).any():
            raise ValueError("`training` shares events with the rows to score; take another seed")
        train, y, test = features(training), np.asarray(training.curves.y), features(searched)
        scores["gradient boosting"] = boosted_score(train, y, test, seed)
    return scores


def features(searched: PrefixSearch) -> NDArray:
    """Features of each curve and its best single lens, (n, K); NaN where a row has no value."""
    fits, residual, scan = searched.refits, searched.residual, searched.scans[-1]
    times, delta, sigma = observed(searched.curves)
    t0, u0, tE, f_s = fits.parameters[:, -1].T
    best = scan.dchi2.argmax(axis=1)
    place = (scan.centre[np.arange(len(t0)), best] - t0) / tE
    tau = (times - t0[:, None]) / tE[:, None]
    columns = [
        # Chi2 and parameters of the fit; where the best template lies.
        np.column_stack([fits.score[:, -1], fits.chi2[:, -1] / np.maximum(fits.dof[:, -1], 1)]),
        np.column_stack([t0, np.log(u0), np.log(tE), f_s, place, np.abs(place)]),
        # Best template of each duration and window of each width.
        np.column_stack([scan.score, scan.flat.max(axis=1), np.array(DURATIONS)[best]]),
        np.hstack([scan.dchi2, scan.flat]),
        np.stack([window_deviates(row[np.isfinite(row)]) for row in residual]),
        # Distribution, order and symmetry of the residuals; scalars of the curve alone.
        np.stack([residual_features(*row) for row in zip(residual, tau, strict=True)]),
        np.column_stack(list(scalars_of(times, delta, sigma).values())),
    ]
    return np.hstack(columns)


def residual_features(residual: NDArray, tau: NDArray) -> NDArray:
    """Distribution, order and place of one row's residuals (T,) at (t - t0) / tE, (41,)."""
    seen = np.isfinite(residual)
    z, tau = residual[seen], tau[seen]
    if z.size < 8:
        return np.full(17 + len(PLACES) - 1, np.nan)
    # Order in time: von Neumann ratio, runs test, autocorrelation.
    neumann = np.mean(np.diff(z) ** 2) / max(np.mean(z**2), 1e-12)
    runs = 1 + np.count_nonzero(np.diff(z > 0))
    order = [neumann, (runs - z.size / 2) / np.sqrt(z.size / 4)]
    lags = [np.mean(z[k:] * z[:-k]) for k in (1, 2, 4)]
    # Sums near the peak, even and odd in time.
    near = [np.abs(tau) < width for width in (0.1, 0.3, 1.0)]
    sums = [z[m].sum() / np.sqrt(max(m.sum(), 1)) for m in near]
    odd = [(z[m] * np.sign(tau[m])).sum() / np.sqrt(max(m.sum(), 1)) for m in near]
    # Distribution, and sums in bins of phase.
    wings = [np.mean(np.abs(z) > k) for k in (2, 3)]
    count = np.maximum(np.histogram(tau, PLACES)[0], 1)
    binned = np.histogram(tau, PLACES, weights=z)[0] / np.sqrt(count)
    spread = [skew(z), kurtosis(z), z.min(), z.max()]
    return np.array([*spread, *order, *lags, *sums, *odd, *wings, *binned])


def boosted_score(train: NDArray, y: NDArray, test: NDArray, seed: int) -> NDArray:
    """P(binary) of `test` (n, K) by gradient boosting on `train` (m, K), five seeds averaged.

    Features that no row of `train` has, as windows longer than its curves, are left out.
    """
    known = np.isfinite(train).any(axis=0)
    options = {"max_iter": 250, "learning_rate": 0.04, "max_leaf_nodes": 12, "max_features": 0.3}
    options |= {"min_samples_leaf": 40, "l2_regularization": 5.0}
    models = [HistGradientBoostingClassifier(**options, random_state=seed + k) for k in range(5)]
    p = [m.fit(train[:, known], y).predict_proba(test[:, known])[:, 1] for m in models]
    return np.mean(p, axis=0)


def compare_methods(
    scores: Mapping[str, NDArray], y: NDArray, dchi2: NDArray, pair: NDArray,
    *, num: int = 200, seed: int = 0,
) -> dict[str, dict]:  # fmt: skip
    """Every method on the same rows (n,) at 1 % false positives, `scores` (n,) by method.

    By method `recall_by_dchi2` (`metrics.recall_by_dchi2`), and with intervals delta-chi2 at 50 %
    recall (at 1 and 0.1 %), `roc_auc` and `recall` at the pooled threshold. Of the method "ideal
    observer", recall by delta-chi2 and delta-chi2 at 50 % recall are the closed forms.
    """
    names, compared = (*metrics.IDEAL_HALF, "roc_auc", "recall_at_1pct"), {}
    for method, p in scores.items():
        table = metrics.score_table((y, p, p, dchi2), pair, names, num=num, seed=seed)
        table["recall"] = table.pop("recall_at_1pct")
        rows = metrics.recall_by_dchi2(y, p, dchi2, 0.01)
        if method == "ideal observer":
            table |= metrics.IDEAL_HALF
            exact = {"recall_low": np.nan, "recall_high": np.nan}
            rows = [row | exact | {"recall": row["ideal"]} for row in rows]
        compared[method] = {"recall_by_dchi2": rows} | table
    return compared
