"""Noise of real photometry: error factors, red noise, nightly shifts, outliers.

Amplitudes are drawn from `noise.json`, quantiles over real single lenses by their quoted error
(`benchmarks/studies/noise.py` measures them); the tails are drawn half as wide again.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TABLE = json.loads(Path(__file__).with_suffix(".json").read_text())
SIDEREAL = 1.0027379  # turns a day
WIDER = 1.5  # log-spread of what is drawn over that of what was measured
# Absolute floor of all systematics, log-normal: flat fields and colour terms of millimagnitudes.
FLOOR, FLOOR_SPREAD = 1.5e-3, 2.0  # median [mag], factor
# Quoted errors fall more steeply with brightness than true ones: mean and scatter of `bright`, so
# that what is drawn has the scatter at the peak of real single lenses (`bright` of the table).
BRIGHT, BRIGHT_SPREAD = 0.1, 0.35


def noise_third(name: str) -> bool:
    """Whether a real event may be used to set the noise; by its name, a third."""
    return int(sha256(name.encode()).hexdigest(), 16) % 3 == 0


class SkyNoise(NamedTuple):
    """Noise of one data set: observed = true + systematic + scale * sigma * white normal."""

    systematic: NDArray  # (n,) [mag]
    scale: NDArray  # (n,) true white noise over the quoted error
    bright: float  # exponent of `bright_factor`, which is part of the scale


@dataclass(frozen=True, kw_only=True)
class NoiseLevels:
    """Amplitudes of one data set, in units of the quoted error; the defaults are white noise."""

    error_factor: float = 1.0  # true white noise over quoted error
    bright: float = 0.0  # exponent of (median quoted error / quoted error) in true over quoted
    night: float = 0.0  # rms of the zero-point shift of a night
    hour_angle: float = 0.0  # amplitude of a sidereal sinusoid: airmass, refraction
    seeing: float = 0.0  # rms of a term that wanders within hours
    red: float = 0.0  # rms of red noise, an Ornstein-Uhlenbeck process
    red_time: float = 1.0  # its time-scale [day]
    drift: float = 0.0  # rms of the slow drift
    drift_time: float = 100.0  # [day]
    floor: float = 0.0  # of the red noise and of the shift of a night [mag]
    outliers: float = 0.0  # fraction of epochs of 3 to 10 times the scatter
    offsets: float = 0.0  # fraction of epochs shifted to one side by 3 to 10 errors
    bad: float = 1.0  # factor on all noise in one stretch of 10 to 150 days


def draw_noise_levels(
    generator: np.random.Generator, sigma: float, strength: float = 1.0
) -> NoiseLevels:
    """Amplitudes of a data set of median quoted error `sigma` [mag].

    `strength` multiplies systematics and rates of outliers; 0 gives white noise as quoted.
    """
    place = int(np.digitize(sigma, TABLE["sigma_edges"]))
    # Normal scores of the levels .05 .25 .5 .75 .95; outside of them the ends go on straight.
    scores, drawn = np.array([-1.645, -0.674, 0.0, 0.674, 1.645]), {}
    for name in ("error_factor", "night", "hour_angle", "red", "drift"):
        logs, z = np.log(TABLE[name][place]), generator.standard_normal()
        inside = np.interp(z, scores, logs)
        beyond = (z - np.clip(z, -1.645, 1.645)) * (logs[-1] - logs[0]) / 3.29
        drawn[name] = float(np.exp(logs[2] + WIDER * (inside + beyond - logs[2])))
    u = generator.random(7)
    for name in ("night", "hour_angle", "red", "drift"):
        drawn[name] = strength * min(drawn[name], 1.5)
    bright = BRIGHT + BRIGHT_SPREAD * generator.standard_normal()
    return NoiseLevels(
        **drawn
        | {
            "bright": min(strength, 1.0) * bright,
            "error_factor": float(np.clip(drawn["error_factor"], 0.4, 3.0)) ** min(strength, 1.0),
            "red_time": 0.05 * 200 ** u[6],  # an hour to ten days: hardly measured at one a night
            "drift_time": 30 * 10 ** u[0],
            "seeing": strength * 0.3 * u[1] ** 2,
            "floor": strength * FLOOR * FLOOR_SPREAD ** generator.standard_normal(),
            # Half the data sets have outliers, log-uniform; a quarter one-sided ones.
            "outliers": strength * 10 ** (-3 + 1.5 * u[2]) if u[5] < 0.5 else 0.0,
            "offsets": strength * 10 ** (-3 + 4 * u[3]) if u[3] < 0.25 else 0.0,
            "bad": 1 + min(strength, 1.0) * 10 * (u[4] - 0.85) if u[4] > 0.85 else 1.0,
        }
    )


def ornstein_uhlenbeck(
    generator: np.random.Generator, times: NDArray, time_scales: NDArray
) -> NDArray:
    """Processes (k, n) of unit variance, covariance exp(-lag / time-scale), at sorted `times`.

    Exact at any spacing; x_i = a_i x_(i-1) + b_i is solved by doubling, log2(n) passes.
    """
    step = np.diff(times, prepend=times[:1]) / np.reshape(time_scales, (-1, 1))
    a = np.exp(-step)
    x = np.sqrt(-np.expm1(-2 * step))
    x[:, :1] = 1.0
    x *= generator.standard_normal(x.shape)
    k = 1
    while k < x.shape[1] and a[:, k:].any():
        a[a < 1e-12] = 0.0  # forgotten; denormal numbers would be slow
        x[:, k:] += a[:, k:] * x[:, :-k]
        a[:, k:] *= a[:, :-k].copy()
        k *= 2
    return x


def bright_factor(sigma: NDArray, exponent: float) -> NDArray:
    """True over quoted white noise (n,) as the quoted errors (n,) vary with the brightness."""
    return np.clip(np.median(sigma) / sigma, 0.2, 5.0) ** exponent


def nights(times: NDArray) -> NDArray[np.int64]:
    """Night (n,) of each epoch, from 0; nights part at the emptiest hour of the day."""
    hour = np.sort(times % 1.0)
    gap = np.diff(hour, append=hour[:1] + 1)
    k = int(gap.argmax())
    night = np.floor(times - hour[k] - gap[k] / 2)
    return np.cumsum(np.diff(night, prepend=night[:1]) != 0)


def sky_noise(
    generator: np.random.Generator,
    times: NDArray,
    sigma: NDArray,
    strength: float = 1.0,
    levels: NoiseLevels | None = None,
) -> SkyNoise:
    """Noise of a data set at sorted `times` (n,) [day] with quoted errors `sigma` (n,) [mag].

    `levels` None: drawn. An observed magnitude is true + systematic + scale * sigma * white normal.
    """
    if not (n := len(times)):
        return SkyNoise(np.zeros(0), np.zeros(0), 0.0)
    level = levels or draw_noise_levels(generator, float(np.median(sigma)), strength)
    red, drift, seeing = ornstein_uhlenbeck(
        generator, times, np.array([level.red_time, level.drift_time, 0.1])
    )
    night = nights(times)
    first = np.flatnonzero(np.diff(night, prepend=-1))
    shift = np.hypot(level.night * sigma[first], level.floor)
    turn = 2 * np.pi * (SIDEREAL * (times - times[0]) + generator.random())
    slow = level.drift * drift + level.hour_angle * np.sin(turn) + level.seeing * seeing
    systematic = sigma * slow + np.hypot(level.red * sigma, level.floor) * red
    systematic += (shift * generator.standard_normal(len(first)))[night]
    scale = level.error_factor * np.exp(0.3 * level.seeing * seeing)
    scale *= bright_factor(sigma, level.bright)
    if level.bad > 1:
        start = times[generator.integers(n)]
        inside = (times >= start) & (times < start + 10 * 15 ** generator.random())
        scale[inside] *= level.bad
        systematic[inside] *= level.bad
    if level.outliers > 0:
        hit = np.flatnonzero(generator.random(n) < level.outliers)
        scale[hit] *= 3 * (10 / 3) ** generator.random(len(hit))
    if level.offsets > 0:
        hit = np.flatnonzero(generator.random(n) < level.offsets)
        size = 3 * (10 / 3) ** generator.random(len(hit))
        systematic[hit] += generator.choice((-1, 1)) * size * sigma[hit]
    return SkyNoise(systematic, scale, level.bright)
