"""Weights come back as they were, carry their shape with them, and run no code when read."""

import json
import pickle

import pytest
import torch

from lensml.network.checkpoint import (
    load_network,
    load_tensors,
    save_network,
    save_tensors,
    weights_hash,
)
from lensml.network.model import Network, NetworkConfig
from lensml.paths import WEIGHTS, InputError


def test_a_saved_network_is_the_same_network(tmp_path):
    network = Network(NetworkConfig(stem_channels=8, channels=16, num_levels=3))
    torch.nn.init.normal_(network.head[-1].weight)
    save_network(tmp_path, network, {"epoch": 4})
    again, notes = load_network(tmp_path)
    assert again.config == network.config and notes["epoch"] == 4
    state = again.state_dict()
    assert all((state[k] == v).all() for k, v in network.state_dict().items())


def test_notes_and_tensors_travel_in_one_file(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": torch.arange(3)}, {"best": 0.5})
    tensors, notes = load_tensors(tmp_path / "x.safetensors")
    assert tensors["a"].tolist() == [0, 1, 2] and notes == {"best": 0.5}


def test_shipped_weights_are_small_and_say_what_they_were_trained_on():
    network, config = load_network()
    assert (WEIGHTS / "model.safetensors").stat().st_size < 2_000_000
    assert not network.training
    for name in ("trained_on", "validated_on"):
        assert config[name]
        for part in config[name]:
            assert part["first"] < part["stop"] and {"preset", "seed"} <= part.keys()
    assert len(weights_hash()) == 64


def test_the_name_of_the_thesis_file_finds_the_run_folder(tmp_path):
    save_network(tmp_path / "x", Network(NetworkConfig(channels=8, num_levels=2)), {})
    assert load_network(tmp_path / "x.pt")[0].config.channels == 8


def test_no_run_there_is_said_with_the_way_to_make_one(tmp_path):
    with pytest.raises(InputError, match="no model.safetensors there.*lensml train"):
        load_network(tmp_path / "nowhere")


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="not a readable weights file"):
        load_network(tmp_path)


def test_a_torn_file_is_refused(tmp_path):
    save_network(tmp_path, Network(NetworkConfig(channels=8, num_levels=2)), {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable weights file"):
        load_network(tmp_path)


def test_config_of_the_run_is_what_is_returned(tmp_path):
    save_network(tmp_path, Network(NetworkConfig(channels=8, num_levels=2)), {})
    (tmp_path / "config.json").write_text(json.dumps({"experiment_name": "mine"}))
    assert load_network(tmp_path)[1]["experiment_name"] == "mine"
