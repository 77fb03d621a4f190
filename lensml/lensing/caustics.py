"""Caustics: where they lie, which topology they have, whether a track meets them."""

import numpy as np
from numpy.typing import NDArray

from lensml.lensing.critical import caustic_branches, caustic_curves
from lensml.lensing.magnification import BinaryLens, to_centre_of_mass

CAUSTIC_POINTS = 200  # on each of four branches

__all__ = ["caustic_curves", "crosses_caustic", "topology", "track"]


def topology(s: float, q: float) -> str:
    """`close`, `resonant` or `wide` (Erdl & Schneider 1993, A&A 268, 453; Dominik 1999)."""
    wide_edge = np.sqrt((1 + q ** (1 / 3)) ** 3 / (1 + q))
    if s >= wide_edge:
        return "wide"
    m1, m2 = 1 / (1 + q), q / (1 + q)
    return "close" if s < 1 and m1 * m2 < (1 - s**4) ** 3 / (27 * s**8) else "resonant"


def track(event: BinaryLens, times: NDArray) -> NDArray[np.float64]:
    """Path of the source's centre, shape (2, T), centre-of-mass frame [theta_E]."""
    u0, t0 = to_centre_of_mass(event)
    tau = (np.asarray(times, dtype=float) - t0) / event.tE
    sin_a, cos_a = np.sin(event.alpha), np.cos(event.alpha)
    return np.stack([u0 * sin_a - tau * cos_a, -u0 * cos_a - tau * sin_a])


def crosses_caustic(event: BinaryLens, t_first: float, t_last: float) -> bool:
    """Whether the straight track of the source's centre meets a caustic in [t_first, t_last]."""
    (x0, x1), (y0, y1) = track(event, np.array([t_first, t_last]))
    start, end = complex(x0, y0), complex(x1, y1)
    length = abs(end - start)
    points, following = caustic_branches(event.s, event.q, CAUSTIC_POINTS)
    place = (points - start) * ((end - start).conjugate() / length)  # along + i across
    after = place[following, np.arange(1, CAUSTIC_POINTS + 1) % CAUSTIC_POINTS]
    met = (place.imag > 0) != (after.imag > 0)
    place, after = place[met], after[met]
    part = place.imag / (place.imag - after.imag)
    crossing = place.real + part * (after.real - place.real)
    return bool(((crossing > 0) & (crossing < length)).any())
