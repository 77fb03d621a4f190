"""Where things live, at which commit, and how a file is written without being half there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
RESULTS = DATA / "results"
BUILD = ROOT / "_build"
WEIGHTS = PACKAGE / "weights"
SIZES = ("smoke", "desk", "full")  # in rising order of what a number is worth


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line with the way out."""


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `final`, renamed to it only if no error occurred.

    A process killed half-way leaves either the old file or the new one, never a torn one.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp{final.suffix}")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def available_cores() -> int:
    """Cores this process may use, which a batch system makes fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_size(size: str) -> str:
    """Reject a size that no preset knows."""
    if size not in SIZES:
        raise InputError(f"`size` is {size!r}, but one of {', '.join(SIZES)} was expected")
    return size


def git_commit() -> str:
    """Commit of the checkout the package lies in, `unknown` outside one."""
    head = ROOT / ".git" / "HEAD"
    try:
        text = head.read_text().strip()
        if not text.startswith("ref: "):
            return text
        ref = text[5:]
        loose = ROOT / ".git" / ref
        if loose.exists():
            return loose.read_text().strip()
        packed = (ROOT / ".git" / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(ref)), "unknown")
    except OSError:
        return "unknown"
