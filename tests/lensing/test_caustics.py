"""Caustics in closed form against VBMicrolensing; their topology; which tracks cross them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from VBMicrolensing import VBMicrolensing

from lensml.lensing.caustics import (
    caustic_branches,
    caustic_curves,
    crosses_caustic,
    topology,
    topology_borders,
)
from lensml.lensing.lenses import BinaryLens, track
from lensml.lensing.magnification import binary_magnification
from lensml.seeds import event_generator
from lensml.simulation import PARAMETER_SETS, draw_binary

NUM_CURVES = {"close": 3, "resonant": 1, "wide": 2}
GENERATOR = np.random.default_rng(8)
LENSES = [
    *((10 ** GENERATOR.uniform(-1, 1), 10 ** GENERATOR.uniform(-4, 0)) for _ in range(40)),
    (0.8, 1.0),
    (1.0, 1.0),
    (2.5, 1.0),
    (0.6, 1e-8),
]


def distance_to_curves(points, curves):
    """Of each point (2, K) to the nearest segment of any curve."""
    first = np.concatenate([c[:, :-1] for c in curves], axis=1)[:, None]
    along = np.concatenate([np.diff(c) for c in curves], axis=1)[:, None]
    offset = points[:, :, None] - first
    part = (offset * along).sum(0) / np.maximum((along**2).sum(0), 1e-300)
    return np.hypot(*(offset - np.clip(part, 0, 1) * along)).min(axis=1)


@pytest.mark.parametrize(("s", "q"), LENSES)
def test_curves_are_those_of_vbmicrolensing(s, q):
    reference = [np.asarray(curve) for curve in VBMicrolensing().Caustics(s, q)]
    ours = caustic_curves(s, q, 400)  # theirs has 200 phases: every second of ours
    assert len(ours) == len(reference)
    scale = max(np.ptp(np.concatenate(reference, axis=1)), 1.0)
    assert distance_to_curves(np.concatenate(reference, axis=1), ours).max() < 1e-9 * scale


@pytest.mark.parametrize(("s", "q"), LENSES)
def test_every_point_of_a_branch_is_followed_by_its_neighbour(s, q):
    points, successor = caustic_branches(s, q, 200)
    assert (np.sort(successor, axis=0) == np.arange(4)[:, None]).all()
    after = points[successor, np.arange(1, 201) % 200]
    assert np.abs(after - points).max() < 0.2 * max(1, np.ptp(points.real))


def test_curves_are_closed():
    for s, q in LENSES:
        for curve in caustic_curves(s, q):
            np.testing.assert_array_equal(curve[:, 0], curve[:, -1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
def test_hundreds_of_curves_leave_no_memory_behind():
    times = np.linspace(-100, 100, 1500)
    event = BinaryLens(t0=0.0, u0=0.3, tE=22.0, rho=0.005, s=1.3, q=0.1, alpha=0.7)

    def pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(100):
        binary_magnification(event, times)
    before = pages()
    for _ in range(400):
        binary_magnification(event, times)
    assert pages() - before < 512  # 2 MB; VBMicrolensing's own caustics would leave 4 MB


@pytest.mark.parametrize("q", [1e-4, 0.01, 0.3, 1.0])
def test_topology_counts_the_caustics(q):
    """Three, one, two closed curves: counted by the solver, predicted by the closed form."""
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
            inside ^= Polygon(curve.T).contains_points(points)
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


def test_topology_changes_at_its_borders():
    q = np.geomspace(1e-4, 1, 10)
    for ratio, close, wide in zip(q, *topology_borders(q), strict=True):
        assert topology(close * 0.99, ratio) == "close"
        assert topology(close * 1.01, ratio) == topology(wide * 0.99, ratio) == "resonant"
        assert topology(wide * 1.01, ratio) == "wide"
