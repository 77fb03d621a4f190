"""Execute chapters with papermill: check parameters, refuse errors, record results."""

import ast
import hashlib
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch  # its `dict` sets variables for a while

from lensml.experiments.machine import OUTPUT_VARIABLE, provenance
from lensml.paths import (
    BOOK,
    BUILD,
    NOTEBOOKS,
    PACKAGE,
    ROOT,
    WEIGHTS,
    InputError,
    atomic_path,
    available_cores,
    check_installed,
    check_project,
    check_size,
    deaf,
    progress_bar,
)

EXECUTED = BUILD / "notebooks"  # the chapters as papermill left them
LOGS = BUILD / "logs"
RECORDS = BUILD / "records"  # one JSON a chapter: what the status page shows
JUPYTER = ("papermill", "ipykernel", "IPython", "ipywidgets")  # what a chapter needs to run
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ChapterError(Exception):
    """A chapter did not run to its end; the message says which cell and where the log is."""


def chapter_names() -> list[str]:
    """File stems of all chapters in their order; InputError where there is no project."""
    check_project()
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def find_chapter(name: str) -> str:
    """File stem of the chapter that `name` means: "2", "02", "02_baseline" or a path to it."""
    wanted = Path(name).stem
    number = wanted.zfill(2) if wanted.isdigit() else None
    for stem in chapter_names():
        if stem == wanted or stem[:2] == number:
            return stem
    raise InputError(
        f"chapter {name!r} does not exist; expected all or one of {', '.join(chapter_names())}"
    )


def run(
    chapter: str, size: str = "smoke", parameters: Mapping[str, Any] | None = None, workers: int = 0
) -> None:
    """Run one chapter (as `find_chapter` understands it), or "all" of them, at one of SIZES.

    `parameters`, of the chapter's `parameters` cell, keep a run out of `data/results`; `workers`
    chapters run at a time, 0 for two. Chapters that fail end in SystemExit, one line each.
    """
    check_size(size)
    check_installed("notebooks", *JUPYTER)
    values = {name: literal(value) for name, value in (parameters or {}).items()}
    if chapter == "all":
        run_all(size, values, workers)
        return
    try:
        run_chapter(find_chapter(chapter), size, values, progress=True)
    except ChapterError as error:
        raise SystemExit(str(error)) from None


