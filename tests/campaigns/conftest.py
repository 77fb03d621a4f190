"""Campaigns: hostile inputs in great number; `make campaign` runs many.

LENSML_CAMPAIGN is the number of inputs of each; without it a few are tried, always the same.
Counts, the slowest input and the memory of the process go to data/results/campaigns.json.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from lensml.cli import main

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "data" / "results" / "campaigns.json"
ASKED = os.environ.get("LENSML_CAMPAIGN")
INPUTS = int(ASKED or 25)
PORTION = 2000  # inputs of one search: Hypothesis remembers each of them
ROWS: dict[str, list[dict]] = {}  # of this session: campaign -> one of each of its parameters
HIGHEST = {"slowest", "memory"}  # of them; all else is summed
LONGEST = 30  # of one input [s], on a busy machine
MAX_SECONDS, MAX_MEMORY = 5, 1000  # processor time of any other input [s]; of the process [MB]


def hang(*_: object) -> None:
    """What took too long is a fault."""
    raise AssertionError("no answer in time")


signal.signal(signal.SIGALRM, hang)
settings.register_profile(
    "campaign",
    max_examples=min(INPUTS, PORTION),
    derandomize=not ASKED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("campaign")


class Tried:
    """What a campaign has tried: answered, refused, seconds, those of the slowest input."""

    def __init__(self) -> None:
        self.answered = self.refused = 0
        self.started = time.time()
        self.slowest = self._inputs = 0

    def search(self, run: Callable[[], None], lines: int = 1) -> None:
        """Call a search of Hypothesis until it has tried all inputs, `lines` of them at a time."""
        for _ in range(-(-INPUTS // (PORTION * lines))):
            run()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """An input; it has to end, and any but the first in MAX_SECONDS of processor time."""
        started = time.process_time()
        signal.alarm(LONGEST if self._inputs else 10 * LONGEST)  # the first one compiles
        try:
            yield
        finally:
            signal.alarm(0)
            took = time.process_time() - started
            self._inputs += 1
            if self._inputs > 1:
                self.slowest = max(self.slowest, took)
                assert took < MAX_SECONDS, f"an input took {took:.1f} s"

    def verb(self, *arguments: object) -> str:
        """Run a verb: an answer, or one line and exit code 2; what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with self.one(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(x) for x in arguments])
            except SystemExit as stop:  # argparse's own refusal
                code = stop.code
        lines = err.getvalue().splitlines()
        assert code in (0, 2), (code, lines)
        if code == 2:
            self.refused += 1
            assert len(lines) == 1 and lines[0].isprintable(), lines
        else:
            self.answered += 1
            assert all(line.isprintable() for line in lines), lines
        return out.getvalue()


@pytest.fixture(autouse=True)
def small_numbers():
    """Training lets the processor flush denormal numbers, which Hypothesis needs."""
    torch.set_flush_denormal(False)


@pytest.fixture
def tried(request):
    """Counts of a campaign, kept in the record where one was asked for."""
    counts = Tried()
    yield counts
    total = counts.answered + counts.refused
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # [MB], so far
    if not ASKED or not total:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    name = request.function.__name__.removeprefix("test_")
    rows = ROWS.setdefault(name, [])
    rows.append({
        "tried": total,
        "answered": counts.answered,
        "refused": counts.refused,
        "faults": int(getattr(request.node, "failed", False)),
        "seconds": round(time.time() - counts.started),
        "slowest": round(counts.slowest, 2),
        "memory": round(memory),
    })  # fmt: skip
    kept[name] = {
        **{key: (max if key in HIGHEST else sum)(row[key] for row in rows) for key in rows[0]},
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
    }
    RECORD.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    assert memory < MAX_MEMORY, f"{memory:.0f} MB"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell the fixture whether its campaign found a fault."""
    report = yield
    if call.when == "call":
        item.failed = report.failed
    return report
