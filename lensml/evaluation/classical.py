"""Classical searches and the network on the same rows, at the same false positives.

Each classical method as good as it can be made: the single-lens refits and residual scans of
`anomaly` and `baselines`, and gradient boosting on features of curve and residuals. Axes: n rows, T
epochs, K features.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, kurtosis, skew

from lensml.evaluation import metrics
from lensml.evaluation.anomaly_finder import DURATIONS, PrefixSearch, observed
from lensml.evaluation.baselines import (
    PsplResiduals,
    residual_scan_score,
    scalars_of,
    window_deviates,
)

__all__ = ["boosted_score", "classical_scores", "compare", "features", "bins_where_worse"]

PLACES = np.concatenate([-np.geomspace(4, 0.1, 12), [0.0], np.geomspace(0.1, 4, 12)])  # [tE]


def classical_scores(
    searched: PrefixSearch, training: PrefixSearch | None = None, *, seed: int = 0
) -> dict[str, NDArray]:
    """Score (n,) of each method at the end of the last prefix.

    Args:
        searched: The rows to score.
        training: Other events through the same survey, to train gradient boosting on; None = skip.
        seed: Of the boosting.

    Raises:
        ValueError: If an event of `searched` is also in `training`.
    """
    scores = {
        "single-lens refit": searched.refits.score[:, -1],
        "residual windows": residual_scan_score(
            searched.curves, PsplResiduals(searched.residual, np.empty(0), np.empty(0))
        ),
        "anomaly templates": searched.scans[-1].score,
    }
    if training is not None:
        (*here, events), (*there, others) = searched.curves.events(), training.curves.events()
        if here == there and np.isin(events, others).any():
            raise ValueError("`training` shares events with the rows to score; take another seed")
        train, test = features(training), features(searched)
        boosted = boosted_score(train, np.asarray(training.curves.y), test, seed=seed)
        scores["gradient boosting"] = boosted
    return scores


def features(searched: PrefixSearch) -> NDArray:
    """What a careful person would compute from a curve and its best single lens, (n, K).

    The fit's chi2 and parameters; the best window of each width and template of each duration, and
    where the best template lies; shape of the distribution of residuals, their order in time, and
    their asymmetry about the peak; the scalars of `baselines`. NaN where a row cannot tell.
    """
    fits, residual, scan = searched.refits, searched.residual, searched.scans[-1]
    times, delta, sigma = observed(searched.curves)
    t0, u0, tE, f_s = fits.parameters[:, -1].T
    best = scan.dchi2.argmax(axis=1)
    place = (scan.centre[np.arange(len(t0)), best] - t0) / tE
    columns = [
        fits.score[:, -1:],
        (fits.chi2[:, -1:] / np.maximum(fits.dof[:, -1:], 1)),
        np.column_stack([t0, np.log(u0), np.log(tE), f_s, place, np.abs(place)]),
        np.column_stack([scan.score, scan.flat.max(axis=1), np.array(DURATIONS)[best]]),
        scan.dchi2,
        scan.flat,
        np.stack([window_deviates(row[np.isfinite(row)]) for row in residual]),
        np.stack(
            [
                of_residuals(r, (t - a) / b)
                for r, t, a, b in zip(residual, times, t0, tE, strict=True)
            ]
        ),
        np.column_stack(list(scalars_of(delta, times, sigma).values())),
    ]
    return np.hstack(columns)


def of_residuals(residual: NDArray, tau: NDArray) -> NDArray:
    """Distribution, order and place of one row's residuals (T,) at (t - t0) / tE, (41,)."""
    seen = np.isfinite(residual)
    z, tau = residual[seen], tau[seen]
    if z.size < 8:
        return np.full(17 + len(PLACES) - 1, np.nan)
    step = np.diff(z)
    runs = 1 + np.count_nonzero(np.diff(z > 0))
    near = [np.abs(tau) < width for width in (0.1, 0.3, 1.0)]
    sums = [z[m].sum() / np.sqrt(max(m.sum(), 1)) for m in near]
    odd = [(z[m] * np.sign(tau[m])).sum() / np.sqrt(max(m.sum(), 1)) for m in near]
    lags = [np.mean(z[k:] * z[:-k]) for k in (1, 2, 4)]
    wings = [np.mean(np.abs(z) > k) for k in (2, 3)]
    neumann = np.mean(step**2) / max(np.mean(z**2), 1e-12)
    order = [neumann, (runs - z.size / 2) / np.sqrt(z.size / 4)]
    count = np.maximum(np.histogram(tau, PLACES)[0], 1)
    binned = np.histogram(tau, PLACES, weights=z)[0] / np.sqrt(count)
    spread = [skew(z), kurtosis(z), z.min(), z.max()]
    return np.array([*spread, *order, *lags, *sums, *odd, *wings, *binned])


