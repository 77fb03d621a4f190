"""Files that must name the same requirements, and chapters as they are committed."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def requirement(line: str) -> tuple[str, str]:
    """Normalised name and bounds of one requirement."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", line.strip()).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), bounds.replace(" ", "")


def test_hub_environment_agrees_with_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = environment["dependencies"]
    wanted = {requirement(line) for line in pip["pip"] if not line.startswith("-")}
    assert wanted == {requirement(line) for line in project["dependencies"]}
    assert requirement(plain[0]) == ("python", project["requires-python"])


def test_tested_versions_are_within_the_bounds_of_the_package():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {requirement(name)[0]: pin for name, pin in pins.items()}
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        wanted = Requirement(line)
        assert pins[requirement(wanted.name)[0]] in wanted.specifier, line


def test_constraints_name_versions_and_nothing_of_one_machine():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|file:|@|\+", text)


def notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_table_of_contents_lists_every_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    listed = [f.removeprefix("notebooks/") for f in files if f.startswith("notebooks/")]
    assert listed == [path.stem for path in notebooks()]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_chapter_is_committed_without_outputs_and_with_parameters(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert {"size", "seed"} <= {
        target.id
        for node in ast.parse("".join(tagged[0]["source"])).body
        for target in node.targets
    }
