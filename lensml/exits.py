"""How a verb ends: an exit code and one line on standard error, whatever went wrong."""

import logging
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from lensml.paths import InputError, printable

OK, FAILED, BAD_INPUT = 0, 1, 2
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP  # end a verb, code 128 + number
RESUMES = {  # what is true after a verb was ended
    "simulate": "the same command goes on from the shards that are whole",
    "evaluate": "predictions of whole parts of a large set are kept; the same command goes on",
    "train": "the same command with --resume goes on from the last whole epoch",
    "run": "chapters that were done are kept; the same command runs the others",
    "book": "chapters that were done are kept; the same command runs the others",
    "stream": "the last snapshot of --state, if it was given, is whole",
}


class Ended(BaseException):
    """A signal came, whose number is the argument."""


def say(verb: str, text: object, code: int) -> int:
    """Print one line on standard error, if it is still read, in the place of bars; the code."""
    with suppress(OSError, ValueError):
        for bar in list(getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())):
            bar.leave = False
            bar.close()
        print(f"lensml {verb}: {printable(text)}", file=sys.stderr, flush=True)
    return code


def _interrupted(verb: str, number: int) -> int:
    name = signal.Signals(number).name
    way = RESUMES.get(verb, "nothing is kept of it")
    return say(verb, f"interrupted ({name}); {way}", 128 + number)


@contextmanager
def _on_signals(verb: str) -> Iterator[None]:
    """Raise `Ended` where a signal comes; at an import, which it could break, end at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        for other in SIGNALS:  # the second one does not break what the first one lets go
            signal.signal(other, signal.SIG_IGN)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os._exit(_interrupted(verb, number))
            frame = frame.f_back
        raise Ended(number)

    try:
        kinds = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        before = {s: signal.signal(s, handle) for s in kinds}
    except ValueError:  # only the main thread may ask for signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != signal.SIG_IGN:  # else one came: the end is near
                signal.signal(number, handler)


def _open_streams(verb: str) -> int:
    """Refuse a closed standard output; what else is closed becomes the null device."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # its number would go to the next file that is opened
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
            if name == "stdout" or name == "stdin" and verb == "stream":
                return say(verb, f"{name} is closed; an open one was expected", BAD_INPUT)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w"))
    return OK


def _mute() -> None:
    """Let nothing more be written to standard output, which would fail again at the end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unforeseen(verb: str, error: BaseException) -> int:
    """One line with the path of a log that holds the traceback."""
    where = "no log could be written"
    with suppress(OSError):
        number, where = tempfile.mkstemp(prefix=f"lensml-{verb}-", suffix=".log")
        with open(number, "w", errors="backslashreplace") as log:
            traceback.print_exception(error, file=log)
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return say(verb, f"{what}; an error of the program, please report it with {where}", FAILED)


def guarded(verb: str, function: Callable[[], int | None]) -> int:
    """Exit code of a verb: 0, 1, 2, or 128 + the number of the signal that ended it."""
    if code := _open_streams(verb):
        return code
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of numbers that the answers' warnings speak of
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with _on_signals(verb):
            code = function() or OK
            sys.stdout.flush()
            return code
    except (Ended, KeyboardInterrupt) as ended:
        _mute()
        return _interrupted(verb, (*ended.args, signal.SIGINT)[0])
    except BrokenPipeError:
        _mute()
        way = f"; {RESUMES[verb]}" if verb in RESUMES else ""
        return say(verb, f"its output was closed by the reader{way}", 128 + signal.SIGPIPE)
    except InputError as error:
        return say(verb, error, BAD_INPUT)
    except OSError as error:
        _mute()
        if error.errno is None:
            return _unforeseen(verb, error)
        what = f"{error.filename or 'its output'}: {error.strerror}"
        return say(verb, f"{what}; make room, or name another place", BAD_INPUT)
    except Exception as error:
        return _unforeseen(verb, error)
