"""Contaminants: single lenses with finite source, parallax, a second or a variable source.

Each kind adds one effect to a single lens drawn from the priors of the binaries; the constants give
the ranges. All rows are class 0. `spoil` leaves the events and changes what is observed of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from math import cos, sin

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lensml.lensing import finite_source_magnification, fit_pspl, point_lens_magnification
from lensml.paths import InputError
from lensml.seeds import check_seed, event_generator
from lensml.simulation.lightcurves import PARAM_NAMES, LightCurves, concatenate, observe_pairs
from lensml.simulation.noise import ornstein_uhlenbeck
from lensml.simulation.priors import draw_single, log_uniform, parameter_set
from lensml.simulation.simulator import BASELINE_MAG, BLOCK
from lensml.simulation.survey import Survey

# What the quoted errors do not tell of: effect and size, in errors of an epoch where not noted.
CONDITIONS: dict[str, tuple[str, float]] = {
    "as quoted": ("white", 1.0),
    "1.2 times as large": ("white", 1.2),  # factor
    "outliers, 1 %": ("outliers", 0.01),  # fraction of epochs, five times the noise
    "outliers, 3 %": ("outliers", 0.03),
    "baseline off by 0.2 sigma": ("baseline", 0.2),  # rms
    "baseline off by 1 sigma": ("baseline", 1.0),
    "red noise, 0.3 sigma": ("red", 0.3),  # Ornstein-Uhlenbeck process, time-scale of a day
    "red noise, 0.5 sigma": ("red", 0.5),
    "red noise, 1 sigma": ("red", 1.0),
    "undeclared blend": ("blend", 0.1),  # least fraction of the flux that is lensed
}
KINDS = {
    "point_source": "single lens, point source: the control",
    "finite_source": "single lens, uniform disc; u0 log-uniform, so that the disc is resolved",
    "parallax": "single lens seen from the Earth on its orbit, towards the Galactic bulge",
    "binary_source": "single lens, two sources with their own t0 and u0",
    "variable_baseline": "single lens whose source pulsates and, every second time, drifts",
}
U0_DISC = (1e-3, 1.0)  # of `finite_source`, log-uniform: u0 < rho in a sixth, < 10 rho in half
# Of `parallax`: log10 normal, direction uniform. A lens of 0.3 solar masses has pi_E of 0.1 in the
# bulge and 0.2 half-way to it; correlations with tE and the direction of rotation are left out.
LOG10_PI_E = (-0.8, 0.35)
PI_E_RANGE = (0.01, 2.0)  # truncated
FIELD = (270.0, -29.5)  # right ascension and declination, J2000 [deg]
YEAR = 365.25  # time 0 of the grid falls on any day of it [d]
FLUX_RATIO = (1e-3, 1.0)  # second source over first, log-uniform; its t0, u0 from the same priors
AMPLITUDE = (0.01, 0.2)  # half the range of the pulsation, log-uniform [mag]
PERIOD = (2.0, 200.0)  # log-uniform [day]
STREAMS = ("side", "noise")  # of an event: its baseline, its noise and gaps
DRIFT = 0.1  # uniform from -DRIFT to DRIFT over 100 d, counted from the first epoch [mag]


@dataclass(frozen=True, kw_only=True)
class Contaminant:
    """A single lens and added effects; the defaults are a point source without any."""

    t0: float  # [day]
    u0: float  # of either sign where there is parallax [theta_E]
    tE: float  # [day]
    rho: float = 0.0  # [theta_E]
    pi_E_N: float = 0.0  # parallax to the north [AU / Einstein radius on the observer's plane]
    pi_E_E: float = 0.0  # and to the east; geocentric at t0
    date: float = 0.0  # of time 0 of the grid [day after J2000]
    t0_2: float = 0.0  # second source [day]
    u0_2: float = 1.0  # [theta_E]
    flux_ratio: float = 0.0  # second source over first
    amplitude: float = 0.0  # of the pulsation [mag]
    period: float = 1.0  # [day]
    phase: float = 0.0  # at time 0 [rad]
    drift: float = 0.0  # [mag in 100 d]


def draw_contaminant(kind: str, seed: int, index: int) -> Contaminant:
    """Event `index` of a kind; t0, tE, u0 and rho are those of the binaries but for `U0_DISC`."""
    if kind not in KINDS:
        raise InputError(f"`kind` is {kind!r}, but one of {', '.join(KINDS)} was expected")
    generator = event_generator(check_seed(seed), f"impostor_{kind}", index)
    single = draw_single(parameter_set("baseline"), generator)
    event = {"t0": single.t0, "u0": single.u0, "tE": single.tE}
    if kind == "finite_source":
        event |= {"rho": single.rho, "u0": log_uniform(generator, U0_DISC)}
    elif kind == "parallax":
        while not PI_E_RANGE[0] <= (pi_E := 10 ** generator.normal(*LOG10_PI_E)) <= PI_E_RANGE[1]:
            pass
        angle = generator.uniform(0, 2 * np.pi)
        event["u0"] = single.u0 if generator.random() < 0.5 else -single.u0
        event |= {"pi_E_N": pi_E * cos(angle), "pi_E_E": pi_E * sin(angle)}
        event["date"] = generator.uniform(0, YEAR)
    elif kind == "binary_source":
        second = draw_single(parameter_set("baseline"), generator)
        ratio = log_uniform(generator, FLUX_RATIO)
        event |= {"t0_2": second.t0, "u0_2": second.u0, "flux_ratio": ratio}
    elif kind == "variable_baseline":
        event |= {"amplitude": log_uniform(generator, AMPLITUDE)}
        event |= {
            "period": log_uniform(generator, PERIOD),
            "phase": generator.uniform(0, 2 * np.pi),
        }
        drift = generator.uniform(-DRIFT, DRIFT)
        event["drift"] = drift if generator.random() < 0.5 else 0.0
    return Contaminant(**event)


def sun_offset(days: ArrayLike, reference: ArrayLike) -> tuple[NDArray, NDArray]:
    """Offset (..., T) of the Sun from uniform motion of the Earth since `reference` [AU].

    North and east on the sky at `FIELD`, by dates [day after J2000, JD 2451545] that broadcast;
    offset and rate vanish at `reference`. Annual parallax as in Gould (2004), ApJ 606, 319; the
    orbit of Meeus, Astronomical Algorithms, chapter 25, good to 2e-4 AU.
    """
    days, reference = np.asarray(days, dtype=float), np.asarray(reference, dtype=float)
    at, before, after = (_sun(reference + h) for h in (0.0, -0.25, 0.25))
    elapsed = days - reference
    return tuple(
        now - p - 2 * elapsed * (a - b)
        for now, p, b, a in zip(_sun(days), at, before, after, strict=True)
    )


def _sun(days: NDArray) -> tuple[NDArray, NDArray]:
    """The Sun from the Earth, projected on north and east at `FIELD` [AU]."""
    anomaly = np.radians(357.529 + 0.98560028 * days)
    s, c = np.sin(anomaly), np.cos(anomaly)
    centre = np.radians(1.915) * s + np.radians(0.040) * s * c
    longitude = np.radians(280.459 + 0.98564736 * days) + centre
    distance = 1.00014 - 0.01671 * c - 0.00014 * (2 * c**2 - 1)
    tilt, ra, dec = np.radians([23.439, *FIELD])
    x, in_plane = distance * np.cos(longitude), distance * np.sin(longitude)
    y, z = np.cos(tilt) * in_plane, np.sin(tilt) * in_plane
    north = np.cos(dec) * z - np.sin(dec) * (np.cos(ra) * x + np.sin(ra) * y)
    return north, np.cos(ra) * y - np.sin(ra) * x


def contaminant_magnification(events: list[Contaminant], times: NDArray) -> NDArray[np.float64]:
    """Flux of each event over its baseline's, everything included, at `times` (T,): (n, T)."""
    names = [f.name for f in fields(Contaminant)]
    columns = {k: np.array([[getattr(e, k)] for e in events], dtype=float) for k in names}
    # The (first) source from the lens, (n, T) [theta_E].
    t0, u0, pi_N, pi_E = (columns[k] for k in ("t0", "u0", "pi_E_N", "pi_E_E"))
    tau = (times - t0) / columns["tE"]
    if pi_N.any() or pi_E.any():
        north, east = sun_offset(times + columns["date"], t0 + columns["date"])
        u0, tau = u0 + pi_N * east - pi_E * north, tau + pi_N * north + pi_E * east
    u = np.hypot(u0, tau)
    flux = point_lens_magnification(np.maximum(u, 1e-12))
    for k in np.flatnonzero(columns["rho"]):
        flux[k] = finite_source_magnification(u[k], events[k].rho)
    if (ratio := columns["flux_ratio"]).any():
        u = np.hypot(columns["u0_2"], (times - columns["t0_2"]) / columns["tE"])
        flux = (flux + ratio * point_lens_magnification(u)) / (1 + ratio)
    if columns["amplitude"].any() or columns["drift"].any():
        angle = 2 * np.pi * times / columns["period"] + columns["phase"]
        drift = columns["drift"] * (times - times[0]) / 100
        flux *= 10 ** (-0.4 * (columns["amplitude"] * np.sin(angle) + drift))
    return flux


