"""Critical curves and caustics of a binary lens in closed form; topology and crossings.

VBMicrolensing draws the same curves but keeps some 10 kB of every call (version 5.6.1), which a
simulation of a million events cannot afford.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensml.lensing.lenses import BinaryLens, track

CUBE_ROOTS_OF_UNITY = np.exp(2j * np.pi / 3 * np.arange(3))[:, None]
NEWTON_STEPS = 2  # after the closed form
CROSSING_PHASES = 200  # points on each of four branches to find crossings of a track


class CausticBranches(NamedTuple):
    """Four branches at N phases; neighbours in phase on one branch need not share a row."""

    points: NDArray[np.complex128]  # (4, N) on the caustic, centre-of-mass frame [theta_E]
    successor: NDArray[np.int64]  # (4, N) row in which each continues at the next phase


def _quartic_roots(p: NDArray, q: NDArray, r: NDArray) -> NDArray[np.complex128]:
    """Roots (4, N) of w^4 + p w^2 + q w + r, each (N,): Ferrari (1540), refined by Newton."""
    # Resolvent cubic m^3 + p m^2 + c m + d = 0, depressed by m = y - p / 3 (Cardano).
    c, d = p * p / 4 - r, -q * q / 8
    third = p / 3
    slope = c - p * third
    rest = (2 * third * third - c) * third + d
    root = np.sqrt(rest * rest / 4 + slope * slope * slope / 27)
    plus, minus = root - rest / 2, -root - rest / 2
    cube = np.where(np.abs(plus) >= np.abs(minus), plus, minus)  # no cancellation
    u = cube ** (1 / 3)
    v = np.where(u == 0, 0, -slope / np.where(u == 0, 1, 3 * u))
    m = CUBE_ROOTS_OF_UNITY * u + CUBE_ROOTS_OF_UNITY.conj() * v - third
    m = m[np.abs(m).argmax(axis=0), np.arange(len(p))]  # the largest, for the same reason
    # The quartic splits into two quadratics.
    first = np.sqrt(2 * m)
    half = np.where(first == 0, 0, 2 * q / np.where(first == 0, 1, first))
    upper, lower = np.sqrt(-2 * (p + m) - half), np.sqrt(-2 * (p + m) + half)
    w = np.stack([first + upper, first - upper, lower - first, -first - lower]) / 2
    for _ in range(NEWTON_STEPS):
        w2 = w * w
        gradient = (4 * w2 + 2 * p) * w + q
        step = ((w2 + p) * w2 + q * w + r) / np.where(gradient == 0, 1, gradient)
        w = w - np.where(np.abs(step) < 0.1 * np.abs(w) + 1e-3, step, 0)  # not off a double root
    return w


def caustic_branches(s: float, q: float, num_phases: int) -> CausticBranches:
    """Points of the caustic at N evenly spaced phases of the critical curve.

    The lighter lens lies at +s / (1 + q) on the real axis [theta_E]. Witt (1990), A&A 236, 311;
    with the origin half-way between the lenses the curve is a quartic without its cubic term.
    """
    a, heavy, light = s / 2, 1 / (1 + q), q / (1 + q)
    phase = np.exp(2j * np.pi * np.arange(num_phases) / num_phases)
    # Critical curve: heavy / (w + a)^2 + light / (w - a)^2 = 1 / phase.
    p = -2 * a * a - phase
    w = _quartic_roots(p, 2 * a * (heavy - light) * phase, a**4 - a * a * phase)
    # Lens equation: from the images w to the source plane.
    conjugate = w.conj()
    zeta = w - heavy / (conjugate + a) - light / (conjugate - a)
    # A root's successor is the nearest root at the next phase.
    after = np.roll(w, -1, axis=1)
    successor = np.abs(w[:, None] - after[None]).argmin(axis=1)
    return CausticBranches(zeta + a * (1 - q) / (1 + q), successor)


def caustic_curves(s: float, q: float, num_phases: int = 200) -> list[NDArray[np.float64]]:
    """Closed caustic curves of a binary lens, each (2, K), centre-of-mass frame [theta_E]."""
    points, successor = caustic_branches(s, q, num_phases)
    curves, remaining = [], set(range(4))
    while remaining:
        row, rows = min(remaining), []
        while row in remaining:  # once round the phases leads to the row where the curve goes on
            remaining.discard(row)
            for k in range(num_phases):
                rows.append((row, k))
                row = int(successor[row, k])
        row_index, phase_index = np.array([*rows, rows[0]]).T
        curve = points[row_index, phase_index]
        curves.append(np.stack([curve.real, curve.imag]))
    return curves


def topology(s: float, q: float) -> str:
    """`close`, `resonant` or `wide` (Erdl & Schneider 1993, A&A 268, 453; Dominik 1999)."""
    wide_edge = np.sqrt((1 + q ** (1 / 3)) ** 3 / (1 + q))
    if s >= wide_edge:
        return "wide"
    m1, m2 = 1 / (1 + q), q / (1 + q)
    return "close" if s < 1 and m1 * m2 < (1 - s**4) ** 3 / (27 * s**8) else "resonant"


def topology_borders(q: NDArray) -> tuple[NDArray, NDArray]:
    """Separations between close and resonant, and resonant and wide caustics, each like `q`."""
    s = np.linspace(0.3, 0.99999, 4000)
    product = (1 - s**4) ** 3 / (27 * s**8)  # of the mass fractions on the border; falls with s
    close = np.interp(q / (1 + q) ** 2, product[::-1], s[::-1])
    return close, np.sqrt((1 + np.cbrt(q)) ** 3 / (1 + q))


def crosses_caustic(event: BinaryLens, t_first: float, t_last: float) -> bool:
    """Whether the straight track of the source's centre meets a caustic in [t_first, t_last]."""
    (x0, x1), (y0, y1) = track(event, np.array([t_first, t_last]))
    start, end = complex(x0, y0), complex(x1, y1)
    length = abs(end - start)
    points, successor = caustic_branches(event.s, event.q, CROSSING_PHASES)
    # In coordinates along + i across the track a crossing is a change of sign of the latter.
    place = (points - start) * ((end - start).conjugate() / length)
    after = place[successor, np.arange(1, CROSSING_PHASES + 1) % CROSSING_PHASES]
    met = (place.imag > 0) != (after.imag > 0)
    place, after = place[met], after[met]
    # Where on the track, by linear interpolation between neighbours on the caustic.
    part = place.imag / (place.imag - after.imag)
    crossing = place.real + part * (after.real - place.real)
    return bool(((crossing > 0) & (crossing < length)).any())
