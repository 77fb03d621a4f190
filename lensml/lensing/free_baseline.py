"""Blended PSPL fit of one observed light curve whose baseline is not known."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import median_filter

from lensml.lensing.pspl import fit_pspl, pspl_delta_mag

NUM_TRIALS = 9  # baselines fitted at a time
MAX_ROUNDS, BASELINE_TOLERANCE = 12, 1e-4  # [mag]


@dataclass(frozen=True)
class FreeBaselineFit:
    """Best blended PSPL curve of one light curve, with its fitted baseline."""

    t0: float  # [day]
    u0: float  # [theta_E]
    tE: float  # [day]
    f_s: float  # fraction of the baseline flux that is lensed
    m_base: float  # fitted baseline [mag]
    residuals: NDArray  # (observed - fitted) / mag_err, shape (n,) [sigma]

    @property
    def chi2_per_dof(self) -> float:
        """Sum of squared residuals over epochs less five; published errors are often too small."""
        return float(self.residuals @ self.residuals) / max(1, len(self.residuals) - 5)

    def magnitude(self, time: ArrayLike) -> NDArray:
        """Fitted magnitude at `time`, shape (m,) [mag]."""
        return _blended_magnitude(time, self.t0, self.u0, self.tE, self.f_s, self.m_base)


def _blended_magnitude(
    time: ArrayLike, t0: float, u0: float, tE: float, f_s: float, m_base: float
) -> NDArray:
    """Magnitude of a blended PSPL curve at `time`, shape (m,) [mag]."""
    parameters = torch.tensor([t0, u0, tE, f_s], dtype=torch.float64)
    epochs = torch.as_tensor(np.asarray(time, dtype=float))
    return m_base + pspl_delta_mag(epochs, *parameters[:, None])[0].numpy()


def fit_pspl_free_baseline(
    time: ArrayLike, mag: ArrayLike, mag_err: ArrayLike, m_base: float
) -> FreeBaselineFit:
    """Fit t0, u0, tE, f_s and the baseline by least squares weighted with 1 / mag_err^2.

    `time` (n,) increases [day]; `mag` and `mag_err` are (n,) [mag]. From `m_base` [mag], nine trial
    baselines at a time go through `fit_pspl`, from its own starting points and some at the peak of
    a running median; each round narrows the grid around the best. ValueError below six epochs.
    """
    time, mag, mag_err = (np.asarray(x, dtype=float) for x in (time, mag, mag_err))
    if (n := time.size) < 6:
        raise ValueError(f"`time` has {n} epochs; six or more are needed to fit five parameters")
    times = torch.as_tensor(time - time[0])
    weight = torch.as_tensor(mag_err**-2.0).expand(NUM_TRIALS, -1)
    # Further starting points: the brightest epoch of a running median, at six shapes.
    t_peak = float(times[median_filter(mag, 5, mode="nearest").argmin()])
    starts = [(t_peak, u0, tE) for u0 in (0.03, 0.5) for tE in (5.0, 20.0, 80.0)]
    centre, step = m_base, 0.02 + 0.25 * float(np.std(mag))
    for _ in range(MAX_ROUNDS):
        trial = centre + step * np.linspace(-1, 1, NUM_TRIALS)
        data = torch.as_tensor(mag - trial[:, None])
        begin = torch.tensor(starts, dtype=torch.float64).expand(NUM_TRIALS, -1, -1)
        fit = fit_pspl(times, data, weight=weight, starts=begin, blended=True)
        best = int(fit.chi2.argmin())
        t0, u0, tE, f_s = (float(x[best]) for x in (fit.t0, fit.u0, fit.tE, fit.f_s))
        starts = [*starts[:6], (t0, u0, tE)]
        # The best at the edge of the grid: widen it; else narrow it around the best.
        centre, step = float(trial[best]), step * (2.0 if best in (0, NUM_TRIALS - 1) else 0.25)
        if step < BASELINE_TOLERANCE:
            break
    fitted = (t0 + time[0], u0, tE, f_s, centre)
    residuals = (mag - _blended_magnitude(time, *fitted)) / mag_err
    return FreeBaselineFit(*fitted, residuals)
