"""Scores of several sets are pooled by event, and each statistic is computed once."""

import json

import numpy as np
import pytest

from benchmarks.studies import half_recall
from lensml.experiments import load_benchmark
from lensml.network import load_network, predict
from lensml.simulation import Survey, load, reobserve


def scores(pairs: int, seed: int, runs: int = 1) -> dict[str, np.ndarray]:
    """Pairs whose binaries score higher the stronger their anomaly."""
    rng = np.random.default_rng(seed)
    y, pair = np.tile([0, 1], pairs), np.repeat(np.arange(pairs), 2)
    dchi2 = np.repeat(10 ** rng.uniform(-1, 3, pairs), 2)
    noise = rng.normal(size=(runs, 2 * pairs))
    p_end = 1 / (1 + np.exp(-(noise + y * np.sqrt(dchi2) - 2)))
    kept = {"y": y, "pair": pair, "dchi2": dchi2, "p_end": p_end, "max_probability": p_end[0]}
    return kept | {"ideal": np.where(y == 1, dchi2 / 2, -dchi2 / 2)}


def test_no_event_of_one_set_meets_one_of_another_when_sets_are_pooled():
    parts = [scores(30, 1), scores(20, 2), scores(10, 3)]
    joined = half_recall.pooled(parts)
    _, rows = np.unique(joined["pair"], return_counts=True)
    assert (rows == 2).all() and rows.size == 60
    assert joined["p_end"].shape == (1, 120)


def test_the_ideal_observer_has_no_fitted_half_recall(tmp_path):
    keys = [key for key, *_ in half_recall.tasks_of("a", scores(5, 1), tmp_path)]
    assert "a_network_dchi2_at_half_recall" in keys
    assert not any("ideal" in key and "half_recall" in key for key in keys)


def test_an_interval_is_computed_once_for_the_same_scores(tmp_path, monkeypatch):
    task, *_ = half_recall.tasks_of("a", scores(40, 1), tmp_path)
    key, found = half_recall.interval(task)
    assert key == "a_network_roc_auc" and found["low"] < found["value"] < found["high"]
    monkeypatch.setattr(half_recall.evaluation, "score_table", None)
    assert half_recall.interval(task) == (key, found)
    other, *_ = half_recall.tasks_of("a", scores(40, 2), tmp_path)
    with pytest.raises(TypeError):
        half_recall.interval(other)


def test_the_spread_over_sets_is_that_of_their_values():
    found = half_recall.over_sets([scores(300, seed) for seed in (1, 2, 3)])
    values = [found[f"sets_network_roc_auc_set_{k}"] for k in (1, 2, 3)]
    assert found["sets_network_roc_auc_sd"] == pytest.approx(np.std(values, ddof=1))
    assert found["sets_network_roc_auc_mean"] == pytest.approx(np.mean(values))


def test_the_committed_record_is_small_and_holds_every_condition():
    record = load_benchmark("half_recall")
    assert len(json.dumps(record)) < 200_000
    for name in half_recall.CONDITIONS:
        if name not in half_recall.SETS[1:]:
            assert record["numbers"][f"{name}_pairs"] == half_recall.PAIRS
            assert f"{name}_network_roc_auc" in record["numbers"]


def test_scores_are_of_the_events_of_the_chapters(tmp_path, monkeypatch):
    monkeypatch.setitem(half_recall.CONDITIONS, "few", ("distinct", Survey(), 0, ()))
    monkeypatch.setattr(half_recall, "DATA", tmp_path)
    monkeypatch.setattr("lensml.paths.DATA", tmp_path)
    found = half_recall.scores_of("few", pairs=4)
    curves = load(tmp_path / "sets" / "distinct_matched_4_seed7900.npz")
    curves = reobserve(curves, Survey(), half_recall.OBSERVED_WITH)
    np.testing.assert_allclose(found["p"], predict(load_network()[0], curves).p, atol=1e-6)
    assert found["p_end"].shape == (1, 8) and found["season"].shape[0] == 0
    assert (found["y"] == curves.y).all() and len(list((tmp_path / "scores").iterdir())) == 1


def test_numbers_of_classical_searches_are_taken_from_an_earlier_record(tmp_path, monkeypatch):
    for seed, name in enumerate(half_recall.SETS):
        np.savez(tmp_path / f"{name}.npz", **scores(60, seed))
    first = half_recall.SETS[0]
    earlier = {"numbers": {f"{first}_gradient_boosting_roc_auc": 0.6, "a_network_roc_auc": 0.7}}
    (tmp_path / "old.json").write_text(json.dumps(earlier | {"provenance": {"date": "then"}}))
    kept = {}
    monkeypatch.setattr(half_recall, "save_record", lambda *a, **k: kept.update(n=a[1], more=k))
    half_recall.write_record(tmp_path, 0.0, 1, None, tmp_path / "old.json")
    assert kept["n"][f"{first}_gradient_boosting_roc_auc"] == 0.6
    assert "a_network_roc_auc" not in kept["n"] and kept["n"]["all_sets_pairs"] == 240
    few = half_recall.first_pairs(scores(60, 1), 5)
    assert few["y"].shape == (10,) and few["p_end"].shape == (1, 10)
    assert kept["more"]["classical"]["record"] == "old.json"
