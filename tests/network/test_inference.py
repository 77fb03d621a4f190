"""Probabilities of a set by fraction of the window and by phase, counted by hand."""

import numpy as np
import pytest
from sets import spread_network, toy_set

from lensml.network import inference, predict_proba

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
