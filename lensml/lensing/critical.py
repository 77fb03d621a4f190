"""Critical curves and caustics of a binary lens in closed form, for thousands of lenses.

VBMicrolensing draws the same curves but keeps some 10 kB of every call (version 5.6.1), which a
simulation of a million events cannot afford.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CausticBranches", "caustic_branches", "caustic_curves"]

CUBE_ROOTS_OF_UNITY = np.exp(2j * np.pi / 3 * np.arange(3))[:, None]  # the cubic roots of one
NEWTON_STEPS = 2  # steps of Newton's method after the closed form


class CausticBranches(NamedTuple):
    """Four branches at N phases; neighbours in phase on one branch need not share a row."""

    points: NDArray[np.complex128]  # (4, N) on the caustic, centre-of-mass frame [theta_E]
    following: NDArray[np.int64]  # (4, N) row in which each continues at the next phase


def _quartic_roots(p: NDArray, q: NDArray, r: NDArray) -> NDArray[np.complex128]:
    """Roots (4, N) of w^4 + p w^2 + q w + r, each (N,): Ferrari (1540), polished."""
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
    m = m[np.abs(m).argmax(axis=0), np.arange(len(p))]
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
    """Points of the caustic at evenly spaced phases of the critical curve.

    Args:
        s: Separation of the lenses [theta_E].
        q: Mass ratio; the lighter lens lies at +s / (1 + q) on the real axis.
        num_phases: N.

    References:
        Witt (1990), A&A 236, 311; with the origin half-way between the lenses the critical curve
        is a quartic without its cubic term.
    """
    a, heavy, light = s / 2, 1 / (1 + q), q / (1 + q)
    phase = np.exp(2j * np.pi * np.arange(num_phases) / num_phases)
    # heavy / (w + a)^2 + light / (w - a)^2 = 1 / phase
    p = -2 * a * a - phase
    w = _quartic_roots(p, 2 * a * (heavy - light) * phase, a**4 - a * a * phase)
    conjugate = w.conj()
    zeta = w - heavy / (conjugate + a) - light / (conjugate - a)
    after = np.roll(w, -1, axis=1)
    following = np.abs(w[:, None] - after[None]).argmin(axis=1)
    return CausticBranches(zeta + a * (1 - q) / (1 + q), following)


def caustic_curves(s: float, q: float, num_phases: int = 200) -> list[NDArray[np.float64]]:
    """Closed caustic curves of a binary lens, each (2, K), centre-of-mass frame [theta_E]."""
    points, following = caustic_branches(s, q, num_phases)
    curves, left = [], set(range(4))
    while left:
        row, rows = min(left), []
        while row in left:  # once round the phases leads to the row where the curve goes on
            left.discard(row)
            for k in range(num_phases):
                rows.append((row, k))
                row = int(following[row, k])
        row_index, phase_index = np.array([*rows, rows[0]]).T
        curve = points[row_index, phase_index]
        curves.append(np.stack([curve.real, curve.imag]))
    return curves