def _blocks(kind: str, num_events: int, seed: int) -> Iterator[tuple[list[int], list[Contaminant]]]:
    """Indices and events of each block, the last one filled up: bits do not depend on it."""
    if num_events < 1:
        raise InputError(f"`num_events` is {num_events}, but at least 1 was expected")
    for first in range(0, num_events, BLOCK):
        indices = [min(i, num_events - 1) for i in range(first, first + BLOCK)]
        yield indices, [draw_contaminant(kind, seed, i) for i in indices]


def contaminant_set(
    kind: str, num_events: int, seed: int, survey: Survey | None = None
) -> LightCurves:
    """One of `KINDS` as a test set: every row class 0, no twins, `dchi2` NaN.

    Row i is the same in a set of any size; events and noise have random streams of the kind's own.
    `magnification` is the noise-free flux over that of the constant baseline, the `u0` of `params`
    its size; `draw_contaminant(kind, seed, i)` has the rest. `survey` None: sigma = 0.1 mag.
    """
    survey, preset = survey or Survey(), f"impostor_{kind}"
    parts = []
    for indices, events in _blocks(kind, num_events, seed):
        flux = contaminant_magnification(events, survey.times)
        side, noise = ([event_generator(seed, preset, i, s) for i in indices] for s in STREAMS)
        m_base = np.array([g.uniform(*BASELINE_MAG) for g in side], dtype=np.float32)
        # A survey observes pairs: each event is observed twice, and the second row is dropped.
        twice = (-2.5 * np.log10(flux)).repeat(2, axis=0), m_base.repeat(2)
        observed = observe_pairs(*twice, noise, survey, survey.times, matched=False)
        params = np.full((len(events), len(PARAM_NAMES)), np.nan)
        params[:, :4] = [(e.t0, abs(e.u0), e.tE, e.rho or np.nan) for e in events]
        params[:, 7] = 1.0  # not blended
        own = {"m_base": m_base, "params": params, "magnification": flux.astype(np.float32)}
        parts.append({key: value[::2] for key, value in observed.items()} | own)
    return LightCurves(
        **{key: value[:num_events] for key, value in concatenate(parts).items()},
        y=np.zeros(num_events, dtype=np.int8),
        time=survey.times,
        pair=np.full(num_events, -1),
        meta={"preset": preset, "seed": seed, "survey": survey.describe(), "first_event": 0}
        | dict.fromkeys(("num_events", "num_rows"), num_events),
    )


