"""Calibration errors hold the truth, and Bayes' formula is checked on a drawn population."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from lensml.evaluation import calibration, metrics
from lensml.simulation import FRACTIONS


def drawn(n, seed=0):
    """Calls in log-odds that are right, and the classes they are right about, half binary."""
    rng = np.random.default_rng(seed)
    y = np.tile([0, 1], n // 2)
    strength = 10 ** rng.uniform(-1, 1, n)  # of a normal log-likelihood ratio
    return y, rng.normal((y - 0.5) * strength, np.sqrt(strength))


def test_prevalence_is_bayes_formula_and_certainty_stays():
    p = np.array([0.0, 1e-9, 0.2, 0.5, 0.9, 1.0])
    direct = 0.01 * p / 0.3 / (0.01 * p / 0.3 + 0.99 * (1 - p) / 0.7)
    np.testing.assert_allclose(calibration.prior_shift(p, 0.01, 0.3), direct, rtol=1e-12)
    np.testing.assert_allclose(calibration.prior_shift(p, 0.3, 0.3), p, rtol=1e-12)
    assert calibration.prior_shift([0.0, 1.0], 1e-6).tolist() == [0, 1]
    back = calibration.prior_shift(calibration.prior_shift(p, 0.01), 0.5, 0.01)
    np.testing.assert_allclose(back, p, rtol=1e-9)


def test_calls_are_calibrated_in_a_population_of_one_binary_in_a_hundred():
    rng = np.random.default_rng(7)
    y = rng.random(400_000) < 0.01
    x = rng.normal(y * 2.0)
    balanced = norm.pdf(x, 2) / (norm.pdf(x, 2) + norm.pdf(x))  # what equal classes teach
    rare = calibration.prior_shift(balanced, 0.01)
    assert calibration.ece(y, balanced) > 0.1
    assert calibration.ece(y, rare) < 0.001
    assert rare.mean() == pytest.approx(0.01, abs=6e-4)


def test_precision_at_a_prevalence_is_that_of_a_population_drawn_there():
    rng = np.random.default_rng(8)
    precision = {}
    for binaries in (0.5, 0.05):
        y = rng.random(400_000) < binaries
        x = rng.normal(y * 2.0)
        p = norm.pdf(x, 2) / (norm.pdf(x, 2) + norm.pdf(x))
        found = calibration.at_prevalence(y, p, 0.05)
        called = calibration.prior_shift(p, 0.05) > 0.5
        precision[binaries] = y[called].mean() if binaries == 0.05 else found["precision"]
        assert found["recall"] == called[y].mean() and found["prevalence"] == 0.05
    assert precision[0.5] == pytest.approx(precision[0.05], abs=0.02)  # 3 standard errors


def test_without_a_call_there_is_no_precision():
    found = calibration.at_prevalence([0, 1], [0.1, 0.6], 0.01)
    assert np.isnan(found["precision"]) and found["recall"] == found["false_positive_rate"] == 0


@pytest.mark.parametrize("bad", [0, 1, -0.1])
def test_a_prevalence_outside_zero_and_one_is_named(bad):
    with pytest.raises(ValueError, match=f"`prevalence` is {bad}"):
        calibration.prior_shift(0.5, bad)


def test_table_has_every_fraction_and_sees_overconfidence():
    y, z = drawn(3000, 9)
    p = expit(np.outer(z, np.linspace(1, 3, len(FRACTIONS))))  # ever more overconfident
    pair = np.repeat(np.arange(1500), 2)
    table = calibration.calibration_table(y, p, pair, num=100)
    assert list(table) == ["0.1", "0.25", "0.33", "0.5", "0.67", "0.83", "1.0"]
    first, last = table["0.1"], table["1.0"]
    assert last["ece"] == calibration.ece(y, p[:, -1], pair) > first["ece_at_most"] > 0
    assert last["brier"] == metrics.brier(y, p[:, -1])


def test_calibration_error_counted_by_hand():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    # 0.15^2 - 0.25 * 0.75 / 3 < 0: eight rows cannot show this gap
    assert calibration.ece(y, p) == 0
    many = calibration.ece(np.tile(y, 100), np.tile(p, 100))
    assert many == pytest.approx(np.sqrt(0.15**2 - 0.1875 / 399))


def test_debiasing_removes_what_chance_adds():
    rng, alone = np.random.default_rng(2), np.full(1_000_000, -1)

    def square(size):
        p = rng.uniform(size=size)
        y = rng.uniform(size=size) < p**2  # overconfident
        return calibration.mean_square_gap(y, p, alone[:size])

    small = np.mean([square(300) for _ in range(300)])
    assert small == pytest.approx(square(1_000_000), rel=0.05)


@pytest.mark.parametrize("dchi2", [0.1, 1.0, 9.0])
def test_error_of_right_probabilities_is_zero_on_average_whatever_the_pairs(dchi2):
    """Log-likelihood ratios of pairs are normal, +-D/2 with variance D: both calls are perfect."""
    rng, pair, y = np.random.default_rng(12), np.repeat(np.arange(400), 2), np.tile([0, 1], 400)
    calls = [expit((y - 0.5) * dchi2 + rng.normal(size=800) * dchi2**0.5) for _ in range(200)]
    square = [calibration.mean_square_gap(y, p, pair) for p in calls]
    assert abs(np.mean(square)) < 4 * np.std(square) / np.sqrt(200)


def test_a_pair_in_one_bin_has_no_noise_to_take_out():
    """Both rows are called 0.55 and one is binary: off by 0.05, and chance has no part in it."""
    y, p, pair = np.tile([0, 1], 100), np.full(200, 0.55), np.repeat(np.arange(100), 2)
    assert calibration.ece(y, p, pair) == pytest.approx(0.05)
    assert calibration.ece(y, p) == pytest.approx(np.sqrt(0.05**2 - 0.25 / 199))


@pytest.mark.parametrize("power", [1.0, 1.1, 1.3])
def test_the_upper_limit_holds_the_true_error_and_is_never_zero(power):
    """95 of 100 sets or more; fewer than 88 would be seen once in a thousand."""
    rng, held = np.random.default_rng(11), 0
    big = rng.random(2_000_000)
    truth = calibration.ece(rng.random(big.size) < big**power, big) if power > 1 else 0.0
    for seed in range(100):
        p = rng.random(1000)
        y = rng.random(1000) < p**power
        got = calibration.calibration_errors(y, p, num=100, seed=seed)
        assert got["ece_at_most"] > max(got["ece"], 0.005)
        held += got["ece_at_most"] >= truth
    assert held >= 88


def test_of_the_curves_that_reach_a_level_at_least_that_fraction_is_binary():
    """P of a random walk of evidence is right at every epoch, so the highest P is, or more."""
    rng = np.random.default_rng(13)
    y = np.tile([0, 1], 4000)
    steps = (y[:, None] - 0.5) * 0.2 + np.sqrt(0.2) * rng.normal(size=(8000, 60))
    got = calibration.anytime_calibration(y, expit(steps.cumsum(axis=1)).max(axis=1))
    assert list(got) == ["0.5", "0.8", "0.9", "0.95", "0.99"]
    for level, row in got.items():
        assert row["high"] > float(level) and row["low"] < row["value"] < row["high"]
    assert got["0.5"]["of"] > got["0.99"]["of"] > 1000


def test_levels_that_few_curves_reach_have_no_interval():
    got = calibration.anytime_calibration([0, 1, 1], [0.4, 0.7, 0.95], (0.5, 0.9, 0.99))
    assert got["0.5"]["value"] == 1 and got["0.9"]["hits"] == got["0.9"]["of"] == 1
    assert np.isnan(got["0.5"]["low"]) and np.isnan(got["0.99"]["value"])
