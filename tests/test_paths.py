"""A file is either the old one or the new one; sizes are checked by name."""

import pytest

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
