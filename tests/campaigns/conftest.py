"""Campaigns: hostile inputs in great number; `make campaign` runs them for an hour.

LENSML_CAMPAIGN is the number of inputs of each; without it a few are tried, always the same.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from lensml.cli import main

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "data" / "results" / "campaigns.json"
ASKED = os.environ.get("LENSML_CAMPAIGN")
LONGEST = 30  # of one input [s]; the first of a fresh clone compiles, and machines are busy


def hang(*_: object) -> None:
    """What took too long is a fault."""
    raise AssertionError(f"no answer after {LONGEST} s")


signal.signal(signal.SIGALRM, hang)
settings.register_profile(
    "campaign",
    max_examples=int(ASKED or 25),
    derandomize=not ASKED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("campaign")


class Tried:
    """What a campaign has tried: answered, refused, seconds."""

    def __init__(self) -> None:
        self.answered = self.refused = 0
        self.started = time.time()

    def verb(self, *arguments: object) -> str:
        """Run a verb: an answer, or one line and exit code 2; what it printed."""
        out, err = io.StringIO(), io.StringIO()
        signal.alarm(LONGEST)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(x) for x in arguments])
            except SystemExit as stop:  # argparse's own refusal
                code = stop.code
        signal.alarm(0)
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
    if not ASKED or not total:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    kept = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    failed = getattr(request.node, "failed", False)
    kept[request.node.name.removeprefix("test_")] = {
        "tried": total,
        "answered": counts.answered,
        "refused": counts.refused,
        "faults": int(failed),
        "seconds": round(time.time() - counts.started),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
    }
    RECORD.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell the fixture whether its campaign found a fault."""
    report = yield
    if call.when == "call":
        item.failed = report.failed
    return report
