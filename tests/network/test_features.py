"""Features of an epoch: their definitions, gaps, padding, extreme values; the last one alone."""

import numpy as np
import pytest
import torch
from sets import photometry

from lensml.network import features as product
from lensml.network.features import (
    BIN_WIDTHS,
    NUM_BINS,
    NUM_FEATURES,
    PackedCurves,
    encode,
    encode_latest,
    observed_epochs,
    pack,
)
from lensml.simulation import Survey, draw_torch, observe


def curve(length: int, seed: int = 0, sigma: float = 0.03):
    generator = np.random.default_rng(seed)
    times = np.sort(generator.uniform(0, 200, length)).cumsum() / length + np.arange(length) * 1e-3
    bright = 1.5 / (0.1 + ((times - times[length // 2]) / 20) ** 2) ** 0.5
    mag = 18 - bright + sigma * generator.standard_normal(length)
    return mag, np.full(length, sigma), times


def features(mag, sigma, times, base=18.0):
    return encode(observed_epochs(mag[None], sigma[None], times[None], np.array([base])))[0]


def test_gaps_are_left_out_not_filled():
    mag, sigma, times = curve(120)
    hidden = mag.copy()
    hidden[::3] = np.nan
    kept = np.isfinite(hidden)
    observed = observed_epochs(hidden[None], sigma[None], times[None], np.array([18.0]))
    assert observed.index[0].tolist() == np.flatnonzero(kept).tolist()
    torch.testing.assert_close(encode(observed)[0], features(mag[kept], sigma[kept], times[kept]))


def test_padding_gives_zeros_and_changes_no_other_curve():
    mag, sigma, times = curve(90)
    both = np.stack([mag, np.where(np.arange(90) < 37, mag, np.nan)])
    observed = observed_epochs(both, np.stack([sigma] * 2), np.stack([times] * 2), np.full(2, 18.0))
    got = encode(observed)
    assert (got[1, 37:] == 0).all() and not observed.valid[1, 37:].any()
    torch.testing.assert_close(got[0], features(mag, sigma, times))
    torch.testing.assert_close(got[1, :37], features(mag[:37], sigma[:37], times[:37]))


def test_a_curve_without_epochs_is_all_padding():
    both = np.stack([curve(20)[0], np.full(20, np.nan)])
    observed = observed_epochs(both, np.full((2, 20), 0.1), np.arange(20.0), np.full(2, 18.0))
    assert torch.isfinite(encode(observed)).all() and observed.valid[1].sum() == 0


def test_zero_of_time_and_of_magnitude_do_not_matter():
    mag, sigma, times = curve(150)
    here = features(mag, sigma, times)
    torch.testing.assert_close(features(mag, sigma, times + 2_457_000.0), here, atol=1e-3, rtol=0)
    torch.testing.assert_close(features(mag + 3, sigma, times, 21.0), here, atol=1e-3, rtol=0)


def test_features_are_finite_where_errors_and_steps_are_extreme():
    mag, sigma, times = curve(200)
    for s in (1e-6, 1e-3, 5.0):
        for stretch in (1e-6, 1.0, 1e3):
            got = features(mag, np.full(200, s), times * stretch)
            assert got.shape == (200, NUM_FEATURES) and torch.isfinite(got).all()
            assert got.abs().max() < 100
    assert torch.isfinite(features(np.full(50, -20.0), np.full(50, 0.01), np.arange(50.0))).all()


def test_noise_about_a_flat_line_deviates_by_its_error():
    """Deviations are in units of their own error: 1 sigma for pure noise, at every width."""
    generator = np.random.default_rng(0)
    mag = 18 + 0.05 * generator.standard_normal((40, 400))
    observed = observed_epochs(mag, np.full((40, 400), 0.05), np.arange(400.0), np.full(40, 18.0))
    deviates = torch.sinh(2 * encode(observed)[:, 260:, 5:13])
    assert ((deviates.std((0, 1)) - 1).abs() < 0.2).all()


def test_pack_keeps_order_and_values():
    seen = torch.tensor([[True, False, True, True], [False, False, True, False]])
    delta = torch.arange(8.0).reshape(2, 4)
    got = pack(delta, torch.full((2, 4), 0.2), seen, torch.arange(4.0))
    assert got.brightening.tolist() == [[0, -2, -3], [-6, 0, 0]]
    assert got.times.tolist() == [[0, 2, 3], [2, 0, 0]]
    assert got.valid.tolist() == [[True, True, True], [True, False, False]]


def plain_deviations(b, weight, times, width):
    """Deviations of one curve from extrapolations of the three bins before, epoch by epoch."""
    linear, parabolic, signal = (np.zeros(len(b)) for _ in range(3))
    for k in range(len(b)):
        bins = []
        for back in range(4):
            stop = k + 1 - back * width
            part = slice(max(stop - width, 0), stop)
            if stop <= 0:
                break
            w = weight[part]
            bins.append((w @ b[part] / w.sum(), w @ times[part] / w.sum(), 1 / w.sum()))
        m, t, v = (np.array(column) for column in zip(*bins, strict=True))
        signal[k] = m[0] / np.sqrt(v[0])
        for order, out in ((2, linear), (3, parabolic)):
            if k + 1 >= (order + 1) * width:
                nodes = range(1, order + 1)
                c = [
                    np.prod([(t[0] - t[j]) / (t[i] - t[j]) for j in nodes if j != i]) for i in nodes
                ]
                scatter = np.sqrt(v[0] + np.square(c) @ v[1 : order + 1])
                out[k] = (m[0] - np.array(c) @ m[1 : order + 1]) / scatter
    return linear, parabolic, signal


def plain_features(b, sigma, times):
    """What `encode` must give for one curve (L,), in float64 and by the definitions alone."""
    sigma = np.maximum(sigma.astype(float), 1e-3)
    b, times = b.astype(float), times - times[0]
    amplitude = 10 ** (0.4 * np.clip(b, 0.005, 8))
    root = np.sqrt(amplitude**2 - 1)
    steps = np.diff(times, prepend=-1.0)
    deviations = [plain_deviations(b, sigma**-2, times, width) for width in BIN_WIDTHS]
    columns = [
        np.clip(b, -3, 8) / 2,
        np.arcsinh(b / sigma) / 3,
        np.log10(sigma / 0.03),
        np.log10(np.clip(steps, 1e-4, 1e3)) / 2,
        np.log(2 / ((amplitude + root) * root)) / 4,
        *(np.arcsinh(x) / 2 for one in deviations for x in one[:2]),
        *(np.arcsinh(one[2]) / 4 for one in deviations[2:]),
    ]
    return np.stack(columns, axis=1)


SURVEYS = [
    Survey(num_epochs=500),
    Survey(num_epochs=500, sigma=(0.003, 0.2), missing_fraction=(0.05, 0.6), night=(0.2, 0.5)),
    Survey(num_epochs=500, sigma=0.003, photon_noise=True, season_gap=60.0, keep_every=(1, 9)),
]


def observed_by(survey, num_pairs=6, zero=2_457_000.0):
    """A bright bump of three magnitudes, at dates as catalogues write them."""
    times = torch.from_numpy(survey.times) + zero
    clean = -3 * torch.exp(-(((times - zero) / 10) ** 2)).float()
    draws = draw_torch(num_pairs, survey.num_epochs, torch.Generator().manual_seed(0))
    return *observe(clean.expand(2 * num_pairs, -1), draws, survey, times - zero), times


@pytest.mark.parametrize("survey", SURVEYS)
def test_features_are_those_of_their_definitions(survey):
    observed = pack(*observed_by(survey))
    got = encode(observed)
    for row in range(len(got)):
        n = int(observed.valid[row].sum())
        columns = (x[row, :n].numpy() for x in observed[:3])
        np.testing.assert_allclose(got[row, :n], plain_features(*columns), rtol=0, atol=2e-6)


@pytest.mark.parametrize("block", [1, 700, 10**9])
def test_rows_worked_on_together_change_nothing(block, monkeypatch):
    observed = pack(*observed_by(SURVEYS[1]))
    expected = encode(observed)
    monkeypatch.setattr(product, "BLOCK", block)
    torch.testing.assert_close(encode(observed), expected, rtol=0, atol=1e-6)


def test_padding_further_adds_nothing_but_padding():
    given = observed_by(SURVEYS[1])
    tight = pack(*given)
    wide = pack(*given, length=tight.valid.shape[1] + 27)
    assert wide.valid.shape[1] == tight.valid.shape[1] + 27
    assert all((w[:, :-27] == t).all() for w, t in zip(wide, tight, strict=True))
    assert not wide.valid[:, -27:].any() and (encode(wide)[:, -27:] == 0).all()


def test_a_given_length_cuts_off_the_latest_epochs():
    given = observed_by(SURVEYS[0])
    whole, short = pack(*given), pack(*given, length=50)
    assert short.valid.all()
    assert all((s == w[:, :50]).all() for s, w in zip(short, whole, strict=True))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11, 12, 16, 47, 64, 191, 192, 255, 256, 257, 900])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_features_of_the_last_epoch_are_those_of_the_whole_past(length, kind):
    times, mag, error = photometry(length, wide=True)
    bright, sigma = np.float32(18 - mag), np.float32(error)
    columns = (torch.from_numpy(x)[None] for x in (bright, sigma, times))
    valid = torch.ones(1, length, dtype=torch.bool)
    whole = encode(PackedCurves(*columns, valid, torch.empty(0)))[0, -1]

    def back(x, lags):
        """Entries so far back from the last one; 0 before the first."""
        return np.array([x[length - 1 - k] if k < length else np.zeros(x.shape[1:]) for k in lags])

    weight = sigma.astype(float) ** -2
    terms = np.stack([weight, weight * bright, weight * (times - times[0])], axis=1)
    lags = np.arange(NUM_BINS + 1)
    edges = [back(terms.cumsum(0), lags * width) for width in BIN_WIDTHS[1:]]
    last = [back(x.astype(float), lags[:-1])[:, None] for x in (bright, sigma, times)]
    inputs = *last, np.stack(edges, axis=1)[:, :, None], np.array([length])
    with np.errstate(all="ignore"):
        got = encode_latest(*map(kind, inputs))
    np.testing.assert_allclose(np.asarray(got)[0], whole.numpy(), rtol=0, atol=2e-5)
