"""The same events under several conditions: network and ideal observer side by side, and what
each of them loses. Axes: n rows, P pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.network import Network, predict_proba
from lensml.simulation import LightCurves, Survey, reobserve

__all__ = [
    "DCHI2_UNDETECTABLE",
    "Scores",
    "assert_below_ideal",
    "assert_falling",
    "detected",
    "dchi2_retained",
    "loss_by_cause",
    "score",
    "share_beyond",
    "gap_to_ideal",
    "summary",
    "under_surveys",
    "worst",
]

CHUNK = 2048  # rows whose calls at every epoch are held at a time
DCHI2_UNDETECTABLE = float(
    ndtri(0.99) ** 2
)  # delta-chi2 below which the ideal finds under half at 1 % false
Interval = dict[str, float]
STATISTICS: dict[str, Callable[..., float]] = {  # of class, score, probability, delta-chi2
    "roc_auc": lambda y, s, p, d: metrics.roc_auc(y, s),
    "balanced_accuracy": lambda y, s, p, d: metrics.balanced_accuracy(y, p),
    "recall_at_1pct": lambda y, s, p, d: metrics.recall_at_fpr(y, s, 0.01),
    "dchi2_at_half_recall": lambda y, s, p, d: metrics.dchi2_50(y, s, d),
}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What network and ideal observer say about every row at the end of its window."""

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


def score(network: Network, curves: LightCurves) -> Scores:
    """Call every row of a matched set once, at the end; on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls = []
    for start in range(0, len(curves), CHUNK):
        rows = curves.rows(slice(start, start + CHUNK))
        epochs = predict_proba(network, rows, device=device)
        calls.append(early.at_fractions(epochs, rows.times(), (1.0,))[:, 0])
    return Scores(
        y=curves.y,
        pair=curves.pair,
        dchi2=curves.dchi2,
        epochs=np.isfinite(curves.X).sum(axis=1),
        p=np.concatenate(calls),
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


def summary(scored: Scores, *, num: int, seed: int = 0) -> dict[str, Any]:
    """Headline numbers of network and ideal observer, with intervals over pairs, and the bound.

    Returns:
        `pairs`; `epochs`, the mean number observed; `network` and `ideal`, each with the four
        `STATISTICS` as {"value", "low", "high"}; `bound_z`, the largest excess of the network over
        the realised ideal observer in bootstrap standard errors; `undetectable`, the fraction of
        binaries below `DCHI2_UNDETECTABLE`.
    """
    sides = {
        "network": (scored.p, scored.p),
        "ideal": (scored.ideal, limits.ideal_probability(scored.ideal)),
    }
    binaries = scored.dchi2[scored.binary]
    result: dict[str, Any] = {"pairs": binaries.size, "epochs": float(scored.epochs.mean())}
    for name, (rank, probability) in sides.items():
        columns = [scored.y, rank, probability, scored.dchi2]
        result[name] = {
            k: metrics.bootstrap(of, columns, scored.pair, num=num, seed=seed)
            for k, of in STATISTICS.items()
        }
    excess = limits.excess_over_ideal(
        scored.p, scored.ideal, scored.y, scored.pair, num=num, seed=seed
    )
    result |= worst(excess)
    result["undetectable"] = share_beyond(
        binaries, (DCHI2_UNDETECTABLE,), num=num, seed=seed, below=True
    )[0]
    return result


def share_beyond(
    dchi2: ArrayLike, levels: Sequence[float], *, num: int, seed: int = 0, below: bool = False
) -> list[Interval]:
    """Share of binaries whose delta-chi2 (P,) lies above (or below) each level, with intervals."""
    dchi2 = np.asarray(dchi2, dtype=float)
    sides = [(dchi2 < level) if below else (dchi2 > level) for level in levels]
    alone = np.arange(dchi2.size)
    return [metrics.bootstrap(np.mean, [hit], alone, num=num, seed=seed) for hit in sides]


def undetectable_by_group(
    strengths: Mapping[str, NDArray], groups: Mapping[str, NDArray], *, num: int, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Fraction of undetectable binaries by condition (delta-chi2 (P,)) and group (mask (P,))."""
    return {
        condition: {
            group: share_beyond(dchi2[mask], (DCHI2_UNDETECTABLE,), num=num, seed=seed, below=True)[
                0
            ]
            for group, mask in groups.items()
        }
        for condition, dchi2 in strengths.items()
    }


def detected(y: ArrayLike, rank: ArrayLike, rate: float = 0.01) -> NDArray:
    """Whether each binary ranks above the threshold that `rate` of the singles pass, (P,) bool."""
    binary, rank = np.asarray(y) == 1, np.asarray(rank)
    return rank[binary] > metrics.threshold_at_fpr(rank[~binary], rate)


