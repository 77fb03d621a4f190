"""Events are drawn from the distributions that the thesis names, alike for both classes."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lensml.lensing import binary_magnification, crosses_caustic, magnification_centre
from lensml.paths import InputError
from lensml.seeds import event_generator
from lensml.simulation.priors import PARAMETER_SETS, draw_binary, draw_single, parameter_set

WINDOW = (-100.0, 100.0)


def many(name: str, num: int = 2000) -> list:
    parameters = PARAMETER_SETS[name]
    return [draw_binary(parameters, event_generator(0, name, i), WINDOW) for i in range(num)]


@pytest.fixture(scope="module")
def baseline() -> list:
    return many("baseline")


def column(events: list, name: str) -> np.ndarray:
    return np.array([getattr(e, name) for e in events])


@pytest.mark.parametrize(
    ("name", "low", "high"), [("s", 0.1, 10), ("q", 1e-3, 1), ("rho", 1e-3, 1e-2)]
)
def test_scale_free_parameters_are_log_uniform(baseline, name, low, high):
    logs = np.log(column(baseline, name))
    span = (np.log(low), np.log(high) - np.log(low))
    assert stats.kstest(logs, stats.uniform(*span).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "low", "high"), [("t0", -50, 50), ("u0", 1e-3, 1), ("alpha", 0, 2 * np.pi)]
)
def test_other_parameters_are_uniform(baseline, name, low, high):
    assert stats.kstest(column(baseline, name), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_time_scales_follow_the_truncated_log_normal(baseline):
    log_tE = np.log10(column(baseline, "tE"))
    edges = (np.log10([3, 200]) - 1.35) / 0.35
    assert stats.kstest(log_tE, stats.truncnorm(*edges, 1.35, 0.35).cdf).pvalue > 1e-3
    assert log_tE.min() >= np.log10(3) and log_tE.max() <= np.log10(200)


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_every_set_keeps_its_ranges(name):
    events, wanted = many(name, 200), PARAMETER_SETS[name]
    for parameter in ("s", "q", "u0"):
        low, high = getattr(wanted, parameter)
        values = column(events, parameter)
        assert low <= values.min() and values.max() <= high
        assert values.min() < low + 0.05 * (high - low) and values.max() > 0.6 * high


def test_distinct_binaries_all_cross_a_caustic_within_the_survey():
    assert all(crosses_caustic(e, *WINDOW) for e in many("distinct", 150))
    shares = [crosses_caustic(e, *WINDOW) for e in many("baseline", 150)]
    assert 0.02 < np.mean(shares) < 0.6


def test_null_binaries_have_no_companion_and_no_visible_disc():
    null, baseline = parameter_set("null"), PARAMETER_SETS["baseline"]
    events = [draw_binary(null, event_generator(0, "null", i), WINDOW) for i in range(300)]
    events += [draw_single(null, event_generator(0, "null", i, "single")) for i in range(300)]
    assert (column(events[:300], "q") == 1e-8).all()
    assert (column(events, "u0") >= 5 * column(events, "rho")).all()
    assert (null.s, null.u0) == (baseline.s, baseline.u0) and "null" not in PARAMETER_SETS


def test_single_lenses_share_the_priors_of_binaries(baseline):
    singles = [
        draw_single(PARAMETER_SETS["baseline"], event_generator(1, "baseline", i, "single"))
        for i in range(2000)
    ]
    for name in ("t0", "u0", "tE", "rho"):
        assert stats.ks_2samp(column(singles, name), column(baseline, name)).pvalue > 1e-3


def test_wide_binaries_brighten_because_of_the_origin():
    """Measured from the centre of mass, many stellar ones with s > 2 would never brighten."""
    wide = [e for e in many("stellar", 400) if e.s > 2][:150]
    times = np.linspace(*WINDOW, 401)

    def share_that_stays_dark(events: list) -> float:
        return np.mean([binary_magnification(e, times).max() < 1.05 for e in events])

    def from_centre_of_mass(e):
        x = magnification_centre(e.s, e.q)
        return replace(e, u0=e.u0 - x * np.sin(e.alpha), t0=e.t0 - e.tE * x * np.cos(e.alpha))

    assert share_that_stays_dark(wide) == 0
    assert share_that_stays_dark([from_centre_of_mass(e) for e in wide]) > 0.1


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'giant'.*baseline, distinct, planetary, stellar"):
        parameter_set("giant")
