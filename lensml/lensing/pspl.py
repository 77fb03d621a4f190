"""Point-source point-lens (PSPL) curves and batched Levenberg-Marquardt fits of them.

Axes: B curves, S or K starting points of each, T epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import log

import torch
from torch import Tensor

from lensml.lensing.normal_equations import MAG, gauss_newton_terms, marquardt_step, select_rows

LOW = (-torch.inf, log(1e-7), log(1e-3), 1e-3)  # t0, ln u0, ln tE, f_s
HIGH = (torch.inf, log(30.0), log(1e5), 1.0)
# Epochs kept, iterations, local minima kept: cheap first. With f_s free minima are long and flat.
SEARCH = ((75, 6, 4), (300, 8, 2))
SEARCH_BLENDED = ((150, 10, 6), (300, 20, 4))
BLENDS, GIVEN_BLENDS = (0.3, 0.1, 0.01), (0.5, 0.1)  # f_s of further starts where it is free
PRUNE_RATIO = 100.0  # minima with more than so many times the best cost are dropped
MERGE_TOLERANCE = 0.02  # in t0 / (u0 tE), ln u0, ln tE and f_s: closer end points are one minimum
FTOL = 1e-6  # relative gain in cost below which a descent has converged
COMPACT_FRACTION = 0.75  # active rows are gathered once they are at most this fraction


@dataclass(frozen=True)
class PsplFit:
    """Best PSPL curve of each row; every field float64 of shape (B,)."""

    t0: Tensor  # [day]
    u0: Tensor  # [theta_E]
    tE: Tensor  # [day]
    f_s: Tensor  # fraction of the baseline flux that is lensed, 1 unless `blended`
    chi2: Tensor  # weighted sum of squares [mag^2 x weight]

    def delta_mag(self, times: Tensor) -> Tensor:
        """Magnitude change of the fitted curves at `times` (T,) or (B, T), shape (B, T)."""
        return pspl_delta_mag(times, self.t0, self.u0, self.tE, self.f_s)

    def start(self) -> Tensor:
        """As a starting point for another fit, (B, 1, 4)."""
        return torch.stack([self.t0, self.u0, self.tE, self.f_s], dim=1)[:, None]

    def better_of(self, other: "PsplFit") -> "PsplFit":
        """Row by row the fit with the smaller chi2."""
        mine = self.chi2 <= other.chi2
        names = [f.name for f in fields(self)]
        return PsplFit(*(torch.where(mine, getattr(self, n), getattr(other, n)) for n in names))


def excess_magnification(u2: Tensor) -> Tensor:
    """A(u) - 1 of a point source at u^2 [theta_E^2], exact to rounding at any distance."""
    root = torch.sqrt(u2 * (u2 + 4.0))
    return 4.0 / (root * (root + u2 + 2.0))


def pspl_delta_mag(times: Tensor, t0: Tensor, u0: Tensor, tE: Tensor, f_s: Tensor) -> Tensor:
    """Magnitude minus baseline (B, T) of single lenses at `times` (T,) or (B, T), dimmer > 0."""
    u2 = u0[:, None] ** 2 + ((times - t0[:, None]) / tE[:, None]) ** 2
    return -MAG * torch.log1p(f_s[:, None] * excess_magnification(u2))


def _levenberg_marquardt(
    theta: Tensor,
    times: Tensor,
    data: Tensor,
    sqrt_weight: Tensor | None,
    blended: bool,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt from `theta` (B, 4): end points and their costs (B,).

    A converged row is frozen, never moved by others; once many are, the others go on alone.
    """
    free = 4 if blended else 3
    low, high = (theta.new_tensor(bound)[:free] for bound in (LOW, HIGH))
    end, floor = theta.clone(), theta.new_empty(len(theta))
    rows = torch.arange(len(theta), device=theta.device)
    state = gauss_newton_terms(theta, times, data, sqrt_weight, blended)
    damping = torch.full_like(state[:, 0], 1e-2)
    active = torch.ones_like(damping, dtype=torch.bool)
    for _ in range(iterations):
        # A row whose next step would gain too little has converged.
        step, cost = marquardt_step(state, damping, free), state[:, 0]
        expected = -(state[:, 1 : 1 + free] * step).sum(1)  # gain by the linear model
        active = active & (expected > FTOL * cost + 1e-10)
        # Go on with the active rows alone once many have converged.
        remaining = int(active.sum())
        if remaining <= COMPACT_FRACTION * len(active):
            end[rows], floor[rows] = theta, cost
            if not remaining:
                return end, floor
            times, data, sqrt_weight = select_rows(active, times, data, sqrt_weight)
            kept = (rows, theta, state, damping, step, active)
            rows, theta, state, damping, step, active = (x[active] for x in kept)
        # Trial step; the linear model holds for two units of t0 / tE, ln u0 and ln tE at most.
        limit = torch.full_like(step, 2.0)
        limit[:, 0] *= theta[:, 2].exp()
        trial = theta.clone()
        trial[:, :free] += torch.clamp(step, -limit, limit)
        trial[:, :free] = torch.clamp(trial[:, :free], low, high)
        # Accept it where the cost falls, and adapt the damping.
        new = gauss_newton_terms(trial, times, data, sqrt_weight, blended)
        gain = state[:, 0] - new[:, 0]
        better = active & (gain > 0)
        small = gain < FTOL * state[:, 0] + 1e-10
        active = active & ~((better & small) | (~better & (damping > 1e8)))
        theta = torch.where(better[:, None], trial, theta)
        state = torch.where(better[:, None], new, state)
        damping = torch.where(better, (damping / 5).clamp_min(1e-12), damping * 6)
    end[rows], floor[rows] = theta, state[:, 0]
    return end, floor


