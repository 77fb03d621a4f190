"""Batched single-lens fit: twins, delta-chi2, the classical baseline. Axes: B curves, T epochs."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

__all__ = ["PsplFit", "fit_pspl", "pspl_delta_mag"]

MAG = 2.5 / log(10.0)  # magnitudes per natural logarithm
LOW = (-torch.inf, log(1e-7), log(1e-3), 1e-3)  # t0, ln u0, ln tE, f_s
HIGH = (torch.inf, log(30.0), log(1e5), 1.0)
SEARCH = ((150, 7, 3), (300, 8, 2))  # epochs kept, iterations, valleys kept: cheap first


@dataclass(frozen=True)
class PsplFit:
    """Best point-source, point-lens curve of each row; every field float64 of shape (B,)."""

    t0: Tensor  # [day]
    u0: Tensor  # [theta_E]
    tE: Tensor  # [day]
    f_s: Tensor  # share of the baseline flux that is lensed, 1 unless `blended`
    chi2: Tensor  # weighted sum of squares [mag^2 x weight]

    def delta_mag(self, times: Tensor) -> Tensor:
        """Magnitude change of the fitted curves at `times` (T,) or (B, T), shape (B, T)."""
        return pspl_delta_mag(times, self.t0, self.u0, self.tE, self.f_s)


def pspl_delta_mag(times: Tensor, t0: Tensor, u0: Tensor, tE: Tensor, f_s: Tensor) -> Tensor:
    """Magnitude minus baseline of single lenses, shape (B, T), negative when brighter.

    Args:
        times: Epochs, shape (T,) or (B, T) [day].
        t0, u0, tE, f_s: Parameters, each (B,).
    """
    x = u0[:, None] ** 2 + ((times - t0[:, None]) / tE[:, None]) ** 2
    excess = 2 / (torch.sqrt(x * (x + 4)) * (torch.sqrt(x * (x + 4)) + x + 2)) * 2
    return -MAG * torch.log1p(f_s[:, None] * excess)


def _linearise(theta: Tensor, times: Tensor, data: Tensor, root: Tensor | None, blended: bool):
    """Cost (B,), gradient (B, P) and Gauss-Newton matrix (B, P, P) at `theta` (B, 4).

    With x = u^2 the curve depends on t0, ln u0 and ln tE through x alone, so every product of
    derivatives is a moment of (dm/dx)^2 in tau: no Jacobian is ever stored.
    """
    t0, ln_u0, ln_tE, f_s = (theta[:, i, None] for i in range(4))
    tE, u0_squared = ln_tE.exp(), (2 * ln_u0).exp()
    tau = (times - t0) / tE
    tau2 = tau * tau
    x = tau2 + u0_squared
    y = x * (x + 4)
    root_y = torch.sqrt(y)
    excess = 4 / (root_y * (root_y + x + 2))  # A - 1 without cancellation
    flux = 1 + f_s * excess
    residual = -MAG * torch.log(flux) - data
    g = (4 * MAG) * f_s / (y * root_y * flux)  # dm/dx
    if root is not None:
        residual, g = residual * root, g * root
    gg, gr = g * g, g * residual
    c = torch.cat([-2 / tE, 2 * u0_squared, torch.full_like(tE, -2.0)], dim=1)  # dx/dtheta / tau^k
    gg1, gg2 = gg * tau, gg * tau2
    m0, m1, m2 = gg.sum(1), gg1.sum(1), gg2.sum(1)
    m3, m4 = (gg2 * tau).sum(1), (gg2 * tau2).sum(1)
    moments = torch.stack([m2, m1, m3, m1, m0, m2, m3, m2, m4], dim=1).view(-1, 3, 3)
    hessian = moments * c[:, :, None] * c[:, None, :]
    gradient = torch.stack([(gr * tau).sum(1), gr.sum(1), (gr * tau2).sum(1)], dim=1) * c
    cost = (residual * residual).sum(1)
    if not blended:
        return cost, gradient, hessian
    d = -MAG * excess / flux  # dm/df_s
    if root is not None:
        d = d * root
    gd = g * d
    cross = torch.stack([(gd * tau).sum(1), gd.sum(1), (gd * tau2).sum(1)], dim=1) * c
    full = hessian.new_zeros(len(theta), 4, 4)
    full[:, :3, :3] = hessian
    full[:, :3, 3] = full[:, 3, :3] = cross
    full[:, 3, 3] = (d * d).sum(1)
    return cost, torch.cat([gradient, (d * residual).sum(1, keepdim=True)], dim=1), full


def _step(gradient: Tensor, hessian: Tensor, damping: Tensor) -> Tensor:
    """Marquardt's step: the scale of each parameter is its own diagonal entry."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    damped = hessian + torch.diag_embed(diagonal * damping[:, None] + 1e-30)
    return -torch.linalg.solve_ex(damped, gradient.unsqueeze(2))[0].squeeze(2)


