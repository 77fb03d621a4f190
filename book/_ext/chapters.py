"""Sphinx extension: an executed chapter as a page of the book.

A chapter's outputs carry what they are as metadata (`lensml.experiments.results.Chapter`): a
figure moves to its caption, the paragraph that begins with its number; a table gets its number
and caption, from the committed record where there is one. "Figure 2.1", "Table 2.1" and
"chapter 02" in prose become links. Pages `book/figures` and `book/tables` list them all.
"""

import csv
import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path

from lensml import limits
from lensml.experiments import book_code, flatten, format_number, is_interval
from lensml.network import weights_hash
from lensml.paths import PACKAGE, RESULTS, git_commit

CAPTION = re.compile(r"\*\*(Figure \d+\.\d+)\.\*\*")
# Code, links, roles and maths come first, to be left alone.
REFERENCE = re.compile(
    r"`[^`]*`|\[[^\]]*\]\([^)]*\)|\$[^$]*\$|"
    r"\b(Figure|Table|[Cc]hapter)s? ((?:(?:, | and | or | to )?(?:\d\d?\.\d+|\d\d)\b(?!\.\d))+)"
)


safe = book_code("quotes").safe


class ChapterError(Exception):
    """A caption, number or reference is wrong; one line says which."""


class Book:
    """The chapters of a staging tree.

    Attributes:
        root: Folder with `notebooks`, `figures` and `records`.
        numbered: "Figure 2.1" or "Table 2.1" to the caption, in order.
    """

    def __init__(self, root: Path, *, latex: bool = False) -> None:
        self.root, self.latex = Path(root), latex
        self.numbered: dict[str, str] = {}
        self.chapters = {p.stem[:2]: p.stem for p in sorted(self.root.glob("notebooks/*.ipynb"))}
        self.pages = {f"notebooks/{name}": self._chapter(name) for name in self.chapters.values()}

    def page(self, name: str, text: str) -> str:
        """Source of a page as sphinx shall read it."""
        if name not in self.pages:
            made = {
                "list_of_figures": lambda: self._list_of("Figure"),
                "list_of_tables": lambda: self._list_of("Table"),
                "status_table": self._runs,
                "provenance_table": self._records,
                "limits_table": limits_table,
                "campaigns_table": campaigns_table,
            }
            text = re.sub(r"\{\{ ([a-z]\w*) \}\}", lambda m: made[m[1]](), text)
            return self.with_links(text, name)
        notebook = self.pages[name]
        cells = [
            cell | {"source": self.with_links(cell["source"], name)}
            if cell["cell_type"] == "markdown"
            else cell
            for cell in notebook["cells"]
        ]
        return json.dumps(notebook | {"cells": cells})

    def _chapter(self, name: str) -> dict:
        """The notebook of a chapter, figures and tables in their places."""
        notebook = json.loads((self.root / "notebooks" / f"{name}.ipynb").read_text())
        path = self.root / "records" / f"{name}.json"
        record = safe(json.loads(path.read_text())) if path.exists() else {}
        if record:
            write_csv(record["numbers"], path.with_suffix(".csv"))
        waiting, cells = [], []  # stems of figures without a caption yet
        for cell in notebook["cells"]:
            tags = cell["metadata"].setdefault("tags", [])
            if cell["cell_type"] != "code":
                text = "".join(cell["source"])
                text = text if cells else re.sub("^# ", f"# {int(name[:2])}. ", text)
                cells.append(cell | {"source": self._place_figures(text, name, waiting)})
            elif not {"parameters", "injected-parameters"} & set(tags):
                tags.append("remove-input" if self.latex else "hide-input")
                outputs, cell["outputs"] = cell["outputs"], []
                cells.append(cell)
                for output in outputs:
                    origin = output.get("metadata", {}).get("lensml", {})
                    if "figure" in origin:
                        waiting.append(origin["figure"])
                    elif "table" in origin:
                        table = self._table(origin["table"], name, record)
                        cells.append(markdown_cell(table))
                    elif "provenance" in origin:
                        cells.append(markdown_cell(self._origin(output, name, record)))
                    elif self._kept(output, origin):
                        cell["outputs"].append(output)
        if waiting:
            raise ChapterError(
                f"{name}: figure {waiting[0]} has no caption; a paragraph that begins "
                f"**Figure {int(name[:2])}.N.** must follow its cell"
            )
        return notebook | {"cells": cells}

    def _kept(self, output: dict, origin: dict) -> bool:
        """Whether an output stays; in print there is nothing to unfold or to move."""
        moves = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
        return "start" not in origin and not (self.latex and ("own" in origin or moves))

    def _number(self, kind: str, name: str) -> str:
        """The next number of a chapter's figures or tables."""
        start = f"{kind} {int(name[:2])}."
        return start + str(1 + sum(label.startswith(start) for label in self.numbered))

    def _place_figures(self, text: str, name: str, waiting: list[str]) -> str:
        """Each caption becomes a figure, the first of those that wait for one."""
        paragraphs = re.split(r"\n{2,}", text)
        for i, paragraph in enumerate(paragraphs):
            if not (found := CAPTION.match(paragraph)):
                continue
            label = self._number("Figure", name)
            if not waiting:
                raise ChapterError(f"{name}: no figure is left for the caption of {found[1]}")
            if found[1] != label:
                raise ChapterError(f"{name}: {label} was expected, but a caption has {found[1]}")
            stem = waiting.pop(0)
            if not (self.root / "figures" / f"{stem}.svg").exists():
                raise ChapterError(f"{name}: there is no file of figure {stem}; run it again")
            self.numbered[label] = " ".join(paragraph[found.end() :].split())
            lines = [f"../figures/{stem}.svg", f":name: {anchor(label)}"]
            lines += [f":alt: {plain_words(self.numbered[label])[:250]}", "", paragraph]
            paragraphs[i] = directive("figure", lines)
        return "\n\n".join(paragraphs)

    def _table(self, shown: dict, name: str, record: dict) -> str:
        """The committed table of that key, or this copy's, as a numbered directive."""
        kept = record.get("tables", {}).get(shown["key"], safe(shown))
        label = self._number("Table", name)
        self.numbered[label] = kept["caption"] or "No caption."
        table = markdown_table(kept["headings"], kept["rows"])
        if self.latex and len(kept["headings"]) > 6:  # too wide for paper, unless intervals break
            table = table.replace("\u00a0", " ")
        lines = [f"**{label}.** {kept['caption']}", f":name: {anchor(label)}", "", table]
        return directive("table", lines) + f"\n\n*{kept['note']}*" * bool(kept["note"])

    def _origin(self, output: dict, name: str, record: dict) -> str:
        """Where the committed result comes from, and its record to download."""
        line = safe("".join(output["data"]["text/markdown"]))
        if not record or self.latex:
            return line
        return f"{line}\nThe full record: {links(name)}."

    def _read(self, folder: str) -> dict[str, dict]:
        """JSON of all chapters in a folder of the tree, by chapter."""
        paths = {name: self.root / folder / f"{name}.json" for name in self.chapters.values()}
        return {n: safe(json.loads(p.read_text())) for n, p in paths.items() if p.exists()}

    def _records(self) -> str:
        """Table of the committed records: size, code, machine, time, and their files."""
        rows, records = [], self._read("records")
        for name in self.chapters.values():
            if name not in records:
                rows.append([name, "none", *[""] * 5])
                continue
            p = records[name]["provenance"]
            time = f"{p['wall_time_s']:,.0f}"
            page = f"[{name}](../notebooks/{name}.ipynb)"
            rows.append([page, p["size"], commit(p), p["date"], time, p["device"], links(name)])
        headings = ["chapter", "size", "commit", "date", "time [s]", "device", "record"]
        table = markdown_table(headings, rows)
        return f"{table}\n\nSHA-256 of the shipped weights: `{weights_hash()}`."

    def _runs(self) -> str:
        """Table of how each chapter in this copy was run, and with which versions."""
        rows, versions, runs = [], {}, self._read("runs")
        for name, p in runs.items():
            time = f"{p['wall_time_s']:,.0f}"
            rows.append([name, p["size"], commit(p), p["date"], time, p["device"]])
            used = ", ".join(
                f"{k} {v}" for k, v in ({"Python": p["python"]} | p["versions"]).items()
            )
            versions.setdefault(used, []).append(name)
        lines = [
            f"{'All' if names == list(runs) else ', '.join(names)}: {used}."
            for used, names in versions.items()
        ]
        headings = ["chapter", "size", "commit", "date", "time [s]", "device"]
        return "\n\n".join([markdown_table(headings, rows), *lines])

    def _list_of(self, kind: str) -> str:
        """All figures or tables, a line each, by chapter."""
        lines, last = [], ""
        for label, caption in self.numbered.items():
            if label.startswith(kind):
                chapter = label.split()[1].split(".")[0].zfill(2)
                lines += [f"\nIn chapter {chapter}:\n"] * (chapter != last)
                lines.append(f"- {label}. {re.split(r'(?<=[.]) ', caption)[0]}")
                last = chapter
        return "\n".join(lines).strip()

    def with_links(self, text: str, page: str) -> str:
        """Make links of "Figure 2.1", "Table 2.1" and "chapter 02" in prose."""

        def link(word: str, number: str, shown: str) -> str:
            label = f"{word} {number}"
            chapter = self.chapters.get(number) if word.lower() == "chapter" else None
            if not chapter and label not in self.numbered:
                raise ChapterError(f"{page} names {label}, which does not exist")
            if not chapter:
                return f"{{ref}}`{shown} <{anchor(label)}>`"
            shown = shown.replace(number, str(int(number)))
            return f"[{shown}]({'../' * page.count('/')}notebooks/{chapter}.ipynb)"

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


