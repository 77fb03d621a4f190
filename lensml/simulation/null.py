"""Pairs that nobody may tell apart: binaries whose companion has no mass, and their twins."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from lensml.lensing import BinaryLens, binary_magnification, fit_pspl
from lensml.seeds import event_generator
from lensml.simulation.lightcurves import PARAM_NAMES, LightCurves, dchi2_at_fractions
from lensml.simulation.priors import draw_binary, parameter_set
from lensml.simulation.survey import Survey, draw_numpy, observe

__all__ = ["null_pairs"]

MASS_RATIO = 1e-8
CLEARANCE = 5.0  # least u0 / rho: nearer, the finite source of one side is an anomaly by itself


def null_pairs(num_pairs: int, seed: int, *, survey: Survey | None = None) -> LightCurves:
    """A matched set from the baseline ranges in which every binary has q = 1e-8 and u0 > 5 rho.

    Args:
        num_pairs: Number of pairs.
        seed: Of events and noise, in a stream of their own: no simulated set shares an event.
        survey: How they are observed; None = the default, sigma = 0.1 mag.
    """
    survey = survey or Survey()
    times = survey.times
    generators = [event_generator(seed, "null", i) for i in range(num_pairs)]
    events = [_draw(generator, survey) for generator in generators]
    binary = -2.5 * np.log10([binary_magnification(e, times) for e in events])
    starts = torch.tensor([[[e.t0, e.u0, e.tE]] for e in events], dtype=torch.float64)
    grid = torch.from_numpy(times)
    fit = fit_pspl(grid, torch.from_numpy(binary), starts=starts)
    params = np.full((2 * num_pairs, len(PARAM_NAMES)), np.nan)
    params[::2, :3] = torch.stack([fit.t0, fit.u0, fit.tE], dim=1).numpy()
    params[1::2, :7] = [(e.t0, e.u0, e.tE, e.rho, e.s, e.q, e.alpha) for e in events]
    params[:, 7] = 1.0  # not blended
    clean = np.stack([fit.delta_mag(grid).numpy(), binary], axis=1).reshape(-1, len(times))
    return _observed(clean, params, generators, survey, seed)


def _draw(generator: np.random.Generator, survey: Survey) -> BinaryLens:
    while True:
        event = draw_binary(parameter_set("baseline"), generator, survey.window)
        if event.u0 > CLEARANCE * event.rho:
            return replace(event, q=MASS_RATIO)


def _observed(
    clean: NDArray, params: NDArray, generators: list, survey: Survey, seed: int
) -> LightCurves:
    """The set of noise-free magnitude changes (2 P, T) with noise from each pair's own stream."""
    times = survey.times
    draws = draw_numpy(generators, len(times))
    noisy = observe(torch.from_numpy(clean).float(), draws, survey, torch.from_numpy(times))
    delta, sigma, seen = (x.numpy() for x in noisy)
    until = dchi2_at_fractions(clean, seen, sigma, times).repeat(2, axis=0)
    m_base = np.full(len(clean), 18.0, dtype=np.float32)
    return LightCurves(
        X=np.where(seen, m_base[:, None] + delta, np.nan).astype(np.float32),
        y=np.tile(np.array([0, 1], dtype=np.int8), len(generators)),
        time=times,
        sigma=sigma if survey.photon_noise else sigma[:, 0].copy(),
        m_base=m_base,
        pair=np.arange(len(generators)).repeat(2),
        dchi2=until[:, -1].copy(),
        params=params,
        meta={"preset": "null", "seed": seed, "survey": survey.describe()},
        magnification=(10 ** (-0.4 * clean)).astype(np.float32),
        dchi2_at=until,
    )
