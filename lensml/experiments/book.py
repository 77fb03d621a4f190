"""Compile pages and chapters into the book; prose quotes committed results by name."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lensml.experiments.notebooks import EXECUTED, LOGS, chapter_names, read_record, run_all
from lensml.experiments.results import (
    PERFORMANCE,
    STUDIES,
    find_figure,
    load_benchmark,
    load_results,
    numbered_table,
)
from lensml.experiments.tables import (
    NO_BREAK,
    ResultsTable,
    flatten,
    format_number,
    is_interval,
    provenance_line,
)
from lensml.network import weights_hash
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
# The other form, ``0.75<!-- r02_roc_auc -->``: a value has no blank but no-break ones.
WRITTEN = re.compile(r"(?:>\u00a0)?[\w.,:/+-]+(?:\u00a0[\w.,:/+()-]+)*<!-- ([a-z]\w*) -->")
BENCHMARKED = PERFORMANCE + STUDIES
SOURCE = re.compile(rf"(r\d\d|b_(?:{'|'.join(BENCHMARKED)}))_")
CAPTION = re.compile(r"\*\*(Figure \d+\.\d+)\.\*\*")
# Code, links, roles and maths come first, to be left alone.
REFERENCE = re.compile(
    r"`[^`]*`|\[[^\]]*\]\([^)]*\)|\$[^$]*\$|"
    r"\b(Figure|Table|[Cc]hapter)s? ((?:(?:, | and | or | to )?(?:\d\d?\.\d+|\d\d)\b(?!\.\d))+)"
)


def make_book(size: str = "smoke", workers: int = 0, *, run: bool = True) -> None:
    """Run all chapters, compile them with the prose (any warning is an error), print where.

    Args:
        size: Of the chapters that are run.
        workers: Chapters at a time; 0 for two, or one on a single core.
        run: Whether to run them; without, their last copies are used as they are.
    """
    check_size(size)
    if run:
        run_all(size, {}, workers)
    stage_book()
    build("html")
    print(f"the book is at {(STAGE / '_build' / 'html' / 'index.html').as_uri()}")


def build(builder: str) -> None:
    """Compile the staging tree by jupyter-book.

    Raises:
        SystemExit: With the warnings and errors, if there was any.
    """
    command = ["-c", "from jupyter_book.cli.main import main; main()", "build", str(STAGE)]
    options = ["--toc", str(STAGE / "_toc.yml"), "--config", str(STAGE / "_config.yml")]
    command = [sys.executable, *command, *options, "--builder", builder, "-W", "-n", "--keep-going"]
    log = LOGS / "book.log"
    LOGS.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
        found = [line for line in text.splitlines() if re.search("WARNING|ERROR", line)]
        lines = found or text.splitlines()[-15:]
        raise SystemExit("\n".join(["the book was not built:", *lines, f"log {log}"]))


def stage_book(*, pdf: bool = False) -> None:
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
    values, numbered = quotable(), {}
    staged = {name: stage_chapter(name, values, numbered, pdf) for name in chapter_names()}
    values |= {f"list_of_{kind.lower()}s": list_of(kind, numbered) for kind in ("Figure", "Table")}
    for page in (STAGE / "book").glob("*.md"):
        text = fill(page.read_text(), values, page.name)
        page.write_text(with_links(text, numbered, page.name))
    for name, notebook in staged.items():
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = with_links(cell["source"], numbered, name)
        path = STAGE / "notebooks" / f"{name}.ipynb"
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if not path.exists() or path.read_text() != text:  # sphinx reads again what is newer
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def stage_chapter(
    name: str, values: Mapping[str, str], numbered: dict[str, str], pdf: bool = False
) -> dict[str, Any]:
    """The notebook of a chapter's page, from its executed copy.

    Figures move from outputs to their captions, tables get captions; what this copy computed stays
    in one collapsed block, and the record of the committed result is there to download.

    Args:
        name: File stem of the chapter.
        values: What prose may quote.
        numbered: Takes "Figure 2.1" or "Table 2.1" and the first line of its caption.
        pdf: Whether code and the block of this copy's run are left out.
    """
    notebook = json.loads((EXECUTED / f"{name}.ipynb").read_text())
    waiting: list[str] = []  # stems of figures without a caption yet
    cells = []
    for cell in notebook["cells"]:
        tags = cell["metadata"].setdefault("tags", [])
        if cell["cell_type"] == "markdown":
            text = fill("".join(cell["source"]), values, f"{name}.ipynb")
            title = f"# {int(name[:2])}. " if not cells else "# "
            text = re.sub("^# ", title, text)
            cell["source"] = place_figures(text, name, waiting, numbered)
            cells.append(cell)
        elif not {"parameters", "injected-parameters"} & set(tags):
            tags.append("remove-input" if pdf else "hide-input")
            outputs, cell["outputs"] = cell["outputs"], []
            cells.append(cell)
            for output in outputs:
                origin = output.get("metadata", {}).get("lensml", {})
                if "figure" in origin:
                    waiting.append(origin["figure"])
                elif "table" in origin:
                    cells.append(markdown_cell(place_table(origin["table"], name, numbered)))
                elif "provenance" in origin:
                    cells.append(markdown_cell(provenance_text(name)))
                elif "start" not in origin and not (pdf and "own" in origin):
                    cell["outputs"].append(output)
    if waiting:
        raise InputError(
            f"{name}: figure {waiting[0]} has no caption; a paragraph that begins "
            f"**Figure {int(name[:2])}.N.** must follow its cell"
        )
    return notebook | {"cells": cells}


def markdown_cell(text: str) -> dict[str, Any]:
    """A cell of a notebook."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def place_figures(text: str, name: str, waiting: list[str], numbered: dict[str, str]) -> str:
    """Put each figure that waits for one to its caption, the paragraph that has its number.

    Raises:
        InputError: If there is no figure for a caption, or numbers are not consecutive.
    """
    paragraphs = re.split(r"\n{2,}", text)
    for i, paragraph in enumerate(paragraphs):
        if not (found := CAPTION.match(paragraph)):
            continue
        number = sum(key.startswith(f"Figure {int(name[:2])}.") for key in numbered) + 1
        expected = f"Figure {int(name[:2])}.{number}"
        if found[1] != expected or not waiting:
            reason = f"{expected} was expected" if waiting else "no figure is left for it"
            raise InputError(f"{name}: a caption begins with {found[1]}, but {reason}")
        stem = waiting.pop(0)
        numbered[expected] = paragraph[found.end() :].strip().split("\n")[0]
        lines = [f"../figures/{staged_figure(stem, name).name}", f":name: {anchor(expected)}"]
        lines += [f":alt: {plain_words(paragraph)[:250]}", "", paragraph]
        paragraphs[i] = directive("figure", lines)
    return "\n\n".join(paragraphs)


