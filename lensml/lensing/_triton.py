"""Gauss-Newton terms of a row of epochs in one GPU kernel (Triton; NVIDIA and AMD).

Imported only where a GPU is. Sums stay in registers; torch would write and read thirty arrays.
"""

from math import log

import torch
import triton
import triton.language as tl
from torch import Tensor

EPOCHS = 256  # of a row in registers at a time
MAG = tl.constexpr(2.5 / log(10.0))


@triton.jit
def _gauss_newton_kernel(theta, times, data, sqrt_weight, out, n, times_row, theta_row, width,
                         blended: tl.constexpr, weighted: tl.constexpr,
                         epochs: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    theta += row * theta_row
    times += row * times_row
    data += row * n
    sqrt_weight += row * n
    t0 = tl.load(theta)
    rate = tl.exp(-tl.load(theta + 2))
    u0_squared = tl.exp(2.0 * tl.load(theta + 1))
    f_s = tl.load(theta + 3)
    zero = tl.zeros([epochs], dtype=data.dtype.element_ty)
    # Sums of products: of columns (tau, 1, tau^2) g, of d = dm/df_s, of the residual r.
    g0, g1, g2, g3, g4 = zero, zero, zero, zero, zero  # g^2 tau^k
    r0, r1, r2, rr = zero, zero, zero, zero  # r g tau^k, r^2
    d0, d1, d2, dr, dd = zero, zero, zero, zero, zero  # d g tau^k, d r, d^2
    for first in range(0, n, epochs):
        at = first + tl.arange(0, epochs)
        inside = at < n
        # Magnification less one, flux and residual at a block of epochs.
        tau = (tl.load(times + at, mask=inside, other=0.0) - t0) * rate
        m = tl.load(data + at, mask=inside, other=0.0)
        tau2 = tau * tau
        x = tau2 + u0_squared
        y = (x + 4.0) * x
        root_y = tl.sqrt(y)
        excess = 4.0 / ((x + 2.0 + root_y) * root_y)
        flux = 1.0 + excess * f_s if blended else 1.0 + excess
        residual = -MAG * tl.log(flux) - m
        # Derivatives of the magnitude in x = u^2 and in f_s.
        g = 4.0 * MAG / (y * root_y * flux)
        if blended:
            g = g * f_s
        d = -MAG * excess / flux
        if weighted:
            w = tl.load(sqrt_weight + at, mask=inside, other=0.0)
            residual, g, d = residual * w, g * w, d * w
        # Epochs beyond the end of the row add nothing to the sums.
        residual = tl.where(inside, residual, zero)
        g = tl.where(inside, g, zero)
        gg, rg = g * g, residual * g
        g0 += gg
        g1 += gg * tau
        g2 += gg * tau2
        g3 += gg * tau2 * tau
        g4 += gg * tau2 * tau2
        r0 += rg
        r1 += rg * tau
        r2 += rg * tau2
        rr += residual * residual
        if blended:
            d = tl.where(inside, d, zero)
            dg = d * g
            d0 += dg
            d1 += dg * tau
            d2 += dg * tau2
            dr += d * residual
            dd += d * d
    # Gradient and symmetric matrix: sums times the row's constant factors.
    a, b, c = -2.0 * rate, 2.0 * u0_squared, -2.0  # d x / d (t0, ln u0, ln tE) but for tau^k
    free: tl.constexpr = 4 if blended else 3
    out += row * width
    tl.store(out, tl.sum(rr, 0))
    tl.store(out + 1, a * tl.sum(r1, 0))
    tl.store(out + 2, b * tl.sum(r0, 0))
    tl.store(out + 3, c * tl.sum(r2, 0))
    matrix = out + 1 + free
    ab, ac, bc = a * b * tl.sum(g1, 0), a * c * tl.sum(g3, 0), b * c * tl.sum(g2, 0)
    tl.store(matrix, a * a * tl.sum(g2, 0))
    tl.store(matrix + 1, ab)
    tl.store(matrix + 2, ac)
    tl.store(matrix + free, ab)
    tl.store(matrix + free + 1, b * b * tl.sum(g0, 0))
    tl.store(matrix + free + 2, bc)
    tl.store(matrix + 2 * free, ac)
    tl.store(matrix + 2 * free + 1, bc)
    tl.store(matrix + 2 * free + 2, c * c * tl.sum(g4, 0))
    if blended:
        ad, bd, cd = a * tl.sum(d1, 0), b * tl.sum(d0, 0), c * tl.sum(d2, 0)
        tl.store(out + 4, tl.sum(dr, 0))
        tl.store(matrix + 3, ad)
        tl.store(matrix + 7, bd)
        tl.store(matrix + 11, cd)
        tl.store(matrix + 12, ad)
        tl.store(matrix + 13, bd)
        tl.store(matrix + 14, cd)
        tl.store(matrix + 15, tl.sum(dd, 0))


def gauss_newton_rows(
    theta: Tensor, times: Tensor, data: Tensor, sqrt_weight: Tensor | None, blended: bool
) -> Tensor:
    """`gauss_newton_terms` of B rows of n epochs, (B, 1 + P + P P)."""
    free = 4 if blended else 3
    rows, n = data.shape
    out = torch.empty(rows, 1 + free + free * free, dtype=data.dtype, device=data.device)
    if rows == 0:
        return out
    theta, times, data = theta.contiguous(), times.contiguous(), data.contiguous()
    weight = data if sqrt_weight is None else sqrt_weight.contiguous()
    shared = 0 if len(times) == 1 else n
    _gauss_newton_kernel[(rows,)](
        theta, times, data, weight, out, n, shared, theta.shape[1], out.shape[1],
        blended=blended, weighted=sqrt_weight is not None, epochs=EPOCHS,
    )  # fmt: skip
    return out
