"""A process killed at any moment loses nothing: started again it ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import epoch_lines

from lensml.network import NetworkConfig, load_network, load_tensors
from lensml.paths import InputError
from lensml.simulation import Simulation, Survey, load, simulate
from lensml.streaming import StreamingClassifier, answer_lines
from lensml.training import TrainingConfig, train

LENSML = [sys.executable, "-m", "lensml"]
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}


def kill_when(process: subprocess.Popen, ready, seconds: float = 120.0) -> None:
    """SIGKILL to a process and its children as soon as `ready()` holds."""
    deadline = time.time() + seconds
    while not ready() and time.time() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("name", ["set", "set.npz"])
def test_a_killed_simulation_goes_on_with_its_next_shard(tmp_path, name):
    killed, folder = tmp_path / name, tmp_path / (name if name == "set" else f".{name}.parts")
    flags = "--n_pspl 320 --n_binary 320 --shard_size 32 --seed 5 --workers 1".split()
    process = subprocess.Popen([*LENSML, "simulate", "--output", str(killed), *flags], **QUIET)
    kill_when(process, (folder / "part-00002.npz").exists)
    done = sorted(folder.glob("part-*.npz"))
    assert 3 <= len(done) < 10
    if name == "set":
        with pytest.raises(InputError, match="manifest|shards"):
            load(killed)
    else:
        assert not killed.exists()
    kept = {p.name: p.stat().st_mtime_ns for p in done}
    simulation = Simulation(num_pairs=320, seed=5, shard_size=32)
    resumed = load(simulate(killed, simulation, workers=1, progress=False))
    if name == "set":
        assert all((folder / k).stat().st_mtime_ns == v for k, v in kept.items())
    fewer = replace(simulation, num_pairs=120)
    whole = load(simulate(tmp_path / "other.npz", fewer, workers=1, progress=False))
    first = resumed.rows(slice(0, 240))
    for member in ("X", "y", "time", "sigma", "m_base", "pair", "params", "magnification"):
        assert getattr(first, member).tobytes() == getattr(whole, member).tobytes(), member
    assert first.dchi2_at.tobytes() == whole.dchi2_at.tobytes()
    assert len(resumed) == 640 and np.isfinite(resumed.magnification).all()
    assert not list(tmp_path.glob("**/*.tmp*"))


TRAINING = """
import sys
import torch
torch.set_num_threads(1)
from lensml.network import NetworkConfig
from lensml.training import TrainingConfig, train
network = NetworkConfig(channels=16, embedding_channels=16)
train(sys.argv[1], sys.argv[2], TrainingConfig(epochs=3, batch_size=16, network=network,
                                               curriculum=0.4, mixed_precision=False))
"""


def test_a_killed_training_ends_with_the_bits_of_one_that_ran_through(tmp_path):
    """Killed after its first epoch; noise, order, survey and optimiser follow from the seed."""
    survey = Survey(num_epochs=160, sigma=(0.01, 0.02))
    simulation = Simulation(preset="distinct", num_pairs=48, survey=survey)
    data = simulate(tmp_path / "set.npz", simulation, workers=1, progress=False)
    network = NetworkConfig(channels=16, embedding_channels=16)
    config = TrainingConfig(
        epochs=3, batch_size=16, network=network, curriculum=0.4, mixed_precision=False
    )
    command = [sys.executable, "-c", TRAINING, str(data), str(tmp_path / "killed")]
    killed = tmp_path / "killed"
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **QUIET)
    kill_when(process, (killed / "last.safetensors").exists)
    assert load_tensors(killed / "last.safetensors")[1]["epoch"] < 2
    assert not (killed / "metrics.json").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(data, killed, config, resume=True)
        whole = train(data, tmp_path / "whole", config)
    finally:
        torch.set_num_threads(threads)
    for name in ("model.safetensors", "last.safetensors"):
        ours, theirs = (load_tensors(run / name)[0] for run in (killed, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def _send(pipe, lines: list[str]) -> None:
    pipe.write("\n".join(lines) + "\n")
    pipe.flush()


def test_a_killed_stream_goes_on_from_its_snapshot_with_the_same_answers(tmp_path):
    """Killed by force in the middle; all lines are then fed again from the first."""
    network, state = load_network()[0], tmp_path / "state"

    def kept() -> int:
        if not state.exists():
            return 0
        stream = StreamingClassifier(network)
        stream.restore(state)
        return stream.lines

    lines = epoch_lines(25, 130, datasets=("I", "V"))
    whole = [a["p_binary"] for a, _ in answer_lines(StreamingClassifier(network), lines)]
    command, pipe = [*LENSML, "stream", "--state", str(state)], subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    # From a thread: neither side waits for the other with a full pipe.
    sender = threading.Thread(target=_send, args=(process.stdin, lines[:2600]))
    sender.start()
    before = [json.loads(process.stdout.readline())["p_binary"] for _ in range(2600)]
    sender.join()
    kill_when(process, lambda: kept() > 0)
    process.communicate()
    taken = kept()
    assert 0 < taken <= 2600
    np.testing.assert_allclose(before, whole[:2600], rtol=0, atol=1e-5)  # sums of fits round
    again = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    answers = [json.loads(x) for x in again.stdout.splitlines()]
    assert again.returncode == 2 and len(answers) == len(lines)
    assert all("does not follow" in x["error"] for x in answers[:taken])
    after = [x["p_binary"] for x in answers[taken:]]
    np.testing.assert_allclose(after, whole[taken:], rtol=0, atol=1e-5)
