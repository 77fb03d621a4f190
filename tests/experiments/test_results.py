"""A result keeps its origin, is written whole, and is never replaced by a smaller run."""

import json

import matplotlib.pyplot as plt
import pytest

from lensml import paths
from lensml.experiments import results
from lensml.paths import InputError, atomic_path


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty repository that takes the real one's place."""
    monkeypatch.delenv(results.OUTPUT_VARIABLE, raising=False)
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "data" / "results")
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    return tmp_path


@pytest.fixture
def shown(monkeypatch):
    """Outputs of a notebook in their order: pairs of content and origin."""
    found = []
    monkeypatch.setattr(results, "display", lambda thing, **origin: found.append((thing, origin)))
    return found


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


def test_numbers_of_a_run_stand_beside_the_committed(repository):
    save("desk", {"auc": {"value": 0.75, "low": 0.7, "high": 0.8}, "pairs": 3000})
    record = results.load_results("02_baseline")
    table = results.beside_committed({"new": 1, "auc": 0.6}, "smoke", record)
    assert table.headings == ["quantity", "computed here (smoke)", "committed (desk)"]
    assert table.rows == [
        ["auc", "0.6", "0.75 (0.70 to 0.80)".replace(" ", "\u00a0")],
        ["pairs", "-", "3,000"],
        ["new", "1", "-"],
    ]


def test_without_a_committed_result_the_page_says_how_to_make_one(repository, shown):
    results.start("02_baseline", "smoke").save({"auc": 0.6})
    ((line, origin),) = shown
    assert "lensml run 02_baseline --size desk" in line["text/markdown"]
    assert origin == {"provenance": "02_baseline"}


def test_another_folder_can_take_the_repository_s_place(repository, tmp_path, monkeypatch):
    monkeypatch.setenv(results.OUTPUT_VARIABLE, str(tmp_path / "custom"))
    assert save("desk").is_relative_to(tmp_path / "custom")
    assert results.load_results("02_baseline") is None


@pytest.fixture
def chapter(repository, monkeypatch):
    """Chapter 3 at size smoke in an empty repository."""
    for module in (results, paths):
        monkeypatch.setattr(module, "DATA", repository / "data")
    return results.start("03_distinct", "smoke")


def test_a_test_set_is_made_once(chapter, repository):
    path = results.made(chapter.experiment.tests["matched"]) / "manifest.json"
    made = path.stat().st_mtime_ns
    assert results.made(chapter.experiment.tests["matched"]) / "manifest.json" == path
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
    assert chapter._repr_mimebundle_()[1] == {"lensml": {"start": "10_speed"}}
    assert results.start("09_real_events", "smoke", sizes_differ=False).mark == ""


def run_of(size, auc=0.5, number=400.0):
    """A chapter with one figure, one table and one number, saved."""
    chapter = results.start("03_distinct", size)
    chapter.figure(figure(auc), "roc")
    chapter.table({"network": {"auc": auc}}, ["auc"], "Ranking.", note="All pairs.")
    chapter.save({"auc": number})
    return chapter


def test_figures_and_tables_of_size_smoke_are_marked(chapter, shown, repository):
    drawn = figure()
    chapter.figure(drawn, "roc")
    assert [t.get_text() for t in drawn.texts] == ["smoke size: 48 pairs, not a result"]
    chapter.table({"network": {"auc": 0.5}}, ["auc"], "Ranking.", note="Intervals are 95 %.")
    (path, origin), (table, _) = shown
    assert path == repository / "_build/figures/smoke/03_roc.svg" and origin == {"figure": "03_roc"}
    assert "<b>Table 3.1.</b> Ranking." in table["text/html"]
    assert "Intervals are 95 %. (smoke size: 48 pairs, not a result)" in table["text/plain"]
    clean = figure()
    large = results.start("03_distinct", "desk")
    large.figure(clean, "roc")
    large.table({"a": {"b": 1}}, ["b"])
    assert not clean.texts and "smoke" not in shown[-1][0]["text/plain"]


def test_a_smaller_run_shows_what_is_committed_and_itself_in_one_block(repository, shown):
    run_of("desk", 0.7, 500.0)
    shown.clear()
    chapter = run_of("smoke")
    assert not chapter.own
    (path, _), (table, origin), (block, kind), (line, _) = shown
    assert path == repository / "figures" / "03_roc.svg"
    assert "0.7" in table["text/plain"] and "smoke" not in table["text/plain"]
    assert origin["table"]["key"] == "1" and origin["table"]["rows"] == [["network", "0.7"]]
    assert kind == {"own": "03_distinct"} and block["text/html"].count("<details") == 1
    head = block["text/html"].partition("</summary>")[0]
    assert "size smoke" in head and head.endswith("48 pairs, not a result")
    assert block["text/html"].count("<img") == block["text/html"].count('alt="03 roc') == 1
    assert "<td>0.5</td>" in block["text/html"] and "<td>500</td>" in block["text/html"]
    assert "size desk" in line["text/plain"]


def test_a_run_as_large_as_the_committed_shows_itself(repository, shown):
    run_of("desk", 0.7)
    shown.clear()
    assert run_of("desk", 0.8).own
    (_, _), (table, _), (line, origin) = shown
    assert "0.8" in table["text/plain"] and origin == {"provenance": "03_distinct"}


def test_what_the_committed_record_lacks_is_shown_from_this_run_with_its_mark(repository, shown):
    run_of("desk", 0.7)
    chapter = results.start("03_distinct", "smoke")
    chapter.figure(figure(), "new")
    chapter.table({"network": {"auc": 0.5}}, ["auc"], name="new")
    (path, _), (table, _) = shown[-2:]
    assert path == repository / "_build/figures/smoke/03_new.svg"
    assert "not a result" in table["text/plain"]


def test_the_record_keeps_the_tables_as_they_are_shown(repository, shown):
    run_of("desk", 0.7)
    assert results.load_results("03_distinct")["tables"] == {
        "1": {
            "caption": "Ranking.",
            "headings": ["", "auc"],
            "rows": [["network", "0.7"]],
            "note": "All pairs.",
        }
    }


def test_the_first_cell_says_size_machine_time_and_where_results_go(repository, shown):
    run_of("desk")
    text = results.start("03_distinct", "smoke")._repr_mimebundle_()[0]["text/html"]
    assert "<td>smoke</td>" in text and "cores" in text and "s at size desk on" in text
    assert str(repository / "_build/results/smoke/03_distinct.json") in text
    assert "the committed result, desk" in text and "48 matched pairs" in text


def test_keys_are_spelled_on_request_and_kept_otherwise(chapter, repository):
    path = repository / "_build/results/smoke/03_distinct.json"
    chapter.save({"0.1 mag": {"auc": 0.6}}, spell_keys=True)
    assert json.loads(path.read_text())["numbers"] == {"100_mmag": {"auc": 0.6}}
    chapter.save({"0.1 mag": 1})
    assert json.loads(path.read_text())["numbers"] == {"0.1 mag": 1}
