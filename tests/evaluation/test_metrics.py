"""Metrics against scikit-learn, closed forms and counting by hand."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm
from sklearn import metrics as reference
from sklearn.isotonic import IsotonicRegression

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


def test_recall_of_equal_anomalies_is_the_closed_form():
    dchi2 = 9.0
    y, ratio, _, _ = pairs(np.full(60_000, dchi2))
    expected = norm.cdf(np.sqrt(dchi2) - norm.ppf(0.99))
    assert metrics.recall_at_fpr(y, ratio, 0.01) == pytest.approx(
        expected, abs=0.015
    )  # 3 s.e. of the 1 % quantile
    assert metrics.roc_auc(y, ratio) == pytest.approx(norm.cdf(np.sqrt(dchi2 / 2)), abs=0.003)


def test_calibration_error_counted_by_hand():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    r = metrics.reliability(y, p, bins=10)
    np.testing.assert_allclose(r["predicted"], [0.1, 0.9])
    np.testing.assert_allclose(r["observed"], [0.25, 0.75])
    np.testing.assert_array_equal(r["count"], [4, 4])
    assert (r["low"] < r["observed"]).all() and (r["observed"] < r["high"]).all()
    assert metrics.ece(y, p) == pytest.approx(0.15)
    # 0.15^2 - 0.25 * 0.75 / 3 < 0: eight rows cannot show this gap
    assert metrics.ece(y, p, debiased=True) == 0
    # 0.15^2 - 0.1875 / 399
    many = metrics.ece(np.tile(y, 100), np.tile(p, 100), debiased=True)
    assert many == pytest.approx(np.sqrt(0.15**2 - 0.1875 / 399))


def test_debiasing_removes_what_chance_adds():
    rng = np.random.default_rng(2)

    def squares(size):
        p = rng.uniform(size=size)
        y = rng.uniform(size=size) < p**2  # overconfident
        return metrics.ece(y, p, debiased=True) ** 2, metrics.ece(y, p)

    truth, plain_truth = squares(1_000_000)
    small = np.mean([squares(300) for _ in range(300)], axis=0)
    assert small[0] == pytest.approx(truth, rel=0.05)
    assert small[1] > 1.01 * plain_truth


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


def test_isotonic_fit_agrees_with_scikit_learn():
    hits = np.random.default_rng(3).uniform(size=200) < np.linspace(0, 1, 200)
    expected = IsotonicRegression().fit_transform(np.arange(200), hits)
    np.testing.assert_allclose(metrics.isotonic_regression(hits), expected, atol=1e-12)


def test_ideal_observer_finds_half_at_its_closed_form():
    # Recall at own twins' 1 % is Phi(sqrt(D) - 2.326): one half at 2.326^2 = 5.41; the bin 0-9
    # shares one threshold, so draw the twins of that bin alone and compare with the same integral.
    dchi2 = 10 ** np.random.default_rng(4).uniform(-1, 3, 20_000)
    y, ratio, rows, pair = pairs(dchi2)
    small = dchi2[dchi2 < 9]
    grid = np.linspace(-10, 10, 4001)
    pooled = norm.cdf(-(grid[:, None] + small[::20] / 2) / np.sqrt(small[::20])).mean(axis=1)
    threshold = grid[np.searchsorted(-pooled, -0.01)]
    half = 2 * threshold  # the binaries' ratio has mean D/2
    assert metrics.dchi2_50(y, ratio, rows) == pytest.approx(half, rel=0.15)
    flat = np.zeros(y.size)
    assert metrics.dchi2_50(y, flat, rows) == np.inf


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


def test_an_exact_interval_of_a_fraction_has_its_tails():
    got = metrics.binomial_interval(np.arange(200) < 3)
    assert binom.sf(2, 200, got["low"]) == pytest.approx(0.025)
    assert binom.cdf(3, 200, got["high"]) == pytest.approx(0.025)
    assert metrics.binomial_interval([False] * 9)["low"] == 0
    assert metrics.binomial_interval([True] * 9)["high"] == 1
    assert np.isnan(metrics.binomial_interval([])["value"])


@pytest.mark.parametrize("method", ["exact", "wilson"])
@pytest.mark.parametrize("hits", [0, 3, 20])
def test_binomial_intervals_agree_with_scipy(method, hits):
    got = metrics.binomial_interval(np.arange(20) < hits, method)
    expected = binomtest(hits, 20).proportion_ci(method=method)
    assert (got["low"], got["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)