def loss_by_cause(
    before: Scores, after: Scores, *, statistic: str = "roc_auc", num: int, seed: int = 0
) -> dict[str, Interval]:
    """What a worse survey costs on the same events, split by whose fault it is.

    Args:
        before, after: The same rows through two surveys.
        statistic: One of `STATISTICS`.
        num, seed: Resamples of pairs; a pair is drawn in both surveys at once.

    Returns:
        `total`, what the network's statistic falls by; `data`, what the ideal observer's falls by:
        the information that was not recorded; `network`, the difference. Each {"value", "low",
        "high"}.
    """
    if not np.array_equal(before.pair, after.pair) or not np.array_equal(before.y, after.y):
        raise ValueError("`before` and `after` must hold the same events in the same order")
    of = STATISTICS[statistic]

    def network(y, p0, i0, d0, p1, i1, d1):
        return of(y, p0, p0, d0) - of(y, p1, p1, d1)

    def ideal(y, p0, i0, d0, p1, i1, d1):
        expit = limits.ideal_probability
        return of(y, i0, expit(i0), d0) - of(y, i1, expit(i1), d1)

    columns = [before.y, before.p, before.ideal, before.dchi2, after.p, after.ideal, after.dchi2]
    parts = {
        "total": network,
        "data": ideal,
        "network": lambda *c: network(*c) - ideal(*c),
    }
    return {
        name: metrics.bootstrap(part, columns, before.pair, num=num, seed=seed)
        for name, part in parts.items()
    }


def gap_to_ideal(
    scored: Scores, statistic: str = "recall_at_1pct", *, num: int, seed: int = 0
) -> Interval:
    """Ideal observer less network on the same rows, with its paired interval over pairs."""
    of = STATISTICS[statistic]

    def gap(y, p, i, d):
        return of(y, i, limits.ideal_probability(i), d) - of(y, p, p, d)

    columns = [scored.y, scored.p, scored.ideal, scored.dchi2]
    return metrics.bootstrap(gap, columns, scored.pair, num=num, seed=seed)


def dchi2_retained(before: Scores, after: Scores, level: float = 25.0) -> dict[str, float]:
    """What share of its delta-chi2 a visible anomaly keeps in a worse survey of the same events.

    Returns:
        `epochs`, the share of epochs kept; `median`, `p16`, `p84` of the share of delta-chi2 over
        binaries above `level` before; `binaries`, how many those are.
    """
    rows = before.binary & (before.dchi2 > level)
    share = after.dchi2[rows] / before.dchi2[rows]
    quantiles = np.quantile(share, [0.5, 0.16, 0.84]) if share.size else np.full(3, np.nan)
    return {
        "epochs": float(after.epochs.mean() / before.epochs.mean()),
        **dict(zip(("median", "p16", "p84"), map(float, quantiles), strict=True)),
        "binaries": int(rows.sum()),
    }


def worst(excess: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The largest excess of `limits.excess_over_ideal`, as `assert_below_ideal` reads it."""
    return {"bound_z": max(e["z"] for e in excess.values())}


def assert_below_ideal(summaries: Mapping[str, Mapping[str, Any]], limit: float = 3.0) -> None:
    """Stop if any condition lies above the realised ideal observer: that would be a leak."""
    for name, row in summaries.items():
        assert row["bound_z"] <= limit, (
            f"{name}: the network is {row['bound_z']:.1f} standard errors above the ideal observer"
        )


def assert_falling(
    scored: Mapping[str, Scores],
    *,
    statistic: str = "roc_auc",
    num: int,
    seed: int = 0,
    limit: float = 3.0,
) -> dict[str, float]:
    """Stop if a worse condition gives a better score: the signature of a leak.

    Args:
        scored: Conditions from best to worst, same rows.
        statistic: One of `STATISTICS`, larger being better.
        num, seed: Resamples of pairs.
        limit: Standard errors by which the score may rise.

    Returns:
        For each step, "a -> b", the network's change in standard errors; negative is a fall.
    """
    names, steps = list(scored), {}
    for better, worse in zip(names[:-1], names[1:], strict=True):
        fall = loss_by_cause(
            scored[better], scored[worse], statistic=statistic, num=num, seed=seed
        )["total"]
        error = (fall["high"] - fall["low"]) / (2 * ndtri(0.975))
        z = -fall["value"] / error if error > 0 else np.sign(-fall["value"]) * np.inf
        z = 0.0 if fall["value"] == 0 else float(z)
        steps[f"{better} -> {worse}"] = z
        assert z <= limit, f"{statistic} rises by {z:.1f} standard errors from {better} to {worse}"
    return steps
