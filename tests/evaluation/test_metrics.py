"""Metrics against scikit-learn, closed forms and counting by hand."""

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, norm
from sklearn import metrics as reference

from lensml.evaluation import metrics


@pytest.fixture
def scores():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 400)
    return y, np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1), 2)  # rounded: many ties


def pairs(dchi2, seed=0):
    """Rows (twin, binary) of the ideal observer: normal with mean -+D/2 and variance D."""
    rng = np.random.default_rng(seed)
    dchi2 = np.repeat(dchi2, 2)
    y = np.tile([0, 1], dchi2.size // 2)
    ratio = rng.normal((y - 0.5) * dchi2, np.sqrt(dchi2))
    return y, ratio, dchi2, np.repeat(np.arange(y.size // 2), 2)


def test_ranking_agrees_with_scikit_learn(scores):
    y, p = scores
    assert metrics.roc_auc(y, p) == pytest.approx(reference.roc_auc_score(y, p), abs=1e-12)
    ap = reference.average_precision_score(y, p)
    assert metrics.average_precision(y, p) == pytest.approx(ap, abs=1e-12)


def test_calls_agree_with_scikit_learn(scores):
    y, p = scores
    call = p > 0.5
    np.testing.assert_array_equal(
        metrics.confusion_matrix(y, p), reference.confusion_matrix(y, call)
    )
    assert metrics.accuracy(y, p) == reference.accuracy_score(y, call)
    assert metrics.balanced_accuracy(y, p) == pytest.approx(
        reference.balanced_accuracy_score(y, call)
    )
    assert metrics.brier(y, p) == pytest.approx(reference.brier_score_loss(y, p))


def test_a_tie_at_the_threshold_is_no_detection():
    y = np.array([0, 0, 1, 1])
    constant = np.full(4, 0.5)
    assert metrics.recall_at_fpr(y, constant, 0.01) == 0
    assert metrics.recall_at_fpr(y, constant, 1.0) == 1
    assert metrics.confusion_matrix(y, constant).tolist() == [[2, 0], [2, 0]]
    assert metrics.roc_auc(y, constant) == 0.5


@pytest.mark.parametrize(
    "rate, threshold", [(0, 99), (0.01, 98), (0.019, 98), (0.02, 97), (0.5, 49)]
)
def test_no_more_false_positives_than_the_rate(rate, threshold):
    twins = np.arange(100.0)
    assert metrics.threshold_at_fpr(twins, rate) == threshold
    assert np.mean(twins > threshold) <= rate


def test_found_takes_its_threshold_from_the_singles():
    y = np.array([0] * 100 + [1, 1])
    rank = np.array([*np.linspace(0, 1, 100), 0.995, 0.5])
    assert metrics.detected(y, rank).tolist() == [True, False]


def test_recall_of_equal_anomalies_is_the_closed_form():
    dchi2 = 9.0
    y, ratio, _, _ = pairs(np.full(60_000, dchi2))
    expected = norm.cdf(np.sqrt(dchi2) - norm.ppf(0.99))
    assert metrics.recall_at_fpr(y, ratio, 0.01) == pytest.approx(
        expected, abs=0.015
    )  # 3 s.e. of the 1 % quantile
    assert metrics.roc_auc(y, ratio) == pytest.approx(norm.cdf(np.sqrt(dchi2 / 2)), abs=0.003)


def test_reliability_counted_by_hand():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    r = metrics.reliability(y, p, bins=10)
    np.testing.assert_allclose(r["predicted"], [0.1, 0.9])
    np.testing.assert_allclose(r["observed"], [0.25, 0.75])
    np.testing.assert_array_equal(r["count"], [4, 4])
    assert np.isnan(r["low"]).all()  # four rows have no interval
    r = metrics.reliability(np.tile(y, 5), np.tile(p, 5), bins=10)
    assert (r["low"] < r["observed"]).all() and (r["observed"] < r["high"]).all()


def test_certain_rows_fall_in_the_last_bin():
    assert metrics.reliability([1, 1], [1.0, 0.0])["count"].tolist() == [1, 1]


def test_recall_by_bin_takes_its_false_positives_from_the_bin():
    # Twins of large anomalies score high: a pooled threshold would hide the small anomalies.
    y = np.tile([0, 1], 200)
    dchi2 = np.repeat([4.0, 50.0], 200)
    p = np.where(dchi2 < 9, 0.1, 0.6) + 0.2 * y
    table = {row["bin"]: row for row in metrics.recall_by_dchi2(y, p, dchi2, rate=0.01)}
    assert list(table) == ["0-9", "9-25", "25-75", "75-160", "160-500", "500-2k", "2k-10k", ">10k"]
    assert table["0-9"]["recall"] == table["25-75"]["recall"] == 1
    assert table["0-9"]["recall_pooled"] == 0 and table["25-75"]["recall_pooled"] == 1
    assert table["0-9"]["threshold_from"] == "bin" and table["0-9"]["twins"] == 100
    assert np.isnan(table[">10k"]["recall"]) and table[">10k"]["binaries"] == 0


def test_a_bin_of_few_twins_takes_the_pooled_threshold_and_says_so():
    y, ratio, dchi2, _ = pairs(np.r_[np.full(99, 4.0), np.full(901, 50.0)])
    table = {row["bin"]: row for row in metrics.recall_by_dchi2(y, ratio, dchi2, rate=0.01)}
    assert table["0-9"]["threshold_from"] == "pooled"
    assert table["0-9"]["recall"] == table["0-9"]["recall_pooled"]
    assert table["25-75"]["threshold_from"] == "bin"


def test_rounding_below_zero_belongs_to_the_first_bin():
    rows = metrics.recall_by_dchi2([0, 1], [0.2, 0.8], [-1e-12, -1e-12], rate=0.01)
    assert rows[0]["binaries"] == 1


def test_rows_by_delta_chi2_hold_wilson_and_the_closed_form_at_their_own_strengths():
    dchi2 = np.r_[np.full(30, 4.0), np.full(19, 36.0)]
    y, ratio, rows, _ = pairs(dchi2)
    table = {row["bin"]: row for row in metrics.recall_by_dchi2(y, ratio, rows, rate=0.1)}
    weak, strong = table["0-9"], table["25-75"]
    test = binomtest(round(weak["recall"] * 30), 30).proportion_ci(method="wilson")
    assert (weak["recall_low"], weak["recall_high"]) == pytest.approx((test.low, test.high))
    assert weak["median"] == 4 and strong["median"] == 36
    assert weak["ideal"] == pytest.approx(norm.cdf(2 - norm.ppf(0.9)))
    assert np.isnan([strong["recall_low"], strong["recall_high"]]).all()  # fewer than twenty
    assert np.isnan(table[">10k"]["ideal"])


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_thresholds_follow_the_twins_that_are_near_and_pass_the_rate(rate):
    rng = np.random.default_rng(6)
    dchi2 = np.repeat(10 ** rng.uniform(-1, 3, 20_000), 2)
    y = np.tile([0, 1], 20_000)
    score = rng.normal(np.log(dchi2))  # twins score higher where the anomaly is strong
    threshold = metrics.neighbour_thresholds(y, score, dchi2, rate)
    passed = rng.normal(np.log(dchi2)) > threshold  # fresh twins
    for low in (0.1, 1, 10, 100):  # a threshold is itself uncertain by half of its rate
        near = (dchi2 >= low) & (dchi2 < 10 * low)
        assert passed[near].mean() == pytest.approx(rate, rel=0.3)
    assert passed.mean() == pytest.approx(rate, rel=0.15)


def test_too_few_twins_for_the_neighbours_are_all_used():
    y, p = np.tile([0, 1], 50), np.linspace(0, 1, 100)
    threshold = metrics.neighbour_thresholds(y, p, np.arange(100.0), 0.01)
    assert np.ptp(threshold) == 0 and threshold[0] == p[98]  # the largest of all fifty
    assert np.isneginf(metrics.neighbour_thresholds([1], [0.3], [2.0], 0.01)).all()


def search(dchi2, trials, rng):
    """Rows of a search: the largest of `trials` normal deviates, of which one holds the anomaly."""
    y, strength = np.tile([0, 1], dchi2.size), np.sqrt(np.repeat(dchi2, 2))
    score = strength * y + rng.normal(size=y.size)
    if trials > 1:
        others = norm.ppf(rng.random(y.size) ** (1 / (trials - 1)))
        score = np.maximum(score, others)
    return y, score, strength**2


def search_half(trials, rate):
    """Its delta-chi2 at 50 % recall in closed form."""
    threshold = -norm.ppf(-np.expm1(np.log1p(-rate) / trials))
    quiet = norm.cdf(threshold) ** (trials - 1)  # no other trial passes
    return brentq(lambda d: 0.5 - quiet * norm.cdf(threshold - np.sqrt(d)), 0.1, 100)


@pytest.mark.parametrize("rate", [0.01, 0.001])
@pytest.mark.parametrize("trials", [2, 140, 1700])
def test_half_recall_of_a_search_is_unbiased_on_sets_as_the_baseline_draws_them(trials, rate):
    """Within 3 % and three standard errors of the mean over 24 sets of 6,000 pairs."""
    rng = np.random.default_rng(7)
    sets = (10 ** rng.normal(-0.5, 2.2, 6000) for _ in range(24))
    found = [metrics.dchi2_50(*search(dchi2, trials, rng), rate) for dchi2 in sets]
    truth = search_half(trials, rate)
    assert abs(np.mean(found) / truth - 1) < 0.03 + 3 * np.std(found) / np.sqrt(24) / truth
    assert np.std(found) < (1.0 if rate == 0.01 else 1.6)


@pytest.mark.parametrize("name", metrics.IDEAL_HALF)
def test_half_recall_of_the_ideal_observer_is_its_closed_form(name):
    """Strengths so dense that the neighbours of a binary are as strong as it is; four sets."""
    rng, found = np.random.default_rng(8), []
    for seed in range(4):
        y, ratio, rows, _ = pairs(rng.uniform(0.5, 40, 60_000), seed)
        found.append(metrics.STATISTICS[name](y, ratio, ratio, rows))
    expected = metrics.IDEAL_HALF[name]["value"]
    assert expected == pytest.approx({1: 5.41, 0: 9.55}[name == "dchi2_at_half_recall"], abs=0.01)
    assert np.mean(found) == pytest.approx(expected, rel=0.05)


def test_its_interval_holds_the_truth():
    rng, inside = np.random.default_rng(9), 0
    for seed in range(20):
        columns = search(10 ** rng.uniform(-1, 4, 1000), 140, rng)
        got = metrics.bootstrap(metrics.dchi2_50, columns, np.arange(2000) // 2, num=40, seed=seed)
        inside += got["low"] < search_half(140, 0.01) < got["high"]
    assert inside >= 15  # 95 %: fewer is seen once in ten thousand


def test_lapses_at_strong_anomalies_do_not_move_the_half_recall():
    rng = np.random.default_rng(10)
    y, score, dchi2 = search(10 ** rng.normal(-0.5, 2.2, 6000), 140, rng)
    before = metrics.dchi2_50(y, score, dchi2)
    lapse = (y == 1) & (dchi2 > 150) & (rng.random(y.size) < 0.1)
    assert metrics.dchi2_50(y, np.where(lapse, 0, score), dchi2) == pytest.approx(before, rel=0.01)


def test_half_recall_needs_detections_twins_and_a_crossing():
    rng = np.random.default_rng(11)
    y, score, dchi2 = search(10 ** rng.uniform(0, 4, 1000), 140, rng)
    assert np.isfinite(metrics.dchi2_50(y, score, dchi2))
    assert np.isnan(metrics.dchi2_50(y, np.zeros(y.size), dchi2))  # nothing is ever found
    assert np.isnan(metrics.dchi2_50(y, score, dchi2, 0.001))  # 1,000 twins cannot show 0.1 %
    strong = dchi2 > 100
    assert np.isnan(metrics.dchi2_50(y[strong], score[strong], dchi2[strong]))  # all are found
    unknown = np.append(dchi2, np.nan)
    again = metrics.dchi2_50(np.append(y, 1), np.append(score, 0), unknown)
    assert again == metrics.dchi2_50(y, score, dchi2)


def test_bootstrap_interval_has_the_width_of_the_pairs():
    rng = np.random.default_rng(5)
    x = rng.normal(size=500)
    values, pair = np.repeat(x, 2), np.repeat(np.arange(500), 2)
    shuffle = rng.permutation(1000)
    got = metrics.bootstrap(np.mean, [values[shuffle]], pair[shuffle], num=1000, seed=1)
    width = 2 * 1.96 / np.sqrt(500)  # rows of a pair are the same number: 500, not 1000, draws
    assert got["high"] - got["low"] == pytest.approx(width, rel=0.1)
    assert got["value"] == values.mean() and got["low"] < got["value"] < got["high"]
    again = metrics.bootstrap(np.mean, [values[shuffle]], pair[shuffle], num=1000, seed=1)
    assert again == got


def perfect(n):
    """Every row right: class, score, probability, delta-chi2, and pairs."""
    y = np.tile([0, 1], n)
    return (y, 0.1 + 0.8 * y, 0.1 + 0.8 * y, np.full(2 * n, 50.0)), np.repeat(np.arange(n), 2)


def test_the_interval_of_a_fraction_is_never_a_point():
    names = ("accuracy", "balanced_accuracy", "recall_at_1pct", "roc_auc", "average_precision")
    table = metrics.score_table(*perfect(48), names, num=20, seed=0)
    wilson = binomtest(48, 48).proportion_ci(method="wilson").low
    assert wilson == pytest.approx(0.93, abs=0.005)
    for name in names[2:]:
        assert (table[name]["low"], table[name]["high"]) == pytest.approx((wilson, 1)), name
    assert wilson < table["balanced_accuracy"]["low"] < table["accuracy"]["low"] + 0.02 < 1
    (y, score, p, dchi2), pair = perfect(48)
    none = metrics.score_table((y, -score, p, dchi2), pair, ["recall_at_1pct"], num=20, seed=0)
    assert none["recall_at_1pct"]["value"] == 0 and 0.05 < none["recall_at_1pct"]["high"] < 0.1


def test_an_interval_is_no_narrower_than_wilsons_and_keeps_a_wider_bootstrap():
    rng = np.random.default_rng(12)
    y, pair = np.tile([0, 1], 300), np.repeat(np.arange(300), 2)
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
    columns = (y, p, p, np.full(600, 9.0))
    got = metrics.score_table(columns, pair, ["accuracy", "recall_at_1pct"], num=100, seed=0)
    low, high = metrics.wilson_interval(got["accuracy"]["value"], 600)
    assert got["accuracy"]["low"] <= low and got["accuracy"]["high"] >= high
    wilson = metrics.wilson_interval(got["recall_at_1pct"]["value"], 300)
    width = got["recall_at_1pct"]["high"] - got["recall_at_1pct"]["low"]
    assert width > wilson[1] - wilson[0]  # the threshold is uncertain, too


def test_fewer_than_twenty_events_have_no_interval():
    values = np.arange(19.0)
    assert np.isnan(metrics.bootstrap(np.mean, [values], np.full(19, -1))["high"])
    assert np.isfinite(metrics.bootstrap(np.mean, [np.arange(20.0)], np.full(20, -1))["high"])
    table = metrics.score_table(*perfect(19), ("accuracy", "recall_at_1pct"), num=5, seed=0)
    assert all(np.isnan([row["low"], row["high"]]).all() for row in table.values())
    assert np.isnan(metrics.wilson_interval(0.5, [19, 20])[0]).tolist() == [True, False]


def test_resampling_keeps_pairs_together_and_single_rows_apart():
    pair = np.array([7, -1, 7, 3, -1, 3])
    for rows in metrics.cluster_bootstrap(pair, 50, seed=0):
        count = np.bincount(rows, minlength=6)
        assert count[0] == count[2] and count[3] == count[5]
        assert count[0] + count[1] + count[3] + count[4] == 4  # four groups are drawn
    counts = [np.bincount(r, minlength=6) for r in metrics.cluster_bootstrap(pair, 50, seed=0)]
    assert any(c[1] != c[4] for c in counts)


def test_one_class_has_no_ranking():
    for statistic in (metrics.roc_auc, metrics.balanced_accuracy):
        assert np.isnan(statistic([1, 1], [0.2, 0.3]))
    assert np.isnan(metrics.recall_at_fpr([0, 0], [0.2, 0.3], 0.01))
    assert np.isnan(metrics.average_precision([0, 0], [0.2, 0.3]))


def test_missing_scores_are_named():
    with pytest.raises(ValueError, match="NaN in 1 rows, first row 1"):
        metrics.roc_auc([0, 1], [0.1, np.nan])


@pytest.mark.parametrize("hits", [0, 3, 20])
def test_binomial_intervals_agree_with_scipy(hits):
    got = metrics.binomial_interval(np.arange(20) < hits)
    expected = binomtest(hits, 20).proportion_ci(method="wilson")
    assert (got["low"], got["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert got["value"] == hits / 20 and got["hits"] == hits and got["of"] == 20


def test_few_or_no_events_have_a_value_but_no_interval():
    few = metrics.binomial_interval([True] * 9)
    assert few["value"] == 1 and few["of"] == 9 and np.isnan([few["low"], few["high"]]).all()
    assert np.isnan(metrics.binomial_interval([])["value"])
