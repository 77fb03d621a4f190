"""Pairs of a binary and its single-lens twin in all data sets of a survey."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from lensml.lensing import BinaryLens, binary_magnification, point_lens_magnification
from lensml.seeds import check_seed, event_generator
from lensml.simulation.noise import NoiseLevels
from lensml.simulation.priors import draw_binary, parameter_set
from lensml.simulation.schedules import (
    DataSet,
    Observed,
    noise_levels,
    observe_event,
    quoted_sigma,
    schedule,
)


class SurveyPair(NamedTuple):
    """A binary and its single-lens twin at the same epochs, with the same noise levels."""

    binary: list[Observed]  # a data set each
    twin: list[Observed]
    plans: tuple[DataSet, ...]  # with the f_s of the binary
    twin_params: NDArray  # (3 + K,) t0, u0, tE and the f_s of each data set
    dchi2: float  # noise-free, of all data sets, by the errors quoted for the noise-free binary


def survey_set(
    name: str, num_pairs: int, seed: int, preset: str = "baseline", noise: bool = True
) -> list[SurveyPair]:
    """Pairs of a survey of `SURVEYS`, for measuring; pair i does not depend on their number.

    The twin fits the noise-free binary best in all data sets together, in magnitudes over their
    errors: t0, u0, tE common, f_s of each data set free, baselines known.
    """
    check_seed(seed)
    found = []
    for index in range(num_pairs):
        g = event_generator(seed, f"{name}/{preset}", index)
        curve = np.zeros(0)
        while not (curve.size and np.isfinite(curve).all() and (curve > 0.99).all()):
            event = draw_binary(parameter_set(preset), g, (-100.0, 100.0))
            plans = schedule(name, g, event.t0, event.tE)
            epochs = np.unique(np.concatenate([p.times for p in plans]))
            # An event on which the solver fails is drawn anew.
            with suppress(RuntimeError, ArithmeticError):
                curve = binary_magnification(event, epochs, every_epoch=True)
        levels = noise_levels(g, plans) if noise else [NoiseLevels()] * len(plans)
        best, f_s, dchi2 = _fit_twin(event, plans, epochs, curve)
        twins = [replace(p, f_s=f) for p, f in zip(plans, f_s, strict=True)]

        def lens(times, epochs=epochs, curve=curve):
            return -2.5 * np.log10(curve[np.searchsorted(epochs, times)])

        def single(times, best=best):
            return -2.5 * np.log10(_point_lens(best, times))

        rows = observe_event(g, lens, plans, levels), observe_event(g, single, twins, levels)
        found.append(SurveyPair(*rows, plans, np.array([*best[:2], np.exp(best[2]), *f_s]), dchi2))
    return found


def _point_lens(p: NDArray, times: NDArray) -> NDArray:
    """Magnification at (t0, u0, ln tE)."""
    return point_lens_magnification(np.hypot(p[1], (times - p[0]) / np.exp(p[2])))


def _fit_twin(event: BinaryLens, plans: Sequence[DataSet], epochs: NDArray, curve: NDArray):
    """(t0, u0, ln tE), f_s of each data set, and delta-chi2 of the best single lens."""
    fluxes = [1 + p.f_s * (curve[np.searchsorted(epochs, p.times)] - 1) for p in plans]
    sigmas = [
        quoted_sigma(p, p.m_base - 2.5 * np.log10(f)) for p, f in zip(plans, fluxes, strict=True)
    ]

    def fractions(p: NDArray) -> list[float]:
        """Best in flux: linear, so that the search has three parameters only."""
        found = []
        for plan, flux, sigma in zip(plans, fluxes, sigmas, strict=True):
            excess, weight = _point_lens(p, plan.times) - 1, (sigma * flux) ** -2.0
            f_s = (weight * (flux - 1) * excess).sum() / max((weight * excess**2).sum(), 1e-30)
            found.append(float(np.clip(f_s, 1e-3, 1.0)))
        return found

    def residuals(p: NDArray) -> NDArray:
        """In magnitudes over their errors; the fractions follow the three parameters, or not."""
        f_s = p[3:] if len(p) > 3 else fractions(p)
        curves = (1 + f * (_point_lens(p, d.times) - 1) for f, d in zip(f_s, plans, strict=True))
        each = zip(curves, fluxes, sigmas, strict=True)
        return np.concatenate([2.5 * np.log10(c / flux) / sigma for c, flux, sigma in each])

    top = epochs[curve.argmax()]
    starts = [(event.t0, u, np.log(event.tE)) for u in (event.u0, 0.03, 0.3, 1.0)]
    starts += [(top, 0.1, np.log(event.tE)), (top, 0.5, np.log(event.tE / 3))]
    low, high, scale = [-np.inf, 1e-5, -3.0], [np.inf, 5.0, 8.0], [1.0, 0.1, 0.1]
    options = {"bounds": (low, high), "x_scale": scale}
    best = min((least_squares(residuals, x, **options) for x in starts), key=lambda fit: fit.cost)
    # From there all at once: the best fractions in flux are not the best in magnitudes.
    count = len(plans)
    options = {"bounds": (low + [1e-3] * count, high + [1.0] * count)}
    options["x_scale"] = scale + [0.1] * count
    best = least_squares(residuals, np.append(best.x, fractions(best.x)), **options)
    return best.x[:3], best.x[3:], 2 * float(best.cost)
