"""Sets for training: pairs stay together, a run records its events, samples are as they should."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sets import toy_set

from lensml.paths import InputError
from lensml.simulation import (
    Simulation,
    Survey,
    contaminant_training_set,
    load,
    save,
    simulate,
)
from lensml.training.data import UNKNOWN_MASS, Pairs, load_training_data, pair_samples

EXACT = Survey(num_epochs=200, sigma=0.05)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    sim = Simulation(preset="distinct", num_pairs=20, seed=5, shard_size=8)
    simulate(folder / "shards", sim, workers=1, progress=False)
    curves = load(folder / "shards")
    order = np.random.default_rng(0).permutation(len(curves))
    save(folder / "shuffled.npz", curves.rows(order))
    save(folder / "lonely.npz", curves.rows(np.arange(1, len(curves), 2)))
    return folder


def test_row_order_does_not_change_the_training_data(sets):
    plain = load_training_data([sets / "shards"], 0.25)
    mixed = load_training_data([sets / "shuffled.npz"], 0.25)
    for one, other in zip(plain.pairs, mixed.pairs, strict=True):
        assert one is other is None or np.array_equal(one, other)
    q = load(sets / "shards").param("q")[1::2]
    assert np.array_equal(plain.pairs.second, np.where(q < 0.03, 1, 2))
    assert plain.class_fractions[1] == pytest.approx(0.5 * (q < 0.03).mean())


def test_the_last_events_are_held_back_and_recorded(sets):
    data = load_training_data([sets / "shards"], 0.25)
    seen = {i for r in data.trained_on for i in range(r["first"], r["stop"])}
    held = {i for r in data.validated_on for i in range(r["first"], r["stop"])}
    assert (seen, held) == (set(range(15)), set(range(15, 20)))
    assert all((r["preset"], r["seed"]) == ("distinct", 5) for r in data.trained_on)
    assert set(data.train_pairs) | set(data.validation_pairs) == set(range(20))
    assert not set(data.train_pairs) & set(data.validation_pairs)


def test_binaries_without_their_single_lens_are_refused(sets):
    with pytest.raises(InputError, match="needs one single lens beside it"):
        load_training_data([sets / "lonely.npz"], 0.25)


def test_contaminants_enter_the_loss_and_their_single_lenses_do_not(tmp_path):
    path = save(tmp_path / "contaminants.npz", contaminant_training_set("binary_source", 12, 3))
    data = load_training_data([path], 0.25)
    assert (data.pairs.second == 0).all() and not data.pairs.blended.any()
    assert len(data.train_pairs) == 12 and not len(data.validation_pairs)
    assert data.trained_on == [
        {"preset": "impostor_binary_source", "seed": 3, "first": 0, "stop": 12}
    ]
    samples = pair_samples(data.pairs.some(slice(3)), data.time, data.survey, [1, 2, 3], 4)
    assert len(samples.labels) == 12 and (samples.labels == 0).all()
    assert (samples.targets[:, 0] == 1).all()


def test_a_set_records_whether_its_blending_is_free(tmp_path):
    sim = Simulation(num_pairs=4, seed=5, blending=(0.2, 0.9))
    simulate(tmp_path / "blended.npz", sim, workers=1, progress=False)
    simulate(tmp_path / "plain.npz", Simulation(num_pairs=4, seed=6), workers=1, progress=False)
    data = load_training_data([tmp_path / "blended.npz", tmp_path / "plain.npz"], 0.25)
    assert data.pairs.blended.tolist() == [True] * 4 + [False] * 4


def test_large_sets_lie_in_a_file_of_this_process_alone(sets, tmp_path, monkeypatch):
    plain = load_training_data([sets / "shards"], 0.25)
    monkeypatch.setattr("lensml.simulation.lightcurves.IN_MEMORY", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped = load_training_data([sets / "shards"], 0.25)
    assert isinstance(mapped.pairs.values, np.memmap) and not list(tmp_path.iterdir())
    assert np.array_equal(mapped.pairs.values, plain.pairs.values)
    assert not isinstance(mapped.pairs.some(slice(2)).values, np.memmap)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10))
    with pytest.raises(InputError, match="set TMPDIR"):
        load_training_data([sets / "shards"], 0.25)


def toy_pairs(num=30, *, observed=False, second=2, **options) -> tuple[Pairs, np.ndarray]:
    """Pairs of a single lens and one with a bump, noise-free or as observed, and their epochs."""
    curves = toy_set(num, 200, shuffle=False, **options)
    values = (curves.X if observed else curves.noise_free()) - curves.m_base[:, None]
    pairs = Pairs(
        values.reshape(num, 2, -1).astype(np.float32),
        np.array(curves.sigmas()).reshape(num, 2, -1) if observed else None,
        np.full(num, second, dtype=np.uint8),
        np.zeros(num, dtype=bool),
        np.full(num, -40.0),
    )
    return pairs, curves.time


def test_the_same_seeds_give_the_same_samples_in_any_set():
    pairs, time = toy_pairs(6)
    whole = pair_samples(pairs, time, EXACT, [1, 2, 3, 4, 5, 6], 3)
    part = pair_samples(pairs.some(slice(2, 4)), time, EXACT, [3, 4], 3)
    other = pair_samples(pairs.some(slice(2, 4)), time, EXACT, [13, 14], 3)
    for a, b in zip(part, whole, strict=True):
        assert np.array_equal(a, b[12:24])
    assert not np.array_equal(part.windows, other.windows)


def test_targets_are_calibrated_against_labels():
    """Of samples with a target of p, a fraction p belongs to the second curve."""
    pairs, time = toy_pairs(500, bump=0.4)
    samples = pair_samples(pairs, time, EXACT, list(range(500)), 1, last=True)
    p, binary = samples.targets[:, 2], samples.labels == 2
    assert np.array_equal(binary, [False, True] * 500) and samples.exact.all()
    for low, high in ((0.02, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.98)):
        kept = (p >= low) & (p < high)
        error = np.sqrt((p * (1 - p))[kept].sum())
        assert kept.sum() > 20 and abs(binary[kept].sum() - p[kept].sum()) < 3 * error
    # Labels follow the log-odds with a slope of 1: a likelihood ratio that is too small shows.
    p, slope = np.clip(p.astype(float), 1e-8, 1 - 1e-8), 1.0
    odds = np.log(p / (1 - p))
    for _ in range(30):  # Newton's steps towards the slope of the greatest likelihood
        q = 1 / (1 + np.exp(-slope * odds))
        information = (odds**2 * q * (1 - q)).sum()
        slope += (odds * (binary - q)).sum() / information
    assert abs(slope - 1) < 3 / np.sqrt(information) < 0.6


@pytest.mark.parametrize(
    "survey", [replace(EXACT, error_scale=(1.2, 1.5)), replace(EXACT, photon_noise=True)]
)
def test_where_errors_are_not_known_the_target_is_the_label(survey):
    pairs, time = toy_pairs(5)
    samples = pair_samples(pairs, time, survey, list(range(5)), 4)
    assert np.array_equal(samples.targets.argmax(1), samples.labels)
    assert (samples.targets.max(1) == 1).all() and samples.exact.all() == survey.exact


def test_a_set_that_was_observed_is_taken_as_it_is():
    pairs, time = toy_pairs(5, observed=True)
    first, again = (pair_samples(pairs, time, EXACT, [k] * 5, 4, last=True) for k in (1, 2))
    assert (first.targets.max(1) == 1).all()
    last = slice(3, None, 4)  # of the same epochs, the last ones
    assert np.array_equal(first.windows[last], again.windows[last])


def test_a_binary_of_unknown_mass_ratio_is_of_either_class():
    pairs, time = toy_pairs(4, second=UNKNOWN_MASS)
    samples = pair_samples(pairs, time, EXACT, [1, 2, 3, 4], 4)
    assert np.array_equal(samples.targets[:, 1], samples.targets[:, 2])
    np.testing.assert_allclose(samples.targets.sum(1), 1, atol=1e-6)
    known, _ = toy_pairs(4)
    expected = pair_samples(known, time, EXACT, [1, 2, 3, 4], 4).targets
    np.testing.assert_allclose(samples.targets[:, 0], expected[:, 0], atol=1e-6)


def test_f_s_is_free_for_some_unblended_pairs():
    """Then the two models of a fit differ."""
    pairs, time = toy_pairs(40)
    samples = pair_samples(pairs, time, EXACT, list(range(40)), 1, hide_blending=0.5, last=True)
    free = (samples.summaries[:, :8] != samples.summaries[:, 8:16]).any(axis=1).reshape(40, 2)
    assert np.array_equal(free[:, 0], free[:, 1]) and 8 < free[:, 0].sum() < 32


def test_pairs_with_too_few_epochs_are_refused():
    pairs, time = toy_pairs(2, observed=True)
    pairs.values[..., 5:] = np.nan
    with pytest.raises(InputError, match="as many epochs as a first refit needs, 8"):
        pair_samples(pairs, time, EXACT, [1, 2], 4)
