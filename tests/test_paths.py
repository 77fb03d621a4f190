"""A file is either the old one or the new one; sizes are checked by name."""

import subprocess

import pytest

from lensml import paths
from lensml.paths import InputError, atomic_path, check_size


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
        monkeypatch.setattr(paths, "ROOT", tmp_path / folder)
        paths.git_commit.cache_clear()
        assert paths.git_commit() == expected
    paths.git_commit.cache_clear()
