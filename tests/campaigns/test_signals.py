"""Every verb that a signal or its reader ends: a code, one line, no process, a true promise."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sets import epoch_lines, photometry, toy_set

from lensml.cli import VERBS
from lensml.network import load_tensors
from lensml.simulation import Simulation, Survey, save, simulate

ROOT = Path(__file__).resolve().parents[2]
ASKED = os.environ.get("LENSML_CAMPAIGN")
LONGEST = 300  # of one run [s]; the first of a fresh clone compiles
PAGE = "_build/book/_build/html/index.html"
MARK = "LENSML_TEST_RUN"  # of all processes that one verb began, in sessions of their own too
SIGNALS = {  # which, whether to all processes of the group, how often
    "ctrl-c": (signal.SIGINT, True, 1),
    "ctrl-c twice": (signal.SIGINT, True, 2),
    "kill": (signal.SIGTERM, False, 1),
    "timeout": (signal.SIGTERM, True, 1),
    "hang-up": (signal.SIGHUP, True, 1),
}

for ignored in (signal.SIGINT, signal.SIGHUP):  # by a shell that began the tests in its background
    if signal.getsignal(ignored) == signal.SIG_IGN:  # what is begun here would ignore it as well
        handler = signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL
        signal.signal(ignored, handler)


def shown(text: str) -> list[str]:
    """Lines that a terminal shows of a text with carriage returns and moves of the cursor."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[A|\r|\n|[^\r\n\x1b]+", text):
        if piece == "\x1b[A":
            row = max(0, row - 1)
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        else:
            rest = lines[row][column + len(piece) :]
            lines[row] = lines[row][:column].ljust(column) + piece + rest
            column += len(piece)
    return [line.rstrip() for line in lines if line.strip()]


def kind_of(line: str) -> str:
    """A line without its numbers and rates: the same in runs that took other times."""
    return re.sub(r"\d[\d.,:]*(it/s|s/it)?", "#", line)


def alive(mark: str) -> list[str]:
    """Processes with this mark in their environment, by number and command."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"{folder.name} {command[:100]}")
        except OSError:  # it has ended, or is another user's
            continue
    return found


def catches(process: subprocess.Popen) -> bool:
    """Whether a process has a handler for SIGHUP or SIGTERM, which Python itself has not."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16)
    return any(caught >> (number - 1) & 1 for number in (signal.SIGHUP, signal.SIGTERM))


@dataclass(kw_only=True)
class Case:
    """A verb at work: how to begin it, how to see that it works, what it leaves."""

    arguments: str
    prepare: Callable[[Path], None] = lambda _: None  # what it needs, in its folder
    working: Callable[[Path], bool] = lambda _: True
    made: Callable[[Path], object]  # to compare with that of a run that was not ended
    kept: Callable[[Path], object] | None = None  # None: the folder is as it was before
    flags: str = ""  # that the line names, to go on
    lines: tuple[str, ...] = ()  # for its standard input
    answers: bool = False  # whether it prints answers while it works


def arrays(path: Path) -> dict[str, bytes]:
    """Members of an archive, to the bit."""
    with np.load(path) as file:
        return {name: file[name].tobytes() for name in file.files}


def tensors(folder: Path) -> dict[str, bytes]:
    """All numbers of a run folder, to the bit."""
    found = [load_tensors(folder / f"{name}.safetensors")[0] for name in ("model", "last")]
    made = {f"{i} {k}": v.numpy().tobytes() for i, x in enumerate(found) for k, v in x.items()}
    rows = (folder / "history.csv").read_text().splitlines()
    return made | {"history": [row.rpartition(",")[0] for row in rows]}


def first_epoch(folder: Path) -> str:
    """The first line of a history, whose seconds no other run would take."""
    return (folder / "run" / "history.csv").read_text().splitlines()[1]


def dates(folder: Path, pattern: str) -> dict[str, int]:
    """When the files of a pattern were written; the first two are what a test has waited for."""
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.glob(pattern))[:2]}


