"""One epoch at a time gives the probabilities of the whole event, to 1e-5.

The network reads the epochs so far (`predict_event`), or only the latest one beside a cache of
fixed size (`StreamingClassifier`).
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sets import data_sets, in_order, photometry, random_network

from lensml.network import (
    RECEPTIVE_FIELD,
    STEP,
    DataSetEpochs,
    Network,
    NetworkConfig,
    load_network,
    new_histories,
    predict_event,
)
from lensml.streaming import StreamingClassifier

TOLERANCE = 1e-5
CAPACITY = new_histories(1, 1).times.shape[1]  # epochs that a history keeps before it is merged


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


def batch(network, datasets, free=True):
    """P(binary) of all epochs in order of time; 0.5 before the first refit."""
    if isinstance(datasets, tuple):
        datasets = [DataSetEpochs(*datasets)]
    logits = predict_event(network, datasets, free).logits
    return network.probabilities(logits)[:, 1:3].sum(1).nan_to_num(0.5).numpy()


def stream_all(stream, curves, m_base=18.0, order=None):
    """P(binary) of each of (n, 3, L) curves: one epoch of all in a call, or of those in `order`."""
    curves = np.asarray(curves)
    p, ages = np.full(curves[:, 0].shape, np.nan), np.zeros(len(curves), int)
    for now in order or [np.arange(len(curves))] * p.shape[1]:
        bases = [m_base] * len(now)
        names, epochs = [f"e{i}" for i in now], curves[now, :, ages[now]]
        p[now, ages[now]], problems = stream.update_many(names, *epochs.T, bases)
        assert not problems
        ages[now] += 1
    return p


def assert_equal(streamed, expected, atol=TOLERANCE):
    """Equal, and of an event whose P varies."""
    assert np.shape(streamed) == np.shape(expected)
    assert (np.array(streamed)[: STEP - 1] == 0.5).all()
    if len(expected) > 40:
        assert np.std(expected[STEP:]) > 0.01
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("m_base", [18.0, None])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, RECEPTIVE_FIELD, 64, 65, 255, 330])
def test_one_event_of_any_length(network, length, m_base):
    columns = photometry(length)
    stream = StreamingClassifier(network)
    epochs = zip(*(c.tolist() for c in columns), strict=True)
    streamed = [stream.update("x", *epoch, m_base) for epoch in epochs]
    assert_equal(streamed, batch(network, (*columns, m_base)))


@pytest.mark.parametrize("given", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("wide", [False, True])
def test_an_event_of_three_data_sets(network, given, wide):
    """One begins after the other; some of their epochs are at the same time."""
    datasets = data_sets(3, 200, given=given, wide=wide)
    epochs, stream = in_order(datasets), StreamingClassifier(network)
    times = [epoch[0] for epoch in epochs]
    assert len(set(times)) < len(times) - 20
    streamed = [stream.update("x", *epoch) for epoch in epochs]
    assert_equal(streamed, batch(network, datasets))


def test_the_shipped_network():
    network, datasets = load_network()[0], data_sets(2, 150, given=(0,))
    stream = StreamingClassifier(network)
    streamed = [stream.update("x", *epoch) for epoch in in_order(datasets)]
    np.testing.assert_allclose(streamed, batch(network, datasets), rtol=0, atol=TOLERANCE)


def test_an_event_longer_than_a_history(network):
    """Older epochs are merged, refits become rarer."""
    datasets = data_sets(3, CAPACITY, wide=True)
    epochs, stream = in_order(datasets), StreamingClassifier(network)
    assert len(epochs) > 1.5 * CAPACITY
    streamed = [stream.update("x", *epoch) for epoch in epochs]
    assert_equal(streamed, batch(network, datasets))
    assert stream.cache.histories.used[0] < CAPACITY


def test_events_whose_flux_is_known_to_be_lensed_as_a_whole(network):
    columns = photometry(150)
    expected = batch(network, (*columns, 18.0), free=False)
    streamed = stream_all(StreamingClassifier(network, blended=False), [columns])[0]
    assert_equal(streamed, expected)
    assert np.abs(expected - batch(network, (*columns, 18.0))).max() > 1e-3


@pytest.mark.parametrize("m_base", [18.0, None])
def test_many_events_in_one_call(network, m_base):
    """Events begin one after the other, so that ages and refits differ in every call."""
    curves = [photometry(150, seed) for seed in range(6)]
    calls = [[i for i in range(6) if 0 <= k - 7 * i < 150] for k in range(150 + 5 * 7)]
    streamed = stream_all(StreamingClassifier(network), curves, m_base, list(map(np.array, calls)))
    for p, columns in zip(streamed, curves, strict=True):
        assert_equal(p, batch(network, (*columns, m_base)))


def test_events_of_all_ages_and_numbers_of_data_sets_in_calls_of_random_size(network):
    """In a call events come several times, some with epochs of several data sets."""
    events = [data_sets(1 + i % 3, 90, i, given=(0,) * (i % 2)) for i in range(24)]
    waiting = [[(f"e{i}", *epoch) for epoch in in_order(e)] for i, e in enumerate(events)]
    generator, stream, found = np.random.default_rng(0), StreamingClassifier(network), {}
    while any(waiting):
        call = []
        for _ in range(generator.integers(1, 100)):
            left = [epochs for epochs in waiting if epochs]
            if left:
                call.append(left[generator.integers(len(left))].pop(0))
        p, problems = stream.update_many(*map(list, zip(*call, strict=True)))
        assert not problems
        for entry, value in zip(call, p, strict=True):
            found.setdefault(entry[0], []).append(value)
    for i, datasets in enumerate(events):
        assert_equal(found[f"e{i}"], batch(network, datasets))


def test_a_network_of_another_shape():
    """Nothing in a step is made for the default numbers of channels."""
    torch.manual_seed(3)
    shape = {"channels": 24, "embedding_channels": 8, "state_channels": 4, "head_channels": (16, 8)}
    network = Network(NetworkConfig(**shape))
    with torch.no_grad():
        for block in network.blocks:
            block.mix.weight.normal_(0, 0.2)
        network.head[-1].weight.normal_(0, 0.5)
    columns = photometry(70, wide=True)
    streamed = stream_all(StreamingClassifier(network), [columns])[0]
    assert_equal(streamed, batch(network, (*columns, 18.0)))


def test_an_event_does_not_depend_on_the_others_of_its_call(network):
    """Matrix products of one row and of many round differently; nothing else may differ."""
    curves = [photometry(130, seed) for seed in range(5)]
    together = stream_all(StreamingClassifier(network), curves)
    for p, columns in zip(together, curves, strict=True):
        alone = stream_all(StreamingClassifier(network), [columns])[0]
        assert_equal(p, alone, atol=2e-6)


@pytest.mark.parametrize("m_base", [18.0, None])
def test_a_saved_stream_goes_on_where_it_was(network, tmp_path, m_base):
    """Saved at every stage on the way: before the first refit, at one, between two."""
    curves = [photometry(140, seed) for seed in range(3)]
    whole = stream_all(StreamingClassifier(network), curves, m_base)
    stream, parts = StreamingClassifier(network), []
    for first, last in pairwise([0, 1, 7, 8, 20, 64, 100, 140]):
        parts.append(stream_all(stream, np.array(curves)[..., first:last], m_base))
        stream.save(tmp_path / "state")
        stream = StreamingClassifier(network)
        stream.restore(tmp_path / "state")
    for p, expected in zip(np.concatenate(parts, axis=1), whole, strict=True):
        assert_equal(p, expected, atol=2e-6)
