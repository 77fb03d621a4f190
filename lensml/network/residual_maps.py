"""Network inputs from point-lens fits to growing prefixes: innovations and residual maps.

Between refits the active fit predicts each new epoch; its innovation, the deviation in units of the
error of the prediction, is an input of that epoch. At each refit all residuals so far are binned in
phase, (t - t0) / tE, into a map of fixed size, beside a summary of the fit. Causal: nothing here
uses epochs later than the one it belongs to.

Axes: B curves, L observed epochs, J refits, M = 2 models, n epochs of a prefix, K bins of phase.
"""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise, repeat
from math import asinh
from typing import NamedTuple

import torch
from torch import Tensor

from lensml.lensing import MAG, excess_magnification
from lensml.network.features import PackedCurves
from lensml.network.sequential_fit import (
    MAX_HISTORY,
    PRIOR_CENTRE,
    Fits,
    prior_fits,
    refit_schedule,
    update_fits,
)

DENSE_EPOCHS = 256  # epochs after which training makes only a fraction of the refits
KEPT_FRACTION = 0.25
PHASE_BINS = 96
WINDOWS = (4, 16)  # epochs whose residuals are summed, then squared: anomalies shorter than a bin
NUM_MAP_CHANNELS = 2 * (3 + len(WINDOWS))
NUM_SUMMARY = 2 * 8 + 3
NUM_INNOVATIONS = 2 * 5
NEAR_PHASE, FAR_PHASE = 0.03, 8.0  # phase is binned evenly in asinh(phase / NEAR_PHASE)


class ResidualInputs(NamedTuple):
    """Inputs of the network from the refits of B curves."""

    innovations: Tensor  # (B, L, NUM_INNOVATIONS) float32, of each epoch against the active fit
    maps: Tensor  # (B, J, NUM_MAP_CHANNELS, K) float32
    fit_summary: Tensor  # (B, J, NUM_SUMMARY) float32
    active_refit: Tensor  # (B, L) int64, 1 + the last refit by then; 0 = none yet

    def rows(self, part: slice) -> "ResidualInputs":
        """Some of the curves."""
        return ResidualInputs(*(x[part] for x in self))


