"""What is computed for epoch k depends on epochs <= k: inputs, network, verbs.

Appending, changing or removing later epochs changes nothing before them, to 1e-5 in probability.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import data_sets, photometry, random_network, toy_set

from lensml.network import (
    NUM_INPUTS,
    STEP,
    DataSetEpochs,
    Network,
    classify,
    load_network,
    predict_event,
    predict_proba,
)
from lensml.photometry import Event, Photometry
from lensml.streaming import classify_event


@pytest.fixture(scope="module", params=["random", "shipped"])
def network(request) -> Network:
    return random_network() if request.param == "random" else load_network()[0]


def changed_after(cut, times, mag, errors):
    """A copy of a curve whose later epochs are other ones."""
    late = np.arange(len(times)) >= cut
    return times + 1e4 * late, mag - 9 * late, np.where(late, 100 * errors, errors)


def test_no_gradient_flows_from_later_epochs_and_some_from_the_present_one(network):
    """Causal, but not late: the temporal branch at epoch k uses epoch k."""
    x = torch.randn(70, NUM_INPUTS, requires_grad=True)
    for k in (0, 3, 4, 30, 37, 63):
        (gradient,) = torch.autograd.grad(network.at_every_epoch(x)[k].square().sum(), x)
        assert (gradient[k + 1 :] == 0).all() and (gradient[k] != 0).any()


def test_removed_epochs_change_no_probability_before_them(network):
    curves = toy_set(4, num_epochs=300)
    whole = predict_proba(network, curves)
    for keep in (5, 64, 150, 299):
        X = curves.X.copy()
        X[:, keep:] = np.nan
        part = predict_proba(network, replace(curves, X=X))
        np.testing.assert_allclose(part[:, :keep], whole[:, :keep], rtol=0, atol=1e-5)


@pytest.mark.parametrize("m_base", [18.0, None])
@pytest.mark.parametrize("cut", [3, 10, 20, 64, 199, 201, 257])
def test_later_epochs_change_no_probability_of_one_curve(cut, m_base):
    """Nor does its baseline, where it is estimated from the past."""
    network, curve = load_network()[0], photometry(300)
    whole = classify(*curve, m_base, network)
    for other in ([x[:cut] for x in curve], changed_after(cut, *curve)):
        p = classify(*other, m_base, network)
        np.testing.assert_allclose(p[:cut], whole[:cut], rtol=0, atol=1e-5)


def others(datasets, end):
    """Epochs before `end` alone, and with other ones from then on."""
    columns = [(d.times, d.mag, d.sigma) for d in datasets]
    cuts = [int(np.searchsorted(d.times, end)) for d in datasets]
    short, changed = (
        [d._replace(**dict(zip(("times", "mag", "sigma"), c, strict=True)))
         for d, c in zip(datasets, new, strict=True)]
        for new in (
            [[x[:cut] for x in c] for c, cut in zip(columns, cuts, strict=True)],
            [changed_after(cut, *c) for c, cut in zip(columns, cuts, strict=True)],
        )
    )  # fmt: skip
    return [d for d in short if len(d.times)], changed


@pytest.mark.parametrize("m_base", [18.0, None])
@pytest.mark.parametrize("cut", [3, 8, 20, 64, 199, 257])
def test_later_epochs_change_no_class_of_an_event(network, cut, m_base):
    datasets = [DataSetEpochs(*photometry(300), m_base)]
    whole = predict_event(network, datasets).logits.softmax(1)
    for other in others(datasets, datasets[0].times[cut]):
        p = predict_event(network, other).logits.softmax(1)
        torch.testing.assert_close(p[:cut], whole[:cut], rtol=0, atol=1e-5, equal_nan=True)
    assert cut < STEP or whole[STEP:cut].isfinite().all()


@pytest.mark.parametrize("given", [(), (0, 2)])
@pytest.mark.parametrize("cut", [5, 11, 40, 100, 250])
def test_later_epochs_and_data_sets_change_no_class_before_them(network, cut, given):
    """At the earliest cuts, not all data sets have begun."""
    datasets = data_sets(3, 200, given=given)
    whole = predict_event(network, datasets)
    end = whole.times[cut]
    num = int((whole.times < end).sum())
    before = whole.logits.softmax(1)[:num]
    for other in others(datasets, end):
        found = predict_event(network, other)
        assert np.array_equal(found.times[:num], whole.times[:num])
        p = found.logits.softmax(1)[:num]
        torch.testing.assert_close(p, before, rtol=0, atol=1e-5, equal_nan=True)


def test_later_epochs_change_no_probability_that_is_shown(network):
    """P, time and data set of each epoch, as `lensml classify` gives them."""

    def event(datasets):
        curves = (Photometry(f"{d.m_base}", *d[:3], m_base=d.m_base) for d in datasets)
        return Event("x", tuple(curves))

    datasets = data_sets(3, 120, given=(0, 1, 2))
    whole = classify_event(event(datasets), network)
    for cut in (30, 150):
        end = whole.found.times[cut]
        num = int((whole.found.times < end).sum())
        for other in others(datasets, end):
            found = classify_event(event(other), network)
            np.testing.assert_allclose(found.p[:num], whole.p[:num], rtol=0, atol=1e-5)
            for ours, theirs in zip(found.answer["epochs"][:num], whole.answer["epochs"]):  # noqa: B905
                assert (ours["time"], ours["dataset"]) == (theirs["time"], theirs["dataset"])
