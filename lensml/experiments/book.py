"""The book: chapters run and compiled by its own code, which lies in `book/_ext`."""

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from lensml.experiments.notebooks import run_all
from lensml.paths import BOOK, InputError, check_size


@cache
def book_code(name: str) -> ModuleType:
    """The module `book/_ext/<name>.py`: `quotes`, `build`, `chapters` or `explorer`."""
    path = BOOK / "_ext" / f"{name}.py"
    if not path.exists():
        raise InputError(f"{path} is missing; this needs a checkout of lensml with its book")
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
    code = book_code("build")
    if pdf and (missing := code.missing_programs()):
        raise InputError("\n".join(missing))
    if run:
        run_all(size, {}, workers)
    print(f"the book is at {code.compile_book(pdf=pdf).as_uri()}")
