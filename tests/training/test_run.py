"""Training lowers the loss, resumes to the same bits, and two processes train as one does."""

import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from lensml.network import NetworkConfig, load_network, load_tensors, predict_proba
from lensml.paths import InputError, only_writer
from lensml.simulation import Simulation, Survey, load, save, simulate
from lensml.training import run as run_module
from lensml.training import trainer as trainer_module
from lensml.training.run import train
from lensml.training.trainer import TrainingConfig

SMALL = NetworkConfig(channels=16, embedding_channels=16)
EASY = Survey(num_epochs=120, sigma=0.02)
CONFIG = TrainingConfig(
    epochs=3,
    batch_size=16,
    learning_rate=4e-3,
    network=SMALL,
    curriculum=0.0,
    mixed_precision=False,
)
SCRIPT = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lensml.network import NetworkConfig
from lensml.training import TrainingConfig, train
network = NetworkConfig(channels=16, embedding_channels=16)
config = TrainingConfig(epochs={epochs}, batch_size=16, learning_rate={rate},
                        start_from={start!r}, network=network, curriculum=0.0,
                        mixed_precision=False)
train(Path(sys.argv[1]), sys.argv[2], config, resume=len(sys.argv) > 3)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An easy set: caustic crossings at 0.02 mag."""
    simulation = Simulation(preset="distinct", num_pairs=48, survey=EASY, shard_size=20)
    folder = tmp_path_factory.mktemp("train") / "set"
    return simulate(folder, simulation, workers=1, progress=False)


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    torch.set_num_threads(1)
    return train(data, tmp_path_factory.mktemp("reference") / "run", CONFIG)


def history(run):
    with (run / "history.csv").open() as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def weights(run, name="model.safetensors"):
    return load_tensors(run / name)[0]


def assert_same_bits(a, b):
    for name in ("model.safetensors", "last.safetensors"):
        left, right = weights(a, name), weights(b, name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left)
    kept = ("epoch", "train_loss", "validation_loss", "validation_auc", "learning_rate")
    assert [[r[k] for k in kept] for r in history(a)] == [[r[k] for k in kept] for r in history(b)]


@pytest.mark.parametrize("writer", ["save_network", "atomic_path", "save_tensors"])
def test_a_run_ended_at_any_file_of_its_last_epoch_resumes(
    data, reference, tmp_path, monkeypatch, writer
):
    usual, calls = getattr(trainer_module, writer), []

    def ended(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr(trainer_module, writer, ended)
    try:
        train(data, tmp_path / "run", CONFIG)
    except KeyboardInterrupt:
        pass
    else:
        assert writer == "save_network"  # not each epoch is the best
    monkeypatch.setattr(trainer_module, writer, usual)
    assert_same_bits(train(data, tmp_path / "run", CONFIG, resume=True), reference)


def test_a_few_epochs_reduce_the_loss_on_easy_events(tmp_path):
    """At 0.003 mag every caustic crossing is plain; chance is ln 2."""
    survey = Survey(num_epochs=100, sigma=0.003)
    simulation = Simulation(preset="distinct", num_pairs=96, survey=survey)
    easy = simulate(tmp_path / "easy.npz", simulation, workers=1, progress=False)
    config = replace(CONFIG, epochs=5, learning_rate=8e-3, curriculum=0.4)
    losses = [row["train_loss"] for row in history(train(easy, tmp_path / "run", config))]
    assert losses[0] < np.log(2) + 0.05 and min(losses[-2:]) < losses[0] - 0.06


def test_a_run_folder_holds_what_the_design_names(reference):
    for name in ("config.json", "model.safetensors", "metrics.json", "history.csv", "training.log"):
        assert (reference / name).stat().st_size > 0
    config = json.loads((reference / "config.json").read_text())
    ranges = [(p["preset"], p["seed"]) for k in ("trained_on", "validated_on") for p in config[k]]
    assert set(ranges) == {("distinct", 0)}
    numbers = [
        set(range(p["first"], p["stop"])) for k in ("trained_on", "validated_on") for p in config[k]
    ]
    assert sum(map(len, numbers)) == len(set().union(*numbers)) == 48
    metrics = json.loads((reference / "metrics.json").read_text())
    assert metrics["epochs"] == 3 and 0 <= metrics["validation_auc"] <= 1
    assert not list(reference.glob("*.tmp*"))


def test_the_best_epoch_is_the_one_kept(reference):
    best = min(history(reference), key=lambda row: row["validation_loss"])
    assert load_tensors(reference / "model.safetensors")[1]["epoch"] + 1 == best["epoch"]


def test_the_same_seed_gives_the_same_bits(data, reference, tmp_path):
    assert_same_bits(train(data, tmp_path / "run", CONFIG), reference)


def test_samples_made_by_other_processes_give_the_same_bits(data, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "ALONE", 0)
    assert_same_bits(train(data, tmp_path / "run", CONFIG), reference)


def test_another_seed_gives_another_network(data, reference, tmp_path):
    run = train(data, tmp_path / "run", replace(CONFIG, seed=1, epochs=1))
    ours, theirs = weights(run), weights(reference)
    assert any(not torch.equal(ours[k], theirs[k]) for k in ours)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_together(*commands):
    """Commands at the same time, all to a good end."""
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL}
    processes = [subprocess.Popen(c, stderr=subprocess.PIPE, **options) for c in commands]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()[-2000:]


def test_two_nodes_under_torchrun_follow_the_trajectory_of_one_process(data, reference, tmp_path):
    """The same global batch, halved, the gradients added up over gloo.

    Two agents on this host stand for two machines that share a folder. They start from a network
    that has begun to learn: Adam blows up the last bits of gradients that vanish, as most do at the
    very start, and then any two orders of summation drift apart.
    """
    port, two = free_port(), tmp_path / "two"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(epochs=1, rate=1e-4, start=str(reference)))
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    agent += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    run_together(*[[*agent, f"--node_rank={k}", str(script), str(data), str(two)] for k in "01"])
    config = replace(CONFIG, epochs=1, learning_rate=1e-4, start_from=str(reference))
    one = train(data, tmp_path / "one", config)
    ours, theirs = (weights(run, "last.safetensors") for run in (two, one))
    ours = {k: v for k, v in ours.items() if not k.startswith("optimizer.")}
    begun = weights(reference)
    moved = max(float((v - begun[k]).abs().max()) for k, v in ours.items())
    apart = max(float((v - theirs[k]).abs().max()) for k, v in ours.items())
    assert moved > 1e-4 and apart < 1e-5
    losses = [history(run)[0]["train_loss"] for run in (two, one)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)  # the mean of both processes


def test_a_finished_or_begun_run_is_not_overwritten(data, reference):
    before = {p: p.read_bytes() for p in reference.iterdir() if p.is_file()}
    with pytest.raises(InputError, match="--resume"):
        train(data, reference, CONFIG)
    with pytest.raises(InputError, match="other settings"):
        train(data, reference, replace(CONFIG, batch_size=8), resume=True)
    assert {p: p.read_bytes() for p in reference.iterdir() if p.is_file()} == before


def test_a_set_without_magnifications_is_trained_on_as_it_was_observed(data, tmp_path):
    bare = replace(load(data), magnification=None)
    run = train(save(tmp_path / "bare.npz", bare), tmp_path / "run", replace(CONFIG, epochs=1))
    assert len(history(run)) == 1


def test_training_raises_the_probabilities_of_binaries(data, reference):
    """Beyond the loss: binaries get the larger probabilities on the training set's own curves."""
    network = load_network(reference)[0]
    curves = load(data)
    p = predict_proba(network, curves)
    final = np.array([row[np.isfinite(row)][-1] for row in p])
    assert final[curves.y == 1].mean() > final[curves.y == 0].mean()


@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_impossible_settings_are_named(name):
    with pytest.raises(InputError, match=f"`{name}`"):
        TrainingConfig(**{name: 0})


def test_two_writers_of_a_run_are_one_too_many(data, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with only_writer(tmp_path / "run"):
        with pytest.raises(InputError, match="run: process .* is writing there"):
            train(data, tmp_path / "run", CONFIG)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # `srun -n2 lensml train`
    with pytest.raises(InputError, match="2 tasks of a SLURM step.*srun torchrun"):
        train(data, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()
