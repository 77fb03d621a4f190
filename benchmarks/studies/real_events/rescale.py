"""Causal rescaling of quoted errors from an event's own past, with outliers down-weighted.

Surveys quote errors that are too small, by a factor that differs from star to star, and now and
then an epoch is simply wrong. Both look like structure, and structure is what a binary lens makes.
Everything here is causal and of constant memory: epoch k is judged by epochs <= k, once.
"""

from collections import deque
from dataclasses import dataclass
from math import exp, inf, log, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lensml.paths import InputError

__all__ = ["Rescaler", "Rescaling", "rescaled_errors"]

INSIDE = 0.6827  # fraction of normal deviations within one sigma
DENSITY = 0.484  # of ln|z| at |z| = 1, for a normal z: from a surplus of fractions to a step in ln
MAX_LOG_FACTOR = log(10.0)
MAX_EXTRAPOLATION = 2.0  # of a line through two epochs [its length]
RECENT = 5  # epochs that an outlier is compared with


@dataclass(frozen=True)
class Rescaling:
    """Prior, memory and limits of the rescaling."""

    prior_epochs: float = 60.0  # weight of the prior that quoted errors are right
    memory_epochs: float = 400.0  # older epochs fade; a short anomaly moves a long memory little
    lowest: float = 1.0  # smallest factor
    highest: float = 4.0  # largest factor
    longest_gap: float = 20.0  # three epochs spread wider than this are not used [day]
    outlier: float = 5.0  # deviation from which an isolated epoch is down-weighted [sigma]


class Rescaler:
    """Errors of one event, epoch by epoch.

    *Factor.* Three successive epochs on a straight line leave a residual whose variance follows
    from their errors. The factor is that by which 68 % of these residuals lie within one sigma: a
    quantile, tracked in small steps (stochastic approximation), so that a caustic or an outlier
    counts like any other large residual, however large.

    *Outliers.* A new epoch is compared with the last one, with the median of the last few and with
    the line through the last two. If it is far from all of them, and the one before was not, its
    error grows until it is off by `outlier` sigma and no more (Huber's weight). An anomaly goes on,
    and from its second epoch counts in full; an outlier does not.

    Attributes:
        factor: By which the next quoted error will be multiplied.
    """

    def __init__(self, config: Rescaling | None = None) -> None:
        self.config = config or Rescaling()
        self._log_factor = 0.0
        self._count = 0.0
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT)
        self._off = False  # whether the epoch before was far from its prediction

    @property
    def factor(self) -> float:
        return min(max(exp(self._log_factor), self.config.lowest), self.config.highest)

    def update(self, time: float, mag: float, mag_err: float) -> float:
        """Error to use for the next epoch [mag]; epochs come in order of time, errors positive."""
        error = self.factor * mag_err * self._outlier_factor(time, mag, mag_err)
        if len(self._recent) >= 2:
            self._update_factor(time, mag, mag_err)
        self._recent.append((time, mag, mag_err))
        return error

    def _outlier_factor(self, time: float, mag: float, mag_err: float) -> float:
        """Factor by which the error of an isolated outlier grows; 1 for most epochs."""
        if len(self._recent) < RECENT:
            return 1.0
        excess = inf
        for level, variance in self._predictions(time):
            z = (mag - level) / (self.factor * sqrt(mag_err**2 + variance))
            excess = z if abs(z) < abs(excess) else excess
        alone, self._off = not self._off, abs(excess) > self.config.outlier
        return abs(excess) / self.config.outlier if self._off and alone else 1.0

    def _predictions(self, time: float) -> list[tuple[float, float]]:
        """Predictions for `time` in three ways: magnitude and variance."""
        (t1, m1, e1), (t2, m2, e2) = self._recent[-2], self._recent[-1]
        middle = sorted(m for _, m, _ in self._recent)[RECENT // 2]
        ahead = (time - t2) / (t2 - t1)
        line = m2 + ahead * (m2 - m1), ((1 + ahead) * e2) ** 2 + (ahead * e1) ** 2
        # Far beyond its two epochs, the line's variance is too large to reject any value.
        return [(m2, e2**2), (middle, e2**2), *([line] if ahead <= MAX_EXTRAPOLATION else [])]

    def _update_factor(self, time: float, mag: float, mag_err: float) -> None:
        """Update the factor by one residual."""
        (t1, m1, e1), (t2, m2, e2) = self._recent[-2], self._recent[-1]
        if time - t1 > self.config.longest_gap:
            return
        w = (t2 - t1) / (time - t1)
        residual = m2 - (1 - w) * m1 - w * mag
        z = abs(residual) / sqrt(e2**2 + ((1 - w) * e1) ** 2 + (w * mag_err) ** 2)
        self._count = min(self._count + 1, self.config.memory_epochs)
        surplus = (z > exp(self._log_factor)) - (1 - INSIDE)
        step = surplus / DENSITY / (self._count + self.config.prior_epochs)
        self._log_factor = min(max(self._log_factor + step, -MAX_LOG_FACTOR), MAX_LOG_FACTOR)


def rescaled_errors(
    time: ArrayLike, mag: ArrayLike, mag_err: ArrayLike, config: Rescaling | None = None
) -> NDArray[np.float64]:
    """Errors to use instead of the quoted ones, shape (n,) [mag]; as `Rescaler`, epoch by epoch.

    Args:
        time: Epochs, shape (n,), strictly increasing [day].
        mag, mag_err: Magnitudes and positive quoted errors, (n,) [mag].
        config: How far to go.

    Raises:
        InputError: If the columns differ in length or the epochs do not increase.
    """
    columns = [np.asarray(x, dtype=float) for x in (time, mag, mag_err)]
    if any(x.shape != columns[0].shape or x.ndim != 1 for x in columns):
        shapes = ", ".join(str(x.shape) for x in columns)
        raise InputError(f"`time`, `mag`, `mag_err` have shapes {shapes}, expected one (n,)")
    if (np.diff(columns[0]) <= 0).any():
        raise InputError("`time` must increase strictly; sort the epochs and drop repeated times")
    rescaler = Rescaler(config)
    epochs = zip(*(x.tolist() for x in columns), strict=True)
    return np.array([rescaler.update(*epoch) for epoch in epochs])
