"""Reports of one network on one set: events it has seen, numbers, the ideal observer's."""

from dataclasses import replace

import numpy as np
import pytest
from sets import toy_set

from lensml.evaluation import ideal_observer as limits
from lensml.evaluation.metrics import roc_auc
from lensml.evaluation.report import assess, check_unseen, headline, score_report
from lensml.paths import InputError
from lensml.simulation import save


@pytest.fixture(scope="module")
def curves():
    return toy_set(30, seed=2)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "toy.npz"
    save(path, toy_set(num_pairs=30))
    return assess(path, num_bootstrap=20, seed=1)


def test_an_assessment_scores_each_row_at_the_end_of_its_window(scored):
    assert scored.p.shape == scored.curves.y.shape == scored.ideal.shape
    assert scored.report["roc_auc"] == pytest.approx(roc_auc(scored.curves.y, scored.p))


def test_the_headline_holds_intervals_and_the_ideal_beside_them(scored):
    numbers = headline(scored.report)
    for name in ("balanced_accuracy", "roc_auc"):
        assert numbers[name]["low"] <= numbers[name]["value"] <= numbers[name]["high"]
        assert numbers["ideal"][name]["value"] >= numbers[name]["value"]


def test_delta_chi2_alone_gives_the_expected_ideal(curves):
    p = np.where(curves.y == 1, 0.7, 0.3)
    result = score_report(replace(curves, magnification=None), p, None, num=20)
    expected = limits.expected_ideal(curves.dchi2[curves.y == 1])
    assert result["ideal_observer"]["kind"] == "expected"
    assert result["ideal_observer"]["roc_auc"] == expected["roc_auc"]


@pytest.mark.parametrize("first, refused", [(0, 5), (9, 3), (11, 1), (12, 0)])
def test_events_of_training_and_validation_are_refused(first, refused, tmp_path):
    curves = toy_set(5, seed=1)  # five events, beginning with `first`
    curves = replace(curves, pair=curves.pair + first)
    config = {
        "trained_on": [{"preset": "toy", "seed": 1, "first": 0, "stop": 10}],
        "validated_on": [{"preset": "toy", "seed": 1, "first": 10, "stop": 12}],
    }
    if not refused:
        return check_unseen(curves, config, tmp_path)
    with pytest.raises(InputError, match="of its 5 events .*train|of its 5 events .*validated"):
        check_unseen(curves, config, tmp_path)
    other = replace(curves, meta={**curves.meta, "seed": 2})
    check_unseen(other, config, tmp_path)
    check_unseen(replace(curves, meta={**curves.meta, "preset": "else"}), config, tmp_path)
