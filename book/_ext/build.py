"""Executed chapters and prose, laid out and compiled into the book by jupyter-book."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lensml.experiments import (
    EXECUTED,
    LOGS,
    RECORDS,
    book_code,
    chapter_names,
    load_results,
    read_record,
    write_json,
)
from lensml.paths import BOOK, BUILD, DATA, FIGURES, ROOT, WEIGHTS, InputError

STAGE = BUILD / "book"  # mirrors the repository, so that launch buttons point at committed sources
CARDS = {"lensml/weights/README.md": WEIGHTS / "README.md", "data/README.md": DATA / "README.md"}
PRINTING = {  # programs and modules that a PDF needs, and what brings them
    "latexmk": "apt-get install latexmk texlive-latex-extra texlive-fonts-extra",
    "xelatex": "apt-get install texlive-xetex fonts-freefont-otf",
    "rsvg-convert": "apt-get install librsvg2-bin",
    "sphinxcontrib.rsvgconverter": "pip install 'lensml[pdf]'",
}


def compile_book(*, pdf: bool) -> Path:
    """Compile the last copies of all chapters with the prose, any warning an error; its path."""
    stage_book()
    output = (BUILD / "pdf" if pdf else STAGE) / "_build" / ("latex" if pdf else "html")
    shutil.rmtree(output, ignore_errors=True)
    build(output)
    return print_book(output) if pdf else output / "index.html"


def missing_programs() -> list[str]:
    """What a PDF needs and is not installed, with the way to get it; one line each."""
    return [f"{name} is missing: {way}" for name, way in PRINTING.items() if lacks(name)]


def lacks(name: str) -> bool:
    """Whether a program, or a module with a dot in its name, is not installed."""
    return (find_spec(name) if "." in name else shutil.which(name)) is None


def build(output: Path) -> None:
    """Compile the staging tree by jupyter-book; the output's folder and name say as what."""
    command = ["-c", "from jupyter_book.cli.main import main; main()", "build", str(STAGE)]
    files = ["--toc", str(STAGE / "_toc.yml"), "--config", str(STAGE / "_config.yml")]
    strict = ["--path-output", str(output.parent.parent), "--builder", output.name]
    command = [sys.executable, *command, *files, *strict, "-W", "-n", "--keep-going"]
    call(command, r"WARNING|ERROR|sphinx\.errors")


def print_book(folder: Path) -> Path:
    """The PDF of LaTeX that sphinx left in a folder; warnings of TeX are no errors."""
    command = ["latexmk", "-xelatex", "-interaction=nonstopmode", "-halt-on-error", "book.tex"]
    call(command, r"^!|^l\.\d", cwd=folder)
    final = BUILD / "book.pdf"
    shutil.copyfile(folder / "book.pdf", final)
    return final


def call(command: Sequence[str], errors: str, cwd: Path = ROOT) -> None:
    """Run a program with its output in a log.

    Raises:
        SystemExit: With its lines that match `errors`, if it fails.
    """
    log = LOGS / "book.log"
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=cwd)
    if done.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
        found = [line for line in text.splitlines() if re.search(errors, line)]
        lines = found or text.splitlines()[-15:]
        raise SystemExit("\n".join(["the book was not built:", *lines, f"log {log}"]))


def stage_book() -> None:
    """Lay out, in `_build/book`, a mirror of the repository with every number filled in.

    `book/_ext/chapters.py` then places figures and tables while sphinx reads the chapters.
    """
    if missing := [n for n in chapter_names() if not (EXECUTED / f"{n}.ipynb").exists()]:
        raise InputError(f"not run yet: {', '.join(missing)}; `lensml run all` comes first")
    for folder in ("book", "figures", "records", "runs"):
        shutil.rmtree(STAGE / folder, ignore_errors=True)
    shutil.copytree(BOOK, STAGE / "book")
    shutil.copytree(RECORDS, STAGE / "runs")
    for size in {read_record(name).get("size", "smoke") for name in chapter_names()}:
        if (mine := BUILD / "figures" / size).exists():  # for want of a committed one
            shutil.copytree(mine, STAGE / "figures", dirs_exist_ok=True)
    if FIGURES.exists():
        shutil.copytree(FIGURES, STAGE / "figures", dirs_exist_ok=True)
    shutil.copyfile(ROOT / "_toc.yml", STAGE / "_toc.yml")
    settings = re.sub(r".*//\S*example\.org.*\n", "", (ROOT / "_config.yml").read_text())
    (STAGE / "_config.yml").write_text(settings)
    prose = book_code("quotes")
    values = prose.quotable()
    for name, source in CARDS.items():
        (STAGE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, STAGE / name)
    for page in [*(STAGE / "book").glob("*.md"), *(STAGE / name for name in CARDS)]:
        page.write_text(prose.fill(page.read_text(), values, page.name))
    for old in (STAGE / "notebooks").glob("*.ipynb"):
        if old.stem not in chapter_names():
            old.unlink()
    for name in chapter_names():
        if record := load_results(name):
            write_json(record, STAGE / "records" / f"{name}.json")
        path = STAGE / "notebooks" / f"{name}.ipynb"
        copy = (EXECUTED / path.name).read_text()
        filled = prose.edit_markdown(copy, prose.fill, values, path.name)
        if not path.exists() or path.read_text() != filled:  # sphinx reads again what is newer
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(filled)
