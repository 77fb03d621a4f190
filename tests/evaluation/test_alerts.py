"""Season thresholds on fresh single lenses, latency of alerts, their rate and purity."""

from dataclasses import replace

import numpy as np
import pytest
from sets import spread_network, toy_set

from lensml.evaluation import alerts, metrics
from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.network import max_probability, predict

NAN = np.nan


@pytest.fixture(scope="module")
def network():
    return spread_network()


@pytest.mark.parametrize("rate", [0.01, 0.001])
def test_a_threshold_holds_its_rate_on_fresh_single_lenses(rate):
    """Walks of 50 epochs; the interval before measuring and the one after both hold the aim."""
    rng = np.random.default_rng(1)

    def peaks(n):
        return max_probability(1 / (1 + np.exp(-np.cumsum(rng.normal(size=(n, 50)), axis=1))))

    got = alerts.season_policy(peaks(20_000), peaks(20_000), rate)
    low, high = got["false_alarms"]["low"], got["false_alarms"]["high"]
    assert low <= 1.1 * rate and rate <= high  # the threshold is uncertain, too
    assert got["false_alarms"]["of"] == got["set_on"] == 20_000
    assert got["expected"]["low"] < rate < got["expected"]["high"]


def test_the_expected_rate_covers_the_rates_that_thresholds_turn_out_to_have():
    rng = np.random.default_rng(2)
    policies = [alerts.season_policy(rng.random(300), [0.5]) for _ in range(2000)]
    true = np.array([1 - p["threshold"] for p in policies])  # of uniform scores
    expected = policies[0]["expected"]
    assert true.mean() == pytest.approx(expected["value"], rel=0.05)
    inside = np.mean((true >= expected["low"]) & (true <= expected["high"]))
    assert inside == pytest.approx(0.95, abs=0.02)  # 4 standard errors


def test_too_few_single_lenses_give_a_wide_expected_rate():
    policy = alerts.season_policy(np.linspace(0.1, 0.9, 48), [0.95, 0.2], 0.001)
    assert policy["threshold"] == 0.9 and policy["false_alarms"]["value"] == 0.5
    assert policy["expected"]["high"] > 0.05


def test_later_data_change_no_alert_that_was_given(network):
    curves = toy_set(20, num_epochs=96)
    cut = replace(curves, **{k: getattr(curves, k)[:, :60] for k in ("X", "magnification")})
    cut = replace(cut, time=curves.time[:60])
    threshold = float(np.median(predict(network, cut).max_probability))
    before, after = (
        early.first_alert(predict(network, c).season, c.times(), threshold) for c in (cut, curves)
    )
    given = np.isfinite(before)
    assert 0 < given.sum() < len(curves)
    np.testing.assert_array_equal(after[given], before[given])
    assert not (after[~given] <= cut.time[-1]).any()


def test_latency_is_counted_by_hand():
    alert = np.array([5.0, 3.0, NAN, 9.0, 7.0, NAN])
    onset = np.array([2.0, 4.0, 1.0, 4.0, NAN, NAN])
    got = alerts.latency_summary(alert, onset)
    assert got["detected"]["value"] == pytest.approx(4 / 6) and got["detected"]["of"] == 6
    assert (got["detected_with_onset"]["hits"], got["detected_with_onset"]["of"]) == (3, 4)
    assert (got["premature"]["hits"], got["premature"]["of"]) == (1, 3)
    assert (got["median_lag"]["value"], got["median_lag"]["of"]) == (3.0, 3)  # of -1, 3 and 5
    after = got["median_lag_after_onset"]
    assert (after["value"], after["of"]) == (4.0, 2)  # of 3 and 5
    assert np.isnan(after["low"])  # too few for an interval
    silent = alerts.latency_summary([NAN, NAN], [1.0, 2.0])
    assert np.isnan(silent["median_lag"]["value"]) and silent["median_lag"]["of"] == 0
    assert np.isnan(silent["premature"]["value"])


def test_folds_of_lone_rows_hold_both_classes():
    """They come as single, binary, ...; a strong fold sets no threshold of its own."""
    score = np.full((40, 1), 0.2)
    score[[0, 1, 20, 21]] = 0.9  # two lone rows each of the first fold
    first, _ = alerts.cross_fitted_alerts(
        score, np.zeros((40, 1)), np.tile([0, 1], 20), np.full(40, -1), 0.0
    )
    assert np.flatnonzero(np.isfinite(first)).tolist() == [0, 1, 20, 21]


def test_cross_fitted_alerts_hold_their_rate_better_than_two_halves():
    rng = np.random.default_rng(7)
    pair, times, both, one = np.arange(400), np.zeros((400, 1)), [], []
    for _ in range(300):
        score = rng.random((400, 1))
        first, _ = alerts.cross_fitted_alerts(score, times, np.zeros(400), pair, 0.05)
        both.append(np.isfinite(first).mean())
        one.append(np.mean(score[::2] > metrics.threshold_at_fpr(score[1::2, 0], 0.05)))
    assert np.mean(both) == pytest.approx(19 / 361, abs=0.002)  # 18 of 360 others may
    assert np.std(both) < 0.4 * np.std(one)


def test_no_row_sets_its_own_threshold():
    score = np.linspace(0.1, 0.9, 40)[:, None]
    columns = np.zeros((40, 1)), np.zeros(40), np.arange(40), 0.05
    score[::10] += 10  # all of the first fold
    first, _ = alerts.cross_fitted_alerts(score, *columns)
    assert np.isfinite(first[::10]).all() and np.isfinite(first).sum() == 4


