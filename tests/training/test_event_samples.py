"""Samples of the shipped network: reproducible, cut where they say, with calibrated targets."""

import numpy as np
import pytest

from lensml.network import (
    CLASSES,
    NUM_CHANNELS,
    NUM_INPUTS,
    NUM_STATE,
    RECEPTIVE_FIELD,
    DataSetEpochs,
    event_inputs,
    joint_epochs,
)
from lensml.simulation import BLOCK
from lensml.training.event_samples import (
    CLASS_FRACTIONS,
    CONTAMINANTS,
    VARIABLES,
    make_samples,
    simulate_curves,
)
from lensml.training.samples import Observation, cut_samples

SEED, OTHER = 5, CLASSES.index("other")
SINGLES, SECOND_SOURCES = 0, 2  # blocks of SEED whose contaminants are of one class or the other


@pytest.fixture(scope="module")
def blocks():
    """A sample of each curve of some blocks."""
    return [make_samples(SEED, place, per_curve=1, times=1) for place in range(12)]


def test_the_same_seed_and_place_give_the_same_samples(blocks):
    again, other = (make_samples(SEED, place, per_curve=1, times=1) for place in (0, 1))
    for a, b in zip(again, blocks[0], strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0, atol=2e-3)
    assert not np.array_equal(again.windows[:50], other.windows[:50])


def test_samples_are_finite_and_targets_add_up_to_one(blocks):
    for s in blocks:
        num = len(s.labels)
        assert s.windows.shape == (num, RECEPTIVE_FIELD, NUM_INPUTS)
        assert s.maps.shape[:2] == (num, NUM_CHANNELS) and s.states.shape == (num, NUM_STATE)
        assert all(np.isfinite(x).all() for x in s)
        np.testing.assert_allclose(s.targets.sum(1), 1, atol=1e-6)
        assert ((s.targets >= 0).all() and s.targets[range(num), s.labels] > 0).all()
        assert 0.2 < s.exact.mean() < 0.8 and s.held.max() < 64


def test_no_two_blocks_of_any_seeds_share_a_contaminant():
    """A product with too small a factor once gave block 1000 of a seed the next seed's first."""
    rows = []
    for seed, place in ((SEED, 0), (SEED, 1), (SEED, 1000), (SEED + 1, 0), (SEED + 1, 1)):
        same_choices = np.random.default_rng(7)
        delta = simulate_curves(same_choices, seed, place).delta
        rows += list(delta[2 * BLOCK + 1 :: 2])
    assert len({row.tobytes() for row in rows}) == 5 * CONTAMINANTS


def test_twins_of_single_lenses_are_left_out(blocks):
    """A contaminant with one lens is a single lens; its twin, the same again, adds nothing."""
    for place, second in ((SINGLES, 0), (SECOND_SOURCES, CLASSES.index("binary_source"))):
        curves = simulate_curves(np.random.default_rng([SEED, place]), SEED, place)
        assert (curves.classes[BLOCK:] == second).all()
        counts = np.bincount(blocks[place].labels, minlength=len(CLASSES))
        assert counts[0] == BLOCK + CONTAMINANTS and counts[1] + counts[2] == BLOCK
        assert counts[3] == (CONTAMINANTS if second else 0) and counts[OTHER] == VARIABLES


def test_fractions_of_the_classes_are_those_of_many_blocks(blocks):
    labels = np.concatenate([s.labels for s in blocks])
    counts = np.bincount(labels, minlength=len(CLASSES))
    assert sum(CLASS_FRACTIONS) == pytest.approx(1)
    binary = counts[1:3].sum() / len(labels), sum(CLASS_FRACTIONS[1:3])
    for found, expected in ((counts[0] / len(labels), CLASS_FRACTIONS[0]), binary):
        assert found == pytest.approx(expected, abs=0.03)  # second sources are in 0.45 of blocks


@pytest.mark.parametrize("edges", [(0.01, 0.99), (0.01, 0.3), (0.3, 0.7), (0.7, 0.99)])
def test_targets_are_calibrated_against_labels(blocks, edges):
    """Of samples with a target of p, a fraction p has the second curve of its pair."""
    targets = np.concatenate([s.targets for s in blocks])
    labels = np.concatenate([s.labels for s in blocks])
    p = 1 - targets[:, 0]
    kept = (p >= edges[0]) & (p < edges[1])
    error = np.sqrt((p * (1 - p))[kept].sum())
    assert kept.sum() > 50 and abs((labels[kept] > 0).sum() - p[kept].sum()) < 3 * error


def test_a_sample_is_an_epoch_with_its_past_and_its_refit():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 100, 200))
    mag, sigma = 18 + 0.05 * rng.standard_normal(200), rng.uniform(0.02, 0.2, 200)
    data = [DataSetEpochs(times[k::2], mag[k::2], sigma[k::2]) for k in range(2)]
    ratio = np.linspace(-3, 3, 200)
    seen = Observation(data, True, times, ratio, begins=60.0)
    found = cut_samples(seen, 0, 2, 400, np.random.default_rng(1))
    inputs = event_inputs(joint_epochs(data))
    half = inputs.epochs.astype(np.float16)
    apart = abs(found.windows[:, None, -1].astype(float) - half[None]).max(axis=2)
    epoch = apart.argmin(axis=1)
    same = {"rtol": 0, "atol": 2e-3}  # float16
    np.testing.assert_allclose(found.windows[:, -1], half[epoch], **same)
    padded = np.pad(half, ((RECEPTIVE_FIELD - 1, 0), (0, 0)))
    for k, i in enumerate(epoch):
        np.testing.assert_allclose(found.windows[k], padded[i : i + RECEPTIVE_FIELD], **same)
    active = inputs.active[epoch]
    np.testing.assert_allclose(found.maps, inputs.maps[active], rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(found.summaries, inputs.summaries[active], rtol=1e-3, atol=2e-3)
    assert np.array_equal(found.held, epoch + 1 - inputs.counts[active])
    np.testing.assert_allclose(found.targets[:, 2], 1 / (1 + np.exp(-ratio[epoch])), atol=1e-6)
    assert epoch.min() >= 7 and 0.7 < (times[epoch] > 60).mean() < 0.95  # 0.75, and of the rest


def test_an_event_of_too_few_epochs_gives_no_sample():
    data = DataSetEpochs(np.arange(7.0), np.full(7, 18.0), np.full(7, 0.1))
    seen = Observation([data], True, data.times, np.zeros(7), 0.0)
    assert cut_samples(seen, 0, 1, 4, np.random.default_rng(0)) is None
