"""A disk that fails at its k-th call, for every k: what was there stays whole."""

import errno
import os

import pytest

from lensml.network import load_network
from lensml.paths import InputError, atomic_path
from lensml.simulation import Simulation, Survey, load, simulate
from lensml.streaming import StreamingClassifier

CALLS = ("fsync", "replace")


class Failing:
    """Lets `limit` calls of the system pass and fails from then on."""

    def __init__(self, monkeypatch, limit: int) -> None:
        self.left = limit
        for name in CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, call):
        def checked(*arguments, **options):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return checked


def test_a_set_is_whole_whichever_call_fails(tried, tmp_path, monkeypatch):
    survey = Survey(num_epochs=40)
    simulation = Simulation(num_pairs=4, shard_size=2, survey=survey)
    whole = load(simulate(tmp_path / "whole.npz", simulation, workers=1, progress=False))
    for k in range(50):
        output = tmp_path / f"{k}.npz"
        with monkeypatch.context() as patched:
            Failing(patched, k)
            try:
                simulate(output, simulation, workers=1, progress=False)
                break
            except InputError as error:
                tried.refused += 1
                assert "No space left" in str(error) and "\n" not in str(error)
        assert not output.exists() and not list(tmp_path.rglob("*.tmp*"))
        simulate(output, simulation, workers=1, progress=False)  # the same command goes on
        assert (load(output).X == whole.X)[~(whole.X != whole.X)].all()
    assert 4 <= k < 50


def test_a_state_is_the_old_or_the_new_one_whichever_call_fails(tried, tmp_path, monkeypatch):
    network, path, store = load_network()[0], tmp_path / "state", tmp_path / "state.events"
    stream = StreamingClassifier(network, max_events=2, store=store)
    for k in range(12):
        stream.update(f"e{k % 4}", float(k), 18.0, 0.1)
        stream.lines += 1
    stream.save(path)
    for k in range(10):
        stream.update(f"e{k % 4}", 100.0 + k, 18.0, 0.1)
        stream.lines += 1
        with monkeypatch.context() as patched:
            Failing(patched, k)
            try:
                stream.save(path)
                expected = stream.lines
                tried.answered += 1
                break
            except (InputError, OSError):
                tried.refused += 1
        again = StreamingClassifier(network, max_events=2, store=store)
        again.restore(path)
        assert again.lines == 12 and sorted(again.followed) == ["e0", "e1", "e2", "e3"]
    again.restore(path)
    assert k >= 2 and again.lines == expected


def test_a_file_is_the_old_one_while_the_new_one_cannot_be_written(tmp_path):
    """On a full device, where there is one: `/dev/full` takes no byte."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no such device here")
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(InputError, match="No space left"), atomic_path(path) as temporary:
        temporary.symlink_to("/dev/full")
        with open(temporary, "w") as file:
            file.write("new" * 100_000)
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
