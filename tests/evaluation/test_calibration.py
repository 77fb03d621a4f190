"""Known faults are repaired, rankings kept, and Bayes' formula checked on a drawn population."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from lensml.evaluation import calibration, metrics
from lensml.simulation import FRACTIONS


def drawn(n, seed=0):
    """Calls in log-odds that are right, and the classes they are right about, half binary."""
    rng = np.random.default_rng(seed)
    y = np.tile([0, 1], n // 2)
    strength = 10 ** rng.uniform(-1, 1, n)  # of a normal log-likelihood ratio
    return y, rng.normal((y - 0.5) * strength, np.sqrt(strength))


FAULTS = {
    "overconfident": lambda z: 2.5 * z,
    "timid": lambda z: 0.4 * z,
    "shifted": lambda z: z + 1.5,
    "bent": lambda z: np.where(z > 0, 3 * z, 0.5 * z),
    "cubic": lambda z: z + 0.2 * z**3,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_known_fault_is_repaired_on_other_events(fault):
    (y, z), (fresh_y, fresh_z) = drawn(100_000, 1), drawn(100_000, 2)
    found = calibration.fit_map(y, expit(FAULTS[fault](z)))
    wrong = expit(FAULTS[fault](fresh_z))
    assert metrics.ece(fresh_y, wrong, debiased=True) > 0.03
    assert metrics.ece(fresh_y, found(wrong), debiased=True) < 0.01
    assert metrics.brier(fresh_y, found(wrong)) < metrics.brier(fresh_y, wrong)


def test_ranking_is_kept_between_any_two_calls_of_a_network():
    y, z = drawn(2000, 3)
    found = calibration.fit_map(y, expit(FAULTS["bent"](z)))
    p = np.unique(expit(np.linspace(-15, 15, 4001)).astype(np.float32))
    assert (np.diff(found(p)) > 0).all()
    wrong = expit(FAULTS["bent"](z))
    assert metrics.roc_auc(y, found(wrong)) == pytest.approx(metrics.roc_auc(y, wrong), abs=1e-12)


def test_even_perverse_calls_are_never_turned_round():
    y, z = drawn(2000, 4)
    found = calibration.fit_map(y, expit(-z))
    assert min(found.slopes) > 0 and (np.diff(found(np.linspace(0.01, 0.99, 99))) > 0).all()


def test_few_rows_hardly_change_the_probabilities():
    p = np.linspace(0.2, 0.8, 8)
    found = calibration.fit_map(np.tile([0, 1], 4), p)
    np.testing.assert_allclose(found(p), p, atol=0.15)


def test_a_prefix_without_information_stays_at_one_half():
    found = calibration.fit_map(np.tile([0, 1], 50), np.full(100, 0.5))
    assert found(0.5) == pytest.approx(0.5, abs=1e-6)


def test_a_missing_epoch_stays_missing_and_certainty_stays_in_range():
    found = calibration.fit_map(*[a[:500] for a in (drawn(500, 5)[0], expit(drawn(500, 5)[1]))])
    got = found(np.array([[0.0, np.nan, 1.0]], dtype=np.float32))
    assert got.shape == (1, 3) and np.isnan(got[0, 1])
    assert 0 <= got[0, 0] < 1e-6 and 1 - 1e-6 < got[0, 2] <= 1


def test_the_gradient_finds_what_platt_scaling_finds():
    from sklearn.linear_model import LogisticRegression

    y, z = drawn(20_000, 6)
    found = calibration.fit_map(y, expit(2 * z - 1), num_knots=1)
    platt = LogisticRegression(C=np.inf).fit((2 * z - 1)[:, None], y)
    p = expit(np.linspace(-3, 3, 13))
    want = platt.predict_proba(logit(p)[:, None])[:, 1]
    np.testing.assert_allclose(found(p), want, atol=0.015)  # two slopes against one


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
    assert metrics.ece(y, balanced, debiased=True) > 0.1
    assert metrics.ece(y, rare, debiased=True) < 0.001
    assert rare.mean() == pytest.approx(0.01, abs=6e-4)


@pytest.mark.parametrize("bad", [0, 1, -0.1])
def test_a_prevalence_outside_zero_and_one_is_named(bad):
    with pytest.raises(ValueError, match=f"`prevalence` is {bad}"):
        calibration.prior_shift(0.5, bad)


def test_a_sample_has_the_fraction_of_binaries_asked_for():
    y = np.tile([0, 1], 500)
    for fraction in (0.1, 0.5, 0.9):
        rows = calibration.resample_to_prevalence(y, fraction, seed=1)
        assert y[rows].mean() == pytest.approx(fraction, abs=0.001)
        assert np.unique(rows).size == rows.size >= 500 and (np.diff(rows) > 0).all()


@pytest.fixture(scope="module")
def fitted():
    y, z = drawn(4000, 8)
    p = expit(np.outer(z, np.linspace(0.5, 3, len(FRACTIONS))))  # ever more overconfident
    return y, p, calibration.fit_calibrator(y, p)


def test_each_fraction_has_its_own_map_and_any_epoch_the_pooled_one(fitted):
    y, p, calibrator = fitted
    truth = expit(drawn(4000, 8)[1])
    for k in range(len(FRACTIONS)):
        np.testing.assert_allclose(calibrator(p[:, k], k), truth, atol=0.06)
    np.testing.assert_array_equal(calibrator.at_fractions(p)[:, 2], calibrator(p[:, 2], 2))
    np.testing.assert_array_equal(calibrator(p[:, 2]), calibrator.pooled(p[:, 2]))
    assert calibrator.prevalence == 0.5 and calibrator.rows == 4000


def test_one_class_cannot_calibrate():
    with pytest.raises(ValueError, match="10 single lenses and 0 binaries"):
        calibration.fit_calibrator(np.zeros(10), np.full((10, len(FRACTIONS)), 0.5))


def test_table_shows_the_repair_beside_the_noise_of_the_raw_error(fitted):
    _, _, calibrator = fitted
    y, z = drawn(3000, 9)
    p = expit(np.outer(z, np.linspace(0.5, 3, len(FRACTIONS))))
    pair = np.repeat(np.arange(1500), 2)
    table = calibration.calibration_table(y, p, pair, calibrator, num=100)
    assert list(table) == ["0.1", "0.25", "0.33", "0.5", "0.67", "0.83", "1.0"]
    last = table["1.0"]
    assert last["before"]["ece"]["value"] == metrics.ece(y, p[:, -1])
    debiased = metrics.ece(y, p[:, -1], debiased=True)
    assert last["before"]["ece_debiased"]["value"] == pytest.approx(debiased)
    assert last["before"]["ece_debiased"]["low"] > last["after"]["ece_debiased"]["high"]
    assert last["after"]["brier"]["value"] < last["before"]["brier"]["value"]
    after = last["after"]
    assert after["ece"]["value"] == pytest.approx(after["expected_floor"], abs=0.01)
    assert after["ece_debiased_pairs"]["value"] == pytest.approx(0, abs=0.02)
    assert last["before"]["ece"]["low"] > last["before"]["expected_floor"]


def test_floor_is_what_perfect_calls_score_on_rows_by_themselves():
    rng = np.random.default_rng(10)
    p, alone = rng.random(500), np.full(500, -1)
    draws = [rng.random(500) < p for _ in range(400)]
    floor = np.mean([calibration.ece_noise_floor(y, p, alone) for y in draws])
    assert floor == pytest.approx(np.mean([metrics.ece(y, p) for y in draws]), rel=0.03)
    assert floor > 0.02


@pytest.mark.parametrize("dchi2", [0.1, 1.0, 9.0])
def test_floor_and_debiased_error_know_that_one_row_of_a_pair_is_binary(dchi2):
    """Log-likelihood ratios of pairs are normal, +-D/2 with variance D: both calls are perfect."""
    rng, pair, y = np.random.default_rng(12), np.repeat(np.arange(400), 2), np.tile([0, 1], 400)
    calls = [expit((y - 0.5) * dchi2 + rng.normal(size=800) * dchi2**0.5) for _ in range(200)]
    floor = np.mean([calibration.ece_noise_floor(y, p, pair) for p in calls])
    assert floor == pytest.approx(np.mean([metrics.ece(y, p) for p in calls]), rel=0.1)
    noise = [calibration.bin_noise(y, p, pair) for p in calls]
    square = [np.nansum(n * (gap**2 - variance)) / n.sum() for gap, variance, n in noise]
    assert abs(np.mean(square)) < 4 * np.std(square) / np.sqrt(200)


def test_a_pair_in_one_bin_has_no_noise_to_take_out():
    """Both rows are called 0.55 and one is binary: off by 0.05, and chance has no part in it."""
    y, p, pair = np.tile([0, 1], 100), np.full(200, 0.55), np.repeat(np.arange(100), 2)
    got = calibration.error_intervals(y, p, pair, 50, 0)
    assert got["ece_debiased_pairs"]["value"] == pytest.approx(0.05)
    assert got["ece_debiased"]["value"] == pytest.approx(metrics.ece(y, p, debiased=True))
    assert got["ece_debiased"]["value"] == pytest.approx(np.sqrt(0.05**2 - 0.25 / 199))
    assert calibration.ece_noise_floor(y, p, pair) == pytest.approx(0, abs=1e-12)
    assert calibration.ece_noise_floor(y, p, np.full(200, -1)) > 0.02


def test_intervals_of_the_debiased_error_hold_the_truth():
    """95 of 100 sets; fewer than 88 would be seen once in a thousand."""
    rng, inside = np.random.default_rng(11), 0
    big = rng.random(2_000_000)
    truth = metrics.ece(rng.random(big.size) < big**1.3, big, debiased=True)
    for seed in range(100):
        p = rng.random(1000)
        y = rng.random(1000) < p**1.3
        got = calibration.error_intervals(y, p, np.arange(1000), 100, seed)["ece_debiased"]
        inside += got["low"] <= truth <= got["high"]
    assert inside >= 88
