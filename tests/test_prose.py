"""Plain words in code and prose; one sentence a line; a README that agrees with the repository."""

import ast
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from pybtex.database import parse_file

from lensml.experiments import book_code

ROOT = Path(__file__).resolve().parent.parent

BANNED = set(
    "opinion opinions expert experts impostor impostors rival rivals verdict verdicts hopeless "
    "wolf valley valleys foretell foretells foretold foresee foresees foreseen unexplained "
    "said told heard hears consult consults consulted listen listens company price prices "
    "picture pictures anybody nobody everybody".split()
)
SHARE = re.compile(  # the noun, also in identifiers; "fraction" is the word
    r"\b(?:an?|the|its|their|this|which|what|same|\w+ing) shares?\b|\bshares? (?:of|above|below)\b"
    r"|\bshares?_|_shares?\b|\bshares? (?:=|in)|\bshares?[,)\]]",
    re.IGNORECASE,
)
ALLOWED = {  # (file, word): why it stays
    ("lensml/simulation/contaminants.py", "impostor"): "names of random streams",
}
READMES = (
    *("README.md", "data/README.md", "figures/README.md", "lensml/weights/README.md"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "hub/README.md"),
)
MAX_LINE = 140
QUOTES = book_code("quotes")
VALUES = QUOTES.quotable()
SENTENCE_END = re.compile(r"""(?<=[\w)\]*`$%"}>])[.!?]["*)_]*\s+(?=[A-Z`$*"\[(])""")
QUOTE = re.compile(r"(?:\{\{ |<!-- )([a-z]\w*)(?: \}\}| -->)")
CITED = re.compile(r"\{cite:\w+\}`([^`]*)`")
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|et al|cf|Fig|No|[A-Z])\.\s")


def words(text: str) -> list[str]:
    """Words of a text in lower case, identifiers taken apart."""
    text = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text)
    return re.findall(r"[a-z]+", text.lower())


def banned_words(line: str) -> list[str]:
    """Words of a line that are to be replaced."""
    line = re.sub(r"\{\{ \w+ \}\}|<!-- \w+ -->", "", line)  # names of stored numbers
    return [word for word in words(line) if word in BANNED] + SHARE.findall(line)


def cells(path: Path, kind: str) -> str:
    """Source of all cells of one kind, a blank line between them."""
    found = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in found if c["cell_type"] == kind)


def texts() -> dict[str, str]:
    """What a reader sees, by file: modules, README, pages, chapters, and the names of tests."""
    found = {}
    for pattern in (
        *("lensml/**/*.py", "book/*.md", "book/api/*.md", "book/scripts/*"),
        *READMES,
    ):
        found |= {str(p.relative_to(ROOT)): p.read_text() for p in sorted(ROOT.glob(pattern))}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = cells(path, "markdown") + "\n\n" + cells(path, "code")
        found[str(path.relative_to(ROOT))] = text
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        functions = [
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)
        ]
        names = "\n".join(n.name for n in functions if n.name.startswith("test_"))
        found[str(path.relative_to(ROOT))] = f"{path.stem}\n{names}"
    return found


def pages() -> dict[str, str]:
    """Markdown, by file: READMEs, pages, chapters."""
    found = {name: (ROOT / name).read_text() for name in READMES}
    for pattern in ("book/*.md", "book/api/*.md"):
        found |= {str(p.relative_to(ROOT)): p.read_text() for p in sorted(ROOT.glob(pattern))}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        found[f"notebooks/{path.name}"] = cells(path, "markdown")
    return found


