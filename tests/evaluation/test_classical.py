"""Classical searches beside a network: same rows, same false positives, honest intervals."""

import numpy as np
import pytest
from sets import planted, toy_set

from lensml.evaluation import anomaly_finder as anomaly
from lensml.evaluation import classical, metrics
from lensml.evaluation import ideal_observer as limits


@pytest.fixture(scope="module")
def curves():
    return toy_set(150, bump=0.6)


@pytest.fixture(scope="module")
def searched(curves):
    return anomaly.search(curves, (1.0,))


@pytest.fixture(scope="module")
def scores(searched):
    training = anomaly.search(toy_set(250, bump=0.6, seed=1), (1.0,))
    return classical.classical_scores(searched, training)


def test_every_method_ranks_binaries_above_singles_but_not_beyond_the_ideal(curves, scores):
    ideal = limits.ideal_log_ratio(curves)
    assert list(scores) == [
        "single-lens refit", "residual windows", "anomaly templates", "gradient boosting"
    ]  # fmt: skip
    for name, score in scores.items():
        assert metrics.roc_auc(curves.y, score) > 0.65, name
        excess = limits.excess_over_ideal(score, ideal, curves.y, curves.pair)
        assert excess["roc_auc"]["z"] < 3, name


def test_boosting_gains_on_the_scores_it_is_given(curves, scores):
    best = max(metrics.roc_auc(curves.y, scores[n]) for n in list(scores)[:3])
    assert metrics.roc_auc(curves.y, scores["gradient boosting"]) > best - 0.02


def test_boosting_is_blind_where_there_is_no_anomaly():
    """Trained on visible anomalies, shown pairs that nobody can tell apart."""
    training = anomaly.search(toy_set(150, bump=0.6, seed=1), (1.0,))
    nothing = toy_set(200, bump=1e-5, seed=2)
    score = classical.classical_scores(anomaly.search(nothing, (1.0,)), training)
    auc = metrics.bootstrap(
        metrics.roc_auc, [nothing.y, score["gradient boosting"]], nothing.pair, num=100
    )
    error = (auc["high"] - auc["low"]) / 3.92
    assert abs(auc["value"] - 0.5) < 4 * error


def test_training_events_may_not_be_scored(searched):
    with pytest.raises(ValueError, match="take another seed"):
        classical.classical_scores(searched, searched)


def test_features_know_nothing_but_the_observed_curve(curves, searched):
    table = classical.features(searched)
    assert table.shape[0] == len(curves) and np.isfinite(table).mean() > 0.95
    blind = curves.rows(slice(None))
    blind.params[:, :7] = np.nan  # f_s alone says whether it is free
    again = classical.features(anomaly.search(blind, (1.0,)))
    np.testing.assert_allclose(again, table, rtol=1e-6, atol=1e-6)


def test_comparison_is_that_of_metrics(curves, scores):
    columns = (curves.y, curves.dchi2, curves.pair)
    found = classical.compare(scores, *columns, num=40)
    for name, score in scores.items():
        assert found[name]["roc_auc"]["value"] == metrics.roc_auc(curves.y, score)
        rows = metrics.recall_by_dchi2(curves.y, score, curves.dchi2, 0.01)
        assert [r["recall"] for r in found[name]["recall_by_dchi2"]] == pytest.approx(
            [r["recall"] for r in rows], nan_ok=True
        )


def test_bins_are_named_in_which_the_network_finds_less():
    y, dchi2, pair, good, bad = planted()
    beaten = classical.bins_where_worse(bad, {"good": good}, y, dchi2, pair, num=100)
    certain = {row["bin"] for row in beaten if row["certain"]}
    assert certain == {"75-160", "160-500"}
    for row in beaten:
        assert row["difference"]["value"] == pytest.approx(row["other"] - row["network"])
        assert row["difference"]["low"] <= row["difference"]["value"]
    winner = classical.bins_where_worse(good, {"bad": bad}, y, dchi2, pair, num=100)
    assert not any(row["certain"] for row in winner)


def test_a_method_does_not_beat_itself():
    y, dchi2, pair, good, _ = planted()
    assert classical.bins_where_worse(good, {"twin": good}, y, dchi2, pair, num=20) == []


def test_three_binaries_are_too_few_to_be_certain():
    y, pair = np.tile([0, 1], 3), np.repeat(np.arange(3), 2)
    dchi2 = np.full(6, 100.0)
    good, bad = y * 10.0, np.array([1.0, 0.0] * 3)
    (row,) = classical.bins_where_worse(bad, {"good": good}, y, dchi2, pair, num=50)
    assert row["difference"]["low"] == 1 and not row["certain"]
