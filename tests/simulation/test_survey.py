"""What the survey does to a clean curve: noise, gaps and errors that say nothing of the class."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lensml.paths import InputError
from lensml.seeds import event_generator
from lensml.simulation.survey import (
    Survey,
    draw_numpy,
    draw_torch,
    noise_free_delta_mag,
    observe,
    survey_of,
)

PAIRS, EPOCHS = 40, 600
TIMES = torch.linspace(-100, 100, EPOCHS, dtype=torch.float64)
CLEAN = torch.zeros(2 * PAIRS, EPOCHS)
CLEAN[:, 200:400] = -2.0
CLEAN[1::2, 290:310] -= 1.0  # binaries differ


def seen_through(clean=CLEAN, seed=0, **options):
    survey = Survey(num_epochs=EPOCHS, **options)
    draws = draw_torch(PAIRS, EPOCHS, torch.Generator().manual_seed(seed))
    return observe(clean, draws, survey, TIMES)


def test_noise_has_the_variance_that_sigma_says():
    delta, sigma, seen = seen_through(sigma=0.07)
    pull = ((delta - CLEAN) / sigma)[seen]
    assert (sigma - 0.07).abs().max() < 1e-7
    assert abs(pull.mean()) < 4 / np.sqrt(len(pull))
    assert abs(pull.var() - 1) < 4 * np.sqrt(2 / len(pull))


def test_noise_of_a_pair_is_independent():
    delta, sigma, _ = seen_through(sigma=0.1)
    pull = (delta - CLEAN) / sigma
    correlation = (pull[::2] * pull[1::2]).mean()
    assert abs(correlation) < 4 / np.sqrt(PAIRS * EPOCHS)


def test_epochs_are_lost_at_the_asked_rate_and_independently_in_a_pair():
    _, _, seen = seen_through(missing_fraction=0.3)
    lost = (~seen).float()
    n = PAIRS * EPOCHS
    assert abs(lost.mean() - 0.3) < 4 * np.sqrt(0.21 / (2 * n))
    centred = lost - 0.3
    assert abs((centred[::2] * centred[1::2]).mean() / 0.21) < 4 / np.sqrt(n)
    assert abs(lost[::2].mean() - lost[1::2].mean()) < 5 * np.sqrt(2 * 0.21 / n)


def test_both_rows_of_a_pair_share_error_level_rate_of_loss_and_nights():
    options = dict(
        sigma=(0.003, 0.3), missing_fraction=(0.0, 0.9), night=(0.2, 0.5), season_gap=30.0
    )
    _, sigma, seen = seen_through(**options)
    assert (sigma[::2] == sigma[1::2]).all()
    assert sigma[::2, 0].unique().numel() == PAIRS
    rate = seen.float().mean(1)
    assert (rate[::2] - rate[1::2]).abs().max() < 5 * np.sqrt(0.25 * 2 / EPOCHS)
    dark = ~(seen[::2] | seen[1::2])
    assert dark.any()


def test_error_levels_are_log_uniform_over_their_range():
    _, sigma, _ = seen_through(sigma=(0.001, 0.1))
    level = torch.log10(sigma[::2, 0])
    assert level.min() > -3 and level.max() < -1
    assert abs(level.mean() + 2) < 4 * (2 / np.sqrt(12)) / np.sqrt(PAIRS)


def test_photon_errors_follow_the_observed_magnitude_not_the_true_one():
    """Errors computed from the truth would draw the noise-free curve."""
    delta, sigma, _ = seen_through(sigma=0.1, photon_noise=True)
    expected = torch.hypot(0.1 * 10 ** (0.2 * delta.clamp(-8, 3)), torch.tensor(0.003))
    torch.testing.assert_close(sigma, expected)
    other, changed, _ = seen_through(sigma=0.1, photon_noise=True, seed=1)
    assert (sigma - changed).abs().min() >= 0 and (sigma != changed).float().mean() > 0.99


def test_photon_noise_shrinks_with_brightness():
    delta, _, _ = seen_through(sigma=0.1, photon_noise=True)
    residual = delta - CLEAN
    bright, faint = residual[:, 220:280].std(), residual[:, :180].std()
    expected = np.hypot(0.1 * 10**-0.4, 0.003)
    assert abs(bright / expected - 1) < 0.05 and abs(faint / 0.1 - 1) < 0.05


def test_error_scale_and_outliers_change_the_noise_but_not_the_quoted_error():
    delta, sigma, _ = seen_through(sigma=0.1, error_scale=1.5)
    assert (sigma - 0.1).abs().max() < 1e-7
    assert abs((delta - CLEAN).std() - 0.15) < 0.003
    delta, sigma, _ = seen_through(sigma=0.1, outlier_fraction=0.1)
    assert abs(((delta - CLEAN) / sigma).var() - (0.9 + 0.1 * 25)) < 0.3


def test_what_outliers_need_is_drawn_only_for_them():
    """The other numbers are the same: a survey without outliers does not notice."""
    whole, spared = (
        draw_torch(PAIRS, EPOCHS, torch.Generator().manual_seed(3), outliers=wanted)
        for wanted in (True, False)
    )
    assert spared.outlier is None and whole.outlier.shape == CLEAN.shape
    for name in ("pair", "mask", "noise", "baseline"):
        assert torch.equal(getattr(whole, name), getattr(spared, name))


def test_numbers_that_simulated_sets_rest_on_keep_their_order():
    """A set's bits follow from this stream; the first numbers of each kind, from numpy alone."""
    draws = draw_numpy([np.random.default_rng(7)], 20)
    g = np.random.default_rng(7)
    expected = [g.random(8, dtype=np.float32), g.random((2, 20), dtype=np.float32)]
    expected += [g.standard_normal((2, 20), dtype=np.float32), g.random((2, 20), dtype=np.float32)]
    expected += [g.standard_normal((2, 1), dtype=np.float32)]
    for got, value in zip(draws, expected, strict=True):
        np.testing.assert_array_equal(got.reshape(value.shape), value)


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({}, True),
        ({"sigma": (0.01, 0.1), "photon_noise": True}, True),
        ({"error_scale": 1.2}, False),
        ({"error_scale": (0.9, 1.8)}, False),
        ({"outlier_fraction": 0.01}, False),
        ({"baseline_error": 0.2}, False),
    ],
)
def test_a_survey_knows_whether_errors_and_baseline_hold(options, exact):
    survey = Survey(**options)
    assert survey.exact == exact
    meta = json.loads(json.dumps({"survey": survey.describe() | {"of_later_versions": 1}}))
    assert survey_of(meta) == survey and survey_of({}) == Survey()


