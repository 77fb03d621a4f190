"""Magnification of single and binary lenses; the only module that calls VBMicrolensing."""

from math import cos, log, sin

import numpy as np
from numpy.typing import NDArray
from VBMicrolensing import VBMicrolensing

from lensml.lensing.caustics import caustic_branches
from lensml.lensing.interpolation import (
    adaptive_sample,
    coarsest_spacing,
    intervals_within,
    is_even,
)
from lensml.lensing.lenses import BinaryLens, to_centre_of_mass

FINITE_SOURCE_REACH = 50.0  # beyond this many radii the disc differs from a point by < 1e-4
INTERPOLATION_TOLERANCE = 0.05  # largest error of interpolation [the solver's tolerance]
ANGLES = 128  # nodes of the quadrature over a uniform disc
CAUSTIC_PHASES = 80  # points on each of four branches to find epochs near a caustic


def check_epochs(times: NDArray) -> None:
    """Reject epochs that no observer could have recorded in this order."""
    if times.ndim != 1:
        raise ValueError(
            f"`times` has shape {times.shape}, but one epoch per entry was expected, shape (T,); "
            "call once per event to use different epochs for different events"
        )
    if (backward := np.flatnonzero(~(np.diff(times) > 0))).size:
        i = backward[0]
        raise ValueError(
            f"`times` must increase strictly, but times[{i + 1}] = {times[i + 1]:g} d follows "
            f"times[{i}] = {times[i]:g} d; sort the epochs and drop duplicates first"
        )


def _reset_solver() -> VBMicrolensing:
    """A solver in a fixed initial state.

    VBMicrolensing starts its root finding from the roots it found last, even across solver objects:
    a curve's last bits would depend on the event before it. One full finite-source point (some
    microseconds) sets that state to the same values every time.
    """
    solver = VBMicrolensing()
    solver.BinaryMag(0.7, 0.3, 0.3, 0.2, 0.01, 1e-3)
    return solver


def binary_magnification(
    event: BinaryLens, times: NDArray, *, tolerance: float = 1e-3, every_epoch: bool = False
) -> NDArray[np.float64]:
    """Magnification of a uniform disc by a binary lens, (T,), at increasing `times` [day].

    `tolerance` is the absolute and relative accuracy. Unless `every_epoch`, evenly spaced epochs
    are solved at some (a tenth) and interpolated where the curve is proven smooth. ValueError if
    `times` do not increase. MNRAS: Bozza (2010), 408, 2188; Bozza et al. (2018), 479, 5157.
    """
    check_epochs(times)
    solver = _reset_solver()
    solver.Tol = solver.RelTol = tolerance  # both: the default Tol of 1e-2 would rule otherwise
    u0, t0 = to_centre_of_mass(event)
    # VBMicrolensing wants natural logarithms of s, q, rho and tE, in exactly this order.
    parameters = [log(event.s), log(event.q), u0, event.alpha, log(event.rho), log(event.tE), t0]
    spacing = coarsest_spacing(len(times))
    if every_epoch or spacing == 1 or not is_even(times):
        return np.asarray(solver.BinaryLightCurve(parameters, times)[0])
    # The ratio to the heavier lens alone is smoother than the curve: interpolate the ratio.
    step = (times[-1] - times[0]) / (len(times) - 1)
    epochs = times[0] + step * np.arange(len(times) + spacing)  # a few behind the end, too
    epochs[: len(times)] = times
    single = _heavier_lens(event, epochs)

    def ratio(index: NDArray) -> NDArray:
        return np.asarray(solver.BinaryLightCurve(parameters, epochs[index])[0]) / single[index]

    near = _near_caustics(event, times[0], step, len(times))
    found = adaptive_sample(ratio, len(times), near, INTERPOLATION_TOLERANCE * tolerance)
    return found * single[: len(times)]


