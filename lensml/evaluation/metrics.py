"""Ranking, calibration and recall in bins of delta-chi2, with intervals over pairs.

Axes: n rows. `y` is 1 for a binary and 0 for a single lens, `p` any score that grows with
P(binary), `pair` the pair of a row (-1: none). A row is called binary if its score lies *above* the
threshold, so that a tie at the threshold is never a detection. An interval is {"value", "low",
"high"}, 95 %, from `num` resamples with `seed`. What is not defined is NaN.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm, rankdata

DCHI2_BINS = tuple(pairwise((0, 9, 25, 75, 160, 500, 2e3, 1e4, np.inf)))
CALIBRATION_BINS = 15
Interval = dict[str, float]


def bin_label(low: float, high: float) -> str:
    """Name a bin of delta-chi2 as tables and axes do: "9-25", "500-2k", ">10k"."""
    short = [f"{x / 1e3:g}k" if x >= 1e3 else f"{x:g}" for x in (low, high)]
    return f">{short[0]}" if np.isinf(high) else "-".join(short)


def check_scores(y: ArrayLike, p: ArrayLike) -> tuple[NDArray, NDArray]:
    """Boolean labels and float scores, both (n,); lengths that differ and NaN are refused."""
    y, p = np.asarray(y) == 1, np.asarray(p, dtype=float)
    if y.shape != p.shape or y.ndim != 1:
        raise ValueError(f"`y` {y.shape} and `p` {p.shape} must both have shape (n,)")
    if (bad := np.flatnonzero(np.isnan(p))).size:
        raise ValueError(f"`p` is NaN in {bad.size} rows, first row {bad[0]}; drop them first")
    return y, p


def fraction(hits: NDArray) -> float:
    """Mean of booleans; NaN for none."""
    return float(hits.mean()) if hits.size else float("nan")


def roc_auc(y: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve, ties counted half (Mann-Whitney)."""
    y, p = check_scores(y, p)
    positives, negatives = int(y.sum()), int((~y).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    u = rankdata(p)[y].sum() - positives * (positives + 1) / 2
    return float(u / (positives * negatives))


def average_precision(y: ArrayLike, p: ArrayLike) -> float:
    """Precision summed over the steps of recall, no interpolation."""
    y, p = check_scores(y, p)
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    # True positives and all positives at or above each distinct score.
    last = np.append(np.flatnonzero(np.diff(p)), p.size - 1)
    true, called = np.cumsum(y)[last], last + 1
    if true[-1] == 0:
        return float("nan")
    return float(np.sum(np.diff(true, prepend=0) / true[-1] * true / called))


def confusion_matrix(y: ArrayLike, p: ArrayLike) -> NDArray:
    """Counts (2, 2) at P = 0.5: rows the truth (single, binary), columns the prediction."""
    y, p = check_scores(y, p)
    return np.bincount(2 * y + (p > 0.5), minlength=4).reshape(2, 2)


def accuracy(y: ArrayLike, p: ArrayLike) -> float:
    """Fraction of rows classified correctly at P = 0.5."""
    y, p = check_scores(y, p)
    return float(np.mean((p > 0.5) == y))


def balanced_accuracy(y: ArrayLike, p: ArrayLike, threshold: float = 0.5) -> float:
    """Mean of the two classes' recalls."""
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
    if a > 0 and b > 0:
        return float(beta.ppf(0.025, a, b)), float(beta.ppf(0.975, a, b))
    return float(a > 0), float(a > 0)


def wilson_interval(observed: ArrayLike, num: ArrayLike) -> tuple[NDArray, NDArray]:
    """95 % interval (Wilson 1927) of fractions observed in `num` trials, any shape."""
    observed, num, z = np.asarray(observed), np.asarray(num), norm.ppf(0.975)
    centre = (observed + z**2 / (2 * num)) / (1 + z**2 / num)
    spread = observed * (1 - observed) / num + z**2 / (4 * num**2)
    half = z / (1 + z**2 / num) * np.sqrt(spread)
    return centre - half, centre + half


def binomial_interval(hits: ArrayLike, method: str = "exact") -> Interval:
    """Interval, "exact" (Clopper & Pearson 1934) or "wilson", with counts `hits` and `of`."""
    hits = np.asarray(hits, dtype=bool)
    k, n = int(hits.sum()), hits.size
    value = low = high = np.nan
    if n and method == "exact":
        value, low, high = k / n, beta_interval(k, n - k + 1)[0], beta_interval(k + 1, n - k)[1]
    elif n:
        value, low, high = k / n, *map(float, wilson_interval(k / n, n))
    return {"value": value, "low": low, "high": high, "hits": k, "of": n}


def calibration_bin(p: NDArray, bins: int = CALIBRATION_BINS) -> NDArray:
    """Equal-width bin of each probability (n,)."""
    return np.clip((p * bins).astype(int), 0, bins - 1)


def reliability(y: ArrayLike, p: ArrayLike, bins: int = CALIBRATION_BINS) -> dict[str, NDArray]:
    """Predicted and observed frequency in equal-width bins of p; empty bins are left out.

    Returns:
        `predicted`, `observed`, its 95 % Wilson interval `low`, `high`, and `count`; each (k,).
    """
    y, p = check_scores(y, p)
    index = calibration_bin(p, bins)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    n = count[filled]
    predicted, observed = (np.bincount(index, x, bins)[filled] / n for x in (p, y))
    low, high = wilson_interval(observed, n)
    return {"predicted": predicted, "observed": observed, "count": n, "low": low, "high": high}


def debiased_square(r: dict[str, NDArray]) -> float:
    """Mean squared calibration gap of `reliability` less the binomial variance of each bin.

    Unbiased, so it may lie below zero (Kumar, Liang & Ma 2019, NeurIPS 32). Bins of one row say
    nothing about their variance and are left out.
    """
    many = r["count"] > 1
    if not many.any():
        return float("nan")
    predicted, observed, n = (r[key][many] for key in ("predicted", "observed", "count"))
    square = (observed - predicted) ** 2 - observed * (1 - observed) / (n - 1)
    return float(np.sum(n * square) / n.sum())


def ece(y: ArrayLike, p: ArrayLike, *, debiased: bool = False) -> float:
    """Expected calibration error: mean |observed - predicted| over equal-width bins.

    It is above zero on a finite set even for perfect probabilities; `debiased` is the root of
    `debiased_square`, cut at zero.
    """
    r = reliability(y, p)
    if debiased:
        return float(np.sqrt(np.maximum(0.0, debiased_square(r))))
    return float(np.sum(r["count"] * np.abs(r["observed"] - r["predicted"])) / r["count"].sum())


def threshold_at_fpr(p_single: ArrayLike, rate: float) -> float:
    """Lowest score that at most `rate` of the single lenses lie above; -inf if all may."""
    p = np.sort(np.asarray(p_single, dtype=float))[::-1]
    if p.size == 0:
        return float("nan")
    allowed = int(np.floor(rate * p.size + 1e-9))
    return float(p[allowed]) if allowed < p.size else -np.inf


def recall_at_fpr(y: ArrayLike, p: ArrayLike, rate: float) -> float:
    """Fraction of binaries above the threshold that at most `rate` of the singles exceed."""
    y, p = check_scores(y, p)
    if y.all() or not y.any():
        return float("nan")
    return float(np.mean(p[y] > threshold_at_fpr(p[~y], rate)))


def in_bin(dchi2: NDArray, low: float, high: float) -> NDArray:
    """Rows of one bin; the first bin also takes values a rounding error below zero."""
    return (dchi2 < high) & ((dchi2 >= low) | (low == 0))


def bin_thresholds(y: NDArray, p: NDArray, dchi2: NDArray, rate: float) -> tuple[NDArray, NDArray]:
    """Threshold of each row from the twins of its bin, and whether they were enough, (n,).

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
        A row a bin: `bin`, `low`, `high`, `binaries`, `twins`, `recall`, `threshold_from` ("bin",
        or "pooled" if its twins are too few for the rate), `recall_pooled`.
    """
    y, p = check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    threshold, own = bin_thresholds(y, p, dchi2, rate)
    pooled, table = threshold_at_fpr(p[~y], rate), []
    for low, high in DCHI2_BINS:
        rows = in_bin(dchi2, low, high)
        binary = rows & y
        row = {"bin": bin_label(low, high), "low": float(low), "high": float(high)}
        row |= {"binaries": int(binary.sum()), "twins": int((rows & ~y).sum())}
        row["recall"] = fraction(p[binary] > threshold[binary])
        row["threshold_from"] = "bin" if own[rows].any() else "pooled"
        row["recall_pooled"] = fraction(p[binary] > pooled)
        table.append(row)
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
    """Delta-chi2 at 50 % recall, by isotonic regression of detection; or infinite.

    False positives come from the twins of each binary's bin (`bin_thresholds`); rows of unknown
    delta-chi2 (NaN) are left out.
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
    """Row indices of `num` bootstrap samples of whole pairs; a row of -1 is alone."""
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
    statistic: Callable, columns: Sequence, pair: ArrayLike, *, num: int = 200, seed: int = 0
) -> Interval:
    """Interval of `statistic(*columns)` of aligned arrays (n, ...), resampling whole pairs."""
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
    columns: Sequence[NDArray], pair: NDArray, names: Iterable[str], *, num: int, seed: int
) -> dict[str, Interval]:
    """Intervals of the `STATISTICS` called `names` of one observer.

    `columns`: class, ranking score, probability and delta-chi2 of each row, each (n,).
    """
    options = {"num": num, "seed": seed}
    return {name: bootstrap(STATISTICS[name], columns, pair, **options) for name in names}
