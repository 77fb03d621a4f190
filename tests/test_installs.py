"""A wheel without Jupyter does what it promises, from any folder; an extra that lacks is named."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lensml.cli import main
from lensml.paths import git_commit

ROOT = Path(__file__).resolve().parent.parent
PHOT = "\n".join(f"{2457000 + k} {18 + 0.01 * (k % 5):.3f} 0.02" for k in range(40))
JUPYTER = (
    "IPython MulensModel ipykernel ipywidgets jupyter_book jupyter_client jupyterlab nbclient "
    "nbconvert nbformat papermill pybtex shtab sphinx sphinx_book_theme tensorboard"
)
BASE = f"""
import sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):  # as if only the base had been installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {JUPYTER.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name in {JUPYTER.split()!r} else found(name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv.pop(1))
import lensml
from lensml.cli import main
assert lensml.__file__.startswith(sys.path[0]), lensml.__file__
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built without a trace in the checkout, and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    steps = ["egg_info", "--egg-base", folder, "build", "--build-base", folder / "build"]
    command = [sys.executable, "setup.py", "-q", *steps, "bdist_wheel", "-d", folder]
    subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, check=True)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture
def base(wheel, tmp_path):
    """`lensml VERB` of the unpacked wheel, in an empty folder, where Jupyter cannot be imported."""

    def call(*arguments, folder=tmp_path, package=wheel, input="") -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", BASE, str(package), *map(str, arguments)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LENSML", "PYTHONPATH"))}
        options = {"cwd": folder, "capture_output": True, "text": True, "env": clean}
        return subprocess.run(command, input=input, **options)

    return call


def test_a_wheel_has_types_stubs_weights_and_a_project(wheel):
    package = wheel / "lensml"
    for name in ("py.typed", "__init__.pyi", "network/__init__.pyi", "weights/model.safetensors"):
        assert (package / name).is_file(), name
    for name in ("_toc.yml", "notebooks/00_preflight.ipynb", "book/_ext/build.py"):
        assert (package / "project" / name).is_file(), name


def test_the_version_of_a_wheel_names_the_commit_of_its_build(base):
    done = base("--version")
    assert done.returncode == 0
    assert git_commit() == "unknown" or f"(commit {git_commit()[:12]})" in done.stdout


def test_the_base_simulates_classifies_and_streams(base, tmp_path):
    (tmp_path / "phot.dat").write_text(PHOT)
    small = ["--n_pspl", 2, "--n_binary", 2, "--workers", 1]
    # Of the checkout, whose functions are compiled already.
    done = base("simulate", "--output", "set.npz", *small, package=ROOT)
    assert done.returncode == 0 and (tmp_path / "set.npz").exists(), done.stderr
    done = base("classify", "phot.dat", "--json", "--plot", "p.png", package=ROOT)
    assert done.returncode == 0 and json.loads(done.stdout)["n_epochs"] == 40, done.stderr
    assert (tmp_path / "p.png").stat().st_size > 10_000
    line = {"event": "a", "time": 1.0, "mag": 18.0, "mag_err": 0.1, "m_base": 18.0}
    done = base("stream", package=ROOT, input=json.dumps(line))
    assert done.returncode == 0 and "p_binary" in done.stdout, done.stderr


def test_the_base_makes_a_project_and_says_what_its_chapters_need(base, tmp_path):
    assert base("init", "thesis").returncode == 0
    for verb in (["run", "00"], ["book", "--no-run"], ["book", "--quote"]):
        done = base(*verb, folder=tmp_path / "thesis")
        assert done.returncode == 2 and not done.stdout, verb
        assert done.stderr.count("\n") == 1 and "pip install 'lensml[notebooks]'" in done.stderr


def test_completion_without_its_library_says_how_to_get_it(base):
    done = base("--print-completion", "bash")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pip install 'lensml[completion]'" in done.stderr


TRY = """
source complete.bash
complete -p lensml > /dev/null || exit 1
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_lensml lensml "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("lensml cl", "classify"),
        ("lensml simulate --binary_params pl", "planetary"),
        ("lensml run 02 --size ''", "smoke desk full"),
        ("lensml classify ph", "phot.dat"),
        ("lensml train --data set", "set.npz"),
    ],
)
def test_bash_completes_verbs_choices_and_files(capsys, tmp_path, words, answer):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "bash"])
    assert not stop.value.code
    (tmp_path / "complete.bash").write_text(capsys.readouterr().out)
    for name in ("phot.dat", "set.npz"):
        (tmp_path / name).touch()
    command = ["bash", "-c", TRY.format(words=words)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == answer.split(), done.stderr
