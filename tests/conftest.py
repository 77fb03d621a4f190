"""One thread a process where tests run side by side; the book, built once for all its tests."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch and NumPy are imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if not [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("kfd")]:  # no GPU: as NumPy does
    os.environ.setdefault("TRITON_INTERPRET", "1")

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    "lensml",
    "benchmarks",
    "notebooks",
    "book",
    "data/results",
    "data/README.md",
    "figures",
    "_config.yml",
    "_toc.yml",
)
LONGEST = ("test_notebooks.py", "test_run.py", "test_classifier.py")  # begun first


def pytest_collection_modifyitems(items: list) -> None:
    """Longest files first, so that no process waits for another at the end."""
    items.sort(
        key=lambda item: (
            LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
        )
    )


@pytest.fixture(scope="session")
def built_book(tmp_path_factory) -> SimpleNamespace:
    """Run `lensml book --size smoke` once, away from the working tree.

    Has `root` (the copy), `stage` (executed chapters), `html` and `output` (what was printed).
    """
    root = tmp_path_factory.mktemp("repository")
    for name in COPIED:
        source, target = ROOT / name, root / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copyfile(source, target)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-m", "lensml", "book", "--size", "smoke"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
    stage = root / "_build" / "book"
    return SimpleNamespace(
        root=root, stage=stage, html=stage / "_build" / "html", output=run.stdout
    )
