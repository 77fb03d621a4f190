"""The network: windows equal whole events, a bounded past, two classes out of five."""

import pytest
import torch

from lensml.network.model import (
    CLASSES,
    RECEPTIVE_FIELD,
    Network,
    NetworkConfig,
)
from lensml.network.residuals import (
    NUM_CHANNELS,
    NUM_INPUTS,
    NUM_STATE,
    NUM_SUMMARY,
    PHASE_BINS,
)


def small(**changes) -> Network:
    """Every weight at random: nothing is zero that could hide a dependence."""
    torch.manual_seed(0)
    shape = {"channels": 8, "embedding_channels": 6, "state_channels": 4, "head_channels": (16, 8)}
    network = Network(NetworkConfig(**shape | changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def refits(num: int) -> tuple[torch.Tensor, ...]:
    """Maps, summaries and states at random."""
    return tuple(
        torch.randn(num, *shape)
        for shape in ((NUM_CHANNELS, PHASE_BINS), (NUM_SUMMARY,), (NUM_STATE,))
    )


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 20, 200])
def test_the_last_epoch_of_a_window_is_that_epoch_of_the_event(length):
    network, inputs = small(), torch.randn(length, NUM_INPUTS)
    padded = torch.nn.functional.pad(inputs, (0, 0, RECEPTIVE_FIELD - 1, 0))
    windows = padded.unfold(0, RECEPTIVE_FIELD, 1).transpose(1, 2)
    whole = network.at_every_epoch(inputs)
    assert length == 1 or whole.std(dim=0).min() > 0.01
    torch.testing.assert_close(network.latest(windows), whole, rtol=0, atol=1e-5)


def test_training_and_inference_are_the_same_function():
    """With gradients a block calls oneDNN's convolutions."""
    network, inputs = small(), torch.randn(100, NUM_INPUTS)
    with torch.no_grad():
        expected = network.at_every_epoch(inputs)
    torch.testing.assert_close(network.at_every_epoch(inputs), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_depend_on_the_receptive_field_alone():
    network, inputs = small().double(), torch.randn(150, NUM_INPUTS).double()
    first = 150 - RECEPTIVE_FIELD
    before = network.at_every_epoch(inputs)[-1]
    older, oldest = inputs.clone(), inputs.clone()
    older[:first] += 1.0
    oldest[first] += 10.0
    torch.testing.assert_close(network.at_every_epoch(older)[-1], before, rtol=0, atol=1e-12)
    assert (network.at_every_epoch(oldest)[-1] - before).abs().max() > 1e-7


@torch.no_grad()
def test_late_epochs_do_not_change_early_outputs():
    network, inputs = small(), torch.randn(100, NUM_INPUTS)
    changed = inputs.clone()
    changed[60:] += 1.0
    early = network.at_every_epoch(inputs)[:60]
    torch.testing.assert_close(network.at_every_epoch(changed)[:60], early, rtol=0, atol=1e-6)


@torch.no_grad()
def test_every_input_reaches_the_logits():
    network, windows = small(), torch.randn(3, RECEPTIVE_FIELD, NUM_INPUTS)
    inputs = [windows, *refits(3), torch.tensor([0, 5, 255], dtype=torch.uint8)]
    before = network(*inputs)
    assert before.shape == (3, len(CLASSES))
    assert network.embed_refits(*inputs[1:4]).shape == (3, network.embedding_size)
    for k in range(5):
        changed = list(inputs)
        changed[k] = changed[k] + 1 if k < 4 else torch.tensor([2, 20, 90])
        assert ((network(*changed) - before).abs().amax(1) > 1e-4).all()


@pytest.mark.parametrize("fractions", [(0.2,) * 5, (0.4, 0.1, 0.2, 0.2, 0.1)])
def test_an_untrained_network_finds_classes_as_likely_as_in_training(fractions):
    network = Network(NetworkConfig(class_fractions=fractions))
    logits = network(torch.randn(2, RECEPTIVE_FIELD, NUM_INPUTS), *refits(2), torch.zeros(2))
    torch.testing.assert_close(logits.softmax(1), torch.tensor([fractions] * 2))
    torch.testing.assert_close(network.binary_of_two(logits), torch.full((2,), 0.5))
    assert network.num_parameters == sum(p.numel() for p in network.state_dict().values())


CHANCES = torch.tensor([[0.5, 0.1, 0.2, 0.15, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]])
FRACTIONS = (0.4, 0.1, 0.2, 0.2, 0.1)  # of the classes in training


def test_two_classes_are_single_and_binary_lenses_equally_often():
    """Bayes' rule takes out how often each was in training: 0.4 and 0.3."""
    odds = (CHANCES[:, 1] + CHANCES[:, 2]) / CHANCES[:, 0] * 0.4 / 0.3
    found = small(class_fractions=FRACTIONS).binary_of_two(CHANCES.log() + 3.0)
    torch.testing.assert_close(found, odds / (1 + odds))
    assert small().binary_of_two(torch.zeros(5)) == pytest.approx(0.5)


@pytest.mark.parametrize("prevalence", [0.05, 0.3, 0.5])
def test_probabilities_are_for_a_given_fraction_of_binaries(prevalence):
    others = (1 - prevalence) / 0.7
    weights = torch.tensor([others, prevalence / 0.3, prevalence / 0.3, others, others])
    expected = CHANCES * weights / (CHANCES * weights).sum(1, keepdim=True)
    found = small(class_fractions=FRACTIONS).probabilities(CHANCES.log() - 1.0, prevalence)
    torch.testing.assert_close(found, expected)


def test_classes_that_were_no_part_of_training_are_impossible():
    network = small(class_fractions=(0.5, 0.2, 0.3, 0.0, 0.0))
    found = network.probabilities(CHANCES.log(), 0.5)
    assert (found[:, 3:] == 0).all()
    torch.testing.assert_close(found[:, 1:3].sum(1), network.binary_of_two(CHANCES.log()))
