"""A benchmark's record says what was measured, against which target, where and when."""

import json
import time

import pytest

from benchmarks import record
from benchmarks.record import save_record
from lensml.experiments import benchmark_rows, benchmarks_by_device, load_benchmark, target_met


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (50, ">= 50", True),
        (49.9, ">= 50", False),
        (19_999, ">= 20,000 in batches", False),
        (20_000, ">= 20,000 in batches", True),
        (2.0, "< 2 ms", False),
        (1.04, "<= 1.05", True),
        (0.33, "<= 1.05", True),
        (1.06, "<= 1.05", False),
        (1.2e-4, "<= 1e-5", False),
        (2e-6, "<= 1e-5", True),
        ({"value": 3.0, "low": 2.0, "high": 4.0}, ">= 3", True),
        (7, "", None),
    ],
)
def test_a_target_is_met_or_missed(value, target, met):
    assert target_met(value, target) is met


def test_a_target_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="about fifty"):
        target_met(1.0, "about fifty")


def test_what_is_kept_is_found_again_by_device_and_only_the_newest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "BENCHMARKS", tmp_path)
    old = tmp_path / record.device_folder() / "toy-2001-01-01.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"numbers": {"rate": 1.0}, "provenance": {"date": "2001-01-01"}}))
    path = save_record("toy", {"rate": 70.0}, {"rate": ">= 50"}, seed=3, started=time.time())
    assert "met" in capsys.readouterr().out
    (path.parent / "toy-wide-2999-01-01.json").write_text("{}")  # another benchmark's
    kept = benchmarks_by_device("toy", tmp_path)[record.device_folder()]
    assert kept["numbers"] == {"rate": 70.0}
    assert kept["provenance"]["seeds"] == [3]
    assert benchmark_rows(kept) == [["rate", "70", ">= 50", "met"]]
    assert load_benchmark("toy", tmp_path) == kept
    assert load_benchmark("other", tmp_path) is None


def test_a_short_run_does_not_stand_among_the_kept_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "BENCHMARKS", tmp_path / "kept")
    monkeypatch.setattr(record, "QUICK", tmp_path / "quick")
    path = save_record("toy", {"rate": 70.0}, seed=3, started=time.time(), quick=True)
    assert path.is_relative_to(tmp_path / "quick")
    assert benchmarks_by_device("toy", tmp_path / "kept") == {}


def test_a_target_without_a_number_is_refused():
    with pytest.raises(ValueError, match=r"\['ratio'\]"):
        save_record("toy", {"rate": 1.0}, {"ratio": ">= 1"}, seed=0, started=time.time())


def test_the_table_says_what_was_missed():
    numbers = {"p99_ms": 3.0, "rows": 10}
    rows = benchmark_rows({"numbers": numbers, "marks": {"p99_ms": "< 2"}})
    assert [row[3] for row in rows] == ["missed", ""]
