"""Alerts under a controlled false-alarm rate: threshold of a season, latency, purity.

A season's threshold is tested at every epoch, so a false alarm is a single lens that *ever* exceeds
it. The same rule is applied to the ideal observer and to the refit-limited observer. Axes: n rows,
T epochs, K edges. Times in days; NaN where no alert was given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.evaluation.metrics import binomial_interval
from lensml.simulation import LightCurves

__all__ = [
    "AlertPolicy",
    "alert_rate_and_purity",
    "alert_summary",
    "compare_with_ideal",
    "detected_by_phase",
    "false_alarm_report",
    "latency_summary",
    "paired_latency",
    "set_threshold",
]

DRAWS = 20_000  # behind the intervals of `alert_rate_and_purity`


@dataclass(frozen=True, kw_only=True)
class AlertPolicy:
    """Alert at the first P(binary) above `threshold`, which was set on `singles` single lenses."""

    threshold: float
    rate: float  # fraction of single lenses that may ever alert
    singles: int
    passed: int  # of them lie above the threshold

    @property
    def expected_rate(self) -> dict[str, float]:
        """Expected fraction of *fresh* single lenses that alert, with its 95 % interval.

        The threshold is a score of the `singles`, the one that `passed` others exceed; whatever
        the distribution of scores, the fraction above it is Beta(passed + 1, singles - passed)
        distributed (order statistics; Wilks 1941). Fewer than 1 / rate singles cannot show the
        rate, and the interval is then wide.
        """
        a, b = self.passed + 1, self.singles - self.passed
        low, high = metrics.beta_interval(a, b)
        return {"value": a / (a + b), "low": low, "high": high}

    def first_alert(self, p_epochs: NDArray, times: NDArray) -> NDArray:
        """Time [day] of each row's alert, (n,); NaN if there is none."""
        return early.first_alert(p_epochs, times, self.threshold)


def set_threshold(peak: ArrayLike, rate: float = 0.01) -> AlertPolicy:
    """Policy under which at most `rate` of these single lenses ever alert.

    Args:
        peak: Highest P(binary) of each single lens over its season, (n,), of `max_probability`.
        rate: Fraction of single lenses that may alert, over a whole season.
    """
    peak = np.asarray(peak, dtype=float)
    if not peak.size or np.isnan(peak).any():
        raise ValueError(
            f"`peak` holds {peak.size} single lenses, {int(np.isnan(peak).sum())} of them NaN, but "
            "one season's highest probability per single lens was expected, shape (n,)"
        )
    threshold = metrics.threshold_at_fpr(peak, rate)
    passed = int((peak > threshold).sum())
    return AlertPolicy(threshold=threshold, rate=rate, singles=peak.size, passed=passed)


def false_alarm_report(policy: AlertPolicy, peak: ArrayLike) -> dict[str, Any]:
    """False alarms of a policy on single lenses that had no part in it.

    Args:
        policy: Set on other single lenses.
        peak: Highest P(binary) of each fresh single lens, (n,).

    Returns:
        `threshold`, `rate`, `set_on`, `expected` (interval before measuring) and `false_alarms`
        (interval with counts).
    """
    return {
        "threshold": policy.threshold,
        "rate": policy.rate,
        "set_on": policy.singles,
        "expected": policy.expected_rate,
        "false_alarms": binomial_interval(np.asarray(peak) > policy.threshold),
    }


def interval_of(
    statistic: Any, values: NDArray, *, num: int = 400, seed: int = 0
) -> dict[str, float]:
    """Statistic of independent events (n,) with its bootstrap interval; NaN for no event."""
    if not values.size:
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    return metrics.bootstrap(statistic, [values], np.full(values.size, -1), num=num, seed=seed)


