"""When and how well surveys observe an event: data sets of epochs, depths and blends.

Every preset draws the epochs of one event from published cadences, with seasons, nights, weather
and depths that vary; its docstring names the source. Nothing depends on the class of the event.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from lensml.paths import InputError
from lensml.simulation.noise import NoiseLevels, draw_noise_levels, ornstein_uhlenbeck, sky_noise

YEAR = 365.25  # [day]
GAMMA = 0.039  # of the error model, for every survey: Ivezic et al. (2019), ApJ 873, 111, eq. 5
Generator = np.random.Generator


class Site(NamedTuple):
    """An observatory on the ground."""

    midnight: float  # local midnight [fraction of a day, UT]
    clear: float  # fraction of nights that can be used


CHILE, AFRICA, AUSTRALIA = Site(0.196, 0.80), Site(0.942, 0.65), Site(0.586, 0.60)
NEW_ZEALAND, TASMANIA, HAWAII = Site(0.526, 0.45), Site(0.591, 0.45), Site(0.434, 0.70)
SITES = (CHILE, AFRICA, AUSTRALIA, NEW_ZEALAND, TASMANIA, HAWAII)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The epochs of one observatory and band, and what it sees of the source."""

    name: str
    times: NDArray  # (n,) sorted [day]
    depth: NDArray  # (n,) magnitude at which the error is 0.2 mag
    floor: float  # error of a bright star [mag]
    m_base: float  # baseline, source and blend [mag]
    f_s: float  # the source's part of the baseline flux


def quoted_sigma(dataset: DataSet, mag: NDArray | float) -> NDArray:
    """Error (n,) that the survey states at its epochs for magnitudes `mag` (n,) [mag]."""
    x = 10 ** (0.4 * np.clip(mag - dataset.depth, -20, 5))
    return np.minimum(np.sqrt(dataset.floor**2 + (0.04 - GAMMA) * x + GAMMA * x**2), 1.0)


