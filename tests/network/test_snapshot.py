"""A snapshot is whole, of this version and of this network, or it is refused in one line."""

import numpy as np
import pytest
import torch

from lensml.network import checkpoint
from lensml.network.checkpoint import load_network, save_tensors
from lensml.network.model import Network, NetworkConfig
from lensml.network.snapshot import fingerprint, read_snapshot, write_snapshot
from lensml.paths import InputError
from lensml.streaming import StreamingClassifier


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


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_stream_state_of_an_older_version_is_refused_with_what_to_do(tmp_path, version):
    """Each as it was written: without a checksum, with one, with other tensors."""
    notes = {"version": version, "events": [["x"]]}
    write = save_tensors if version == 1 else write_snapshot
    write(tmp_path / "old", {"near": torch.zeros(3)}, notes)
    stream = StreamingClassifier(load_network()[0])
    expected = f"version {version}, but version 4 was expected; move it away and feed the epochs"
    with pytest.raises(InputError, match=expected) as caught:
        stream.restore(tmp_path / "old")
    assert "\n" not in str(caught.value) and not stream.events


def test_weights_and_shape_make_the_fingerprint():
    small = NetworkConfig(channels=16, stem_channels=8, num_levels=2)
    torch.manual_seed(0)
    network = Network(small)
    before = fingerprint(network)
    assert before == fingerprint(network)
    with torch.no_grad():
        network.head[-1].bias += 1e-6
    assert fingerprint(network) != before


def test_the_state_of_other_weights_is_refused(tmp_path):
    """Of the same shape it would load, and answer nonsense."""
    config = NetworkConfig(channels=16, stem_channels=8, num_levels=2)
    first, second = StreamingClassifier(Network(config)), StreamingClassifier(Network(config))
    first.update("x", 1.0, 18.0, 0.1, 18.0)
    first.save(tmp_path / "state")
    second.update("y", 1.0, 18.0, 0.1, 18.0)
    with pytest.raises(InputError, match="another network"):
        second.restore(tmp_path / "state")
    assert list(second.events) == ["y"]


def test_saving_copies_no_slab(tmp_path):
    """Twice the slabs in memory would halve the number of events that a machine can hold."""
    import tracemalloc

    stream = StreamingClassifier(load_network()[0])
    names = [f"event {i}" for i in range(1500)]
    ones = np.ones(len(names))
    stream.update_many(names, ones, 18 * ones, 0.1 * ones, 18 * ones)
    size = 1500 * stream.bytes_per_event
    tracemalloc.start()
    stream.save(tmp_path / "state")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size <= (tmp_path / "state").stat().st_size and peak < size / 5


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
