"""Calibration of P(binary): monotone maps, prior shift, errors and their noise.

A monotone map, fitted on events of its own, calibrates a network and keeps its ranking; Bayes'
formula takes it to another prevalence. Axes: n rows, F = 7 fractions `FRACTIONS` of the window, K
knots.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from lensml.evaluation import metrics
from lensml.evaluation.early_detection import FRACTION_KEYS
from lensml.simulation import FRACTIONS

NUM_KNOTS = 6
# Standard deviations of the Gaussian priors of shift, mean log-slope and change of log-slope.
SPREAD_SHIFT, SPREAD_SLOPE, SPREAD_BEND = 2.0, 1.0, 0.5
LARGEST = 37.0  # log-odds of the double next to one
LARGEST_FITTED = 17.0  # log-odds of the float32 next to one: beyond, p is merely saturated
OUTER_KNOT = 5.0  # log-odds: beyond, p is 0.7 % from certain and a knot has no effect


def prior_shift(p: ArrayLike, prevalence: float, trained_at: float = 0.5) -> NDArray:
    """P(binary) at another prevalence: Bayes' formula, a shift of the log-odds.

    logit p' = logit p + logit(prevalence) - logit(trained_at); certain p (0, 1) stay. Saerens,
    Latinne & Decaestecker (2002), Neural Computation 14, 21, eq. 2.4.

    Args:
        p: Calibrated P(binary) at the prevalence `trained_at`, any shape.
        prevalence: Fraction of binaries among the events asked about, 0 < prevalence < 1.
        trained_at: Fraction of binaries among the events that `p` was calibrated on.
    """
    for name, value in (("prevalence", prevalence), ("trained_at", trained_at)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` is {value}, but a fraction between 0 and 1 was expected")
    shift = logit(prevalence) - logit(trained_at)
    return expit(logit(np.asarray(p, dtype=float)) + shift)


@dataclass(frozen=True, kw_only=True)
class MonotoneMap:
    """Map from log-odds to log-odds, piecewise linear with positive slopes: ranks are kept."""

    reference: float  # mapped to reference + shift
    shift: float
    knots: tuple[float, ...]  # (K,) rising
    slopes: tuple[float, ...]  # (K + 1,) below, between and above the knots

    def __call__(self, p: ArrayLike) -> NDArray:
        """Calibrated probability of any shape; distinct p may meet only by rounding at 0, 1."""
        z = np.clip(logit(np.asarray(p, dtype=float)), -LARGEST, LARGEST)
        ramps = segments(z, np.array(self.knots), self.reference)
        return expit(self.reference + self.shift + ramps @ np.array(self.slopes))


def segments(z: NDArray, knots: NDArray, reference: float) -> NDArray:
    """Distance of `z` from `reference` within each segment between knots, (..., K + 1)."""
    edges = np.concatenate([[-np.inf], knots, [np.inf]])
    return np.clip(z[..., None], edges[:-1], edges[1:]) - np.clip(reference, edges[:-1], edges[1:])


def fit_map(y: ArrayLike, p: ArrayLike, num_knots: int = NUM_KNOTS) -> MonotoneMap:
    """Fit a monotone map by penalised logistic regression of the class on logit p.

    With equal slopes it is Platt's (1999) map; few rows change it little. Knots lie at quantiles of
    logit p, which crowds near 0 for an early prefix and spreads for a whole season.

    Args:
        y, p: Class and P(binary) of each row (n,), of events that the network was not trained on.
        num_knots: Knots at most; equal p need fewer.
    """
    y, p = metrics.check_scores(y, p)
    z = np.clip(logit(p), -LARGEST_FITTED, LARGEST_FITTED)
    inner = np.clip(z, -OUTER_KNOT, OUTER_KNOT)
    knots = np.unique(np.round(np.quantile(inner, np.linspace(0.02, 0.98, num_knots)), 3))
    reference = float(knots[knots.size // 2])
    ramps, sign = segments(z, knots, reference), np.where(y, 1.0, -1.0)

    def cost(theta: NDArray) -> tuple[float, NDArray]:
        """Negative log-posterior of the shift and the log-slopes, and its gradient."""
        shift, slopes = theta[0], np.exp(theta[1:])
        margin = sign * (reference + shift + ramps @ slopes)
        bend, mean = np.diff(theta[1:]), theta[1:].mean()
        slope_of_loss = -sign * expit(-margin)
        gradient = np.append(slope_of_loss.sum(), slopes * (slope_of_loss @ ramps))
        gradient[0] += shift / SPREAD_SHIFT**2
        gradient[1:] += mean / SPREAD_SLOPE**2 / slopes.size
        gradient[1:-1] -= bend / SPREAD_BEND**2
        gradient[2:] += bend / SPREAD_BEND**2
        prior = (shift / SPREAD_SHIFT) ** 2 + (mean / SPREAD_SLOPE) ** 2
        prior += np.sum(bend**2) / SPREAD_BEND**2
        return float(np.logaddexp(0, -margin).sum() + prior / 2), gradient

    start = np.zeros(1 + ramps.shape[1])
    bounds = [(None, None)] + [(-4.0, 4.0)] * ramps.shape[1]
    shift, *slopes = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    knots, slopes = tuple(knots.tolist()), tuple(np.exp(slopes).tolist())
    return MonotoneMap(reference=reference, shift=float(shift), knots=knots, slopes=slopes)


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """One map for each of FRACTIONS, and a pooled one for any epoch of an unfinished season."""

    maps: tuple[MonotoneMap, ...]  # at FRACTIONS
    pooled: MonotoneMap
    prevalence: float  # fraction of binaries it was fitted at; `trained_at` of `prior_shift`
    rows: int

    def __call__(self, p: ArrayLike, k: int | None = None) -> NDArray:
        """Calibrated P(binary) by the map of FRACTIONS[k], or by the pooled one; NaN stays NaN."""
        return (self.pooled if k is None else self.maps[k])(p)

    def at_fractions(self, p: NDArray) -> NDArray:
        """Calibrated P(binary), (n, F), each column by the map of its fraction."""
        return np.stack([self(p[:, k], k) for k in range(len(FRACTIONS))], axis=1)


def fit_calibrator(y: ArrayLike, p: NDArray) -> Calibrator:
    """Fit maps to a calibration set: class (n,) and P(binary) at FRACTIONS (n, F).

    Its events are neither those of training nor those evaluated; the maps hold for its mixture.
    """
    y = np.asarray(y)
    if p.shape != (y.size, len(FRACTIONS)):
        raise ValueError(f"`p` has shape {p.shape}, but {(y.size, len(FRACTIONS))} was expected")
    if 0 in (count := np.bincount(y == 1, minlength=2)):
        raise ValueError(f"{count[0]} single lenses and {count[1]} binaries, but both are needed")
    return Calibrator(
        maps=tuple(fit_map(y, column) for column in p.T),
        pooled=fit_map(np.repeat(y, len(FRACTIONS)), p.ravel()),
        prevalence=float(np.mean(y == 1)),
        rows=y.size,
    )


def resample_to_prevalence(y: ArrayLike, prevalence: float, seed: int = 0) -> NDArray:
    """Rows, in their order, of a sample in which a fraction `prevalence` is binary.

    All rows of the class there are too few of, and a random part of the other.
    """
    y, rng = np.asarray(y) == 1, np.random.default_rng(seed)
    total = min((~y).sum() / (1 - prevalence), y.sum() / prevalence)
    chosen = []
    for rows, fraction in ((y, prevalence), (~y, 1 - prevalence)):
        size = int(round(total * fraction))
        chosen.append(rng.choice(np.flatnonzero(rows), size, replace=False))
    return np.sort(np.concatenate(chosen))


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


def ece_noise_floor(y: ArrayLike, p: ArrayLike, pair: ArrayLike) -> float:
    """Raw ECE that chance alone gives to calibrated probabilities (normal approximation).

    A raw ECE near this number is the noise of so many pairs, not an error of the network.
    """
    y, p = metrics.check_scores(y, p)
    _, variance, n = bin_noise(y, p, np.asarray(pair))
    return float(np.nansum(n * np.sqrt(2 / np.pi * variance)) / n.sum())


def calibration_errors(y: NDArray, p: NDArray) -> NDArray:
    """Raw ECE, mean squared gap and Brier score, (3,)."""
    r = metrics.reliability(y, p)
    gap, n = np.abs(r["observed"] - r["predicted"]), r["count"]
    return np.array([np.sum(n * gap), np.sum(n * gap**2), n.sum() * metrics.brier(y, p)]) / n.sum()


def error_intervals(
    y: NDArray, p: NDArray, pair: NDArray, num: int, seed: int
) -> dict[str, dict[str, float]]:
    """`ece`, `ece_debiased`, `ece_debiased_pairs` and `brier` with 95 % intervals over pairs.

    Resampling adds to each bin the noise it already has, so that resampled errors lie too high;
    their spread is right and is laid around the value (in the square, for debiased errors).
    """
    raw, _, brier = calibration_errors(y, p)
    resampled = [calibration_errors(y[i], p[i]) for i in metrics.cluster_bootstrap(pair, num, seed)]
    ends = np.quantile(resampled - np.mean(resampled, axis=0), [0.025, 0.975], axis=0)
    gap, variance, n = bin_noise(y == 1, p, pair)
    known = np.isfinite(variance)
    # Mean squared gaps less the noise of each bin, of pairs and of independent rows.
    by_pair = np.sum((n * (gap**2 - variance))[known]) / max(1, n[known].sum())
    by_row = np.nan_to_num(metrics.debiased_square(metrics.reliability(y, p)))

    def around(value: float, column: int, power: float = 1.0) -> dict[str, float]:
        three = np.maximum(0.0, [value, *(value + ends[:, column])]) ** power
        return dict(zip(("value", "low", "high"), three.tolist(), strict=True))

    return {
        "ece": around(raw, 0),
        "ece_debiased": around(by_row, 1, 0.5),
        "ece_debiased_pairs": around(by_pair, 1, 0.5),
        "brier": around(brier, 2),
    }


def calibration_table(
    y: ArrayLike,
    p: NDArray,
    pair: ArrayLike,
    calibrator: Calibrator | None = None,
    *,
    num: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Calibration at each of FRACTIONS, before and after `calibrator`.

    Args:
        y, pair: Class and pair of each row (n,).
        p: P(binary) at FRACTIONS, (n, F).
        calibrator: Fitted on other events; None = only before.

    Returns:
        By fraction ("0.1", ..., "1.0"), `before` and, with a calibrator, `after`: `error_intervals`
        and `expected_floor` (`ece_noise_floor`). On a matched set chance is smaller than for
        independent rows, and `ece_debiased` errs towards zero; the one for pairs does not.
    """
    y, pair = np.asarray(y), np.asarray(pair)
    stages = {"before": p} | ({"after": calibrator.at_fractions(p)} if calibrator else {})
    return {
        key: {
            stage: error_intervals(y, q[:, k], pair, num, seed)
            | {"expected_floor": ece_noise_floor(y, q[:, k], pair)}
            for stage, q in stages.items()
        }
        for k, key in enumerate(FRACTION_KEYS)
    }
