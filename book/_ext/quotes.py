"""Stored numbers in prose: ``{{ r02_roc_auc }}``, or ``0.75<!-- r02_roc_auc -->`` once written."""

import json
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from lensml.experiments import (
    PERFORMANCE,
    STUDIES,
    book_code,
    chapter_names,
    flatten,
    format_number,
    load_benchmark,
    load_results,
)
from lensml.paths import BOOK, NOTEBOOKS, ROOT, InputError, atomic_path, check_installed

NO_BREAK = "\u00a0"
QUOTED = re.compile(r"\{\{ ([a-z]\w*) \}\}")  # with the blanks, which LaTeX does not have
CITED = re.compile(r"\{cite:(\w)\}`([\w,]+)`")
SHOWN = re.compile(r"\[[^\]\n]*\]\(\.\./book/bibliography\.md\)<!-- cite:(\w) ([\w,]+) -->")
# The other form, ``0.75<!-- r02_roc_auc -->``: a value has no blank but no-break ones.
WRITTEN = re.compile(r"(?:>\u00a0)?[\w.,:/+-]+(?:\u00a0[\w.,:/+()-]+)*<!-- ([a-z]\w*) -->")
MADE = ("status_table", "provenance_table", "list_of_figures", "list_of_tables")  # by sphinx
MADE += ("limits_table", "campaigns_table")
BENCHMARKED = PERFORMANCE + STUDIES
SOURCE = re.compile(rf"(r\d\d|b_(?:{'|'.join(BENCHMARKED)}))_")


def safe(value: Any) -> Any:
    """What a record holds, its text on one line and without what a page would run as code.

    That is tags, and commands of maths that make links or styles; all else is shown as it stands.
    """
    if isinstance(value, Mapping):
        return {safe(key): safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [safe(item) for item in value]
    if not isinstance(value, str):
        return value
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"[\r\n]+", " ", value))
    return re.sub(r"\\(?=(?:href|url|class|cssId|style|data|require|include)\b)", "", text)


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
    return safe(values)


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
    """Renew numbers in README, pages, cards and chapters; names of the files that changed."""
    check_installed("notebooks", "pybtex")
    values, changed, refused, code = quotable(), [], [], book_code("cards")
    cards = {path: made for path, made in code.cards().items() if path.is_relative_to(ROOT)}
    pages = [ROOT / "README.md", *BOOK.glob("*.md"), *NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")]
    for path in [*pages, *cards]:
        text, arguments = path.read_text(), (values, path.name)
        try:
            notebook = path.suffix == ".ipynb"
            new = edit_markdown(text, quote, *arguments) if notebook else quote(text, *arguments)
            new = code.renew(new, cards.get(path, {}))
        except InputError as error:
            refused.append(str(error))
            continue
        if new != text:
            with atomic_path(path) as temporary:
                temporary.write_text(new)
            changed.append(path.name)
    if refused:
        raise InputError("; ".join(refused))
    return sorted(changed)


def edit_markdown(text: str, change: Callable[..., str], *arguments: Any) -> str:
    """`change` every Markdown cell of a notebook, given and returned as JSON."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            new = change("".join(cell["source"]), *arguments)
            cell["source"] = new.splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
