"""Training samples of the network for all events, from simulations.

A block of pairs is simulated on the grid, observed there or as a survey would, fitted, and cut
into `samples`.

Axes: 2 P rows (single lens, binary or contaminant), T grid epochs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lensml.network import CLASSES, MOST_EPOCHS, PLANETARY_Q, DataSetEpochs
from lensml.simulation import (
    BLOCK,
    PARAM_NAMES,
    Simulation,
    Survey,
    bright_factor,
    contaminant_training_set,
    draw_torch,
    draw_variable,
    make_block,
    noise_free_delta_mag,
    observe,
    observe_event,
    quoted_sigma,
    schedule,
)
from lensml.training.device_samples import ObservedRows, observed_rows
from lensml.training.samples import Observation, Samples, cut_samples, joined, log_ratio_terms

BLENDED = (0.1, 1.0)
SETS = (  # preset, range of f_s, weight
    ("baseline", None, 0.30), ("stellar", None, 0.17), ("planetary", None, 0.22),
    ("distinct", None, 0.09), ("baseline", BLENDED, 0.13), ("stellar", BLENDED, 0.06),
    ("distinct", BLENDED, 0.03),
)  # fmt: skip
KINDS = (  # kind, weight, class
    ("binary_source", 0.45, 3), ("parallax", 0.25, 0), ("finite_source", 0.2, 0),
    ("variable_baseline", 0.1, 0),
)  # fmt: skip
SURVEY_WEIGHTS = {
    "ogle": 0.3, "kmtnet": 0.2, "moa": 0.1, "rubin": 0.1, "roman": 0.1, "follow_up": 0.2,
}  # fmt: skip
BLOCKS_OF_SEED = 100_000_000  # at most
CONTAMINANTS, VARIABLES = 16, 14  # pairs of contaminants and variable stars beside a block of pairs
# Of CLASSES among events; twins of binaries and of second sources are single lenses.
_SECOND = KINDS[0][1] * CONTAMINANTS  # second sources
_EVENTS = (BLOCK + CONTAMINANTS, BLOCK / 2, BLOCK / 2, _SECOND, VARIABLES)
CLASS_FRACTIONS = tuple(n / sum(_EVENTS) for n in _EVENTS)
SKY = 0.42  # of observations
COARSE = dict(missing_fraction=(0.05, 0.4), keep_every=(1, 24), night=(0.3, 1.0))
GRID_SURVEYS = (  # weight; the thesis' grid with gaps, and coarser cadences with nights and a gap
    (0.75, Survey(sigma=(0.003, 0.2), missing_fraction=(0.05, 0.6))),
    (0.25, Survey(sigma=(0.003, 0.2), season_gap=(0.0, 40.0), **COARSE)),
)
UNKNOWN_ON_GRID = 0.12  # baselines of grid curves that are not given
GIVEN_ON_SKY = 0.2  # baselines of sky data sets that are
HIDE_BLENDING = 0.25  # unblended curves fitted with f_s free
MOST_ON_SKY = (1200, 1200, 1200, 3200)  # epochs, at random


class Curves(NamedTuple):
    """Noise-free curves of a block, in pairs of a single lens and something else."""

    delta: NDArray  # (2 P, T) magnitude minus baseline [mag]
    classes: NDArray  # (P,) class of the second row; that of the first is `single`
    blended: NDArray  # (P,) bool, whether f_s was drawn
    shapes: NDArray  # (2 P, 4) t0, u0, tE, f_s; of the second row where the first has none


def simulate_curves(generator: np.random.Generator, seed: int, place: int) -> Curves:
    """Block number `place` of pairs of one of `SETS`, with contaminants beside them."""
    name, blending, _ = SETS[generator.choice(len(SETS), p=[w for *_, w in SETS])]
    sim = Simulation(preset=name, num_pairs=10**9, seed=seed, blending=blending)
    rows = make_block((sim, range(place * BLOCK, (place + 1) * BLOCK)))
    f_s = torch.from_numpy(rows["params"][:, PARAM_NAMES.index("f_s")]).float()
    delta = noise_free_delta_mag(torch.from_numpy(rows["magnification"]), f_s).numpy()
    q = rows["params"][1::2, PARAM_NAMES.index("q")]
    kind, _, label = KINDS[generator.choice(len(KINDS), p=[w for _, w, _ in KINDS])]
    # Apart from all test sets, and for no other block of any seed.
    own_seed = BLOCKS_OF_SEED * (1 + seed) + place
    others = contaminant_training_set(kind, CONTAMINANTS, own_seed)
    other = others.X - others.m_base[:, None]
    # Contaminants come without parameters: their top tells where the curve goes on off the grid.
    top = others.time[other.argmin(axis=1)]
    shapes = np.stack([top, np.full(len(top), 1.0), np.full(len(top), 20.0), np.ones(len(top))], 1)
    own = rows["params"][:, [PARAM_NAMES.index(x) for x in ("t0", "u0", "tE", "f_s")]]
    return Curves(
        np.concatenate([delta, other]),
        np.concatenate([np.where(q < PLANETARY_Q, 1, 2), np.full(CONTAMINANTS, label)]),
        np.concatenate([np.full(BLOCK, blending is not None), np.zeros(CONTAMINANTS, bool)]),
        np.concatenate([own, shapes]),
    )


def observe_on_grid(curves: Curves, generator: np.random.Generator) -> list[Observation]:
    """Each row (2 P) as the thesis' grid sees it, with gaps and several cadences."""
    weights, surveys = zip(*GRID_SURVEYS, strict=True)
    survey = surveys[generator.choice(len(weights), p=weights)]
    times, clean = survey.times, torch.from_numpy(curves.delta).float()
    torch_generator = torch.Generator().manual_seed(int(generator.integers(2**31)))
    draws = draw_torch(len(clean) // 2, len(times), torch_generator, outliers=False)
    delta, sigma, seen = (x.numpy() for x in observe(clean, draws, survey, torch.from_numpy(times)))
    hidden, free = generator.random((2, len(clean) // 2))
    found = []
    for row in range(len(clean)):
        pair, on = row // 2, np.flatnonzero(seen[row])
        known = hidden[pair] > UNKNOWN_ON_GRID
        mag, noise = delta[row, on].astype(float), sigma[row, on].astype(float)
        data = DataSetEpochs(times[on], mag, noise, 0.0 if known else None, known)
        one, two = curves.delta[2 * pair, on], curves.delta[2 * pair + 1, on]
        ratio = log_ratio_terms(mag, one, two, noise, noise)
        blended = bool(curves.blended[pair] or free[pair] < HIDE_BLENDING or not known)
        t0, _, tE, _ = curves.shapes[row]
        found.append(Observation([data], blended, times[on], np.cumsum(ratio), t0 - 2 * tE))
    return found


def _everywhere(times: NDArray, delta: NDArray, shape: NDArray):
    """A curve (T,) of the grid at any time: beyond the grid it turns into a point lens."""
    t0, u0, tE, f_s = shape

    def lens(t: NDArray) -> NDArray:
        x = u0**2 + ((t - t0) / tE) ** 2
        return -2.5 * np.log10(1 + f_s * ((x + 2) / np.sqrt(x * (x + 4)) - 1))

    def at(t: NDArray) -> NDArray:
        edge = np.clip(t, times[0], times[-1])
        off = np.interp(edge, times, delta) - lens(edge)
        return lens(t) + off * np.exp(-np.abs(t - edge) / (0.5 * tE))

    return at


def observe_on_sky(curves: Curves, row: int, generator: np.random.Generator) -> Observation:
    """One row as a survey sees it: its epochs, noise and blends; baselines mostly not known."""
    pair, grid = row // 2, Survey().times
    t0, _, tE, _ = curves.shapes[row]
    name = generator.choice(list(SURVEY_WEIGHTS), p=list(SURVEY_WEIGHTS.values()))
    plans = schedule(str(name), generator, t0, tE, int(generator.choice(MOST_ON_SKY)))
    both = [_everywhere(grid, curves.delta[k], curves.shapes[k]) for k in (2 * pair, 2 * pair + 1)]
    seen = observe_event(generator, both[row % 2], plans)
    ratios = []
    for plan, one in zip(plans, seen, strict=True):
        truths = []
        for curve in both:
            flux = 10 ** (-0.4 * curve(plan.times))
            truths.append(plan.m_base - 2.5 * np.log10(np.maximum(1 + plan.f_s * (flux - 1), 1e-4)))
        # The true white noise were either the truth.
        quoted = [quoted_sigma(plan, truth) for truth in (*truths, one.truth)]
        steep = [sigma * bright_factor(sigma, one.bright) for sigma in quoted]
        noise = [one.white * sigma / steep[2] for sigma in steep[:2]]
        ratios.append(log_ratio_terms(one.mag - one.systematic, *truths, *noise))
    return _joined(seen, ratios, generator, t0 - 2 * tE)


def observe_variable(generator: np.random.Generator) -> Observation:
    """A variable star as a survey sees it, at a time and for a time of a lens."""
    t0, tE = generator.uniform(-50, 50), float(np.exp(generator.normal(3.1, 0.8)))
    name = generator.choice(list(SURVEY_WEIGHTS), p=list(SURVEY_WEIGHTS.values()))
    plans = schedule(str(name), generator, t0, tE, MOST_ON_SKY[0])
    seen = observe_event(generator, draw_variable(generator, t0).delta_mag, plans)
    return _joined(seen, [np.zeros(len(x.times)) for x in seen], generator, t0 - 2 * tE)


def _joined(seen, ratios, generator, begins) -> Observation:
    """Data sets of an event of the sky; in bands of which fewer than 3 epochs came, left out."""
    data = []
    for one in seen:
        given = generator.random() < GIVEN_ON_SKY
        base = one.m_base + 0.03 * generator.standard_normal() if given else None
        data.append(DataSetEpochs(one.times, one.mag, one.sigma, base))
    times = np.concatenate([x.times for x in seen])
    order = np.argsort(times, kind="stable")
    ratio = np.cumsum(np.concatenate(ratios)[order])
    return Observation(data, True, times[order], ratio, begins)


def make_observations(
    seed: int, place: int, times: int = 1
) -> Iterator[tuple[Observation, int, int, np.random.Generator]]:
    """Block `place` of a seed: every curve observed `times` over, as `cut_samples` takes it.

    Observation, class of the event, class of its pair's second curve, and the generator.
    """
    generator = np.random.default_rng([seed, place])
    curves = simulate_curves(generator, seed, place)
    for _ in range(times):
        sky = generator.random(len(curves.delta)) < SKY
        on_grid = observe_on_grid(curves, generator)
        for row, there in enumerate(sky):
            second = int(curves.classes[row // 2])
            if second == 0 and row % 2 == 0:  # the twin of a single lens
                continue
            seen = observe_on_sky(curves, row, generator) if there else on_grid[row]
            yield seen, second if row % 2 else 0, second, generator
        for _ in range(VARIABLES):
            yield observe_variable(generator), CLASSES.index("other"), 0, generator


def make_samples(seed: int, place: int, per_curve: int = 24, times: int = 2) -> Samples:
    """Samples of block `place` of a seed: every curve observed `times` over."""
    made = make_observations(seed, place, times)
    return joined(
        [cut_samples(seen, label, second, per_curve, rng) for seen, label, second, rng in made]
    )


class MadeBlock(NamedTuple):
    """A block for a device that makes the samples itself."""

    rows: list[ObservedRows]  # of one data set, of several; arrays
    samples: Samples | None  # of events that kernels do not take
    seed: int  # of what is drawn on the device


def make_rows(seed: int, place: int, per_curve: int = 24, times: int = 2) -> MadeBlock:
    """The events of `make_samples`, not fitted yet but for those of too many epochs."""
    groups, long = {False: [], True: []}, []
    for seen, label, second, generator in make_observations(seed, place, times):
        if len(seen.times) > MOST_EPOCHS:
            long.append(cut_samples(seen, label, second, per_curve, generator))
        else:
            groups[len(seen.datasets) > 1].append((seen, label, second))
    rows = [observed_rows(group) for group in groups.values() if group]
    kept = [x for x in long if x is not None]
    return MadeBlock(rows, joined(kept) if kept else None, int(generator.integers(2**62)))
