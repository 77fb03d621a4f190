"""Alerts with false alarms under control: a threshold for a whole season, its lag and its price.

A season's threshold is tested at every epoch, so a false alarm is a single lens that *ever* passes
it. The same rule is applied to the ideal observer, whose delay nobody can blame on a network. Axes:
n rows, T epochs, K thresholds or edges. Times in days; NaN where no alert was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.evaluation.profile_ratio import llr_series, profile_llr_series
from lensml.network import Network, predict_proba
from lensml.simulation import LightCurves

__all__ = [
    "AlertPolicy",
    "SeasonCalls",
    "compare_with_ideal",
    "alert_rate_and_purity",
    "set_threshold",
    "counted",
    "detected_by_phase",
    "latency_summary",
    "paired_latency",
    "false_alarm_report",
    "season_peaks",
]

DRAWS = 20_000  # behind the intervals of `alert_rate_and_purity`


def beta_interval(a: float, b: float) -> tuple[float, float]:
    """Central 95 % of a beta distribution; a parameter of zero is a point at that end."""
    low = float(beta.ppf(0.025, a, b)) if a > 0 and b > 0 else float(a > 0)
    high = float(beta.ppf(0.975, a, b)) if a > 0 and b > 0 else float(a > 0)
    return low, high


def counted(hits: ArrayLike) -> dict[str, float]:
    """Share of true entries with its exact 95 % interval (Clopper & Pearson 1934) and counts.

    Returns:
        `value`, `low`, `high`, `hits`, `of`; NaN for no entries.
    """
    hits = np.asarray(hits, dtype=bool)
    k, n = int(hits.sum()), hits.size
    if n == 0:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "hits": 0, "of": 0}
    low, high = beta_interval(k, n - k + 1)[0], beta_interval(k + 1, n - k)[1]
    return {"value": k / n, "low": low, "high": high, "hits": k, "of": n}


@dataclass(frozen=True, kw_only=True)
class AlertPolicy:
    """Alert at the first call above `threshold`; it was set on `singles` single lenses."""

    threshold: float
    rate: float  # share of single lenses that may ever alert
    singles: int
    passed: int  # of them lie above the threshold

    @property
    def expected_rate(self) -> dict[str, float]:
        """Share of *fresh* single lenses that alert, with its 95 % interval, before any is seen.

        The threshold is a score of the `singles`, the one that `passed` others exceed; whatever
        the distribution of scores, the share above it is Beta(passed + 1, singles - passed)
        distributed (order statistics; Wilks 1941). Fewer than 1 / rate singles cannot show the
        rate, and this interval says so.
        """
        a, b = self.passed + 1, self.singles - self.passed
        low, high = beta_interval(a, b)
        return {"value": a / (a + b), "low": low, "high": high}

    def first_alert(self, p_epochs: NDArray, times: NDArray) -> NDArray:
        """Time [day] of each row's alert, (n,); NaN if there is none."""
        return early.first_alert(p_epochs, times, self.threshold)


def set_threshold(peak: ArrayLike, rate: float = 0.01) -> AlertPolicy:
    """Policy under which at most `rate` of these single lenses ever alert.

    Args:
        peak: Highest call each single lens gets in its season, (n,), of `early.max_probability`.
        rate: Share of single lenses that may alert, over a whole season.
    """
    peak = np.asarray(peak, dtype=float)
    if not peak.size or np.isnan(peak).any():
        raise ValueError(
            f"`peak` holds {peak.size} single lenses, {int(np.isnan(peak).sum())} of them NaN, but "
            "one season's highest call per single lens was expected, shape (n,)"
        )
    threshold = metrics.threshold_at_fpr(peak, rate)
    passed = int((peak > threshold).sum())
    return AlertPolicy(threshold=threshold, rate=rate, singles=peak.size, passed=passed)


def false_alarm_report(policy: AlertPolicy, peak: ArrayLike) -> dict[str, Any]:
    """False alarms of a policy on single lenses that had no part in it.

    Args:
        policy: Set on other single lenses.
        peak: Highest call of each fresh single lens, (n,).

    Returns:
        `threshold`, `rate`, `set_on`, `expected` (interval before measuring) and `false_alarms`
        (interval with counts).
    """
    return {
        "threshold": policy.threshold,
        "rate": policy.rate,
        "set_on": policy.singles,
        "expected": policy.expected_rate,
        "false_alarms": counted(np.asarray(peak) > policy.threshold),
    }


