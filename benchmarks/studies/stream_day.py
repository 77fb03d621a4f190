"""A day of a stream: more events than memory holds, restarts, and the answers of a whole run.

    python -m benchmarks.studies.stream_day [--lines 200000] [--events 2000] [--memory 500]

Epochs of events in random order go through a stream that keeps `--memory` events in memory and is
killed without a word after each of `--restarts` parts; it goes on from its last snapshot, half a
part ago, and the lines after it are fed again. The answers are compared with those of a stream
that holds all events and never stops. The size of a night of Rubin, ten million lines of 100,000
events, takes a day on two cores; it has not been run.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lensml.network import load_network
from lensml.streaming import StreamingClassifier

BATCH = 1000


def epochs(events: int, lines: int, first: int, stop: int) -> Iterator[tuple]:
    """Batches `first` to `stop` of BATCH lines as columns: events, times, magnitudes, errors."""
    for k in range(first, stop):
        draw = np.random.default_rng([k, events])
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


def main(arguments: list[str] | None = None) -> dict:
    """Run both streams and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("lines", 200_000), ("events", 2000), ("memory", 500), ("restarts", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(arguments)
    network, batches = load_network()[0], -(-args.lines // BATCH)
    edges = np.linspace(0, batches, args.restarts + 2).astype(int).tolist()
    answers, used, started = {}, [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        state, store = Path(folder, "state"), Path(folder, "state.events")
        begin = 0
        for part, stop in enumerate(edges[1:]):
            stream = StreamingClassifier(network, max_events=args.memory, store=store)
            if part:
                stream.restore(state)
            middle = max(begin + 1, (begin + stop) // 2) if stop < batches else stop
            columns = epochs(args.events, args.lines, begin, stop)
            for k, batch in enumerate(columns, begin):
                answers[k], problems = stream.update_many(*batch)
                assert not problems, problems
                if k + 1 == middle:
                    stream.save(state)
            used.append(memory())
            begin = middle
        size = store.stat().st_blocks * 512 / 1e6
    seconds = time.perf_counter() - started
    whole = StreamingClassifier(network)
    furthest = max(
        float(np.abs(answers[k] - whole.update_many(*batch)[0]).max())
        for k, batch in enumerate(epochs(args.events, args.lines, 0, batches))
    )
    found = vars(args) | {
        "largest difference of P": furthest,
        "memory after each part [MB]": [round(x) for x in used],
        "events on disk [MB]": round(size, 1),
        "lines a second": round(args.lines / seconds),
    }
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
