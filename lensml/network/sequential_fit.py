"""Point-lens fits to growing prefixes, each begun where the previous one ended.

Every curve is refitted at the same counts of observed epochs by two models: with all flux lensed,
and with a free lensed fraction f_s. A refit uses the prefix alone, at most its last MAX_HISTORY
epochs, and a fixed number of Levenberg-Marquardt steps (`lensing.fit_pspl` goes on to convergence):
its cost is bounded, and a stream that stores those epochs gets the same fits. Prefixes of different
lengths share a batch once padded: behind a curve's own epochs, a multiple of BIN, stand its last
time and weights of 0.

Axes: B curves, M = 2 models, n epochs of a prefix, pads included.
"""

from collections.abc import Sequence
from functools import cache
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from lensml.lensing import (
    CACHE_ELEMENTS,
    MAG,
    excess_magnification,
    gauss_newton_terms,
    marquardt_step,
    u2_of_excess,
)

MAX_HISTORY = 2048  # epochs of the past that a refit reaches
BIN = 8  # epochs averaged in the search for starting points
ITERATIONS, SEARCH_ITERATIONS = 3, 4  # of a refit, of a search
# Weak priors keep fits to the rise of an event from diverging: centre and width of t0 (from the
# last epoch) [day], ln u0, ln tE, ln f_s. The degeneracy along which u0 and f_s fall while tE rises
# is straight in these logarithms; in f_s itself, three steps do not follow it.
PRIOR_CENTRE = (0.0, log(0.5), log(22.4), 0.0)
PRIOR_WIDTH = (100.0, 2.0, 0.9, 1.0)
LOW = (-torch.inf, log(1e-5), log(0.1), log(0.01))
HIGH = (torch.inf, log(5.0), log(2000.0), 0.0)
BLEND_SHIFTS = (-0.4, 0.3)  # changes of ln f_s that are tried as starting points
# Where other local minima are sought: tE [day], and 0 = a peak at the brightest epochs, 1 = at the
# second brightest, 2 = ahead, after a rise that has just begun.
SEARCH_GRID = ((3.0, 0), (8.0, 0), (20.0, 0), (50.0, 0), (8.0, 1), (25.0, 1), (15.0, 2), (40.0, 2))


class Fits(NamedTuple):
    """Latest fits of B curves, and sums over the epochs since then, their innovations."""

    theta: Tensor  # (B, M, 4) float64: t0 [day], ln u0, ln tE, ln f_s
    covariance: Tensor  # (B, M, 16) float64, of theta
    innovation_sums: Tensor  # (B, M, 2) float64, of innovations and of their squares
    epochs_since_fit: Tensor  # (B,) float64


