"""Probabilities of a set by fraction of the window and by phase, counted by hand; of one curve."""

import numpy as np
import pytest
import torch
from sets import photometry, spread_network, toy_set

from lensml.network import inference, predict_proba
from lensml.network.inference import BASELINE_MAX, BASELINE_MIN, causal_baseline, classify
from lensml.paths import InputError

NAN = np.nan


@pytest.fixture(scope="module")
def network():
    return spread_network()


def test_call_at_a_fraction_is_the_last_one_made_by_then():
    times = np.linspace(0, 10, 11)
    p = np.full((3, 11), NAN)
    p[0, [2, 5, 9]] = [0.2, 0.6, 0.9]  # at days 2, 5 and 9
    p[1] = np.arange(11) / 10
    got = inference.at_fractions(p, times, [0.1, 0.25, 0.5, 0.67, 1.0])
    np.testing.assert_allclose(got[0], [0.5, 0.2, 0.6, 0.6, 0.9], atol=1e-7)
    np.testing.assert_allclose(got[1], [0.1, 0.2, 0.5, 0.6, 1.0], atol=1e-7)
    np.testing.assert_allclose(got[2], 0.5)
    assert got.dtype == np.float32


def test_window_is_the_grid_of_the_row_not_its_observed_part():
    times = np.array([[0.0, 5, 10], [0.0, 50, 100]])
    p = np.array([[NAN, 0.7, NAN], [NAN, 0.3, NAN]])
    np.testing.assert_allclose(
        inference.at_fractions(p, times, [0.49, 0.5]), [[0.5, 0.7], [0.5, 0.3]]
    )


def test_future_calls_change_nothing():
    rng = np.random.default_rng(0)
    times, p = np.linspace(-100, 100, 60), rng.uniform(size=(5, 60))
    wild = p.copy()
    wild[:, times > 0] = NAN
    np.testing.assert_array_equal(
        inference.at_fractions(p, times)[:, :4], inference.at_fractions(wild, times)[:, :4]
    )


def test_phase_counts_from_the_peak_in_einstein_times():
    times = np.arange(10.0)
    p = np.tile(np.arange(10) / 10, (2, 1))
    p[0, 4] = NAN
    got = inference.by_phase(p, times, t0=[5, 0], tE=[1, 2], edges=[-1, 0, 1, 30])
    # Row 0: epoch 4 lies in [-1, 0) but was not observed, so the call of epoch 3 stands.
    np.testing.assert_allclose(got[0], [0.3, 0.5, 0.9])
    np.testing.assert_allclose(got[1], [NAN, 0.1, 0.9])  # its window begins at the peak


def test_chunks_give_what_the_whole_set_gives(network, monkeypatch):
    curves = toy_set(25, num_epochs=60)
    p = predict_proba(network, curves)
    monkeypatch.setattr(inference, "SET_CHUNK", 7)
    got = inference.predict(network, curves, season_rows=20)
    np.testing.assert_allclose(got.max_probability, inference.max_probability(p), atol=1e-6)
    np.testing.assert_allclose(got.p, inference.at_fractions(p, curves.times()), atol=1e-6)
    np.testing.assert_allclose(got.season, p[:20], atol=1e-6)
    assert inference.predict(network, curves, season_rows=0).season.shape == (0, 60)


def test_baseline_comes_from_the_past_and_then_stays():
    mag = photometry(400)[1]
    base = causal_baseline(mag)
    for k in (19, 20, 50, 199):
        assert base[k] == np.median(mag[: k + 1])
    assert (base[BASELINE_MAX:] == np.median(mag[:BASELINE_MAX])).all()
    assert (base[:BASELINE_MIN] == base[BASELINE_MIN - 1]).all()
    assert len(causal_baseline(mag[:5])) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m, e: (t[::-1], m, e), "increase strictly"),
        (lambda t, m, e: (np.repeat(t[:5], 2), m[:10], e[:10]), "increase strictly"),
        (lambda t, m, e: (t, np.where(t == t[3], np.nan, m), e), "`mag`.*not finite"),
        (lambda t, m, e: (t, m, np.zeros_like(e)), "`mag_err` must be positive"),
        (lambda t, m, e: (t, m[:-1], e), "`mag` has shape"),
        (lambda t, m, e: (t[None], m[None], e[None]), "`time` has shape"),
    ],
)
def test_a_bad_curve_is_refused_by_the_name_of_what_is_wrong(network, change, message):
    with pytest.raises(InputError, match=message):
        classify(*change(*photometry(30)), 18.0, network)


def test_no_epochs_no_calls(network):
    assert classify([], [], [], 18.0, network).shape == (0,)


def test_batch_answer_has_no_hidden_state(network):
    columns = photometry(50)
    first, again = (classify(*columns, 18.0, network) for _ in range(2))
    assert (first == again).all() and torch.is_grad_enabled()
