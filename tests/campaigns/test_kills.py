"""Processes killed at any moment lose and change nothing; of two writers one is refused."""

import os
import random
import signal
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from sets import toy_set

from lensml.experiments import evaluate
from lensml.network import NetworkConfig, load_network, load_tensors
from lensml.paths import InputError, only_writer
from lensml.simulation import Simulation, Survey, load, save, simulate
from lensml.streaming import StreamingClassifier
from lensml.training import TrainingConfig, train

ASKED = os.environ.get("LENSML_CAMPAIGN")
KILLS = min(int(ASKED) // 80, 1000) if ASKED else 4  # of each kind
FEWER = KILLS if ASKED else 2  # of what takes seconds
SIMULATION = Simulation(num_pairs=12, shard_size=2, survey=Survey(num_epochs=60))
EVALUATION = "lensml.experiments.evaluation_run"
CONTEXT = get_context("forkserver")  # its processes have the imports behind them
CONTEXT.set_forkserver_preload(
    ["lensml.simulation.simulator", "lensml.streaming.classifier", "lensml.training.run",
     EVALUATION]
)  # fmt: skip
TRAINING = TrainingConfig(
    epochs=3, batch_size=8, network=NetworkConfig(channels=8, embedding_channels=8),
    mixed_precision=False,
)  # fmt: skip


def make(folder: Path) -> None:
    """A set, by a process that is going to be killed."""
    simulate(folder, SIMULATION, workers=1, progress=False)


def epochs(num: int) -> list[tuple[str, float, float, float]]:
    """Epochs of five events in turn, more than memory may hold."""
    generator = np.random.default_rng(3)
    mags = 18 + 0.1 * generator.standard_normal(num)
    return [(f"e{k % 5}", float(k), float(mags[k]), 0.1) for k in range(num)]


def follow(state: Path, num: int) -> dict[int, float]:
    """Feed epochs from where the state is, with a snapshot after each tenth; P by epoch."""
    stream = StreamingClassifier(load_network()[0], max_events=3, store=Path(f"{state}.events"))
    if state.exists():
        stream.restore(state)
    answers = {}
    for k in range(stream.lines, num):
        answers[k] = stream.update(*epochs(num)[k])
        stream.lines += 1
        if stream.lines % 10 == 0:
            stream.save(state)
    return answers


def learn(run: Path, data: Path) -> None:
    """Train, or go on with a training, on one thread, which decides the last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(data, run, TRAINING, resume=True)
    finally:
        torch.set_num_threads(threads)


def learned(run: Path) -> list:
    """All weights, the optimiser's state and the history of a run, without its seconds."""
    tensors = [load_tensors(run / f"{name}.safetensors")[0] for name in ("model", "last")]
    rows = (run / "history.csv").read_text().splitlines()
    bits = [{k: v.numpy().tobytes() for k, v in found.items()} for found in tensors]
    return [*bits, [row.rpartition(",")[0] for row in rows]]


def measure(folder: Path, data: Path) -> None:
    """Evaluate the network that ships, in parts of a few rows and without drawing, the slowest."""
    with patch(f"{EVALUATION}.PART", 8), patch(f"{EVALUATION}.figures", return_value={}):
        evaluate(data, folder, num_bootstrap=2)


def killed(work, *arguments, longest: float, begun: str = "") -> bool:
    """Run in a process that is killed at a random moment; whether it was still at work.

    With `begun`, a pattern, some time after there are such files in the folder that it writes.
    """
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    while begun and process.is_alive() and not any(arguments[0].glob(begun)):
        time.sleep(0.001)
    time.sleep(random.uniform(0, longest / 8 if begun else longest))
    alive = process.is_alive()
    with suppress(ProcessLookupError):  # it has just ended by itself
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    while Path(f"/proc/{process.pid}").exists():  # until the system has forgotten it
        time.sleep(0.01)
    return alive


def seconds_of(work, *arguments) -> float:
    """How long a process of this kind takes, the second time."""
    for path in arguments[:1] * 2:  # the first one compiles
        started = time.monotonic()
        process = CONTEXT.Process(target=work, args=(Path(f"{path}{started}"), *arguments[1:]))
        process.start()
        process.join()
        assert process.exitcode == 0
    return time.monotonic() - started


def test_a_set_killed_at_any_moment_ends_with_the_same_bits(tried, tmp_path):
    whole = load(simulate(tmp_path / "whole", SIMULATION, workers=1, progress=False))
    longest = seconds_of(make, tmp_path / "timed")
    for k in range(KILLS):
        folder = tmp_path / f"set{k}"
        tried.answered += killed(make, folder, longest=longest)
        make(folder)
        found = load(folder)
        for name, values in whole.per_row().items():
            np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)
        assert {p.name for p in folder.iterdir()} == {
            p.name for p in (tmp_path / "whole").iterdir()
        }


