"""Caustics: where they lie, which topology they have, whether a track meets them."""

import numpy as np
from numpy.typing import NDArray

from lensml.magnification import BinaryLens, caustic_points, to_centre_of_mass

__all__ = ["caustic_curves", "crosses_caustic", "topology", "track"]


def caustic_curves(s: float, q: float) -> list[NDArray[np.float64]]:
    """Closed caustic curves of a binary lens, each (2, K), centre-of-mass frame [theta_E]."""
    return caustic_points(s, q)


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
    start, end = track(event, np.array([t_first, t_last])).T
    direction = end - start
    length = np.hypot(*direction)
    along_unit = direction / length
    across_unit = np.array([along_unit[1], -along_unit[0]])
    for curve in caustic_curves(event.s, event.q):
        offset = curve - start[:, None]
        across, along = across_unit @ offset, along_unit @ offset
        step = np.flatnonzero((across[1:] > 0) != (across[:-1] > 0))
        part = across[step] / (across[step] - across[step + 1])
        crossing = along[step] + part * (along[step + 1] - along[step])
        if ((crossing > 0) & (crossing < length)).any():
            return True
    return False