def prose_lines(text: str) -> list[tuple[int, str]]:
    """Lines that are neither code, equation, table nor heading, with their numbers."""
    found, fence = [], None
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(```+|~~~+|:::+|\$\$)", line)
        if mark and (fence is None or line.strip().startswith(fence)):
            fence = mark[1] if fence is None else None
        elif fence is None and not re.match(r"\s*(\||#|\(\w+\)=$|!\[)", line):
            found.append((number, line))
    return found


def by_file(found: dict[str, str]) -> pytest.MarkDecorator:
    """One case a file."""
    return pytest.mark.parametrize(("file", "text"), list(found.items()), ids=list(found))


@by_file(texts())
def test_words_are_plain(file, text):
    found = [
        f"line {number}: {word} in {line.strip()[:90]!r}"
        for number, line in enumerate(text.splitlines(), 1)
        for word in banned_words(line)
        if (file, word) not in ALLOWED
    ]
    assert not found, f"{file}: {len(found)} words to replace\n" + "\n".join(found)


def test_every_exception_is_needed():
    found = texts()
    for file, word in ALLOWED:
        assert word in [w for line in found[file].splitlines() for w in banned_words(line)], file


@by_file(pages())
def test_a_line_of_prose_is_one_sentence_and_short(file, text):
    found = []
    for number, line in prose_lines(text):
        bare = QUOTES.names_only(line)
        bare = re.sub(r"\]\([^)]*\)|\{\{ \w+ \}\}|\{cite:\w+\}`[^`]*`", "", bare)
        if len(bare) > MAX_LINE:
            found.append(f"line {number}: {len(line)} characters: {line[:70]!r}")
        bare = re.sub(r"^\s*(?:[-*]\s+|\d+\.\s+)?(?:\*\*[^*]+\*\*\s)?", "", line)
        bare = ABBREVIATION.sub(" ", bare)
        if match := SENTENCE_END.search(bare):
            found.append(f"line {number}: a sentence ends before {bare[match.end() :][:40]!r}")
    assert not found, f"{file}: {len(found)} lines\n" + "\n".join(found)


@by_file({f: t for f, t in texts().items() if f.startswith("lensml/") and f.endswith(".py")})
def test_a_docstring_begins_with_one_short_line(file, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = (ast.get_docstring(node) or "").split("\n")
            assert len(first[0]) <= 88, f"{file}: {first[0]!r} has {len(first[0])} characters"
            assert not any(first[1:2]), f"{file}: {first[0]!r} goes on in a second line"


def test_the_readme_lists_the_rooms_and_the_chapters():
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```\nlensml/\n(.*?)\n\n", text, re.DOTALL)[1]
    rooms = {p.name for p in (ROOT / "lensml").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert set(re.findall(r"^  (\w+)/", tree, re.MULTILINE)) == rooms
    chapters = re.findall(r"^\| `(\d\d_\w+)` \|", text, re.MULTILINE)
    assert chapters == [p.stem for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]


@by_file(pages())
def test_every_quoted_number_is_that_of_its_record(file, text):
    assert QUOTES.quote(text, VALUES, file) == text, "`lensml book --quote` renews quoted numbers"
    renewed = {match.end() for match in QUOTES.WRITTEN.finditer(text)}
    for match in re.finditer(r"<!-- (?:r\d\d|b)_\w+ -->", text):
        assert match.end() in renewed, f"{match[0]} follows no number as `--quote` writes it"
    if not file.startswith("book/"):  # JupyterLab and GitHub show them as they stand
        assert re.findall(r"\{\{ \w+ \}\}", text) == []


@by_file(pages())
def test_code_in_prose_uses_names_that_the_package_has(file, text):
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert hasattr(import_module(node.module), alias.name), alias.name
        for name in re.findall(r"\blm\.(\w+)", code):
            assert hasattr(import_module("lensml"), name), f"lensml.{name}"


@by_file(pages())
def test_files_and_modules_named_in_prose_exist(file, text):
    for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
        base = ROOT / Path(file).parent
        assert (base / target).exists(), f"{file} links to {target}"
    for name in re.findall(r"`((?:lensml|book|benchmarks|tests|notebooks)/[\w/.]+)`", text):
        assert "NN_" in name or (ROOT / name).exists(), f"{file} names {name}"


def test_the_readme_quotes_what_the_first_page_of_the_book_quotes():
    readme, first_page = ((ROOT / n).read_text() for n in ("README.md", "book/index.md"))
    assert len(QUOTE.findall(readme)) >= 10
    assert set(QUOTE.findall(readme)) <= set(QUOTE.findall(first_page))


def test_the_first_page_and_the_readme_say_what_was_not_run():
    for name in ("README.md", "book/index.md", "book/status.md"):
        text = " ".join((ROOT / name).read_text().split())
        assert re.search(r"`full`.{0,40}has not been run", text), name


def test_every_reference_has_an_address_or_is_known_to_have_none():
    entries = parse_file(ROOT / "book/references.bib").entries
    bare = {k for k, e in entries.items() if not {"doi", "eprint", "howpublished"} & set(e.fields)}
    assert bare == {"SchneiderWeiss1986", "ErdlSchneider1993"}  # A&A had no DOI then
    keys = [key for text in pages().values() for key in CITED.findall(text)]
    assert {key for listed in keys for key in listed.split(",")} <= set(entries)


@pytest.mark.parametrize(
    "term",
    "twin,contaminant,refit-limited observer,oracle bound,undetectable,prefix,matched set,"
    "alert,season,false alarm,onset,premature,lapse rate,anytime table".split(","),
)
def test_the_glossary_explains(term):
    glossary = (ROOT / "book/notation.md").read_text().split("## Glossary")[1]
    assert re.search(rf"^\| [^|]*\b{term}\b[^|]* \| \w", glossary, re.MULTILINE) or (
        f"*{term}*" in glossary
    )
