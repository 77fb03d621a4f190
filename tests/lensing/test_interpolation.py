"""Few evaluations make the curve that all of them would have made."""

import numpy as np
import pytest

from lensml.lensing.interpolation import (
    adaptive_sample,
    coarsest_spacing,
    intervals_within,
    is_even,
)

NUM_EPOCHS = 1500


def nowhere(num_epochs: int) -> dict[int, np.ndarray]:
    far = np.array([1e9])
    return intervals_within(far, far, np.zeros(1), num_epochs)


def sampled(curve, near=None, tolerance=5e-5) -> tuple[np.ndarray, np.ndarray]:
    """The sampled curve of a function of the epoch, and the epochs at which it was asked."""
    asked = []

    def evaluate(index):
        asked.append(index)
        return curve(index.astype(float))

    found = adaptive_sample(evaluate, NUM_EPOCHS, near or nowhere(NUM_EPOCHS), tolerance)
    return found, np.concatenate(asked)


@pytest.mark.parametrize("degree", range(6))
def test_a_polynomial_of_the_fifth_degree_needs_the_first_two_passes_alone(degree):
    def curve(x):
        return 2 + ((x - 700) / 900) ** degree

    found, asked = sampled(curve)
    np.testing.assert_allclose(found, curve(np.arange(NUM_EPOCHS)), rtol=1e-12)
    assert len(asked) == 2 * 24 + 1


def test_a_smooth_peak_is_found_to_a_small_part_of_the_tolerance():
    def curve(x):
        return 1 + 8 / np.sqrt(1 + ((x - 731.3) / 40) ** 2)

    found, asked = sampled(curve)
    assert np.abs(found / curve(np.arange(NUM_EPOCHS)) - 1).max() < 5e-5
    assert len(asked) < 150 and len(np.unique(asked)) == len(asked)


def test_a_step_is_surrounded_by_solved_epochs():
    found, asked = sampled(lambda x: np.where(x < 700.5, 1.0, 2.0))
    error = np.abs(found - np.where(np.arange(NUM_EPOCHS) < 700.5, 1.0, 2.0))
    assert error.max() < 1e-3
    assert set(range(696, 706)) <= set(asked.tolist())


def test_a_spike_between_nodes_is_sampled_near_a_given_point():
    def curve(x):
        return 1 + np.exp(-(((x - 333.2) / 2) ** 2))

    expected = curve(np.arange(NUM_EPOCHS))
    assert np.abs(sampled(curve)[0] - expected).max() > 0.5  # the check alone misses it
    point = np.array([333.2]), np.zeros(1), np.zeros(1)
    found, _ = sampled(curve, intervals_within(*point, NUM_EPOCHS))
    assert np.abs(found - expected).max() < 1e-4


def test_an_interval_is_near_a_point_as_its_distance_says():
    generator = np.random.default_rng(0)
    along = generator.uniform(-400, 1900, 40)
    across, reach = generator.normal(0, 40, 40), generator.uniform(0, 9, 40)
    along[along < 300] -= 400  # so that every pass has intervals far from all points
    near = intervals_within(along, across, reach, NUM_EPOCHS)
    assert sorted(near) == [2, 4, 8, 16, 32, 64]
    for h, mask in near.items():
        begin = h * np.arange(len(mask))[:, None]
        beside = np.maximum(np.maximum(begin - along, along - begin - h), 0)
        expected = (np.hypot(beside, across) < 2 * h + reach).any(axis=1)
        assert (mask == expected).all() and mask.any() and not mask.all()


def test_values_that_are_not_numbers_remain():
    found, _ = sampled(lambda x: np.where(np.abs(x - 640) < 2, np.nan, 1.0))
    assert np.isnan(found[640]) and (found[:300] == 1).all()


def test_the_first_pass_is_as_dense_in_time_whatever_the_number_of_epochs():
    assert [coarsest_spacing(n) for n in (10, 40, 41, 200, 375, 750, 1500, 3000)] == [
        1, 1, 2, 8, 16, 32, 64, 128,
    ]  # fmt: skip


def test_even_and_uneven_epochs_are_distinguished():
    times = np.linspace(-100, 100, 1500)
    assert is_even(times) and is_even(times + 2_457_000)
    assert not is_even(np.sort(times + np.random.default_rng(0).normal(0, 1e-3, 1500)))