@pytest.fixture(scope="module")
def compared():
    """Observers of toy events; the "network" is the oracle, three epochs of 5/3 d late."""
    curves = toy_set(200, num_epochs=121, bump=3.0, sigma=0.02)
    curves = replace(curves, X=np.where(np.isnan(curves.X), curves.noise_free(), curves.X))
    late = np.hstack([np.full((400, 3), NAN), limits.llr_series(curves)[:, :-3]])
    scores = alerts.observer_scores(curves, late)
    onset = early.onset_times(curves, early.refit_prefixes(curves, 200, above=25.0))
    return alerts.compare_observers(curves, scores, onset, (0.05, 0.1), num=50)


def test_a_delayed_observer_lags_by_its_delay(compared):
    report, _ = compared
    assert report["oracle"]["behind"]["median_difference"]["value"] == pytest.approx(5.0)
    late, oracle = (report[name]["median_lag"]["value"] for name in ("network", "oracle"))
    assert late - oracle == pytest.approx(5.0, abs=1.7)  # an epoch, as fewer are alerted


def test_observers_are_compared_on_the_same_pairs_at_equal_false_alarm_rates(compared):
    report, binaries = compared
    rates = [row["false_alarms"] for row in report.values()]
    assert list(report) == ["network", "oracle", "refit_limited", "template_search"]
    assert all(rate["of"] == 200 and rate["low"] < 0.05 < rate["high"] for rate in rates)
    for name, row in report.items():
        assert row["detected"]["of"] == 200 == binaries[name].size
        assert row["by_rate"]["5 %"]["median_lag"] == row["median_lag"]
        assert row["by_rate"]["10 %"]["detected"]["hits"] >= row["detected"]["hits"]
    oracle, refit_limited = (report[k]["detected"]["hits"] for k in ("oracle", "refit_limited"))
    assert oracle >= refit_limited > 20


def test_the_last_value_by_phase_is_the_fraction_detected(compared):
    report, binaries = compared
    for name, row in report.items():
        curve = alerts.detected_by_phase(binaries[name], binaries["t0"], binaries["tE"])
        assert curve[-1] == row["detected"]["value"]
        assert (np.diff(curve) >= 0).all()


def test_alerts_accumulate_over_the_phase():
    alert = np.array([8.0, 10.0, 14.0, NAN])
    got = alerts.detected_by_phase(alert, np.full(4, 10.0), np.full(4, 2.0), [-2, -1, 0, 1])
    np.testing.assert_allclose(got, [0, 0.25, 0.5, 0.75])  # the last alert comes at phase 2


def test_purity_of_a_counted_population_is_what_the_formula_says():
    rng = np.random.default_rng(5)
    binary = rng.random(200_000) < 0.1
    alert = rng.random(binary.size) < np.where(binary, 0.4, 0.01)
    got = alerts.alert_rate_and_purity(
        metrics.binomial_interval(rng.random(5000) < 0.01),
        metrics.binomial_interval(rng.random(2000) < 0.4),
        0.1,
    )
    assert got["alerts_per_1000"]["low"] < 1000 * alert.mean() < got["alerts_per_1000"]["high"]
    assert got["purity"]["low"] < binary[alert].mean() < got["purity"]["high"]
    exact = alerts.alert_rate_and_purity(
        {"value": 0.01, "hits": 10, "of": 1000}, {"value": 0.5, "hits": 50, "of": 100}, 0.01
    )
    assert exact["alerts_per_1000"]["value"] == pytest.approx(14.9)
    assert exact["purity"]["value"] == pytest.approx(0.005 / 0.0149)


def test_no_false_alarm_yet_is_not_certainty():
    got = alerts.alert_rate_and_purity(
        metrics.binomial_interval([False] * 50), metrics.binomial_interval([True] * 10), 0.01
    )
    assert got["purity"]["value"] == 1 and got["purity"]["low"] < 0.5
    none = alerts.alert_rate_and_purity(
        metrics.binomial_interval([False] * 9), metrics.binomial_interval([False] * 9), 0.1
    )
    assert np.isnan(none["purity"]["value"])


def test_a_season_is_measured_at_the_threshold_of_the_other_folds():
    times = np.tile(np.arange(10.0), (8, 1))
    p = np.full((8, 10), 0.1)
    pair, y = np.repeat(np.arange(4), 2), np.tile([0, 1], 4)
    p[0, 4] = 0.6  # highest single of all but pair 3: the threshold of pair 3
    p[6, 3] = 0.7  # the single of pair 3 passes it, and is the threshold of the others
    p[3, 6:] = 0.9  # binary of pair 1: onset at 4, alert at 6
    p[7, 2] = 0.65  # binary of pair 3: alert at 2 before its onset at 5
    p[5, 8] = 0.65  # binary of pair 2: below its threshold
    onset = np.array([NAN, 1, NAN, 4.0, NAN, 1, NAN, 5.0])
    got, first = alerts.season_report(p, times, y, pair, onset, 0.01)
    assert got["threshold"] == 0.7
    assert (got["false_alarms"]["hits"], got["false_alarms"]["of"]) == (1, 4)
    assert got["detected"]["value"] == 0.5 and got["detected_with_onset"]["of"] == 4
    assert got["premature"]["value"] == 0.5 and got["median_lag"]["value"] == -0.5
    np.testing.assert_array_equal(first, [NAN] * 3 + [6.0, NAN, NAN, 3.0, 2.0])
