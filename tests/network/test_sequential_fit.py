"""Refits of growing prefixes find the single lens, and depend on nothing but their prefix."""

import numpy as np
import pytest
import torch
from sets import noisy_singles, padded, toy_set

from lensml.lensing import fit_pspl
from lensml.network.features import observed_epochs
from lensml.network.sequential_fit import (
    MAX_HISTORY,
    _grid_search,
    next_refit_epoch,
    prior_fits,
    refit_schedule,
    update_fits,
)


def refit_all(times, bright, root, upto):
    """Fits after each prefix of the schedule, one begun where the other ended."""
    theta, blended = None, torch.ones(len(times), dtype=torch.bool)
    for n in refit_schedule(upto):
        last = times[:, n - 1]
        previous = prior_fits(len(times), last).theta if theta is None else theta
        epochs = times[:, :n], -bright[:, :n], root[:, :n]
        theta, covariance = update_fits(previous, *epochs, last, blended)
    return theta, covariance


def test_the_schedule_is_dense_at_first_and_knows_its_next_member():
    counts = refit_schedule(1500)
    assert counts[:3] == [8, 16, 24] and counts[-1] <= 1500 < next_refit_epoch(counts[-1])
    assert all(next_refit_epoch(a) == b for a, b in zip(counts[:-1], counts[1:], strict=True))
    assert all(next_refit_epoch(a - 1) == a for a in counts)
    assert refit_schedule(7) == []
    assert all(
        n % 8 == 0 for n in refit_schedule(MAX_HISTORY + 500)
    )  # bins of eight epochs fill every prefix


def test_refits_end_where_a_search_from_scratch_ends():
    times, bright, root, _ = noisy_singles()
    theta, _ = refit_all(times, bright, root, 400)
    fit = fit_pspl(times, -bright, weight=root**2)
    ours = (((bright - brightness(theta[:, 0], times)) * root) ** 2).sum(1)
    assert ((ours - fit.chi2) < 0.05 * fit.chi2.clamp_min(1)).all()
    assert ((ours - fit.chi2) < 1.0).double().mean() > 0.9  # the priors pull by less than one


def brightness(theta, times):
    t0, ln_u0, ln_tE, ln_f_s = theta[:, :, None].unbind(1)
    u2 = (2 * ln_u0).exp() + ((times - t0) * (-ln_tE).exp()) ** 2
    return 2.5 * torch.log10(1 + ln_f_s.exp() * ((u2 + 2) / (u2 * (u2 + 4)).sqrt() - 1))


def test_parameters_are_found_within_the_errors_that_the_fit_states():
    times, bright, root, truth = noisy_singles(64)
    theta, covariance = refit_all(times, bright, root, 400)
    error = covariance[:, 0, ::5].sqrt()
    wanted = torch.from_numpy(np.column_stack([truth[:, 0], np.log(truth[:, 1:])]))
    offset = (theta[:, 0, :3] - wanted) / error[:, :3]
    assert 0.7 < offset.std() < 1.4
    assert (theta[:, 0, 3] == 0).all()  # all flux lensed where f_s is not free


def test_a_free_blend_is_found():
    """Along a degeneracy: nearly all end where a search from many starts ends."""
    times, bright, root, _ = noisy_singles(24, sigma=0.005)
    half = 2.5 * torch.log10(1 + 0.5 * (10 ** (0.4 * bright) - 1))
    theta, _ = refit_all(times, half, root, 400)
    fit = fit_pspl(times, -half, weight=root**2, blended=True)
    ours = (((half - brightness(theta[:, 1], times)) * root) ** 2).sum(1)
    assert (ours - fit.chi2).quantile(0.8) < 2.0
    assert (theta[:, 1, 3].exp() - 0.5).abs().median() < 0.05


def test_a_row_does_not_depend_on_the_others():
    times, bright, root, _ = noisy_singles(9)
    whole = refit_all(times, bright, root, 128)
    alone = refit_all(*(x[4:5] for x in (times, bright, root)), 128)
    for a, b in zip(whole, alone, strict=True):
        torch.testing.assert_close(a[4:5], b, rtol=1e-9, atol=1e-9)


def fitted_at(times, bright, root, counts, blended, length):
    """Fits of prefixes of so many epochs each, from scratch."""
    times, bright, root = padded(times, bright, root, counts, length)
    previous = prior_fits(len(times), times[:, -1]).theta
    return update_fits(previous, times, -bright, root, times[:, -1], blended, counts)


def test_a_rise_that_has_just_begun_is_sought_at_the_last_epoch_and_not_at_a_pad():
    """Where the peak lies ahead, the search begins from how bright the last epochs are."""
    times = torch.linspace(-100, 60, 160, dtype=torch.float64).repeat(4, 1)
    counts = torch.tensor([104, 112, 120, 128])
    peak = times.gather(1, counts[:, None] - 1) + torch.tensor([[4.0], [6.0], [8.0], [10.0]])
    x = 0.01 + ((times - peak) / 15) ** 2
    bright = 2.5 * torch.log10((x + 2) / (x * (x + 4)).sqrt())
    root = torch.full_like(times, 20.0)
    together = padded(times, -bright, root, counts, 160)
    found = _grid_search(*together, together[0][:, -1], counts)
    for k, n in enumerate(counts.tolist()):
        own = slice(k, k + 1)
        epochs = [x[own, :n] for x in (times, -bright, root)]
        alone = _grid_search(*epochs, epochs[0][:, -1], counts[own])
        torch.testing.assert_close(found[own], alone, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shift", [0.0, 2.46e6])
def test_pads_change_no_fit(shift):
    """Whether time 0 lies among the epochs or far from them: binned pads have no other time."""
    times, bright, root, _ = noisy_singles(9)
    times = times + shift
    counts = torch.tensor([8, 16, 56, 104, 192, 240, 304, 352, 400])
    blended = torch.arange(9) % 3 > 0
    together = fitted_at(times, bright, root, counts, blended, 400)
    for k, n in enumerate(counts.tolist()):
        own = slice(k, k + 1)
        epochs = (x[own, :n] for x in (times, -bright, root))
        last = times[own, n - 1]
        alone = update_fits(prior_fits(1, last).theta, *epochs, last, blended[own])
        error = alone[1][..., ::5].sqrt()
        assert ((together[0][own] - alone[0]).abs() <= 1e-6 * error + 1e-8).all()
        torch.testing.assert_close(together[1][own], alone[1], rtol=1e-5, atol=1e-12)


def test_the_fit_of_a_padded_prefix_does_not_depend_on_its_batch():
    times, bright, root, _ = noisy_singles(40)
    counts = 8 * torch.randint(1, 33, (40,), generator=torch.Generator().manual_seed(0))
    curves = times, bright, root, counts, torch.arange(40) % 3 > 0
    together = fitted_at(*curves, 256)
    for first, last in ((0, 1), (3, 4), (9, 11), (15, 33)):
        part = slice(first, last)
        some = fitted_at(*(x[part] for x in curves), 256)
        assert all(torch.equal(a[part], b) for a, b in zip(together, some, strict=True))


def test_a_curve_that_never_rises_is_fitted_too():
    curves = toy_set(4, 200, bump=0.0, sigma=0.1)
    observed = observed_epochs(curves.X, curves.sigmas(), curves.times(), curves.m_base)
    flat = torch.zeros_like(observed.times[:, :64])
    theta, covariance = refit_all(observed.times[:, :64], flat, torch.full_like(flat, 10.0), 64)
    assert torch.isfinite(theta).all() and torch.isfinite(covariance).all()
