"""Shards of one set by several processes: the bits of one process, and no two writers."""

import json

import numpy as np
import pytest

from lensml.cli import main
from lensml.paths import InputError, only_writer
from lensml.simulation import Simulation, Survey
from lensml.simulation.simulator import finish_shards, simulate, simulate_shards

SIM = Simulation(num_pairs=14, seed=9, shard_size=4, survey=Survey(num_epochs=60))


def make(folder, first, stop):
    return simulate_shards(folder, SIM, range(first, stop), workers=1, progress=False)


def test_shards_of_several_processes_are_those_of_one(tmp_path):
    whole = simulate(tmp_path / "whole", SIM, workers=1, progress=False)
    parts = tmp_path / "parts"
    make(parts, 2, 4)
    with pytest.raises(InputError, match="shards 0, 1 are not made yet"):
        finish_shards(parts, SIM)
    make(parts, 0, 2)
    finish_shards(parts, SIM)
    names = sorted(p.name for p in whole.iterdir())
    assert names == sorted(p.name for p in parts.iterdir()) and len(names) == 6
    for name in names:
        if name.endswith(".json"):
            one, other = (json.loads((folder / name).read_text()) for folder in (whole, parts))
            assert one == other
            continue
        with np.load(whole / name) as one, np.load(parts / name) as other:
            assert one.files == other.files
            for k in one.files:
                np.testing.assert_array_equal(one[k], other[k])
    assert simulate(parts, SIM, workers=1, progress=False) == parts  # nothing is left to do


def test_a_shard_has_one_writer_and_a_set_too(tmp_path):
    folder = make(tmp_path / "set", 0, 1)
    with only_writer(folder / "part-00002.npz"):
        with pytest.raises(InputError, match="part-00002.npz: process .* is writing"):
            make(folder, 1, 4)
        make(folder, 1, 2)  # another one
    with only_writer(folder):
        for work in (lambda: make(folder, 2, 3), lambda: finish_shards(folder, SIM)):
            with pytest.raises(InputError, match="is writing there"):
                work()
        with pytest.raises(InputError, match="is writing there"):
            simulate(folder, SIM, workers=1, progress=False)


@pytest.mark.parametrize(("first", "stop"), [(0, 5), (3, 3), (4, 6)])
def test_shards_that_the_set_does_not_have_are_refused(first, stop, tmp_path):
    with pytest.raises(InputError, match="the set has 4, from 0 to 3"):
        make(tmp_path / "set", first, stop)


def test_shards_from_the_command_line(tmp_path, capsys):
    plain = ["simulate", "--n_pspl", "6", "--n_binary", "6", "--shard_size", "3", "--workers", "1"]
    command = [*plain, "--output", str(tmp_path / "set")]
    assert main([*command, "--shards", "0:1"]) == 0
    assert main([*command, "--finish"]) == 2
    assert "shards 1 are not made yet" in capsys.readouterr().err
    assert main([*command, "--shards", "1:2"]) == 0 and main([*command, "--finish"]) == 0
    assert json.loads((tmp_path / "set" / "manifest.json").read_text())["num_events"] == 6
    with pytest.raises(SystemExit):
        main([*command, "--shards", "1-2"])
    assert "A:B was expected" in capsys.readouterr().err
    assert main([*plain, "--output", str(tmp_path / "a.npz"), "--shards", "0:1"]) == 2
    assert "a name without .npz" in capsys.readouterr().err
