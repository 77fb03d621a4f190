"""Single and binary lenses: parameters, origin of coordinates, track of the source."""

from dataclasses import dataclass
from math import cos, sin

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class BinaryLens:
    """One binary-lens event; angles on the sky in Einstein radii of the total lens mass."""

    t0: float  # closest approach to the origin of `magnification_centre` [day]
    u0: float  # impact parameter [theta_E]
    tE: float  # Einstein crossing time [day]
    rho: float  # source radius [theta_E]
    s: float  # projected separation of the lenses [theta_E]
    q: float  # mass ratio, 0 < q <= 1
    alpha: float  # trajectory angle to the lens axis [rad]


@dataclass(frozen=True, kw_only=True)
class PointLens:
    """One single-lens event with a point source (`rho = 0`) or a uniform disc."""

    t0: float  # closest approach [day]
    u0: float  # impact parameter [theta_E]
    tE: float  # Einstein crossing time [day]
    rho: float = 0.0  # source radius [theta_E]


def magnification_centre(s: float, q: float) -> float:
    """Origin of `t0`, `u0` on the lens axis, from the centre of mass [theta_E].

    Zero for s <= 1; for wide binaries the magnification centre of the heavier lens. Measured from
    the centre of mass instead, half of the binaries with s > 2 would never brighten.
    """
    return q / (1 + q) * (1 / s - s) if s > 1 else 0.0


def to_centre_of_mass(event: BinaryLens) -> tuple[float, float]:
    """`(u0, t0)` of the same track measured from the centre of mass [theta_E, day]."""
    x_c = magnification_centre(event.s, event.q)
    return event.u0 + x_c * sin(event.alpha), event.t0 + event.tE * x_c * cos(event.alpha)


def track(event: BinaryLens, times: NDArray) -> NDArray[np.float64]:
    """Track of the source's centre, shape (2, T), centre-of-mass frame [theta_E]."""
    u0, t0 = to_centre_of_mass(event)
    tau = (np.asarray(times, dtype=float) - t0) / event.tE
    sin_a, cos_a = np.sin(event.alpha), np.cos(event.alpha)
    return np.stack([u0 * sin_a - tau * cos_a, -u0 * cos_a - tau * sin_a])
