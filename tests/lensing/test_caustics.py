"""Where caustics lie, which kind they are, and which tracks meet them."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.path import Path

from lensml.lensing.caustics import caustic_curves, crosses_caustic, topology, track
from lensml.lensing.magnification import BinaryLens, binary_magnification
from lensml.seeds import event_generator
from lensml.simulation import PARAMETER_SETS, draw_binary

NUM_CURVES = {"close": 3, "resonant": 1, "wide": 2}


@pytest.mark.parametrize("q", [1e-4, 0.01, 0.3, 1.0])
def test_topology_counts_the_caustics(q):
    """Three, one, two closed curves: counted by the solver, foretold by the closed form."""
    for s in (0.2, 0.5, 0.6, 0.75, 0.9, 0.97, 1.0, 1.02, 1.1, 1.4, 1.9, 2.05, 3.0, 8.0):
        assert len(caustic_curves(s, q)) == NUM_CURVES[topology(s, q)], (s, q)


def test_equal_masses_change_topology_at_the_known_separations():
    edge = np.sqrt(0.5)
    assert topology(edge - 1e-3, 1.0) == "close" and topology(edge + 1e-3, 1.0) == "resonant"
    assert topology(2 - 1e-3, 1.0) == "resonant" and topology(2 + 1e-3, 1.0) == "wide"


def test_planetary_caustic_lies_at_s_minus_1_over_s_from_the_star():
    s, q = 2.0, 1e-4
    centres = sorted(float(curve[0].mean()) for curve in caustic_curves(s, q))
    star = -s * q / (1 + q)
    assert centres[0] == pytest.approx(star, abs=1e-3)
    assert centres[1] == pytest.approx(s - 1 / s, abs=5e-3)


def test_track_passes_the_origin_at_u0_when_t0():
    event = BinaryLens(t0=3.0, u0=0.4, tE=20.0, rho=1e-3, s=0.8, q=0.3, alpha=1.1)
    times = np.linspace(-60, 60, 1201)
    distance = np.hypot(*track(event, times))
    assert distance.min() == pytest.approx(0.4)
    assert times[distance.argmin()] == pytest.approx(3.0)
    np.testing.assert_allclose(distance, np.hypot(0.4, (times - 3) / 20))


def test_crossing_agrees_with_entering_and_leaving_the_curves():
    """The rule is geometric and exact; here a dense track is tested point by point."""
    found = {True: 0, False: 0}
    for i in range(150):
        event = draw_binary(
            replace(PARAMETER_SETS["distinct"], caustic_crossing=False, u0=(0.001, 0.6)),
            event_generator(1, "crossing", i),
            (-100.0, 100.0),
        )
        points = track(event, np.linspace(-100, 100, 20_001)).T
        inside = np.zeros(len(points), bool)
        for curve in caustic_curves(event.s, event.q):
            inside ^= Path(curve.T).contains_points(points)
        found[crosses := crosses_caustic(event, -100.0, 100.0)] += 1
        if inside.any() and not inside.all():
            assert crosses
        elif crosses:  # cut a corner shorter than a step of the dense track
            near = min(
                np.hypot(*(curve[:, :, None] - points.T[:, None, ::20])).min()
                for curve in caustic_curves(event.s, event.q)
            )
            assert near < 0.02
    assert min(found.values()) > 20


def test_only_crossings_within_the_survey_count():
    event = BinaryLens(t0=0.0, u0=0.01, tE=20.0, rho=1e-3, s=1.0, q=0.3, alpha=0.7)
    assert crosses_caustic(event, -100.0, 100.0)
    assert not crosses_caustic(event, -100.0, -60.0)
    assert not crosses_caustic(event, 60.0, 100.0)


def test_a_crossing_shows_as_a_jump_of_brightness():
    event = BinaryLens(t0=0.0, u0=0.05, tE=20.0, rho=1e-4, s=1.0, q=0.3, alpha=0.7)
    times = np.linspace(-40, 40, 8001)
    curve = binary_magnification(event, times)
    jumps = np.abs(np.diff(np.log(curve)))
    assert jumps.max() > 0.5
    missing = replace(event, u0=2.0)
    assert not crosses_caustic(missing, -40.0, 40.0)
    assert np.abs(np.diff(np.log(binary_magnification(missing, times)))).max() < 0.01
