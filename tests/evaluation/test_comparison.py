"""Conditions are compared on the same events; losses are split by cause."""

from dataclasses import replace

import numpy as np
import pytest
from sets import scored, toy_set

from lensml.evaluation import comparison as compare
from lensml.evaluation.metrics import ideal_recall
from lensml.simulation import Survey, reobserve


def test_what_is_lost_is_lost_by_the_data_or_by_the_network():
    parts = compare.loss_by_cause(scored(0.02), scored(0.2, blur=3.0), num=40)
    total = parts["data"]["value"] + parts["network"]["value"]
    assert parts["total"]["value"] == pytest.approx(total)
    assert parts["data"]["low"] > 0  # ten times the noise loses information


def test_the_same_survey_twice_loses_exactly_nothing():
    parts = compare.loss_by_cause(scored(), scored(), num=20)
    assert {part[k] for part in parts.values() for k in part} == {0.0}


def test_losses_of_different_events_are_refused():
    one = scored()
    with pytest.raises(ValueError, match="same events"):
        compare.loss_by_cause(one, replace(one, pair=one.pair[::-1]), num=5)


def test_every_survey_sees_the_same_events_and_fewer_epochs_have_no_more_information():
    curves = toy_set(12, shuffle=False)
    surveys = {
        f"{f:g}": Survey(num_epochs=len(curves.time), missing_fraction=f) for f in (0.1, 0.5)
    }
    p = np.linspace(0, 1, len(curves))
    few = {k: compare.score(reobserve(curves, survey, 1), p) for k, survey in surveys.items()}
    assert all(np.array_equal(s.pair, curves.pair) for s in few.values())
    assert np.all(few["0.5"].dchi2 <= few["0.1"].dchi2 + 1e-9)


def test_half_of_the_anomalies_at_the_undetectable_level_are_found_by_the_ideal_observer():
    assert ideal_recall(compare.DCHI2_UNDETECTABLE, 0.01) == pytest.approx(0.5)


def test_binaries_below_the_undetectable_level_are_counted():
    assert compare.undetectable(np.array([1.0, 2.0, 100.0, 200.0]))["value"] == 0.5


def test_completeness_of_the_ideal_observer_rises_through_one_half():
    dchi2 = 10 ** np.random.default_rng(4).uniform(-1, 4, 20_000)
    y = np.tile([0, 1], dchi2.size)
    d = np.repeat(dchi2, 2)
    ratio = (y - 0.5) * d + np.sqrt(d) * np.random.default_rng(0).normal(size=d.size)
    curve = compare.completeness(y, ratio, np.repeat(dchi2, 2))
    assert curve["count"].sum() == 20_000
    assert curve["recall"][0] < 0.05 and curve["recall"][-1] == 1
    assert (curve["low"] <= curve["recall"] + 1e-12).all()
    inside = (dchi2 > 10) & (dchi2 < 10**1.25)  # one bin of the curve
    at = np.argmin(np.abs(np.log10(curve["dchi2"]) - 1.125))
    assert curve["count"][at] == inside.sum()