def boosted_score(train: NDArray, y: NDArray, test: NDArray, *, seed: int = 0) -> NDArray:
    """P(binary) of the rows of `test` (n, K) by gradient boosting on `train` (m, K), `y` (m,).

    Five forests of different seeds, averaged: one alone scatters more than its inputs deserve.
    Features that no row of `train` has, as windows longer than its curves, are left out.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = np.isfinite(train).any(axis=0)
    train, test = train[:, known], test[:, known]
    models = [
        HistGradientBoostingClassifier(
            max_iter=250,
            learning_rate=0.04,
            max_leaf_nodes=12,
            min_samples_leaf=40,
            l2_regularization=5.0,
            max_features=0.3,
            random_state=seed + k,
        )  # fmt: skip
        for k in range(5)
    ]
    return np.mean([m.fit(train, y).predict_proba(test)[:, 1] for m in models], axis=0)


def compare(
    scores: Mapping[str, NDArray],
    y: NDArray,
    dchi2: NDArray,
    pair: NDArray,
    rate: float = 0.01,
    *,
    num: int = 200,
    seed: int = 0,
) -> dict[str, dict]:
    """Every method on the same rows at the same false positives.

    Args:
        scores: By method (n,), growing with the belief in a binary.
        y, dchi2, pair: Class, delta-chi2 and pair of the rows (n,).
        rate: False positives, by bin where a bin has enough twins.
        num, seed: Resamples of pairs.

    Returns:
        By method `recall_by_dchi2` (`metrics.recall_by_dchi2`), and with intervals
        `dchi2_50`, `roc_auc` and `recall`, the last at the pooled threshold.
    """
    statistics = {
        "dchi2_at_half_recall": lambda y, p, d: metrics.dchi2_50(y, p, d, rate),
        "roc_auc": lambda y, p, _: metrics.roc_auc(y, p),
        "recall": lambda y, p, _: metrics.recall_at_fpr(y, p, rate),
    }
    return {
        name: {"recall_by_dchi2": metrics.recall_by_dchi2(y, p, dchi2, rate)}
        | {
            key: metrics.bootstrap(of, [y, p, dchi2], pair, num=num, seed=seed)
            for key, of in statistics.items()
        }
        for name, p in scores.items()
    }


def bins_where_worse(
    network: NDArray,
    others: Mapping[str, NDArray],
    y: NDArray,
    dchi2: NDArray,
    pair: NDArray,
    rate: float = 0.01,
    *,
    above: float = 25.0,
    num: int = 400,
    seed: int = 0,
) -> list[dict]:
    """Bins of delta-chi2 in which a method finds more than the network, on the same rows.

    Args:
        network: Score of the network (n,).
        others: Scores of the others, by method.
        y, dchi2, pair, rate: As for `compare`.
        above: Bins below this delta-chi2 are left out.
        num, seed: Resamples of the pairs of a bin, both methods on the same ones. A pooled
            threshold, where the bin has too few twins, is held.

    Returns:
        One dict a bin and method: `bin`, `method`, `binaries`, `network`, `other` (the recalls),
        `difference` with its 95 % interval, and `certain`, whether that is above zero and an exact
        sign test of the binaries that one alone finds agrees (few binaries fool a bootstrap).
    """
    y, binary = np.asarray(y), np.asarray(y) == 1
    beaten = []
    for low, high in metrics.DCHI2_BINS:
        rows = metrics.in_bin(dchi2, low, high)
        if low < above or not (rows & binary).any():
            continue
        own = (rows & ~binary).sum() * rate >= 1 - 1e-9
        for name, score in others.items():
            both = [np.asarray(p, dtype=float) for p in (network, score)]
            cuts = [metrics.threshold_at_fpr(p[~binary], rate) for p in both]
            found = detections_at_fpr(rate, None if own else cuts)
            columns = [y[rows], *(p[rows] for p in both)]
            ours, theirs = found(*columns)
            if theirs.mean() <= ours.mean():
                continue
            gap = metrics.bootstrap(
                lambda *c, of=found: metrics.fraction(of(*c)[1]) - metrics.fraction(of(*c)[0]),
                columns, np.asarray(pair)[rows], num=num, seed=seed,
            )  # fmt: skip
            sign_test = binomtest(int((theirs & ~ours).sum()), int((theirs ^ ours).sum()))
            certain = gap["low"] > 0 and sign_test.pvalue < 0.05
            beaten.append(
                {"bin": metrics.bin_label(low, high), "method": name, "binaries": ours.size}
                | {"network": float(ours.mean()), "other": float(theirs.mean())}
                | {"difference": gap, "certain": certain}
            )
    return beaten


def detections_at_fpr(rate: float, cuts: list[float] | None) -> Callable[..., list[NDArray]]:
    """Function of class and scores, each (m,), that says which binaries each score finds.

    At `cuts`, or at thresholds that `rate` of the single lenses of the same sample pass.
    """

    def found(y: NDArray, *scores: NDArray) -> list[NDArray]:
        at = cuts or [metrics.threshold_at_fpr(p[y == 0], rate) for p in scores]
        return [p[y == 1] > cut for p, cut in zip(scores, at, strict=True)]

    return found
