"""Reports of one probability a row, with the ideal observer's."""

from dataclasses import replace

import numpy as np
import pytest
from sets import toy_set
from sklearn.metrics import precision_recall_fscore_support

from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.evaluation.report import classification_report, score_report


def test_delta_chi2_alone_gives_the_expected_ideal():
    curves = toy_set(30, seed=2)
    p = np.where(curves.y == 1, 0.7, 0.3)
    result = score_report(replace(curves, magnification=None), p, None, num=20)
    expected = limits.expected_ideal(curves.dchi2[curves.y == 1])
    assert result["ideal_observer"]["kind"] == "expected"
    assert result["ideal_observer"]["roc_auc"] == expected["roc_auc"]
    assert result["ideal_observer"]["dchi2_at_half_recall"] == pytest.approx(5.41, abs=0.01)


def test_the_classification_report_is_scikit_learns():
    rng = np.random.default_rng(3)
    y = rng.random(500) < 0.3
    p = rng.random(500) * (1 + y)
    got = classification_report(y, p)
    columns = np.array(precision_recall_fscore_support(y, p > 0.5)).T
    for row, expected in zip(got.values(), columns, strict=True):
        assert list(row) == ["precision", "recall", "f1", "support"]
        assert list(row.values()) == pytest.approx(expected.tolist())
    assert list(got) == ["single", "binary"]
    never = classification_report([0, 1], [0.1, 0.2])["binary"]
    assert np.isnan(never["precision"]) and never["recall"] == never["f1"] == 0


def test_the_ideal_observer_is_beside_every_number_and_half_recall_in_closed_form():
    curves = toy_set(60, seed=2)
    ratio = limits.ideal_log_ratio(curves)
    result = score_report(curves, limits.ideal_probability(ratio), ratio, num=20)
    ideal = result["ideal_observer"]
    assert ideal["kind"] == "realised" and ideal["recall_by_dchi2"] is None
    for name, half in metrics.IDEAL_HALF.items():
        assert ideal[name] == half["value"] and ideal["intervals"][name] == half
    for name in ("accuracy", "classification_report", "ece", "ece_at_most"):
        assert result[name] == ideal[name], name  # this network is the ideal observer
    rows = result["recall_by_dchi2"]["recall_at_1pct"]
    assert sum(row["binaries"] for row in rows) == 60
