"""Where things live, and how a file is written without ever being half there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "BOOK",
    "BUILD",
    "DATA",
    "FIGURES",
    "InputError",
    "NOTEBOOKS",
    "RESULTS",
    "ROOT",
    "WEIGHTS",
    "atomic_path",
]

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"
DATA = ROOT / "data"
FIGURES = ROOT / "figures"
RESULTS = DATA / "results"
BUILD = ROOT / "_build"
WEIGHTS = PACKAGE / "weights"


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line with the way out."""


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """Yield a name beside `final`; what is written there takes its place only when all went well.

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
