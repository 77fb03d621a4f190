"""Training data on the device: pairs stay together, and a run records which events it used."""

import numpy as np
import pytest
import torch

from lensml.paths import InputError
from lensml.simulation import Simulation, contaminant_training_set, load, save, simulate
from lensml.training.data import load_training_data

CPU = torch.device("cpu")


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
    plain = load_training_data([sets / "shards"], 0.25, CPU)
    mixed = load_training_data([sets / "shuffled.npz"], 0.25, CPU)
    torch.testing.assert_close(plain.clean, mixed.clean, rtol=0, atol=0)
    assert plain.labels.tolist() == [0, 1] * 20 == mixed.labels.tolist()


def test_the_last_events_are_held_back_and_recorded(sets):
    data = load_training_data([sets / "shards"], 0.25, CPU)
    seen = {i for r in data.trained_on for i in range(r["first"], r["stop"])}
    held = {i for r in data.validated_on for i in range(r["first"], r["stop"])}
    assert (seen, held) == (set(range(15)), set(range(15, 20)))
    assert all((r["preset"], r["seed"]) == ("distinct", 5) for r in data.trained_on)
    assert set(data.train_pairs) | set(data.validation_pairs) == set(range(20))


def test_the_curriculum_begins_with_the_pairs_furthest_apart(sets):
    data = load_training_data([sets / "shards"], 0.25, CPU)
    apart = (data.clean[1::2] - data.clean[::2]).square().sum(1).numpy()[data.curriculum_order()]
    assert (np.diff(apart) <= 0).all()


def test_binaries_without_their_single_lens_are_refused(sets):
    with pytest.raises(InputError, match="needs one single lens beside it"):
        load_training_data([sets / "lonely.npz"], 0.25, CPU)


def test_contaminants_enter_the_loss_and_their_single_lenses_do_not(tmp_path):
    path = save(tmp_path / "contaminants.npz", contaminant_training_set("binary_source", 12, 3))
    data = load_training_data([path], 0.25, CPU)
    assert torch.isnan(data.labels[::2]).all() and (data.labels[1::2] == 0).all()
    assert len(data.train_pairs) == 12 and not len(data.validation_pairs)
    assert data.trained_on == [
        {"preset": "impostor_binary_source", "seed": 3, "first": 0, "stop": 12}
    ]
    assert not data.blended.any()


def test_a_set_records_whether_its_blending_is_free(tmp_path):
    sim = Simulation(num_pairs=4, seed=5, blending=(0.2, 0.9))
    simulate(tmp_path / "blended.npz", sim, workers=1, progress=False)
    simulate(tmp_path / "plain.npz", Simulation(num_pairs=4, seed=6), workers=1, progress=False)
    data = load_training_data([tmp_path / "blended.npz", tmp_path / "plain.npz"], 0.25, CPU)
    assert data.blended.tolist() == [True] * 8 + [False] * 8