def _brightening(theta: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Brightening [mag] and phase of fits (B, 4) at times (B, n)."""
    t0, ln_u0, ln_tE, ln_f_s = theta[:, :, None].unbind(1)
    tau = (times - t0) * (-ln_tE).exp()
    x = tau * tau + (2.0 * ln_u0).exp()
    return MAG * (1.0 + ln_f_s.exp() * excess_magnification(x)).log(), tau


def _curve_and_gradient(theta: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Brightening (B, M, n) [mag] and its derivatives (4, B, M, n) in theta (B, M, 4)."""
    t0, ln_u0, ln_tE, ln_f_s = theta[..., None].unbind(2)
    rate, u0_squared, f_s = (-ln_tE).exp(), (2.0 * ln_u0).exp(), ln_f_s.exp()
    tau = (times[:, None] - t0) * rate
    x = tau * tau + u0_squared
    # A(u) - 1 as in `lensing.excess_magnification`, whose root the derivatives need too.
    y = x * (x + 4.0)
    root_y = y.sqrt()
    excess = 4.0 / (root_y * (root_y + x + 2.0))
    flux = 1.0 + f_s * excess
    slope = -4 * MAG * f_s / (y * root_y * flux)  # of the brightening in x
    gradient = (-2.0 * rate * tau * slope, 2.0 * u0_squared * slope, -2.0 * tau * tau * slope)
    return MAG * flux.log(), torch.stack([*gradient, MAG * f_s * excess / flux])


def innovation_features(
    fits: Fits, times: Tensor, bright: Tensor, sqrt_weight: Tensor
) -> tuple[Tensor, Fits]:
    """Deviations (B, n, NUM_INNOVATIONS) of epochs from the active fits, made before them.

    `times` [day], `bright` [mag] and `sqrt_weight` (1 / sigma) are (B, n) float64. For each model
    the residual in units of sigma, the innovation, the error of the prediction, and sums of
    innovations and of their squares since the fit. Second, the fits with those sums brought up to
    date.
    """
    ages = torch.arange(1, times.shape[1] + 1, device=times.device)
    since_fit = fits.epochs_since_fit[:, None] + ages
    number = since_fit[:, None]
    bright, sqrt_weight = bright[:, None], sqrt_weight[:, None]
    # The prediction and its error, from the covariance of the fit, in units of sigma.
    curve, gradient = _curve_and_gradient(fits.theta, times)
    covariance = fits.covariance.unflatten(2, (4, 4)).permute(2, 3, 0, 1)
    spread = (covariance[..., None] * gradient[None]).sum(1)
    prediction_error = ((spread * gradient).sum(0).clamp_min(0)).sqrt() * sqrt_weight
    # The innovation: standard normal for a point lens.
    residual = (bright - curve) * sqrt_weight
    innovation = (residual / (1.0 + prediction_error * prediction_error).sqrt()).clamp(-50, 50)
    # Its sums since the fit.
    both = torch.stack([innovation, innovation * innovation], dim=3)
    total = fits.innovation_sums[:, :, None] + torch.cumsum(both, dim=2)
    columns = [
        residual.asinh(),
        innovation.asinh(),
        prediction_error.clamp(1e-2, 1e2).log10(),
        (total[..., 0] / number.sqrt()).asinh(),
        ((total[..., 1] - number) / (2.0 * number).sqrt()).asinh(),
    ]
    table = (torch.stack(columns, dim=3) / 2.0).transpose(1, 2).flatten(2)
    return table, fits._replace(innovation_sums=total[:, :, -1], epochs_since_fit=since_fit[:, -1])


def _residual_map(tau: Tensor, residual: Tensor, count: Tensor) -> Tensor:
    """Residuals in units of errors, binned in phase: maps (B, 5, K).

    Phases `tau` and residuals are (B, n); entries behind the first `count` (B,) of a row are pads.
    """
    rows, n = residual.shape
    # Per epoch: the residual, its square, and squares of sums over WINDOWS, less their means.
    residual = residual.clamp(-50, 50)
    powers = [residual, residual * residual - 1]
    total = torch.cumsum(torch.nn.functional.pad(residual, (1, 0)), dim=1)
    for width in WINDOWS:
        squares = torch.zeros_like(residual)
        if n >= width:
            moving = total[:, width:] - total[:, :-width]
            first = width // 2  # a window counts where its middle lies
            power = moving * moving / width - 1
            number = power.shape[1]
            whole = torch.arange(number, device=residual.device) <= count[:, None] - width
            squares[:, first : first + number] = torch.where(whole, power, 0.0)
        powers.append(squares)
    running = torch.cumsum(torch.nn.functional.pad(torch.stack(powers, dim=1), (1, 0)), dim=2)
    # Their sums inside bins of phase, from running sums at the edges.
    far = asinh(FAR_PHASE / NEAR_PHASE)
    even = torch.linspace(-far, far, PHASE_BINS + 1, dtype=tau.dtype, device=tau.device)
    edges = NEAR_PHASE * torch.sinh(even[1:-1])
    inner = torch.searchsorted(tau.contiguous(), edges.repeat(rows, 1))
    end = count[:, None]
    place = torch.cat([torch.zeros_like(end), inner.minimum(end), end], dim=1)
    sums = torch.diff(running.gather(2, place[:, None].expand(-1, running.shape[1], -1)), dim=2)
    # In units of their scatter for pure noise; last the number of epochs of each bin.
    held = torch.diff(place, dim=1).to(residual.dtype)
    norm = residual.new_tensor([1.0, 2.0, *(2.0 * w for w in WINDOWS)])
    scaled = sums / (held.clamp_min(1)[:, None] * norm[:, None]).sqrt()
    return torch.cat([torch.asinh(scaled), torch.log1p(held)[:, None] / 4], dim=1)


def _summarise_fit(
    theta: Tensor,
    covariance: Tensor,
    times: Tensor,
    bright: Tensor,
    sqrt_weight: Tensor,
    count: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual map (B, 5, K), summary (B, 8) and chi-squared (B,) of fits (B, 4)."""
    curve, tau = _brightening(theta, times)
    residual = (bright - curve) * sqrt_weight
    n = count.to(residual.dtype)
    _, ln_u0, ln_tE, ln_f_s = theta.unbind(1)
    error = covariance[:, ::5].clamp_min(1e-12).sqrt()
    chi2 = (residual.clamp(-50, 50) ** 2).sum(1)
    fit_summary = [
        ln_u0 / 3,
        (ln_tE - PRIOR_CENTRE[2]) / 2,
        ln_f_s.exp(),
        torch.asinh(tau[:, -1]),
        torch.log10(error[:, 1].clamp(1e-4, 1e2)) / 2,
        torch.log10((error[:, 0] * (-ln_tE).exp()).clamp(1e-4, 1e2)) / 2,
        torch.asinh((chi2 - n) / (2 * n).sqrt()) / 2,
        torch.asinh(curve.amax(1) * (sqrt_weight.sum(1) / n)) / 3,
    ]
    return _residual_map(tau, residual, count), torch.stack(fit_summary, dim=1), chi2


def refit_and_map(
    fits: Fits,
    count: int | Tensor,
    times: Tensor,
    bright: Tensor,
    sqrt_weight: Tensor,
    blended: Tensor,
) -> tuple[Fits, Tensor, Tensor]:
    """Refit B curves; the new fits, maps and summaries (B, NUM_SUMMARY) float32.

    `count` epochs so far, of the schedule, one number or (B,) int64. `times`, `bright`,
    `sqrt_weight` (B, n) are the last min(count, MAX_HISTORY) of them [day], [mag], [1/mag]; behind
    those of shorter curves pads, of the last time, 0 and 0. `blended` (B,): whether f_s may be less
    than 1. Maps are (B, NUM_MAP_CHANNELS, K).
    """
    last_epoch = times[:, -1]
    count = torch.as_tensor(count, device=times.device).expand(len(times))
    own = count.clamp_max(MAX_HISTORY)
    theta, covariance = update_fits(
        fits.theta, times, -bright, sqrt_weight, last_epoch, blended, own
    )
    # Maps of the first model, and of the second where f_s is free; elsewhere the two are the same.
    rows = blended.nonzero()[:, 0]
    both = [torch.cat([x[:, 0], x[rows, 1]]) for x in (theta, covariance)]
    epochs = (torch.cat([x, x[rows]]) for x in (times, bright, sqrt_weight, own))
    split = [len(times), len(rows)]
    pairs = [x.split(split) for x in _summarise_fit(*both, *epochs)]
    full = [first for first, _ in pairs]
    free = [first.index_copy(0, rows, second) for first, second in pairs]
    # Beside the summaries: gain in chi-squared by a free f_s, mean error, number of epochs.
    gain = torch.asinh((full[2] - free[2]) / 4) / 3
    level = torch.log10(1 / (sqrt_weight.sum(1) / own) / 0.03)
    further = torch.stack([gain, level, count.to(times.dtype).log() / 5], dim=1)
    fit_summary = torch.cat([full[1], free[1], further], dim=1)
    zeros = theta.new_zeros
    new = Fits(theta, covariance, zeros(len(theta), 2, 2), zeros(len(theta)))
    return new, torch.cat([full[0], free[0]], dim=1).float(), fit_summary.float()


@contextmanager
def one_thread() -> Iterator[int]:
    """Keep torch to one thread and yield how many it had: operations this small gain nothing.

    On a busy machine two threads that waited for each other took a hundred times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def residual_inputs(
    observed: PackedCurves, subsample_seed: int | None = None, blended: Tensor | bool = True
) -> ResidualInputs:
    """Refits of B curves without gaps at all counts of the schedule, as inputs of the network.

    Entries of a curve beyond its last epoch mean nothing and are finite. Where f_s is known to be 1
    (`blended`, of each (B,) or of all, is False) the second model is the first again. In training
    `subsample_seed` picks the fraction KEPT_FRACTION of refits made after DENSE_EPOCHS epochs, and
    all are in float32. On a CPU each thread takes some of the rows, for no row depends on another.
    """
    blended = torch.as_tensor(blended, device=observed.valid.device).expand(len(observed.valid))
    counts = refit_schedule(observed.valid.shape[1])
    if subsample_seed is not None:
        chooser = random.Random(subsample_seed)
        counts = [n for n in counts if n <= DENSE_EPOCHS or chooser.random() < KEPT_FRACTION]
        times = observed.times - observed.times[:, :1]
        observed = observed._replace(times=times.float())
    if observed.valid.is_cuda:
        return _residual_inputs(observed, counts, blended)
    with one_thread() as threads:
        rows = -(-len(observed.valid) // threads)
        if threads == 1 or rows < 8:
            return _residual_inputs(observed, counts, blended)
        curves = map(PackedCurves, *(x.split(rows) for x in observed))
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(_residual_inputs, curves, repeat(counts), blended.split(rows)))
    return ResidualInputs(*(torch.cat(parts) for parts in zip(*parts, strict=True)))


@torch.no_grad()
def _residual_inputs(observed: PackedCurves, counts: list[int], blended: Tensor) -> ResidualInputs:
    """`residual_inputs` at given counts of epochs, on one thread or one GPU."""
    rows, length = observed.valid.shape
    device = observed.valid.device
    times = observed.times
    bright = observed.brightening.to(times.dtype)
    sqrt_weight = 1 / observed.sigma.to(times.dtype).clamp_min(1e-3)
    lengths = observed.valid.sum(1)
    innovations = bright.new_zeros(rows, length, NUM_INNOVATIONS, dtype=torch.float32)
    maps = innovations.new_zeros(rows, len(counts), NUM_MAP_CHANNELS, PHASE_BINS)
    fit_summary = innovations.new_zeros(rows, len(counts), NUM_SUMMARY)
    active_refit = torch.zeros(length, dtype=torch.int64, device=device)
    active, fits = torch.arange(rows, device=device), None
    for j, (count, following) in enumerate(pairwise([*counts, length + 1])):
        long_enough = (lengths[active] >= count).nonzero()[:, 0]
        active = active[long_enough]
        if not len(active):
            break
        past = slice(max(0, count - MAX_HISTORY), count)
        epochs = [x[active, past] for x in (times, bright, sqrt_weight)]
        # Refit the curves that are long enough, from the prior or their previous fits.
        if fits is None:
            fits = prior_fits(len(active), epochs[0][:, -1])
        else:
            fits = Fits(*(x[long_enough] for x in fits))
        refit = refit_and_map(fits, count, *epochs, blended[active])
        fits, maps[active, j], fit_summary[active, j] = refit
        # It predicts the epochs until the next refit.
        ahead = slice(count - 1, following - 1)
        columns, _ = innovation_features(
            fits, *(x[active, ahead] for x in (times, bright, sqrt_weight))
        )
        innovations[active, ahead] = columns.float()
        active_refit[ahead] = j + 1
    innovations = innovations.nan_to_num_(0.0, 0.0, 0.0) * observed.valid[..., None]
    return ResidualInputs(
        innovations, maps.nan_to_num_(), fit_summary.nan_to_num_(), active_refit.expand(rows, -1)
    )
