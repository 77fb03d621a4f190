"""Executed chapters become pages: figures at their captions, numbered tables, links."""

import json
import re

import nbformat
import pytest

from lensml.experiments import book_code

extension = book_code("chapters")


def output(data, **origin):
    return nbformat.v4.new_output("display_data", data=data, metadata={"lensml": origin})


def table(key, number, **changes):
    shown = {"caption": "Scores.", "headings": ["", "AUC"], "rows": [["network", "0.5"]]}
    shown |= {"note": "48 pairs", "key": key, "number": number, **changes}
    return output({"text/html": "<table>"}, table=shown)


PROSE = """**Figure 2.1.** Recall against $\\Delta\\chi^2$, see chapter 03.
Dashed: the *ideal*.

As Figure 2.1 and Table 2.1 show."""


@pytest.fixture
def tree(tmp_path):
    """A staging tree with chapters 02 and 03."""
    for folder in ("notebooks", "figures", "records"):
        (tmp_path / folder).mkdir()
    (tmp_path / "figures" / "02_roc.svg").write_text("<svg/>")
    write(tmp_path, "02_baseline")
    write(tmp_path, "03_distinct", outputs=[], prose="As in chapters 02 and 03, Figure 2.1.")
    return tmp_path


def write(root, name, outputs=None, prose=PROSE):
    if outputs is None:
        outputs = [
            output({"text/html": "a run"}, start=name),
            output({"image/svg+xml": "<svg/>"}, figure="02_roc"),
            table("1", 1),
            output({"text/html": "<details>"}, own=name),
            output({"text/markdown": "Committed."}, provenance=name),
            nbformat.v4.new_output("stream", text="printed"),
        ]
    cells = [
        nbformat.v4.new_markdown_cell("# Baseline\n\nText."),
        nbformat.v4.new_code_cell("size = 'smoke'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("chapter.figure(figure)", outputs=outputs),
        nbformat.v4.new_markdown_cell(prose),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")


def page(root, name="notebooks/02_baseline", **options):
    """Cells of a page."""
    text = (root / f"{name}.ipynb").read_text()
    return json.loads(extension.Book(root, **options).page(name, text))["cells"]


def prose(cells):
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def test_a_figure_moves_to_its_caption_with_name_and_alternative_text(tree):
    cells = page(tree)
    figure = (
        ":::{figure} ../figures/02_roc.svg\n"
        ":name: figure-2-1\n"
        ":alt: Recall against delta chi-squared, see chapter 03. Dashed: the ideal.\n"
    )
    assert figure in cells[-1]["source"]
    assert "image/svg+xml" not in json.dumps(cells)


def test_a_table_has_number_caption_and_note(tree):
    assert (
        ":::{table} **Table 2.1.** Scores.\n:name: table-2-1\n\n"
        "|  | AUC |\n| --- | --- |\n| network | 0.5 |\n:::\n\n*48 pairs*" in prose(page(tree))
    )


def test_the_committed_table_takes_the_place_of_this_copy_s(tree):
    kept = {"caption": "Kept.", "headings": ["", "AUC"], "rows": [["network", "0.7"]], "note": ""}
    (tree / "records" / "02_baseline.json").write_text(
        json.dumps(
            {"tables": {"1": kept}, "numbers": {"auc": {"value": 0.7, "low": 0.6, "high": 0.8}}}
        )
    )
    text = prose(page(tree))
    assert "**Table 2.1.** Kept." in text and "| 0.7 |" in text and "0.5" not in text
    assert "[CSV](../records/02_baseline.csv)" in text
    assert (tree / "records" / "02_baseline.csv").read_text().split() == [
        "quantity,value,low,high",
        "auc,0.7,0.6,0.8",
    ]


def test_code_is_folded_and_parameters_are_gone(tree):
    code = [c for c in page(tree) if c["cell_type"] == "code"]
    assert ["".join(c["source"]) for c in code] == ["chapter.figure(figure)"]
    assert code[0]["metadata"]["tags"] == ["hide-input"]
    kept = [o.get("metadata", {}).get("lensml", "printed") for o in code[0]["outputs"]]
    assert kept == [{"own": "02_baseline"}, "printed"]


def test_in_print_there_is_neither_code_nor_the_run_of_this_copy(tree):
    code = [c for c in page(tree, latex=True) if c["cell_type"] == "code"]
    assert code[0]["metadata"]["tags"] == ["remove-input"]
    assert [o["output_type"] for o in code[0]["outputs"]] == ["stream"]


def test_titles_have_numbers(tree):
    assert page(tree)[0]["source"].startswith("# 2. Baseline\n")


def test_references_become_links_outside_captions_headings_and_code(tree):
    text = prose(page(tree))
    assert "As {ref}`Figure 2.1 <figure-2-1>` and {ref}`Table 2.1 <table-2-1>` show." in text
    assert "see chapter 03.\nDashed" in text  # in the caption
    other = prose(page(tree, "notebooks/03_distinct"))
    assert "chapters [2](../notebooks/02_baseline.ipynb) and [3](../notebooks/03" in other
    book = extension.Book(tree)
    kept = "# Figure 2.1\n`chapter 02` [chapter 02](x.md)\n```\nTable 2.1\n```"
    assert book.with_links(kept, "book/index") == kept
    assert book.with_links("See chapter 02.", "book/index").startswith("See [chapter 2](../note")


def test_the_lists_name_every_figure_and_table(tree):
    book = extension.Book(tree)
    text = book.page("book/figures", "{{ list_of_figures }}")
    assert "- {ref}`Figure 2.1 <figure-2-1>`. Recall against $\\Delta\\chi^2$, see [chapter" in text
    assert "Dashed" not in text
    assert "{ref}`Table 2.1 <table-2-1>`. Scores." in book.page(
        "book/tables", "{{ list_of_tables }}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("No caption.", "figure 02_roc has no caption"),
        ("**Figure 2.2.** Second.", "Figure 2.1 was expected, but a caption has Figure 2.2"),
        ("**Figure 3.1.** Second.", "Figure 2.1 was expected"),
        ("**Figure 2.1.** A.\n\n**Figure 2.2.** B.", "no figure is left for the caption of"),
        (PROSE + "\n\nFigure 7.3", "02_baseline names Figure 7.3, which does not exist"),
        (PROSE + "\n\nchapter 77", "names chapter 77, which does not exist"),
    ],
)
def test_a_wrong_caption_or_reference_is_one_line(tree, text, message):
    write(tree, "02_baseline", prose=text)
    with pytest.raises(extension.ChapterError, match=message) as refused:
        page(tree)
    assert "\n" not in str(refused.value)


def test_a_figure_without_a_file_is_named(tree):
    (tree / "figures" / "02_roc.svg").unlink()
    with pytest.raises(extension.ChapterError, match="no file of figure 02_roc"):
        page(tree)


def test_tables_of_origin_have_a_row_a_chapter(tree):
    p = {"size": "desk", "commit": "0123456789abc", "modified": True, "date": "2026-11-27"}
    p |= {"wall_time_s": 1234.5, "device": "CPU", "python": "3.11", "versions": {"torch": "2"}}
    (tree / "records" / "02_baseline.json").write_text(json.dumps({"provenance": p, "numbers": {}}))
    (tree / "runs").mkdir()
    (tree / "runs" / "02_baseline.json").write_text(json.dumps(p))
    book = extension.Book(tree)
    row = "| desk | 0123456789 (modified) | 2026-11-27 | 1,234 | CPU |"
    text = book.page("book/results", "{{ provenance_table }}")
    assert f"[02_baseline](../notebooks/02_baseline.ipynb) {row} [JSON](../records/" in text
    assert "| 03_distinct | none |" in text and "SHA-256 of the shipped weights: `" in text
    text = book.page("book/status", "{{ status_table }}")
    assert f"| 02_baseline {row}" in text and "All: Python 3.11, torch 2." in text


def test_text_of_a_table_is_neither_tag_nor_column():
    table = extension.markdown_table(["$q < 1$"], [["<b>|"]])
    assert table == "| $q < 1$ |\n| --- |\n| \\<b>\\| |"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "\\<img src=x onerror=alert(1)>",
        "$<svg onload=alert(1)>$ `<b>`",
        "a\n:::{raw} html\n<b>",
        r"$\href{javascript:alert(1)}{x}$",
    ],
)
def test_text_of_a_record_is_no_code_of_a_page(tree, text):
    """Caption, note, heading, cell and device: nothing in a results file runs in a browser."""
    shown = {"caption": text, "headings": [text, "b"], "rows": [[text, "1"]], "note": text}
    origin = {"size": "desk", "commit": "abc", "modified": False, "date": "2026-01-01"}
    origin |= {"wall_time_s": 1, "device": text}
    record = {"numbers": {"a": 1}, "tables": {"1": shown}, "provenance": origin}
    (tree / "records" / "02_baseline.json").write_text(json.dumps(record))
    book = extension.Book(tree)
    for made in (prose(page(tree)), book._records()):
        assert not re.search(r"<(?:script|img|svg|b\b)|\\+href|^:::\{raw", made, re.M), made
