"""Where things live, at which commit, and how a file is written without being half there."""

import ctypes
import fcntl
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

from lensml.limits import MAX_JSON

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent  # of the package, where it is not installed by itself
PROJECT, CACHE = "LENSML_PROJECT", "LENSML_DATA"  # environment variables
NEEDS_PROJECT = "`lensml init FOLDER` makes one; go there, or set " + PROJECT


def is_project(folder: Path) -> bool:
    """Whether chapters and the book can be run in a folder."""
    return (folder / "notebooks").is_dir() and (folder / "_toc.yml").is_file()


def find_project() -> Path | None:
    """The project's folder: of the environment, else the nearest above the working folder.

    Else the checkout that the package lies in; None without one.
    """
    if named := os.environ.get(PROJECT):
        return Path(named).expanduser().resolve()
    here = Path.cwd()
    return next((x for x in (here, *here.parents, CHECKOUT) if is_project(x)), None)


ROOT = find_project() or Path.cwd()
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


def printable(text: object) -> str:
    """A text on one line: line ends and what a terminal would act on, escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def regular_file(path: Path) -> Path:
    """The path of a file, or of nothing; InputError where a pipe or device would be opened."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or device"
        raise InputError(f"{path} is {what}; a file was expected")
    return path


def check_keys(value: Any, wanted: Mapping[str, type | tuple], label: object) -> dict:
    """`value`, an object that has each key of `wanted` with a value of that type.

    A type or several, by key; one whose name ends in `?` may be missing. InputError otherwise.
    """
    if not isinstance(value, dict):
        raise InputError(f"{label}: {type(value).__name__} came, a JSON object was expected")
    for key, kind in wanted.items():
        name, kinds = key.removesuffix("?"), kind if isinstance(kind, tuple) else (kind,)
        if name not in value and key != name:
            continue
        found = value.get(name)
        # bool is a kind of int for Python, but no number.
        if not isinstance(found, kinds) or isinstance(found, bool) and bool not in kinds:
            expected = " or ".join(x.__name__ for x in kinds)
            shown = "nothing" if name not in value else repr(found)[:60]
            raise InputError(f"{label}: `{name}` is {shown}, but {expected} was expected")
    return value


def parse_json(text: str | bytes, wanted: Mapping[str, type | tuple], label: object) -> dict:
    """A JSON object in the way of `check_keys`; InputError where the text is none."""
    try:
        if len(text) > MAX_JSON:
            raise ValueError(f"{len(text)} characters, {MAX_JSON} at most")
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{label}: no JSON that can be read ({error})") from None
    return check_keys(found, wanted, label)


def read_json(path: Path, wanted: Mapping[str, type | tuple]) -> dict:
    """The JSON object in a file, in the way of `parse_json`."""
    try:
        with regular_file(path).open("rb") as file:
            text = file.read(MAX_JSON + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_json(text, wanted, path)


@contextmanager
def writing(final: Path | str) -> Iterator[None]:
    """InputError in one line where `final` cannot be written, as on a full disk."""
    if not Path(final).name:
        raise InputError(f"{str(final)!r} names no file or folder to write; give a name")
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"{final}: cannot be written ({why}); make room, or name another place"
        ) from None


def check_project() -> None:
    """InputError where there is no project, with the way to one."""
    if not is_project(ROOT):
        raise InputError(f"{ROOT} is no project (notebooks/ and _toc.yml); {NEEDS_PROJECT}")


def check_installed(extra: str, *modules: str) -> None:
    """InputError where a module of an extra of the package is missing, with the way to it."""
    if missing := [name for name in modules if find_spec(name) is None]:
        way = f"`pip install 'lensml[{extra}]'` brings what this needs"
        raise InputError(f"{', '.join(missing)} not installed; {way}")


def cached_path(*parts: str) -> Path:
    """A file below `data`: in the cache that many use, if it is there or may be written there.

    The cache is LENSML_DATA. A set of shards is there once its manifest is.
    """
    own = DATA.joinpath(*parts)
    if not (cache := os.environ.get(CACHE)):
        return own
    shared = Path(cache, *parts)
    if shared.is_file() or (shared / "manifest.json").exists():
        return shared
    return shared if os.access(cache, os.W_OK) else own


UMASK = os.umask(0)
os.umask(UMASK)  # there is no other way to read it


@contextmanager
def atomic_path(final: Path | str) -> Iterator[Path]:
    """Yield a name in a temporary folder beside `final`; if no error occurred, rename it.

    A process killed half-way leaves the old file or the new one, never a torn one, a machine that
    loses power the same. Its mode is the umask's; what a library adds goes with the folder.
    """
    final = Path(final)
    own = f"{socket.gethostname()}.{os.getpid()}"  # others may write to the same disk
    with writing(final):
        temporary = final.with_name(f".{final.name}.{own}.tmp") / final.name
        regular_file(final)
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        try:
            temporary.parent.mkdir(exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~UMASK)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary.parent, ignore_errors=True)


