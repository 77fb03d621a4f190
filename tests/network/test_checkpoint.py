"""Weights and states come back as they were, run no code, and are refused when they do not fit."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import random_network, toy_set

from lensml.network import checkpoint
from lensml.network.checkpoint import (
    check_unseen,
    fingerprint,
    load_network,
    load_tensors,
    read_snapshot,
    save_network,
    save_tensors,
    weights_hash,
    write_snapshot,
)
from lensml.network.model import Network, NetworkConfig
from lensml.paths import WEIGHTS, InputError
from lensml.streaming import StreamingClassifier


def test_a_saved_network_is_the_same_network(tmp_path):
    torch.manual_seed(0)
    shape = {"channels": 16, "head_channels": (8, 6), "class_fractions": (0.4, 0.1, 0.2, 0.2, 0.1)}
    network = Network(NetworkConfig(**shape))
    save_network(tmp_path, network, {"seed": 4})
    (tmp_path / "config.json").write_text(json.dumps({"trained_on": []}))
    again, config = load_network(tmp_path)
    assert again.config == network.config and config == {"trained_on": []} and not again.training
    state = again.state_dict()
    assert all((state[k] == v).all() for k, v in network.state_dict().items())
    assert fingerprint(again) == fingerprint(network)


def test_weights_of_half_precision_are_loaded_in_single(tmp_path):
    network = random_network()
    halves = {name: x.half() for name, x in network.state_dict().items()}
    save_tensors(tmp_path / "model.safetensors", halves, {"network": network.config.describe()})
    again = load_network(tmp_path)[0].state_dict()
    for name, x in halves.items():
        assert again[name].dtype == torch.float32 and torch.equal(again[name], x.float())


def test_weights_from_before_the_joint_fits_are_refused(tmp_path):
    notes = {"network": {"channels": 64, "num_levels": 7}}
    save_tensors(tmp_path / "model.safetensors", {"head.0.weight": torch.ones(3)}, notes)
    with pytest.raises(InputError, match="before its joint fits, .*; train anew"):
        load_network(tmp_path)


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
    save_network(tmp_path / "x", Network(NetworkConfig(channels=8)), {})
    assert load_network(tmp_path / "x.pt")[0].config.channels == 8


def test_a_missing_run_is_an_error_with_the_way_to_make_one(tmp_path):
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
    save_network(tmp_path, Network(NetworkConfig(channels=8)), {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable weights file"):
        load_network(tmp_path)


def test_config_of_the_run_is_what_is_returned(tmp_path):
    save_network(tmp_path, Network(NetworkConfig(channels=8)), {})
    (tmp_path / "config.json").write_text(json.dumps({"experiment_name": "mine"}))
    assert load_network(tmp_path)[1]["experiment_name"] == "mine"


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "state"
    tensors = {"a": torch.arange(12.0).reshape(3, 4), "none": torch.zeros(0, 3), "n": torch.ones(2)}
    write_snapshot(path, tensors, {"version": 2, "lines": 7})
    return path, tensors


def test_what_was_written_is_read(kept):
    path, tensors = kept
    read, notes = read_snapshot(path, 2)
    assert notes == {"version": 2, "lines": 7} and read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert [p.name for p in path.parent.iterdir()] == ["state"]


@pytest.mark.parametrize("place", [-1, -30, 20, 9, 0])
def test_a_flipped_byte_anywhere_is_noticed(kept, place):
    path, _ = kept
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="state: (damaged|not a readable|a state of version)"):
        read_snapshot(path, 2)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_noticed(kept, length):
    path, _ = kept
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match="not a readable state file") as caught:
        read_snapshot(path, 2)
    assert "\n" not in str(caught.value)


def test_another_version_is_refused_with_its_number(kept):
    with pytest.raises(InputError, match="version 2, but version 3 was expected"):
        read_snapshot(kept[0], 3)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_a_stream_state_of_an_older_version_is_refused_with_what_to_do(tmp_path, version):
    """Each as it was written: without a checksum, with one, with other tensors."""
    notes = {"version": version, "events": [["x"]]}
    write = save_tensors if version == 1 else write_snapshot
    write(tmp_path / "old", {"near": torch.zeros(3)}, notes)
    stream = StreamingClassifier(random_network())
    expected = f"version {version}, but version 7 was expected; move it away and feed the epochs"
    with pytest.raises(InputError, match=expected) as caught:
        stream.restore(tmp_path / "old")
    assert "\n" not in str(caught.value) and not stream.events


def test_weights_and_shape_make_the_fingerprint():
    small = NetworkConfig(channels=16)
    torch.manual_seed(0)
    network = Network(small)
    before = fingerprint(network)
    assert before == fingerprint(network)
    with torch.no_grad():
        network.head[-1].bias += 1e-6
    assert fingerprint(network) != before


def test_the_state_of_other_weights_is_refused(tmp_path):
    """Of the same shape it would load, and answer nonsense."""
    first, second = (StreamingClassifier(random_network(seed)) for seed in range(2))
    first.update("x", 1.0, 18.0, 0.1, 18.0)
    first.save(tmp_path / "state")
    second.update("y", 1.0, 18.0, 0.1, 18.0)
    with pytest.raises(InputError, match="another network"):
        second.restore(tmp_path / "state")
    assert list(second.events) == ["y"]


def test_saving_copies_no_buffer_and_keeps_no_empty_room(tmp_path):
    """Twice the tokens in memory would halve the number of events that a machine can hold."""
    import tracemalloc

    stream = StreamingClassifier(random_network())
    names = [f"event {i}" for i in range(1500)]
    ones = np.ones(len(names))
    stream.update_many(names, ones, 18 * ones, 0.1 * ones, 18 * ones)
    tokens = 1500 * stream.cache.tokens[0].nbytes
    tracemalloc.start()
    stream.save(tmp_path / "state")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "state").stat().st_size
    assert tokens < size < 1500 * stream.bytes_per_event / 2 and peak < tokens / 2


def test_a_file_replaced_while_it_is_opened_is_read_whole(kept, monkeypatch):
    """Its header is opened before its tensors: a writer who comes between must not matter."""
    path, tensors = kept
    really = checkpoint.safe_open

    def interrupted(name, framework):
        monkeypatch.setattr(checkpoint, "safe_open", really)
        opened = really(name, framework=framework)
        write_snapshot(path, tensors | {"a": torch.ones(3, 4)}, {"version": 2, "lines": 8})
        return opened

    monkeypatch.setattr(checkpoint, "safe_open", interrupted)
    read, notes = read_snapshot(path, 2)
    assert notes["lines"] == 8 and torch.equal(read["a"], torch.ones(3, 4))


@pytest.mark.parametrize("first, refused", [(0, 5), (9, 3), (11, 1), (12, 0)])
def test_events_of_training_and_validation_are_refused(first, refused, tmp_path):
    curves = toy_set(5, seed=1)  # five events, beginning with `first`
    curves = replace(curves, pair=curves.pair + first)
    config = {
        "trained_on": [{"preset": "toy", "seed": 1, "first": 0, "stop": 10}],
        "validated_on": [{"preset": "toy", "seed": 1, "first": 10, "stop": 12}],
    }
    if not refused:
        return check_unseen(curves, config, tmp_path)
    with pytest.raises(InputError, match="of its 5 events .*train|of its 5 events .*validated"):
        check_unseen(curves, config, tmp_path)
    other = replace(curves, meta={**curves.meta, "seed": 2})
    check_unseen(other, config, tmp_path)
    check_unseen(replace(curves, meta={**curves.meta, "preset": "else"}), config, tmp_path)
