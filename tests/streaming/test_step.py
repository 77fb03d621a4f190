"""One epoch's step is the network's last column, at every depth of the pyramid."""

import numpy as np
import pytest
import torch

from lensml.network import (
    BIN_WIDTHS,
    NUM_MAP_CHANNELS,
    NUM_SUMMARY,
    PHASE_BINS,
    Network,
    NetworkConfig,
    PackedCurves,
    classify,
    encode,
    load_network,
    one_thread,
)
from lensml.streaming.step import (
    LAGS,
    RECENT,
    Opinions,
    bin_sums,
    depth_of,
    latest_features,
    moved_sums,
)


def test_depth_counts_the_levels_whose_tokens_end_with_an_epoch():
    for count in range(1, 1100):
        ending = [k for k in range(7) if count % (4 * 2**k) == 0]
        assert depth_of(count, 7) == len(ending)
    assert depth_of(2**20, 3) == 3


def window(length: int, seed: int = 0, offset: float = 2.46e6):
    """Weight, times and brightening of the last RECENT of `length` epochs, zeros before them."""
    generator = np.random.default_rng(seed)
    times = offset + np.cumsum(generator.exponential(0.7, length) + 0.01)
    times[length // 2 :] += 180.0
    sigma = generator.choice([0.003, 0.02, 0.3], length).astype(np.float32)
    bright = generator.normal(0.5, 0.6, length).astype(np.float32)
    columns = [sigma.astype(float) ** -2, times - times[-1], bright.astype(float)]
    recent = [np.concatenate([np.zeros(RECENT + 1), x])[-RECENT:] for x in columns]
    return (times, sigma, bright), recent


def weighed(weight, back, bright):
    return np.stack([weight, weight * bright, weight * back])[None]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11, 12, 16, 47, 64, 191, 192, 255, 256, 257, 900])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_features_of_the_last_epoch_are_those_of_the_whole_past(length, kind):
    (times, sigma, bright), recent = window(length)
    observed = PackedCurves(
        torch.from_numpy(bright)[None],
        torch.from_numpy(sigma)[None],
        torch.from_numpy(times)[None],
        torch.ones(1, length, dtype=torch.bool),
        torch.empty(0),
    )
    whole = encode(observed)[0, -1]
    stacked = kind(weighed(*recent))
    lagged = stacked[:, :, [RECENT - 1 - lag if lag < RECENT else 0 for lag in LAGS]]
    with np.errstate(all="ignore"):
        got = latest_features(
            lagged, bin_sums(stacked), kind(np.array([length])), kind(np.array(BIN_WIDTHS))
        )
    np.testing.assert_allclose(np.asarray(got)[0], whole.numpy(), rtol=0, atol=2e-5)


def test_sums_that_move_along_equal_sums_taken_anew():
    generator = np.random.default_rng(1)
    epochs = generator.normal(size=(2, 3, RECENT + 40))
    sums = bin_sums(epochs[:, :, :RECENT])
    for k in range(1, 41):
        last = RECENT - 1 + k
        sums = moved_sums(sums, epochs[:, :, [last - lag for lag in LAGS]])
        anew = bin_sums(epochs[:, :, k : k + RECENT])
        np.testing.assert_allclose(sums, anew, rtol=0, atol=1e-12)


def test_a_pyramid_of_another_shape_streams_as_well():
    """Nothing in the step is made for seven levels or for one block up."""
    from lensml.streaming.classifier import StreamingClassifier

    torch.manual_seed(3)
    config = NetworkConfig(
        channels=24, stem_channels=8, num_levels=3, encoder_blocks=1, decoder_blocks=2
    )
    network = Network(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.4)
    (times, sigma, bright), _ = window(70)
    stream = StreamingClassifier(network)
    got = [stream.update("x", *map(float, e), 18.0) for e in zip(times, 18 - bright, sigma)]  # noqa: B905
    whole = classify(times, 18 - bright.astype(float), sigma, 18.0, network)
    np.testing.assert_allclose(got, whole, rtol=0, atol=1e-5)
    assert np.ptp(whole) > 0.05


@torch.inference_mode()
def test_an_opinion_is_the_network_s_and_alike_to_the_last_bit_in_any_company():
    network, generator = load_network()[0].eval(), torch.Generator().manual_seed(0)
    maps = torch.randn(70, NUM_MAP_CHANNELS, PHASE_BINS, generator=generator)
    fit_summary = torch.randn(70, NUM_SUMMARY, generator=generator)
    embed_refits = Opinions(network)
    with one_thread():  # as every stream is: two threads share a batch out by its size
        embedding = embed_refits(maps, fit_summary)
        torch.testing.assert_close(
            embedding, network.embed_refits(maps, fit_summary), rtol=0, atol=2e-6
        )
        for num in (1, 2, 3, 4, 5, 15, 16, 17, 33):
            for first in (0, 1, 37):
                part = slice(first, first + num)
                assert torch.equal(embed_refits(maps[part], fit_summary[part]), embedding[part])
    maps[3, 0, 5] = torch.nan
    assert torch.isfinite(embed_refits(maps, fit_summary)).all()
