"""Alerts under a controlled false-alarm rate: threshold of a season, latency, purity.

A threshold is tested at every epoch of a season, so a false alarm is a single lens that *ever*
exceeds it. The same rule is applied to the ideal observers. Axes: n rows, T epochs, K edges. Times
in days; NaN where no alert was given. `num`, `seed`: resamples of events behind each interval.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.evaluation import anomaly_finder, metrics
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation.early_detection import first_alert
from lensml.evaluation.metrics import binomial_interval
from lensml.network import PHASE_EDGES, max_probability
from lensml.simulation import LightCurves

FOLDS = 10  # of the pairs; nine set the thresholds at which the tenth is measured
FEWEST = 20  # events for which an interval is given
DRAWS = 20_000  # behind the intervals of `alert_rate_and_purity`


def season_policy(set_on: ArrayLike, fresh: ArrayLike, rate: float = 0.01) -> dict[str, Any]:
    """Threshold that at most `rate` of single lenses ever exceed, and how it holds on others.

    Of the highest P(binary) over a season of single lenses that set it and of those that measure
    it, (n,) and (m,). Returns `threshold`, `rate`, `set_on` = n, `false_alarms` (fraction of fresh
    that alert) and `expected`: whatever the distribution of scores, the fraction above a threshold
    that k of n others exceed is Beta(k + 1, n - k) distributed (order statistics; Wilks 1941).
    """
    set_on = np.asarray(set_on, dtype=float)
    threshold = metrics.threshold_at_fpr(set_on, rate)
    a = 1 + int((set_on > threshold).sum())
    low, high = metrics.beta_interval(a, b := set_on.size + 1 - a)
    report = {"threshold": threshold, "rate": rate, "set_on": set_on.size}
    report["expected"] = {"value": a / (a + b), "low": low, "high": high}
    return report | {"false_alarms": binomial_interval(np.asarray(fresh) > threshold)}


def median_interval(values: NDArray, num: int, seed: int) -> dict[str, float]:
    """Median of events (n,) with its bootstrap interval, from 20 events on, and `of` = n."""
    median = float(np.median(values)) if values.size else np.nan
    result = {"value": median, "low": np.nan, "high": np.nan, "of": values.size}
    if values.size < FEWEST:
        return result
    alone = np.full(values.size, -1)
    return result | metrics.bootstrap(np.median, [values], alone, num=num, seed=seed)


def latency_summary(
    alert: ArrayLike, onset: ArrayLike, *, num: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Detection of binaries and latency of their alerts after the onset of the anomaly, (n,).

    Returns `detected` (fraction of all), `detected_with_onset` and `premature` (fraction of the
    alerts on binaries with a known onset that came before it); `median_lag` of all these alerts,
    premature ones negative, and `median_lag_after_onset` of the others [day].
    """
    alert, onset = np.asarray(alert, dtype=float), np.asarray(onset, dtype=float)
    given = np.isfinite(alert[np.isfinite(onset)])
    lag = (alert - onset)[np.isfinite(onset)][given]
    return {
        "detected": binomial_interval(np.isfinite(alert)),
        "detected_with_onset": binomial_interval(given),
        "premature": binomial_interval(lag < 0),
        "median_lag": median_interval(lag, num, seed),
        "median_lag_after_onset": median_interval(lag[lag >= 0], num, seed),
    }


def cross_fitted_alerts(
    score: NDArray, times: NDArray, y: ArrayLike, pair: ArrayLike, rate: float
) -> tuple[NDArray, float]:
    """First alert of every row (n,), at the threshold that the other FOLDS of the pairs set.

    Every row is measured and none sets its own threshold; the realised rate scatters less about
    `rate` than with two halves. Pairs, and two lone rows, which come as single, binary, stay
    together. Also returns the median of the thresholds.
    """
    single, pair = np.asarray(y) == 0, np.asarray(pair)
    fold = np.where(pair >= 0, pair, np.arange(pair.size) // 2) % FOLDS
    first, peak, thresholds = np.full(len(score), np.nan), max_probability(score), []
    for k in np.unique(fold):
        rows, others = fold == k, peak[(fold != k) & single]
        thresholds.append(metrics.threshold_at_fpr(others, rate))
        first[rows] = first_alert(score[rows], times[rows], thresholds[-1])
    return first, float(np.median(thresholds))


def season_report(
    score: NDArray, times: NDArray, y: ArrayLike, pair: ArrayLike, onset: NDArray, rate: float,
    *, num: int = 400, seed: int = 0,
) -> tuple[dict[str, Any], NDArray]:  # fmt: skip
    """Alerts of one observer over a season where `rate` of the single lenses may ever alert.

    `score`, NaN where there is none, and `times` [day] are (n, T). Returns `rate`, `threshold`,
    `false_alarms` (fraction of the single lenses that alert, `cross_fitted_alerts`) with the
    `latency_summary` of the binaries; and the first alert of each row (n,).
    """
    first, threshold = cross_fitted_alerts(score, times, y, pair, rate)
    single = np.asarray(y) == 0
    report = {"rate": rate, "threshold": threshold}
    report["false_alarms"] = binomial_interval(np.isfinite(first[single]))
    return report | latency_summary(first[~single], onset[~single], num=num, seed=seed), first


def observer_scores(curves: LightCurves, p_epochs: NDArray) -> dict[str, NDArray]:
    """Score of each observer at every epoch of a matched set, (n, T); NaN where none.

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
    curves: LightCurves, scores: Mapping[str, NDArray], onset: NDArray,
    rates: Sequence[float] = (0.02,), *, num: int = 400, seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray]]:  # fmt: skip
    """Observers at equal fractions of twins that ever alert, on the same pairs.

    `scores` are `observer_scores` of a matched set, `network` first, `onset` its `onset_times`.
    Returns by observer the `season_report` at the first of `rates`; `by_rate`, its main numbers at
    each; and `behind`, over binaries alerted by both the `median_difference` (network minus
    observer [day]) and how often `network_first`. And of the binaries (m,): first alerts by
    observer, `onset`, `t0`, `tE`.
    """
    binary, options = curves.y == 1, {"num": num, "seed": seed}
    report, binaries = {}, {"onset": onset[binary]}
    binaries |= {name: curves.param(name)[binary] for name in ("t0", "tE")}
    keys = "false_alarms", "detected", "median_lag"
    for name, score in scores.items():
        columns = score, curves.times(), curves.y, curves.pair, onset
        runs = [season_report(*columns, rate, **options) for rate in rates]
        by_rate = {f"{100 * run['rate']:g} %": {k: run[k] for k in keys} for run, _ in runs}
        report[name], binaries[name] = runs[0][0] | {"by_rate": by_rate}, runs[0][1][binary]
        later = binaries["network"] - binaries[name]
        later = later[np.isfinite(later)]
        report[name]["behind"] = {
            "median_difference": median_interval(later, num, seed),
            "network_first": binomial_interval(later < 0),
        }
    report["network"].pop("behind")
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
    false_alarm_rate: Mapping[str, float], detected_rate: Mapping[str, float], prevalence: float,
    *, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Alerts per 1000 events and their purity where a fraction `prevalence` is binary.

    Draws (beta, Jeffreys' prior) of both `binomial_interval`s, of single lenses and of binaries
    that ever alert, make the intervals of `alerts_per_1000` and of `purity`, the fraction of the
    alerts that are binaries; NaN if nothing ever alerted.
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
