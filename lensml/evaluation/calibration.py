"""P(binary) that means what it says: at each share of the window, and where binaries are rare.

Axes: n rows, F = 7 shares `FRACTIONS` of the window, K knots. A network may rank well and still
say 0.9 where 0.7 is true. A monotone map, fitted on events of its own, repairs that and leaves the
ranking alone. A network trained on as many binaries as single lenses is then taken to another
prevalence by Bayes' formula, `prior_shift`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from lensml.evaluation import metrics
from lensml.simulation import FRACTIONS

__all__ = [
    "Calibrator",
    "MonotoneMap",
    "prior_shift",
    "calibration_table",
    "ece_noise_floor",
    "fit_calibrator",
    "fit_map",
    "resample_to_prevalence",
]

NUM_KNOTS = 6
# How far, in standard deviations of a Gaussian prior, a map strays from the identity unless the
# rows insist: its shift, its mean log-slope, and the change of log-slope from knot to knot.
SPREAD_SHIFT, SPREAD_SLOPE, SPREAD_BEND = 2.0, 1.0, 0.5
LARGEST = 37.0  # log-odds of the double next to one
LARGEST_FITTED = 17.0  # log-odds of the float32 next to one: beyond, a call is merely saturated
OUTER_KNOT = (
    5.0  # log-odds: calls beyond are 0.7 % from certain, and knots there would bend nothing
)


def prior_shift(p: ArrayLike, prevalence: float, trained_at: float = 0.5) -> NDArray:
    """P(binary) where another share of events is binary: Bayes' formula, a shift of the log-odds.

    logit p' = logit p + logit(prevalence) - logit(trained_at). Nothing else may differ: binaries
    and single lenses look as they did, only their shares change. Certain calls (0, 1) stay.

    Args:
        p: Calibrated P(binary) at the share `trained_at`, any shape.
        prevalence: Share of binaries among the events asked about, 0 < prevalence < 1.
        trained_at: Share of binaries among the events that `p` was calibrated on.

    Raises:
        ValueError: If a share is not between 0 and 1.

    References:
        Saerens, Latinne & Decaestecker (2002), Neural Computation 14, 21, eq. 2.4.
    """
    for name, value in (("prevalence", prevalence), ("trained_at", trained_at)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` is {value}, but a share between 0 and 1 was expected")
    shift = logit(prevalence) - logit(trained_at)
    return expit(logit(np.asarray(p, dtype=float)) + shift)


@dataclass(frozen=True, kw_only=True)
class MonotoneMap:
    """Piecewise linear from log-odds to log-odds, every slope positive: no two calls change places.

    `reference` is mapped to `reference + shift`; `slopes` (K + 1,) hold below, between and above
    the rising `knots` (K,).
    """

    reference: float
    shift: float
    knots: tuple[float, ...]
    slopes: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.slopes) != len(self.knots) + 1 or not (np.diff(self.knots) > 0).all():
            raise ValueError(
                f"a map of {len(self.knots)} knots and {len(self.slopes)} slopes was given, but "
                "rising knots and one slope more than knots were expected"
            )
        if not all(slope > 0 for slope in self.slopes):
            raise ValueError(f"`slopes` are {self.slopes}, but all must be positive")

    def __call__(self, p: ArrayLike) -> NDArray:
        """Calibrated probability of any shape; distinct calls may meet only by rounding at 0, 1."""
        z = np.clip(logit(np.asarray(p, dtype=float)), -LARGEST, LARGEST)
        ramps = segments(z, np.array(self.knots), self.reference)
        return expit(self.reference + self.shift + ramps @ np.array(self.slopes))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "reference": self.reference,
            "shift": self.shift,
            "knots": list(self.knots),
            "slopes": list(self.slopes),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "MonotoneMap":
        """What `to_dict` gave."""
        return cls(
            reference=float(stored["reference"]),
            shift=float(stored["shift"]),
            knots=tuple(map(float, stored["knots"])),
            slopes=tuple(map(float, stored["slopes"])),
        )


def segments(z: NDArray, knots: NDArray, reference: float) -> NDArray:
    """How far `z` is from `reference` within each segment between knots, (..., K + 1)."""
    edges = np.concatenate([[-np.inf], knots, [np.inf]])
    return np.clip(z[..., None], edges[:-1], edges[1:]) - np.clip(reference, edges[:-1], edges[1:])


def fit_map(y: ArrayLike, p: ArrayLike, num_knots: int = NUM_KNOTS) -> MonotoneMap:
    """Penalised logistic regression of the class on a monotone map of logit p; few rows change it
    little.

    With equal slopes it is Platt's (1999) map. Knots lie at quantiles of logit p, as the calls of
    an early prefix crowd near 0.5 and those of a whole season near 0 and 1.

    Args:
        y: Class of each row (n,).
        p: P(binary) of each row (n,), from events that the network was not trained on.
        num_knots: Knots at most; equal calls need fewer.
    """
    y, p = metrics.check_scores(y, p)
    z = np.clip(logit(p), -LARGEST_FITTED, LARGEST_FITTED)
    inner = np.clip(z, -OUTER_KNOT, OUTER_KNOT)
    knots = np.unique(np.round(np.quantile(inner, np.linspace(0.02, 0.98, num_knots)), 3))
    reference = float(knots[knots.size // 2])
    ramps, sign = segments(z, knots, reference), np.where(y, 1.0, -1.0)

    def cost(theta: NDArray) -> tuple[float, NDArray]:
        shift, slopes = theta[0], np.exp(theta[1:])
        margin = sign * (reference + shift + ramps @ slopes)
        slope_of_loss = -sign * expit(-margin)
        bend, mean = np.diff(theta[1:]), theta[1:].mean()
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
    theta = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return MonotoneMap(
        reference=reference,
        shift=float(theta[0]),
        knots=tuple(knots.tolist()),
        slopes=tuple(np.exp(theta[1:]).tolist()),
    )


@dataclass(frozen=True, kw_only=True)
class Calibrator:
    """A map for each of FRACTIONS, and one for any epoch of a season whose end nobody knows.

    Which share of the window has gone by is known when a set is evaluated, not while a season
    runs: "half of the window" asks when it will end. An alert therefore uses the pooled map, one
    for all epochs; the maps by fraction are for the table of a finished set.
    """

    maps: tuple[MonotoneMap, ...]  # at FRACTIONS
    pooled: MonotoneMap
    prevalence: float  # share of binaries it was fitted at; `trained_at` of `prior_shift`
    rows: int

    def __call__(self, p: ArrayLike, k: int | None = None) -> NDArray:
        """Calibrated P(binary): by the map of FRACTIONS[k], or by the pooled one for any epoch.

        NaN (not observed) stays NaN.
        """
        return (self.pooled if k is None else self.maps[k])(p)

    def at_fractions(self, p: NDArray) -> NDArray:
        """Calibrated P(binary), (n, F), each column by the map of its fraction."""
        return np.stack([self(p[:, k], k) for k in range(len(FRACTIONS))], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "fractions": list(FRACTIONS),
            "maps": [m.to_dict() for m in self.maps],
            "pooled": self.pooled.to_dict(),
            "prevalence": self.prevalence,
            "rows": self.rows,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Calibrator":
        """What `to_dict` gave.

        Raises:
            ValueError: If it was made for other fractions of the window.
        """
        if tuple(stored["fractions"]) != FRACTIONS or len(stored["maps"]) != len(FRACTIONS):
            raise ValueError(
                f"the calibrator was made for fractions {stored['fractions']}, but {FRACTIONS} "
                "were expected; fit it again with `fit_calibrator`"
            )
        return cls(
            maps=tuple(MonotoneMap.from_dict(m) for m in stored["maps"]),
            pooled=MonotoneMap.from_dict(stored["pooled"]),
            prevalence=float(stored["prevalence"]),
            rows=int(stored["rows"]),
        )


def fit_calibrator(y: ArrayLike, p: NDArray) -> Calibrator:
    """Maps from a calibration set: class (n,) and P(binary) at FRACTIONS (n, F).

    Its events are neither those of training nor those the calibrated calls are judged by, and
    their binaries must be of the kind to be asked about: the maps are right for that mixture.
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
    """Rows, in their order, of a sample in which a share `prevalence` is binary.

    All rows of the class there are too few of, and a random part of the other.
    """
    y, rng = np.asarray(y) == 1, np.random.default_rng(seed)
    total = min((~y).sum() / (1 - prevalence), y.sum() / prevalence)
    shares = {True: prevalence, False: 1 - prevalence}
    chosen = [
        rng.choice(np.flatnonzero(y == label), int(round(total * share)), replace=False)
        for label, share in shares.items()
    ]
    return np.sort(np.concatenate(chosen))


