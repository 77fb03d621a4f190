"""Ranking, calibration and recall in bins of delta-chi2, with intervals over pairs.

Axes: n rows. `y` is 1 for a binary and 0 for a single lens, `p` any score that grows with
P(binary), `pair` the pair of a row (-1: none). A row is called binary if its score lies *above* the
threshold, so that a tie at the threshold is never a detection. An interval is {"value", "low",
"high"}, 95 %, from `num` resamples with `seed`; fewer than `FEWEST` events have none. What is not
defined is NaN.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri
from scipy.stats import beta, rankdata

from lensml.paths import progress_bar

DCHI2_BINS = tuple(pairwise((0, 9, 25, 75, 160, 500, 2e3, 1e4, np.inf)))
CALIBRATION_BINS = 15
FEWEST = 20  # events of an interval
NEIGHBOURS = 4  # twins expected above a threshold: 400 twins at 1 %, 4,000 at 0.1 %
LARGEST_LAPSE = 0.2  # fraction of strong anomalies that a method may miss
LOCAL = 8.0  # times the delta-chi2 at 50 % recall, up to which its fit reaches
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
    """95 % interval (Wilson 1927) of fractions in `num` trials, any shape; NaN below `FEWEST`."""
    observed, z = np.asarray(observed, dtype=float), ndtri(0.975)
    num = np.where(np.asarray(num) >= FEWEST, num, np.nan)
    centre = (observed + z**2 / (2 * num)) / (1 + z**2 / num)
    spread = observed * (1 - observed) / num + z**2 / (4 * num**2)
    half = z / (1 + z**2 / num) * np.sqrt(spread)
    return centre - half, centre + half


def binomial_interval(hits: ArrayLike) -> Interval:
    """Fraction of `hits` (n,) with `wilson_interval`, and the counts `hits` and `of`."""
    hits = np.asarray(hits, dtype=bool)
    value = fraction(hits)
    low, high = map(float, wilson_interval(value, hits.size))
    return {"value": value, "low": low, "high": high, "hits": int(hits.sum()), "of": hits.size}


def calibration_bin(p: NDArray, bins: int = CALIBRATION_BINS) -> NDArray:
    """Equal-width bin of each probability (n,)."""
    return np.clip((p * bins).astype(int), 0, bins - 1)


def reliability(y: ArrayLike, p: ArrayLike, bins: int = CALIBRATION_BINS) -> dict[str, NDArray]:
    """Predicted and observed frequency in equal-width bins of p; empty bins are left out.

    Returns `predicted`, `observed`, its 95 % Wilson interval `low`, `high`, and `count`; each (k,).
    """
    y, p = check_scores(y, p)
    index = calibration_bin(p, bins)
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    n = count[filled]
    predicted, observed = (np.bincount(index, x, bins)[filled] / n for x in (p, y))
    low, high = wilson_interval(observed, n)
    return {"predicted": predicted, "observed": observed, "count": n, "low": low, "high": high}


def threshold_at_fpr(p_single: ArrayLike, rate: float) -> float:
    """Lowest score that at most `rate` of the single lenses lie above; -inf if all may."""
    p = np.sort(np.asarray(p_single, dtype=float))[::-1]
    if p.size == 0:
        return float("nan")
    allowed = int(np.floor(rate * p.size + 1e-9))
    return float(p[allowed]) if allowed < p.size else -np.inf


def detected(y: ArrayLike, p: ArrayLike, rate: float = 0.01) -> NDArray:
    """Whether each binary scores above the threshold that `rate` of the singles exceed, (P,)."""
    y, p = check_scores(y, p)
    return p[y] > threshold_at_fpr(p[~y], rate)


def recall_at_fpr(y: ArrayLike, p: ArrayLike, rate: float) -> float:
    """Fraction of binaries above the threshold that at most `rate` of the singles exceed."""
    return float("nan") if np.min(y) == np.max(y) else fraction(detected(y, p, rate))


def in_bin(dchi2: NDArray, low: float, high: float) -> NDArray:
    """Rows of one bin; the first bin also takes values a rounding error below zero."""
    return (dchi2 < high) & ((dchi2 >= low) | (low == 0))


def neighbour_thresholds(y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float) -> NDArray:
    """Threshold of each row (n,) that `rate` of the twins nearest in delta-chi2 exceed.

    The nearest `NEIGHBOURS` / rate twins in rank, or all of fewer; -inf without a twin. They are
    taken in blocks a sixteenth apart, and a row takes the block whose middle is nearest.
    """
    y, p = check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    order = np.flatnonzero(~y)[np.argsort(dchi2[~y], kind="stable")]
    near = min(round(NEIGHBOURS / rate), order.size)
    if near == 0:
        return np.full(y.size, -np.inf)
    spread = np.linspace(0, order.size - near, 1 + 16 * (order.size - near) // near)
    start = spread.round().astype(int)
    blocks = np.lib.stride_tricks.sliding_window_view(p[order], near)[start]
    threshold = np.quantile(blocks, 1 - rate, axis=1, method="median_unbiased")
    rank = np.searchsorted(dchi2[order], dchi2)
    return threshold[np.searchsorted((start[1:] + start[:-1]) / 2, rank - near / 2)]


def ideal_recall(dchi2: ArrayLike, rate: float) -> NDArray:
    """Expected recall of one anomaly when its own twin passes at `rate`: Phi(sqrt(D) - z)."""
    return ndtr(np.sqrt(np.maximum(dchi2, 0)) + ndtri(rate))


def recall_by_dchi2(y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float) -> list[dict]:
    """Recall in the bins `DCHI2_BINS`, false positives taken from each bin's own twins.

    A row a bin: `bin`, `low`, `high`, `binaries`, `twins`; `median`, their delta-chi2; `recall`
    with its Wilson interval `recall_low`, `recall_high`; `threshold_from`, "bin", or "pooled" with
    fewer than 1 / rate twins, which cannot show that rate; `recall_pooled`; and `ideal`, the mean
    `ideal_recall` of its binaries.
    """
    y, p = check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    pooled, table = threshold_at_fpr(p[~y], rate), []
    for low, high in DCHI2_BINS:
        rows = in_bin(dchi2, low, high)
        strength, score, twins = dchi2[rows & y], p[rows & y], p[rows & ~y]
        own = twins.size * rate >= 1 - 1e-9
        found = binomial_interval(score > (threshold_at_fpr(twins, rate) if own else pooled))
        row = {"bin": bin_label(low, high), "low": float(low), "high": float(high)}
        row |= {"binaries": score.size, "twins": twins.size}
        row["median"] = float(np.median(strength)) if strength.size else float("nan")
        row |= {"recall": found["value"], "recall_low": found["low"], "recall_high": found["high"]}
        row["threshold_from"] = "bin" if own else "pooled"
        row["recall_pooled"] = fraction(score > pooled)
        row["ideal"] = fraction(ideal_recall(strength, rate))
        table.append(row)
    return table


def dchi2_50(y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float = 0.01) -> float:
    """Delta-chi2 D at 50 % recall and `rate` false positives, by a fit of found or not.

    P(found) = rate + (1 - rate - lapse) Phi(slope (sqrt(D) - centre)), with a slope above zero and
    a lapse of at most `LARGEST_LAPSE`, by maximum likelihood: the curve of a search in white noise,
    whose signal-to-noise ratio is sqrt(D). A second fit leaves out binaries of more than `LOCAL`
    times the D of the first, so that lapses far above do not count. Thresholds are
    `neighbour_thresholds`; rows of unknown delta-chi2 are left out. NaN with fewer than 2 / rate
    twins or `FEWEST` detections, and if it lies outside the delta-chi2 of the binaries.
    """
    y, p = check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    y, p, dchi2 = (column[np.isfinite(dchi2)] for column in (y, p, dchi2))
    found = (p > neighbour_thresholds(y, p, dchi2, rate))[y]
    if found.sum() < FEWEST or (~y).sum() * rate < 2:
        return float("nan")
    strength = np.sqrt(np.maximum(dchi2[y], 0))
    first = half_recall_of(strength, found, rate)
    near = strength**2 <= LOCAL * first**2
    half = half_recall_of(strength[near], found[near], rate) if near.any() else np.nan
    return half**2 if strength.min() <= half <= strength.max() else float("nan")


def half_recall_of(strength: NDArray, found: NDArray, rate: float, step: float = 0.05) -> float:
    """Crossing of one half by the fit of `dchi2_50` to `strength`, sqrt(D), and `found`, (P,)."""
    # Counts in narrow steps of strength; all above the largest are alike.
    cell = np.minimum(strength / step, 60 / step).astype(int)
    trials, hits = np.bincount(cell), np.bincount(cell, found)
    x, hits, trials = (np.flatnonzero(trials) + 0.5) * step, hits[trials > 0], trials[trials > 0]

    def cost(theta: ArrayLike) -> tuple[float, NDArray]:
        """Negative log-likelihood of centre, ln slope and lapse, and its gradient."""
        centre, ln_slope, lapse = theta
        z, top = np.exp(ln_slope) * (x - centre), 1 - rate - lapse
        rising = ndtr(z)
        p = np.clip(rate + top * rising, 1e-9, 1 - 1e-9)
        pull = (trials - hits) / (1 - p) - hits / p
        steep = pull * top * np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
        gradient = [-np.exp(ln_slope) * steep.sum(), steep @ z, -(pull @ rising)]
        return -float(hits @ np.log(p) + (trials - hits) @ np.log1p(-p)), np.array(gradient)

    starts = [(centre, ln_slope, 0.02) for centre in np.arange(1, 20) for ln_slope in (-1, 0)]
    bounds = [(0, None), (-3, 3), (0, LARGEST_LAPSE)]
    start = min(starts, key=lambda theta: cost(theta)[0])
    centre, ln_slope, lapse = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(centre + ndtri((0.5 - rate) / (1 - rate - lapse)) / np.exp(ln_slope))


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
    columns, pair = [np.asarray(c) for c in columns], np.asarray(pair)
    result = {"value": float(statistic(*columns)), "low": float("nan"), "high": float("nan")}
    events = np.unique(pair[pair >= 0]).size + int((pair < 0).sum())
    if events < FEWEST or np.isnan(result["value"]):
        return result
    values = [statistic(*(c[i] for c in columns)) for i in cluster_bootstrap(pair, num, seed)]
    if (values := np.array(values)[~np.isnan(values)]).size:
        # A method that picks a value, so that an infinite one does no harm.
        ends = np.quantile(values, (0.025, 0.975), method="inverted_cdf")
        result["low"], result["high"] = ends.tolist()
    return result


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
    "dchi2_at_half_recall_strict": lambda y, score, p, dchi2: dchi2_50(y, score, dchi2, 0.001),
}
# Of the ideal observer in closed form, where `ideal_recall` is one half.
IDEAL_HALF: dict[str, Interval] = {
    name: {"value": float(ndtri(rate) ** 2), "low": float("nan"), "high": float("nan")}
    for name, rate in (("dchi2_at_half_recall", 0.01), ("dchi2_at_half_recall_strict", 0.001))
}


def score_table(
    columns: Sequence[NDArray], pair: NDArray, names: Iterable[str], *, num: int, seed: int
) -> dict[str, Interval]:
    """Intervals of the `STATISTICS` called `names` of one observer, `at_least_wilson`.

    `columns`: class, ranking score, probability and delta-chi2 of each row, each (n,).
    """
    y, _, p, _ = columns
    names = progress_bar(names, "intervals")
    rows = ((n, bootstrap(STATISTICS[n], columns, pair, num=num, seed=seed)) for n in names)
    return {name: at_least_wilson(row, name, y, p) for name, row in rows}


def at_least_wilson(row: Interval, name: str, y: NDArray, p: NDArray) -> Interval:
    """Interval `row` of a statistic, no narrower than Wilson's of the fractions in it.

    One for each class in a balanced accuracy, combined in quadrature; areas under a curve count as
    fractions of the smaller class where no pair of rows is out of order.
    """
    y, called, value = np.asarray(y) == 1, np.asarray(p) > 0.5, row["value"]
    if name == "balanced_accuracy":
        parts = [(fraction(hits), hits.size) for hits in (called[y], ~called[~y])]
    elif name == "accuracy" or name.startswith("recall"):
        parts = [(value, y.size if name == "accuracy" else y.sum())]
    elif name in ("roc_auc", "average_precision") and value == 1:
        parts = [(value, min(y.sum(), (~y).sum()))]
    else:
        return row
    values, count = np.array(parts).T
    low, high = (
        np.linalg.norm(end - values) / len(parts) for end in wilson_interval(values, count)
    )
    low, high = np.minimum(row["low"], value - low), np.maximum(row["high"], value + high)
    return {"value": value, "low": float(low), "high": float(high)}
