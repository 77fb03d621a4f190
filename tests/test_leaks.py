"""Only the anomaly separates the classes, and no score exceeds the ideal observer's.

These tests run on the weights that ship. Standard errors of an area under the curve are those of
the rank sum under no difference, sqrt((2 n + 1) / (12 n^2)) for n rows of each class.
"""

import numpy as np
import pytest

from lensml import evaluation
from lensml.network import load_network, predict_proba
from lensml.simulation import Simulation, Survey, load, reobserve, simulate

PAIRS = 160


def chance_error(num: int) -> float:
    return np.sqrt((2 * num + 1) / (12 * num**2))


def calls(curves, fraction: float = 1.0) -> np.ndarray:
    """P(binary) at the last observed epoch within a fraction of the window."""
    p = predict_proba(load_network()[0], curves)[
        :, evaluation.until_fraction(curves.time, fraction)
    ]
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
        calls(curves, fraction), ideal, curves.y, curves.pair, num=100
    )
    for statistic, found in excess.items():
        assert found["z"] <= 3, (statistic, found)


def test_network_finds_strong_anomalies(distinct):
    """A bound is kept by a coin as well: caustic crossings must be found."""
    assert evaluation.roc_auc(distinct.y, calls(distinct)) > 0.9


def test_more_noise_does_not_help(baseline):
    """A better score on worse data is the signature of a leak."""
    area = [
        evaluation.roc_auc(baseline.y, calls(reobserve(baseline, Survey(sigma=sigma), 3)))
        for sigma in (0.05, 0.3)
    ]
    assert area[0] > area[1] - 2 * chance_error(PAIRS)


def test_undetectable_anomalies_get_the_probabilities_of_their_twins(baseline):
    """Where delta-chi2 is below one, even the ideal observer is at chance, and so must we be."""
    hidden = baseline.rows(baseline.dchi2 < 1)
    num = len(hidden) // 2
    assert num > 50
    assert abs(evaluation.roc_auc(hidden.y, calls(hidden)) - 0.5) < 3 * chance_error(num) + 0.02
