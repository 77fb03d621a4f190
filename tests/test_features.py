"""What the network may see: the past and the present, whatever comes after or between."""

import numpy as np
import pytest
import torch

from lensml.features import NUM_FEATURES, compact, encode, observed_epochs


def curve(length: int, seed: int = 0, sigma: float = 0.03):
    generator = np.random.default_rng(seed)
    times = np.sort(generator.uniform(0, 200, length)).cumsum() / length + np.arange(length) * 1e-3
    bright = 1.5 / (0.1 + ((times - times[length // 2]) / 20) ** 2) ** 0.5
    mag = 18 - bright + sigma * generator.standard_normal(length)
    return mag, np.full(length, sigma), times


def features(mag, sigma, times, base=18.0):
    return encode(observed_epochs(mag[None], sigma[None], times[None], np.array([base])))[0]


LENGTHS = [*range(1, 10), 15, 16, 17, 63, 64, 65, 191, 192, 193, 255, 256, 257, 258, 300]


@pytest.mark.parametrize("length", LENGTHS)
def test_appending_epochs_changes_no_feature_before_them(length):
    mag, sigma, times = curve(400)
    whole = features(mag, sigma, times)
    part = features(mag[:length], sigma[:length], times[:length])
    torch.testing.assert_close(part, whole[:length], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 4, 7, 64, 200, 256])
def test_changing_the_future_changes_no_feature_of_the_past(cut):
    mag, sigma, times = curve(400)
    before = features(mag, sigma, times)[:cut]
    mag, sigma, times = mag.copy(), sigma.copy(), times.copy()
    mag[cut:] -= 9
    sigma[cut:] *= 100
    times[cut:] += 1e4
    torch.testing.assert_close(features(mag, sigma, times)[:cut], before, rtol=0, atol=1e-6)


def test_gaps_are_left_out_not_filled():
    mag, sigma, times = curve(120)
    hidden = mag.copy()
    hidden[::3] = np.nan
    kept = np.isfinite(hidden)
    observed = observed_epochs(hidden[None], sigma[None], times[None], np.array([18.0]))
    assert observed.index[0].tolist() == np.flatnonzero(kept).tolist()
    torch.testing.assert_close(encode(observed)[0], features(mag[kept], sigma[kept], times[kept]))


def test_padding_gives_zeros_and_disturbs_nobody():
    mag, sigma, times = curve(90)
    both = np.stack([mag, np.where(np.arange(90) < 37, mag, np.nan)])
    observed = observed_epochs(both, np.stack([sigma] * 2), np.stack([times] * 2), np.full(2, 18.0))
    got = encode(observed)
    assert (got[1, 37:] == 0).all() and not observed.valid[1, 37:].any()
    torch.testing.assert_close(got[0], features(mag, sigma, times))
    torch.testing.assert_close(got[1, :37], features(mag[:37], sigma[:37], times[:37]))


def test_a_curve_without_epochs_is_all_padding():
    both = np.stack([curve(20)[0], np.full(20, np.nan)])
    observed = observed_epochs(both, np.full((2, 20), 0.1), np.arange(20.0), np.full(2, 18.0))
    assert torch.isfinite(encode(observed)).all() and observed.valid[1].sum() == 0


def test_zero_of_time_and_of_magnitude_do_not_matter():
    mag, sigma, times = curve(150)
    here = features(mag, sigma, times)
    torch.testing.assert_close(features(mag, sigma, times + 2_457_000.0), here, atol=1e-3, rtol=0)
    torch.testing.assert_close(features(mag + 3, sigma, times, 21.0), here, atol=1e-3, rtol=0)


def test_features_are_finite_where_errors_and_steps_are_extreme():
    mag, sigma, times = curve(200)
    for s in (1e-6, 1e-3, 5.0):
        for stretch in (1e-6, 1.0, 1e3):
            got = features(mag, np.full(200, s), times * stretch)
            assert got.shape == (200, NUM_FEATURES) and torch.isfinite(got).all()
            assert got.abs().max() < 100
    assert torch.isfinite(features(np.full(50, -20.0), np.full(50, 0.01), np.arange(50.0))).all()


def test_noise_about_a_flat_line_is_of_unit_surprise():
    """Deviations are in units of their own error: 1 sigma for pure noise, at every width."""
    generator = np.random.default_rng(0)
    mag = 18 + 0.05 * generator.standard_normal((40, 400))
    observed = observed_epochs(mag, np.full((40, 400), 0.05), np.arange(400.0), np.full(40, 18.0))
    surprise = torch.sinh(2 * encode(observed)[:, 260:, 5:13])
    assert ((surprise.std((0, 1)) - 1).abs() < 0.2).all()


def test_compact_keeps_order_and_values():
    seen = torch.tensor([[True, False, True, True], [False, False, True, False]])
    delta = torch.arange(8.0).reshape(2, 4)
    got = compact(delta, torch.full((2, 4), 0.2), seen, torch.arange(4.0))
    assert got.brightening.tolist() == [[0, -2, -3], [-6, 0, 0]]
    assert got.times.tolist() == [[0, 2, 3], [2, 0, 0]]
    assert got.valid.tolist() == [[True, True, True], [True, False, False]]
