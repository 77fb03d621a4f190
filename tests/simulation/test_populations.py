"""Variable stars and artifacts stay in their published ranges and are functions of time."""

import pickle

import numpy as np
import pytest

from lensml.paths import InputError
from lensml.simulation import VARIABLES, draw_variable

TIMES = np.sort(np.random.default_rng(0).uniform(-1500, 300, 1500))
RANGES = {  # extremes of magnitude minus baseline: brightest, dimmest [mag]
    "pulsator": (-0.6, 0.6),
    "long_period": (-4.6, 4.6),
    "eclipsing": (-0.15, 1.15),
    "flare_star": (-3.0, 0.0),
    "dwarf_nova": (-6.0, 0.0),
    "nova": (-8.0, 0.0),
    "eruptive": (-5.0, 6.0),
    "artifact": (-2.0, 2.0),
}


def draws(kind, count=60):
    return [draw_variable(np.random.default_rng(k), 0.0, kind) for k in range(count)]


@pytest.mark.parametrize("kind", VARIABLES)
def test_amplitudes_lie_in_the_ranges_of_their_kind(kind):
    curves = np.array([v.delta_mag(TIMES) for v in draws(kind)])
    assert curves.shape == (60, len(TIMES)) and np.isfinite(curves).all()
    assert curves.min() >= RANGES[kind][0] - 1e-9 and curves.max() <= RANGES[kind][1] + 1e-9
    assert (np.ptp(curves, axis=1) > 0).mean() > 0.5


@pytest.mark.parametrize("kind", VARIABLES)
def test_a_variable_is_a_function_of_time_alone(kind):
    for variable in draws(kind, 20):
        whole = variable.delta_mag(TIMES)
        np.testing.assert_array_equal(variable.delta_mag(TIMES[700:900]), whole[700:900])
        np.testing.assert_array_equal(variable.delta_mag(TIMES[::-1]), whole[::-1])
        again = pickle.loads(pickle.dumps(variable))
        np.testing.assert_array_equal(again.delta_mag(TIMES), whole)
        assert variable.delta_mag(TIMES[:0]).shape == (0,)


def test_the_same_generator_gives_the_same_variable():
    one, two = (draw_variable(np.random.default_rng(7), 12.0) for _ in range(2))
    assert one.kind == two.kind
    np.testing.assert_array_equal(one.delta_mag(TIMES), two.delta_mag(TIMES))


def test_all_kinds_are_drawn_about_equally_often():
    generator = np.random.default_rng(3)
    kinds, counts = np.unique([draw_variable(generator).kind for _ in range(800)], return_counts=1)
    assert set(kinds) == set(VARIABLES)
    assert abs(counts - 100).max() < 40  # four standard deviations


def test_half_of_the_outbursts_are_near_the_centre():
    grid = np.arange(600.0, 1400.0, 0.5)
    peaks = [
        grid[draw_variable(np.random.default_rng(k), 1000.0, "nova").delta_mag(grid).argmin()]
        for k in range(300)
    ]
    near = np.mean(np.abs(np.array(peaks) - 1000) < 30)
    assert 0.4 < near < 0.8  # half of them, and 15 % of the others


def test_outbursts_rise_at_once_and_decline_exponentially():
    generator = np.random.default_rng(5)
    grid = np.arange(-300.0, 800.0, 0.01)
    for _ in range(20):
        curve = -draw_variable(generator, 0.0, "nova").delta_mag(grid)
        top = curve.argmax()
        assert (np.diff(curve[: top + 1]) >= 0).all() and (np.diff(curve[top:]) <= 1e-12).all()
        assert abs(np.diff(curve)).max() < 0.3  # 8 mag in half a day at the fastest: no jumps


def test_repeated_flares_go_on_for_years():
    grid = np.arange(-900.0, 0.0, 0.01)
    seen = 0
    for variable in draws("flare_star", 30):
        bright = grid[variable.delta_mag(grid) < -0.02]
        seen += len(np.unique(np.floor(bright / 100))) >= 8
    assert 0.4 < seen / 30 < 0.8  # of six in ten, at most every 30 days


def test_periodic_stars_repeat_after_their_period():
    for kind in ("pulsator", "eclipsing"):
        for variable in draws(kind, 10):
            if len(variable.curves) == 1:
                period = variable.curves[0].args[1]
                a, b = variable.delta_mag(TIMES), variable.delta_mag(TIMES + 3 * period)
                np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_unknown_kind_is_named_in_the_error():
    with pytest.raises(InputError, match="`kind` is 'comet'"):
        draw_variable(np.random.default_rng(0), kind="comet")
