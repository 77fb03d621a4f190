"""The book: chapters run and compiled by its own code, which lies in `book/_ext`."""

import os
import shutil
import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from lensml.experiments.notebooks import JUPYTER, run_all
from lensml.paths import (
    BOOK,
    CHECKOUT,
    NEEDS_PROJECT,
    PACKAGE,
    UMASK,
    InputError,
    check_installed,
    check_size,
    is_project,
    writing,
)

# What a project has; setup.py puts the same into a wheel.
PROJECT_FILES = (
    *("_config.yml", "_toc.yml", "notebooks", "book", "figures", "workflow"),
    *("data/README.md", "data/results", "README.md", "CITATION.cff"),
)
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "records")


@cache
def book_code(name: str) -> ModuleType:
    """The module `book/_ext/<name>.py`: `quotes`, `build`, `chapters` or `explorer`."""
    path = BOOK / "_ext" / f"{name}.py"
    if not path.exists():
        raise InputError(f"{path} is missing; {NEEDS_PROJECT}")
    spec = spec_from_file_location(f"lensml_book_{name}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def make_book(
    size: str = "smoke", workers: int = 0, *, run: bool = True, pdf: bool = False
) -> None:
    """Run all chapters at `size`, `workers` at a time (0: two), compile the book, print where.

    Without `run` the chapters' last copies are used as they are; with `pdf` the book is printed in
    place of the pages, and InputError names each program that this needs and that is missing.
    """
    check_size(size)
    check_installed("notebooks", *JUPYTER, "jupyter_book")
    code = book_code("build")
    if pdf and (missing := code.missing_programs()):
        raise InputError("; ".join(missing))
    if run:
        run_all(size, {}, workers)
    print(f"the book is at {code.compile_book(pdf=pdf).as_uri()}")


def make_project(folder: Path) -> Path:
    """A new project: chapters, book, committed results and figures. InputError if it exists."""
    source = PACKAGE / "project" if (PACKAGE / "project").is_dir() else CHECKOUT
    if not is_project(source):
        raise InputError(f"{source} holds no chapters; install lensml from a wheel or a checkout")
    folder = Path(folder).expanduser().resolve()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; name a new folder")

    def copy(source: Path | str, target: Path | str) -> None:
        with writing(folder):
            shutil.copyfile(source, target)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as beside:
        made = Path(beside) / "project"
        for name in PROJECT_FILES:
            made.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            if (source / name).is_dir():
                shutil.copytree(source / name, made / name, copy_function=copy, ignore=NOT_COPIED)
            elif (source / name).exists():
                copy(source / name, made / name)
        for path in [made, *made.rglob("*")]:  # the source may be read-only
            if path.is_dir():
                path.chmod(0o777 & ~UMASK)
        os.replace(made, folder)  # an empty folder gives way
    return folder
