"""Layers of the network: what they see, when, and that a curve does not depend on its batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import random_network, toy_set

from lensml.network import model
from lensml.network.checkpoint import load_network
from lensml.network.features import NUM_FEATURES
from lensml.network.inference import predict_proba
from lensml.network.model import CausalBlock, Network, causal_upsample
from lensml.network.residual_maps import (
    NUM_INNOVATIONS,
    NUM_MAP_CHANNELS,
    NUM_SUMMARY,
    PHASE_BINS,
    ResidualInputs,
)


@pytest.fixture(scope="module", params=["random", "shipped"])
def network(request) -> Network:
    return random_network() if request.param == "random" else load_network()[0]


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(2, 400, NUM_FEATURES, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_distant_past_is_seen():
    network, x = random_network(), torch.randn(1, 400, NUM_FEATURES)
    changed = x.clone()
    changed[:, :8] += 1
    assert (network(x) - network(changed))[0, -1].abs() > 1e-7


def test_a_coarse_token_is_used_only_when_it_is_complete():
    coarse = torch.arange(1.0, 4.0)[None, :, None]
    assert causal_upsample(coarse, 4, 11)[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert causal_upsample(coarse, 2, 5)[0, :, 0].tolist() == [0, 1, 1, 2, 2]


def test_late_epochs_do_not_change_early_outputs_of_a_block():
    block = CausalBlock(4, dilation=3)
    torch.nn.init.normal_(block.mix.weight)
    x = torch.linspace(-1, 1, 400).reshape(1, 100, 4)
    changed = x.clone()
    changed[:, 60:] += 1.0
    torch.testing.assert_close(block(x)[:, :60], block(changed)[:, :60])


def test_an_untrained_network_gives_one_half():
    p = predict_proba(Network(), toy_set(3))
    assert (p[np.isfinite(p)] == 0.5).all()


def test_probabilities_stand_where_epochs_were_observed(network):
    curves = toy_set(6)
    p = predict_proba(network, curves)
    assert p.dtype == np.float32 and p.shape == curves.X.shape
    assert (np.isfinite(p) == np.isfinite(curves.X)).all()
    assert np.nanmin(p) >= 0 and np.nanmax(p) <= 1


def test_curves_of_different_length_do_not_depend_on_their_batch(network):
    curves = toy_set(8, num_epochs=300)
    X = curves.X.copy()
    for row, last in enumerate(np.random.default_rng(0).integers(1, 300, len(X))):
        X[row, last:] = np.nan
    X[3] = np.nan
    curves = replace(curves, X=X)
    together = predict_proba(network, curves, batch_size=16)
    for size in (1, 5):
        apart = predict_proba(network, curves, batch_size=size)
        np.testing.assert_allclose(apart, together, rtol=0, atol=1e-5)


def test_times_of_each_row_may_be_its_own():
    network, curves = load_network()[0], toy_set(4)
    own = replace(curves, time=np.array(curves.times()), sigma=np.array(curves.sigmas()))
    assert (predict_proba(network, own) == predict_proba(network, curves))[np.isfinite(own.X)].all()


def random_refits(rows: int, length: int) -> ResidualInputs:
    """Of two refits a curve, the first in force from the second epoch on."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    active_refit = (torch.arange(length) > 0).long() + (torch.arange(length) > length // 2)
    return ResidualInputs(
        normal(length, NUM_INNOVATIONS),
        normal(2, NUM_MAP_CHANNELS, PHASE_BINS),
        normal(2, NUM_SUMMARY),
        active_refit.expand(rows, -1),
    )


@torch.no_grad()
def test_an_embedding_is_held_from_its_refit_on_and_not_before(features):
    network = random_network()
    refits = random_refits(2, 400)
    changed = refits._replace(maps=refits.maps.clone())
    changed.maps[:, 1] += 1.0
    one, other = network(features, refits), network(features, changed)
    torch.testing.assert_close(one[:, :201], other[:, :201], rtol=0, atol=0)
    assert (one[:, 201:] - other[:, 201:]).abs().min() > 0
    silent = network(features, refits._replace(active_refit=0 * refits.active_refit))
    assert not torch.allclose(one, silent)


