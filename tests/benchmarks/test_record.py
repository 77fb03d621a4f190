"""A benchmark says what was measured, against which mark, where and when."""

import json
import time

import numpy as np
import pytest

from lensml.experiments import benchmark
from lensml.experiments.benchmark import (
    benchmark_table,
    growth_exponent,
    keep_benchmark,
    latest_benchmark,
    mark_met,
    met_counts,
    newest_benchmark,
)


@pytest.mark.parametrize(
    ("value", "mark", "met"),
    [
        (50, ">= 50", True),
        (49.9, ">= 50", False),
        (19_999, ">= 20,000 in batches", False),
        (20_000, ">= 20,000 in batches", True),
        (2.0, "< 2 ms", False),
        (1.04, "1.00 +- 0.05", True),
        (0.94, "1.00 +- 0.05", False),
        ({"value": 3.0, "low": 2.0, "high": 4.0}, ">= 3", True),
        (7, "", None),
    ],
)
def test_a_mark_is_met_or_missed(value, mark, met):
    assert mark_met(value, mark) is met


def test_a_mark_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="about fifty"):
        mark_met(1.0, "about fifty")


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_growth_exponent_finds_the_power_of_a_law(power):
    sizes = np.array([100, 200, 400, 800])
    got = growth_exponent(sizes, 3e-5 * sizes**power)
    assert got["value"] == pytest.approx(power, abs=1e-9)


def test_the_interval_of_a_growth_holds_the_truth_and_narrows_with_the_scatter():
    generator = np.random.default_rng(5)
    sizes = np.repeat([1, 2, 4, 8, 16], 4)
    held, widths = [], {0.01: [], 0.1: []}
    for scatter in widths:
        for _ in range(100):
            got = growth_exponent(sizes, sizes * np.exp(scatter * generator.normal(size=20)))
            held.append(got["low"] <= 1.0 <= got["high"])
            widths[scatter].append(got["high"] - got["low"])
    assert 0.90 < np.mean(held) < 0.99  # 95 % are meant to
    assert np.mean(widths[0.1]) == pytest.approx(10 * np.mean(widths[0.01]), rel=0.2)


def test_a_growth_needs_two_sizes():
    with pytest.raises(ValueError, match="2 measurements of 1 sizes"):
        growth_exponent([3, 3], [1.0, 2.0])


def test_what_is_kept_is_found_again_by_device_and_only_the_newest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "BENCHMARKS", tmp_path)
    old = tmp_path / benchmark.device_folder() / "toy-2001-01-01.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"numbers": {"rate": 1.0}, "provenance": {"date": "2001-01-01"}}))
    path = keep_benchmark("toy", {"rate": 70.0}, {"rate": ">= 50"}, seed=3, started=time.time())
    assert "met" in capsys.readouterr().out
    (path.parent / "toy-wide-2999-01-01.json").write_text("{}")  # another benchmark's
    record = latest_benchmark("toy", tmp_path)[benchmark.device_folder()]
    assert record["numbers"] == {"rate": 70.0}
    assert record["provenance"]["seeds"] == [3]
    assert met_counts([record]) == (1, 1)
    assert newest_benchmark("toy", tmp_path) == record
    assert newest_benchmark("other", tmp_path) is None


def test_a_short_run_does_not_stand_among_the_kept_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "BENCHMARKS", tmp_path / "kept")
    monkeypatch.setattr(benchmark, "QUICK", tmp_path / "quick")
    path = keep_benchmark("toy", {"rate": 70.0}, seed=3, started=time.time(), quick=True)
    assert path.is_relative_to(tmp_path / "quick")
    assert latest_benchmark("toy", tmp_path / "kept") == {}


def test_a_mark_without_a_number_is_refused():
    with pytest.raises(ValueError, match=r"\['ratio'\]"):
        keep_benchmark("toy", {"rate": 1.0}, {"ratio": ">= 1"}, seed=0, started=time.time())


def test_the_table_says_what_was_missed():
    rows = benchmark_table({"p99_ms": 3.0, "rows": 10}, {"p99_ms": "< 2"})
    assert [row[3] for row in rows] == ["missed", ""]
