"""Residual maps and innovations: independent of the batch, and noise for single lenses."""

import numpy as np
import torch
from sets import noisy_singles, padded, toy_set

from lensml.network.features import PackedCurves, observed_epochs
from lensml.network.residual_maps import (
    NUM_INNOVATIONS,
    NUM_MAP_CHANNELS,
    NUM_SUMMARY,
    PHASE_BINS,
    refit_and_map,
    residual_inputs,
)
from lensml.network.sequential_fit import prior_fits, refit_schedule


def observed(num=6, epochs=400, **kind) -> PackedCurves:
    curves = toy_set(num, epochs, shuffle=False, **kind)
    return observed_epochs(curves.X, curves.sigmas(), curves.times(), curves.m_base)


def cut(whole: PackedCurves, length: int) -> PackedCurves:
    return PackedCurves(*(x[:, :length] for x in whole))


def test_axes_are_what_the_docstring_says():
    whole = observed()
    rows, length = whole.valid.shape
    refits = residual_inputs(whole)
    num = len(refit_schedule(length))
    assert refits.innovations.shape == (rows, length, NUM_INNOVATIONS)
    assert refits.maps.shape == (rows, num, NUM_MAP_CHANNELS, PHASE_BINS)
    assert refits.fit_summary.shape == (rows, num, NUM_SUMMARY)
    assert refits.active_refit.shape == (rows, length) and refits.active_refit.max() == num
    assert all(torch.isfinite(x.float()).all() for x in refits)


def test_inputs_of_a_curve_do_not_depend_on_its_batch():
    whole = observed(20, 300)
    alone = residual_inputs(PackedCurves(*(x[5:6] for x in whole)))
    among = residual_inputs(whole)
    for a, b in zip(alone[:3], among[:3], strict=True):
        torch.testing.assert_close(a, b[5:6], rtol=0, atol=1e-5)


def test_innovations_of_single_lenses_are_standard_normal():
    """The error of a prediction counts: otherwise every rise would look like an anomaly."""
    times, bright, root, _ = noisy_singles(64)
    valid = torch.ones_like(times, dtype=torch.bool)
    singles = PackedCurves(bright.float(), (1 / root).float(), times, valid, valid.long())
    innovation = torch.sinh(2 * residual_inputs(singles).innovations[:, 64:, 1])
    assert innovation.mean().abs() < 0.15  # the priors pull a little
    assert 0.9 < innovation.clamp(-4, 4).std() < 1.25


def test_a_bump_stands_out_in_the_residual_map_and_noise_does_not():
    curves = observed(40, 400, bump=0.3, sigma=0.02)
    last = [len(refit_schedule(n)) - 1 for n in curves.valid.sum(1).tolist()]
    found = residual_inputs(curves).maps[range(80), last, 0].abs().amax(1)
    single, binary = found[::2], found[1::2]
    assert single.median() < np.arcsinh(5) < binary.quantile(0.7)


def test_subsampled_float32_refits_of_training_are_nearly_the_same():
    whole = observed(8, 300)
    exact, subsampled = residual_inputs(whole), residual_inputs(whole, subsample_seed=1)
    same = subsampled.maps.shape[1]
    apart = (exact.maps[:, :same] - subsampled.maps).abs() > 0.05
    assert apart.float().mean() < 0.001  # an epoch at the edge of a bin may change sides


def offset_singles(counts):
    """Noisy single lenses; the last 20 of so many epochs of each lie 3 sigma off, as after a dip.

    Sums over windows are largest where the prefix ends: those that reach into pads would show.
    """
    times, bright, root, _ = noisy_singles(len(counts))
    place = torch.arange(times.shape[1])
    late = (place >= counts[:, None] - 20) & (place < counts[:, None])
    return times, torch.where(late, bright - 3 / root, bright), root


def test_pads_enter_no_residual_map():
    counts = torch.tensor([8, 16, 24, 128, 240, 288, 352, 400])
    singles = offset_singles(counts)
    epochs = padded(*singles, counts, 400)
    blended = torch.ones(len(counts), dtype=torch.bool)
    _, maps, fit_summary = refit_and_map(prior_fits(8, epochs[0][:, -1]), counts, *epochs, blended)
    for k, n in enumerate(counts.tolist()):
        alone = [x[k : k + 1, :n] for x in singles]
        _, image, scalar = refit_and_map(prior_fits(1, alone[0][:, -1]), n, *alone, blended[:1])
        torch.testing.assert_close(maps[k : k + 1], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(fit_summary[k : k + 1], scalar, rtol=0, atol=1e-5)


def test_a_refit_does_not_depend_on_the_others_of_its_batch():
    counts = 8 * torch.arange(1, 33)
    epochs = padded(*offset_singles(counts), counts, 256)
    before, blended = prior_fits(32, epochs[0][:, -1]), torch.ones(32, dtype=torch.bool)
    together = refit_and_map(before, counts, *epochs, blended)
    for k in (0, 1, 7, 31):
        own = slice(k, k + 1)
        parts = (x[own] for x in (counts, *epochs, blended))
        alone = refit_and_map(type(before)(*(x[own] for x in before)), *parts)
        for a, b in zip((*together[0], *together[1:]), (*alone[0], *alone[1:]), strict=True):
            assert torch.equal(a[own], b)
