"""Compile pages and chapters into the book; ``{{ name }}`` takes a committed result."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from lensml.experiments.notebooks import EXECUTED, LOGS, chapter_names, read_record, run_all
from lensml.experiments.results import (
    PERFORMANCE,
    STUDIES,
    compare_with_committed,
    load_benchmark,
    load_results,
)
from lensml.experiments.tables import ResultsTable, flatten, format_number
from lensml.paths import BOOK, BUILD, FIGURES, ROOT, InputError, check_size

STAGE = BUILD / "book"  # mirrors the repository, so that launch buttons point at committed sources
QUOTED = re.compile(r"\{\{ ([a-z]\w*) \}\}")  # with the blanks, which LaTeX does not have
BENCHMARKED = PERFORMANCE + STUDIES
SOURCE = re.compile(rf"(r\d\d|b_(?:{'|'.join(BENCHMARKED)}))_")


def make_book(size: str = "smoke", workers: int = 0) -> None:
    """Run all chapters, compile them with the prose (any warning is an error), print where."""
    check_size(size)
    run_all(size, {}, workers)
    stage_book()
    command = ["-c", "from jupyter_book.cli.main import main; main()", "build", str(STAGE)]
    options = ["--toc", str(STAGE / "_toc.yml"), "--config", str(STAGE / "_config.yml")]
    command = [sys.executable, *command, *options, "-W", "-n", "--keep-going"]
    log = LOGS / "book.log"
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as stream:
        build = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
    if build.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
        found = [line for line in text.splitlines() if re.search("WARNING|ERROR", line)]
        lines = found or text.splitlines()[-15:]
        raise SystemExit("\n".join(["the book was not built:", *lines, f"log {log}"]))
    print(f"the book is at {(STAGE / '_build' / 'html' / 'index.html').as_uri()}")


def stage_book() -> None:
    """Lay out, in `_build/book`, a mirror of the repository with every number filled in."""
    if missing := [n for n in chapter_names() if not (EXECUTED / f"{n}.ipynb").exists()]:
        raise InputError(f"not run yet: {', '.join(missing)}; `lensml run all` comes first")
    for old in (STAGE / "notebooks").glob("*.ipynb"):
        if old.stem not in chapter_names():
            old.unlink()
    shutil.rmtree(STAGE / "book", ignore_errors=True)
    shutil.rmtree(STAGE / "_build" / "html", ignore_errors=True)
    shutil.copytree(BOOK, STAGE / "book")
    if FIGURES.exists():
        shutil.copytree(FIGURES, STAGE / "figures", dirs_exist_ok=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copyfile(ROOT / name, STAGE / name)
    values = quotable()
    for page in (STAGE / "book").glob("*.md"):
        page.write_text(fill(page.read_text(), values, page.name))
    for name in chapter_names():
        path = STAGE / "notebooks" / f"{name}.ipynb"
        filled = fill_notebook((EXECUTED / path.name).read_text(), values, path.name)
        if not path.exists() or path.read_text() != filled:  # sphinx reads again what is newer
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(filled)


def quotable() -> dict[str, str]:
    """What prose may quote as ``{{ name }}``.

    r02_<number> from the results of chapter 02 and r02_size, b_stream_<number> from the newest
    benchmark of that name on any device, and tables made at build.
    """
    values = {"status_table": status_table(), "results_tables": results_tables()}
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
    for paragraph in re.split(r"\n{2,}", text):
        wanted = QUOTED.findall(paragraph)
        sources = {m[1] for n in wanted if (m := SOURCE.match(n))}
        if waits := sorted(source for source in sources if source not in values):
            named = [f"chapter {w[1:]}" if w[0] == "r" else f"benchmark {w[2:]}" for w in waits]
            paragraph = f"*Waits for a committed result of {', '.join(named)}.*"
        elif unknown := [name for name in wanted if name not in values]:
            source = (SOURCE.match(unknown[0]) or unknown[0])[0]
            known = sorted(name for name in values if name.startswith(source))
            raise InputError(
                f"{page} quotes {unknown[0]!r}, but no committed result has it; "
                f"known are {', '.join(known)}"
            )
        paragraphs.append(QUOTED.sub(lambda m: values[m[1]], paragraph) if not waits else paragraph)
    return "\n\n".join(paragraphs)


def fill_notebook(text: str, values: Mapping[str, str], page: str) -> str:
    """`fill` for every Markdown cell of a notebook, given and returned as JSON."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = fill("".join(cell["source"]), values, page)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def status_table() -> str:
    """Markdown table of how each chapter in this book was run, and with which versions."""
    records = {name: line for name in chapter_names() if (line := read_record(name))}
    rows, versions = [], {}
    for name, line in records.items():
        commit = line["commit"][:10] + (" (modified)" if line["modified"] else "")
        run_time = f"{line['wall_time_s']:.0f} s"
        rows.append([name, line["size"], run_time, line["device"], commit, line["date"]])
        used = {"Python": line["python"], **line["versions"]}
        versions.setdefault(", ".join(f"{k} {v}" for k, v in used.items()), []).append(name)
    table = ResultsTable(["chapter", "size", "run time", "device", "commit", "date"], rows)
    return table.markdown() + "".join(
        f"\n{'All' if names == list(records) else ', '.join(names)}: {used}.\n"
        for used, names in versions.items()
    )


def results_tables() -> str:
    """Markdown of every chapter's committed result, with its origin and its figures, folded."""
    sections = []
    for name in chapter_names():
        table = compare_with_committed(name)
        wanted = (load_results(name) or {}).get("figures", [])
        files = [file for stem in wanted for file in sorted(FIGURES.glob(f"{stem}.*g"))]
        images = "\n\n".join(f"![{file.stem}](../figures/{file.name})" for file in files)
        folded = f":::{{dropdown}} Its figures\n{images}\n:::\n" if images else ""
        sections.append(f"**{name}**\n\n{table.markdown()}\n{table.note}\n\n{folded}")
    return "\n\n".join(sections)
