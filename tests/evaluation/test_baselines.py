"""Simple and classical methods: they see what is there, and nothing where nothing is."""

from dataclasses import replace

import numpy as np
import pytest
from sets import toy_set

from lensml.evaluation import anomaly_finder as anomaly
from lensml.evaluation import baselines, metrics
from lensml.evaluation import ideal_observer as limits


@pytest.fixture(scope="module")
def curves():
    return toy_set(60, bump=1.0)


def test_scalars_are_those_of_the_observed_curve(curves):
    got = baselines.summary_statistics(curves)
    delta = curves.X - curves.m_base[:, None]
    np.testing.assert_allclose(got["peak"], np.nanmin(delta, axis=1))
    np.testing.assert_allclose(got["median"], np.nanmedian(delta, axis=1))
    np.testing.assert_array_equal(got["points"], np.isfinite(delta).sum(axis=1))
    np.testing.assert_array_equal(got["first gap"], np.isnan(delta).argmax(axis=1))
    np.testing.assert_allclose(got["peak time"], curves.time[np.nanargmin(delta, axis=1)])


def test_a_row_without_data_has_finite_scalars(curves):
    empty = replace(curves, X=np.full_like(curves.X, np.nan)).rows(slice(3))
    assert all(np.isfinite(values).all() for values in baselines.summary_statistics(empty).values())


def test_auditor_finds_a_planted_shortcut_and_nothing_else():
    honest = toy_set(150, bump=1e-4)
    found = baselines.shortcut_probe(honest, num_bootstrap=100)
    for name, auc in found.items():
        error = max((auc["high"] - auc["low"]) / 3.92, 1e-3)
        assert abs(auc["value"] - 0.5) < 4.5 * error, name
    X = honest.X.copy()
    X[honest.y == 1, :10] = np.nan  # binaries begin later
    leak = baselines.shortcut_probe(replace(honest, X=X), num_bootstrap=100)
    assert leak["first epoch"]["value"] > 0.95 and leak["all together"]["low"] > 0.9
    with pytest.raises(ValueError, match="`folds`"):
        baselines.shortcut_probe(honest.rows(honest.pair < 3))


def scan(residual):
    return float(baselines.residual_scan_score([residual])[0])


def test_scan_finds_bumps_and_scatter_that_a_whole_curve_hides():
    rng = np.random.default_rng(0)
    flat = np.array([scan(rng.normal(size=800)) for _ in range(60)])
    bump = rng.normal(size=800)
    bump[400:409] += 3.0
    noisy = rng.normal(size=800)
    noisy[400:465] *= 2.0
    assert scan(bump) == pytest.approx(9.0, abs=2.0)  # 3 sigma on nine epochs
    assert scan(bump) > flat.max() and scan(noisy) > flat.max()
    assert scan(np.empty(0)) == 0


def test_the_residual_scan_sees_anomalies_but_not_beyond_the_ideal_observer(curves):
    score = baselines.residual_scan_score(anomaly.search_prefixes(curves, (1.0,)).residual)
    assert metrics.roc_auc(curves.y, score) > 0.75
    excess = limits.excess_over_ideal(score, limits.ideal_log_ratio(curves), curves.y, curves.pair)
    assert excess["roc_auc"]["z"] < 3


@pytest.fixture(scope="module")
def visible():
    return toy_set(150, bump=0.6)


@pytest.fixture(scope="module")
def searched(visible):
    return anomaly.search_prefixes(visible, (1.0,))


@pytest.fixture(scope="module")
def scores(searched):
    training = anomaly.search_prefixes(toy_set(250, bump=0.6, seed=1), (1.0,))
    return baselines.classical_scores(searched, training)


def test_every_method_ranks_binaries_above_singles_but_not_beyond_the_ideal(visible, scores):
    ideal = limits.ideal_log_ratio(visible)
    assert list(scores) == [
        "single-lens refit", "residual windows", "anomaly templates", "gradient boosting"
    ]  # fmt: skip
    for name, score in scores.items():
        assert metrics.roc_auc(visible.y, score) > 0.65, name
        excess = limits.excess_over_ideal(score, ideal, visible.y, visible.pair)
        assert excess["roc_auc"]["z"] < 3, name


def test_boosting_gains_on_the_scores_it_is_given(visible, scores):
    best = max(metrics.roc_auc(visible.y, scores[n]) for n in list(scores)[:3])
    assert metrics.roc_auc(visible.y, scores["gradient boosting"]) > best - 0.02


def test_boosting_is_blind_where_there_is_no_anomaly():
    """Trained on visible anomalies, shown pairs without a difference."""
    training = anomaly.search_prefixes(toy_set(150, bump=0.6, seed=1), (1.0,))
    nothing = toy_set(200, bump=1e-5, seed=2)
    score = baselines.classical_scores(anomaly.search_prefixes(nothing, (1.0,)), training)
    auc = metrics.bootstrap(
        metrics.roc_auc, [nothing.y, score["gradient boosting"]], nothing.pair, num=100
    )
    error = (auc["high"] - auc["low"]) / 3.92
    assert abs(auc["value"] - 0.5) < 4 * error


def test_training_events_may_not_be_scored(searched):
    with pytest.raises(ValueError, match="take another seed"):
        baselines.classical_scores(searched, searched)


def test_features_know_nothing_but_the_observed_curve(visible, searched):
    table = baselines.features(searched)
    assert table.shape[0] == len(visible) and np.isfinite(table).mean() > 0.95
    blind = visible.rows(slice(None))
    blind.params[:, :7] = np.nan  # f_s alone says whether it is free
    again = baselines.features(anomaly.search_prefixes(blind, (1.0,)))
    np.testing.assert_allclose(again, table, rtol=1e-6, atol=1e-6)


def test_comparison_is_that_of_metrics(visible, scores):
    columns = (visible.y, visible.dchi2, visible.pair)
    found = baselines.compare_methods(scores, *columns, num=40)
    for name, score in scores.items():
        assert found[name]["roc_auc"]["value"] == metrics.roc_auc(visible.y, score)
        rows = metrics.recall_by_dchi2(visible.y, score, visible.dchi2, 0.01)
        assert [r["recall"] for r in found[name]["recall_by_dchi2"]] == pytest.approx(
            [r["recall"] for r in rows], nan_ok=True
        )


def test_the_ideal_observer_is_compared_in_closed_form(visible, scores):
    columns = (visible.y, visible.dchi2, visible.pair)
    found = baselines.compare_methods(scores | {"ideal observer": visible.dchi2}, *columns, num=5)
    ideal = found["ideal observer"]
    assert {name: ideal[name] for name in metrics.IDEAL_HALF} == metrics.IDEAL_HALF
    for row in ideal["recall_by_dchi2"]:
        assert np.isnan(row["recall_low"])
        assert row["recall"] == row["ideal"] or not row["binaries"]
