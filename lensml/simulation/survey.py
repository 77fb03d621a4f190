"""Noise, gaps and quoted errors of a survey, on any device.

Axes: P pairs, B = 2 P rows, T epochs.

Row 2i is the single lens and row 2i + 1 the binary of event i. What belongs to the event (its
error level, its fraction of lost epochs, the phase of its nights) is drawn once per pair; noise
and gaps are drawn for each row on its own, and never depend on the class.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lensml.limits import MAX_EPOCHS
from lensml.paths import InputError

Range = float | tuple[float, float]
NUM_PAIR_DRAWS = 8
ALLOWED = {"missing_fraction": (0, 0.999), "sigma": (1e-5, 10), "night": (0.01, 1)}
ALLOWED |= {"season_gap": (0, 1e4), "outlier_fraction": (0, 0.5), "window": (-1e5, 1e5)}
ALLOWED |= {"num_epochs": (1, MAX_EPOCHS), "keep_every": (1, MAX_EPOCHS)}
ALLOWED |= {"error_scale": (0.01, 100), "baseline_error": (0, 100)}
PAIRED = ("window", "keep_every")  # low and high


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Cadence, gaps and errors of observation; a range (low, high) is drawn once per event."""

    num_epochs: int = 1500
    window: tuple[float, float] = (-100.0, 100.0)  # first and last grid epoch [day]
    missing_fraction: Range = 0.2  # epochs lost at random; a range is uniform
    sigma: Range = 0.1  # Gaussian error [mag]; a range is log-uniform
    night: Range = 1.0  # fraction of each day in which the field is observable
    season_gap: Range = 0.0  # length of one gap at a random place [day]
    keep_every: tuple[int, int] = (1, 1)  # thin the grid to every k-th epoch, k log-uniform
    photon_noise: bool = False  # `sigma` holds at baseline and shrinks as the source brightens
    error_scale: Range = 1.0  # true noise over quoted error
    outlier_fraction: float = 0.0  # epochs whose noise is five times as large
    baseline_error: float = 0.0  # scatter of the adopted baseline [units of sigma]

    def __post_init__(self) -> None:
        for name, (low, high) in ALLOWED.items():
            given = getattr(self, name)
            values = given if isinstance(given, tuple | list) else (given,)
            if len(values) > 2 or name in PAIRED and (len(values) < 2 or values[0] > values[1]):
                raise InputError(f"`{name}` is {given!r}, but low and high were expected")
            for value in values:
                number = isinstance(value, Real) and not isinstance(value, bool)
                if not (number and low <= value <= high):
                    raise InputError(f"`{name}` is {value!r}, but {low:g} to {high:g} was expected")

    @property
    def times(self) -> np.ndarray:
        """Grid epochs, shape (T,), float64 [day]."""
        return np.linspace(*self.window, self.num_epochs)

    @property
    def exact(self) -> bool:
        """Whether the baseline and the quoted errors hold exactly."""
        scaled = bool((np.atleast_1d(self.error_scale) != 1).any())
        return not (scaled or self.outlier_fraction or self.baseline_error)

    def describe(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def survey_of(meta: Mapping) -> Survey:
    """The survey a set says it was observed with; the default where it says nothing."""
    known = {f.name for f in fields(Survey)}
    given = {k: v for k, v in (meta.get("survey") or {}).items() if k in known}
    return Survey(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


class Draws(NamedTuple):
    """Random numbers of P pairs as `observe` uses them."""

    pair: Tensor  # (P, 8) uniform, one set per event
    mask: Tensor  # (2 P, T) uniform
    noise: Tensor  # (2 P, T) standard normal
    outlier: Tensor | None  # (2 P, T) uniform; None where the survey has no outliers
    baseline: Tensor  # (2 P, 1) standard normal


def draw_numpy(generators: list[np.random.Generator], num_epochs: int) -> Draws:
    """Draws of each pair from its event's own generator: they do not depend on the batch."""
    parts = [
        (
            g.random(NUM_PAIR_DRAWS, dtype=np.float32),
            g.random((2, num_epochs), dtype=np.float32),
            g.standard_normal((2, num_epochs), dtype=np.float32),
            g.random((2, num_epochs), dtype=np.float32),
            g.standard_normal((2, 1), dtype=np.float32),
        )
        for g in generators
    ]
    pair, *rows = (np.stack(column) for column in zip(*parts, strict=True))
    return Draws(torch.from_numpy(pair), *(torch.from_numpy(np.concatenate(r)) for r in rows))


def draw_torch(
    num_pairs: int, num_epochs: int, generator: torch.Generator, *, outliers: bool = True
) -> Draws:
    """Draws of all pairs from one generator, on its device, for training.

    Without `outliers` nothing is drawn for them; the other numbers are the same.
    """
    rows, options = 2 * num_pairs, {"generator": generator, "device": generator.device}
    pair = torch.rand(num_pairs, NUM_PAIR_DRAWS, **options)
    mask = torch.rand(rows, num_epochs, **options)
    noise = torch.randn(rows, num_epochs, **options)
    baseline = torch.randn(rows, 1, **options)
    outlier = torch.rand(rows, num_epochs, **options) if outliers else None
    return Draws(pair, mask, noise, outlier, baseline)


def noise_free_delta_mag(magnification: Tensor, f_s: Tensor) -> Tensor:
    """Noise-free magnitude minus baseline (B, T), of magnification (B, T) and f_s (B,)."""
    return -2.5 * torch.log10(1 + f_s[:, None] * (magnification - 1))


def _between(value: Range, uniform: Tensor, *, log: bool = False) -> Tensor:
    low, high = value if isinstance(value, tuple | list) else (value, value)
    if log:
        return torch.exp(np.log(low) + (np.log(high) - np.log(low)) * uniform)
    return low + (high - low) * uniform


def error_bars(sigma: Tensor, delta_mag: Tensor, survey: Survey) -> Tensor:
    """1-sigma errors (B, T) [mag] at magnitude change `delta_mag` (B, T), level `sigma`."""
    if not survey.photon_noise:
        return sigma.expand_as(delta_mag)
    # Photons: the error falls as flux^-1/2, down to a floor of 3 mmag from everything else.
    return torch.hypot(sigma * 10 ** (0.2 * delta_mag.clamp(-8, 3)), torch.full_like(sigma, 0.003))


def observe(
    noise_free: Tensor, draws: Draws, survey: Survey, times: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Observed magnitude minus baseline, quoted error [mag] and which epochs were observed.

    Each (2 P, T), as `noise_free`, magnitude minus baseline [mag]; `times` (T,) [day]. Where an
    epoch is not observed the values are meaningless. Quoted errors are the same for both rows of a
    pair or follow from the *observed* magnitude, never from the noise-free one.
    """
    # What belongs to the event is the same for both rows, each drawn number a column (2 P, 1).
    column = draws.pair.repeat_interleave(2, dim=0)[:, :, None].unbind(dim=1)
    # Noise around the noise-free curve.
    level = _between(survey.sigma, column[0], log=True)
    scatter = error_bars(level, noise_free, survey) * _between(survey.error_scale, column[1])
    if survey.outlier_fraction > 0:
        scatter = torch.where(draws.outlier < survey.outlier_fraction, 5 * scatter, scatter)
    delta = noise_free + scatter * draws.noise
    if survey.baseline_error > 0:
        delta = delta + survey.baseline_error * level * draws.baseline
    # Quoted errors follow from the observed magnitude.
    sigma = error_bars(level, delta, survey)
    # Epochs lost at random, by day, in the season's gap, and by thinning of the grid.
    observed = draws.mask >= _between(survey.missing_fraction, column[2])
    times = times.to(noise_free.device, noise_free.dtype)
    if survey.night != 1.0:
        observed = observed & (((times + column[3]) % 1.0) < _between(survey.night, column[4]))
    if survey.season_gap != 0.0:
        start = survey.window[0] + column[5] * (survey.window[1] - survey.window[0])
        length = _between(survey.season_gap, column[6])
        observed = observed & ~((times >= start) & (times < start + length))
    if survey.keep_every != (1, 1):
        low, high = survey.keep_every
        every = _between((low, high + 0.999), column[7], log=True).floor()
        index = torch.arange(len(times), device=noise_free.device)
        observed = observed & (((index + (column[3] * every).floor()) % every) == 0)
    return delta, sigma, observed