def next_refit_epoch(count: int) -> int:
    """The first count of epochs above `count` at which a curve is refitted."""
    step = 8 if count < 128 else 16 if count < 256 else 24
    origin = 0 if count < 256 else 256
    return origin + ((count - origin) // step + 1) * step


def refit_schedule(length: int) -> list[int]:
    """Counts of epochs, up to `length`, at which a curve is refitted."""
    counts, count = [], next_refit_epoch(0)
    while count <= length:
        counts.append(count)
        count = next_refit_epoch(count)
    return counts


def prior_fits(num: int, last_epoch: Tensor) -> Fits:
    """Prior mean of each model, with zero covariance, centred on `last_epoch` (B,) [day]."""
    theta = last_epoch.new_tensor(PRIOR_CENTRE)
    theta = theta.repeat(num, 2, 1)
    theta[..., 0] += last_epoch[:, None]
    zeros = theta.new_zeros
    return Fits(theta, zeros(num, 2, 16), zeros(num, 2, 2), zeros(num))


@cache
def _constants(free: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Centres and precisions of the priors, LOW and HIGH of `free` parameters, each (free,)."""
    with torch.inference_mode(False):
        kind = {"dtype": dtype, "device": device}
        centre, width, low, high = (
            torch.tensor(x[:free], **kind) for x in (PRIOR_CENTRE, PRIOR_WIDTH, LOW, HIGH)
        )
        return centre, width**-2, low, high


class _LeastSquares(NamedTuple):
    """Least squares with priors: epochs (B, n), last epoch (B,), number of free parameters.

    These are 3, or 4 with f_s. Pads have weight 0. A state: cost, gradient, Gauss-Newton matrix.
    """

    times: Tensor
    data: Tensor
    sqrt_weight: Tensor
    last_epoch: Tensor
    free: int

    def linearise(self, theta: Tensor) -> Tensor:
        """State (B, 1 + P + P P) at `theta` (B, 4), priors included."""
        free, f_s = self.free, theta[:, 3:].exp()
        parameters = torch.cat([theta[:, :3], f_s], dim=1)
        state = gauss_newton_terms(parameters, *self[:3], blended=free == 4)
        if free == 4:  # from derivatives in f_s to those in its logarithm
            state[:, 4:5].mul_(f_s)
            state[:, 17:].mul_(f_s)  # the last row of the matrix, then its last column
            state[:, 8::4].mul_(f_s)
        # The priors' cost, gradient and matrix.
        centre, precision, _, _ = _constants(free, theta.dtype, theta.device)
        offset = theta[:, :free] - centre
        offset[:, 0].sub_(self.last_epoch)
        pull = offset * precision
        state[:, 0].add_((pull * offset).sum(1))
        state[:, 1 : 1 + free].add_(pull)
        state[:, 1 + free :: free + 1].add_(precision)
        return state

    def repeated(self, num: int) -> "_LeastSquares":
        """Each curve `num` times."""
        return _LeastSquares(*(x.repeat_interleave(num, dim=0) for x in self[:4]), self.free)

    def best_start(self, starts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The start (B, 4) of least cost, of equals the first, and the state there."""
        num = len(starts)
        if num * self.data.numel() <= CACHE_ELEMENTS:  # one call on all costs what one on each does
            every = torch.stack(starts, dim=1).flatten(0, 1)
            states = self.repeated(num).linearise(every).unflatten(0, (-1, num)).unbind(1)
        else:
            states = [self.linearise(start) for start in starts]
        theta, state = starts[0], states[0]
        for other, there in zip(starts[1:], states[1:], strict=True):
            better = (there[:, 0] < state[:, 0])[:, None]
            theta, state = torch.where(better, other, theta), torch.where(better, there, state)
        return theta, state

    def fit(self, starts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Descend from the best start: the end (B, 4) and its covariance (B, 16)."""
        free = self.free
        theta, state = self.descend(*self.best_start(starts), ITERATIONS)
        covariance = theta.new_zeros(len(theta), 4, 4)
        inverse = torch.linalg.inv_ex(state[:, 1 + free :].view(-1, free, free))[0]
        covariance[:, :free, :free] = inverse.nan_to_num_()
        return theta, covariance.flatten(1)

    def descend(self, theta: Tensor, state: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """`steps` Levenberg-Marquardt steps, for any data: the end (B, 4) and the state there."""
        free = self.free
        _, _, low, high = _constants(free, theta.dtype, theta.device)
        damping = theta.new_full((len(theta),), 1e-3)
        for _ in range(steps):
            # A damped step, at most 1.5 tE in t0 and 1.5 in a logarithm, inside the bounds.
            step = marquardt_step(state, damping, free)
            limit = torch.full_like(step, 1.5)
            limit[:, 0].mul_(theta[:, 2].exp())
            trial = theta.clone()
            trial[:, :free].add_(step.clamp_(-limit, limit)).clamp_(low, high)
            new = self.linearise(trial)
            # Taken where the cost falls; the damping follows.
            better = new[:, 0] < state[:, 0]
            theta = torch.where(better[:, None], trial, theta)
            state = torch.where(better[:, None], new, state)
            damping = torch.where(better, damping / 10.0, damping * 10.0)
        return theta, state


def _binned(times: Tensor, data: Tensor, sqrt_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted means of BIN epochs each, and the roots of their weights: 0 of pads alone."""
    times, data, sqrt_weight = (x.unflatten(1, (-1, BIN)) for x in (times, data, sqrt_weight))
    weight = sqrt_weight * sqrt_weight
    total = weight.sum(2)
    norm = total.clamp_min(torch.finfo(total.dtype).tiny)
    return (weight * times).sum(2) / norm, (weight * data).sum(2) / norm, total.sqrt()


def _grid_search(
    times: Tensor, data: Tensor, sqrt_weight: Tensor, last_epoch: Tensor, count: Tensor
) -> Tensor:
    """Best of SEARCH_GRID on binned epochs, without blending: theta (B, 4)."""
    # Peaks: the brightest bin, the brightest at least 15 d from it, and the last epoch.
    times, data, sqrt_weight = _binned(times, data, sqrt_weight)
    certain = -data - 1 / sqrt_weight  # of pads -inf
    best, at = certain.max(dim=1, keepdim=True)
    first = times.gather(1, at)
    apart = torch.where((times - first).abs() > 15.0, certain, -1.0)
    second_best, second_at = apart.max(dim=1, keepdim=True)
    peaks = torch.cat([first, times.gather(1, second_at), last_epoch[:, None]], dim=1)
    latest = -data.gather(1, count[:, None] // BIN - 1)
    # u0 that makes a point lens as bright as that.
    heights = torch.cat([best, second_best, latest], dim=1).clamp(0.02, 8.0)
    gain = torch.expm1(heights / MAG)
    ln_u = 0.5 * torch.log(2 * (1 + gain) / torch.sqrt(gain * (gain + 2)) - 2)
    # A start for each entry of the grid; a peak ahead lies tE / 2 away and is brighter.
    starts = [
        torch.stack(
            [
                peaks[:, k] + (0.5 * tE if k == 2 else 0.0),
                ln_u[:, k].clamp(log(1e-4), log(1.5)) - (0.5 if k == 2 else 0.0),
                torch.full_like(last_epoch, log(tE)),
                torch.zeros_like(last_epoch),
            ],
            dim=1,
        )
        for tE, k in SEARCH_GRID
    ]
    # The two starts of least cost descend; the better end is taken.
    num = len(starts)
    start = torch.stack(starts, dim=1).flatten(0, 1)
    problem = _LeastSquares(times, data, sqrt_weight, last_epoch, free=3)
    states = problem.repeated(num).linearise(start).unflatten(0, (-1, num))
    order = states[..., 0].argsort(dim=1, stable=True)[:, :2, None]
    start, states = (
        x.gather(1, order.expand(-1, -1, x.shape[2])).flatten(0, 1)
        for x in (start.unflatten(0, (-1, num)), states)
    )
    end, states = problem.repeated(2).descend(start, states, SEARCH_ITERATIONS)
    first, second = end.unflatten(0, (-1, 2)).unbind(1)
    worse, better = states[:, 0].unflatten(0, (-1, 2)).unbind(1)
    return torch.where((better < worse)[:, None], second, first)


def _shift_along_blend_degeneracy(theta: Tensor, shift: float) -> Tensor:
    """Fits (B, 4) with ln f_s moved by `shift`, peak flux and width at half of it unchanged."""
    t0, ln_u0, ln_tE, ln_f_s = theta.unbind(1)
    moved = (ln_f_s + shift).clamp(LOW[3], HIGH[3])
    u2 = (2 * ln_u0).exp()
    peak = excess_magnification(u2)
    new_peak = peak * (ln_f_s - moved).exp()
    new_u2 = u2_of_excess(new_peak)
    # (half-width / tE)^2 is u^2 at half of the peak less u0^2.
    width = (u2_of_excess(peak / 2) - u2) / (u2_of_excess(new_peak / 2) - new_u2)
    return torch.stack([t0, 0.5 * new_u2.log(), ln_tE + 0.5 * width.log(), moved], dim=1)


def update_fits(
    previous: Tensor,
    times: Tensor,
    data: Tensor,
    sqrt_weight: Tensor,
    last_epoch: Tensor,
    blended: Tensor,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Refit both models, from their previous ends or from a better local minimum.

    `previous` ends are (B, M, 4). `times` [day], `data` (magnitude minus baseline [mag]) and
    `sqrt_weight` (1 / sigma) are (B, n); of pads the last time, 0 and 0; `count` (B,) int64 are no
    pads, None = all. Where f_s may not be less than 1 (`blended` (B,) False) the models are the
    same. Ends (B, M, 4) and covariances (B, M, 16) of t0, ln u0, ln tE, ln f_s.
    """
    if count is None:
        count = torch.full((len(times),), times.shape[1], device=times.device)
    # All flux lensed: from the previous end or a grid search.
    problem = _LeastSquares(times, data, sqrt_weight, last_epoch, free=3)
    theta, covariance = problem.fit([previous[:, 0], _grid_search(*problem[:4], count)])
    thetas, covariances = (torch.stack([x, x], dim=1) for x in (theta, covariance))
    # Free f_s: from the previous end, moved along the degeneracy or not, or the fit above.
    rows = blended.nonzero()[:, 0]
    if len(rows):
        own = problem[:4] if len(rows) == len(blended) else (x[rows] for x in problem[:4])
        ended = previous[rows, 1]
        shifted = (_shift_along_blend_degeneracy(ended, shift) for shift in BLEND_SHIFTS)
        free = _LeastSquares(*own, free=4).fit([ended, theta[rows], *shifted])
        thetas[rows, 1], covariances[rows, 1] = free
    return thetas, covariances
