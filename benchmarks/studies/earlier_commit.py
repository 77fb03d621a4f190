"""The verbs of this checkout against those of an earlier commit, in turn: how many times as fast.

    python -m benchmarks.studies.earlier_commit [--commit b93ca74] [--turns 5] [--quick]

The earlier commit is checked out beside, below `_build/benchmarks`, and run by the same Python and
libraries. Both sides do the same work from the command line: make the same set; train a pass over
the same pairs at the same batch; evaluate their own shipped weights on the same rows; answer the
same epochs of a stream. Each is a process of its own, so that a ratio holds what starting costs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.record import QUICK, save_record
from lensml.paths import ROOT, InputError, git, progress_bar
from lensml.simulation import Simulation, load, simulate

VERBS = ("simulate", "train", "evaluate", "stream")
SEED, TEST_SEED = 4501, 4502


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit; InputError if git does not know it."""
    if not (full := git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", folder=ROOT)):
        raise InputError(f"--commit {commit}: this clone has no such commit")
    target = folder / full[:12]
    if not target.exists():
        beside = folder / f".{full[:12]}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", full], cwd=ROOT, capture_output=True, check=True
        )
        subprocess.run(["tar", "-x", "-C", str(beside)], input=archive.stdout, check=True)
        os.replace(beside, target)
    return target


def write_epochs(path: Path, rows: Path, events: int) -> int:
    """Epochs of some events as lines of a stream, in order of time; returns how many."""
    curves = load(rows)
    curves = curves.rows(slice(min(events, len(curves))))
    on = np.argwhere(np.isfinite(curves.X))
    on = on[np.argsort(on[:, 1], kind="stable")]
    with path.open("w") as file:
        for row, epoch in on:
            line = {"event": f"e{row}", "time": float(curves.time[epoch])}
            line |= {"mag": round(float(curves.X[row, epoch]), 4)}
            line |= {"mag_err": round(float(curves.sigmas()[row, epoch]), 4)}
            line |= {"m_base": round(float(curves.m_base[row]), 4)}
            file.write(json.dumps(line) + "\n")
    return len(on)


def seconds(verb: str, code: Path, work: Path, pairs: int) -> float:
    """Wall time of one verb of the code in a folder [s]; its output is removed."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    set_flags = ["--n_pspl", str(pairs), "--n_binary", str(pairs), "--seed", str(SEED)]
    command = {
        "simulate": ["--output", str(out / "set"), *set_flags],
        "train": [*("--data", str(work / "train"), "--output", str(out / "run"), "--epochs", "1")],
        "evaluate": ["--data", str(work / "test.npz"), "--output_dir", str(out / "test")],
        "stream": [],
    }[verb]
    command += ["--batch_size", "64"] * (verb == "train")
    environment = os.environ | {"PYTHONPATH": str(code), "LENSML_PROJECT": str(code)}
    out.mkdir(parents=True)
    with (work / "epochs.ndjson").open() as lines, (out / "log").open("w") as log:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "lensml", verb, *command],
            cwd=out, env=environment, stdin=lines, stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{verb} of {code} failed:\n{(out / 'log').read_text()[-2000:]}")
    return time.perf_counter() - started


def ratio(before: ArrayLike, after: ArrayLike) -> dict[str, float]:
    """Median of the turns' ratios before / after, and the lowest and highest of them."""
    each = np.asarray(before, dtype=float) / np.asarray(after, dtype=float)
    return {"value": float(np.median(each)), "low": float(each.min()), "high": float(each.max())}


def main() -> None:
    """Prepare, measure in turn, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="b93ca74")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few events, one turn; not kept")
    args = parser.parse_args()
    started = time.time()
    sizes = {"simulate": 4096, "train": 256, "evaluate": 400, "stream": 100}
    if args.quick:
        sizes, args.turns = {"simulate": 128, "train": 32, "evaluate": 20, "stream": 4}, 1
    work = QUICK / "earlier_commit" / ("quick" if args.quick else "whole")
    sides = {"before": checkout(args.commit, QUICK / "earlier_commit"), "after": ROOT}
    training = Simulation(num_pairs=sizes["train"], seed=SEED)
    simulate(work / "train", training)
    test = Simulation(num_pairs=sizes["evaluate"] // 2, seed=TEST_SEED)
    epochs = write_epochs(
        work / "epochs.ndjson", simulate(work / "test.npz", test), sizes["stream"]
    )
    taken = {verb: {side: [] for side in sides} for verb in VERBS}
    # The first turn compiles what a side compiles and is not counted.
    for turn in progress_bar(range(-1, args.turns), "turns", delay=0):
        for verb in VERBS:
            for side, code in sides.items():
                spent = seconds(verb, code, work, sizes["simulate"])
                if turn >= 0:
                    taken[verb][side].append(spent)
    numbers = {f"{verb}_times_as_fast": ratio(**taken[verb]) for verb in VERBS}
    numbers |= {
        f"{verb}_{side}_s": float(np.median(taken[verb][side])) for verb in VERBS for side in sides
    }
    numbers |= {"turns": args.turns, "epochs_of_stream": epochs}
    numbers |= {f"size_of_{verb}": size for verb, size in sizes.items()}
    save_record(
        "earlier_commit", numbers, seed=SEED, started=started, quick=args.quick, commit=args.commit
    )


if __name__ == "__main__":
    main()