def staged_figure(stem: str, name: str) -> Path:
    """The committed figure in the staging tree, or this copy's, put there if there is no other."""
    if not (path := find_figure(stem, STAGE / "figures")):
        size = read_record(name).get("size", "smoke")
        if not (mine := find_figure(stem, BUILD / "figures" / size)):
            raise InputError(f"{name}: figure {stem} is nowhere; run the chapter again")
        path = STAGE / "figures" / mine.name
        shutil.copyfile(mine, path)
    return path


def place_table(shown: Mapping[str, Any], name: str, numbered: dict[str, str]) -> str:
    """The committed table of that key, or this copy's, as a numbered directive."""
    kept = (load_results(name) or {}).get("tables", {}).get(shown["key"], shown)
    table = numbered_table(name, shown["number"], kept)
    label = f"Table {int(name[:2])}.{shown['number']}"
    numbered[label] = kept["caption"] or "No caption."
    lines = [table.caption, f":name: {anchor(label)}", "", table.markdown().rstrip()]
    return directive("table", lines) + f"\n\n*{table.note}*" * bool(table.note)


def directive(kind: str, lines: list[str]) -> str:
    """A MyST directive; the first line is its argument."""
    return "\n".join([f":::{{{kind}}} {lines[0]}", *lines[1:], ":::"])


def anchor(label: str) -> str:
    """Name of a place in the book: "Figure 2.1" is at figure-2-1."""
    return label.lower().replace(" ", "-").replace(".", "-")


