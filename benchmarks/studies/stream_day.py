"""A day of a stream: more events than memory holds, kills, and the answers of a whole run.

    python -m benchmarks.studies.stream_day [--lines 10000000] [--events 100000] [--memory 5000]

Epochs of events in random order go through a stream that keeps `--memory` events in memory and its
snapshots on disk, in a process that is killed `--kills` times at any moment; the next one goes on
from the last snapshot, and the lines after it are fed again. All answers are compared with those of
a stream that holds all events in memory and never stops. `--quick` is a small day.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.record import save_record
from lensml.network import load_network
from lensml.paths import progress_bar
from lensml.streaming import StreamingClassifier

BATCH, EVERY = 1000, 50  # lines of a call; calls between two snapshots
SEED = 0
QUICK = ["--lines", "20000", "--events", "60", "--memory", "20", "--kills", "1", "--every", "2"]


def epochs(events: int, lines: int, first: int) -> Iterator[tuple]:
    """Batches of BATCH lines from `first` on, as columns: events, times, magnitudes, errors."""
    for k in range(first, -(-lines // BATCH)):
        draw = np.random.default_rng([SEED, k, events])
        size = min(BATCH, lines - k * BATCH)
        chosen = draw.choice(events, size, replace=size > events)
        times = k + np.arange(size) / size
        mags = 18 - 1.5 * np.exp(-(((times - lines / BATCH / 2) / 20) ** 2) - chosen % 7)
        names = [f"e{i}" for i in chosen.tolist()]
        yield names, times, mags + draw.normal(0, 0.02, size), np.full(size, 0.02)


def memory() -> float:
    """Resident memory now [MB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def follow(folder: Path, lines: int, events: int, kept: int, every: int) -> None:
    """Go on from the last snapshot to the end; answers and a line of a log for each batch."""
    state = folder / "state"
    stream = StreamingClassifier(max_events=kept, store=Path(f"{state}.events"))
    if state.exists():
        stream.restore(state)
    answers = np.memmap(folder / "answers", float, "r+", shape=lines)
    first = stream.lines // BATCH
    with (folder / "log").open("a", buffering=1) as log:
        for k, columns in enumerate(epochs(events, lines, first), first):
            found, problems = stream.update_many(*columns)
            assert not problems, problems
            answers[stream.lines : stream.lines + len(found)] = found
            stream.lines += len(found)
            if k % every == every - 1:
                stream.save(state)
            log.write(f"{k + 1} {memory():.0f}\n")


def run(folder: Path, args: argparse.Namespace) -> int:
    """Follow all lines, killed and begun again on the way; how often it was killed at work."""
    batches, log, context = -(-args.lines // BATCH), folder / "log", get_context("spawn")
    np.memmap(folder / "answers", float, "w+", shape=args.lines)[:] = np.nan
    log.touch()
    draw, kills = random.Random(SEED), 0
    moments = sorted(draw.randrange(1, batches) for _ in range(args.kills))
    with progress_bar(None, "stream", total=batches) as bar:
        for moment in [*moments, batches]:
            work = args.lines, args.events, args.memory, args.every
            process = context.Process(target=follow, args=(folder, *work))
            process.start()
            while process.is_alive():
                rows = log.read_text().splitlines()
                done = int(rows[-1].split()[0]) if rows else 0
                bar.update(done - bar.n)
                if moment <= done < batches and process.is_alive():
                    time.sleep(draw.uniform(0, 0.02))
                    os.kill(process.pid, signal.SIGKILL)
                process.join(0.02)
            kills += process.exitcode == -signal.SIGKILL
            if process.exitcode not in (0, -signal.SIGKILL):
                raise RuntimeError(f"the stream ended with code {process.exitcode}")
    return kills


def compare(folder: Path, args: argparse.Namespace) -> tuple[float, int]:
    """Largest difference of P from a stream that holds all events and never stops; how many."""
    answers = np.memmap(folder / "answers", float, "r", shape=args.lines)
    whole, furthest = StreamingClassifier(load_network()[0], max_events=args.events), 0.0
    number = 0
    batches = progress_bar(range(0, args.lines, BATCH), "compare")
    for begin, columns in zip(batches, epochs(args.events, args.lines, 0), strict=True):
        found = whole.update_many(*columns)[0]
        differs = np.abs(answers[begin : begin + len(found)] - found)
        assert not np.isnan(differs).any(), "a line without an answer"
        furthest, number = max(furthest, float(differs.max())), number + int((differs > 0).sum())
    return furthest, number


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run both streams, print and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sizes = {"lines": 10_000_000, "events": 100_000, "memory": 5_000, "kills": 9, "every": EVERY}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--quick", action="store_true", help="a small day, kept in _build only")
    args = parser.parse_args(arguments)
    if args.quick:
        args = parser.parse_args(["--quick", *QUICK])
    started = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kills = run(folder, args)
        seconds = time.time() - started
        rows = np.loadtxt(folder / "log", ndmin=2)
        size = (folder / "state.events").stat().st_blocks * 512 / 1e9
        furthest, number = compare(folder, args)
    done, used = rows.T
    full = used[done * BATCH > 2 * args.memory]  # since memory holds as many events as it may
    begin, end = full[: len(full) // 4], full[-len(full) // 4 :]
    found = {
        "lines": args.lines, "events": args.events, "events_in_memory": args.memory,
        "kills": kills,
        "lines_fed_again": (len(rows) - int(done[-1])) * BATCH,
        "largest_difference_of_p": furthest, "lines_that_differ": number,
        "memory_first_quarter_mb": float(np.median(begin)),
        "memory_last_quarter_mb": float(np.median(end)), "memory_highest_mb": float(used.max()),
        "events_on_disk_gb": round(size, 2), "lines_per_s": round(len(rows) * BATCH / seconds),
        "seconds": round(seconds),
    }  # fmt: skip
    step = max(1, len(rows) // 200)
    curve = [[int(k) * BATCH, float(x)] for k, x in rows[::step]]
    marks = {"largest_difference_of_p": "<= 1e-5", "kills": f">= {args.kills}"}
    save_record("stream_day", found, marks, seed=SEED, started=started, quick=args.quick,
                memory_mb_after_lines=curve)  # fmt: skip
    return found


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
