"""Every chapter at size smoke and the book, made once in a copy of the tree for all tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("lensml", "notebooks", "book", "data/results", "figures", "_config.yml", "_toc.yml")


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
