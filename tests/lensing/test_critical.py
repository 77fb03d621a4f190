"""Caustics in closed form are those of VBMicrolensing, and give all their memory back."""

from pathlib import Path

import numpy as np
import pytest
from VBMicrolensing import VBMicrolensing

from lensml.lensing.critical import caustic_branches, caustic_curves
from lensml.lensing.magnification import BinaryLens, binary_magnification

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
    points, following = caustic_branches(s, q, 200)
    assert (np.sort(following, axis=0) == np.arange(4)[:, None]).all()
    after = points[following, np.arange(1, 201) % 200]
    assert np.abs(after - points).max() < 0.2 * max(1, np.ptp(points.real))


def test_curves_are_closed():
    for s, q in LENSES:
        for curve in caustic_curves(s, q):
            np.testing.assert_array_equal(curve[:, 0], curve[:, -1])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux")
def test_a_thousand_curves_leave_no_memory_behind():
    times = np.linspace(-100, 100, 1500)
    event = BinaryLens(t0=0.0, u0=0.3, tE=22.0, rho=0.005, s=1.3, q=0.1, alpha=0.7)

    def pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    for _ in range(100):
        binary_magnification(event, times)
    before = pages()
    for _ in range(1000):
        binary_magnification(event, times)
    assert pages() - before < 512  # 2 MB; VBMicrolensing's own caustics would leave 10 MB