def test_baseline_error_shifts_a_whole_row():
    delta, _, _ = seen_through(sigma=1e-4, baseline_error=50.0)
    shift = (delta - CLEAN).mean(1)
    assert abs(shift.std() - 50e-4) < 4 * 50e-4 / np.sqrt(4 * PAIRS)
    assert ((delta - CLEAN).std(1) < 2e-4).all()


def test_nights_seasons_and_thinning_leave_the_epochs_they_should():
    times = torch.linspace(-100, 100, EPOCHS, dtype=torch.float64)
    _, _, seen = seen_through(missing_fraction=0.0, night=0.25)
    assert abs(seen.float().mean() - 0.25) < 0.03
    phase = (times[seen[0]] % 1).numpy()
    spread = np.sort(phase)
    gap = max(np.diff(spread).max(), 1 - spread[-1] + spread[0])
    assert gap > 0.7  # the day's epochs lie in one quarter of it
    _, _, seen = seen_through(missing_fraction=0.0, season_gap=40.0)
    for row in seen[::2]:
        lost = times[~row]
        assert len(lost) == 0 or lost[-1] - lost[0] <= 40
    _, _, seen = seen_through(missing_fraction=0.0, keep_every=(4, 4))
    assert {int(row.float().mean().reciprocal().round()) for row in seen} == {4}


def test_noise_and_gaps_of_a_pair_do_not_depend_on_its_curves():
    """Exchange the two noise-free curves: noise, errors and masks of each row stay the same."""
    swapped = CLEAN.reshape(PAIRS, 2, EPOCHS).flip(1).reshape(CLEAN.shape)
    options = dict(sigma=(0.01, 0.2), missing_fraction=(0.1, 0.5), night=(0.3, 0.9))
    delta, sigma, seen = seen_through(**options)
    delta2, sigma2, seen2 = seen_through(swapped, **options)
    assert (seen == seen2).all() and (sigma == sigma2).all()
    torch.testing.assert_close(delta - CLEAN, delta2 - swapped, atol=1e-5, rtol=0)


def test_observation_of_an_event_does_not_depend_on_the_batch():
    survey = Survey(num_epochs=EPOCHS, sigma=(0.01, 0.1), night=0.4)

    def of(events):
        draws = draw_numpy([event_generator(0, "x", i, "noise") for i in events], EPOCHS)
        clean = torch.zeros(2 * len(events), EPOCHS)
        return observe(clean, draws, survey, TIMES)

    together, alone = of([3, 4, 5]), of([4])
    assert all((t[2:4] == a).all() for t, a in zip(together, alone, strict=True))


def test_blending_dilutes_the_change():
    magnification = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    got = noise_free_delta_mag(magnification, torch.tensor([1.0, 0.25]))
    np.testing.assert_allclose(got, [[0, -2.5 * np.log10(3)], [0, -2.5 * np.log10(1.5)]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("missing_fraction", 1.0),
        ("missing_fraction", -0.1),
        ("sigma", 0.0),
        ("sigma", (0.1, np.nan)),
        ("night", 0.0),
        ("outlier_fraction", 0.9),
        ("season_gap", -1.0),
    ],
)
def test_impossible_surveys_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"`{name}`"):
        replace(Survey(), **{name: value})


def test_grid_is_the_thesis_default():
    assert len(Survey().times) == 1500
    assert (Survey().times[0], Survey().times[-1]) == (-100.0, 100.0)