def tree(folder: Path) -> dict[str, int]:
    """Files below a folder, hidden ones too, and their sizes; not what tests read from pipes."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("out", "err"))
    return {str(p.relative_to(folder)): p.stat().st_size for p in found}


def some_set(folder: Path, num_pairs: int, num_epochs: int) -> None:
    save(folder / "set.npz", toy_set(num_pairs, num_epochs))


def training_set(folder: Path) -> None:
    survey = Survey(num_epochs=100, sigma=0.02)
    simulation = Simulation(num_pairs=60, survey=survey)
    simulate(folder / "set.npz", simulation, workers=1, progress=False)


def curves(folder: Path) -> None:
    (folder / "curves").mkdir()
    for k in range(10):
        rows = np.stack(photometry(400, k), axis=1)
        np.savetxt(folder / "curves" / f"{k}.csv", rows, delimiter=",", header="time,mag,mag_err")


CHAPTERS = {
    "01_quick": "print(sum(range(size_of[size])))",
    "02_slow": "import time\nfrom pathlib import Path\nPath('begun').touch()\n"
    "while not Path('go').exists():\n    time.sleep(0.05)",
}


def project(folder: Path) -> None:
    """Two chapters, of which the second works until a file is there, and one page of a book."""
    (folder / "notebooks").mkdir()
    for name, code in CHAPTERS.items():
        cells = [
            {"cell_type": "markdown", "id": "a", "metadata": {}, "source": f"# {name}"},
            {"cell_type": "code", "id": "b", "metadata": {"tags": ["parameters"]},
             "source": 'size = "smoke"\nsize_of = {"smoke": 10}', "outputs": [],
             "execution_count": None},
            {"cell_type": "code", "id": "c", "metadata": {}, "source": code, "outputs": [],
             "execution_count": None},
        ]  # fmt: skip
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        notebook = {"cells": cells, "metadata": {"kernelspec": kernel}}
        text = json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5})
        (folder / "notebooks" / f"{name}.ipynb").write_text(text)
    pages = "".join(f"  - file: notebooks/{name}\n" for name in CHAPTERS)
    (folder / "_toc.yml").write_text(f"format: jb-book\nroot: book/index\nchapters:\n{pages}")
    (folder / "_config.yml").write_text("title: a book\nexecute:\n  execute_notebooks: 'off'\n"
                                        "only_build_toc_files: true\n")  # fmt: skip
    (folder / "book").mkdir()
    (folder / "book" / "index.md").write_text("# A book\n")
    code = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "book" / "_ext", folder / "book" / "_ext", ignore=code)
    (folder / "data" / "results").mkdir(parents=True)
    shutil.copyfile(ROOT / "data" / "README.md", folder / "data" / "README.md")


def begun(folder: Path) -> bool:
    return (folder / "notebooks" / "begun").exists()


def first_is_done(folder: Path) -> bool:
    return begun(folder) and (folder / "_build" / "records" / "01_quick.json").exists()


def executed(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "_build" / "notebooks").glob("*.ipynb"))


def copies(folder: Path) -> dict[str, int]:
    return dates(folder, "_build/notebooks/01_quick.ipynb")


def out(folder: Path) -> list[str]:
    return (folder / "out").read_text().splitlines()


CASES = {
    "preflight": Case(
        arguments="preflight", made=lambda folder: [line.split()[0] for line in out(folder)]
    ),
    "simulate": Case(
        arguments="simulate --output set --n_pspl 192 --n_binary 192 --shard_size 32 --workers 2",
        working=lambda folder: (folder / "set" / "part-00001.npz").exists(),
        made=lambda folder: {p.name: arrays(p) for p in (folder / "set").glob("part-*.npz")},
        kept=lambda folder: dates(folder, "set/part-*.npz"),
    ),
    "train": Case(
        arguments="train --data set.npz --output run --epochs 20 --batch_size 16",
        prepare=training_set,
        working=lambda folder: (folder / "run" / "last.safetensors").exists(),
        made=lambda folder: tensors(folder / "run"),
        kept=first_epoch,
        flags="--resume",
    ),
    "evaluate": Case(
        arguments="evaluate --data set.npz --output_dir found",
        prepare=lambda folder: some_set(folder, 4200, 16),
        working=lambda folder: any(folder.glob("found/.parts/[!.]*.npz")),
        made=lambda folder: (
            arrays(folder / "found" / "predictions.npz"),
            json.loads((folder / "found" / "metrics.json").read_text()),
        ),
        kept=lambda folder: any(folder.glob("found/*")),
    ),
    "classify": Case(
        arguments="classify curves --each --json", prepare=curves,
        working=lambda folder: bool(out(folder)), made=out, answers=True,
    ),
    "stream": Case(
        arguments="stream --state state", working=lambda folder: len(out(folder)) >= 1000,
        made=out, kept=lambda _: None, lines=(*epoch_lines(20, 300),), answers=True,
    ),
    "init": Case(
        arguments="init made", working=lambda folder: any(folder.glob(".made.*")),
        made=lambda folder: sorted(tree(folder / "made")),
    ),
    "run": Case(
        arguments="run 02", prepare=project, working=begun, made=executed, kept=lambda _: None
    ),
    "run all": Case(
        arguments="run all", prepare=project, working=first_is_done, made=executed, kept=copies
    ),
    "book": Case(
        arguments="book", prepare=project, working=first_is_done, kept=copies,
        made=lambda folder: (executed(folder), (folder / PAGE).exists()),
    ),
}  # fmt: skip


class Run:
    """A verb in a process group of its own; its answers are read until the reader goes away."""

    def __init__(self, case: Case, folder: Path, *flags: str, whole: bool) -> None:
        self.folder, self.mark = folder, f"{folder}{time.time()}"
        self.gone, self.more = threading.Event(), threading.Event()
        self.lines, self.at_once = case.lines, len(case.lines) if whole else len(case.lines) // 2
        self.whole = whole
        environment = os.environ | {MARK: self.mark, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(ROOT)
        with (folder / "err").open("w") as err:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": err}
            command = [sys.executable, "-m", "lensml", *case.arguments.split(), *flags]
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, start_new_session=True, text=True, **pipes
            )
        (folder / "out").write_text("")
        self.threads = [threading.Thread(target=x) for x in (self._read, self._write)]
        for thread in self.threads:
            thread.start()

    def _read(self) -> None:
        with (self.folder / "out").open("a") as file, self.process.stdout as pipe:
            while not self.gone.is_set() and (line := pipe.readline()):
                file.write(line)
                file.flush()

    def _write(self) -> None:
        with suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write("".join(f"{line}\n" for line in self.lines[: self.at_once]))
            pipe.flush()
            self.more.wait(0 if self.whole else LONGEST)
            pipe.write("".join(f"{line}\n" for line in self.lines[self.at_once :]))
            pipe.flush()
            while not self.whole and self.process.poll() is None:
                time.sleep(0.01)

    def wait_for(self, working: Callable[[Path], bool]) -> bool:
        """Wait until it works; False if it has ended before."""
        deadline = time.time() + LONGEST
        while self.process.poll() is None:
            if catches(self.process) and working(self.folder):
                return True
            assert time.time() < deadline, shown((self.folder / "err").read_bytes().decode())
            time.sleep(0.001)
        return False

    def end(self) -> tuple[int, list[str]]:
        """Exit code, and what a terminal would show of standard error."""
        try:
            code = self.process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        for thread in self.threads:
            thread.join()
        return code, shown((self.folder / "err").read_bytes().decode())

    def left(self) -> list[str]:
        """Processes that are there five seconds after the end."""
        deadline = time.time() + 5
        while (found := alive(self.mark)) and time.time() < deadline:
            time.sleep(0.05)
        return found


def finished(case: Case, folder: Path, *flags: str) -> tuple[list[str], object]:
    """A run to its end: what a terminal shows of standard error, and what was made."""
    if (folder / "notebooks").is_dir():
        (folder / "notebooks" / "go").touch()
    code, lines = Run(case, folder, *flags, whole=True).end()
    assert code in (0, 2 if case.lines and "--state" in case.arguments else 0), lines
    return lines, case.made(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a verb shows and makes where nothing ends it; each is run once."""
    known = {}

    def find(name: str) -> tuple[list[str], object]:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            CASES[name].prepare(folder)
            known[name] = finished(CASES[name], folder)
        return known[name]

    return find