def _guesses(times: Tensor, data: Tensor, blended: bool) -> Tensor:
    """Starting points (B, S, 4) from peak, centroid and second peak at several time scales."""
    # Equivalent width of the brightening; an epoch counts by the gap that follows it.
    bright = (-data).clamp_min(0)
    dt = torch.diff(times, dim=1).clamp_min(1e-6)
    dt = torch.cat([dt, dt[:, -1:]], dim=1).clamp_max(10 * dt.median())
    area, area2 = (bright * dt).sum(1), (bright**2 * dt).sum(1)
    width = (area**2 / area2.clamp_min(1e-30)).clamp(0.1, 1e4)
    # Highest epoch, and the highest a quarter of the width away from it.
    peak, at_peak = bright.max(dim=1)
    t_peak = times.gather(1, at_peak[:, None])[:, 0]
    centroid = (bright**2 * dt * times).sum(1) / area2.clamp_min(1e-30)
    far = (times - t_peak[:, None]).abs() > 0.25 * width[:, None]
    t_second = times.gather(1, torch.where(far, bright, -1.0).argmax(1, keepdim=True))[:, 0]
    amplitude = 10 ** (0.4 * peak.clamp(1e-3, 12.0))

    def u_peak(f_s: float) -> Tensor:
        lensed = 1 + (amplitude - 1) / f_s
        return torch.sqrt(2 * lensed / torch.sqrt(lensed**2 - 1) - 2).clamp(1e-5, 3.0)

    rows = [
        (t, u_peak(1.0) * wider, width * scale, 1.0)
        for t, wider, scale in (
            (t_peak, 1.0, 0.15),
            (t_peak, 1.0, 0.6),
            (t_peak, 1.0, 2.5),
            (centroid, 1.0, 0.5),
            (centroid, 2.0, 1.0),
            (t_second, 1.5, 0.6),
        )
    ]
    if blended:  # along the degeneracy in which u0 and f_s fall together at constant u0 tE
        rows += [
            (t, u_peak(f_s) * wider, width * scale * u_peak(1.0) / u_peak(f_s), f_s)
            for f_s in BLENDS
            for t, wider, scale in ((t_peak, 1.0, 0.6), (t_peak, 1.0, 2.5), (centroid, 3.0, 2.0))
        ]
    start = [
        torch.stack([t, u.log(), tE.log(), torch.full_like(t, f_s)], dim=1)
        for t, u, tE, f_s in rows
    ]
    return torch.stack(start, dim=1)


def starting_points(
    times: Tensor, data: Tensor, starts: Tensor | None, *, blended: bool, search: bool = True
) -> Tensor:
    """Starting points of `fit_pspl`: t0, ln u0, ln tE and f_s, (B, S, 4)."""
    candidates = [_guesses(times.expand_as(data), data, blended)] if search else []
    if starts is not None:
        given = torch.as_tensor(starts, dtype=torch.float64, device=data.device)
        blends = (1.0, *(GIVEN_BLENDS if blended and search else ())) if given.shape[2] == 3 else ()
        logs = torch.cat([given[..., :1], given[..., 1:3].log(), given[..., 3:]], dim=2)
        whole = [torch.cat([logs, torch.full_like(logs[..., :1], f_s)], dim=2) for f_s in blends]
        candidates += whole or [logs]
    return torch.cat(candidates, dim=1)


def _refine_starts(
    theta, distinct, times, data, sqrt_weight, blended, iterations
) -> tuple[Tensor, Tensor]:
    """Descend from those of K starting points a row (B, K, 4) that are `distinct` (B, K).

    End points (B, K, 4) and costs (B, K), the best first; infinite where not descended.
    """
    row, start = distinct.nonzero(as_tuple=True)
    curves = select_rows(row, times, data, sqrt_weight)
    ends, floor = _levenberg_marquardt(theta[row, start], *curves, blended, iterations)
    result, cost = theta.clone(), theta.new_full(distinct.shape, torch.inf)
    result[row, start], cost[row, start] = ends, floor
    cost, order = cost.sort(dim=1, stable=True)
    return result.gather(1, order[..., None].expand_as(result)), cost


