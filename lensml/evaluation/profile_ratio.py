"""What ideal observers know at every epoch of a season: with both curves, or with the binary alone.

The first knows both curves of a pair, the twin's fit to the future included: a bound. The second
knows which binary to look for, but has to fit the single lens to what it has seen, as everybody
has: what is reachable. Axes: n rows, T epochs, B rows at a time, L observed epochs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lensml.evaluation import ideal_observer as limits
from lensml.lensing import pspl_delta_mag
from lensml.network import BIN, observed_epochs, prior_fits, update_fits
from lensml.simulation import LightCurves

__all__ = ["llr_series", "profile_llr_series"]

ROWS = 64  # whose prefixes are refitted together
PASSES = 2  # of a refit; after one, some rows are still on the way to the minimum


def llr_series(curves: LightCurves) -> NDArray:
    """Realised log-likelihood ratio, binary over twin, up to each observed epoch, (n, T).

    NaN where nothing was observed and for rows without a partner; the last value of a row is
    `limits.ideal_log_ratio`. By Ville's inequality at most a share 1/a of the twins ever exceeds
    ln a, so that ln 100 is a season's threshold for 1 % before anything is measured.

    Raises:
        InputError: If the set has no noise-free magnification.
    """
    partner = limits.partner_rows(curves)
    ratio = np.full(curves.X.shape, np.nan)
    matched = np.flatnonzero(partner >= 0)
    for start in range(0, matched.size, limits.CHUNK):
        rows = matched[start : start + limits.CHUNK]
        own, single, binary = limits.pair_curves(curves, rows, partner)
        seen = np.isfinite(own.X)
        data = np.where(seen, own.X, single)
        term = limits.log_density(data, own, binary) - limits.log_density(data, own, single)
        ratio[rows] = np.where(seen, np.cumsum(np.where(seen, term, 0.0), axis=1), np.nan)
    return ratio


def profile_llr_series(curves: LightCurves, *, progress: bool = False) -> NDArray:
    """`llr_series` with the best single lens of each prefix in the twin's place, (n, T).

    It is the bound less what a fit to the prefix gains over the twin, in half a chi-squared. Every
    BIN observed epochs the prefix is refitted to the data, begun where the last refit ended; an
    epoch between two refits takes, of both ends, the one that fits its own prefix better. NaN for
    rows with less than BIN epochs.

    Raises:
        InputError: If the set has no noise-free magnification.
    """
    ratio = llr_series(curves)
    partner = limits.partner_rows(curves)
    matched = np.flatnonzero(partner >= 0)
    for start in tqdm(range(0, matched.size, ROWS), "refit prefixes", disable=not progress):
        rows = matched[start : start + ROWS]
        own, single, _ = limits.pair_curves(curves, rows, partner)
        observed = observed_epochs(own.X, own.sigmas(), own.times(), own.m_base)
        twin = np.asarray(own.m_base, dtype=float)[:, None] - single
        twin = torch.as_tensor(twin).gather(1, observed.index)
        blended = torch.as_tensor(own.blended).expand(len(rows))
        gain = _gains(observed, twin, blended).numpy()
        row, column = np.nonzero(observed.valid.numpy())
        ratio[rows[row], observed.index.numpy()[row, column]] -= gain[row, column]
    return ratio


@torch.no_grad()
def _gains(observed, twin: Tensor, blended: Tensor) -> Tensor:
    """What the best single lens of each prefix gains over the twin, (B, L), in ln likelihood.

    Args:
        observed: Curves without gaps.
        twin: Brightening of the twin at their epochs, (B, L) float64 [mag].
        blended: Whether f_s may be less than 1, (B,).
    """
    times, bright = observed.times, observed.brightening.double()
    root = observed.valid / observed.sigma.double().clamp_min(1e-3)
    lengths = observed.valid.sum(1)
    of_twin = ((bright - twin) * root).square()
    gain = torch.full_like(twin, -torch.inf)
    theta = None
    for count in range(BIN, int(lengths.max()) + 1, BIN):
        alive = (lengths >= count).nonzero()[:, 0]
        epochs = [x[alive, :count] for x in (times, bright, root)]
        last = epochs[0][:, -1]
        if theta is None:
            theta = prior_fits(len(lengths), last.new_zeros(len(lengths))).theta
            theta[alive, :, 0] += last[:, None]
        now = theta[alive]
        for _ in range(PASSES):
            now, _ = update_fits(now, epochs[0], -epochs[1], epochs[2], last, blended[alive])
        theta[alive] = now
        reach = slice(0, count + BIN - 1)  # up to the next refit
        near = slice(count - BIN, count + BIN - 1)
        of_fits = [_off(now[:, m], times, bright, root, alive, reach) for m in range(2)]
        saved = of_twin[alive, reach] - torch.stack(of_fits)
        total = 0.5 * torch.cumsum(saved, dim=2).amax(0)
        gain[alive, near] = torch.maximum(gain[alive, near], total[:, near])
    begun = torch.isfinite(gain)
    return torch.where(begun, gain.clamp_min(0.0), torch.nan)


def _off(theta: Tensor, times, bright, root, rows: Tensor, part: slice) -> Tensor:
    """Squared deviations of rows from fits `theta` (R, 4), in their errors."""
    t0, ln_u0, ln_tE, ln_f_s = theta.unbind(1)
    curve = -pspl_delta_mag(times[rows, part], t0, ln_u0.exp(), ln_tE.exp(), ln_f_s.exp())
    return ((bright[rows, part] - curve) * root[rows, part]).square()
