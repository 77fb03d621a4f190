"""Alerts under a controlled false-alarm rate: threshold of a season, latency, purity.

A threshold is tested at every epoch of a season, so a false alarm is a single lens that *ever*
exceeds it. The same rule is applied to the ideal observers. Axes: n rows, T epochs, K edges. Times
in days; NaN where no alert was given. `num`, `seed`: resamples of events behind each interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import anomaly_finder, metrics
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation.early_detection import first_alert, fold_of
from lensml.evaluation.metrics import binomial_interval
from lensml.network import PHASE_EDGES, max_probability
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
        return first_alert(p_epochs, times, self.threshold)


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


def median_interval(values: NDArray, num: int, seed: int) -> dict[str, float]:
    """Median of independent events (n,) with its bootstrap interval and `of` = n; NaN for none."""
    if not values.size:
        return {"value": np.nan, "low": np.nan, "high": np.nan, "of": 0}
    alone = np.full(values.size, -1)
    return metrics.bootstrap(np.median, [values], alone, num=num, seed=seed) | {"of": values.size}


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
        all of these alerts [day], a premature one counting as negative, with `lag_16`, `lag_84`;
        `median_lag_after_onset` over those that are not premature.
    """
    alert, onset = np.asarray(alert, dtype=float), np.asarray(onset, dtype=float)
    given = np.isfinite(alert[np.isfinite(onset)])
    lag = (alert - onset)[np.isfinite(onset)][given]
    lag_16, lag_84 = np.quantile(lag, [0.16, 0.84]).tolist() if lag.size else (np.nan, np.nan)
    return {
        "detected": binomial_interval(np.isfinite(alert)),
        "detected_with_onset": binomial_interval(given),
        "premature": binomial_interval(lag < 0),
        "median_lag": median_interval(lag, num, seed),
        "lag_16": lag_16,
        "lag_84": lag_84,
        "median_lag_after_onset": median_interval(lag[lag >= 0], num, seed),
    }


def cross_fitted_alerts(
    score: NDArray, times: NDArray, y: ArrayLike, pair: ArrayLike, rate: float
) -> tuple[NDArray, float]:
    """First alert of every row (n,), at the threshold that the other folds of the pairs set.

    Every row is measured and none sets its own threshold. The realised fraction of single lenses
    that alert scatters less about `rate` than with two halves, so that observers are compared at
    equal rates. Also returns the median of the thresholds.
    """
    first, fold, single = np.full(len(score), np.nan), fold_of(pair), np.asarray(y) == 0
    peak, thresholds = max_probability(score), []
    for k in np.unique(fold):
        rows, others = fold == k, peak[(fold != k) & single]
        thresholds.append(metrics.threshold_at_fpr(others, rate))
        first[rows] = first_alert(score[rows], times[rows], thresholds[-1])
    return first, float(np.median(thresholds))


def season_report(
    score: NDArray,
    times: NDArray,
    y: ArrayLike,
    pair: ArrayLike,
    onset: NDArray,
    rate: float,
    *,
    num: int = 400,
    seed: int = 0,
) -> tuple[dict[str, Any], NDArray]:
    """Alerts of one observer over a season at a controlled fraction of alerting single lenses.

    Args:
        score, times: Score at every epoch, NaN where there is none, and its epochs, each (n, T).
        y, pair, onset: Class, pair and onset (NaN if none) of each row (n,).
        rate: Fraction of single lenses that may ever alert (`cross_fitted_alerts`).

    Returns:
        `rate`, `threshold`, `false_alarms` (fraction of the single lenses that alert, with its
        interval) and the `latency_summary` of the binaries; and the first alert of each row (n,).
    """
    first, threshold = cross_fitted_alerts(score, times, y, pair, rate)
    single = np.asarray(y) == 0
    report = {"rate": rate, "threshold": threshold}
    report["false_alarms"] = binomial_interval(np.isfinite(first[single]))
    report |= latency_summary(first[~single], onset[~single], num=num, seed=seed)
    return report, first


def paired_latency(
    network: ArrayLike, other: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Network's alerts relative to another observer's on the same binaries, both (n,).

    Returns:
        Counts `both`, `network_only`, `other_only`, `neither`; over binaries alerted by both
        `median_difference` (network minus other [day]) and `network_first`.
    """
    network, other = np.asarray(network, dtype=float), np.asarray(other, dtype=float)
    by_network, by_other = np.isfinite(network), np.isfinite(other)
    difference = (network - other)[by_network & by_other]
    return {
        "both": int(difference.size),
        "network_only": int((by_network & ~by_other).sum()),
        "other_only": int((~by_network & by_other).sum()),
        "neither": int((~by_network & ~by_other).sum()),
        "median_difference": median_interval(difference, num, seed),
        "network_first": binomial_interval(difference < 0),
    }


def observer_scores(curves: LightCurves, p_epochs: NDArray) -> dict[str, NDArray]:
    """Score of each observer at every epoch of a matched set on one grid, (n, T); NaN where none.

    `network` (`p_epochs`); `oracle`, the log-likelihood ratio with the twin of the whole curve;
    `refit_limited`, which knows the binary and fits the single lens to the prefix; and
    `template_search`, which knows neither and searches the residuals of that fit.
    """
    refits = limits.causal_refits(curves)
    return {
        "network": p_epochs,
        "oracle": limits.llr_series(curves),
        "refit_limited": limits.profile_llr_series(curves, refits),
        "template_search": anomaly_finder.template_series(curves, refits),
    }


def compare_observers(
    curves: LightCurves,
    scores: Mapping[str, NDArray],
    onset: NDArray,
    rates: Sequence[float] = (0.02,),
    *,
    num: int = 400,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray]]:
    """Observers at equal fractions of twins that ever alert, on the same pairs.

    Args:
        curves, onset: Matched set, n rows, and `onset_times` of it (n,).
        scores: By observer, `network` among them (`observer_scores`).
        rates: Fractions of twins that may alert; the first one is that of all but `by_rate`.

    Returns:
        Report by observer: `season_report`, `behind`, the `paired_latency` of the network relative
        to it, and `by_rate`, the median lag and the realised rate at each of `rates`. And of the
        binaries (m,): first alerts by observer, `onset`, `t0`, `tE`.
    """
    binary, options = curves.y == 1, {"num": num, "seed": seed}
    report, binaries = {}, {"onset": onset[binary]}
    binaries |= {name: curves.param(name)[binary] for name in ("t0", "tE")}
    for name, score in scores.items():
        columns = score, curves.times(), curves.y, curves.pair, onset
        runs = [season_report(*columns, rate, **options) for rate in rates]
        report[name], binaries[name] = runs[0][0], runs[0][1][binary]
        keys = "false_alarms", "detected", "median_lag"
        report[name]["by_rate"] = {
            f"{100 * run['rate']:g} %": {key: run[key] for key in keys} for run, _ in runs
        }
    for name in scores:
        if name != "network":
            both = (binaries[who] for who in ("network", name))
            report[name]["behind"] = paired_latency(*both, **options)
    return report, binaries


def detected_by_phase(
    alert: ArrayLike, t0: ArrayLike, tE: ArrayLike, edges: ArrayLike = PHASE_EDGES
) -> NDArray:
    """Fraction of these binaries (n,) that have alerted by each phase (t - t0) / tE, (K,).

    The last edge stands for the end of the season: its value is the fraction ever detected.
    """
    phase = (np.asarray(alert) - np.asarray(t0)) / np.asarray(tE)
    edges = np.append(np.asarray(edges, dtype=float)[:-1], np.inf)
    return np.array([metrics.fraction(phase <= edge) for edge in edges])


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
