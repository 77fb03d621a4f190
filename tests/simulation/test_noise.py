"""Noise as the sky gives it: amplitudes that were asked for, and nothing of the class."""

import numpy as np
import pytest

from lensml.simulation import (
    NoiseLevels,
    bright_factor,
    draw_noise_levels,
    nights,
    noise_third,
    ornstein_uhlenbeck,
    sky_noise,
)
from lensml.simulation.noise import TABLE

TIMES = np.sort(np.random.default_rng(0).uniform(-100, 100, 1200))
SIGMA = np.full(len(TIMES), 0.05)


def drawn(levels: NoiseLevels, times=TIMES, sigma=SIGMA, rows=300):
    """Systematics and scales (rows, n) of many data sets."""
    generator = np.random.default_rng(1)
    noise = [sky_noise(generator, times, sigma, levels=levels) for _ in range(rows)]
    return np.stack([n.systematic for n in noise]), np.stack([n.scale for n in noise])


def test_red_noise_has_the_covariance_of_an_ornstein_uhlenbeck_process():
    times = np.array([0.0, 0.5, 0.5, 2.0, 40.0])
    x = ornstein_uhlenbeck(np.random.default_rng(2), np.tile(times, 1), np.full(40_000, 2.0))
    expected = np.exp(-abs(times[:, None] - times) / 2.0)
    np.testing.assert_allclose(np.cov(x.T), expected, atol=0.03)  # four standard errors


def test_red_noise_by_doubling_is_the_recursion():
    generator, times = np.random.default_rng(3), TIMES[:400]
    x = ornstein_uhlenbeck(generator, times, np.array([0.3, 50.0]))
    draws = np.random.default_rng(3).standard_normal(x.shape)
    for row, tau in enumerate((0.3, 50.0)):
        a = np.exp(-np.diff(times, prepend=times[0]) / tau)
        slow = [draws[row, 0]]
        for i in range(1, len(times)):
            slow.append(a[i] * slow[-1] + np.sqrt(1 - a[i] ** 2) * draws[row, i])
        np.testing.assert_allclose(x[row], slow, atol=1e-10)


@pytest.mark.parametrize(
    ("levels", "rms"),
    [
        (NoiseLevels(red=0.5, red_time=1.0), 0.5),
        (NoiseLevels(drift=0.3), 0.3),
        (NoiseLevels(night=0.4), 0.4),
        (NoiseLevels(seeing=0.3), 0.3),
        (NoiseLevels(hour_angle=0.6), 0.6 / np.sqrt(2)),
        (NoiseLevels(red=0.3, night=0.4), 0.5),
    ],
)
def test_systematics_have_the_rms_that_was_asked_for(levels, rms):
    systematic, _ = drawn(levels)
    assert systematic.std() / 0.05 == pytest.approx(rms, rel=0.04)


def test_the_defaults_are_white_noise_as_quoted():
    systematic, scale = drawn(NoiseLevels(), rows=2)
    assert (systematic == 0).all() and (scale == 1).all()
    noise = sky_noise(np.random.default_rng(4), TIMES, SIGMA, strength=0.0)
    assert (noise.systematic == 0).all() and (noise.scale == 1).all()


def test_bright_epochs_keep_the_absolute_floor():
    systematic, _ = drawn(NoiseLevels(red=0.3, floor=2e-3), sigma=np.full(len(TIMES), 1e-4))
    assert systematic.std() == pytest.approx(2e-3 * np.sqrt(2), rel=0.05)  # red and by night


def test_shifts_are_constant_in_a_night_and_differ_between_nights():
    days = np.repeat(np.arange(30.0), 12)
    times = np.sort(days + np.random.default_rng(5).uniform(0.9, 1.2, len(days)))
    number = nights(times)
    assert number[0] == 0 and number[-1] == 29
    np.testing.assert_array_equal(np.bincount(number), 12)
    sigma = np.random.default_rng(6).uniform(0.01, 0.1, len(times))  # errors change in a night
    shift = sky_noise(np.random.default_rng(7), times, sigma, levels=NoiseLevels(night=0.5))
    by_night = shift.systematic.reshape(30, 12)
    assert (by_night == by_night[:, :1]).all() and len(np.unique(by_night)) == 30


def test_outliers_and_offsets_come_at_their_rates_and_sizes():
    _, scale = drawn(NoiseLevels(outliers=0.03, error_factor=1.2))
    out = scale / 1.2
    assert (out > 1).mean() == pytest.approx(0.03, rel=0.05)
    assert 3 <= out[out > 1].min() and out.max() <= 10
    systematic, _ = drawn(NoiseLevels(offsets=0.01))
    assert (systematic != 0).mean() == pytest.approx(0.01, rel=0.1)
    for row in systematic:  # to one side in a data set
        assert len(np.unique(np.sign(row[row != 0]))) <= 1


def test_a_bad_stretch_is_one_stretch():
    _, scale = drawn(NoiseLevels(bad=2.0), rows=50)
    for row in scale:
        inside = np.flatnonzero(row == 2.0)
        assert np.ptp(inside) == len(inside) - 1 and (np.delete(row, inside) == 1).all()


def test_drawn_levels_follow_the_table_with_wider_tails():
    generator = np.random.default_rng(8)
    for place, sigma in enumerate((0.01, 0.04, 0.1)):
        levels = [draw_noise_levels(generator, sigma) for _ in range(4000)]
        for name in ("error_factor", "red", "night"):
            low, _, middle, _, high = np.log(TABLE[name][place])
            found = np.log(np.quantile([getattr(x, name) for x in levels], [0.05, 0.5, 0.95]))
            assert found[1] == pytest.approx(middle, abs=0.05)
            assert found[0] < low + 0.01 and found[2] > min(high, np.log(1.49)) - 0.01
    assert max(x.red for x in levels) <= 1.5
    assert np.mean([x.outliers > 0 for x in levels]) == pytest.approx(0.5, abs=0.04)


def test_the_strength_scales_the_systematics():
    one, two = (draw_noise_levels(np.random.default_rng(9), 0.05, s) for s in (1.0, 0.5))
    assert two.red == pytest.approx(one.red / 2) and two.floor == pytest.approx(one.floor / 2)


def test_noise_falls_less_with_brightness_than_the_quoted_errors():
    sigma = np.where(np.arange(len(TIMES)) % 10 == 0, 0.0125, 0.05)
    _, scale = drawn(NoiseLevels(bright=0.5), sigma=sigma, rows=2)
    assert scale == pytest.approx(np.tile(np.where(sigma < 0.05, 2.0, 1.0), (2, 1)))
    assert bright_factor(sigma, 0.5) == pytest.approx(scale[0])


def test_a_third_of_names_sets_the_noise():
    chosen = [noise_third(f"OGLE-2030-BLG-{i:04d}") for i in range(3000)]
    assert np.mean(chosen) == pytest.approx(1 / 3, abs=0.03)
    # SHA-256 of the empty name is a published number; 3 does not divide it or does, for ever.
    digest = 0xE3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855
    assert noise_third("") == (digest % 3 == 0)


def test_empty_data_sets_have_no_noise():
    noise = sky_noise(np.random.default_rng(0), TIMES[:0], SIGMA[:0], levels=NoiseLevels(bad=2.0))
    assert noise.systematic.shape == noise.scale.shape == (0,)
