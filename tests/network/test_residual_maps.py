"""Pictures of what refits leave: causal, equal for any company, and blank for single lenses."""

import numpy as np
import pytest
import torch
from sets import noisy_singles, padded, toy_set

from lensml.network.features import Observed, observed_epochs
from lensml.network.residual_maps import (
    NUM_IMAGE_CHANNELS,
    NUM_RESIDUALS,
    NUM_SCALARS,
    PHASE_BINS,
    refit,
    refit_curves,
)
from lensml.network.sequential_fit import no_fit, schedule


def observed(num=6, epochs=400, **kind) -> Observed:
    curves = toy_set(num, epochs, shuffle=False, **kind)
    return observed_epochs(curves.X, curves.sigmas(), curves.times(), curves.m_base)


def cut(whole: Observed, length: int) -> Observed:
    return Observed(*(x[:, :length] for x in whole))


def test_axes_are_what_the_docstring_says():
    whole = observed()
    rows, length = whole.valid.shape
    refits = refit_curves(whole)
    num = len(schedule(length))
    assert refits.residuals.shape == (rows, length, NUM_RESIDUALS)
    assert refits.images.shape == (rows, num, NUM_IMAGE_CHANNELS, PHASE_BINS)
    assert refits.scalars.shape == (rows, num, NUM_SCALARS)
    assert refits.in_force.shape == (rows, length) and refits.in_force.max() == num
    assert all(torch.isfinite(x.float()).all() for x in refits)


@pytest.mark.parametrize("length", [7, 8, 9, 100, 128, 200])
def test_later_epochs_change_nothing_before_them(length):
    whole = observed(3, 300)
    changed = whole._replace(brightening=whole.brightening.clone())
    changed.brightening[:, length:] += 1.0
    seen = [refit_curves(x) for x in (whole, changed, cut(whole, length))]
    num = len(schedule(length))
    for other in seen[1:]:
        torch.testing.assert_close(
            seen[0].residuals[:, :length], other.residuals[:, :length], rtol=0, atol=1e-6
        )
        for name in ("images", "scalars"):
            ours, theirs = (getattr(x, name)[:, :num] for x in (seen[0], other))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.equal(seen[0].residuals[:, length:], seen[1].residuals[:, length:])


def test_a_curve_is_seen_alike_alone_and_among_others():
    whole = observed(20, 300)
    alone = refit_curves(Observed(*(x[5:6] for x in whole)))
    among = refit_curves(whole)
    for a, b in zip(alone[:3], among[:3], strict=True):
        torch.testing.assert_close(a, b[5:6], rtol=0, atol=1e-5)


def test_innovations_of_single_lenses_are_standard_normal():
    """The error of a prediction counts: otherwise every rise would look like an anomaly."""
    times, bright, root, _ = noisy_singles(64)
    valid = torch.ones_like(times, dtype=torch.bool)
    singles = Observed(bright.float(), (1 / root).float(), times, valid, valid.long())
    innovation = torch.sinh(2 * refit_curves(singles).residuals[:, 64:, 1])
    assert innovation.mean().abs() < 0.15  # the priors pull a little
    assert 0.9 < innovation.clamp(-4, 4).std() < 1.25


def test_a_bump_stands_out_in_the_picture_and_noise_does_not():
    curves = observed(40, 400, bump=0.3, sigma=0.02)
    last = [len(schedule(n)) - 1 for n in curves.valid.sum(1).tolist()]
    found = refit_curves(curves).images[range(80), last, 0].abs().amax(1)
    single, binary = found[::2], found[1::2]
    assert single.median() < np.arcsinh(5) < binary.quantile(0.7)


def test_quick_refits_for_training_are_nearly_the_same():
    whole = observed(8, 300)
    exact, quick = refit_curves(whole), refit_curves(whole, quick=1)
    same = quick.images.shape[1]
    apart = (exact.images[:, :same] - quick.images).abs() > 0.05
    assert apart.float().mean() < 0.001  # an epoch at the edge of a bin may change sides


def offset_singles(counts):
    """Noisy single lenses; the last 20 of so many epochs of each lie 3 sigma off, as after a dip.

    Sums over windows are largest where the prefix ends: those that reach into pads would show.
    """
    times, bright, root, _ = noisy_singles(len(counts))
    place = torch.arange(times.shape[1])
    late = (place >= counts[:, None] - 20) & (place < counts[:, None])
    return times, torch.where(late, bright - 3 / root, bright), root


def test_pads_are_in_no_picture():
    counts = torch.tensor([8, 16, 24, 128, 240, 288, 352, 400])
    singles = offset_singles(counts)
    epochs = padded(*singles, counts, 400)
    blended = torch.ones(len(counts), dtype=torch.bool)
    _, images, scalars = refit(no_fit(8, epochs[0][:, -1]), counts, *epochs, blended)
    for k, n in enumerate(counts.tolist()):
        alone = [x[k : k + 1, :n] for x in singles]
        _, image, scalar = refit(no_fit(1, alone[0][:, -1]), n, *alone, blended[:1])
        torch.testing.assert_close(images[k : k + 1], image, rtol=0, atol=1e-5)
        torch.testing.assert_close(scalars[k : k + 1], scalar, rtol=0, atol=1e-5)


def test_refits_of_different_ages_are_made_alike_to_the_last_bit_in_any_company():
    counts = 8 * torch.arange(1, 33)
    epochs = padded(*offset_singles(counts), counts, 256)
    before, blended = no_fit(32, epochs[0][:, -1]), torch.ones(32, dtype=torch.bool)
    together = refit(before, counts, *epochs, blended)
    for k in (0, 1, 7, 31):
        own = slice(k, k + 1)
        parts = (x[own] for x in (counts, *epochs, blended))
        alone = refit(type(before)(*(x[own] for x in before)), *parts)
        for a, b in zip((*together[0], *together[1:]), (*alone[0], *alone[1:]), strict=True):
            assert torch.equal(a[own], b)