def check_end(run: Run, case: Case, code: int, usual: list[str]) -> str:
    """Exit code, the one line beside those of a run that was not ended, no process; the line."""
    found, lines = run.end()
    assert found == code, lines
    assert not (left := run.left()), left
    own = [line for line in lines if kind_of(line) not in map(kind_of, usual)]
    assert len(own) == 1 and own[0] == lines[-1], lines
    assert own[0].startswith(f"lensml {case.arguments.split()[0]}: ") and own[0].isprintable()
    assert all("100%" in line for line in lines if re.search(r"\d+%\|", line)), lines
    return own[0]


def check_promise(case: Case, folder: Path, before: dict, line: str, expected: object) -> None:
    """What the line says: the command that it names ends well, with the result of one run."""
    answered = len(out(folder))
    if case.kept is None:
        assert "nothing is kept" in line or "closed by the reader" in line
        assert tree(folder) == before
    kept = case.kept and case.kept(folder)
    _, made = finished(case, folder, *case.flags.split())
    assert kept == (case.kept and case.kept(folder))
    if not case.lines:
        assert made == expected
        return
    pairs = [(json.loads(a), json.loads(b)) for a, b in zip(made, expected, strict=True)]
    taken = sum("error" in a for a, _ in pairs)
    assert not any("error" in a for a, _ in pairs[taken:])
    assert taken <= answered or "closed by the reader" in line  # a pipe is lost with its reader
    if (says := re.search(r"after (\d+) lines", line)) is not None:
        assert taken == int(says[1])
    for a, b in pairs[taken:]:
        assert a["p_binary"] == pytest.approx(b["p_binary"], abs=1e-5)