def _descend(
    theta: Tensor, times: Tensor, data: Tensor, root: Tensor | None, blended: bool, iterations: int
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt from `theta` (B, 4); a converged row is frozen, never moved by others."""
    free = 4 if blended else 3
    low, high = (theta.new_tensor(bound) for bound in (LOW, HIGH))
    cost, gradient, hessian = _linearise(theta, times, data, root, blended)
    damping = torch.full_like(cost, 1e-2)
    active = torch.ones_like(cost, dtype=torch.bool)
    for _ in range(iterations):
        trial = theta.clone()
        # Two units of t0 / tE, ln u0 and ln tE are as far as the linear model can be believed.
        limit = torch.cat([theta[:, 2:3].exp() * 2, torch.full_like(theta[:, :3], 2.0)], dim=1)
        step = torch.nan_to_num(_step(gradient, hessian, damping))
        trial[:, :free] += torch.maximum(torch.minimum(step, limit[:, :free]), -limit[:, :free])
        trial = torch.maximum(torch.minimum(trial, high), low)
        new_cost, new_gradient, new_hessian = _linearise(trial, times, data, root, blended)
        better = active & (new_cost < cost)
        gain = cost - new_cost
        done = active & (better & (gain < 1e-6 * cost + 1e-10) | (~better & (damping > 1e8)))
        theta = torch.where(better[:, None], trial, theta)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        hessian = torch.where(better[:, None, None], new_hessian, hessian)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, (damping / 5).clamp_min(1e-12), damping * 6)
        active = active & ~done
        if not active.any():
            break
    return theta, cost


def _guesses(times: Tensor, data: Tensor) -> Tensor:
    """Starting points (B, S, 4): at the peak, the centroid and the second peak, short to long."""
    bright = (-data).clamp_min(0)
    dt = torch.diff(times, dim=1).clamp_min(1e-6)
    dt = torch.cat([dt, dt[:, -1:]], dim=1).clamp_max(10 * dt.median())
    area, area2 = (bright * dt).sum(1), (bright**2 * dt).sum(1)
    width = (area**2 / area2.clamp_min(1e-30)).clamp(0.1, 1e4)
    peak, at_peak = bright.max(dim=1)
    t_peak = times.gather(1, at_peak[:, None])[:, 0]
    centroid = (bright**2 * dt * times).sum(1) / area2.clamp_min(1e-30)
    far = (times - t_peak[:, None]).abs() > 0.25 * width[:, None]
    t_second = times.gather(1, torch.where(far, bright, -1.0).argmax(1, keepdim=True))[:, 0]
    amplitude = 10 ** (0.4 * peak.clamp(1e-3, 12.0))
    u_peak = torch.sqrt(2 * amplitude / torch.sqrt(amplitude**2 - 1) - 2).clamp(1e-5, 3.0)
    rows = [
        (t, u_peak * wider, width * scale)
        for t, wider, scale in (
            (t_peak, 1.0, 0.15),
            (t_peak, 1.0, 0.6),
            (t_peak, 1.0, 2.5),
            (centroid, 1.0, 0.5),
            (centroid, 2.0, 1.0),
            (t_second, 1.5, 0.6),
        )
    ]
    start = [torch.stack([t, u.log(), tE.log(), torch.ones_like(t)], dim=1) for t, u, tE in rows]
    return torch.stack(start, dim=1)


def fit_pspl(
    times: Tensor,
    delta_mag: Tensor,
    *,
    weight: Tensor | None = None,
    starts: Tensor | None = None,
    blended: bool = False,
    search: bool = True,
    num_polished: int = 2,
) -> PsplFit:
    """Fit a single point lens to many curves at once, in least squares of magnitude.

    Args:
        times: Epochs, (T,) or (B, T), increasing [day].
        delta_mag: Magnitude minus the known baseline, (B, T) [mag]; any value where weight is 0.
        weight: Weight of each epoch, (B, T), 0 = not observed; None = all equal to 1.
        starts: Further starting points (B, S, 3) of t0 [day], u0, tE [day].
        blended: Whether f_s (0 < f_s <= 1) is free.
        search: Whether to add starting points read off the curve; off for warm-started refits.
        num_polished: How many of the best valleys are followed on all epochs.

    Returns:
        The best fit of each row. Rows do not influence each other.

    Raises:
        ValueError: If no starting point is given and `search` is off.

    Method: Levenberg-Marquardt with analytic derivatives from several starts, first on a thinned
    set of epochs, then on all of them from the best valleys.
    """
    data = torch.as_tensor(delta_mag, dtype=torch.float64)
    times = torch.as_tensor(times, dtype=torch.float64, device=data.device).expand_as(data)
    root = None
    if weight is not None:
        root = torch.as_tensor(weight, dtype=torch.float64, device=data.device).sqrt()
        data = torch.where(root > 0, data, 0.0)
    candidates = [_guesses(times, data)] if search else []
    if starts is not None:
        given = torch.as_tensor(starts, dtype=torch.float64, device=data.device)
        logs = torch.cat([given[..., :1], given[..., 1:].log(), torch.ones_like(given[..., :1])], 2)
        candidates.append(logs)
    if not candidates:
        raise ValueError("`starts` is None and `search` is off; give one of the two")
    theta = torch.cat(candidates, dim=1)
    for epochs, iterations, keep in SEARCH:
        if theta.shape[1] > max(keep, num_polished):
            theta = _best_valleys(theta, times, data, root, blended, epochs, iterations, keep)
    theta = theta[:, :num_polished]
    fits = [_descend(theta[:, i], times, data, root, blended, 60) for i in range(theta.shape[1])]
    cost = torch.stack([c for _, c in fits], dim=1)
    pick = cost.argmin(dim=1)
    best = torch.stack([t for t, _ in fits], dim=1)[torch.arange(len(pick)), pick]
    chi2 = cost[torch.arange(len(pick)), pick]
    return PsplFit(best[:, 0], best[:, 1].exp(), best[:, 2].exp(), best[:, 3], chi2)


def _best_valleys(theta, times, data, root, blended, epochs, iterations, keep) -> Tensor:
    """Descend from every start on thinned epochs; the `keep` best end points (B, keep, 4).

    In float32: the valley is wanted here, not its floor.
    """
    num_starts = theta.shape[1]
    stride = max(1, data.shape[1] // epochs)
    zero = times.mean(dim=1)  # relative time, so that float32 holds Julian dates too

    def thin(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:, ::stride].float().repeat_interleave(num_starts, dim=0)

    flat = theta.clone()
    flat[:, :, 0] -= zero[:, None]
    flat = flat.flatten(0, 1).float()
    near = thin(times - zero[:, None])
    end, cost = _descend(flat, near, thin(data), thin(root), blended, iterations)
    order = cost.view(-1, num_starts).argsort(dim=1, stable=True)[:, :keep]
    best = end.double().view(-1, num_starts, 4).gather(1, order[:, :, None].expand(-1, -1, 4))
    best[:, :, 0] += zero[:, None]
    return best
