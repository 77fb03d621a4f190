"""Model card and data card agree with their records; API pages hold every public name."""

import json
import re
import shutil
import tomllib
from fnmatch import fnmatch

import pytest
import yaml

from lensml.experiments import book_code
from lensml.paths import CHECKOUT, DATA, WEIGHTS

cards, api, head = (book_code(name) for name in ("cards", "api", "head"))
CARDS = cards.cards()
NAMED = re.compile(r"^\.\. (?:autoclass|autofunction|py:data):: lensml\.\w+\.(\w+)$", re.M)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_card_has_every_table_as_its_records_have_it(path):
    text = path.read_text()
    assert {found[2] for found in cards.PLACE.finditer(text)} == set(CARDS[path])
    assert cards.renew(text, CARDS[path]) == text, "`lensml book --quote` renews cards"


def test_another_record_makes_another_card(tmp_path):
    folder = shutil.copytree(WEIGHTS, tmp_path / "weights")
    alerts = json.loads((folder / "alerts.json").read_text())
    alerts["thresholds"]["ogle"]["1pct"]["threshold"] = 0.123456
    (folder / "alerts.json").write_text(json.dumps(alerts))
    renewed = cards.renew((WEIGHTS / "README.md").read_text(), cards.model_tables(folder))
    assert "| ogle | 0.1235 |" in renewed and "0.1235" not in (WEIGHTS / "README.md").read_text()


def test_an_empty_place_is_filled_and_the_text_around_it_kept():
    text = (
        "a\n\n<!-- table: x -->\n\n<!-- end -->\n\nb\n\n<!-- table: x -->\n\nold\n\n<!-- end -->\n"
    )
    place = "<!-- table: x -->\n\nnew\n\n<!-- end -->\n"
    assert cards.renew(text, {"x": lambda: "new"}) == f"a\n\n{place}\nb\n\n{place}"


def test_the_model_card_is_in_the_wheel_and_both_are_pages_of_the_book():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["lensml"]
    assert any(fnmatch("weights/README.md", pattern) for pattern in patterns)
    toc = yaml.safe_load((CHECKOUT / "_toc.yml").read_text())
    listed = {f"{x['file']}.md" for part in toc["parts"] for x in part["chapters"]}
    assert set(book_code("build").CARDS) <= listed
    assert set(book_code("build").CARDS.values()) == {WEIGHTS / "README.md", DATA / "README.md"}


def rooms():
    return sorted(p.parent.name for p in (CHECKOUT / "lensml").glob("*/__init__.py"))


def test_every_room_has_a_page_in_the_book():
    toc = yaml.safe_load((CHECKOUT / "_toc.yml").read_text())
    (sections,) = (
        [s["file"] for s in x["sections"]]
        for part in toc["parts"]
        for x in part["chapters"]
        if x["file"] == "book/api"
    )
    assert sorted(sections) == [api.ROOM + room for room in rooms()]
    assert all((CHECKOUT / f"{file}.md").exists() for file in sections)


@pytest.mark.parametrize("room", rooms())
def test_a_page_has_every_public_name_once_and_no_path_of_this_machine(room):
    text = api.room_text(room)
    names = sorted(n for public in api.public_names(room).values() for n in public)
    assert sorted(NAMED.findall(text)) == names
    assert str(CHECKOUT) not in text


def test_comments_explain_constants_and_fields():
    source = "# above\nA = 1\nB, C = 2, 3  # both\n\n\nclass D:\n    x: float = 0  # [day]\n"
    found = api.assignments(source)
    assert found == {"A": ("1", "above"), "B": ("2", "both"), "C": ("3", "both")}
    assert api.assignments(source, "D") == {"x": ("float", "[day]")}


def test_a_description_is_the_first_paragraph_cut_between_words():
    from docutils.core import publish_doctree

    text = f"Title\n=====\n\n.. note:: aside\n\n{'word ' * 60}\n\nSecond."
    doctree = publish_doctree(text, settings_overrides={"doctitle_xform": False})
    shown = head.description(doctree)
    assert shown.endswith("word ...") and len(shown) <= head.LONGEST + 4