def ground(g: Generator, site: Site, span: tuple, midsummer: float, cadence: float) -> NDArray:
    """Epochs of a field of the Galactic bulge from one site, sorted [day].

    The bulge transits at midnight on the day `midsummer` (21 June) and is seen while it is within
    4.5 h of transit and the Sun is down: 9 h then, an hour in February and October. A `cadence`
    [day] under a day is kept within the night, a longer one on the average. Cloudy nights come in
    runs of two days; a sixth of the others end early.
    """
    day = np.arange(np.floor(span[0]) - 1, np.ceil(span[1]) + 1)
    season = (day - midsummer + YEAR / 2) % YEAR - YEAR / 2
    transit = -season / YEAR  # from midnight [day]
    dark = (5.5 - 0.7 * abs(season) / 122) / 24
    start, end = np.maximum(-dark, transit - 4.5 / 24), np.minimum(dark, transit + 4.5 / 24)
    weather = ornstein_uhlenbeck(g, day, np.array([2.0]))[0]
    early = g.random(len(day)) < 1 / 6
    end = np.where(early, start + (end - start) * g.random(len(day)), end)
    use = (weather < ndtri(site.clear)) & (end - start > 0.02)
    if cadence >= 1:
        use &= g.random(len(day)) < 1 / cadence
        times = (day + start + (end - start) * g.random(len(day)))[use]
    else:
        first = (day + start)[use] + cadence * g.random(int(use.sum()))
        count = np.maximum(((day + end)[use] - first) // cadence + 1, 0).astype(int)
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        jitter = g.uniform(-0.1, 0.1, len(place))
        times = np.repeat(first, count) + cadence * (place + jitter)
    times = np.sort(times + site.midnight)
    return times[(times >= span[0]) & (times <= span[1])]


class _Event:
    """What the data sets of one event share: its time, its source and its blends."""

    def __init__(self, generator: Generator, t0: float, tE: float):
        self.generator, self.t0, self.tE = generator, t0, tE
        # Most events peak where the bulge is seen for hours; one in ten near the season's ends.
        edge = generator.random() < 0.1
        self.midsummer = t0 - generator.uniform(*((90, 125) if edge else (-90, 90)))
        self.end = t0 + float(np.clip(generator.uniform(1.5, 5) * tE, 15, 300))
        # Baselines in I; seven in ten are blended, evenly in the part of the flux.
        self.m_base = generator.triangular(15.0, 19.5, 20.5)
        self.f_s = 1.0 if generator.random() < 0.3 else generator.uniform(0.05, 1.0)
        self.color = generator.normal(1.8, 0.4)  # V - I, reddened

    def see(self, name: str, times: NDArray, depth: float, floor: float, color=0.0) -> DataSet:
        """A data set; other resolution and band change the blend and shift the magnitude."""
        g = self.generator
        # Moon and transparency change the depth from night to night, seeing within an hour.
        slow, fast = ornstein_uhlenbeck(g, times, np.array([1.5, 0.05]))
        return DataSet(
            name=name,
            times=times,
            depth=depth + g.normal(0, 0.2) + 0.3 * slow + 0.1 * fast,
            floor=floor * 2 ** g.uniform(-0.5, 1),
            m_base=self.m_base + color + 0.1 * g.standard_normal(),
            f_s=1 / (1 + (1 / self.f_s - 1) * np.exp(0.4 * g.standard_normal())),
        )


def ogle(event: _Event) -> list[DataSet]:
    """OGLE-IV: Chile, I; a visit in 1 to 3 nights, a fifth of events every 20 to 60 minutes.

    Cadences: Udalski, Szymanski and Szymanski (2015), Acta Astron. 65, 1 (10-30 visits a night to
    one in two nights). One to eight years before the event. Errors 0.03 mag at 18.4, 0.14 at 20.2.
    """
    g = event.generator
    cadence = g.uniform(1, 3) if g.random() < 0.8 else g.uniform(19, 60) / 1440
    first = event.t0 - YEAR * (g.uniform(1, 8) if cadence >= 1 else g.uniform(0.3, 1.5))
    times = ground(g, CHILE, (first, event.end), event.midsummer, cadence)
    return [event.see("OGLE", times, 20.5, 0.004)]


def kmtnet(event: _Event) -> list[DataSet]:
    """KMTNet: Chile, South Africa and Australia, I; every 15 minutes to 5 hours.

    Kim et al. (2016), JKAS 49, 37; cadences of 4, 1, 0.4 and 0.2 an hour: Kim et al. (2018), AJ
    155, 76. The first is two overlapping fields of 2 an hour each, data sets of their own.
    """
    g = event.generator
    rate = g.choice([4, 1, 0.4, 0.2], p=[0.2, 0.4, 0.25, 0.15])
    fields = ("01", "41") if rate == 4 else ("15",)
    span = event.t0 - g.uniform(60, 120) - event.tE, event.end
    return [
        event.see(f"KMT{letter}{field}", times, 20.3, 0.005)
        for letter, site in (("C", CHILE), ("S", AFRICA), ("A", AUSTRALIA))
        for field in fields
        for times in [ground(g, site, span, event.midsummer, len(fields) / rate / 24)]
    ]


def moa(event: _Event) -> list[DataSet]:
    """MOA-II: New Zealand, a broad red band; every 15 to 95 minutes by field.

    Sumi et al. (2013), ApJ 778, 150: 15 minutes in two fields, 47 in four, 95 in the others.
    """
    g = event.generator
    cadence = g.choice([15, 47, 95], p=[0.2, 0.4, 0.4]) / 1440
    first = event.t0 - g.uniform(60, 400) - event.tE
    times = ground(g, NEW_ZEALAND, (first, event.end), event.midsummer, cadence)
    return [event.see("MOA", times, 19.8, 0.007, 0.2)]


def rubin(event: _Event) -> list[DataSet]:
    """Rubin, LSST: six bands from Chile, a visit in 3 days on the average, in any of them.

    Visits by band (56, 80, 184, 184, 160, 160 in ten years) and depths: Ivezic et al. (2019), ApJ
    873, 111, table 1, less 1 mag for crowding. One to four years before the event.
    """
    g = event.generator
    event.m_base = g.triangular(16.5, 20.5, 22.5)
    span = event.t0 - YEAR * g.uniform(1, 4), event.end
    times = ground(g, CHILE, span, event.midsummer, 3.0)
    # Two visits a night, 33 minutes apart, half of the time in another band.
    bands, weights = "ugrizy", np.array([56, 80, 184, 184, 160, 160]) / 824
    band = g.choice(6, len(times), p=weights)
    again = np.where(g.random(len(times)) < 0.5, band, g.choice(6, len(times), p=weights))
    times, band = np.append(times, times + 33 / 1440), np.append(band, again)
    depth = (22.9, 24.0, 23.7, 23.0, 22.3, 21.1)
    color = event.color * np.array([2.6, 1.4, 0.6, 0.2, 0.0, -0.1])
    return [
        event.see(bands[k], np.sort(times[band == k]), depth[k], 0.005, color[k]) for k in range(6)
    ]


def roman(event: _Event) -> list[DataSet]:
    """Roman: F146 every 12.1 minutes in seasons of 72 days, two colours every 12 hours.

    Galactic Bulge Time Domain Survey: Roman Observations Time Allocation Committee (2025),
    arXiv:2505.10574; Penny et al. (2019), ApJS 241, 3: 0.01 mag at 21.15, floor 1 mmag. Between
    seasons a visit in 3 to 5 days. A few pauses of hours to days in a season.
    """
    g = event.generator
    start = event.t0 - g.uniform(0, 72)  # of the season of the peak
    low = start - g.uniform(0, 1) * YEAR / 2
    sparse = np.arange(low, start, g.uniform(3, 5))
    pauses = start + 72 * g.random(g.integers(0, 6))
    lengths = 0.1 * 20 ** g.random(len(pauses))
    event.m_base = g.triangular(17.0, 22.5, 24.0)
    found, bands = (
        [],
        (("F146", 12.1 / 1440, 24.7, 0), ("F087", 0.5, 24, 1), ("F213", 0.5, 23.5, -0.3)),
    )
    for name, step, depth, color in bands:
        times = np.append(sparse, np.arange(start + step * g.random(), start + 72, step))
        paused = (times[:, None] >= pauses) & (times[:, None] < pauses + lengths)
        times = times[~paused.any(axis=1) & (times < event.end)]
        seen = event.see(name, times, depth, 0.001, color)
        found.append(replace(seen, depth=np.full(len(times), depth)))  # no weather in space
    return found


def follow_up(event: _Event) -> list[DataSet]:
    """OGLE and one to three small telescopes that observe densely for 2 to 20 nights.

    They start after an alert between two thirds of tE before the peak and a third after it, every
    3 to 20 minutes: as the networks MicroFUN and PLANET did (Gould et al. 2010, ApJ 720, 1073;
    Beaulieu et al. 2006, Nature 439, 437). Fainter than 19 they see little.
    """
    g = event.generator
    alert = event.t0 + g.uniform(-0.67, 0.33) * event.tE
    found = ogle(event)
    for k in g.choice(len(SITES), g.integers(1, 4), replace=False):
        first = alert + g.uniform(0, 3)
        span = first, min(first + g.uniform(2, 20), event.end)
        times = ground(g, SITES[k], span, event.midsummer, g.uniform(3, 20) / 1440)
        depth, floor = g.uniform(18.0, 20.0), g.uniform(0.003, 0.01)
        found.append(event.see(f"site {k}", times, depth, floor, g.normal(0, 0.5)))
    return found


SURVEYS: dict[str, Callable[[_Event], list[DataSet]]] = {
    f.__name__: f for f in (ogle, kmtnet, moa, rubin, roman, follow_up)
}


def schedule(
    name: str, generator: Generator, t0: float, tE: float, max_epochs: int = 4000
) -> tuple[DataSet, ...]:
    """Data sets of an event that peaks at `t0` [day] after a rise of `tE` [day]; of `SURVEYS`.

    At least 20 epochs in all, else drawn anew; more than `max_epochs` are thinned evenly.
    """
    if name not in SURVEYS:
        raise InputError(f"`survey` is {name!r}, but one of {', '.join(SURVEYS)} was expected")
    total = 0
    while total < 20:
        found = [d for d in SURVEYS[name](_Event(generator, t0, tE)) if len(d.times) >= 3]
        total = sum(len(d.times) for d in found)
    step = -(-total // max_epochs)
    return tuple(replace(d, times=d.times[::step], depth=d.depth[::step]) for d in found)


class Observed(NamedTuple):
    """One data set as observed; a true magnitude is mag - systematic - white noise."""

    times: NDArray  # (n,) [day]
    mag: NDArray  # (n,) [mag]
    sigma: NDArray  # (n,) quoted, from the observed magnitude [mag]
    m_base: float  # true baseline [mag]
    white: NDArray  # (n,) true rms of the white noise [mag]
    systematic: NDArray  # (n,) [mag]
    truth: NDArray  # (n,) noise-free [mag]
    bright: float  # exponent of `bright_factor` in the white noise


def observe_event(
    generator: Generator,
    delta_mag: Callable[[NDArray], NDArray],
    plans: Sequence[DataSet],
    noise: bool | float | Sequence[NoiseLevels] = True,
) -> list[Observed]:
    """What each data set records of a source that is `delta_mag(times)` off its own baseline.

    `delta_mag` gives unblended magnitudes (n,); every data set adds its blend. `noise`: False is
    white as quoted; a number multiplies the systematics; `NoiseLevels` a data set are given.
    """
    strength = 1.0 if isinstance(noise, Sequence) else float(noise)
    levels = (
        noise if isinstance(noise, Sequence) else [None if noise else NoiseLevels()] * len(plans)
    )
    found = []
    for plan, level in zip(plans, levels, strict=True):
        flux = 10 ** (-0.4 * np.asarray(delta_mag(plan.times)))
        truth = plan.m_base - 2.5 * np.log10(np.maximum(1 + plan.f_s * (flux - 1), 1e-4))
        sigma = quoted_sigma(plan, truth)
        systematic, scale, bright = sky_noise(generator, plan.times, sigma, strength, level)
        white = scale * sigma
        mag = truth + systematic + white * generator.standard_normal(len(truth))
        sigma = quoted_sigma(plan, mag)
        seen = Observed(plan.times, mag, sigma, plan.m_base, white, systematic, truth, bright)
        found.append(seen)
    return found


def noise_levels(generator: Generator, plans: Sequence[DataSet]) -> list[NoiseLevels]:
    """Noise of each data set, so that both events of a pair are observed with the same."""
    sigmas = [float(np.median(quoted_sigma(p, p.m_base))) for p in plans]
    return [draw_noise_levels(generator, sigma) for sigma in sigmas]