def test_the_residual_branch_adds_nothing_before_training(features):
    torch.manual_seed(0)
    network = Network().eval()
    torch.nn.init.normal_(network.head[-1].weight)
    with torch.no_grad():
        assert torch.equal(network(features), network(features, random_refits(2, 400)))


def answers_and_gradients(network, x, by_convolution, monkeypatch, cast=False, refits=None):
    """Logits of a network in training and the gradients of all that goes in, by either path."""
    usual = model._train_by_convolution
    monkeypatch.setattr(
        model, "_train_by_convolution", usual if by_convolution else lambda x: False
    )
    network.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        logits = network(x) if refits is None else network(x, refits)
    weight = torch.linspace(-1, 1, x.shape[1]).reshape(1, -1, *(1,) * (logits.dim() - 2))
    (logits.float() * weight).mean().backward()
    monkeypatch.setattr(model, "_train_by_convolution", usual)
    return [logits.detach(), x.grad, *(p.grad.clone() for p in network.parameters())]


@pytest.mark.parametrize("length", [3, 4, 7, 64, 257])
def test_training_by_convolutions_has_the_gradients_of_matrix_products(
    network, length, monkeypatch
):
    x = torch.randn(3, length, NUM_FEATURES, generator=torch.Generator().manual_seed(2))
    refits = random_refits(3, length) if network.config.embedding_channels else None
    convolved = answers_and_gradients(network, x, True, monkeypatch, refits=refits)
    plain = answers_and_gradients(network, x, False, monkeypatch, refits=refits)
    for a, b in zip(convolved, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()) + 1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_in_bfloat16_convolutions_err_no_more_than_matrix_products(dilation, monkeypatch):
    torch.manual_seed(0)
    block, x = CausalBlock(32, dilation), torch.randn(4, 90, 32).bfloat16().float()
    torch.nn.init.normal_(block.mix.weight, std=0.2)
    exact = answers_and_gradients(block, x, False, monkeypatch)
    x = x.bfloat16()  # as the layer before it hands it over
    convolved = answers_and_gradients(block, x, True, monkeypatch, cast=True)
    plain = answers_and_gradients(block, x, False, monkeypatch, cast=True)
    for a, b, e in zip(convolved, plain, exact, strict=True):
        error = (b.float() - e).norm()
        assert (a.float() - e).norm() < 2 * error + 1e-6 * e.norm()


def test_inference_uses_matrix_products(network, features, monkeypatch):
    with torch.no_grad():
        before = network(features)
        monkeypatch.setattr(model, "_train_by_convolution", lambda x: False)
        assert torch.equal(network(features), before)


@torch.no_grad()
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_block_steps_through_tokens_as_it_reads_them_together(dilation):
    torch.manual_seed(0)
    block, x = CausalBlock(8, dilation), torch.randn(3, 20, 8)
    torch.nn.init.normal_(block.mix.weight)
    normed, expected = [torch.zeros(3, 8)] * block.past, block(x)
    for k in range(20):
        past = torch.cat([normed[-2 * dilation], normed[-dilation]], dim=1)
        y, new = block.step(x[:, k], past)
        normed.append(new)
        torch.testing.assert_close(y, expected[:, k], rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_embedding_does_not_depend_on_the_others_of_its_batch():
    network, generator = load_network()[0], torch.Generator().manual_seed(0)
    maps = torch.randn(70, NUM_MAP_CHANNELS, PHASE_BINS, generator=generator)
    fit_summary = torch.randn(70, NUM_SUMMARY, generator=generator)
    together = network.embed_refits(maps, fit_summary)
    for num in (1, 2, 3, 15, 16, 17, 33):
        part = slice(37, 37 + num)
        alone = network.embed_refits(maps[part], fit_summary[part])
        torch.testing.assert_close(alone, together[part], rtol=0, atol=5e-6)