def contaminant_training_set(kind: str, num_events: int, seed: int) -> LightCurves:
    """Contaminants on the default grid, each after its twin: a set that `train` reads.

    Row 2i + 1 is contaminant i of `contaminant_set(kind, ..., seed)`, row 2i its unblended PSPL fit
    in least squares. All are class 0 and noise-free; training draws noise.
    """
    survey = Survey()
    grid = torch.from_numpy(survey.times)
    parts = []
    for _, events in _blocks(kind, num_events, seed):
        delta = torch.from_numpy(-2.5 * np.log10(contaminant_magnification(events, survey.times)))
        starts = torch.tensor([[[e.t0, abs(e.u0), e.tE]] for e in events], dtype=torch.float64)
        twin = fit_pspl(grid, delta, starts=starts).delta_mag(grid)
        parts.append(torch.stack([twin, delta], dim=1).flatten(0, 1).float().numpy())
    clean = np.concatenate(parts)[: 2 * num_events]
    params = np.full((len(clean), len(PARAM_NAMES)), np.nan)
    params[:, -1] = 1.0  # not blended
    m_base = np.full(len(clean), 18.0, dtype=np.float32)
    return LightCurves(
        X=m_base[:, None] + clean,
        y=np.zeros(len(clean), dtype=np.int8),
        time=survey.times,
        sigma=np.full(len(clean), survey.sigma, dtype=np.float32),
        m_base=m_base,
        pair=np.arange(num_events).repeat(2),
        dchi2=np.full(len(clean), np.nan),
        params=params,
        meta={"preset": f"impostor_{kind}", "seed": seed, "survey": survey.describe()},
        magnification=(10 ** (-0.4 * clean)).astype(np.float32),
    )


def spoil(curves: LightCurves, condition: str, seed: int) -> LightCurves:
    """A set of unblended single lenses under one of `CONDITIONS`, added to the noise it has.

    Only what is observed changes: new `X`, or `m_base` for a wrong baseline. A row is the same in a
    set of any size, and effects of one kind differ in size only.
    """
    if condition not in CONDITIONS:
        raise InputError(
            f"`condition` is {condition!r}, but one of {', '.join(CONDITIONS)} was expected"
        )
    effect, size = CONDITIONS[condition]
    generator, sigma = event_generator(seed, f"spoil_{effect}", 0), curves.sigmas()
    meta = {**curves.meta, "condition": condition}
    if effect == "baseline":
        level = np.nanmedian(np.where(np.isfinite(curves.X), sigma, np.nan), axis=1)
        off = size * level * generator.standard_normal(len(curves))
        return replace(curves, m_base=(curves.m_base + off).astype(np.float32), meta=meta)
    if effect == "blend":
        params = curves.params.copy()
        params[:, -1] = generator.uniform(size, 1.0, len(curves))
        change = replace(curves, params=params).noise_free() - curves.noise_free()
    elif effect == "red":
        red = [ornstein_uhlenbeck(generator, t, np.ones(1)) for t in curves.times()]
        change = size * sigma * np.concatenate(red)
    elif effect == "outliers":
        hit, white = generator.standard_normal((len(curves), 2, curves.X.shape[1])).swapaxes(0, 1)
        change = np.where(hit < ndtri(size), np.sqrt(24) * sigma * white, 0.0)
    else:
        change = np.sqrt(size**2 - 1) * sigma * generator.standard_normal(curves.X.shape)
    return replace(curves, X=(curves.X + change).astype(np.float32), meta=meta)
