"""Pairs of a binary and its single-lens twin in all data sets of a survey."""

from collections.abc import Sequence
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
        event = draw_binary(parameter_set(preset), g, (-100.0, 100.0))
        plans = schedule(name, g, event.t0, event.tE)
        levels = noise_levels(g, plans) if noise else [NoiseLevels()] * len(plans)
        epochs = np.unique(np.concatenate([p.times for p in plans]))
        curve = binary_magnification(event, epochs, every_epoch=True)
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

    def fit(p: NDArray) -> tuple[list[float], NDArray]:
        fractions, residuals = [], []
        for plan, flux, sigma in zip(plans, fluxes, sigmas, strict=True):
            excess, weight = _point_lens(p, plan.times) - 1, (sigma * flux) ** -2.0
            f_s = (weight * (flux - 1) * excess).sum() / max((weight * excess**2).sum(), 1e-30)
            fractions.append(float(np.clip(f_s, 1e-3, 1.0)))
            residuals.append(2.5 * np.log10((1 + fractions[-1] * excess) / flux) / sigma)
        return fractions, np.concatenate(residuals)

    top = epochs[curve.argmax()]
    starts = [(event.t0, u, np.log(event.tE)) for u in (event.u0, 0.03, 0.3, 1.0)]
    starts += [(top, 0.1, np.log(event.tE)), (top, 0.5, np.log(event.tE / 3))]
    options = {"bounds": ([-np.inf, 1e-5, -3], [np.inf, 5, 8]), "x_scale": (1, 0.1, 0.1)}
    fits = [least_squares(lambda p: fit(p)[1], start, **options) for start in starts]
    best = min(fits, key=lambda found: found.cost)
    return best.x, fit(best.x)[0], 2 * float(best.cost)
