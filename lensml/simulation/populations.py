"""What else brightens or fades: variable stars, eruptions and errors of the measurement.

Amplitudes [mag] and time-scales [day] are log-uniform in published ranges, each with its source.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from lensml.paths import InputError
from lensml.simulation.priors import log_uniform

BEFORE, AFTER = 3300.0, 400.0  # repeated outbursts go on so long before and after the event [day]
Curve = Callable[[NDArray], NDArray]


@dataclass(frozen=True)
class Variable:
    """A source that varies without a lens; the terms of `curves` add up."""

    kind: str
    curves: tuple[Curve, ...]

    def delta_mag(self, times: NDArray) -> NDArray[np.float64]:
        """Magnitude minus baseline (n,), dimmer > 0, at any `times` (n,) [day]."""
        times = np.asarray(times, dtype=float)
        return sum((curve(times) for curve in self.curves), np.zeros(len(times)))


def draw_variable(
    generator: np.random.Generator, centre: float = 0.0, kind: str | None = None
) -> Variable:
    """One of `VARIABLES`, or of the given kind.

    Half of them are brightest within 10 days (rms) of `centre` [day], the others within 200.
    """
    if kind is not None and kind not in VARIABLES:
        raise InputError(f"`kind` is {kind!r}, but one of {', '.join(VARIABLES)} was expected")
    kind = kind or str(generator.choice(list(VARIABLES)))
    near = generator.random() < 0.5
    peak = centre + (10 * generator.standard_normal() if near else generator.uniform(-200, 200))
    draw = VARIABLES[kind][generator.integers(len(VARIABLES[kind]))]
    return Variable(kind, tuple(draw(generator, peak)))


def _outbursts(height, rise, plateau, decline, tail, recurrence, sign, g, peak) -> list[Curve]:
    """One outburst, or, in six of ten stars that have `recurrence`, more, alike within 30 %.

    `height` [mag], the others [day]: `decline` is an e-folding in magnitude, six times as slow for
    the fraction `tail`. `sign` 1 fades, 0 does either.
    """
    starts, sign = np.array([peak]), sign or g.choice((-1.0, 1.0))
    if recurrence and g.random() < 0.6:
        mean = log_uniform(g, recurrence)
        count = int(BEFORE / mean) + 1, int(AFTER / mean) + 1
        before, after = (np.cumsum(mean * np.exp(0.4 * g.standard_normal(n))) for n in count)
        starts = np.concatenate([peak - before[::-1], starts, peak + after])
    values = [
        np.clip(log_uniform(g, bounds) * np.exp(0.3 * g.standard_normal(len(starts))), *bounds)
        for bounds in (height, rise, plateau, decline)
    ]
    return [partial(_outbursts_at, np.sort(starts - values[1]), *values, tail, sign)]


def _outbursts_at(starts, height, rise, plateau, decline, tail, sign, times):
    """The larger of the two latest outbursts at each time; all (k,) but `tail` and `sign`."""
    latest, total = np.searchsorted(starts, times, side="right") - 1, np.zeros(len(times))
    for k in (latest, latest - 1):
        on = np.flatnonzero(k >= 0)
        k = k[on]
        x = times[on] - starts[k]
        up = np.minimum(x / rise[k], 1.0)
        y = np.maximum(x - rise[k] - plateau[k], 0.0) / decline[k]
        down = (1 - tail) * np.exp(-y) + tail * np.exp(-y / 6)
        total[on] = np.maximum(total[on], height[k] * up**2 * (3 - 2 * up) * down)
    return sign * total


def _pulsation(period, amplitude, rise, modes, g, peak) -> list[Curve]:
    """Up to `modes` periods; the brightness rises in the fraction `rise` of each."""
    period, amplitude, found = log_uniform(g, period), log_uniform(g, amplitude), []
    for k in range(g.integers(1, modes + 1)):
        shape = g.uniform(*rise), g.uniform(0, 0.15), g.uniform(0, 2 * np.pi)
        when, ratio = (peak + period * g.random(), g.uniform(0.4, 0.9)) if k else (peak, 1.0)
        found.append(partial(_pulsation_at, when, ratio * period, 0.6**k * amplitude, *shape))
    return found


def _pulsation_at(peak, period, amplitude, rise, harmonic, lag, times):
    phase = (times - peak) / period % 1.0
    turn = 2 * np.pi * np.where(phase < 1 - rise, phase / (2 - 2 * rise), (phase - 1) / (2 * rise))
    return -0.5 * amplitude * (np.cos(turn) + harmonic * np.cos(2 * turn + lag))


def _eclipses(g, peak) -> list[Curve]:
    period, half = log_uniform(g, (0.2, 1000)), log_uniform(g, (0.005, 0.1))
    depth = log_uniform(g, (0.02, 1.0)) if g.random() < 0.6 else 0.0
    tides = log_uniform(g, (0.01, 0.3)) if not depth or period < 5 else 0.0
    shape = depth, depth * g.random(), half, half * g.uniform(0.1, 1.0), tides
    return [partial(_eclipses_at, peak + period / 4, period, *shape)]


def _eclipses_at(middle, period, primary, secondary, half, ingress, tides, times):
    """Trapezoids of given depths [mag] and widths in phase, and ellipsoidal variation [mag]."""
    phase = (times - middle) / period % 1.0
    first = np.clip((half - np.minimum(phase, 1 - phase)) / ingress, 0, 1)
    second = np.clip((half - np.abs(phase - 0.5)) / ingress, 0, 1)
    return primary * first + secondary * second + 0.5 * tides * np.cos(4 * np.pi * phase)


def _scatter(g, peak) -> list[Curve]:
    """Bad images for 10 to 150 days: normal scatter, pseudo-random by the time alone."""
    shape = g.uniform(10, 150), log_uniform(g, (0.02, 0.5)), g.uniform(0, 2 * np.pi)
    return [partial(_scatter_at, peak, *shape)]


def _scatter_at(start, length, rms, salt, times):
    u = np.sin(times * 9173.13 + salt) * 43758.5453 % 1.0
    inside = (times >= start) & (times < start + length)
    return np.where(inside, rms * ndtri(np.clip(u, 1e-4, 1 - 1e-4)), 0.0)


INSTANT, FOREVER = (1e-3, 1e-3), (1e5, 1e5)  # [day]
VARIABLES: dict[str, tuple[Callable, ...]] = {
    # RR Lyrae, delta Scuti stars, Cepheids: Soszynski et al. (2014), Acta Astron. 64, 177;
    # Pietrukowicz et al. (2020), 70, 241; Soszynski et al. (2017), 67, 297.
    "pulsator": (
        partial(_pulsation, (0.2, 1.0), (0.05, 1.0), (0.1, 0.5), 1),
        partial(_pulsation, (0.03, 0.3), (0.01, 0.5), (0.3, 0.5), 2),
        partial(_pulsation, (1.0, 50.0), (0.05, 0.8), (0.15, 0.5), 1),
    ),
    # Miras; semi-regular and small-amplitude red giants: Soszynski et al. (2013), 63, 21.
    "long_period": (
        partial(_pulsation, (80, 700), (0.8, 4), (0.3, 0.6), 1),
        partial(_pulsation, (10, 1000), (0.01, 0.8), (0.4, 0.6), 3),
    ),
    "eclipsing": (_eclipses,),  # and ellipsoidal: Soszynski et al. (2016), 66, 405
    # M dwarfs, minutes to hours, and the shape of flares: Davenport et al. (2014), ApJ 797, 122.
    "flare_star": (
        partial(_outbursts, (0.03, 3), (2e-3, 0.1), INSTANT, (2e-3, 0.1), 0.3, (0.5, 30), -1),
    ),
    # A rise in a day or two, 3 to 20 days, up to 6 mag: Mroz et al. (2015), Acta Astron. 65, 313.
    "dwarf_nova": (
        partial(_outbursts, (0.3, 6), (0.3, 3), (0.5, 15), (0.7, 8), 0.0, (10, 1000), -1),
    ),
    # Novae, a decline by 2 mag in 1 to 300 days: Strope et al. (2010), AJ 140, 34. Supernovae
    # behind the field of a microlensing survey: Alcock et al. (2000), ApJ 542, 281.
    "nova": (
        partial(_outbursts, (1, 8), (0.5, 5), (0.1, 5), (2, 150), 0.3, None, -1),
        partial(_outbursts, (0.3, 5), (12, 25), (1, 60), (15, 60), 0.3, None, -1),
    ),
    # Be stars: Keller et al. (2002), AJ 124, 2039; Mennickent et al. (2002), A&A 393, 887. Dust:
    # Clayton (1996), PASP 108, 225. Young: Audard et al. (2014), Protostars and Planets VI, 387.
    "eruptive": (
        partial(_outbursts, (0.05, 0.8), (1, 60), (0.5, 200), (5, 300), 0.0, (100, 1500), -1),
        partial(_outbursts, (0.5, 5), (10, 150), (0.5, 200), (30, 500), 0.0, None, -1),
        partial(_outbursts, (0.3, 6), (5, 50), (0.5, 200), (20, 300), 0.0, None, 1),
    ),
    # Steps and trends of proper motion: Eyer and Wozniak (2001), MNRAS 327, 601; bumps of a night.
    "artifact": (
        partial(_outbursts, (0.02, 0.5), INSTANT, FOREVER, FOREVER, 0.0, None, 0),
        partial(_outbursts, (0.05, 0.5), (100, 3000), FOREVER, FOREVER, 0.0, None, 0),
        partial(_outbursts, (0.05, 2), (0.01, 0.2), (0.01, 0.4), (0.01, 0.1), 0.0, None, 0),
        _scatter,
    ),
}
