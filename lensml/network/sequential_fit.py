"""A single lens refitted to growing prefixes of many curves, each begun where the last one ended.

Every curve is refitted at the same counts of observed epochs, with all flux lensed and with a free
share of it. Nothing is fitted beyond the prefix, always in as many steps, so that a stream which
remembers KEEP epochs finds the same. Prefixes of different lengths share a fit once padded: behind
a curve's own epochs, of which there is a multiple of BIN, its last time and nothing of weight.

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

__all__ = [
    "MAX_HISTORY",
    "PRIOR_CENTRE",
    "Fits",
    "update_fits",
    "next_refit_epoch",
    "prior_fits",
    "refit_schedule",
]

MAX_HISTORY = 2048  # epochs of the past that a refit reaches
BIN = 8  # epochs averaged where only the valley of a fit is sought
FREE = (3, 4)  # parameters of the two models: without and with a free f_s
ITERATIONS, SEARCH_ITERATIONS = (3, 3), 4
# Weak priors keep fits to the rise of an event from running away: centre and width of t0 (from the
# last epoch) [day], ln u0, ln tE, ln f_s. The valley in which u0 and f_s fall while tE rises is
# straight in these logarithms; with f_s itself, two steps a refit do not follow it.
PRIOR_CENTRE = (0.0, log(0.5), log(22.4), 0.0)
PRIOR_WIDTH = (100.0, 2.0, 0.9, 1.0)
LOW = (-torch.inf, log(1e-5), log(0.1), log(0.01))
HIGH = (torch.inf, log(5.0), log(2000.0), 0.0)
BLEND_SHIFTS = (-0.4, 0.3)  # changes of ln f_s that are tried before a descent
# Where other valleys are sought: tE [day], and 0 = the brightest epochs, 1 = the second brightest,
# 2 = a rise that has just begun.
SEARCH_GRID = ((3.0, 0), (8.0, 0), (20.0, 0), (50.0, 0), (8.0, 1), (25.0, 1), (15.0, 2), (40.0, 2))


class Fits(NamedTuple):
    """Fits in force, and how well the epochs since then agree with them."""

    theta: Tensor  # (B, M, 4) float64: t0 [day], ln u0, ln tE, ln f_s
    covariance: Tensor  # (B, M, 16) float64, of theta
    innovation_sums: Tensor  # (B, M, 2) float64: since then, of innovations and their squares
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


def prior_fits(num: int, last: Tensor) -> Fits:
    """What is believed before the first refit; `last` is the latest epoch (B,) [day]."""
    theta = last.new_tensor(PRIOR_CENTRE)
    theta = theta.repeat(num, 2, 1)
    theta[..., 0] += last[:, None]
    zeros = theta.new_zeros
    return Fits(theta, zeros(num, 2, 16), zeros(num, 2, 2), zeros(num))


@cache
def _constants(free: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """PRIOR_CENTRE, precisions of the priors, LOW and HIGH of so many parameters, each (free,)."""
    with torch.inference_mode(False):
        kind = {"dtype": dtype, "device": device}
        centre, width, low, high = (
            torch.tensor(x[:free], **kind) for x in (PRIOR_CENTRE, PRIOR_WIDTH, LOW, HIGH)
        )
        return centre, width**-2, low, high


def _add_prior(state: Tensor, theta: Tensor, last: Tensor, free: int) -> Tensor:
    """What `gauss_newton_terms.gauss_newton_terms` returned, the priors added in place."""
    centre, precision, _, _ = _constants(free, theta.dtype, theta.device)
    offset = theta[:, :free] - centre
    offset[:, 0].sub_(last)
    pull = offset * precision
    state[:, 0].add_((pull * offset).sum(1))
    state[:, 1 : 1 + free].add_(pull)
    state[:, 1 + free :: free + 1].add_(precision)
    return state


class _LeastSquares(NamedTuple):
    """What is fitted: epochs (B, n) of curves, their last epoch (B,) and how much is free.

    Pads have root 0, whatever their time.
    """

    times: Tensor
    data: Tensor
    root: Tensor
    last: Tensor
    free: int

    def at(self, theta: Tensor) -> Tensor:
        """Cost, gradient and Gauss-Newton matrix at `theta` (B, 4), priors included."""
        f_s = theta[:, 3:].exp()
        state = gauss_newton_terms(
            torch.cat([theta[:, :3], f_s], dim=1), self.times, self.data, self.root, self.free == 4
        )
        if self.free == 4:  # from derivatives in f_s to those in its logarithm
            state[:, 4:5].mul_(f_s)
            state[:, 17:].mul_(f_s)  # the last row of the matrix, then its last column
            state[:, 8::4].mul_(f_s)
        return _add_prior(state, theta, self.last, self.free)

    def repeated(self, num: int) -> "_LeastSquares":
        """Each curve so many times."""
        return _LeastSquares(*(x.repeat_interleave(num, dim=0) for x in self[:4]), self.free)

    def best_start(self, starts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The best of some starts (B, 4), of equals the first, and the state there."""
        if (
            len(starts) * self.data.numel() <= CACHE_ELEMENTS
        ):  # few curves: one call costs what many do
            num = len(starts)
            at_all = self.repeated(num).at(torch.stack(starts, dim=1).flatten(0, 1))
            states = at_all.unflatten(0, (-1, num)).unbind(1)
        else:
            states = [self.at(start) for start in starts]
        theta, state = starts[0], states[0]
        for other, there in zip(starts[1:], states[1:], strict=True):
            better = (there[:, 0] < state[:, 0])[:, None]
            theta, state = torch.where(better, other, theta), torch.where(better, there, state)
        return theta, state

    def fit(self, starts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Descend from the best start: the end (B, 4) and its covariance (B, 16)."""
        free = self.free
        theta, state = self.descend(*self.best_start(starts), ITERATIONS[FREE.index(free)])
        covariance = theta.new_zeros(len(theta), 4, 4)
        inverse = torch.linalg.inv_ex(state[:, 1 + free :].view(-1, free, free))[0]
        covariance[:, :free, :free] = inverse.nan_to_num_()
        return theta, covariance.flatten(1)

    def descend(self, theta: Tensor, state: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """So many steps of Levenberg and Marquardt, always as many: (B, 4) and the state there."""
        free = self.free
        _, _, low, high = _constants(free, theta.dtype, theta.device)
        damping = theta.new_full((len(theta),), 1e-3)
        for _ in range(steps):
            step = marquardt_step(state, damping, free)
            limit = torch.full_like(step, 1.5)
            limit[:, 0].mul_(theta[:, 2].exp())
            trial = theta.clone()
            trial[:, :free].add_(step.clamp_(-limit, limit)).clamp_(low, high)
            new = self.at(trial)
            better = new[:, 0] < state[:, 0]
            theta = torch.where(better[:, None], trial, theta)
            state = torch.where(better[:, None], new, state)
            damping = torch.where(better, damping / 10.0, damping * 10.0)
        return theta, state


def _binned(times: Tensor, data: Tensor, root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted means of BIN epochs each, and the roots of their weights; 0 where all are pads."""
    weight = (root * root).unflatten(1, (-1, BIN))
    total = weight.sum(2)
    norm = total.clamp_min(torch.finfo(total.dtype).tiny)
    return (
        (weight * times.unflatten(1, (-1, BIN))).sum(2) / norm,
        (weight * data.unflatten(1, (-1, BIN))).sum(2) / norm,
        total.sqrt(),
    )


def _grid_search(times: Tensor, data: Tensor, root: Tensor, last: Tensor, count: Tensor) -> Tensor:
    """The best valley found from the brightest epochs or a rise to come, (B, 4)."""
    times, data, root = _binned(times, data, root)
    sure = -data - 1 / root  # of pads -inf
    best, at = sure.max(dim=1, keepdim=True)
    first = times.gather(1, at)
    apart = torch.where((times - first).abs() > 15.0, sure, -1.0)
    second_best, second_at = apart.max(dim=1, keepdim=True)
    peaks = torch.cat([first, times.gather(1, second_at), last[:, None]], dim=1)
    latest = -data.gather(1, count[:, None] // BIN - 1)
    heights = torch.cat([best, second_best, latest], dim=1).clamp(0.02, 8.0)
    gain = torch.expm1(heights / MAG)
    ln_u = 0.5 * torch.log(2 * (1 + gain) / torch.sqrt(gain * (gain + 2)) - 2)
    starts = [
        torch.stack(
            [
                peaks[:, k] + (0.5 * tE if k == 2 else 0.0),
                ln_u[:, k].clamp(log(1e-4), log(1.5)) - (0.5 if k == 2 else 0.0),
                torch.full_like(last, log(tE)),
                torch.zeros_like(last),
            ],
            dim=1,
        )
        for tE, k in SEARCH_GRID
    ]
    num = len(starts)
    start = torch.stack(starts, dim=1).flatten(0, 1)
    problem = _LeastSquares(times, data, root, last, 3)
    states = problem.repeated(num).at(start).unflatten(0, (-1, num))
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
    """Fits (B, 4) with ln f_s moved by `shift`, peak flux and width at half of it as they were."""
    t0, ln_u0, ln_tE, ln_f_s = theta.unbind(1)
    moved = (ln_f_s + shift).clamp(LOW[3], HIGH[3])
    x = (2 * ln_u0).exp()
    peak = excess_magnification(x)
    new_peak = peak * (ln_f_s - moved).exp()
    new = u2_of_excess(new_peak)
    width = (u2_of_excess(peak / 2) - x) / (u2_of_excess(new_peak / 2) - new)
    return torch.stack([t0, 0.5 * new.log(), ln_tE + 0.5 * width.log(), moved], dim=1)


def update_fits(
    previous: Tensor,
    times: Tensor,
    data: Tensor,
    root: Tensor,
    last: Tensor,
    blended: Tensor,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Both models, begun where they ended before or in a better valley.

    Args:
        before: Where they ended, (B, M, 4).
        times, data, root: Epochs [day], magnitude minus baseline [mag] and 1 / sigma, (B, n); of
            pads the last time, 0 and 0.
        last: The latest epoch, (B,) [day].
        blended: Whether f_s may be less than 1, (B,); where not, the models are one.
        count: How many epochs of each curve are no pads, (B,) int64; None = all.

    Returns:
        Ends (B, M, 4) and covariances (B, M, 16) of t0, ln u0, ln tE, ln f_s.
    """
    if count is None:
        count = torch.full((len(times),), times.shape[1], device=times.device)
    problem = _LeastSquares(times, data, root, last, FREE[0])
    theta, covariance = problem.fit([previous[:, 0], _grid_search(*problem[:4], count)])
    thetas, covariances = (torch.stack([x, x], dim=1) for x in (theta, covariance))
    rows = blended.nonzero()[:, 0]
    if len(rows):
        own = problem[:4] if len(rows) == len(blended) else (x[rows] for x in problem[:4])
        ended = previous[rows, 1]
        valley = (_shift_along_blend_degeneracy(ended, shift) for shift in BLEND_SHIFTS)
        free = _LeastSquares(*own, FREE[1]).fit([ended, theta[rows], *valley])
        thetas[rows, 1], covariances[rows, 1] = free
    return thetas, covariances
