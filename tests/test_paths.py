"""A file is either the old one or the new one; sizes are checked by name."""

import ast
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from lensml import paths
from lensml.exits import Ended, say
from lensml.experiments import PROJECT_FILES, make_project
from lensml.paths import InputError, atomic_path, check_size, only_writer


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    final = tmp_path / "result.json"
    final.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed here")
    assert final.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_finished_write_takes_the_place_of_the_old_file(tmp_path):
    final = tmp_path / "new" / "result.json"
    with atomic_path(final) as temporary:
        temporary.write_text("new")
        assert not final.exists()
    assert final.read_text() == "new"


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="'huge'.*smoke, desk, full"):
        check_size("huge")
    assert check_size("desk") == "desk"


def test_the_commit_is_that_of_the_checkout_and_of_none_around_it(tmp_path, monkeypatch):
    """Also in a linked worktree; an installed package takes no other repository's commit."""
    quiet = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q"], **quiet)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "first"], **quiet)
    head = subprocess.run(["git", "rev-parse", "HEAD"], **quiet).stdout.strip()
    subprocess.run(["git", "worktree", "add", "-q", "linked"], **quiet)
    (tmp_path / "installed").mkdir()
    for folder, expected in (("", head), ("linked", head), ("installed", "unknown")):
        monkeypatch.setattr(paths, "CHECKOUT", tmp_path / folder)
        paths.git_commit.cache_clear()
        assert paths.git_commit() == expected
    paths.git_commit.cache_clear()


def test_the_commit_of_a_wheel_is_that_of_its_build(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    (tmp_path / "commit.txt").write_text("abc\n")
    paths.git_commit.cache_clear()
    assert paths.git_commit() == "abc"
    paths.git_commit.cache_clear()


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "thesis"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "_toc.yml").write_text("")
    return folder


def test_a_project_is_named_or_lies_above_or_is_the_checkout(project, tmp_path, monkeypatch):
    monkeypatch.delenv(paths.PROJECT, raising=False)
    monkeypatch.chdir(project / "notebooks")
    assert paths.find_project() == project
    monkeypatch.chdir(tmp_path)
    assert paths.find_project() == paths.CHECKOUT
    monkeypatch.setenv(paths.PROJECT, str(project))
    assert paths.find_project() == project
    monkeypatch.delenv(paths.PROJECT)
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)  # as of a wheel
    assert paths.find_project() is None
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    with pytest.raises(InputError, match="no project.*lensml init FOLDER"):
        paths.check_project()


