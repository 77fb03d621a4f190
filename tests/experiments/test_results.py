"""A result keeps its origin, is written whole, and is never replaced by a smaller run."""

import json
import time

import matplotlib.pyplot as plt
import numpy as np
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


def save(size, numbers=None, chapter="02_baseline", **kwargs):
    numbers = {"auc": 0.75} if numbers is None else numbers
    return results.save_results(
        chapter, numbers, size=size, seed=[0, 1], started=time.time() - 5, **kwargs
    )


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
    record = json.loads(save("desk", figures=["02_roc"]).read_text())
    origin = record["provenance"]
    assert origin["seeds"] == [0, 1] and origin["wall_time_s"] >= 5 and origin["size"] == "desk"
    assert {"commit", "modified", "device", "date", "python"} <= set(origin)
    assert {"lensml", "torch", "numpy", "VBMicrolensing"} <= set(origin["versions"])
    assert record["figures"] == ["02_roc"]


def test_numpy_and_undefined_numbers_become_json(repository):
    numbers = {"a": np.float32(0.5), "b": np.arange(2), "c": np.nan, "d": {"e": np.bool_(True)}}
    stored = json.loads(save("desk", numbers).read_text())["numbers"]
    assert stored == {"a": 0.5, "b": [0, 1], "c": None, "d": {"e": True}}


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"value": 0.9712, "low": 0.965, "high": 0.9743}, "0.971 (0.965 to 0.974)"),
        ({"value": 23.4, "low": 20.1, "high": 27.9}, "23 (20 to 28)"),
        ({"value": 0.5, "low": None, "high": None}, "0.5"),
        (0.012345, "0.0123"),
        (0.9995, "0.9995"),
        (0.95, "0.950"),
        (1234567, "1,234,567"),
        (1.0, "1"),
        (None, "not defined"),
        (True, "yes"),
        ("distinct", "distinct"),
    ],
)
def test_a_number_shows_as_many_figures_as_its_interval_allows(value, text):
    assert results.format_number(value) == text


def test_nested_numbers_get_joined_names_and_lists_are_left_out():
    numbers = {"auc": {"0.1 mag": 0.8, "ideal": {"value": 1, "low": 0, "high": 2}}, "curve": [1, 2]}
    assert set(results.flatten(numbers)) == {"auc_0_1_mag", "auc_ideal"}


def figure(scale=1.0):
    fig, axes = plt.subplots()
    axes.plot([0, 1], [0, scale])
    return fig


def test_the_same_numbers_give_the_same_bytes(repository):
    results.save_figure(figure(), "02_roc", "desk")
    first = (repository / "figures" / "02_roc.svg").read_bytes()
    results.save_figure(figure(), "02_roc", "desk")
    assert (repository / "figures" / "02_roc.svg").read_bytes() == first


def test_a_smaller_run_never_replaces_a_figure(repository):
    path = repository / "figures" / "02_roc.svg"
    results.save_figure(figure(), "02_roc", "smoke")
    assert not path.exists()
    results.save_figure(figure(), "02_roc", "full")
    save("full")
    before = path.read_bytes()
    results.save_figure(figure(2.0), "02_roc", "desk")
    assert path.read_bytes() == before


def test_a_figure_too_large_for_svg_is_stored_as_png(repository, monkeypatch):
    monkeypatch.setattr(results, "LARGEST_FIGURE", 1000)
    results.save_figure(figure(), "02_roc", "desk")
    assert [p.name for p in (repository / "figures").iterdir()] == ["02_roc.png"]


def test_the_table_shows_both_results_and_their_origin(repository):
    save("desk", {"auc": {"value": 0.75, "low": 0.7, "high": 0.8}, "pairs": 3000})
    table = results.show_committed("02_baseline", {"auc": 0.6}, "smoke")
    assert table.headings == ["quantity", "computed here (smoke)", "committed (desk)"]
    assert ["auc", "0.6", "0.75 (0.70 to 0.80)"] in table.rows
    assert ["pairs", "-", "3,000"] in table.rows
    assert "seed 0, 1" in table.note and "size desk" in table.note
    assert "<td>3,000</td>" in table._repr_html_() and "3,000" in repr(table)


def test_without_a_committed_result_the_table_says_how_to_make_one(repository):
    assert "lensml run 02_baseline --size desk" in results.show_committed("02_baseline").note


def test_another_folder_can_take_the_repository_s_place(repository, tmp_path, monkeypatch):
    monkeypatch.setenv(results.OUTPUT_VARIABLE, str(tmp_path / "custom"))
    assert save("desk").is_relative_to(tmp_path / "custom")
    assert results.load_results("02_baseline") is None


def test_thresholds_come_from_the_stored_chapter_whichever_way_it_keeps_them():
    two = {"policies": {"1_pct": {"threshold": 0.8}, "0.1_pct": {"threshold": 0.9}}}
    assert season_thresholds({"numbers": two}) == {"1pct": 0.8, "0_1pct": 0.9}
    one = {"alerts": {"baseline": {"threshold": 0.7}}}
    assert season_thresholds({"numbers": one}) == {"1pct": 0.7}
    for record in (None, {"numbers": {}}):
        with pytest.raises(InputError, match="chapter 07 keeps an alert threshold"):
            season_thresholds(record)
