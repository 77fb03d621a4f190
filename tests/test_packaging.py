"""Files that must name the same requirements, and chapters as they are committed."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from itertools import chain
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    named = [*project["dependencies"], *project["optional-dependencies"]["notebooks"]]
    assert wanted == {requirement(line) for line in named}
    assert "--editable .[notebooks]" in pip["pip"]
    assert requirement(plain[0]) == ("python", project["requires-python"])


def test_tested_versions_are_within_the_bounds_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = constraints()
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *chain.from_iterable(extras.values())]:
        wanted = Requirement(line)
        if wanted.name == project["name"]:
            assert wanted.extras < set(extras)
            continue
        for pinned in pins[canonicalize_name(wanted.name)]:
            assert all(pin.version in wanted.specifier for pin in pinned.specifier), line


def test_all_that_an_installation_here_needs_is_pinned():
    """What pip would take besides is CUDA's, which belongs to the build of torch."""
    pins, todo, seen = constraints(), {"lensml": {"test"}}, set()
    while todo:
        name, extras = todo.popitem()
        if (name, *sorted(extras)) in seen or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add((name, *sorted(extras)))
        assert name in pins or name in ("lensml", "pip"), name
        if name == "lensml":
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            needed = [*project["dependencies"]]
            for extra in ("notebooks", "completion", "test"):
                needed += project["optional-dependencies"][extra]
        else:
            try:
                needed = requires(name) or []
            except PackageNotFoundError:
                continue  # of another extra; only its pin counts
        for wanted in map(Requirement, needed):
            held = [{"extra": extra} for extra in extras | {""}]
            if not wanted.marker or any(map(wanted.marker.evaluate, held)):
                found = todo.setdefault(canonicalize_name(wanted.name), set())
                found |= wanted.extras


def test_jupyter_is_no_requirement_of_the_base():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {requirement(line)[0] for line in project["dependencies"]}
    assert not base & {"jupyterlab", "papermill", "jupyter-book", "ipykernel", "ipywidgets"}


def constraints() -> dict[str, list]:
    """Pins of each package; several where they hold for different versions of Python."""
    found: dict[str, list] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


@pytest.mark.parametrize("system", ["linux", "darwin"])
@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.7", "3.12.1", "3.13.0", "3.14.0"])
def test_one_version_of_each_package_is_pinned_for_every_python(python, system):
    """Debian 12 has 3.11.2, which the newest of a package may refuse."""
    here = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    here["sys_platform"] = system
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    for name, pins in constraints().items():
        held = [pin for pin in pins if not pin.marker or pin.marker.evaluate(here)]
        assert len(held) == 1 if name in base else len(held) <= 1, name
        assert all(str(pin.specifier).startswith("==") for pin in held), name
    soup = [pin for pin in constraints()["soupsieve"] if pin.marker.evaluate(here)]
    assert ("4.1.2" in str(soup[0].specifier)) == (python not in ("3.11.0", "3.11.2"))


def test_the_tested_set_keeps_the_tested_torch_and_is_made_by_one_command():
    text = (ROOT / "constraints.txt").read_text()
    assert "\ntorch==2.13.0\n" in text
    assert "#    uv pip compile pyproject.toml\n" in text
    assert "`uv pip compile pyproject.toml`" in (ROOT / "book/setup.md").read_text()


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


@pytest.fixture
def checkout(tmp_path):
    """A repository of the Makefile, its attributes and one chapter; and git, to be called in it."""
    for name in ("Makefile", ".gitattributes", "notebooks/00_preflight.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert not done.stderr, done.stderr
        return done.stdout

    call("git", "init", "-q")
    call("git", "add", ".")
    call("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "Begin")
    return tmp_path, call


def run_in_lab(path: Path) -> None:
    """What JupyterLab changes in a notebook that is run and saved."""
    notebook = nbformat.read(path, as_version=4)
    for count, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = count + 1
        cell.outputs = [nbformat.v4.new_output("stream", text=f"output {count}\n")]
        cell.metadata.execution = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    notebook.metadata.language_info = nbformat.from_dict(
        {
            "codemirror_mode": {"name": "ipython", "version": 3},
            "file_extension": ".py",
            "mimetype": "text/x-python",
            "name": "python",
            "nbconvert_exporter": "python",
            "pygments_lexer": "ipython3",
            "version": "3.11.7",
        }
    )
    nbformat.write(notebook, path)


@pytest.mark.skipif(not (shutil.which("git") and shutil.which("make")), reason="needs git and make")
def test_a_chapter_run_in_lab_is_unchanged_for_git_but_its_edits_are_seen(checkout):
    folder, call = checkout
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (folder / ".git" / "info" / "exclude").write_text(".venv\n")
    call("make", "notebook-filter")
    chapter = folder / "notebooks" / "00_preflight.ipynb"
    run_in_lab(chapter)
    assert "output 3" in chapter.read_text()
    assert not call("git", "diff")
    call("git", "add", ".")  # git lists a file of another size until it has looked into it
    assert not call("git", "status", "--porcelain")
    assert "output 3" in chapter.read_text()  # Lab's copy keeps what it shows
    chapter.write_text(chapter.read_text().replace('size = \\"smoke', 'size = \\"desk'))
    assert call("git", "diff", "--numstat").split()[:2] == ["1", "1"]


@pytest.mark.skipif(not (shutil.which("git") and shutil.which("make")), reason="needs git and make")
def test_a_checkout_without_the_filter_or_its_environment_works(checkout):
    folder, call = checkout
    chapter = folder / "notebooks" / "00_preflight.ipynb"
    run_in_lab(chapter)
    assert call("git", "status", "--porcelain").strip() == "M notebooks/00_preflight.ipynb"
    call("make", "notebook-filter")  # as a second work tree has it, whose environment is missing
    assert call("git", "status", "--porcelain").strip() == "M notebooks/00_preflight.ipynb"
    call("git", "checkout", "-q", "--", ".")
    assert not call("git", "status", "--porcelain")


def test_the_filter_keeps_committed_chapters_as_they_are():
    makefile = (ROOT / "Makefile").read_text()
    noted = re.search(r"^NOTED := (.*)", makefile, re.M)[1].split()
    keys = " ".join(f"metadata.language_info.{name}" for name in noted)
    strip = [sys.executable, "-m", "nbstripout", "--keep-id", "--extra-keys", keys]
    for path in notebooks():
        done = subprocess.run(strip, input=path.read_bytes(), capture_output=True, check=True)
        assert done.stdout == path.read_bytes(), path.name


LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_links_of_a_chapter_open_from_the_root_of_the_project(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            for target in LINK.findall("".join(cell["source"])):
                if not target.startswith(("http", "#")):
                    file = (path.parent / target.partition("#")[0]).resolve()
                    assert file.exists() and file.is_relative_to(ROOT), target
