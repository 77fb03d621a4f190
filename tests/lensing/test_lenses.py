"""Coordinates of a lens: the origin of t0 and u0, and the source's track."""

import numpy as np
import pytest

from lensml.lensing.lenses import BinaryLens, magnification_centre, to_centre_of_mass, track


def test_track_passes_the_origin_at_u0_when_t0():
    event = BinaryLens(t0=3.0, u0=0.4, tE=20.0, rho=1e-3, s=0.8, q=0.3, alpha=1.1)
    times = np.linspace(-60, 60, 1201)
    distance = np.hypot(*track(event, times))
    assert distance.min() == pytest.approx(0.4)
    assert times[distance.argmin()] == pytest.approx(3.0)
    np.testing.assert_allclose(distance, np.hypot(0.4, (times - 3) / 20))


@pytest.mark.parametrize("s", [0.6, 3.0])
def test_track_is_closest_to_the_origin_at_t0_for_close_and_wide_binaries(s):
    event = BinaryLens(t0=3.0, u0=0.4, tE=20.0, rho=1e-3, s=s, q=0.3, alpha=1.1)
    x, y = track(event, np.array([3.0]))[:, 0]
    assert np.hypot(x - magnification_centre(s, 0.3), y) == pytest.approx(0.4)
    u0, t0 = to_centre_of_mass(event)
    assert np.hypot(*track(event, np.array([t0]))[:, 0]) == pytest.approx(abs(u0))


def test_origin_is_continuous_where_close_turns_wide():
    assert magnification_centre(0.99, 0.3) == magnification_centre(1.0, 0.3) == 0
    assert magnification_centre(1 + 1e-9, 0.3) == pytest.approx(0, abs=1e-8)
    # wide: the heavier lens lies at -s q / (1 + q); light bends it q / (1 + q) / s back
    assert magnification_centre(5.0, 0.5) == pytest.approx(-5 / 3 + 1 / 15)