QUICK = ("simulate", "ctrl-c"), ("classify", "closed"), ("stream", "closed"), ("init", "kill")
WAYS = [(name, way) for name in CASES for way in SIGNALS]
WAYS += [(name, "closed") for name, case in CASES.items() if case.answers]


@pytest.mark.parametrize(("name", "way"), [x for x in WAYS if ASKED or x in QUICK])
def test_what_ends_a_verb_at_work(tried, tmp_path, undisturbed, name, way):
    case, (usual, expected) = CASES[name], undisturbed(name)
    case.prepare(tmp_path)
    (tmp_path / "out").touch()
    before = tree(tmp_path)
    number, to_all, times = SIGNALS.get(way, (signal.SIGPIPE, False, 0))
    for _ in range(20):  # `init` may have ended before it was seen at work
        run = Run(case, tmp_path, whole=False)
        if run.wait_for(case.working):
            run.more.set()
            if way == "closed":
                run.gone.set()
            for _ in range(times):
                with suppress(ProcessLookupError):  # the first one has ended it
                    (os.killpg if to_all else os.kill)(run.process.pid, number)
                time.sleep(0.05 * (times > 1))
            break
        run.end()
        shutil.rmtree(tmp_path / "made")
    line = check_end(run, case, 128 + number, usual)
    check_promise(case, tmp_path, before, line, expected)
    tried.answered += 1


def test_every_verb_is_tried():
    assert {case.arguments.split()[0] for case in CASES.values()} == set(VERBS)
