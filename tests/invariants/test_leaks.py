"""Only the anomaly separates the classes, and no score exceeds the ideal observer's.

These tests run on the weights that ship. Standard errors of an area under the curve are those of
the rank sum under no difference, sqrt((2 n + 1) / (12 n^2)) for n rows of each class.
"""

from dataclasses import replace

import numpy as np
import pytest
from sets import normal_ratio, scored, toy_set

from lensml import evaluation
from lensml.network import load_network, predict_proba
from lensml.simulation import Simulation, Survey, load, reobserve, simulate, until_fraction

PAIRS = 160


def chance_error(num: int) -> float:
    return np.sqrt((2 * num + 1) / (12 * num**2))


PREDICTED: dict[str, np.ndarray] = {}  # P(binary) of a fixture's set, computed once


def calls(curves, fraction: float = 1.0, name: str = "") -> np.ndarray:
    """P(binary) at the last observed epoch within a fraction of the window.

    `name` is that of the fixture whose set it is; "" = predicted afresh.
    """
    if name not in PREDICTED or not name:
        PREDICTED[name] = predict_proba(load_network()[0], curves)
    p = PREDICTED[name][:, until_fraction(curves.time, fraction)]
    some = np.isfinite(p)
    last = p.shape[1] - 1 - some[:, ::-1].argmax(axis=1)
    return np.where(some.any(axis=1), p[np.arange(len(p)), last], 0.5)


def simulated(folder, preset: str, num: int, **options):
    simulation = Simulation(preset=preset, num_pairs=num, **{"seed": 4242} | options)
    return load(simulate(folder / f"{preset}.npz", simulation, workers=1, progress=False))


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("leaks"), "baseline", PAIRS)


@pytest.fixture(scope="module")
def distinct(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("leaks"), "distinct", 48)


@pytest.fixture(scope="module")
def null(tmp_path_factory):
    """Binaries without a companion, at 0.01 mag, where numerical error would show first."""
    folder = tmp_path_factory.mktemp("leaks")
    return simulated(folder, "null", PAIRS, seed=1, survey=Survey(sigma=0.01))


def test_a_companion_without_mass_is_undetectable(null):
    assert null.dchi2.max() < 0.1
    auc = evaluation.roc_auc(null.y, calls(null))
    assert abs(auc - 0.5) < 3 * chance_error(PAIRS)


def test_no_summary_statistic_separates_the_null_pairs(null):
    for name, values in evaluation.summary_statistics(null).items():
        auc = evaluation.roc_auc(null.y, values)
        assert abs(auc - 0.5) < 4 * chance_error(PAIRS), name


def test_a_classifier_trained_on_null_pairs_learns_nothing(null):
    for name, audit in evaluation.shortcut_probe(null, num_bootstrap=20).items():
        assert abs(audit["value"] - 0.5) < 4 * chance_error(PAIRS), name


def test_gaps_errors_and_numbers_of_points_are_independent_of_the_class(baseline):
    scalars = evaluation.summary_statistics(baseline)
    for name in ("points", "first gap", "first epoch", "last epoch", "mean error"):
        auc = evaluation.roc_auc(baseline.y, scalars[name])
        assert abs(auc - 0.5) < 4 * chance_error(PAIRS), name


@pytest.mark.parametrize("fraction", [0.5, 1.0])
@pytest.mark.parametrize("name", ["baseline", "distinct"])
def test_network_stays_below_the_ideal_observer(name, fraction, request):
    """Anything above it by three standard errors is a leak."""
    curves = request.getfixturevalue(name)
    ideal = evaluation.ideal_log_ratio(curves, [fraction])[:, 0]
    excess = evaluation.excess_over_ideal(
        calls(curves, fraction, name), ideal, curves.y, curves.pair, num=100
    )
    evaluation.assert_below_ideal({name: found["z"] for name, found in excess.items()})


def test_network_finds_strong_anomalies(distinct):
    """A bound is kept by a coin as well: caustic crossings must be found."""
    assert evaluation.roc_auc(distinct.y, calls(distinct, name="distinct")) > 0.9


def test_more_noise_does_not_help(baseline):
    """A better score on worse data is the signature of a leak."""
    area = [
        evaluation.roc_auc(baseline.y, calls(reobserve(baseline, Survey(sigma=sigma), 3)))
        for sigma in (0.05, 0.3)
    ]
    assert area[0] > area[1] - 2 * chance_error(PAIRS)


def test_undetectable_anomalies_get_the_probabilities_of_their_twins(baseline):
    """Where delta-chi2 is below one, even the ideal observer is at chance, and so must we be."""
    hidden = baseline.dchi2 < 1
    num = int(hidden.sum()) // 2
    assert num > 50
    auc = evaluation.roc_auc(baseline.y[hidden], calls(baseline, name="baseline")[hidden])
    assert abs(auc - 0.5) < 3 * chance_error(num) + 0.02


def test_an_observer_that_knows_the_class_stands_out_above_the_ideal():
    ratio, y, pair = normal_ratio(np.full(1500, 1.0))
    noise = np.random.default_rng(3).normal(size=y.size)
    honest = evaluation.ideal_probability(ratio + 0.5 * noise)
    leak = evaluation.ideal_probability(ratio + 0.4 * (y - 0.5))  # knows the class beside the data
    for excess in evaluation.excess_over_ideal(honest, ratio, y, pair).values():
        assert excess["z"] < 3 and excess["standard_error"] > 0
    found = evaluation.excess_over_ideal(leak, ratio, y, pair)
    assert all(found[name]["z"] > 3 for name in ("roc_auc", "balanced_accuracy"))
    assert found["roc_auc"]["excess"] == pytest.approx(
        evaluation.roc_auc(y, leak) - evaluation.roc_auc(y, ratio)
    )
    same = evaluation.excess_over_ideal(evaluation.ideal_probability(ratio), ratio, y, pair)
    assert all(row["excess"] == 0 and row["z"] == 0 for row in same.values())


def test_a_number_above_the_ideal_observer_is_refused():
    evaluation.assert_below_ideal({})
    evaluation.assert_below_ideal({"roc_auc": 2.9, "recall": np.nan})
    with pytest.raises(AssertionError, match="roc_auc: the network is 3.1 standard errors above"):
        evaluation.assert_below_ideal({"recall": 0.0, "roc_auc": 3.1})


def test_more_noise_with_a_better_score_stops_the_run():
    clear, noisy = scored(0.02), scored(0.3)
    steps = evaluation.assert_falling({"clear": clear, "noisy": noisy}, num=40)
    assert steps["clear -> noisy"] < 0
    with pytest.raises(AssertionError, match="from noisy to clear"):
        evaluation.assert_falling({"noisy": noisy, "clear": clear}, num=40)


def test_a_network_that_knows_the_answer_stops_the_run():
    honest = scored(0.3)
    evaluation.assert_below_ideal({"honest": evaluation.summary(honest, num=40)["bound_z"]})
    cheat = replace(honest, p=np.where(honest.y == 1, 0.9, 0.1))
    with pytest.raises(AssertionError, match="cheat: the network is .* above the ideal"):
        evaluation.assert_below_ideal({"cheat": evaluation.summary(cheat, num=40)["bound_z"]})


def test_a_classifier_that_is_given_the_class_is_a_leak():
    curves = toy_set(150, bump=0.02, seed=4)
    p = 0.3 + 0.4 * curves.y
    result = evaluation.score_report(curves, p, evaluation.ideal_log_ratio(curves), num=100)
    assert result["bound_excess"]["roc_auc"]["z"] > 3
    assert result["bound_excess"]["balanced_accuracy"]["z"] > 3
