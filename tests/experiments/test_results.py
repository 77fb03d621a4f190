"""A result keeps its origin, is written whole, and is never replaced by a smaller run."""

import json

import matplotlib.pyplot as plt
import pytest

from lensml.experiments import results
from lensml.experiments.results import season_thresholds
from lensml.paths import InputError, atomic_path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository that takes the real one's place."""
    monkeypatch.delenv(results.OUTPUT_VARIABLE, raising=False)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "data" / "results")
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    return tmp_path


def save(size, numbers=None, name="02_baseline"):
    """Save numbers as that chapter would; the file written."""
    chapter = results.start(name, size)
    chapter.save({"auc": 0.75} if numbers is None else numbers)
    return results.results_path(name, size)


def test_smoke_results_stay_out_of_what_is_committed(repository):
    assert save("smoke").parent == repository / "_build" / "results" / "smoke"
    assert save("desk").parent == repository / "data" / "results" / "desk"
    assert results.load_results("02_baseline")["provenance"]["size"] == "desk"


def test_the_largest_size_is_shown(repository):
    assert results.load_results("02_baseline") is None
    save("full", {"auc": 0.8})
    save("desk", {"auc": 0.7})
    assert results.load_results("02_baseline")["numbers"]["auc"] == 0.8


def test_a_result_says_where_it_comes_from(repository):
    chapter = results.start("02_baseline", "desk", 3)
    chapter.started -= 5
    chapter.figure(figure(), "roc")
    chapter.save({"auc": 0.7, "undefined": float("nan")})
    record = results.load_results("02_baseline")
    assert record["provenance"]["seeds"] == [3] and record["provenance"]["wall_time_s"] >= 5
    assert record["figures"] == ["02_roc"] and record["chapter"] == "02_baseline"
    assert record["numbers"] == {"auc": 0.7, "undefined": None}


def test_what_json_cannot_hold_is_refused_and_the_old_result_stays(repository):
    path = save("desk", {"auc": 0.7})
    with pytest.raises(TypeError, match="set cannot be stored"):
        save("desk", {"auc": {1, 2}})
    assert json.loads(path.read_text())["numbers"] == {"auc": 0.7}


def test_a_killed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    final = tmp_path / "02.json"
    final.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(final) as temporary:
        temporary.write_text("half of the new")
        raise KeyboardInterrupt
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_an_unknown_size_is_named():
    with pytest.raises(InputError, match="'huge'.*smoke, desk, full"):
        results.results_path("02_baseline", "huge")


def figure(scale=1.0):
    fig, axes = plt.subplots()
    axes.plot([0, 1], [0, scale])
    return fig


def test_the_same_numbers_give_the_same_bytes(repository):
    results.start("02_baseline", "desk").figure(figure(), "roc")
    first = (repository / "figures" / "02_roc.svg").read_bytes()
    results.start("02_baseline", "desk").figure(figure(), "roc")
    assert (repository / "figures" / "02_roc.svg").read_bytes() == first


def test_a_smaller_run_never_replaces_a_figure(repository):
    path = repository / "figures" / "02_roc.svg"
    results.start("02_baseline", "smoke").figure(figure(), "roc")
    assert not path.exists()
    results.start("02_baseline", "full").figure(figure(), "roc")
    save("full")
    before = path.read_bytes()
    results.start("02_baseline", "desk").figure(figure(2.0), "roc")
    assert path.read_bytes() == before


def test_a_figure_too_large_for_svg_is_stored_as_png(repository, monkeypatch):
    monkeypatch.setattr(results, "LARGEST_FIGURE", 1000)
    results.start("02_baseline", "desk").figure(figure(), "roc")
    assert [p.name for p in (repository / "figures").iterdir()] == ["02_roc.png"]


