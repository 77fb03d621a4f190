"""Compile pages and chapters into the book; prose quotes committed results by name."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lensml.experiments.notebooks import (
    EXECUTED,
    LOGS,
    RECORDS,
    chapter_names,
    read_record,
    run_all,
)
from lensml.experiments.results import (
    PERFORMANCE,
    STUDIES,
    load_benchmark,
    load_results,
    write_json,
)
from lensml.experiments.tables import (
    NO_BREAK,
    flatten,
    format_number,
)
from lensml.paths import (
    BOOK,
    BUILD,
    FIGURES,
    NOTEBOOKS,
    ROOT,
    InputError,
    atomic_path,
    check_size,
)

STAGE = BUILD / "book"  # mirrors the repository, so that launch buttons point at committed sources
QUOTED = re.compile(r"\{\{ ([a-z]\w*) \}\}")  # with the blanks, which LaTeX does not have
CITED = re.compile(r"\{cite:(\w)\}`([\w,]+)`")
SHOWN = re.compile(r"\[[^\]\n]*\]\(\.\./book/bibliography\.md\)<!-- cite:(\w) ([\w,]+) -->")
# The other form, ``0.75<!-- r02_roc_auc -->``: a value has no blank but no-break ones.
WRITTEN = re.compile(r"(?:>\u00a0)?[\w.,:/+-]+(?:\u00a0[\w.,:/+()-]+)*<!-- ([a-z]\w*) -->")
MADE = ("status_table", "provenance_table", "list_of_figures", "list_of_tables")  # by sphinx
BENCHMARKED = PERFORMANCE + STUDIES
SOURCE = re.compile(rf"(r\d\d|b_(?:{'|'.join(BENCHMARKED)}))_")


PRINTING = {  # programs and modules that a PDF needs, and what brings them
    "latexmk": "apt-get install latexmk texlive-latex-extra texlive-fonts-extra",
    "xelatex": "apt-get install texlive-xetex fonts-freefont-otf",
    "rsvg-convert": "apt-get install librsvg2-bin",
    "sphinxcontrib.rsvgconverter": "pip install 'lensml[pdf]'",
}


def make_book(
    size: str = "smoke", workers: int = 0, *, run: bool = True, pdf: bool = False
) -> None:
    """Run all chapters, compile them with the prose (any warning is an error), print where.

    Args:
        size: Of the chapters that are run.
        workers: Chapters at a time; 0 for two, or one on a single core.
        run: Whether to run them; without, their last copies are used as they are.
        pdf: Whether to print the book to a PDF in place of the pages.

    Raises:
        InputError: If a program that a PDF needs is missing; one line each.
    """
    check_size(size)
    if pdf and (missing := [f"{n} is missing: {way}" for n, way in PRINTING.items() if lacks(n)]):
        raise InputError("\n".join(missing))
    if run:
        run_all(size, {}, workers)
    stage_book()
    output = (BUILD / "pdf" if pdf else STAGE) / "_build" / ("latex" if pdf else "html")
    shutil.rmtree(output, ignore_errors=True)
    build(output)
    final = print_book(output) if pdf else output / "index.html"
    print(f"the book is at {final.as_uri()}")


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
    values = quotable()
    for page in (STAGE / "book").glob("*.md"):
        page.write_text(fill(page.read_text(), values, page.name))
    for old in (STAGE / "notebooks").glob("*.ipynb"):
        if old.stem not in chapter_names():
            old.unlink()
    for name in chapter_names():
        if record := load_results(name):
            write_json(record, STAGE / "records" / f"{name}.json")
        path = STAGE / "notebooks" / f"{name}.ipynb"
        filled = edit_markdown((EXECUTED / path.name).read_text(), fill, values, path.name)
        if not path.exists() or path.read_text() != filled:  # sphinx reads again what is newer
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(filled)


def quotable() -> dict[str, str]:
    """What prose may quote as ``{{ name }}``.

    r02_<number> from the results of chapter 02 and r02_size, b_stream_<number> from the newest
    benchmark of that name on any device; what sphinx fills in stays as it is.
    """
    values = {name: f"{{{{ {name} }}}}" for name in MADE}
    for name in chapter_names():
        if found := load_results(name):
            values[f"r{name[:2]}"] = name  # says that this chapter has a committed result
            values[f"r{name[:2]}_size"] = found["provenance"]["size"]
            for key, value in flatten(found["numbers"]).items():
                values[f"r{name[:2]}_{key}"] = format_number(value)
    for name in BENCHMARKED:
        if record := load_benchmark(name):
            values[f"b_{name}"] = name
            values[f"b_{name}_device"] = record["provenance"]["device"]
            for key, value in record["numbers"].items():
                values[f"b_{name}_{key}"] = format_number(value)
    return values


def fill(text: str, values: Mapping[str, str], page: str) -> str:
    """Put numbers into a page; a paragraph whose chapter has no committed result says so.

    Raises:
        InputError: If a chapter has a result, but not the number that is quoted.
    """
    paragraphs = []
    for paragraph in re.split(r"\n{2,}", names_only(text)):
        wanted = QUOTED.findall(paragraph)
        waits = sorted({s for n in wanted if (s := waits_for(n, values, page))})
        if waits:
            named = [f"chapter {w[1:]}" if w[0] == "r" else f"benchmark {w[2:]}" for w in waits]
            paragraph = f"*Waits for a committed result of {', '.join(named)}.*"
        else:
            paragraph = QUOTED.sub(lambda m: values[m[1]], paragraph)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def names_only(text: str) -> str:
    """``0.75<!-- r02_roc_auc -->`` as ``{{ r02_roc_auc }}``, and works cited as sphinx has them."""
    text = SHOWN.sub(r"{cite:\1}`\2`", text)
    return WRITTEN.sub(lambda m: f"{{{{ {m[1]} }}}}" if SOURCE.match(m[1]) else m[0], text)


def waits_for(name: str, values: Mapping[str, str], page: str) -> str | None:
    """Chapter or benchmark without a committed result that `name` quotes; None if it is known.

    Raises:
        InputError: If there is a result without that number.
    """
    source = SOURCE.match(name)
    if source and source[1] not in values:
        return source[1]
    if name not in values:
        near = get_close_matches(name, values, n=8, cutoff=0.5)
        raise InputError(
            f"{page} quotes {name!r}, but no committed result has it; near are {', '.join(near)}"
        )
    return None


def quote(text: str, values: Mapping[str, str], page: str) -> str:
    """Write numbers beside their names, ``0.75<!-- r02_roc_auc -->``, old ones renewed.

    Raises:
        InputError: If a number is not known, or its beginning would not be clear.
    """

    def written(found: re.Match) -> str:
        name = found[1]
        if not SOURCE.match(name) or waits_for(name, values, page):
            return found[0]
        before = found.string[: found.start()].rpartition("\n")[2]
        shown = f"{values[name].replace(' ', NO_BREAK)}<!-- {name} -->"
        clear = (match := WRITTEN.search(before[-1:] + shown)) and match[0] == shown
        if not clear or any(before.count(mark) % 2 for mark in "$`"):
            raise InputError(f"{page}: {name} needs a blank before it, outside of maths and code")
        return shown

    text = QUOTED.sub(written, names_only(text))
    return CITED.sub(cited, text) if page.endswith(".ipynb") else text


def cited(found: re.Match) -> str:
    """``{cite:p}`Gaudi2012` `` as a link that JupyterLab shows, with the role in a comment."""
    from pybtex.database import parse_file  # late: only for the command that writes

    works, kind = [], found[1]
    for key in found[2].split(","):
        entry = parse_file(str(BOOK / "references.bib")).entries[key]
        people = [" ".join(map(str, p.rich_last_names)) for p in entry.persons["author"]]
        many = len(people) > 2 or people[-1] == "others"
        who = f"{people[0]} et al." if many else " and ".join(people)
        works.append(
            f"{who} {entry.fields['year']}" if kind == "p" else f"{who} ({entry.fields['year']})"
        )
    text = f"({'; '.join(works)})" if kind == "p" else "; ".join(works)
    return f"[{text}](../book/bibliography.md)<!-- cite:{kind} {found[2]} -->"


def quote_everywhere() -> list[str]:
    """`quote` README, pages and chapters of the repository; names of the files that changed."""
    values, changed, refused = quotable(), [], []
    for path in [ROOT / "README.md", *BOOK.glob("*.md"), *NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")]:
        text, arguments = path.read_text(), (values, path.name)
        try:
            notebook = path.suffix == ".ipynb"
            new = edit_markdown(text, quote, *arguments) if notebook else quote(text, *arguments)
        except InputError as error:
            refused.append(str(error))
            continue
        if new != text:
            with atomic_path(path) as temporary:
                temporary.write_text(new)
            changed.append(path.name)
    if refused:
        raise InputError("\n".join(refused))
    return sorted(changed)


def edit_markdown(text: str, change: Callable[..., str], *arguments: Any) -> str:
    """`change` every Markdown cell of a notebook, given and returned as JSON."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            new = change("".join(cell["source"]), *arguments)
            cell["source"] = new.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
