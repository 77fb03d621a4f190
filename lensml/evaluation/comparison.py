"""The same events under several surveys: network, ideal observer and the loss of each.

Axes: n rows, P binaries. An interval is `{"value", "low", "high"}`, 95 %, by resampling pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.network import Network, find_device
from lensml.simulation import LightCurves, Survey, reobserve

__all__ = [
    "DCHI2_UNDETECTABLE",
    "Scores",
    "assert_falling",
    "completeness",
    "dchi2_retained",
    "detected",
    "fraction_beyond",
    "gap_to_ideal",
    "loss_by_cause",
    "score",
    "summary",
    "under_surveys",
    "undetectable_by_group",
]

# Delta-chi2 below which the ideal observer detects under half at 1 % false positives.
DCHI2_UNDETECTABLE = float(ndtri(0.99) ** 2)
SUMMARY = ("roc_auc", "balanced_accuracy", "recall_at_1pct", "dchi2_at_half_recall")
Interval = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Network and ideal observer on every row at the end of its window."""

    y: NDArray  # (n,) class
    pair: NDArray  # (n,)
    dchi2: NDArray  # (n,)
    epochs: NDArray  # (n,) epochs observed
    p: NDArray  # (n,) P(binary) of the network
    ideal: NDArray  # (n,) log-likelihood ratio of the ideal observer

    @property
    def binary(self) -> NDArray:
        """Rows of binaries, (n,) bool."""
        return np.asarray(self.y) == 1

    @property
    def columns(self) -> dict[str, tuple[NDArray, NDArray, NDArray, NDArray]]:
        """Arguments of `STATISTICS` by observer: class, score, probability, delta-chi2."""
        probability = limits.ideal_probability(self.ideal)
        return {
            "network": (self.y, self.p, self.p, self.dchi2),
            "ideal": (self.y, self.ideal, probability, self.dchi2),
        }


def score(network: Network, curves: LightCurves) -> Scores:
    """Scores of a matched set at the end of the window; on a GPU if there is one."""
    return Scores(
        y=curves.y,
        pair=curves.pair,
        dchi2=curves.dchi2,
        epochs=np.isfinite(curves.X).sum(axis=1),
        p=early.predict(network, curves, device=find_device(), season_rows=0).p[:, -1],
        ideal=limits.ideal_log_ratio(curves),
    )


def under_surveys(
    network: Network, curves: LightCurves, surveys: Mapping[str, Survey], seed: int
) -> dict[str, Scores]:
    """Score the same events, with the same random numbers, through each survey.

    With one seed the surveys differ in nothing but themselves: the epochs left at 40 % missing are
    among those left at 5 %, and the noise at 0.2 mag is twenty times that at 0.01 mag.
    """
    return {k: score(network, reobserve(curves, v, seed)) for k, v in surveys.items()}


def summary(scores: Scores, *, num: int, seed: int = 0) -> dict[str, Any]:
    """Summarise network and ideal observer with intervals over pairs.

    Returns:
        `pairs`; `epochs`, the mean number observed; `network` and `ideal`, each with the
        statistics `SUMMARY` as intervals; `bound_z`, the largest excess of the network over the
        realised ideal observer in bootstrap standard errors; `undetectable`, the fraction of
        binaries below `DCHI2_UNDETECTABLE`.
    """
    options = {"num": num, "seed": seed}
    binaries = scores.dchi2[scores.binary]
    result: dict[str, Any] = {"pairs": binaries.size, "epochs": float(scores.epochs.mean())}
    for name, columns in scores.columns.items():
        result[name] = metrics.score_table(*columns, scores.pair, SUMMARY, **options)
    excess = limits.excess_over_ideal(scores.p, scores.ideal, scores.y, scores.pair, **options)
    result["bound_z"] = limits.largest_z(excess)
    result["undetectable"] = undetectable(binaries, **options)
    return result


def fraction_beyond(
    dchi2: ArrayLike, levels: Sequence[float], *, num: int, seed: int = 0
) -> list[Interval]:
    """Fraction of binaries whose delta-chi2 (P,) exceeds each level, with intervals."""
    dchi2 = np.asarray(dchi2, dtype=float)
    alone = np.arange(dchi2.size)
    return [
        metrics.bootstrap(np.mean, [dchi2 > level], alone, num=num, seed=seed) for level in levels
    ]


def undetectable(dchi2: NDArray, *, num: int, seed: int = 0) -> Interval:
    """Fraction of binaries with delta-chi2 (P,) below `DCHI2_UNDETECTABLE`, with its interval."""
    below = dchi2 < DCHI2_UNDETECTABLE
    return metrics.bootstrap(np.mean, [below], np.arange(below.size), num=num, seed=seed)