def test_the_table_shows_both_results_and_their_origin(repository):
    save("desk", {"auc": {"value": 0.75, "low": 0.7, "high": 0.8}, "pairs": 3000})
    table = results.compare_with_committed("02_baseline", {"auc": 0.6}, "smoke")
    assert table.headings == ["quantity", "computed here (smoke)", "committed (desk)"]
    assert ["auc", "0.6", "0.75 (0.70 to 0.80)"] in table.rows
    assert ["pairs", "-", "3,000"] in table.rows
    here = results.compare_with_committed("02_baseline", {"new": 1, "auc": 0.6}, "smoke")
    assert [row[0] for row in here.rows] == ["auc", "pairs", "new"]
    assert "seed 0, " in table.note and "size desk" in table.note
    assert "<td>3,000</td>" in table._repr_html_() and "3,000" in repr(table)


def test_without_a_committed_result_the_table_says_how_to_make_one(repository):
    assert (
        "lensml run 02_baseline --size desk" in results.compare_with_committed("02_baseline").note
    )


def test_another_folder_can_take_the_repository_s_place(repository, tmp_path, monkeypatch):
    monkeypatch.setenv(results.OUTPUT_VARIABLE, str(tmp_path / "custom"))
    assert save("desk").is_relative_to(tmp_path / "custom")
    assert results.load_results("02_baseline") is None


def test_thresholds_come_from_the_stored_chapter():
    stored = {"policies": {"1_pct": {"threshold": 0.8}, "0.1_pct": {"threshold": 0.9}}}
    assert season_thresholds({"numbers": stored}) == {"1pct": 0.8, "0_1pct": 0.9}
    for record in (None, {"numbers": {}}):
        with pytest.raises(InputError, match="chapter 07 keeps an alert threshold"):
            season_thresholds(record)


@pytest.fixture
def chapter(repository, monkeypatch):
    """Chapter 3 at size smoke in an empty repository."""
    monkeypatch.setattr(results, "DATA", repository / "data")
    return results.start("03_distinct", "smoke")


def test_a_test_set_is_made_once(chapter, repository):
    path = chapter.test_path("matched")
    made = path.stat().st_mtime_ns
    assert chapter.test_path("matched") == path
    assert path.stat().st_mtime_ns == made and path.is_relative_to(repository)
    assert len(chapter.test_set("matched")) == 2 * chapter.experiment.tests["matched"].num_pairs


def test_a_test_set_with_events_of_training_is_refused(chapter, monkeypatch):
    network, config = results.load_network()
    test = chapter.experiment.tests["matched"]
    seen = {"preset": test.preset, "seed": test.seed, "first": 0, "stop": 10}
    monkeypatch.setattr(results, "load_network", lambda: (network, {"trained_on": [seen]}))
    with pytest.raises(InputError, match="10 of its 48 events"):
        chapter.test_set("matched")


def test_a_chapter_without_a_preset_has_no_experiment(repository):
    chapter = results.start("10_speed", "smoke")
    assert chapter.experiment is None and chapter.mark == "smoke size: not a result"
    assert results.start("09_real_events", "smoke", sizes_differ=False).mark == ""


def test_figures_and_tables_of_size_smoke_are_marked(chapter):
    drawn = figure()
    chapter.figure(drawn, "roc")
    assert [t.get_text() for t in drawn.texts] == ["smoke size: 48 pairs, not a result"]
    table = chapter.table({"network": {"auc": 0.5}}, ["auc"], "Intervals are 95 %.")
    assert table.note == "Intervals are 95 %. (smoke size: 48 pairs, not a result)"
    clean = figure()
    large = results.start("03_distinct", "desk")
    large.figure(clean, "roc")
    assert not clean.texts and large.table({"a": {"b": 1}}, ["b"]).note == ""


def test_keys_are_spelled_on_request_and_kept_otherwise(chapter, repository):
    path = repository / "_build/results/smoke/03_distinct.json"
    table = chapter.save({"0.1 mag": {"auc": 0.6}}, spell_keys=True)
    assert json.loads(path.read_text())["numbers"] == {"100_mmag": {"auc": 0.6}}
    assert ["100_mmag_auc", "0.6"] in table.rows
    chapter.save({"0.1 mag": 1})
    assert json.loads(path.read_text())["numbers"] == {"0.1 mag": 1}