def plain_words(text: str) -> str:
    """Markdown as a sentence that can be read aloud: no markup, simple maths."""
    text = re.sub(r"\{cite:\w+\}`[^`]*`|[*`$]|\\(?:mathrm|text|rm)\b", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = text.replace(r"\Delta\chi^2", "delta chi-squared").replace("^2", " squared")
    return " ".join(re.sub(r"[\\{}]", "", text).replace("_", " ").split())


def with_links(text: str, numbered: Mapping[str, str], page: str) -> str:
    """Make links of "Figure 2.1", "Table 2.1" and "chapter 02" in prose."""
    to_chapters = "../notebooks/" if page.endswith(".md") else ""
    chapters = {name[:2]: name for name in chapter_names()}

    def link(word: str, number: str, shown: str) -> str:
        chapter, label = word.lower() == "chapter", f"{word} {number}"
        if (number not in chapters) if chapter else (label not in numbered):
            raise InputError(f"{page} names {label}, which does not exist")
        if chapter:
            shown = shown.replace(number, str(int(number)))
            return f"[{shown}]({to_chapters}{chapters[number]}.ipynb)"
        return f"{{ref}}`{shown} <{anchor(label)}>`"

    def replace(found: re.Match) -> str:
        word, numbers = found.groups()
        if not word or found[0] == f"{word} {numbers}":
            return link(word, numbers, found[0]) if word else found[0]
        return re.sub(r"[\d.]+", lambda m: link(word, m[0], m[0]), found[0])

    lines, fence = [], ""
    for line in text.split("\n"):
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opened := re.match(r"(```+|:::+(?=\{(?:figure|table)\}))", line):
            fence = opened[1]
        elif not line.startswith("#"):
            line = REFERENCE.sub(replace, line)
        lines.append(line)
    return "\n".join(lines)


def list_of(kind: str, numbered: Mapping[str, str]) -> str:
    """Markdown list of all figures or tables, a line each, by chapter."""
    lines, last = [], ""
    for label, caption in numbered.items():
        if label.startswith(kind):
            chapter = label.split()[1].split(".")[0].zfill(2)
            lines += [f"\n**Chapter {int(chapter)}**\n"] * (chapter != last)
            lines.append(f"- {label}. {caption}")
            last = chapter
    return "\n".join(lines).strip() or f"No {kind.lower()}s."


def provenance_text(name: str) -> str:
    """Where a chapter's result comes from, and its record to download."""
    if not (record := load_results(name)):
        return provenance_line(name, None)
    return f"{provenance_line(name, record)}\nThe full record: {record_links(name, record)}."


def record_links(name: str, record: Mapping[str, Any]) -> str:
    """Links to a chapter's record as JSON and CSV, which are put into the staging tree."""
    folder = STAGE / "records"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1))
    with open(folder / f"{name}.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["quantity", "value", "low", "high"])
        for key, value in flatten(record["numbers"]).items():
            ends = [value[k] for k in ("value", "low", "high")] if is_interval(value) else [value]
            rows.writerow([key, *ends])
    return f"[JSON](../records/{name}.json), [CSV](../records/{name}.csv)"


def quotable() -> dict[str, str]:
    """What prose may quote as ``{{ name }}``.

    r02_<number> from the results of chapter 02 and r02_size, b_stream_<number> from the newest
    benchmark of that name on any device, and tables and lists made at build.
    """
    values = dict.fromkeys(("list_of_figures", "list_of_tables"), "")  # known at staging
    values |= {"status_table": status_table(), "provenance_table": provenance_table()}
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
    for paragraph in re.split(r"\n{2,}", WRITTEN.sub(r"{{ \1 }}", text)):
        wanted = QUOTED.findall(paragraph)
        waits = sorted({s for n in wanted if (s := waits_for(n, values, page))})
        if waits:
            named = [f"chapter {w[1:]}" if w[0] == "r" else f"benchmark {w[2:]}" for w in waits]
            paragraph = f"*Waits for a committed result of {', '.join(named)}.*"
        else:
            paragraph = QUOTED.sub(lambda m: values[m[1]], paragraph)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


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
        InputError: If a number is not known, or cannot be told from what stands before it.
    """

    def written(found: re.Match) -> str:
        name = found[1]
        if waits_for(name, values, page) or not SOURCE.match(name):
            return found[0]
        before = found.string[: found.start()].rpartition("\n")[2]
        shown = f"{values[name].replace(' ', NO_BREAK)}<!-- {name} -->"
        clear = (match := WRITTEN.search(before[-1:] + shown)) and match[0] == shown
        if not clear or any(before.count(mark) % 2 for mark in "$`"):
            raise InputError(f"{page}: {name} needs a blank before it, outside of maths and code")
        return shown

    return QUOTED.sub(written, WRITTEN.sub(r"{{ \1 }}", text))


def quote_everywhere() -> list[str]:
    """`quote` README, pages and chapters of the repository; names of the files that changed."""
    values, changed = quotable(), []
    for path in [ROOT / "README.md", *BOOK.glob("*.md"), *NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")]:
        text = new = path.read_text()
        if path.suffix == ".ipynb":
            notebook = json.loads(text)
            for cell in notebook["cells"]:
                if cell["cell_type"] == "markdown":
                    filled = quote("".join(cell["source"]), values, path.name)
                    cell["source"] = filled.splitlines(keepends=True)
            new = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        else:
            new = quote(text, values, path.name)
        if new != text:
            with atomic_path(path) as temporary:
                temporary.write_text(new)
            changed.append(path.name)
    return sorted(changed)


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


def provenance_table() -> str:
    """Markdown table of the committed records: size, code, machine, time, and their files."""
    rows = []
    for name in chapter_names():
        if not (record := load_results(name)):
            rows.append([name, "none", *["-"] * 5])
            continue
        p = record["provenance"]
        commit = p["commit"][:10] + (" (modified)" if p["modified"] else "")
        time = f"{p['wall_time_s']:,.0f}"
        links = record_links(name, record)
        rows.append([name, p["size"], commit, p["date"], time, p["device"], links])
    headings = ["chapter", "size", "commit", "date", "time [s]", "device", "record"]
    return (
        ResultsTable(headings, rows).markdown()
        + f"\nSHA-256 of the shipped weights: `{weights_hash()}`."
    )