def _distinct_minima(theta: Tensor, cost: Tensor) -> Tensor:
    """Mask (B, K) of local minima (B, K, 4), the best first: no repetition, no high cost."""
    distinct = cost < PRUNE_RATIO * cost[:, :1] + 1e-9
    distinct[:, 0] = True
    size = torch.full_like(theta, MERGE_TOLERANCE)
    size[..., 0] *= (theta[..., 1] + theta[..., 2]).exp()  # u0 tE
    for k in range(1, theta.shape[1]):
        again = (theta[:, :k] - theta[:, k : k + 1]).abs() < size[:, k : k + 1]
        distinct[:, k] &= ~again.all(dim=2).any(dim=1)
    return distinct


def fit_pspl(
    times: Tensor,
    delta_mag: Tensor,
    *,
    weight: Tensor | None = None,
    starts: Tensor | None = None,
    blended: bool = False,
    search: bool = True,
) -> PsplFit:
    """Fit a single point lens to many curves at once, in least squares of magnitude.

    `times` (T,) or (B, T) increase [day]; `delta_mag` (B, T) is magnitude minus the known baseline
    [mag], any value where `weight` (B, T) is 0, which means not observed; None = all 1. `starts`
    are further starting points (B, S, 3) of t0 [day], u0, tE [day], or (B, S, 4) with f_s, which is
    free (0 < f_s <= 1) if `blended`. `search` adds starting points read off the curve, thinned out
    on few epochs; off for warm-started refits, and then ValueError without `starts`.

    Levenberg-Marquardt with analytic derivatives, first on a thinned set of epochs, then on all of
    them from the best local minima. Rows do not influence each other.
    """
    data = torch.as_tensor(delta_mag, dtype=torch.float64)
    times = torch.as_tensor(times, dtype=torch.float64, device=data.device)
    times = times[None] if times.dim() == 1 else times
    sqrt_weight = None
    if weight is not None:
        sqrt_weight = torch.as_tensor(weight, dtype=torch.float64, device=data.device).sqrt()
        data = torch.where(sqrt_weight > 0, data, 0.0)
    if starts is None and not search:
        raise ValueError("`starts` is None and `search` is off; give one of the two")
    # Search: descents on thinned epochs in float32, which locates the minima well enough.
    theta = starting_points(times, data, starts, blended=blended, search=search)
    distinct = torch.ones_like(theta[..., 0], dtype=torch.bool)
    for epochs, iterations, keep in SEARCH_BLENDED if blended else SEARCH:
        if search and theta.shape[1] > keep:
            zero = times.mean(dim=1, keepdim=True)  # relative, so float32 holds Julian dates too
            stride = max(1, data.shape[1] // epochs)
            near, thinned = (x[:, ::stride].float() for x in (times - zero, data))
            weights = None if sqrt_weight is None else sqrt_weight[:, ::stride].float()
            theta[..., 0] -= zero
            ends = _refine_starts(
                theta.float(), distinct, near, thinned, weights, blended, iterations
            )
            theta, cost = (x[:, :keep].double() for x in ends)
            theta[..., 0] += zero
            distinct = _distinct_minima(theta, cost)
    # Refine the best on all epochs in float64.
    theta, cost = _refine_starts(theta, distinct, times, data, sqrt_weight, blended, 60)
    t0, ln_u0, ln_tE, f_s = theta[:, 0].unbind(1)
    return PsplFit(t0, ln_u0.exp(), ln_tE.exp(), f_s, cost[:, 0])


def fit_prefixes(
    times: Tensor,
    delta_mag: Tensor,
    prefixes: Sequence[Tensor],
    *,
    weight: Tensor | None = None,
    starts: Tensor | None = None,
    blended: bool = False,
) -> list[PsplFit]:
    """Fit growing prefixes of many curves, each from the end points of its neighbours.

    Arguments as of `fit_pspl`; `prefixes` are boolean masks (T,) or (B, T), rising, and `starts`
    belong to the longest, as of a twin. The best fit of each prefix: backward from the longest,
    each from the end point of the one before; then forward, each from the backward fit, from the
    previous prefix and from a search of its own. The forward pass alone leaves fifteen times as
    many prefixes above their best fit.
    """
    weight = torch.ones_like(delta_mag) if weight is None else weight

    def fit(prefix: Tensor, starts: Tensor | None, search: bool) -> PsplFit:
        inside = prefix.to(delta_mag.device).expand_as(delta_mag)
        stop = max([4, *(inside.any(dim=0).nonzero()[-1:] + 1).flatten().tolist()])
        return fit_pspl(
            times[..., :stop],
            delta_mag[:, :stop],
            weight=(weight * inside)[:, :stop],
            starts=starts,
            blended=blended,
            search=search,
        )

    backward = []
    for prefix in reversed(prefixes):
        backward.append(fit(prefix, starts, search=starts is None))
        starts = backward[-1].start()
    forward: list[PsplFit] = []
    for prefix, other in zip(prefixes, reversed(backward), strict=True):
        begin = [near.start() for near in (other, *forward[-1:])]
        found = fit(prefix, torch.cat(begin, dim=1), search=True)
        forward.append(found.better_of(other))
    return forward