def limits_table() -> str:
    """Every limit of `lensml.limits`, its value and what it is of."""
    rows = []
    for line in (PACKAGE / "limits.py").read_text().splitlines():
        if found := re.match(r"([A-Z_, ]+) = .*?#\s*(.*)", line):
            for name in found[1].split(", "):
                rows.append([f"`{name}`", format_number(getattr(limits, name)), found[2]])
    return markdown_table(["limit", "value", "of what"], rows)


def campaigns_table() -> str:
    """What campaigns have tried, when and with which outcome."""
    path = RESULTS / "campaigns.json"
    rows, kept = [], safe(json.loads(path.read_text())) if path.exists() else {}
    for name, found in kept.items():
        counts = [format_number(found[k]) for k in ("tried", "refused", "faults")]
        worst = [format_number(found[k]) if found.get(k) else "-" for k in ("slowest", "memory")]
        rows.append([name.replace("_", " "), *counts, *worst, found["date"], found["commit"][:7]])
    heads = ["campaign", "tried", "refused", "faults", "slowest [s]", "memory [MB]"]
    heads += ["date", "commit"]
    return markdown_table(heads, rows)


def write_csv(numbers: dict, path: Path) -> None:
    """The numbers of a record, a line each, with the ends of their intervals."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["quantity", "value", "low", "high"])
        for key, value in flatten(numbers).items():
            ends = [value[k] for k in ("value", "low", "high")] if is_interval(value) else [value]
            rows.writerow([key, *ends])


def markdown_cell(text: str) -> dict:
    """A cell of a notebook."""
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def directive(kind: str, lines: list[str]) -> str:
    """A MyST directive; the first line is its argument."""
    return "\n".join([f":::{{{kind}}} {lines[0]}", *lines[1:], ":::"])


def anchor(label: str) -> str:
    """Name of a place in the book: "Figure 2.1" is at figure-2-1."""
    return label.lower().replace(" ", "-").replace(".", "-")


def links(name: str) -> str:
    """Where to download a chapter's record."""
    return ", ".join(f"[{e.upper()}](../records/{name}.{e})" for e in ("json", "csv"))