def undetectable_by_group(
    strengths: Mapping[str, NDArray], groups: Mapping[str, NDArray], *, num: int, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Fraction of undetectable binaries by condition (delta-chi2 (P,)) and group (mask (P,))."""
    return {
        condition: {
            group: undetectable(dchi2[mask], num=num, seed=seed) for group, mask in groups.items()
        }
        for condition, dchi2 in strengths.items()
    }


def detected(y: ArrayLike, rank: ArrayLike, rate: float = 0.01) -> NDArray:
    """Whether each binary scores above the threshold that `rate` of the singles exceed, (P,)."""
    binary, rank = np.asarray(y) == 1, np.asarray(rank)
    return rank[binary] > metrics.threshold_at_fpr(rank[~binary], rate)


def completeness(
    y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float = 0.01, bins: int = 24
) -> dict[str, NDArray]:
    """Recall in bins of log delta-chi2, finer than the table, at the tables' thresholds.

    Returns:
        `dchi2` (geometric middle), `recall`, `low`, `high` (95 % Wilson), `count`; each (k,).
    """
    y, p = metrics.check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    threshold, _ = metrics.bin_thresholds(y, p, dchi2, rate)
    rows = y & (dchi2 > 0)
    found, log_d = (p > threshold)[rows], np.clip(np.log10(dchi2[rows]), -1, 5)
    index = np.clip(((log_d + 1) / 6 * bins).astype(int), 0, bins - 1)
    # One bin a value: the interval of `reliability` is the one wanted here.
    r = metrics.reliability(found, (index + 0.5) / bins, bins)
    return {
        "dchi2": 10 ** (r["predicted"] * 6 - 1),
        "recall": r["observed"],
        "low": r["low"],
        "high": r["high"],
        "count": r["count"],
    }


def gap_to_ideal(
    scores: Scores, statistic: str = "recall_at_1pct", *, num: int, seed: int = 0
) -> Interval:
    """Ideal observer minus network on the same rows, with its paired interval over pairs."""
    of, sides = metrics.STATISTICS[statistic], scores.columns

    def gap(*columns):
        return of(*columns[4:]) - of(*columns[:4])

    columns = [*sides["network"], *sides["ideal"]]
    return metrics.bootstrap(gap, columns, scores.pair, num=num, seed=seed)


def loss_by_cause(
    before: Scores, after: Scores, *, statistic: str = "roc_auc", num: int, seed: int = 0
) -> dict[str, Interval]:
    """Loss of a worse survey on the same events, split by cause.

    Args:
        before, after: The same rows through two surveys.
        statistic: One of `STATISTICS`.
        num, seed: Resamples of pairs; a pair is drawn in both surveys at once.

    Returns:
        `total`, the fall of the network's statistic; `data`, that of the ideal observer: the
        information that was not recorded; `network`, the difference. Intervals.
    """
    if not np.array_equal(before.pair, after.pair) or not np.array_equal(before.y, after.y):
        raise ValueError("`before` and `after` must hold the same events in the same order")
    of = metrics.STATISTICS[statistic]

    def total(*columns):
        return of(*columns[:4]) - of(*columns[4:8])

    def data(*columns):
        return of(*columns[8:12]) - of(*columns[12:])

    sides = before.columns, after.columns
    columns = [c for name in ("network", "ideal") for side in sides for c in side[name]]
    parts = {"total": total, "data": data, "network": lambda *c: total(*c) - data(*c)}
    return {
        name: metrics.bootstrap(part, columns, before.pair, num=num, seed=seed)
        for name, part in parts.items()
    }


def dchi2_retained(before: Scores, after: Scores, level: float = 25.0) -> dict[str, float]:
    """Fraction of its delta-chi2 that a visible anomaly retains in a worse survey.

    Returns:
        `epochs`, the fraction of epochs retained; `median`, `p16`, `p84` of the fraction of
        delta-chi2 over binaries above `level` before; `binaries`, how many those are.
    """
    rows = before.binary & (before.dchi2 > level)
    ratio = after.dchi2[rows] / before.dchi2[rows]
    quantiles = np.quantile(ratio, [0.5, 0.16, 0.84]) if ratio.size else np.full(3, np.nan)
    return {
        "epochs": float(after.epochs.mean() / before.epochs.mean()),
        **dict(zip(("median", "p16", "p84"), map(float, quantiles), strict=True)),
        "binaries": int(rows.sum()),
    }


def assert_falling(
    scores: Mapping[str, Scores],
    *,
    statistic: str = "roc_auc",
    num: int,
    seed: int = 0,
    limit: float = 3.0,
) -> dict[str, float]:
    """Stop if a worse condition gives a better score: the signature of a leak.

    Args:
        scores: Conditions from best to worst, same rows.
        statistic: One of `STATISTICS`, larger being better.
        num, seed: Resamples of pairs.
        limit: Standard errors by which the score may rise.

    Returns:
        For each step, "a -> b", the network's change in standard errors; negative is a fall.
    """
    names, steps = list(scores), {}
    for better, worse in zip(names[:-1], names[1:], strict=True):
        pair = scores[better], scores[worse]
        fall = loss_by_cause(*pair, statistic=statistic, num=num, seed=seed)["total"]
        error = (fall["high"] - fall["low"]) / (2 * ndtri(0.975))
        z = -fall["value"] / error if error > 0 else np.sign(-fall["value"]) * np.inf
        z = 0.0 if fall["value"] == 0 else float(z)
        steps[f"{better} -> {worse}"] = z
        assert z <= limit, f"{statistic} rises by {z:.1f} standard errors from {better} to {worse}"
    return steps