@dataclass(frozen=True)
class SeasonCalls:
    """What a season comes to for each row."""

    peak: NDArray  # (n,) highest call; 0.5 without an observed epoch
    final: NDArray  # (n,) last call; 0.5 without one
    first_alert: NDArray  # (n, K) [day], by threshold


def season_peaks(
    network: Network,
    curves: LightCurves,
    thresholds: Sequence[float] = (),
    *,
    chunk: int = 2048,
    batch_size: int = 256,
    device: str | torch.device | None = None,
) -> SeasonCalls:
    """Call every epoch of every row, but hold those of `chunk` rows at a time."""
    parts = []
    for start in range(0, len(curves), chunk):
        rows = curves.rows(slice(start, start + chunk))
        p, times = predict_proba(network, rows, batch_size=batch_size, device=device), rows.times()
        first = [early.first_alert(p, times, threshold) for threshold in thresholds]
        final = early.at_fractions(p, times, (1.0,))[:, 0]
        parts.append(
            (early.max_probability(p), final, np.reshape(first, (len(first), len(rows))).T)
        )
    return SeasonCalls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def interval_of(
    statistic: Any, values: NDArray, *, num: int = 400, seed: int = 0
) -> dict[str, float]:
    """A statistic of independent events (n,) with its bootstrap interval; NaN for no event."""
    if not values.size:
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    return metrics.bootstrap(statistic, [values], np.full(values.size, -1), num=num, seed=seed)


