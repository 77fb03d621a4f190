"""Calibration of P(binary): its error, an upper limit, the anytime table, prior shift.

Of the probabilities as the verbs print them: no map is fitted to them. Axes: n rows, F = 7
fractions `FRACTIONS` of the window.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import metrics
from lensml.evaluation.early_detection import FRACTION_KEYS
from lensml.evaluation.metrics import Interval
from lensml.network import prior_shift


def bin_noise(y: NDArray, p: NDArray, pair: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Calibration gap, its variance by chance and the rows of filled bins; each (k,).

    Pairs, not rows, are drawn: a pair whose two rows fall in one bin always brings one binary. The
    variance is that of a ratio of sums over pairs, from their scatter; NaN in a bin of one pair.
    """
    bins, pair = metrics.CALIBRATION_BINS, np.asarray(pair).astype(np.int64)
    group = np.where(pair < 0, pair.max(initial=0) + 1 + np.arange(pair.size), pair)
    # Sums over the rows of each pair in each bin, then over the pairs of each bin.
    cell, inverse = np.unique(group * bins + metrics.calibration_bin(p), return_inverse=True)
    residual, rows, where = np.bincount(inverse, y - p), np.bincount(inverse), cell % bins
    n, groups = np.bincount(where, rows, bins), np.bincount(where, minlength=bins)
    gap = np.bincount(where, residual, bins) / np.maximum(n, 1)
    scatter = np.bincount(where, (residual - gap[where] * rows) ** 2, bins)
    filled = n > 0
    n, groups, scatter = n[filled], groups[filled].astype(float), scatter[filled]
    groups[groups == 1] = np.nan
    return gap[filled], groups / (groups - 1) * scatter / n**2, n


def mean_square_gap(y: NDArray, p: NDArray, pair: NDArray) -> float:
    """Mean squared gap of observed and predicted frequency, less what chance adds.

    Over the rows of `metrics.CALIBRATION_BINS` equal-width bins; it is unbiased and may lie below
    zero (Kumar, Liang & Ma 2019, NeurIPS 32). Bins of one pair are left out; NaN if all are.
    """
    gap, variance, n = bin_noise(y, p, pair)
    known = np.isfinite(variance)
    if not known.any():
        return float("nan")
    return float(np.sum((n * (gap**2 - variance))[known]) / n[known].sum())


def checked(y: ArrayLike, p: ArrayLike, pair: ArrayLike | None) -> tuple[NDArray, ...]:
    """Class, probability and pair of each row (n,); None for `pair` = independent rows."""
    y, p = metrics.check_scores(y, p)
    return y, p, np.full(y.size, -1) if pair is None else np.asarray(pair)


def ece(y: ArrayLike, p: ArrayLike, pair: ArrayLike | None = None) -> float:
    """Expected calibration error: root of `mean_square_gap`, cut at zero.

    A root-mean-square error without the noise of a finite set, in units of probability. Zero means
    that none can be seen with so many rows; `calibration_errors` has the upper limit.
    """
    return float(np.sqrt(np.maximum(0.0, mean_square_gap(*checked(y, p, pair)))))


def calibration_errors(
    y: ArrayLike, p: ArrayLike, pair: ArrayLike | None = None, *, num: int = 200, seed: int = 0
) -> dict[str, float]:
    """`ece`; `ece_at_most`, its 95 % upper limit; and the Brier score of P(binary) (n,).

    The limit is one-sided, from `num` resamples of whole pairs: the root of the mean squared gap,
    not less than zero, plus the 95th percentile of its deviation from the mean over resamples.
    Resampling adds to each bin the noise it already has, which shifts all resamples alike.
    """
    y, p, pair = checked(y, p, pair)
    square = mean_square_gap(y, p, pair)
    cell, samples = metrics.calibration_bin(p), []
    for i in metrics.cluster_bootstrap(pair, num, seed):
        total, n = np.bincount(cell[i], (y - p)[i]), np.bincount(cell[i])
        samples.append(np.sum(total**2 / np.maximum(n, 1)) / i.size)
    above = np.quantile(samples - np.mean(samples), 0.95) if num else np.nan
    upper = float(np.sqrt(np.maximum(0.0, square) + above))
    return {"ece": ece(y, p, pair), "ece_at_most": upper, "brier": metrics.brier(y, p)}


def calibration_table(
    y: ArrayLike, p: NDArray, pair: ArrayLike, *, num: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`calibration_errors` by fraction of the window, "0.1" to "1.0", of P(binary) (n, F)."""
    columns = zip(FRACTION_KEYS, np.asarray(p).T, strict=True)
    return {key: calibration_errors(y, q, pair, num=num, seed=seed) for key, q in columns}


def anytime_calibration(
    y: ArrayLike, max_probability: ArrayLike, levels: Sequence = (0.5, 0.8, 0.9, 0.95, 0.99)
) -> dict[str, Interval]:
    """Fraction of binaries among curves whose highest P(binary) (n,) reaches each level.

    By level ("0.5", ...), as `binomial_interval`. A probability that is right whenever it is looked
    at gives at least the level itself, for a curve that reaches it passes through it.
    """
    y, peak = metrics.check_scores(y, max_probability)
    return {f"{x:g}": metrics.binomial_interval(y[peak >= x]) for x in levels}


def at_prevalence(y: ArrayLike, p: ArrayLike, prevalence: float) -> dict[str, float]:
    """Calls of P(binary) (n,), shifted to `prevalence`, above 0.5 in a population of that.

    Returns `prevalence`, `precision` (NaN without a call), `recall` and `false_positive_rate`.
    """
    y, p = metrics.check_scores(y, p)
    recall, false = (metrics.fraction(prior_shift(p[k], prevalence) > 0.5) for k in (y, ~y))
    calls = prevalence * recall + (1 - prevalence) * false
    found = {"precision": prevalence * recall / calls if calls else float("nan")}
    return {"prevalence": prevalence, "recall": recall, "false_positive_rate": false} | found
