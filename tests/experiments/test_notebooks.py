"""Chapters run by papermill and compiled into a book: what is refused, kept and shown."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

import lensml
from lensml.experiments import book as publish
from lensml.experiments import notebooks as chapters
from lensml.experiments import results
from lensml.paths import BOOK, InputError

prose, compiler = publish.book_code("quotes"), publish.book_code("build")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with one chapter; every folder that `chapters` writes to is inside it."""
    monkeypatch.delenv(results.OUTPUT_VARIABLE, raising=False)
    build = tmp_path / "_build"
    folders = {
        "NOTEBOOKS": tmp_path / "notebooks",
        "BUILD": build,
        "EXECUTED": build / "notebooks",
        "LOGS": build / "logs",
        "RECORDS": build / "records",
    }
    for name, folder in folders.items():
        monkeypatch.setattr(chapters, name, folder)
    folders["NOTEBOOKS"].mkdir()
    code = "import os\nfrom lensml.paths import progress_bar\n"
    code += "list(progress_bar([1, 2], 'two', delay=0))\n"
    code += "print(size, seed, os.environ.get('LENSML_OUTPUT'))"
    write_chapter(tmp_path, "02_baseline", code)
    return tmp_path


def write_chapter(root, name, code, **metadata):
    cells = [
        nbformat.v4.new_code_cell('size = "smoke"\nseed = 0', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code, metadata=metadata),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")


def executed(root, name="02_baseline"):
    return root / "_build" / "notebooks" / f"{name}.ipynb"


def printed(path):
    cells = json.loads(path.read_text())["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    return "".join("".join(o["text"]) for o in outputs if o["name"] == "stdout")


def test_a_chapter_runs_with_its_size_and_leaves_a_record(tree):
    chapters.run("2", size="desk")
    assert printed(executed(tree)).split() == ["desk", "0", "None"]
    record = chapters.read_record("02_baseline")
    assert record["size"] == "desk" and record["wall_time_s"] > 0 and "device" in record
    assert chapters.is_current("02_baseline", "desk", {})
    assert not chapters.is_current("02_baseline", "smoke", {})
    write_chapter(tree, "02_baseline", "print('changed')")
    assert not chapters.is_current("02_baseline", "desk", {})


def test_a_copy_holds_no_progress_bar(tree):
    chapters.run("2")
    cells = json.loads(executed(tree).read_text())["cells"]
    (output,) = [output for cell in cells for output in cell.get("outputs", [])]
    assert output["name"] == "stdout"


def test_changed_parameters_are_passed_and_keep_out_of_the_committed_results(tree):
    chapters.run("02_baseline", parameters={"seed": "7"})
    assert printed(executed(tree)).split() == ["smoke", "7", str(tree / "_build" / "custom")]


def test_an_unknown_parameter_is_refused_before_anything_runs(tree):
    with pytest.raises(InputError, match="no parameter 'sed'; it knows size, seed"):
        chapters.run("02_baseline", parameters={"sed": "7"})
    assert not (tree / "_build").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1,2)", [1, 2]),
        ("[1, (2, 'a')]", [1, [2, "a"]]),
        ("{'a': (1,)}", {"a": [1]}),
        ("None", None),
        ("plain text", "plain text"),
        ("1e-3", 1e-3),
    ],
)
def test_a_parameter_is_the_literal_it_spells(text, value):
    assert chapters.literal(text) == value


def test_a_parameter_with_an_unknown_escape_is_text_without_a_warning(recwarn):
    assert chapters.literal(r"'\]'") == r"\]"
    assert not recwarn.list


@pytest.mark.parametrize("text", ["{1, 2}", "b'a'", "1j", "...", "{(1, 2): 3}", "1+" * 30000 + "1"])
def test_a_parameter_of_another_type_is_refused_in_one_line(text):
    with pytest.raises(InputError, match="a parameter") as refused:
        chapters.literal(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "seed",
    [
        """('"; open("owned", "w") #',)""",
        """'"; open("owned", "w") #'""",
        """x"
open("owned", "w")
#""",
        """{'a"; open("owned", "w") #': 1}""",
        """\\"; open("owned", "w") #""",
    ],
)
def test_no_parameter_runs_as_code(tree, seed):
    chapters.run("02_baseline", parameters={"seed": seed})
    assert not (tree / "notebooks" / "owned").exists() and not os.path.exists("owned")
    injected = json.loads(executed(tree).read_text())["cells"][1]
    assert injected["metadata"]["tags"] == ["injected-parameters"]
    values = {n.targets[0].id: n.value for n in ast.parse("".join(injected["source"])).body}
    assert ast.literal_eval(values["seed"]) == chapters.literal(seed)