def latency_summary(
    alert: ArrayLike, onset: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Detection and lag of binaries, given when each anomaly became reachable.

    Args:
        alert: First alert of each binary (n,) [day]; NaN if none.
        onset: When its anomaly became reachable (n,) [day]; NaN if never, or not known.
        num, seed: Resamples of events behind each interval.

    Returns:
        `detected` (share of all), `detected_with_onset` and `premature` (share of the alerts on
        binaries with an onset that came before it) as intervals with counts; `median_lag` over
        alerts at or after onset [day], with `lag_16`, `lag_84`; `median_lag_of_all`, in which a
        binary without an alert waits for ever and a premature alert counts as negative.
    """
    alert, onset = np.asarray(alert, dtype=float), np.asarray(onset, dtype=float)
    reachable = np.isfinite(onset)
    lag = (alert - onset)[reachable]
    given = np.isfinite(lag)
    late = lag[given & (lag >= 0)]
    sides = np.quantile(late, [0.16, 0.84]) if late.size else np.full(2, np.nan)
    forever = np.where(given, lag, np.inf)
    return {
        "detected": counted(np.isfinite(alert)),
        "detected_with_onset": counted(given),
        "premature": counted(lag[given] < 0),
        "median_lag": interval_of(np.median, late, num=num, seed=seed),
        "lag_16": float(sides[0]),
        "lag_84": float(sides[1]),
        "median_lag_of_all": interval_of(np.median, forever, num=num, seed=seed),
    }


def paired_latency(
    network: ArrayLike, ideal: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """The network's alerts beside the ideal observer's on the same binaries, both (n,) [day].

    Returns:
        Counts `both`, `network_only`, `ideal_only`, `neither`; and over binaries alerted by both
        `median_difference`, `mean_difference` (network minus ideal [day], bootstrap over events)
        and `network_first`, the share in which the network was the earlier.
    """
    network, ideal = np.asarray(network, dtype=float), np.asarray(ideal, dtype=float)
    by_network, by_ideal = np.isfinite(network), np.isfinite(ideal)
    difference = (network - ideal)[by_network & by_ideal]
    return {
        "both": int(difference.size),
        "network_only": int((by_network & ~by_ideal).sum()),
        "ideal_only": int((~by_network & by_ideal).sum()),
        "neither": int((~by_network & ~by_ideal).sum()),
        "median_difference": interval_of(np.median, difference, num=num, seed=seed),
        "mean_difference": interval_of(np.mean, difference, num=num, seed=seed),
        "network_first": counted(difference < 0),
    }


def compare_with_ideal(
    curves: LightCurves,
    p_epochs: NDArray,
    onset: NDArray,
    *,
    rate: float = 0.01,
    num_refitted: int | None = None,
    num: int = 400,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray]]:
    """Network and ideal observers under the same rule: the same share of twins may ever alert.

    All thresholds are set on the twins of one half of the pairs; everything is measured on the
    other half, whose rows are returned in their order.

    Args:
        curves: Matched set with `magnification`, n rows.
        p_epochs: The network's calls (n, T).
        onset: `prefixes.onsets` (n,) [day].
        rate: Share of twins that may alert.
        num_refitted: Pairs, the first ones, on which the reachable observer works; None = all.
        num, seed: Resamples behind the intervals.

    Returns:
        Report: `network`, `ideal` (the bound) and `reachable`, each `false_alarm_report` and
        `latency_summary`; `difference` and `behind_reachable`, the `paired_latency` of the network
        beside either. And of
        the measured binaries (m,): `network`, `ideal`, `reachable` (first alerts [day]), `onset`,
        `t0`, `tE`.
    """
    first = np.isin(curves.pair, np.unique(curves.pair[curves.pair >= 0])[:num_refitted])
    reachable = np.full(curves.X.shape, np.nan)
    reachable[first] = limits.ideal_probability(profile_llr_series(curves.rows(first)))
    calls = {
        "network": p_epochs,
        "ideal": limits.ideal_probability(llr_series(curves)),
        "reachable": reachable,
    }
    half, single = early.calibration_half(curves.pair), curves.y == 0
    binary = ~half & ~single
    binaries = {"onset": onset[binary]}
    binaries |= {name: curves.param(name)[binary] for name in ("t0", "tE")}
    report, told = {}, {name: np.isfinite(p).any(axis=1) for name, p in calls.items()}
    for name, p in calls.items():
        peak, own = early.max_probability(p), told[name]
        policy = set_threshold(peak[half & single & own], rate)
        binaries[name] = policy.first_alert(p[binary], curves.times()[binary])
        report[name] = false_alarm_report(policy, peak[~half & single & own])
        lagging = binaries[name][own[binary]], onset[binary & own]
        report[name] |= latency_summary(*lagging, num=num, seed=seed)
    for name, observer in (("difference", "ideal"), ("behind_reachable", "reachable")):
        both = [binaries[who][told[observer][binary]] for who in ("network", observer)]
        report[name] = paired_latency(*both, num=num, seed=seed)
    return report, binaries


def detected_by_phase(
    alert: ArrayLike, t0: ArrayLike, tE: ArrayLike, edges: ArrayLike = early.PHASE_EDGES
) -> NDArray:
    """Share of all these binaries (n,) that have alerted by each phase (t - t0) / tE, (K,)."""
    phase = (np.asarray(alert) - np.asarray(t0)) / np.asarray(tE)
    return np.array([metrics.fraction(phase <= edge) for edge in np.asarray(edges)])


def alert_rate_and_purity(
    false_alarm_rate: Mapping[str, float],
    detected_rate: Mapping[str, float],
    prevalence: float,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """What a telescope gets to see where a share `prevalence` of events is binary.

    Args:
        false_alarm_rate: Single lenses that ever alert, as `counted` gives.
        detected_rate: Binaries that alert, as `counted` gives.
        prevalence: Share of binaries among the events watched.
        seed: Of the draws that carry both counts' uncertainty (beta, Jeffreys' prior).

    Returns:
        `alerts_per_1000` events and `purity`, the share of the alerts that are binaries, each with
        its 95 % interval. Purity is NaN if nothing ever alerted.
    """
    rng = np.random.default_rng(seed)

    def both(false: Any, found: Any) -> tuple[Any, Any]:
        right, wrong = prevalence * found, (1 - prevalence) * false
        with np.errstate(invalid="ignore"):
            return 1000 * (right + wrong), np.divide(right, right + wrong)

    rates = (false_alarm_rate, detected_rate)
    value = both(*(np.float64(r["value"]) for r in rates))
    draws = both(*(rng.beta(r["hits"] + 0.5, r["of"] - r["hits"] + 0.5, size=DRAWS) for r in rates))
    result = {}
    for name, at, drawn in zip(("alerts_per_1000", "purity"), value, draws, strict=True):
        low, high = np.quantile(drawn, [0.025, 0.975])
        # A count of zero or of all lies at the end of its range, outside a central interval.
        result[name] = {
            "value": float(at),
            "low": float(np.fmin(low, at)),
            "high": float(np.fmax(high, at)),
        }
    return result