def test_a_stream_killed_at_any_moment_gives_the_answers_of_one_that_was_not(tried, tmp_path):
    num = 200
    expected = follow(tmp_path / "whole", num)
    longest = seconds_of(follow, tmp_path / "timed", num)
    for k in range(KILLS):
        state = tmp_path / f"state{k}"
        tried.answered += killed(follow, state, num, longest=longest)
        again = follow(state, num)
        assert max(again, default=num - 1) == num - 1, "lines after the snapshot were not taken"
        for line, p in again.items():
            assert p == expected[line]


def test_a_training_killed_at_any_moment_ends_with_the_same_bits(tried, tmp_path):
    data = save(tmp_path / "set.npz", toy_set(16, 40))
    learn(tmp_path / "whole", data)
    expected = learned(tmp_path / "whole")
    longest = seconds_of(learn, tmp_path / "timed", data)
    for k in range(FEWER):
        run = tmp_path / f"run{k}"
        begun = "last.safetensors" if k % 2 else ""
        tried.answered += killed(learn, run, data, longest=longest, begun=begun)
        learn(run, data)
        assert learned(run) == expected
        assert {p.name for p in run.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_an_evaluation_killed_at_any_moment_finds_the_same(tried, tmp_path):
    data = save(tmp_path / "set.npz", toy_set(20, 40))
    names = "predictions.npz", "metrics.json"
    measure(tmp_path / "whole", data)
    longest = seconds_of(measure, tmp_path / "timed", data)
    for k in range(FEWER):
        folder = tmp_path / f"found{k}"
        begun = ".parts/[!.]*" if k % 2 else ""
        tried.answered += killed(measure, folder, data, longest=longest, begun=begun)
        measure(folder, data)
        with np.load(folder / names[0]) as found, np.load(tmp_path / "whole" / names[0]) as whole:
            assert {k: v.tobytes() for k, v in found.items()} == {
                k: v.tobytes() for k, v in whole.items()
            }
        assert (folder / names[1]).read_bytes() == (tmp_path / "whole" / names[1]).read_bytes()
        assert {p.name for p in folder.iterdir()} == {
            p.name for p in (tmp_path / "whole").iterdir()
        }


def hold(target: Path, ready, done) -> None:
    """Write where others may want to, until asked to end."""
    with only_writer(target):
        ready.set()
        done.wait(60)


def test_of_two_writers_the_second_is_refused_until_the_first_is_gone(tried, tmp_path):
    target = tmp_path / "set"
    for k in range(100 if ASKED else 5):
        ready, done = CONTEXT.Event(), CONTEXT.Event()
        first = CONTEXT.Process(target=hold, args=(target, ready, done))
        first.start()
        assert ready.wait(60)
        with pytest.raises(InputError, match="is writing there") as refused:
            make(target)
        assert "\n" not in str(refused.value) and not target.exists()
        tried.refused += 1
        if k % 2:  # a killed one leaves no lock
            os.kill(first.pid, signal.SIGKILL)
        else:  # an event that a killed process waits for cannot be set
            done.set()
        first.join()
        with only_writer(target):
            pass
