"""Errors that are too small are found out from the past; a real anomaly is not taken for noise."""

import numpy as np
import pytest

from benchmarks.studies.real_events.rescale import Rescaler, Rescaling, rescaled_errors
from lensml.lensing import BinaryLens, binary_magnification, point_lens_magnification
from lensml.paths import InputError


def cadence(rng, num_epochs):
    """Epochs of a survey: some a night, some nights lost."""
    nights = np.sort(rng.choice(num_epochs, num_epochs // 2, replace=False))
    return np.sort((nights[:, None] + rng.uniform(0, 0.3, (nights.size, 2))).ravel())


def noise(true_over_quoted, seed=0, num_epochs=800, outliers=0.0):
    rng = np.random.default_rng(seed)
    time = cadence(rng, num_epochs)
    quoted = rng.uniform(0.01, 0.05, time.size)
    mag = 18 + true_over_quoted * quoted * rng.standard_normal(time.size)
    wrong = rng.random(time.size) < outliers
    mag[wrong] += (
        rng.choice([-1, 1], wrong.sum()) * rng.uniform(10, 40, wrong.sum()) * quoted[wrong]
    )
    return time, mag, quoted, wrong


@pytest.mark.parametrize("outliers", [0.0, 0.02])
@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
def test_the_factor_by_which_errors_are_too_small_is_found(factor, outliers):
    """In the second half of a season; on the way, the belief in quoted errors fades slowly."""
    ratios = []
    for seed in range(10):
        time, mag, quoted, _ = noise(factor, seed, outliers=outliers)
        ratios.append(np.median((rescaled_errors(time, mag, quoted) / quoted)[400:]))
    # An outlier spoils three residuals: at 2 % of them the quantile rises by some per cent.
    assert 0.9 * factor < np.mean(ratios) < (1.10 if outliers else 1.05) * factor


def test_right_errors_stay_right_from_the_first_epoch_on():
    ratios = [
        rescaled_errors(t, m, e) / e for t, m, e, _ in (noise(1.0, seed) for seed in range(20))
    ]
    assert 1 <= np.mean(ratios) < 1.04 and np.quantile(ratios, 0.99) < 1.2


def test_errors_that_are_too_large_stay_unless_asked():
    time, mag, quoted, _ = noise(0.5)
    assert (rescaled_errors(time, mag, quoted) == quoted).all()
    lower = rescaled_errors(time, mag, quoted, Rescaling(lowest=0.6)) / quoted
    assert lower[-1] == pytest.approx(0.6, abs=0.05)


def test_an_outlier_is_down_weighted_at_once():
    time, mag, quoted, wrong = noise(1.0, seed=3, outliers=0.02)
    error = rescaled_errors(time, mag, quoted)
    wrong &= np.arange(time.size) >= 5
    off = np.abs(mag - 18)
    assert np.median((off / quoted)[wrong]) > 15
    assert np.median((off / error)[wrong]) < 7
    alone = wrong & ~np.roll(wrong, 1)
    # Five sigma of a difference, and the neighbour's quoted error may be five times as large.
    assert np.max((off / error)[alone]) < 5 * np.sqrt(1 + 5**2)
    # Its neighbours keep their weight.
    assert np.median((error / quoted)[~wrong]) < 1.15


def test_stream_and_batch_give_the_same_numbers():
    time, mag, quoted, _ = noise(1.7, seed=4, outliers=0.02)
    rescaler = Rescaler()
    epochs = zip(time.tolist(), mag.tolist(), quoted.tolist(), strict=True)
    assert [rescaler.update(*e) for e in epochs] == rescaled_errors(time, mag, quoted).tolist()


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 100, 500])
def test_later_epochs_change_no_earlier_error(cut):
    time, mag, quoted, _ = noise(1.7, seed=5, outliers=0.02)
    whole = rescaled_errors(time, mag, quoted)
    assert (rescaled_errors(time[:cut], mag[:cut], quoted[:cut]) == whole[:cut]).all()
    mag, quoted = mag.copy(), quoted.copy()
    mag[cut:] -= 4
    quoted[cut:] /= 9
    assert (rescaled_errors(time, mag, quoted)[:cut] == whole[:cut]).all()


def test_memory_does_not_grow_with_the_event():
    rescaler = Rescaler()
    for k in range(3000):
        rescaler.update(float(k), 18.0 + 0.01 * (k % 7), 0.02)
    assert len(rescaler._recent) == 5 and set(vars(rescaler)) == set(vars(Rescaler()))


@pytest.mark.parametrize("sigma", [0.01, 0.03])
def test_a_caustic_crossing_keeps_most_of_its_chi_square(sigma):
    """Against the single lens of the same track: what an anomaly is worth with rescaled errors."""
    event = BinaryLens(t0=60.0, u0=0.1, tE=25.0, rho=2e-3, s=1.0, q=0.3, alpha=0.7)
    rng = np.random.default_rng(6)
    time = cadence(rng, 120)
    binary = 18 - 2.5 * np.log10(binary_magnification(event, time))
    u = np.hypot(event.u0, (time - event.t0) / event.tE)
    single = 18 - 2.5 * np.log10(point_lens_magnification(u))
    kept = []
    for _ in range(20):
        mag = binary + sigma * rng.standard_normal(time.size)
        error = rescaled_errors(time, mag, np.full(time.size, sigma))
        kept.append(
            (((binary - single) / error) ** 2).sum() / (((binary - single) / sigma) ** 2).sum()
        )
    assert np.ptp(binary) > 2 and np.median(kept) > 0.65  # 0.72 and 0.75 when this was written


def test_unsorted_epochs_and_unequal_columns_are_named():
    with pytest.raises(InputError, match="must increase strictly"):
        rescaled_errors([1.0, 1.0], [18, 18], [0.1, 0.1])
    with pytest.raises(InputError, match=r"shapes \(2,\), \(2,\), \(1,\)"):
        rescaled_errors([1.0, 2.0], [18, 18], [0.1])
