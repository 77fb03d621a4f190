"""A disk that is full after any byte: one line, nothing torn, the same bits once there is room.

The system refuses each write beyond a number of bytes of a file (RLIMIT_FSIZE), in the middle too.
"""

import json
import os
import random
import re
import resource
import shutil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from lensml.cli import main
from lensml.simulation import Simulation, Survey, simulate

ASKED = os.environ.get("LENSML_CAMPAIGN")
FAULTS = min(int(ASKED) // 400, 250) if ASKED else 2  # of each kind
CONTEXT = get_context("forkserver")  # its processes have the imports behind them
CONTEXT.set_forkserver_preload(["lensml.training.run", "lensml.experiments.evaluation_run"])
UNLIMITED = resource.RLIM_INFINITY
LAST = "last.safetensors"
# What tells of times and machines, which no two runs have alike.
OTHERWISE = {"config.json", "metrics.json", "history.csv", "training.log"}
OTHERWISE |= {"training_history.svg"}


def child(arguments: list[str], entered: str, limit: int, pipe: Connection) -> None:
    """A verb in a process of its own, whose files hold `limit` bytes at most."""
    said, err = os.pipe()
    os.dup2(os.open(entered, os.O_RDONLY), 0)
    os.dup2(nowhere := os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(err, 2)
    os.close(err)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, UNLIMITED))
    code = main(arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
    os.dup2(nowhere, 2)  # the last writer's end of the pipe
    pipe.send((code, os.read(said, 1 << 16).decode()))


def run(arguments: list[str], entered: str = os.devnull, limit: int = UNLIMITED) -> tuple[int, str]:
    """Exit code of a verb and what it said on standard error."""
    mine, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=child, args=(arguments, entered, limit, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What the verbs are given: a set, another one, lines of a stream."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (1, 2):
        survey = Survey(num_epochs=60)
        simulation = Simulation(num_pairs=20, seed=seed, survey=survey)
        simulate(folder / f"set{seed}.npz", simulation, workers=1, progress=False)
    draw = np.random.default_rng(0)
    lines = [
        {"event": f"e{k % 9}", "time": float(k), "mag": 18 + draw.normal(0, 0.1), "mag_err": 0.1}
        for k in range(1200)
    ]
    (folder / "lines").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


SIMULATE = "simulate --n_pspl 8 --n_binary 8 --shard_size 4 --workers 1 --output".split()
TRAIN = "train --epochs 1 --batch_size 8 --data set1.npz --output".split()
VERBS = {
    "a_folder": [*SIMULATE, "OUT/set"],
    "a_file": [*SIMULATE, "OUT/set.npz"],
    "training": [*TRAIN, "OUT/run"],
    "evaluation": ["evaluate", "--data", "set2.npz", "--output_dir", "OUT/results"],
    "stream": ["stream", "--state", "OUT/state", "--max_events", "4"],
    "project": ["init", "OUT/project"],
}

KINDS = VERBS if ASKED else ("a_folder", "stream", "project")


def content(path: Path) -> bytes:
    """Bytes of a file; of a training's state those of its tensors, for its notes hold seconds."""
    found = path.read_bytes()
    return found[8 + int.from_bytes(found[:8], "little") :] if path.name == LAST else found


def files(folder: Path) -> dict[str, bytes]:
    """Content of each file below a folder, by path."""
    return {str(p.relative_to(folder)): content(p) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_full_disk(tried, made, tmp_path, kind):
    def verb(folder: Path, *more: str, **limit: int) -> tuple[int, str]:
        arguments = [x.replace("OUT", str(folder)) for x in (*VERBS[kind], *more)]
        arguments = [str(made / x) if x in ("set1.npz", "set2.npz") else x for x in arguments]
        folder.mkdir(exist_ok=True)
        return run(arguments, str(made / "lines"), **limit)

    code, said = verb(tmp_path / "whole")
    assert code == 0, said
    whole = files(tmp_path / "whole")
    largest = max(map(len, whole.values()))
    for k in range(FAULTS):
        folder = tmp_path / f"{k}"
        limit = k if k < 2 else int(largest ** random.random()) - 1
        code, said = verb(folder, limit=limit)
        last = said.splitlines()[-1]  # after progress and a log of the training
        assert code == 2 and last.startswith(f"lensml {VERBS[kind][0]}: "), (limit, code, said)
        assert "cannot be written" in last and "make room" in last and last.isprintable(), last
        assert not re.search("Traceback|Logging error", said), said
        tried.refused += 1
        for name, found in files(folder).items():
            assert ".tmp" not in name, f"{name} stays after {limit} bytes"
            whole_file = found == whole.get(name) or Path(name).name in OTHERWISE
            parts = name.startswith(".") or name.endswith(".events")  # of what is not there yet
            assert whole_file or parts, f"{name} is torn after {limit} bytes"
        resumed = ["--resume"] if kind == "training" else []
        code, said = verb(folder, *resumed)
        assert code == 0, (limit, said)
        found = files(folder)
        assert found.keys() == whole.keys()
        for name in found.keys() - {n for n in found if Path(n).name in OTHERWISE}:
            assert found[name] == whole[name], f"{name} differs after {limit} bytes"
        shutil.rmtree(folder)
