"""Cost, gradient and Gauss-Newton matrix of PSPL curves; Marquardt steps.

Axes: B curves, n epochs, P parameters: t0, ln u0, ln tE and, where the blend is free, f_s.
"""

import logging
from functools import cache
from math import log as ln
from types import ModuleType

import torch
from torch import Tensor

log = logging.getLogger(__name__)
MAG = 2.5 / ln(10.0)  # magnitudes per natural logarithm
CACHE_ELEMENTS = 2**16  # values of a batch on a CPU: arrays derived from them stay in its cache


@cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Triton kernels for a GPU, or None where they cannot be built or differ from torch."""
    try:
        from lensml.lensing import _triton as kernels

        times = torch.linspace(-50, 50, 300, dtype=torch.float64, device=device)[None]
        theta = times.new_tensor([[1.0, -1.0, 3.0, 0.5]])
        exact = theta, times, times.sin(), times.cos().exp()
        for blended in (False, True):
            expected = _gauss_newton_rows(*exact, blended)
            for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
                got = kernels.gauss_newton_rows(*(x.to(dtype) for x in exact), blended).double()
                torch.testing.assert_close(got, expected, rtol=rtol, atol=rtol)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # each compiler has its own errors
        first = str(problem).strip().partition("\n")[0]
        log.warning("no kernel for this GPU (%s): fits are slower", first)
        return None
    return kernels


def gauss_newton_terms(
    theta: Tensor, times: Tensor, data: Tensor, sqrt_weight: Tensor | None, blended: bool
) -> Tensor:
    """Cost, gradient (P,) and Gauss-Newton matrix (P, P) of single lenses: (B, 1 + P + P P).

    `theta` is t0 [day], ln u0, ln tE, f_s, (B, 4); without `blended` f_s is 1 and no parameter.
    `times` [day] are (B, n) or (1, n), `data` (B, n) magnitude minus baseline [mag], `sqrt_weight`
    (B, n) roots of the weights, None = 1. On a CPU in batches that fit its cache, on a GPU in one
    kernel.
    """
    if theta.is_cuda and (kernels := _kernels(theta.device)):
        return kernels.gauss_newton_rows(theta, times, data, sqrt_weight, blended)
    at_once = len(theta) if theta.is_cuda else max(1, CACHE_ELEMENTS // data.shape[1])
    if at_once >= len(theta):
        return _gauss_newton_rows(theta, times, data, sqrt_weight, blended)
    parts = [slice(k, k + at_once) for k in range(0, len(theta), at_once)]
    curves = [select_rows(part, times, data, sqrt_weight) for part in parts]
    terms = [_gauss_newton_rows(theta[p], *c, blended) for p, c in zip(parts, curves, strict=True)]
    return torch.cat(terms)


def select_rows(
    rows: Tensor | slice, times: Tensor, data: Tensor, sqrt_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Some rows of `times`, `data` and `sqrt_weight` as `gauss_newton_terms` takes them."""
    times = times[rows] if len(times) > 1 else times
    return times, data[rows], None if sqrt_weight is None else sqrt_weight[rows]


def _gauss_newton_rows(
    theta: Tensor, times: Tensor, data: Tensor, sqrt_weight: Tensor | None, blended: bool
) -> Tensor:
    """`gauss_newton_terms` of a few rows.

    With x = u^2 the curve depends on t0, ln u0 and ln tE through x alone: every product of
    derivatives is a moment of (dm/dx)^2 in tau, and no Jacobian is stored. Factors are floats,
    because torch converts integers first, which takes as long as the product of a short row.
    """
    # x = u^2, magnification less one, and flux over the baseline's.
    t0, ln_u0, ln_tE, f_s = theta[:, :, None].unbind(1)
    rate, u0_squared = (-ln_tE).exp(), (2.0 * ln_u0).exp()
    tau = (times - t0).mul_(rate)
    tau2 = tau * tau
    x = tau2 + u0_squared
    y = (x + 4.0).mul_(x)
    root_y = y.sqrt()
    excess = x.add_(2.0).add_(root_y).mul_(root_y).reciprocal_().mul_(4.0)  # A - 1, no cancellation
    flux = excess * f_s if blended else excess.clone()
    flux.add_(1.0)
    # Residual and derivative of the magnitude in x, both times the square root of the weight.
    residual = flux.log().mul_(-MAG).sub_(data)
    g = y.mul_(root_y).mul_(flux).reciprocal_()  # dm/dx
    g.mul_((4 * MAG) * f_s if blended else 4 * MAG)
    if sqrt_weight is not None:
        residual.mul_(sqrt_weight)
        g.mul_(sqrt_weight)
    g_tau, g_tau2 = g * tau, g * tau2
    # Columns of the Jacobian without the constant factors of each row, `scale`.
    columns = [g_tau, g, g_tau2]
    scale = [-2.0 * rate, 2.0 * u0_squared, torch.full_like(rate, -2.0)]
    if blended:
        d = excess.div_(flux).mul_(-MAG)  # dm/df_s
        columns.append(d if sqrt_weight is None else d.mul_(sqrt_weight))
        scale.append(torch.ones_like(rate))
    # All products of columns and residual, summed over epochs, then the factors.
    products = torch.stack([*columns, residual], dim=1)
    products = products @ products.transpose(1, 2)
    c = torch.cat(scale, dim=1)
    gradient, cost = products[:, :-1, -1] * c, products[:, -1, -1:]
    hessian = products[:, :-1, :-1] * c[:, :, None] * c[:, None, :]
    return torch.cat([cost, gradient, hessian.flatten(1)], dim=1)


def marquardt_step(state: Tensor, damping: Tensor, free: int) -> Tensor:
    """Marquardt (1963) step (B, P): damping in units of each parameter's own diagonal entry.

    From the `state` of `gauss_newton_terms` with P = `free`; `damping` (B,) is added to one.
    """
    gradient, hessian = state[:, 1 : 1 + free], state[:, 1 + free :].view(-1, free, free)
    damped = hessian.clone()
    damped.diagonal(dim1=1, dim2=2).mul_(1.0 + damping[:, None]).add_(1e-30)
    return torch.linalg.solve_ex(damped, gradient.unsqueeze(2))[0].squeeze(2).nan_to_num_().neg_()
