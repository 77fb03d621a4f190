"""Adaptive sampling of smooth curves on evenly spaced epochs, by bisection.

Every operation on arrays is a plain sum, product, quotient or comparison of 64-bit numbers, which
has one correct result: a curve's bits do not depend on the machine's vector length.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

MIN_INTERVALS = 20  # of the coarsest pass: 10 d in the default survey
# Sixth-order interpolation half-way between nodes (Deslauriers & Dubuc 1989), outermost node first.
MIDPOINT_WEIGHTS = (3 / 256, -25 / 256, 150 / 256)


def is_even(times: NDArray) -> bool:
    """Whether epochs (T,) are evenly spaced, to a thousandth of their spacing."""
    step = (times[-1] - times[0]) / (len(times) - 1)
    return bool(np.abs(times - (times[0] + step * np.arange(len(times)))).max() < 1e-3 * step)


def coarsest_spacing(num_epochs: int) -> int:
    """Epochs between the nodes of the first pass, a power of two; 1 where every epoch is one."""
    spacing = 1
    while (num_epochs - 1) // (2 * spacing) >= MIN_INTERVALS:
        spacing *= 2
    return spacing


def _extrapolate(six: NDArray) -> tuple[float, float]:
    """Values one and two nodes before the first of `six`, on their polynomial of degree five."""
    a, b, c, d, e, f = six.tolist()
    one = 6 * a - 15 * b + 20 * c - 15 * d + 6 * e - f
    return one, 21 * a - 70 * b + 105 * c - 84 * d + 35 * e - 6 * f


def _midpoints(values: NDArray) -> NDArray:
    """Interpolant half-way between neighbours of `values` (N + 1,), shape (N,), N >= 5."""
    padded = np.empty(len(values) + 4)
    padded[2:-2] = values
    padded[1], padded[0] = _extrapolate(values[:6])
    padded[-2], padded[-1] = _extrapolate(values[:-7:-1])
    outer, next_, inner = MIDPOINT_WEIGHTS
    result = padded[:-5] + padded[5:]
    result *= outer
    result += next_ * (padded[1:-4] + padded[4:-1])
    result += inner * (padded[2:-3] + padded[3:-2])
    return result


def intervals_within(
    along: NDArray, across: NDArray, reach: NDArray, num_epochs: int
) -> dict[int, NDArray[np.bool_]]:
    """Intervals of each pass that lie near any of K points; epochs are the unit of length.

    `along` (K,) is a point's position along the track, 0 at the first epoch, `across` its distance
    from the track, `reach` how near is near, beyond twice the interval's own length. For each
    spacing h of nodes (64, 32, ..., 2) a mask of the intervals that begin at 0, h, 2 h, ....
    """
    coarsest = coarsest_spacing(num_epochs)
    spacings = [coarsest >> k for k in range(coarsest.bit_length() - 1)]
    if not spacings:
        return {}
    # At spacing h the circle of radius 2 h + reach about a point cuts the track at along +- half.
    h = np.array(spacings, dtype=float)[:, None]
    radius = 2 * h + reach
    squared = radius * radius - across * across
    level, point = np.nonzero(squared > 0)
    half = np.sqrt(squared[level, point])
    # First and last interval that each circle touches.
    inverse = 1 / h[:, 0][level]  # exact
    count = -(-(num_epochs - 1) // coarsest) * coarsest  # of epochs, less one
    first = np.floor((along[point] - half) * inverse)
    last = np.floor((along[point] + half) * inverse)
    end = count * inverse
    met = (last >= 0) & (first < end)
    # Mark these stretches of intervals: one row a pass, wide enough for the finest; +1 where a
    # stretch begins, -1 behind its end, and their running sum is positive inside.
    width = count // 2 + 1
    row = level[met] * width
    begin = row + np.maximum(first[met], 0).astype(int)
    behind = row + np.minimum(last[met] + 1, end[met]).astype(int)
    size = len(spacings) * width
    change = np.bincount(begin, minlength=size) - np.bincount(behind, minlength=size)
    inside = np.cumsum(change.reshape(len(spacings), width), axis=1) > 0
    return {s: inside[k, : count // s] for k, s in enumerate(spacings)}


def adaptive_sample(
    evaluate: Callable[[NDArray], Sequence[float]],
    num_epochs: int,
    near: dict[int, NDArray[np.bool_]],
    tolerance: float,
) -> NDArray[np.float64]:
    """A positive curve at epochs 0, 1, ..., num_epochs - 1 from evaluations at some of them.

    `evaluate` takes indices of epochs, increasing; a few may lie behind the end. Intervals `near` a
    feature (`intervals_within`) are always evaluated at their middle: one narrower than an interval
    escapes the check.

    `tolerance` is the largest relative error of an interpolated middle in the first pass; twice as
    much in each further pass, where half as many epochs depend on it. Once the middle is a node
    itself, the interpolant errs by a small part of that (1/64 on a smooth curve).
    """
    # Nodes of the coarsest pass.
    spacing = coarsest_spacing(num_epochs)
    count = -(-(num_epochs - 1) // spacing)
    values = np.asarray(evaluate(np.arange(0, count * spacing + 1, spacing)))
    needs_refinement = np.ones(count, dtype=bool)
    while spacing > 1:
        # Interpolate the middle of every interval; evaluate and check the doubtful ones.
        middle = _midpoints(values)
        checked = np.flatnonzero(needs_refinement | near[spacing])
        wrong = np.zeros(len(middle) + 2, dtype=bool)
        if len(checked):
            exact = np.asarray(evaluate(checked * spacing + spacing // 2))
            wrong[checked + 1] = ~(np.abs(exact - middle[checked]) <= tolerance * exact)
            middle[checked] = exact
        # Both halves of a wrong interval go on, and of its neighbours, whose interpolants use it.
        needs_refinement = np.repeat(wrong[:-2] | wrong[1:-1] | wrong[2:], 2)
        # The middles become nodes of the next pass.
        both = np.empty(2 * len(middle) + 1)
        both[::2], both[1::2] = values, middle
        values, spacing, tolerance = both, spacing // 2, 2 * tolerance
    return values[:num_epochs]
