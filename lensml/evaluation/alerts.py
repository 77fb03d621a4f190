"""Alerts under a controlled false-alarm rate: threshold of a season, latency, purity.

A threshold is tested at every epoch of a season, so a false alarm is a single lens that *ever*
exceeds it. The same rule is applied to the ideal observers. Axes: n rows, T epochs, K edges. Times
in days; NaN where no alert was given. `num`, `seed`: resamples of events behind each interval.
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
from lensml.network import max_probability
from lensml.simulation import LightCurves

DRAWS = 20_000  # behind the intervals of `alert_rate_and_purity`


@dataclass(frozen=True, kw_only=True)
class AlertPolicy:
    """Alert at the first P(binary) above `threshold`, set on `singles` single lenses."""

    threshold: float
    rate: float  # fraction of single lenses that may ever alert
    singles: int
    passed: int  # of them lie above the threshold

    @property
    def expected_rate(self) -> dict[str, float]:
        """Expected fraction of *fresh* single lenses that alert, with its 95 % interval.

        Whatever the distribution of scores, the fraction above the one that `passed` others exceed
        is Beta(passed + 1, singles - passed) distributed (order statistics; Wilks 1941).
        """
        a, b = self.passed + 1, self.singles - self.passed
        low, high = metrics.beta_interval(a, b)
        return {"value": a / (a + b), "low": low, "high": high}

    def first_alert(self, p_epochs: NDArray, times: NDArray) -> NDArray:
        """Time [day] of each row's alert, (n,); NaN if there is none."""
        return early.first_alert(p_epochs, times, self.threshold)