def _remove_leftovers(final: Path) -> None:
    """Remove temporary folders for `final` of processes of this machine that were killed."""
    begin = f".{final.name}.{socket.gethostname()}."
    for path in final.parent.glob(f"{glob.escape(begin)}*.tmp"):
        process = path.name.removeprefix(begin).partition(".")[0]
        with suppress(OSError, ValueError):
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def only_writer(target: Path, *, wait: bool = False, among: bool = False) -> Iterator[None]:
    """Hold `target`, a file or folder to be written; InputError if another process holds it.

    `wait`: until that one is done. `among`: beside others that hold it so. What a killed process
    held is free, for the lock is the system's (`flock`), not the file's.
    """
    with writing(target):
        path = target.with_name(f".{target.name}.lock")
        made = [x for x in target.parents if not x.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
    kind = (fcntl.LOCK_SH if among else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        with writing(target):
            file = path.open("a+")
        with file:
            try:
                fcntl.flock(file, kind)
            except BlockingIOError:
                file.seek(0)
                who = file.read().strip() or "another process"
                raise InputError(
                    f"{target}: {who} is writing there; wait for it, or name another output"
                ) from None
            try:
                if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    continue  # the one before has just removed it
            except FileNotFoundError:
                continue
            with writing(target):
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            try:
                yield
            finally:
                if not among:
                    path.unlink(missing_ok=True)
                for folder in made:  # that nothing was written to
                    with suppress(OSError):
                        folder.rmdir()
            return


@contextmanager
def deaf(*more: int) -> Iterator[None]:
    """Processes begun here get no signal of a terminal, nor `more`: who began them ends them."""
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")  # its children's
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    resource_tracker.ensure_running()  # it undoes a mask of SIGINT, and ignores it by itself
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *more})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """Cores this process may use, which a batch system makes fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def tune_allocator() -> None:
    """Let glibc, if any, keep the pages that are freed: clearing others takes 10 % of a run."""
    try:
        setting = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
        setting(option, value)


def renew_compiled(file: str, *needed: str) -> None:
    """Date a module no older than modules whose compiled functions it calls.

    Numba keeps what it compiled by the date of the calling module alone, and the calls are inlined:
    without this a change of the others would not be seen. It opens an older index before it looks
    at the date, and fails if a type in it has moved: such an index is removed.
    """
    path = Path(file)
    latest = max(Path(x).stat().st_mtime for x in needed)
    with suppress(OSError):  # an installation that cannot be written is not edited either
        if path.stat().st_mtime < latest:
            os.utime(file, (latest, latest))
        for index in (path.parent / "__pycache__").glob(f"{path.stem}.*.nbi"):
            if index.stat().st_mtime < path.stat().st_mtime:
                index.unlink()


def check_size(size: str) -> str:
    """Reject a size that no preset knows."""
    if size not in SIZES:
        raise InputError(f"`size` is {size!r}, but one of {', '.join(SIZES)} was expected")
    return size


def git(*arguments: str, folder: Path | None = None) -> str:
    """Output of a git command in a checkout, also one of another user; empty outside of one.

    `folder` None: the checkout that the package lies in.
    """
    folder = folder or CHECKOUT
    if not (folder / ".git").exists():
        return ""
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 30, "check": True}
    trusted = ("-c", f"safe.directory={folder}")
    try:
        return subprocess.run(["git", *trusted, *arguments], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


@cache
def git_commit() -> str:
    """Commit of the code: of its checkout when it was first asked for, else of its build."""
    built = PACKAGE / "commit.txt"  # written by setup.py
    found = git("rev-parse", "HEAD")
    return found or (built.read_text().strip() if built.exists() else "unknown")


@cache
def _bar_class() -> type["tqdm"]:
    from tqdm import tqdm  # late: a quarter of the time that `lensml --version` would take

    class Bar(tqdm):
        def close(self) -> None:
            if not hasattr(self, "start_t"):  # disabled, or a signal came while it was made
                return
            self.leave = self.leave and self.n == self.total  # nothing stays of what was ended
            shown = self.last_print_t >= self.start_t + self.delay
            super().close()
            if shown and not self.leave:  # a bar below another leaves the cursor at its end
                self.fp.write("\r")

    Bar.set_lock(RLock())  # the usual one begins the resource tracker, outside of `deaf`
    return Bar


def progress_bar(items: Iterable | None, label: str, **options: Any) -> "tqdm":
    """`items` with a bar from the first second on; none in the copies that `run` makes.

    On standard error, or in JupyterLab, which would keep that in red, on standard output.
    """
    options = {"delay": 1, "leave": False} | options
    options["disable"] = options.get("disable", False) or "TQDM_DISABLE" in os.environ
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    return _bar_class()(items, label, file=stream, **options)
