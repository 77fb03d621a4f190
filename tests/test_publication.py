"""Files for others' services: workflows, citation, templates."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_archive_s_description_is_that_of_the_citation_file():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    archive = json.loads((ROOT / ".zenodo.json").read_text())
    for one, other in (("title", "title"), ("version", "version"), ("license", "license")):
        assert str(citation[one]) == archive[other]
    assert citation["keywords"] == archive["keywords"]
    assert citation["abstract"].strip() == archive["description"]
    assert citation["authors"] == archive["creators"]
    assert archive["upload_type"] == citation["type"]
    assert archive["related_identifiers"][0]["identifier"] == citation["repository-code"]


def test_version_and_address_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert project["version"] == str(citation["version"])
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert config["repository"]["url"] == citation["repository-code"]
    assert config["html"]["baseurl"].endswith("/")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_names_its_permissions_and_pins_what_it_uses(path):
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}  # more only where a job asks for it
    used = re.findall(r"uses: (.*)", text)
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", x) for x in used), used
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_workflows_use_one_version_of_an_action():
    used = {x for p in WORKFLOWS for x in re.findall(r"uses: (.*)", p.read_text())}
    assert len(used) == len({x.partition("@")[0] for x in used})


def test_the_tests_run_on_every_python_that_the_set_up_page_names():
    low, high = re.search(
        r"Needed: Python 3\.(\d+) to 3\.(\d+)", (ROOT / "book" / "setup.md").read_text()
    ).groups()
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    pythons = matrix["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == [f"3.{minor}" for minor in range(int(low), int(high) + 1)]


def test_a_pdf_needs_in_the_workflow_what_the_set_up_page_names():
    packages = r"latexmk (?:[\w\\\s-]+?)librsvg2-bin"
    pages = [ROOT / "book" / "setup.md", ROOT / ".github" / "workflows" / "book.yml"]
    named = [set(re.search(packages, p.read_text())[0].split()) - {"\\"} for p in pages]
    assert named[0] == named[1]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem
)
def test_an_issue_template_is_a_form_with_an_answer_that_is_needed(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"] and form["labels"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_hooks_before_a_commit_are_those_of_the_environment():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/python -m ") for hook in local["hooks"])
