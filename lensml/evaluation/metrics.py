"""Ranking, calibration and recall in bins of delta-chi2, with intervals that resample pairs.

Axes: n rows. `y` is 1 for a binary and 0 for a single lens, `p` any score that grows with
P(binary). A row is called binary if its score lies *above* the threshold, so that a tie at the
threshold is never a detection. Numpy and scipy only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm, rankdata

__all__ = [
    "DCHI2_BINS",
    "STATISTICS",
    "accuracy",
    "average_precision",
    "balanced_accuracy",
    "binomial_interval",
    "bin_label",
    "bootstrap",
    "brier",
    "cluster_bootstrap",
    "confusion_matrix",
    "dchi2_50",
    "ece",
    "fraction",
    "pr_curve",
    "recall_at_fpr",
    "recall_by_dchi2",
    "reliability",
    "roc_auc",
    "roc_curve",
    "score_table",
    "threshold_at_fpr",
    "wilson_interval",
]

DCHI2_BINS = tuple(pairwise((0, 9, 25, 75, 160, 500, 2e3, 1e4, np.inf)))
CALIBRATION_BINS = 15


def bin_label(low: float, high: float) -> str:
    """Name a bin of delta-chi2 as tables and axes do: "9-25", "500-2k", ">10k"."""

    def short(x: float) -> str:
        return f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}"

    return f">{short(low)}" if np.isinf(high) else f"{short(low)}-{short(high)}"


def check_scores(y: ArrayLike, p: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return boolean labels and float scores, both (n,).

    Raises:
        ValueError: If lengths differ or a score is NaN.
    """
    y, p = np.asarray(y) == 1, np.asarray(p, dtype=float)
    if y.shape != p.shape or y.ndim != 1:
        raise ValueError(f"`y` {y.shape} and `p` {p.shape} must both have shape (n,)")
    if (bad := np.flatnonzero(np.isnan(p))).size:
        raise ValueError(
            f"`p` is NaN in {bad.size} rows, first row {bad[0]}; drop those rows first"
        )
    return y, p


def fraction(hits: NDArray) -> float:
    """Mean of booleans; NaN for none."""
    return float(hits.mean()) if hits.size else float("nan")