def commit(provenance: dict) -> str:
    """Commit of a run, and whether its work tree had changes."""
    return provenance["commit"][:10] + " (modified)" * provenance["modified"]


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """Headings and rows as a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(cell_text, line))} |" for line in lines)


def cell_text(text: str) -> str:
    """A cell of a Markdown table: on one line, no bar or tag outside of maths."""
    text = text.replace("\n", " ")
    return re.sub(r"\$[^$]+\$|[|<]", lambda m: m[0] if m[0][0] == "$" else "\\" + m[0], text)


def plain_words(text: str) -> str:
    """Markdown as a sentence that can be read aloud: no markup, simple maths."""
    text = re.sub(r"\{cite:\w+\}`[^`]*`|[*`$]|\\(?:mathrm|text|rm)\b", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = text.replace(r"\Delta\chi^2", "delta chi-squared").replace("^2", " squared")
    return " ".join(re.sub(r"[\\{}]", "", text).replace("_", " ").split())


def begin(app, env, _docnames=()) -> list[str]:
    """Place figures and tables; pages that may name them are read again if any has changed."""
    from sphinx.errors import ExtensionError

    try:
        env.app.lensml_book = book = Book(app.srcdir, latex=app.builder.format == "latex")
    except ChapterError as error:
        raise ExtensionError(str(error)) from None
    before = getattr(env, "lensml_numbered", None)
    env.lensml_numbered = book.numbered
    return [] if before in (None, book.numbered) else sorted(env.found_docs)


def read(app, docname: str, source: list[str]) -> None:
    """Hand sphinx the page in place of its file."""
    from sphinx.errors import ExtensionError

    try:
        source[0] = app.lensml_book.page(docname, source[0])
    except ChapterError as error:
        raise ExtensionError(str(error)) from None


PREAMBLE = r"""
\setcounter{secnumdepth}{-1} % chapters bring their own numbers
\setcounter{tocdepth}{1}
\DeclareRobustCommand{\DUrole}[2]{#2}
\AtBeginDocument{\robustify{\hyperlink}} % a caption may cite
\makeatletter % captions bring their own numbers, too
\long\def\@makecaption#1#2{\vskip\abovecaptionskip
  {\small\raggedright #2\par}\vskip\belowcaptionskip}
\AtBeginDocument{\def\LT@makecaption#1#2#3{\LT@mcol\LT@cols c{\hbox to\z@{\hss
  \parbox[t]\LTcapwidth{\small\raggedright #3\endgraf\vskip\baselineskip}\hss}}}}
\makeatother
\usepackage{etoolbox}
\AtBeginEnvironment{figure}{\linewidth=.85\linewidth}
\AtBeginEnvironment{tabulary}{\fontsize{7.5}{9.5}\selectfont\tymin=75pt }
\AtBeginEnvironment{longtable}{\fontsize{7.5}{9.5}\selectfont}
\AtBeginDocument{\patchcmd{\thebibliography}{\chapter*{\bibname}}{}{}{} % its page has a title
  \renewenvironment{sphinxthebibliography}{\begin{thebibliography}}{\end{thebibliography}}
  \newcolumntype{T}{L}}
\sloppy
\newenvironment{sphinxVerbatimInput}{}{}
\newenvironment{sphinxVerbatimOutput}{\footnotesize}{}
"""


def print_settings(app, config) -> None:
    """How the book is set in print; nothing of it concerns the pages."""
    config.release = f"{importlib.metadata.version('lensml')}, commit {git_commit()[:10]}"
    config.today_fmt = "%d %B %Y"
    config.latex_theme = "manual"
    config.numfig = False
    config.latex_show_pagerefs = True
    config.latex_show_urls = "no"
    config.latex_table_style = ["booktabs"]
    config.jblatex_load_imgconverter = False  # it would make pixels of vectors
    config.latex_elements |= {
        "papersize": "a4paper",
        "releasename": "Version",
        "pointsize": "10pt",
        "fncychap": "",
        "extraclassoptions": "openany,oneside",
        "figure_align": "htbp",
        "preamble": config.latex_elements.get("preamble", "") + PREAMBLE,
    }


def scripts_once(app, page, template, context, doctree) -> None:
    """Leave out scripts that two extensions have asked for."""
    unique = {(s.filename or "", s.attributes.get("body")): s for s in context["script_files"]}
    context["script_files"] = list(unique.values())


def setup(app) -> dict:
    """Called by sphinx."""
    if importlib.util.find_spec("sphinxcontrib.rsvgconverter"):
        app.setup_extension("sphinxcontrib.rsvgconverter")
    app.connect("config-inited", print_settings, priority=900)
    app.connect("env-get-outdated", lambda app, env, *_: begin(app, env))
    app.connect("source-read", read)
    app.connect("html-page-context", scripts_once, priority=900)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