def set_threshold(peak: ArrayLike, rate: float = 0.01) -> AlertPolicy:
    """Policy under which at most `rate` of these single lenses ever alert.

    `peak` (n,) is the highest P(binary) of each over its season (`max_probability`).
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
    """False alarms of a policy on fresh single lenses of highest P(binary) `peak` (n,).

    Returns:
        `threshold`, `rate`, `set_on`, and the intervals `expected` and `false_alarms`.
    """
    report = {"threshold": policy.threshold, "rate": policy.rate, "set_on": policy.singles}
    false_alarms = binomial_interval(np.asarray(peak) > policy.threshold)
    return report | {"expected": policy.expected_rate, "false_alarms": false_alarms}


def interval_of(statistic: Any, values: NDArray, num: int, seed: int) -> dict[str, float]:
    """Statistic of independent events (n,) with its bootstrap interval; NaN for no event."""
    if not values.size:
        return {"value": np.nan, "low": np.nan, "high": np.nan}
    return metrics.bootstrap(statistic, [values], np.full(values.size, -1), num=num, seed=seed)


def latency_summary(
    alert: ArrayLike, onset: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Detection of binaries and latency of their alerts after the onset of the anomaly.

    Args:
        alert: First alert of each binary (n,); NaN if none.
        onset: Onset of its anomaly (n,); NaN if never, or not known.

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
    lag_16, lag_84 = np.quantile(late, [0.16, 0.84]).tolist() if late.size else (np.nan, np.nan)
    return {
        "detected": binomial_interval(np.isfinite(alert)),
        "detected_with_onset": binomial_interval(given),
        "premature": binomial_interval(lag[given] < 0),
        "median_lag": interval_of(np.median, late, num, seed),
        "lag_16": lag_16,
        "lag_84": lag_84,
        "median_lag_of_all": interval_of(np.median, np.where(given, lag, np.inf), num, seed),
    }


def alert_summary(
    p_epochs: NDArray, times: NDArray, y: ArrayLike, pair: ArrayLike, onset: NDArray, rate: float
) -> dict[str, float]:
    """Alerts over a season: threshold set on one half of the pairs, measured on the other.

    Args:
        p_epochs, times: P(binary) (n, T) and its grid (n, T) or (T,).
        y, pair, onset: Class, pair and onset (NaN if none) of each row (n,).
        rate: Fraction of single lenses that may ever alert.

    Returns:
        `threshold`, `rate`; on the other half `false_alarms` (fraction of `singles` that ever
        alert); of `binaries` and of those `with_onset` the values of `latency_summary`.
    """
    y, half = np.asarray(y), early.calibration_half(pair)
    peak = max_probability(p_epochs[half & (y == 0)])
    threshold = set_threshold(peak, rate).threshold if peak.size else float("nan")
    alert = early.first_alert(p_epochs, times, threshold)
    single, binary = ~half & (y == 0), ~half & (y == 1)
    latency = latency_summary(alert[binary], onset[binary], num=0)
    false_alarms = metrics.fraction(np.isfinite(alert[single]))
    result = {"threshold": threshold, "rate": rate, "false_alarms": false_alarms}
    result |= {"singles": int(single.sum()), "binaries": int(binary.sum())}
    result["with_onset"] = latency["detected_with_onset"]["of"]
    for name in ("detected", "detected_with_onset", "premature", "median_lag"):
        result[name] = latency[name]["value"]
    return result | {name: latency[name] for name in ("lag_16", "lag_84")}


def paired_latency(
    network: ArrayLike, ideal: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Network's alerts relative to an ideal observer's on the same binaries, both (n,).

    Returns:
        Counts `both`, `network_only`, `ideal_only`, `neither`; over binaries alerted by both
        `median_difference`, `mean_difference` (network minus ideal [day]), and `network_first`.
    """
    network, ideal = np.asarray(network, dtype=float), np.asarray(ideal, dtype=float)
    by_network, by_ideal = np.isfinite(network), np.isfinite(ideal)
    difference = (network - ideal)[by_network & by_ideal]
    return {
        "both": int(difference.size),
        "network_only": int((by_network & ~by_ideal).sum()),
        "ideal_only": int((~by_network & by_ideal).sum()),
        "neither": int((~by_network & ~by_ideal).sum()),
        "median_difference": interval_of(np.median, difference, num, seed),
        "mean_difference": interval_of(np.mean, difference, num, seed),
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
    """Network and ideal observers at the same fraction of twins that ever alert.

    All thresholds are set on the twins of one half of the pairs; everything is measured on the
    other half, whose rows are returned in their order.

    Args:
        curves: Matched set with `magnification`, n rows.
        p_epochs: P(binary) of the network (n, T).
        onset: Of `onset_times` (n,).
        rate: Fraction of twins that may alert.
        num_refitted: Pairs, the first ones, of the refit-limited observer; None = all.

    Returns:
        Report: `network`, `ideal` (oracle bound) and `reachable` (refit-limited bound), each
        `false_alarm_report` and `latency_summary`; `difference` and `behind_reachable`, the
        `paired_latency` of the network relative to either. And of the measured binaries (m,):
        `network`, `ideal`, `reachable` (first alerts), `onset`, `t0`, `tE`.
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
        peak, own = max_probability(p), known[name]
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
        false_alarm_rate, detected_rate: `binomial_interval` of single lenses and of binaries that
            ever alert; draws of both (beta, Jeffreys' prior) make the intervals.
        prevalence: Fraction of binaries among the events watched.

    Returns:
        Intervals of `alerts_per_1000` events and of `purity`, the fraction of the alerts that are
        binaries; NaN if nothing ever alerted.
    """
    rng, rates = np.random.default_rng(seed), (false_alarm_rate, detected_rate)

    def both(false: Any, found: Any) -> tuple[Any, Any]:
        right, wrong = prevalence * found, (1 - prevalence) * false
        with np.errstate(invalid="ignore"):
            return 1000 * (right + wrong), np.divide(right, right + wrong)

    values = both(*(np.float64(r["value"]) for r in rates))
    draws = both(*(rng.beta(r["hits"] + 0.5, r["of"] - r["hits"] + 0.5, size=DRAWS) for r in rates))
    result = {}
    for name, value, drawn in zip(("alerts_per_1000", "purity"), values, draws, strict=True):
        # A count of zero or of all lies at the end of its range, outside a central interval.
        low, high = np.quantile(drawn, [0.025, 0.975])
        three = value, np.fmin(low, value), np.fmax(high, value)
        result[name] = dict(zip(("value", "low", "high"), map(float, three), strict=True))
    return result
