"""What a chapter is told about one network on one set, and what it keeps."""

import pytest
from sets import toy_set

from lensml.evaluation.assess import assert_below_ideal, assess, headline
from lensml.evaluation.metrics import roc_auc
from lensml.simulation import save


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


def test_a_number_above_the_ideal_observer_is_refused():
    assert_below_ideal({"bound_excess": None})
    assert_below_ideal({"bound_excess": {"roc_auc": {"z": 2.9}}})
    with pytest.raises(AssertionError, match="roc_auc lies 3.1 sigma above the ideal"):
        assert_below_ideal({"bound_excess": {"roc_auc": {"z": 3.1}}})
