"""One epoch at a time gives the probabilities of the whole curve, to 1e-5.

The network reads the epochs so far (`classify`, `predict_proba`), or only the latest one beside a
cache of fixed size (`StreamingClassifier`).
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sets import photometry

from lensml.network import (
    BASELINE_MIN,
    MAX_HISTORY,
    Network,
    NetworkConfig,
    classify,
    load_network,
    predict_proba,
)
from lensml.simulation import LightCurves
from lensml.streaming import StreamingClassifier

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network()[0]


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


@pytest.mark.parametrize("m_base", [18.0, None])
@pytest.mark.parametrize("length", [*range(1, 10), 19, 20, 21, 255, 256, 257, 330])
def test_one_event_of_any_length(network, length, m_base):
    """With a baseline from the past the features change while it is being estimated."""
    columns = photometry(length)
    batch = classify(*columns, m_base, network)
    stream = StreamingClassifier(network)
    epochs = zip(*(c.tolist() for c in columns), strict=True)
    streamed = [stream.update("x", *epoch, m_base) for epoch in epochs]
    np.testing.assert_allclose(streamed, batch, rtol=0, atol=TOLERANCE)
    if m_base is None:
        assert (batch[: BASELINE_MIN - 1] == 0.5).all()


@pytest.mark.parametrize("length", [700, MAX_HISTORY + 180])
def test_curves_longer_than_the_memory_of_features_and_of_refits(network, length):
    curves = [photometry(length, seed, wide=True) for seed in range(4)]
    streamed = stream_all(StreamingClassifier(network), curves)
    for p, columns in zip(streamed, curves, strict=True):
        batch = classify(*columns, 18.0, network)
        np.testing.assert_allclose(p, batch, rtol=0, atol=TOLERANCE)


def test_curves_whose_flux_is_known_to_be_lensed_as_a_whole(network):
    columns = photometry(150)
    batch = classify(*columns, 18.0, network, blended=False)
    streamed = stream_all(StreamingClassifier(network, blended=False), [columns])[0]
    np.testing.assert_allclose(streamed, batch, rtol=0, atol=TOLERANCE)
    with_free_blend = classify(*columns, 18.0, network)
    assert np.abs(batch - with_free_blend).max() > 1e-4


@pytest.mark.parametrize("m_base", [18.0, None])
def test_many_events_in_one_call(network, m_base):
    """Events begin one after the other, so that ages and completed levels differ in every call."""
    curves = [photometry(230, seed) for seed in range(6)]
    calls = [[i for i in range(6) if 0 <= k - 7 * i < 230] for k in range(230 + 5 * 7)]
    streamed = stream_all(StreamingClassifier(network), curves, m_base, list(map(np.array, calls)))
    for p, columns in zip(streamed, curves, strict=True):
        batch = classify(*columns, m_base, network)
        np.testing.assert_allclose(p, batch, rtol=0, atol=TOLERANCE)


def test_events_of_all_ages_in_calls_of_random_size(network):
    """A set holds magnitudes in float32; what they round to is what the stream is given."""
    num, length = 40, 300
    curves = np.array([photometry(length, seed, wide=True) for seed in range(num)])
    curves[:, 1] = curves[:, 1].astype(np.float32)
    generator, left, order = np.random.default_rng(0), np.full(num, length), []
    while left.any():
        some = generator.permutation(np.flatnonzero(left))
        order.append(some[: generator.integers(1, num)])
        left[order[-1]] -= 1
    streamed = stream_all(StreamingClassifier(network), curves, order=order)
    together = stream_all(StreamingClassifier(network), curves)
    np.testing.assert_allclose(streamed, together, rtol=0, atol=2e-6)
    as_set = LightCurves(
        X=curves[:, 1].astype(np.float32),
        y=np.zeros(num, np.int8),
        time=curves[:, 0],
        sigma=curves[:, 2].astype(np.float32),
        m_base=np.full(num, 18.0, np.float32),
        pair=np.full(num, -1),
        dchi2=np.full(num, np.nan),
        params=np.full((num, 8), np.nan),
        meta={},
    )
    batch = predict_proba(network, as_set)
    np.testing.assert_allclose(streamed, batch, rtol=0, atol=TOLERANCE)


def test_a_network_of_another_shape():
    """Nothing in a step is made for seven levels or for one block in the decoder."""
    torch.manual_seed(3)
    shape = {"channels": 24, "stem_channels": 8, "num_levels": 3}
    network = Network(NetworkConfig(**shape, encoder_blocks=1, decoder_blocks=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.4)
    columns = photometry(70, wide=True)
    streamed = stream_all(StreamingClassifier(network), [columns])[0]
    batch = classify(*columns, 18.0, network)
    np.testing.assert_allclose(streamed, batch, rtol=0, atol=TOLERANCE)
    assert np.ptp(batch) > 0.05


def test_an_event_does_not_depend_on_the_others_of_its_call(network):
    """Matrix products of one row and of many round differently; nothing else may differ."""
    curves = [photometry(130, seed) for seed in range(5)]
    together = stream_all(StreamingClassifier(network), curves)
    for p, columns in zip(together, curves, strict=True):
        alone = stream_all(StreamingClassifier(network), [columns])[0]
        np.testing.assert_allclose(p, alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("m_base", [18.0, None])
def test_a_saved_stream_goes_on_where_it_was(network, tmp_path, m_base):
    """To the last bit, where the calls are the same; saved five times on the way."""
    curves = [photometry(200, seed) for seed in range(3)]
    whole = stream_all(StreamingClassifier(network), curves, m_base)
    stream, parts = StreamingClassifier(network), []
    for first, last in pairwise([0, 1, 7, 19, 20, 130, 200]):
        parts.append(stream_all(stream, np.array(curves)[..., first:last], m_base))
        stream.save(tmp_path / "state")
        stream = StreamingClassifier(network)
        stream.restore(tmp_path / "state")
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