@pytest.mark.parametrize("size", ["tiny", "Smoke"])
def test_an_unknown_size_is_refused(tree, size):
    with pytest.raises(InputError, match="smoke, desk, full"):
        chapters.run("02_baseline", size=size)


def test_an_unknown_chapter_is_answered_with_the_known_ones(tree):
    with pytest.raises(InputError, match="'03' does not exist; expected all or one of 02_baseline"):
        chapters.run("03")


@pytest.mark.parametrize("tags", [[], ["raises-exception"]], ids=["stops", "saved"])
def test_an_error_in_a_cell_fails_the_chapter_and_keeps_the_old_copy(tree, tags):
    chapters.run("02_baseline")
    before = executed(tree).read_bytes()
    write_chapter(tree, "02_baseline", "1 / 0", tags=tags)
    with pytest.raises(SystemExit, match="02_baseline: .*division by zero.*log .*02_baseline.log"):
        chapters.run("02_baseline")
    assert executed(tree).read_bytes() == before
    assert (tree / "_build" / "logs" / "02_baseline.failed.ipynb").exists()


def test_a_paragraph_quotes_results_and_says_when_there_is_none():
    values = {"r02": "02_baseline", "r02_auc": "0.75"}
    values |= {"b_stream": "stream", "b_stream_rate": "20,000"}
    text = "AUC {{ r02_auc }}.\n\nAlso {{ r03_auc }}.\n\n$a_{{b}}$"
    text += "\n\n{{ b_stream_rate }} a second\n\n{{ b_training_rate }}"
    filled = prose.fill(text, values, "index.md").split("\n\n")
    assert filled[0] == "AUC 0.75."
    assert filled[1] == "*Waits for a committed result of chapter 03.*"
    assert filled[3] == "20,000 a second"
    assert filled[4] == "*Waits for a committed result of benchmark training.*"


def test_a_number_that_a_committed_result_lacks_stops_the_build():
    with pytest.raises(InputError, match="index.md quotes 'r02_acu'.*near are r02_auc"):
        prose.fill("AUC {{ r02_acu }}.", {"r02": "02_baseline", "r02_auc": "0.75"}, "index.md")


def test_works_cited_read_in_a_notebook_and_stay_roles_in_the_book():
    text = "Weeks {cite:p}`GouldLoeb1992,Gaudi2012`, as {cite:t}`Mroz2020` and {cite:p}`Bond2004`."
    shown = prose.quote(text, VALUES, "02_baseline.ipynb")
    assert "[(Gould and Loeb 1992; Gaudi 2012)](../book/bibliography.md)<!-- cite:p " in shown
    assert "as [Mróz (2020)](" in shown and "[(Bond et al. 2004)](" in shown
    assert prose.quote(shown, VALUES, "02_baseline.ipynb") == shown
    assert prose.fill(shown, VALUES, "02_baseline.ipynb") == text
    assert prose.quote(text, VALUES, "methods.md") == text  # a page is read in the book


def test_numbers_in_a_notebook_are_filled_in_its_markdown_alone():
    cells = [
        nbformat.v4.new_markdown_cell("AUC {{ r02_auc }}.\n\n$a_{{b}}$"),
        nbformat.v4.new_code_cell("print('{{ r02_auc }}')"),
    ]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    values = {"r02": "02_baseline", "r02_auc": "0.75"}
    filled = json.loads(prose.edit_markdown(text, prose.fill, values, "02_baseline.ipynb"))["cells"]
    assert "".join(filled[0]["source"]) == "AUC 0.75.\n\n$a_{{b}}$"
    assert "".join(filled[1]["source"]) == "print('{{ r02_auc }}')"
    wrong = text.replace("AUC {{ r02_auc }}", "AUC {{ r02_acu }}")
    with pytest.raises(InputError, match="02_baseline.ipynb quotes 'r02_acu'.*near are r02_auc"):
        prose.edit_markdown(wrong, prose.fill, values, "02_baseline.ipynb")