def roc_auc(y: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney); NaN if one class is absent."""
    y, p = check_scores(y, p)
    positives, negatives = int(y.sum()), int((~y).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    u = rankdata(p)[y].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


def cumulative_counts(y: ArrayLike, p: ArrayLike) -> tuple[NDArray, NDArray]:
    """True and false positives at or above each distinct score, in falling order of the score."""
    y, p = check_scores(y, p)
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last = np.append(np.flatnonzero(np.diff(p)), p.size - 1)
    true = np.cumsum(y)[last]
    return true, last + 1 - true


def roc_curve(y: ArrayLike, p: ArrayLike) -> tuple[NDArray, NDArray]:
    """False and true positive rate (k,) from (0, 0) to (1, 1), one point a distinct score."""
    true, false = cumulative_counts(y, p)
    return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def pr_curve(y: ArrayLike, p: ArrayLike) -> tuple[NDArray, NDArray]:
    """Recall and precision, each (k,), recall rising."""
    true, false = cumulative_counts(y, p)
    return true / true[-1], true / (true + false)


def average_precision(y: ArrayLike, p: ArrayLike) -> float:
    """Precision summed over the steps of recall, no interpolation; NaN without a binary."""
    true, false = cumulative_counts(y, p)
    if true[-1] == 0:
        return float("nan")
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * true / (true + false)))


def confusion_matrix(y: ArrayLike, p: ArrayLike, threshold: float = 0.5) -> NDArray:
    """Counts (2, 2): rows the truth (single, binary), columns the prediction."""
    y, p = check_scores(y, p)
    return np.bincount(2 * y + (p > threshold), minlength=4).reshape(2, 2)


def accuracy(y: ArrayLike, p: ArrayLike) -> float:
    """Fraction of rows classified correctly at P = 0.5."""
    y, p = check_scores(y, p)
    return float(np.mean((p > 0.5) == y))


def balanced_accuracy(y: ArrayLike, p: ArrayLike, threshold: float = 0.5) -> float:
    """Mean of the two classes' recalls; NaN if one class is absent."""
    y, p = check_scores(y, p)
    if y.all() or not y.any():
        return float("nan")
    return float((np.mean(p[y] > threshold) + np.mean(p[~y] <= threshold)) / 2)


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared difference of probability and outcome."""
    y, p = check_scores(y, p)
    return float(np.mean((p - y) ** 2))


def beta_interval(a: float, b: float) -> tuple[float, float]:
    """Central 95 % of a beta distribution; a parameter of zero is a point at that end."""
    low = float(beta.ppf(0.025, a, b)) if a > 0 and b > 0 else float(a > 0)
    high = float(beta.ppf(0.975, a, b)) if a > 0 and b > 0 else float(a > 0)
    return low, high


def wilson_interval(observed: ArrayLike, num: ArrayLike) -> tuple[NDArray, NDArray]:
    """95 % interval (Wilson 1927) of fractions observed in `num` trials, any shape."""
    observed, num, z = np.asarray(observed), np.asarray(num), norm.ppf(0.975)
    centre = (observed + z**2 / (2 * num)) / (1 + z**2 / num)
    spread = observed * (1 - observed) / num + z**2 / (4 * num**2)
    half = z / (1 + z**2 / num) * np.sqrt(spread)
    return centre - half, centre + half


def binomial_interval(hits: ArrayLike, method: str = "exact") -> dict[str, float]:
    """Fraction of true entries with its 95 % interval and counts.

    Args:
        hits: Outcomes, (n,).
        method: "exact" (Clopper & Pearson 1934) or "wilson".

    Returns:
        `value`, `low`, `high`, `hits`, `of`; NaN for no entries.
    """
    hits = np.asarray(hits, dtype=bool)
    k, n = int(hits.sum()), hits.size
    if n == 0:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "hits": 0, "of": 0}
    if method == "exact":
        low, high = beta_interval(k, n - k + 1)[0], beta_interval(k + 1, n - k)[1]
    else:
        low, high = map(float, wilson_interval(k / n, n))
    return {"value": k / n, "low": low, "high": high, "hits": k, "of": n}


def reliability(y: ArrayLike, p: ArrayLike, bins: int = CALIBRATION_BINS) -> dict[str, NDArray]:
    """Predicted against observed frequency in equal-width bins of p; empty bins are left out.

    Returns:
        `predicted`, `observed`, `count`, and `low`, `high`: the 95 % Wilson interval of `observed`;
        each (k,).
    """
    y, p = check_scores(y, p)
    index = calibration_bin(p, bins)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    n = count[filled]
    observed = np.bincount(index, y, bins)[filled] / n
    low, high = wilson_interval(observed, n)
    predicted = np.bincount(index, p, bins)[filled] / n
    return {"predicted": predicted, "observed": observed, "count": n, "low": low, "high": high}


def calibration_bin(p: NDArray, bins: int = CALIBRATION_BINS) -> NDArray:
    """Equal-width bin of each probability (n,)."""
    return np.clip((p * bins).astype(int), 0, bins - 1)


def debiased_square(r: dict[str, NDArray]) -> float:
    """Mean squared calibration gap of `reliability` less the binomial variance of each bin.

    Unbiased, so it may lie below zero (Kumar, Liang & Ma 2019, NeurIPS 32). Bins of one row say
    nothing about their variance and are left out; NaN if there is no other.
    """
    many = r["count"] > 1
    if not many.any():
        return float("nan")
    gap, n, observed = (r["observed"] - r["predicted"])[many], r["count"][many], r["observed"][many]
    return float(np.sum(n * (gap**2 - observed * (1 - observed) / (n - 1))) / n.sum())


def ece(
    y: ArrayLike, p: ArrayLike, bins: int = CALIBRATION_BINS, *, debiased: bool = False
) -> float:
    """Expected calibration error of P(binary) in equal-width bins.

    Plain: the mean |observed - predicted|, which is above zero on a finite set even for perfect
    probabilities. Debiased: the root of `debiased_square`, cut at zero.
    """
    r = reliability(y, p, bins)
    if debiased:
        return float(np.sqrt(np.maximum(0.0, debiased_square(r))))
    gap, n = r["observed"] - r["predicted"], r["count"]
    return float(np.sum(n * np.abs(gap)) / n.sum())


def threshold_at_fpr(p_single: ArrayLike, rate: float) -> float:
    """Lowest score that at most `rate` of the single lenses lie above; -inf if all may."""
    p = np.sort(np.asarray(p_single, dtype=float))[::-1]
    if p.size == 0:
        return float("nan")
    allowed = int(np.floor(rate * p.size + 1e-9))
    return float(p[allowed]) if allowed < p.size else -np.inf


def recall_at_fpr(y: ArrayLike, p: ArrayLike, rate: float) -> float:
    """Fraction of binaries above the threshold that at most `rate` of the single lenses exceed."""
    y, p = check_scores(y, p)
    if y.all() or not y.any():
        return float("nan")
    return float(np.mean(p[y] > threshold_at_fpr(p[~y], rate)))


def in_bin(dchi2: NDArray, low: float, high: float) -> NDArray:
    """Rows of one bin; the first bin also takes values a rounding error below zero."""
    return (dchi2 < high) & ((dchi2 >= low) | (low == 0))


def bin_thresholds(y: NDArray, p: NDArray, dchi2: NDArray, rate: float) -> tuple[NDArray, NDArray]:
    """Threshold of each row from the twins of its bin, and whether there were enough; both (n,).

    A bin with fewer than 1/rate twins cannot show that rate; its rows take the pooled threshold.
    """
    threshold, own = np.full(p.size, threshold_at_fpr(p[~y], rate)), np.zeros(p.size, bool)
    for low, high in DCHI2_BINS:
        rows = in_bin(dchi2, low, high)
        if (twins := p[rows & ~y]).size * rate >= 1 - 1e-9:
            threshold[rows], own[rows] = threshold_at_fpr(twins, rate), True
    return threshold, own


def recall_by_dchi2(y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float) -> list[dict]:
    """Recall in the bins `DCHI2_BINS`, false positives taken from each bin's own twins.

    Returns:
        One dict a bin: `bin`, `low`, `high`, `binaries`, `twins`, `recall`, `threshold_from`
        ("bin", or "pooled" if the bin has too few twins for the rate), `recall_pooled` (the pooled
        threshold). Recalls are NaN in an empty bin.
    """
    y, p = check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    threshold, own = bin_thresholds(y, p, dchi2, rate)
    pooled, table = threshold_at_fpr(p[~y], rate), []
    for low, high in DCHI2_BINS:
        rows = in_bin(dchi2, low, high)
        binary = rows & y
        table.append(
            {
                "bin": bin_label(low, high),
                "low": float(low),
                "high": float(high),
                "binaries": int(binary.sum()),
                "twins": int((rows & ~y).sum()),
                "recall": fraction(p[binary] > threshold[binary]),
                "threshold_from": "bin" if own[rows].any() else "pooled",
                "recall_pooled": fraction(p[binary] > pooled),
            }
        )
    return table


def isotonic_regression(hits: NDArray) -> NDArray:
    """Non-decreasing least-squares fit to `hits` (n,) in their order: pool adjacent violators."""
    level, weight = [], []
    for hit in hits.astype(float):
        level.append(hit)
        weight.append(1)
        while len(level) > 1 and level[-2] >= level[-1]:
            total = weight[-2] + weight[-1]
            level[-2] = (level[-2] * weight[-2] + level[-1] * weight[-1]) / total
            weight[-2] = total
            level.pop(), weight.pop()
    return np.repeat(level, weight)


def dchi2_50(y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float = 0.01) -> float:
    """Delta-chi2 at 50 % recall, by isotonic regression of detection on delta-chi2.

    False positives come from the twins of each binary's bin (`bin_thresholds`); rows of unknown
    delta-chi2 (NaN) are left out. Infinite if half is never reached.
    """
    y, p = check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    y, p, dchi2 = (column[np.isfinite(dchi2)] for column in (y, p, dchi2))
    threshold, _ = bin_thresholds(y, p, dchi2, rate)
    order = np.flatnonzero(y)
    order = order[np.argsort(dchi2[order], kind="stable")]
    recall = isotonic_regression(p[order] > threshold[order])
    reached = np.flatnonzero(recall >= 0.5)
    return float(dchi2[order[reached[0]]]) if reached.size else float("inf")


def cluster_bootstrap(pair: ArrayLike, num: int, seed: int) -> Iterator[NDArray]:
    """Row indices of `num` bootstrap samples of whole pairs; a row without a pair (-1) is alone."""
    pair = np.asarray(pair).astype(np.int64).copy()
    alone = pair < 0
    pair[alone] = pair.max(initial=0) + 1 + np.arange(alone.sum())
    order = np.argsort(pair, kind="stable")
    _, start, size = np.unique(pair[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(seed)
    for _ in range(num):
        drawn = rng.integers(start.size, size=start.size)
        length = size[drawn]
        # Place of each row within its pair, for pairs of any size.
        place = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        yield order[np.repeat(start[drawn], length) + place]


def bootstrap(
    statistic: Callable[..., float],
    columns: Sequence[ArrayLike],
    pair: ArrayLike,
    *,
    num: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """Value of `statistic(*columns)` and its 95 % interval, resampling whole pairs.

    Args:
        statistic: Function of the columns.
        columns: Arrays (n, ...), rows aligned.
        pair: Pair of each row (n,); rows of -1 are drawn one by one.
        num: Number of resamples.
        seed: Of the resampling.

    Returns:
        `value`, `low`, `high`; an interval is NaN if no resample held both classes.
    """
    columns = [np.asarray(c) for c in columns]
    values = [statistic(*(c[i] for c in columns)) for i in cluster_bootstrap(pair, num, seed)]
    values = np.array([v for v in values if not np.isnan(v)])
    low = high = float("nan")
    if values.size:  # a method that picks a value, so that an infinite one does no harm
        low, high = (float(np.quantile(values, q, method="inverted_cdf")) for q in (0.025, 0.975))
    return {"value": float(statistic(*columns)), "low": low, "high": high}


# Functions of class, ranking score, probability and delta-chi2, each (n,).
STATISTICS: dict[str, Callable[..., float]] = {
    "accuracy": lambda y, score, p, dchi2: accuracy(y, p),
    "balanced_accuracy": lambda y, score, p, dchi2: balanced_accuracy(y, p),
    "roc_auc": lambda y, score, p, dchi2: roc_auc(y, score),
    "average_precision": lambda y, score, p, dchi2: average_precision(y, score),
    "brier": lambda y, score, p, dchi2: brier(y, p),
    "recall_at_1pct": lambda y, score, p, dchi2: recall_at_fpr(y, score, 0.01),
    "recall_at_0.1pct": lambda y, score, p, dchi2: recall_at_fpr(y, score, 0.001),
    "dchi2_at_half_recall": lambda y, score, p, dchi2: dchi2_50(y, score, dchi2),
}


def score_table(
    y: NDArray,
    score: NDArray,
    p: NDArray,
    dchi2: NDArray,
    pair: NDArray,
    names: Iterable[str] = tuple(STATISTICS),
    *,
    num: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Statistics of one observer by name, with 95 % intervals over pairs.

    Args:
        y, dchi2, pair: Class, delta-chi2 and pair of each row (n,).
        score: What ranks the rows (n,).
        p: Probability of each row (n,).
        names: Some of `STATISTICS`.
        num, seed: Resamples of pairs.
    """
    columns = [y, score, p, dchi2]
    return {name: bootstrap(STATISTICS[name], columns, pair, num=num, seed=seed) for name in names}
