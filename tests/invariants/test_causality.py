"""What is computed for epoch k depends on epochs <= k: features, residual maps, network, verbs.

Appending, changing or removing later epochs changes nothing before them, to 1e-5 in probability.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import data_sets, photometry, random_event_network, random_network, toy_set

from lensml.network import (
    NUM_FEATURES,
    STEP,
    DataSetEpochs,
    Network,
    PackedCurves,
    classify,
    encode,
    load_event_network,
    load_network,
    observed_epochs,
    predict_event,
    predict_proba,
    refit_schedule,
    residual_inputs,
)
from lensml.photometry import Event, Photometry
from lensml.streaming import classify_event

# Around the ends of tokens and of bins of features.
LENGTHS = [*range(1, 10), 11, 12, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
LENGTHS += [191, 192, 193, 255, 256, 257, 258, 300]


@pytest.fixture(scope="module", params=["random", "shipped"])
def network(request) -> Network:
    return random_network() if request.param == "random" else load_network()[0]


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(2, 400, NUM_FEATURES, generator=torch.Generator().manual_seed(1))


def encoded(times, mag, errors):
    return encode(observed_epochs(mag[None], errors[None], times[None], np.array([18.0])))[0]


def changed_after(cut, times, mag, errors):
    """A copy of a curve whose later epochs are other ones."""
    late = np.arange(len(times)) >= cut
    return times + 1e4 * late, mag - 9 * late, np.where(late, 100 * errors, errors)


@pytest.mark.parametrize("length", LENGTHS)
def test_appended_epochs_change_no_feature_before_them(length):
    curve = photometry(400)
    whole, part = encoded(*curve), encoded(*(x[:length] for x in curve))
    torch.testing.assert_close(part, whole[:length], rtol=0, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 4, 7, 64, 200, 256])
def test_changed_epochs_change_no_feature_before_them(cut):
    curve = photometry(400)
    before, after = encoded(*curve), encoded(*changed_after(cut, *curve))
    torch.testing.assert_close(after[:cut], before[:cut], rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [7, 8, 9, 100, 128, 200])
def test_later_epochs_change_no_refit_and_no_residual_map_before_them(length):
    curves = toy_set(3, 300, shuffle=False)
    whole = observed_epochs(curves.X, curves.sigmas(), curves.times(), curves.m_base)
    changed = whole._replace(brightening=whole.brightening.clone())
    changed.brightening[:, length:] += 1.0
    cut = PackedCurves(*(x[:, :length] for x in whole))
    found = [residual_inputs(x) for x in (whole, changed, cut)]
    num = len(refit_schedule(length))
    for other in found[1:]:
        torch.testing.assert_close(
            found[0].innovations[:, :length], other.innovations[:, :length], rtol=0, atol=1e-6
        )
        for name in ("maps", "fit_summary"):
            ours, theirs = (getattr(x, name)[:, :num] for x in (found[0], other))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not torch.equal(found[0].innovations[:, length:], found[1].innovations[:, length:])


@torch.no_grad()
@pytest.mark.parametrize("length", LENGTHS)
def test_appended_epochs_change_no_output_before_them(network, features, length):
    whole, part = network(features), network(features[:, :length])
    torch.testing.assert_close(part.sigmoid(), whole[:, :length].sigmoid(), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 7, 8, 9, 64, 255, 256, 257])
def test_changed_epochs_change_no_output_before_them(network, features, cut):
    changed = features.clone()
    changed[:, cut:] = 30 * torch.randn_like(changed[:, cut:])
    a, b = network(features)[:, :cut], network(changed)[:, :cut]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 3])
def test_networks_of_other_depths_are_causal(features, levels):
    network = random_network(num_levels=levels, decoder_blocks=2)
    with torch.no_grad():
        a, b = network(features)[:, :101], network(features[:, :101])
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_no_gradient_flows_from_later_epochs_and_some_from_the_present_one():
    """Causal, but not late: the output at epoch k uses epoch k."""
    network = random_network()
    x = torch.randn(1, 70, NUM_FEATURES, requires_grad=True)
    for k in (0, 3, 4, 30, 37, 63):
        (gradient,) = torch.autograd.grad(network(x)[0, k], x)
        assert (gradient[0, k + 1 :] == 0).all() and (gradient[0, k] != 0).any()


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


@pytest.fixture(scope="module", params=["random", "shipped"])
def event_network(request):
    return random_event_network() if request.param == "random" else load_event_network()[0]


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
def test_later_epochs_change_no_class_of_an_event(event_network, cut, m_base):
    datasets = [DataSetEpochs(*photometry(300), m_base)]
    whole = predict_event(event_network, datasets).logits.softmax(1)
    for other in others(datasets, datasets[0].times[cut]):
        p = predict_event(event_network, other).logits.softmax(1)
        torch.testing.assert_close(p[:cut], whole[:cut], rtol=0, atol=1e-5, equal_nan=True)
    assert cut < STEP or whole[STEP:cut].isfinite().all()


@pytest.mark.parametrize("given", [(), (0, 2)])
@pytest.mark.parametrize("cut", [5, 11, 40, 100, 250])
def test_later_epochs_and_data_sets_change_no_class_before_them(event_network, cut, given):
    """At the earliest cuts, not all data sets have begun."""
    datasets = data_sets(3, 200, given=given)
    whole = predict_event(event_network, datasets)
    end = whole.times[cut]
    num = int((whole.times < end).sum())
    before = whole.logits.softmax(1)[:num]
    for other in others(datasets, end):
        found = predict_event(event_network, other)
        assert np.array_equal(found.times[:num], whole.times[:num])
        p = found.logits.softmax(1)[:num]
        torch.testing.assert_close(p, before, rtol=0, atol=1e-5, equal_nan=True)


def test_later_epochs_change_no_probability_that_is_shown(event_network):
    """P, time and data set of each epoch, as `lensml classify` gives them."""

    def event(datasets):
        curves = (Photometry(f"{d.m_base}", *d[:3], m_base=d.m_base) for d in datasets)
        return Event("x", tuple(curves))

    datasets = data_sets(3, 120, given=(0, 1, 2))
    whole = classify_event(event(datasets), event_network)
    for cut in (30, 150):
        end = whole.found.times[cut]
        num = int((whole.found.times < end).sum())
        for other in others(datasets, end):
            found = classify_event(event(other), event_network)
            np.testing.assert_allclose(found.p[:num], whole.p[:num], rtol=0, atol=1e-5)
            for ours, theirs in zip(found.answer["epochs"][:num], whole.answer["epochs"]):  # noqa: B905
                assert (ours["time"], ours["dataset"]) == (theirs["time"], theirs["dataset"])
