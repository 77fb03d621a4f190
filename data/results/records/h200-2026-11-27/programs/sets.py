"""Simulate the training sets of the shipped recipe, then fresh test sets, with one pool of workers.

    python sets.py --out FOLDER --workers 11

Training sets are those of `python book/scripts/train_shipped.py --times 4` (seeds and names are the
recipe's); FOLDER/train_ready appears once all are there. Test sets have a seed of their own
(TEST_SEED), with which nothing was trained; beside each stands a table with the ideal observer.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from lensml import limits, simulate
from lensml.dataset import FRACTIONS, load, save
from lensml.general import general
from lensml.impostors import impostor_training_set
from lensml.simulate import Simulation, worker_pool
from lensml.survey import Survey

COMMIT = "b93ca743917398ea0874a7d4016539961f1842d1"
TEST_SEED = 7791
TESTS = {  # preset, error [mag], pairs
    "baseline_at_100_mmag": ("baseline", 0.1, 20_000),
    "distinct_at_100_mmag": ("distinct", 0.1, 5_000),
    "stellar_at_100_mmag": ("stellar", 0.1, 10_000),
    "planetary_at_100_mmag": ("planetary", 0.1, 10_000),
    "baseline_at_50_mmag": ("baseline", 0.05, 20_000),
    "baseline_at_10_mmag": ("baseline", 0.01, 20_000),
    "planetary_at_10_mmag": ("planetary", 0.01, 10_000),
}
simulate.git_commit = lambda: COMMIT


def recipe(share: float = 1.0):
    """The shipped recipe, or a share of its events for a trial."""
    return general("desk", times=4 * share)


def tests(share: float = 1.0) -> dict[str, Simulation]:
    """The test sets."""
    return {
        name: Simulation(
            preset=preset, num_pairs=max(64, int(n * share)), seed=TEST_SEED,
            survey=Survey(sigma=sigma), shard_size=2000,
        )
        for name, (preset, sigma, n) in TESTS.items()
    }  # fmt: skip


def training_folders(folder: Path, of) -> list[Path]:
    """Where the training sets lie, in the recipe's order."""
    names = [f"train_{n}_{s.num_pairs}" for n, s in of.sets.items()]
    return [folder / n for n in names] + [
        folder / f"train_impostor_{arm}_{n}.npz" for arm, n in of.impostors.items()
    ]


def table(folder: Path, name: str) -> None:
    """Labels, delta-chi2 and the ideal observer of a test set."""
    curves = load(folder / name)
    half = FRACTIONS.index(0.5)
    ideal = limits.ideal_log_ratio(curves, FRACTIONS)
    temporary = folder / f".table_{name}.npz"
    np.savez(
        temporary, y=curves.y, pair=curves.pair, dchi2=curves.dchi2, ideal=ideal[:, -1],
        dchi2_at_half=curves.dchi2_at[:, half], ideal_at_half=ideal[:, half],
    )  # fmt: skip
    temporary.rename(folder / f"table_{name}.npz")


def main() -> None:
    """Make all of it; what is there is left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=11)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--test_share", type=float, default=1.0)
    parser.add_argument("--arm")
    parser.add_argument("--table")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    of = recipe(args.share)
    if args.table:
        table(args.out, args.table)
        return
    if args.arm:
        n = of.impostors[args.arm]
        save(args.out / f"train_impostor_{args.arm}_{n}.npz", impostor_training_set(args.arm, n, 31416))
        return
    started = time.time()

    def say(text: str) -> None:
        print(f"[{time.time() - started:6.1f} s] {text}", flush=True)

    own = [sys.executable, __file__, "--out", str(args.out), "--share", str(args.share)]
    own += ["--test_share", str(args.test_share)]
    arms = [subprocess.Popen([*own, "--arm", arm]) for arm in of.impostors]
    training = {args.out / f"train_{n}_{s.num_pairs}": s for n, s in of.sets.items()}
    testing = {args.out / n: s for n, s in tests(args.test_share).items()}
    jobs = []
    for folder, sim in (training | testing).items():
        simulate._claim(folder, sim)
        for k, events in enumerate(sim.shards()):
            jobs.append((folder, sim, folder / f"part-{k:05d}.npz", events))
    tasks = [(sim, c) for _, sim, _, events in jobs for c in simulate._chunks(events)]
    tables, waiting = [], set(training)
    with worker_pool(args.workers) as pool:
        results = pool.imap(simulate._make_chunk, tasks)
        for folder, sim, path, events in jobs:
            made = [next(results) for _ in simulate._chunks(events)]
            save(path, simulate._shard_set(sim, events, made))
            if events.stop == sim.num_pairs:
                simulate.simulate(folder, sim, workers=1, progress=False)  # writes the manifest
                say(f"{folder.name}: {sim.num_pairs} pairs")
                waiting.discard(folder)
                if not waiting and arms:
                    if any(arm.wait() for arm in arms):
                        raise RuntimeError("a process of impostors failed")
                    arms = []
                    (args.out / "train_ready").touch()
                    say("training sets are ready")
                if folder in testing:
                    tables.append(subprocess.Popen([*own, "--table", folder.name]))
    for one in tables:
        one.wait()
    (args.out / "test_ready").touch()
    say("test sets are ready")


if __name__ == "__main__":
    main()