def latency_summary(
    alert: ArrayLike, onset: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Detection of binaries and latency of their alerts after the onset of the anomaly.

    Args:
        alert: First alert of each binary (n,) [day]; NaN if none.
        onset: Onset of its anomaly (n,) [day]; NaN if never, or not known.
        num, seed: Resamples of events behind each interval.

    Returns:
        `detected` (fraction of all), `detected_with_onset` and `premature` (fraction of the alerts
        on binaries with an onset that came before it) as intervals with counts; `median_lag` over
        alerts at or after onset [day], with `lag_16`, `lag_84`; `median_lag_of_all`, in which a
        binary without an alert waits for ever and a premature alert counts as negative.
    """
    alert, onset = np.asarray(alert, dtype=float), np.asarray(onset, dtype=float)
    lag = (alert - onset)[np.isfinite(onset)]
    given = np.isfinite(lag)
    late = lag[given & (lag >= 0)]
    sides = np.quantile(late, [0.16, 0.84]) if late.size else np.full(2, np.nan)
    return {
        "detected": binomial_interval(np.isfinite(alert)),
        "detected_with_onset": binomial_interval(given),
        "premature": binomial_interval(lag[given] < 0),
        "median_lag": interval_of(np.median, late, num=num, seed=seed),
        "lag_16": float(sides[0]),
        "lag_84": float(sides[1]),
        "median_lag_of_all": interval_of(
            np.median, np.where(given, lag, np.inf), num=num, seed=seed
        ),
    }


def alert_summary(
    p_epochs: NDArray,
    times: NDArray,
    y: ArrayLike,
    pair: ArrayLike,
    onset: ArrayLike,
    *,
    rate: float = 0.01,
) -> dict[str, float]:
    """Alerts over a season: threshold set on one half of the pairs, measured on the other.

    Args:
        p_epochs: P(binary), (n, T).
        times: Grid (n, T) or (T,) [day].
        y, pair: Class and pair of each row (n,).
        onset: Onset of each binary's anomaly (n,) [day]; NaN if never, or a single lens.
        rate: Fraction of single lenses that may ever alert.

    Returns:
        `threshold`, `rate`; on the other half `false_alarms` (fraction of `singles` that ever
        alert) and `detected` (fraction of `binaries`); of those with an onset, `with_onset`,
        `detected_with_onset`, `premature`, `median_lag`, `lag_16`, `lag_84` as `latency_summary`.
    """
    y, half = np.asarray(y), early.calibration_half(pair)
    peak = early.max_probability(p_epochs[half & (y == 0)])
    threshold = set_threshold(peak, rate).threshold if peak.size else float("nan")
    alert = early.first_alert(p_epochs, times, threshold)
    single, binary = ~half & (y == 0), ~half & (y == 1)
    latency = latency_summary(alert[binary], np.asarray(onset)[binary], num=0)
    counts = ("detected", "detected_with_onset", "premature", "median_lag")
    return {
        "threshold": threshold,
        "rate": rate,
        "false_alarms": metrics.fraction(np.isfinite(alert[single])),
        "singles": int(single.sum()),
        "binaries": int(binary.sum()),
        "with_onset": latency["detected_with_onset"]["of"],
        **{name: latency[name]["value"] for name in counts},
        "lag_16": latency["lag_16"],
        "lag_84": latency["lag_84"],
    }


def paired_latency(
    network: ArrayLike, ideal: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Network's alerts relative to an ideal observer's on the same binaries, both (n,) [day].

    Returns:
        Counts `both`, `network_only`, `ideal_only`, `neither`; and over binaries alerted by both
        `median_difference`, `mean_difference` (network minus ideal [day], bootstrap over events)
        and `network_first`, the fraction in which the network was the earlier.
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
        "network_first": binomial_interval(difference < 0),
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
    """Network and ideal observers under the same rule: the same fraction of twins may ever alert.

    All thresholds are set on the twins of one half of the pairs; everything is measured on the
    other half, whose rows are returned in their order.

    Args:
        curves: Matched set with `magnification`, n rows.
        p_epochs: P(binary) of the network (n, T).
        onset: Of `onset_times` (n,) [day].
        rate: Fraction of twins that may alert.
        num_refitted: Pairs, the first ones, of the refit-limited observer; None = all.
        num, seed: Resamples behind the intervals.

    Returns:
        Report: `network`, `ideal` (the oracle bound) and `reachable` (the refit-limited bound),
        each `false_alarm_report` and `latency_summary`; `difference` and `behind_reachable`, the
        `paired_latency` of the network relative to either. And of the measured binaries (m,):
        `network`, `ideal`, `reachable` (first alerts [day]), `onset`, `t0`, `tE`.
    """
    # Probability of each observer at every epoch; NaN in rows it was not asked about.
    first = np.isin(curves.pair, np.unique(curves.pair[curves.pair >= 0])[:num_refitted])
    reachable = np.full(curves.X.shape, np.nan)
    reachable[first] = limits.ideal_probability(limits.profile_llr_series(curves.rows(first)))
    observers = {
        "network": p_epochs,
        "ideal": limits.ideal_probability(limits.llr_series(curves)),
        "reachable": reachable,
    }
    known = {name: np.isfinite(p).any(axis=1) for name, p in observers.items()}
    half, single = early.calibration_half(curves.pair), curves.y == 0
    binary, times = ~half & ~single, curves.times()
    binaries = {"onset": onset[binary]}
    binaries |= {name: curves.param(name)[binary] for name in ("t0", "tE")}
    report = {}
    # Each observer alone: threshold on one half, false alarms and latency on the other.
    for name, p in observers.items():
        peak, own = early.max_probability(p), known[name]
        policy = set_threshold(peak[half & single & own], rate)
        binaries[name] = policy.first_alert(p[binary], times[binary])
        report[name] = false_alarm_report(policy, peak[~half & single & own])
        alert = binaries[name][own[binary]]
        report[name] |= latency_summary(alert, onset[binary & own], num=num, seed=seed)
    # The network relative to each ideal observer, on the binaries of that observer.
    for name, observer in (("difference", "ideal"), ("behind_reachable", "reachable")):
        both = [binaries[who][known[observer][binary]] for who in ("network", observer)]
        report[name] = paired_latency(*both, num=num, seed=seed)
    return report, binaries


def detected_by_phase(
    alert: ArrayLike, t0: ArrayLike, tE: ArrayLike, edges: ArrayLike = early.PHASE_EDGES
) -> NDArray:
    """Fraction of all these binaries (n,) that have alerted by each phase (t - t0) / tE, (K,)."""
    phase = (np.asarray(alert) - np.asarray(t0)) / np.asarray(tE)
    return np.array([metrics.fraction(phase <= edge) for edge in np.asarray(edges)])


def alert_rate_and_purity(
    false_alarm_rate: Mapping[str, float],
    detected_rate: Mapping[str, float],
    prevalence: float,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Alerts per 1000 events and their purity where a fraction `prevalence` is binary.

    Args:
        false_alarm_rate: Single lenses that ever alert, as `binomial_interval` gives.
        detected_rate: Binaries that alert, as `binomial_interval` gives.
        prevalence: Fraction of binaries among the events watched.
        seed: Of the draws that carry both counts' uncertainty (beta, Jeffreys' prior).

    Returns:
        `alerts_per_1000` events and `purity`, the fraction of the alerts that are binaries, each
        with its 95 % interval. Purity is NaN if nothing ever alerted.
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
        # A count of zero or of all lies at the end of its range, outside a central interval.
        low, high = np.quantile(drawn, [0.025, 0.975])
        ends = {"low": float(np.fmin(low, at)), "high": float(np.fmax(high, at))}
        result[name] = {"value": float(at)} | ends
    return result