VALUES = {"r02": "02_baseline", "r02_auc": "0.75 (0.70 to 0.80)", "r02_size": "desk"}
VALUES["r02_auc"] = VALUES["r02_auc"].replace(" ", "\u00a0")


def test_numbers_are_written_beside_their_names_and_renewed():
    text = (
        "AUC ({{ r02_auc }}), *{{ r02_size }}*, {{ r03_auc }}, {{ status_table }}.\n{{ r02_auc }}"
    )
    first = prose.quote(text, VALUES, "a.md")
    value = VALUES["r02_auc"]
    assert first == (
        f"AUC ({value}<!-- r02_auc -->), *desk<!-- r02_size -->*, {{{{ r03_auc }}}}, "
        f"{{{{ status_table }}}}.\n{value}<!-- r02_auc -->"
    )
    assert prose.quote(first, VALUES, "a.md") == first
    newer = prose.quote(first, VALUES | {"r02_auc": "0.9"}, "a.md")
    assert newer == first.replace(value, "0.9")
    assert prose.fill(first, VALUES | {"r03": "", "r03_auc": "1", "status_table": ""}, "a.md") == (
        f"AUC ({value}), *desk*, 1, .\n{value}"
    )


@pytest.mark.parametrize(
    "text", ["x{{ r02_auc }}", "$a$ and $x = {{ r02_auc }}$", "`{{ r02_auc }}`"]
)
def test_a_number_that_could_not_be_found_again_is_refused(text):
    with pytest.raises(InputError, match="a.md: r02_auc needs a blank before it"):
        prose.quote(text, VALUES, "a.md")


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(InputError, match="a.md quotes 'r02_acu'.*near are r02_auc"):
        prose.quote("0.7<!-- r02_acu -->", VALUES, "a.md")


def test_one_command_renews_readme_pages_and_chapters(tree, monkeypatch):
    chapters.NOTEBOOKS.joinpath("02_baseline.ipynb").unlink()
    cells = [nbformat.v4.new_markdown_cell("AUC {{ r02_auc }},\n{{ r02_size }}")]
    path = tree / "notebooks" / "02_baseline.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    (tree / "README.md").write_text("0.1<!-- r02_auc -->")
    (tree / "book").mkdir()
    (tree / "book" / "index.md").write_text("no number")
    folders = {"ROOT": tree, "BOOK": tree / "book", "NOTEBOOKS": tree / "notebooks"}
    for name, folder in folders.items():
        monkeypatch.setattr(prose, name, folder)
    monkeypatch.setattr(prose, "quotable", lambda: VALUES)
    assert prose.quote_everywhere() == ["02_baseline.ipynb", "README.md"]
    assert (tree / "README.md").read_text() == f"{VALUES['r02_auc']}<!-- r02_auc -->"
    source = json.loads(path.read_text())["cells"][0]["source"]
    assert source == [f"AUC {VALUES['r02_auc']}<!-- r02_auc -->,\n", "desk<!-- r02_size -->"]
    assert prose.quote_everywhere() == []
    (tree / "book" / "index.md").write_text("{{ r02_acu }}")
    (tree / "README.md").write_text("0.1<!-- r02_auc -->")
    with pytest.raises(InputError, match="index.md quotes 'r02_acu'"):
        prose.quote_everywhere()
    assert "0.75" in (tree / "README.md").read_text()  # the others are renewed all the same


def pages():
    markdown = {path.name: path.read_text() for path in BOOK.glob("*.md")}
    return markdown | {f"{name}.ipynb": source(name) for name in book_names()}