def _heavier_lens(event: BinaryLens, times: NDArray) -> NDArray[np.float64]:
    """Magnification of the heavier lens alone, or of both masses as one lens for s <= 1."""
    tau = (times - event.t0) / event.tE
    x = tau * tau + event.u0**2
    if event.s > 1:
        x *= 1 + event.q  # in Einstein radii of its own
    return (x + 2) / np.sqrt(x * (x + 4))


def _near_caustics(
    event: BinaryLens, first: float, step: float, num_epochs: int
) -> dict[int, NDArray[np.bool_]]:
    """Intervals of each pass of the sampling near which the disc may meet a caustic.

    Away from caustics a curve varies on the scale of the distance to them: with steps of half that
    distance the check between nodes cannot miss a feature.
    """
    points, successor = caustic_branches(event.s, event.q, CAUSTIC_PHASES)
    u0, t0 = to_centre_of_mass(event)
    unit = step / event.tE  # theta_E an epoch
    places = points / unit
    # Each point stands for the caustic as far as its neighbours, which may bulge as much.
    row, column = successor, np.arange(1, CAUSTIC_PHASES + 1) % CAUSTIC_PHASES
    gap = np.abs(places[row, column] - places)
    reach = gap.copy()
    reach[row, column] = np.maximum(reach[row, column], gap)
    # Coordinates along the track from the first epoch, and across it.
    sin_a, cos_a = sin(event.alpha), cos(event.alpha)
    x, y = places.real.ravel(), places.imag.ravel()
    return intervals_within(
        (t0 - first) / step - x * cos_a - y * sin_a,
        x * sin_a - y * cos_a - u0 / unit,
        np.concatenate(reach) + event.rho / unit,
        num_epochs,
    )


def point_lens_magnification(u: NDArray) -> NDArray[np.float64]:
    """Magnify a point source at separation `u` [theta_E] from a point lens (Paczynski 1986)."""
    u = np.asarray(u, dtype=float)
    return (u**2 + 2) / (u * np.sqrt(u**2 + 4))


def finite_source_magnification(u: NDArray, rho: float) -> NDArray[np.float64]:
    """Magnification (T,) of a disc of radius `rho` at separation `u` (T,) from a point lens.

    Uniform disc; `rho` and `u` [theta_E], `rho` 0 = a point. One smooth integral (no hand-over
    between methods, no steps of several mmag): area of the image of each ray, Lee et al. (2009),
    ApJ 695, 200, eqs. 3-5, with the angle substituted so that the rim is no branch point.
    """
    u = np.asarray(u, dtype=float)
    result = point_lens_magnification(np.maximum(u, 1e-12))
    near = u < FINITE_SOURCE_REACH * rho
    if rho <= 0 or not near.any():
        return result
    # Gauss-Legendre nodes over the angle theta of a ray from the lens, at epochs near the disc.
    nodes, weights = np.polynomial.legendre.leggauss(ANGLES)
    v = u[near, None]
    outside = v > rho
    # Outside, sin(theta) = (rho / u) sin(phi) sweeps the tangent cone; inside theta = phi.
    top = np.where(outside, np.pi / 2, np.pi)
    phi = top * (nodes + 1) / 2
    ratio = np.where(outside, rho / np.maximum(v, 1e-300), 1.0)
    sin_theta = ratio * np.sin(phi)
    cos_theta = np.where(outside, np.sqrt(np.maximum(1 - sin_theta**2, 0.0)), np.cos(phi))
    jacobian = np.where(outside, ratio * np.cos(phi) / np.maximum(cos_theta, 1e-300), 1.0)
    # Where the ray enters and leaves the disc; the area of its images has a closed form.
    half = np.sqrt(np.maximum(rho**2 - (v * sin_theta) ** 2, 0.0))
    far_rim = v * cos_theta + half
    near_rim = np.where(outside, np.maximum(v * cos_theta - half, 0.0), 0.0)
    area = far_rim * np.sqrt(far_rim**2 + 4) - near_rim * np.sqrt(near_rim**2 + 4)
    integral = (area * jacobian * weights * top / 2).sum(axis=1)
    result[near] = integral / (np.pi * rho**2)
    return result
