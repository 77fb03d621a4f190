"""The same events under several surveys: network, ideal observer and the loss of each.

Axes: n rows, P binaries. `num`, `seed`: resamples of pairs behind each interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.evaluation.metrics import Interval
from lensml.simulation import LightCurves

# Delta-chi2 below which the ideal observer detects under half at 1 % false positives.
DCHI2_UNDETECTABLE = metrics.IDEAL_HALF["dchi2_at_half_recall"]["value"]
SUMMARY = ("roc_auc", "balanced_accuracy", "recall_at_1pct")


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


def score(curves: LightCurves, p: NDArray) -> Scores:
    """Scores of a matched set, of which `p` (n,) is P(binary) at the end of the window."""
    known = {name: getattr(curves, name) for name in ("y", "pair", "dchi2")}
    epochs = np.isfinite(curves.X).sum(axis=1)
    return Scores(**known, epochs=epochs, p=p, ideal=limits.ideal_log_ratio(curves))


def summary(scores: Scores, *, num: int, seed: int = 0) -> dict[str, Any]:
    """Network and ideal observer with intervals over pairs.

    `pairs`; `epochs`, the mean number observed; `network` and `ideal`, each with `SUMMARY` and the
    delta-chi2 at 50 % recall; `bound_z`, the largest excess of the network over the realised ideal
    observer in bootstrap standard errors; `undetectable`, as the function of that name.
    """
    options, binaries = {"num": num, "seed": seed}, scores.dchi2[scores.binary]
    result: dict[str, Any] = {"pairs": binaries.size, "epochs": float(scores.epochs.mean())}
    for name, columns in scores.columns.items():
        names = (*SUMMARY, *metrics.IDEAL_HALF) if name == "network" else SUMMARY
        result[name] = metrics.score_table(columns, scores.pair, names, **options)
    result["ideal"] |= metrics.IDEAL_HALF
    excess = limits.excess_over_ideal(scores.p, scores.ideal, scores.y, scores.pair, **options)
    result["bound_z"] = max(row["z"] for row in excess.values())
    return result | {"undetectable": undetectable(binaries)}


def undetectable(dchi2: ArrayLike) -> Interval:
    """Fraction of binaries whose delta-chi2 (P,) lies below `DCHI2_UNDETECTABLE`."""
    return metrics.binomial_interval(np.asarray(dchi2) < DCHI2_UNDETECTABLE)


def completeness(
    y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float = 0.01
) -> dict[str, NDArray]:
    """Recall in narrow bins of log delta-chi2, thresholds from `neighbour_thresholds`.

    A quarter of a decade each, from 0.1; a bin of fewer than `FEWEST` binaries joins the next.
    Returns `dchi2` (median of the bin), `recall`, `low`, `high` (95 % Wilson), `count`; each (k,).
    """
    y, p = metrics.check_scores(y, p)
    found = (p > metrics.neighbour_thresholds(y, p, dchi2, rate))[y]
    strength = np.asarray(dchi2, dtype=float)[y]
    order = np.argsort(strength, kind="stable")[(strength <= 0.1).sum() :]
    ends, bins = [0], np.floor(4 * np.log10(strength[order]))
    for end in [*np.flatnonzero(np.diff(bins)) + 1, order.size]:
        if end - ends[-1] >= metrics.FEWEST:
            ends.append(end)
    ends = [*ends[:-1], order.size] if len(ends) > 1 else [0, order.size]  # the last takes the rest
    bins = [order[slice(*pair)] for pair in pairwise(ends)]
    count = np.array([rows.size for rows in bins])
    middle, recall = np.array([(np.median(strength[i]), found[i].mean()) for i in bins]).T
    low, high = metrics.wilson_interval(recall, count)
    return {"dchi2": middle, "recall": recall, "low": low, "high": high, "count": count}


def loss_by_cause(
    before: Scores, after: Scores, *, statistic: str = "roc_auc", num: int, seed: int = 0
) -> dict[str, Interval]:
    """Loss of a worse survey on the same events, split by cause, with paired intervals.

    `total` is the fall of the network's statistic; `data` that of the ideal observer, the
    information that was not recorded; `network` the difference.
    """
    if not np.array_equal(before.pair, after.pair) or not np.array_equal(before.y, after.y):
        raise ValueError("`before` and `after` must hold the same events in the same order")
    of, sides = metrics.STATISTICS[statistic], (before.columns, after.columns)

    def total(*columns):
        return of(*columns[:4]) - of(*columns[4:8])

    def data(*columns):
        return of(*columns[8:12]) - of(*columns[12:])

    columns = [c for name in ("network", "ideal") for side in sides for c in side[name]]
    parts = {"total": total, "data": data, "network": lambda *c: total(*c) - data(*c)}
    options = {"num": num, "seed": seed}
    return {k: metrics.bootstrap(of, columns, before.pair, **options) for k, of in parts.items()}


def assert_falling(
    scores: Mapping[str, Scores], *, statistic: str = "roc_auc", num: int, seed: int = 0
) -> dict[str, float]:
    """Stop if a worse condition gives a better score by three standard errors: that is a leak.

    `scores` are of the same rows, from the best condition to the worst. Returns for each step,
    "a -> b", the network's change in standard errors; negative is a fall.
    """
    steps = {}
    for better, worse in pairwise(scores):
        both, options = (scores[better], scores[worse]), {"num": num, "seed": seed}
        fall = loss_by_cause(*both, statistic=statistic, **options)["total"]
        error = (fall["high"] - fall["low"]) / (2 * ndtri(0.975))
        z = -fall["value"] / error if error > 0 else np.sign(-fall["value"]) * np.inf
        z = 0.0 if fall["value"] == 0 else float(z)
        steps[f"{better} -> {worse}"] = z
        assert z <= 3, f"{statistic} rises by {z:.1f} standard errors from {better} to {worse}"
    return steps