def source(name):
    cells = json.loads((chapters.NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_every_quoted_number_of_pages_and_notebooks_is_committed():
    values = prose.quotable()
    for name, text in pages().items():
        assert "Waits for" not in prose.fill(text, values, name), name


def book_names():
    return [path.stem for path in sorted(chapters.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]


def code_cells(name):
    cells = json.loads((chapters.NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", book_names())
def test_a_chapter_has_few_lines_of_code(name):
    lines = [sum(bool(line.strip()) for line in cell.splitlines()) for cell in code_cells(name)]
    assert sum(lines) < 150 and max(lines) <= 25


@pytest.mark.parametrize("name", book_names())
def test_a_chapter_uses_what_rooms_show(name):
    tree = ast.parse("\n".join(code_cells(name)))
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.ctx == ast.Store()}
    rooms = {"lm": lensml} | {
        alias.name: importlib.import_module(f"lensml.{alias.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "lensml"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not node.attr.startswith("_"), node.attr
            if node.value.id in rooms.keys() - assigned:
                assert node.attr in rooms[node.value.id].__all__, f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("missing", ["xelatex", "sphinxcontrib.rsvgconverter"])
def test_what_a_pdf_needs_is_named_before_anything_runs(tree, monkeypatch, missing):
    monkeypatch.setattr(compiler, "lacks", lambda name: name == missing)
    with pytest.raises(InputError, match=f"^{missing} is missing: (apt-get|pip) install"):
        publish.make_book(pdf=True)
    assert not (tree / "_build").exists()


def test_an_installed_program_and_module_are_found():
    assert not compiler.lacks("python3") and not compiler.lacks("sphinxcontrib.bibtex")
    assert compiler.lacks("no-such-program") and compiler.lacks("sphinxcontrib.none")


@pytest.mark.book
@pytest.mark.parametrize("name", book_names())
def test_every_chapter_runs_at_smoke_without_an_error(built_book, name):
    path = built_book.stage / "notebooks" / f"{name}.ipynb"
    assert chapters.error_outputs(path) == []
    cells = json.loads(path.read_text())["cells"]
    assert all(
        cell["execution_count"] for cell in cells if cell["cell_type"] == "code" and cell["source"]
    )


@pytest.mark.book
def test_the_book_prints_where_it_is_and_shows_every_chapter(built_book):
    assert f"file://{built_book.html}/index.html" in built_book.output
    for name in book_names():
        assert (built_book.html / "notebooks" / f"{name}.html").exists()
    status = (built_book.html / "book" / "status.html").read_text()
    assert all(name in status for name in book_names())


@pytest.mark.book
def test_a_page_loads_nothing_from_the_network(built_book):
    loads = re.compile(
        r"""<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//"""
    )
    allowed = re.compile(r'rel="(canonical|author|license)"')
    for page in built_book.html.rglob("*.html"):
        found = [m[0] for m in loads.finditer(page.read_text()) if not allowed.search(m[0])]
        assert found == [], page
    for sheet in built_book.html.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.book
def test_every_image_has_words_for_those_who_do_not_see_it(built_book):
    for page in built_book.html.rglob("*.html"):
        article = page.read_text().partition("<article")[2]
        for image in re.findall(r"<img\b[^>]*>", article):
            words = re.search(r'alt="([^"]*)"', image)
            assert words and len(words[1].split()) >= 3, f"{page.name}: {image[:120]}"


@pytest.mark.book
def test_no_placeholder_or_comment_reaches_a_page(built_book):
    for page in built_book.html.rglob("*.html"):
        article = page.read_text().partition("<article")[2]
        assert not re.search(r"\{\{ \w+ \}\}|\{(?:glue|cite|ref)\b|&lt;!-- \w", article), page.name


@pytest.mark.book
@pytest.mark.parametrize("name", book_names())
def test_a_chapter_has_a_number_and_its_own_run_in_one_block(built_book, name):
    page = (built_book.html / "notebooks" / f"{name}.html").read_text()
    assert re.search(rf"<h1>{int(name[:2])}\. ", page)
    assert page.count("own-run") == (results.load_results(name) is not None)


@pytest.mark.book
def test_launch_buttons_point_at_committed_sources(built_book):
    page = (built_book.html / "notebooks" / f"{book_names()[0]}.html").read_text()
    assert (
        f"mybinder.org/v2/gh/lensml/lensml/main?urlpath=lab/tree/notebooks/{book_names()[0]}.ipynb"
        in page
    )


@pytest.mark.book
def test_a_run_that_repeats_itself_keeps_every_chapter(built_book):
    run = subprocess.run(
        [sys.executable, "-m", "lensml", "run", "all", "--size", "smoke"],
        cwd=built_book.root,
        env={**os.environ, "PYTHONPATH": str(built_book.root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"kept, unchanged since their last run at this size: {book_names()[0]}" in run.stdout