def bin_of(p: NDArray) -> NDArray:
    """Bin of each call, as `metrics.reliability` cuts them."""
    return np.clip((p * metrics.CALIBRATION_BINS).astype(int), 0, metrics.CALIBRATION_BINS - 1)


def bin_noise(y: NDArray, p: NDArray, pair: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Gap (observed less predicted), its variance by chance and the rows of filled bins; each (k,).

    Pairs, not rows, are drawn: a pair whose two rows share a bin always brings one binary, so that
    chance is smaller than independent rows would have it. The variance is that of a ratio of sums
    over pairs, from their scatter; NaN in a bin of one pair.
    """
    bins, index, pair = metrics.CALIBRATION_BINS, bin_of(p), np.asarray(pair).astype(np.int64)
    alone = pair < 0
    group = np.where(alone, pair.max(initial=0) + 1 + np.arange(pair.size), pair)
    cell, inverse = np.unique(group * bins + index, return_inverse=True)
    residual, rows, where = np.bincount(inverse, y - p), np.bincount(inverse), cell % bins
    n, groups = np.bincount(where, rows, bins), np.bincount(where, minlength=bins)
    gap = np.bincount(where, residual, bins) / np.maximum(n, 1)
    scatter = np.bincount(where, (residual - gap[where] * rows) ** 2, bins)
    filled = n > 0
    n, groups, scatter = n[filled], groups[filled].astype(float), scatter[filled]
    groups[groups == 1] = np.nan
    return gap[filled], groups / (groups - 1) * scatter / n**2, n


def ece_noise_floor(y: ArrayLike, p: ArrayLike, pair: ArrayLike) -> float:
    """Raw ECE that chance alone would give to perfect calls on these rows (normal approximation).

    A raw ECE near this number is the noise of so many pairs, not a fault of the network.

    Args:
        y, p, pair: Class, P(binary) and pair of each row (n,); -1 for rows without a pair.
    """
    y, p = metrics.check_scores(y, p)
    _, variance, n = bin_noise(y, p, np.asarray(pair))
    return float(np.nansum(n * np.sqrt(2 / np.pi * variance)) / n.sum())


def calibration_errors(y: NDArray, p: NDArray) -> NDArray:
    """Raw ECE, mean squared gap and Brier score, (3,)."""
    r = metrics.reliability(y, p)
    gap, n = np.abs(r["observed"] - r["predicted"]), r["count"]
    return np.array([np.sum(n * gap), np.sum(n * gap**2), n.sum() * metrics.brier(y, p)]) / n.sum()


def intervals_of(
    y: NDArray, p: NDArray, pair: NDArray, num: int, seed: int
) -> dict[str, dict[str, float]]:
    """`ece`, `ece_debiased`, `ece_debiased_pairs` and `brier` with 95 % intervals over pairs.

    Resampling adds to each bin the noise it already has, so that resampled errors lie too high;
    their spread is right and is laid around the value (in the square, for debiased errors).
    """
    plain, square, brier = calibration_errors(y, p)
    samples = metrics.cluster_bootstrap(pair, num, seed)
    resampled = np.array([calibration_errors(y[i], p[i]) for i in samples])
    ends = np.quantile(resampled - resampled.mean(axis=0), [0.025, 0.975], axis=0)
    gap, variance, n = bin_noise(y == 1, p, pair)
    told = np.isfinite(variance)
    by_pair = np.sum((n * (gap**2 - variance))[told]) / max(1, n[told].sum())

    def laid(value: float, column: int, root: bool = False) -> dict[str, float]:
        low, high = (max(0.0, value + end) for end in ends[:, column])
        three = np.array([max(0.0, value), low, high])
        three = np.sqrt(three) if root else three
        return dict(zip(("value", "low", "high"), three.tolist(), strict=True))

    by_row = binomial_square(y, p)
    return {
        "ece": laid(plain, 0),
        "ece_debiased": laid(by_row, 1, root=True),
        "ece_debiased_pairs": laid(by_pair, 1, root=True),
        "brier": laid(brier, 2),
    }


def binomial_square(y: NDArray, p: NDArray) -> float:
    """Square of `metrics.ece(..., debiased=True)` before it is cut at zero."""
    r = metrics.reliability(y, p)
    many = r["count"] > 1
    gap, n, observed = (r["observed"] - r["predicted"])[many], r["count"][many], r["observed"][many]
    return float(np.sum(n * (gap**2 - observed * (1 - observed) / (n - 1))) / max(1, n.sum()))


def calibration_table(
    y: ArrayLike,
    p_at_fractions: NDArray,
    pair: ArrayLike,
    calibrator: Calibrator | None = None,
    *,
    num: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Calibration at each of FRACTIONS, as the network says it and after `calibrator`.

    Args:
        y, pair: Class and pair of each row (n,).
        p_at_fractions: P(binary), (n, F).
        calibrator: Fitted on other events; None = only what the network says.
        num, seed: Resamples of pairs behind each interval.

    Returns:
        By fraction ("0.1", ..., "1.0"), `before` and, with a calibrator, `after`: intervals `ece`
        (raw), `ece_debiased` (of `metrics.ece`), `ece_debiased_pairs`, `brier`, and the number
        `ece_noise_floor` of the raw ECE. On a matched set chance is smaller than independent rows
        would have it, and `ece_debiased` errs towards zero; the one for pairs does not.
    """
    y, pair = np.asarray(y), np.asarray(pair)
    calls = {"before": p_at_fractions}
    if calibrator is not None:
        calls["after"] = calibrator.at_fractions(p_at_fractions)
    return {
        f"{fraction:g}" if fraction < 1 else "1.0": {
            name: intervals_of(y, p[:, k], pair, num, seed)
            | {"expected_floor": ece_noise_floor(y, p[:, k], pair)}
            for name, p in calls.items()
        }
        for k, fraction in enumerate(FRACTIONS)
    }