def literal(value: Any) -> Any:
    """Read a command-line string as the Python literal it spells, or leave it a string.

    Tuples become lists. What JSON cannot hold, papermill could write as code: an InputError.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of an escape that Python does not know
            value = ast.literal_eval(value) if isinstance(value, str) else value
        return json.loads(json.dumps(value, allow_nan=False))
    except (ValueError, SyntaxError):
        if not isinstance(value, str):
            raise InputError(f"a parameter is {value!r}; a finite number was expected") from None
        return value
    except (RecursionError, MemoryError):
        raise InputError("a parameter is nested too deeply; give a number, text or list") from None
    except TypeError:
        raise InputError(
            "a parameter holds a value that is none of: number, text, True, False, None, list, "
            f"dict with names as keys; its type is {type(value).__name__}"
        ) from None


def check_parameters(name: str, parameters: Iterable[str]) -> None:
    """Refuse names that the chapter's `parameters` cell does not set; papermill would not."""
    from papermill import inspect_notebook

    known = list(inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb")))
    if "size" in parameters:
        raise InputError("parameter 'size' was given with -p; use --size for it")
    for unknown in sorted(set(parameters) - set(known)):
        raise InputError(
            f"chapter {name} has no parameter {unknown!r}; it knows {', '.join(known) or 'none'}"
        )


def run_chapter(
    name: str, size: str, parameters: Mapping[str, Any], *, progress: bool = False
) -> float:
    """Wall time of one chapter in a fresh kernel [s]; its copy appears whole or not at all.

    A cell that fails is a ChapterError, and the copy up to there stays beside the log.
    """
    from papermill import execute_notebook
    from papermill.exceptions import PapermillException

    check_parameters(name, parameters)
    final, log = EXECUTED / f"{name}.ipynb", LOGS / f"{name}.log"
    failed = LOGS / f"{name}.failed.ipynb"
    started, key = time.time(), chapter_fingerprint(name, size, parameters)
    LOGS.mkdir(parents=True, exist_ok=True)
    changes = {"TQDM_DISABLE": "1"}  # of the kernel's own bars
    if parameters:
        changes[OUTPUT_VARIABLE] = str(BUILD / "custom")
    with logged(log), patch.dict(os.environ, changes):
        try:
            with atomic_path(final) as temporary:
                execute_notebook(
                    str(NOTEBOOKS / f"{name}.ipynb"),
                    str(failed),
                    parameters={**parameters, "size": size},
                    cwd=str(NOTEBOOKS),
                    kernel_name="python3",
                    start_timeout=600,  # a busy machine needs more than the usual minute
                    progress_bar={"desc": name} if progress else False,
                    log_output=True,
                    extra_arguments=["--log-level=CRITICAL"],  # no remarks of the kernel's own
                )
                if errors := error_outputs(failed):
                    raise ChapterError(errors[0])
                shutil.copyfile(failed, temporary)
        except (PapermillException, ChapterError, RuntimeError) as error:
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # without terminal colours
            last = text.splitlines()[-1] if text else type(error).__name__  # of a traceback
            why = f"{name}: {last}; log {log}, copy up to the error {failed}"
            raise ChapterError(why) from None
    failed.unlink()
    line = provenance(size=size, seed=(), started=started)  # of the status page
    with atomic_path(RECORDS / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({**line, "parameters": dict(parameters), "key": key}))
    return time.time() - started


def error_outputs(path: Path) -> list[str]:
    """Errors saved in an executed notebook; the book would print them without a warning."""
    return [
        f"cell {i} ended in {output['ename']}: {output['evalue']}"
        for i, cell in enumerate(json.loads(path.read_text())["cells"])
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]


@contextmanager
def logged(path: Path):
    """Send papermill's account of the run, with all output of the cells, to `path`."""
    logger, handler = logging.getLogger("papermill"), logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def chapter_fingerprint(name: str, size: str, parameters: Mapping[str, Any]) -> str:
    """Digest of all that decides what a chapter shows: itself, package, weights, book's code."""
    digest = hashlib.sha256(json.dumps([size, dict(parameters)], sort_keys=True).encode())
    digest.update((NOTEBOOKS / f"{name}.ipynb").read_bytes())
    files = [*PACKAGE.rglob("*.py"), *BOOK.glob("_ext/*.py"), *WEIGHTS.rglob("*")]
    for path in sorted(path for path in files if path.is_file()):
        home = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
        digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def read_record(name: str) -> dict[str, Any]:
    """What the last run of a chapter recorded; empty before the first."""
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def is_current(name: str, size: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the executed copy was made by exactly this chapter, package and arguments."""
    executed = EXECUTED / f"{name}.ipynb"
    return executed.exists() and read_record(name).get("key") == chapter_fingerprint(
        name, size, parameters
    )


def run_all(size: str, parameters: Mapping[str, Any], workers: int) -> None:
    """Run all chapters that are not current, several at a time; failures come at the end."""
    names = chapter_names()
    for name in names:
        check_parameters(name, parameters)
    todo = [name for name in names if not is_current(name, size, parameters)]
    if kept := [name for name in names if name not in todo]:
        print(f"kept, unchanged since their last run at this size: {', '.join(kept)}")
    # The longest first, so that no worker waits at the end for one late long chapter.
    todo.sort(key=lambda name: -read_record(name).get("wall_time_s", 1e9))
    workers = workers or min(2, available_cores())
    threads = max(1, available_cores() // workers)
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
    failures = []
    # A spawned worker has imported nothing yet, so the thread limits reach all libraries.
    with patch.dict(os.environ, limits), deaf():
        pool = ProcessPoolExecutor(workers, get_context("spawn"))
        jobs = {pool.submit(run_chapter, name, size, parameters): name for name in todo}
    options = {"total": len(jobs), "delay": 0, "leave": True}
    with pool:
        try:
            for job in (bar := progress_bar(as_completed(jobs), f"chapters, {size}", **options)):
                try:
                    bar.write(f"{jobs[job]:24s} {job.result():7.0f} s")
                except ChapterError as error:
                    failures.append(str(error))
                    bar.write(str(error))
        except BaseException:  # no chapter is waited for; a kernel ends with who began it
            for process in list(pool._processes.values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise SystemExit(f"{len(failures)} of {len(jobs)} chapters failed\n" + "\n".join(failures))