def test_a_wheel_outside_of_a_project_says_where_to_go(tmp_path):
    """And the package can be imported there, for all that needs no project."""
    program = (
        "from pathlib import Path; import lensml.paths as p; p.CHECKOUT = Path('/nowhere');"
        "p.ROOT = p.find_project() or Path.cwd(); from lensml.cli import main;"
        "import sys; sys.exit(main(['run', 'all']))"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and "lensml init FOLDER" in run.stderr
    assert run.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_cache_is_read_where_it_has_the_set_and_written_where_it_may_be(tmp_path, monkeypatch):
    cache, own = tmp_path / "cache", tmp_path / "own"
    monkeypatch.setattr(paths, "DATA", own)
    monkeypatch.delenv(paths.CACHE, raising=False)
    assert paths.cached_path("sets", "a.npz") == own / "sets" / "a.npz"
    monkeypatch.setenv(paths.CACHE, str(cache))
    (cache / "sets" / "shards").mkdir(parents=True)
    assert paths.cached_path("sets", "a.npz") == cache / "sets" / "a.npz"
    monkeypatch.setattr("os.access", lambda path, mode: False)  # read-only for this user
    assert paths.cached_path("sets", "a.npz") == own / "sets" / "a.npz"
    (cache / "sets" / "a.npz").touch()
    assert paths.cached_path("sets", "a.npz") == cache / "sets" / "a.npz"
    assert paths.cached_path("sets", "shards") == own / "sets" / "shards"  # not finished
    (cache / "sets" / "shards" / "manifest.json").touch()
    assert paths.cached_path("sets", "shards") == cache / "sets" / "shards"


def test_a_new_project_has_chapters_book_and_results(tmp_path):
    folder = make_project(tmp_path / "deep" / "thesis")
    assert folder == tmp_path / "deep" / "thesis" and paths.is_project(folder)
    for name in ("book/index.md", "data/results/desk", "figures", "notebooks/02_baseline.ipynb"):
        assert (folder / name).exists(), name
    assert not (folder / "data/results/records").exists()
    assert all(p.stat().st_mode & 0o200 for p in folder.rglob("*"))
    assert [p.name for p in folder.parent.iterdir()] == ["thesis"]
    with pytest.raises(InputError, match="not empty"):
        make_project(folder)
    (tmp_path / "empty").mkdir()
    assert paths.is_project(make_project(tmp_path / "empty"))


def test_a_wheel_holds_what_a_project_needs():
    tree = ast.parse((paths.CHECKOUT / "setup.py").read_text())
    (listed,) = (
        node.value for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PROJECT"
    )  # fmt: skip
    assert eval(compile(ast.Expression(listed), "setup.py", "eval")) == PROJECT_FILES
    assert all((paths.CHECKOUT / name).exists() for name in PROJECT_FILES)


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    final = tmp_path / "weights"
    with atomic_path(final) as temporary:
        temporary.write_text("x")
        temporary.chmod(0o600)  # as some libraries make them
    assert final.stat().st_mode & 0o777 == 0o666 & ~paths.UMASK


def test_a_second_writer_is_refused_by_the_name_of_the_first(tmp_path):
    target = tmp_path / "set"
    with only_writer(target):
        with pytest.raises(InputError, match=rf"set: process {os.getpid()} on .* is writing"):
            with only_writer(target):
                pass
        with pytest.raises(InputError), only_writer(target, among=True):
            pass
    with only_writer(target, among=True), only_writer(target, among=True):
        with pytest.raises(InputError), only_writer(target):
            pass
    with only_writer(target):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_held_is_free(tmp_path):
    program = (
        "from pathlib import Path; import sys, time; from lensml.paths import only_writer\n"
        "with only_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(InputError, match=f"process {holder.pid}"),
            only_writer(tmp_path / "run"),
        ):
            pass
        holder.kill()
        holder.wait()
    with only_writer(tmp_path / "run"):
        pass


def test_who_waits_goes_on_when_the_first_is_done(tmp_path):
    done = []

    def second():
        with only_writer(tmp_path / "set", wait=True):
            done.append("second")

    with only_writer(tmp_path / "set"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        done.append("first")
    thread.join(10)
    assert done == ["first", "second"]


def test_what_a_killed_process_left_is_removed_and_a_living_one_s_is_not(tmp_path):
    final = tmp_path / "a.json"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    host = socket.gethostname()
    names = [f".a.json.{host}.{dead}.tmp", f".a.json.{host}.{os.getppid()}.tmp"]
    names += [f".a.json.another.{dead}.tmp", f".ab.json.{host}.{dead}.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmpXYZ").touch()  # of a library
    with atomic_path(final) as temporary:
        temporary.write_text("1")
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *names[1:]}


@pytest.mark.parametrize("moment", ["DisableOnWriteError", "EMA"])  # the first and the last call
def test_a_signal_that_comes_while_a_bar_is_made_ends_in_one_line(monkeypatch, capsys, moment):
    def signalled(*_, **__):
        raise Ended(2)

    monkeypatch.setattr(f"tqdm.std.{moment}", signalled)
    with pytest.raises(Ended) as ended:  # it holds the bar, which lacks its last attributes
        paths.progress_bar(range(3), "rows", delay=0, disable=False)
    assert say("train", "interrupted", 130) == 130
    assert ended.value.args == (2,)
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", ["lensml train: interrupted"])
