"""Classes of events and sets: causal, none before the first refit; P by fraction and by phase."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sets import blended_magnitude, photometry, random_network, toy_set, watched_threads
from tqdm import tqdm

from lensml.network import CLASSES, STEP, DataSetEpochs, Network, inference
from lensml.network.inference import (
    at_fractions,
    classify,
    predict_at_fractions,
    predict_event,
    predict_proba,
)
from lensml.paths import InputError


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


def observed(num, first, base, known=False, seed=0, sigma=0.01) -> DataSetEpochs:
    """A data set of an event with f_s 0.6 and its peak at 0."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(first, 60, num))
    mag = blended_magnitude(0.0, 0.2, 25.0, 0.6 if not known else 1.0, base, times)
    given = (base, True) if known else (None, False)
    return DataSetEpochs(times, mag + sigma * rng.standard_normal(num), np.full(num, sigma), *given)


def until(datasets, end):
    """Epochs before `end`."""
    return [
        d._replace(times=d.times[keep], mag=d.mag[keep], sigma=d.sigma[keep])
        for d in datasets
        for keep in [d.times < end]
    ]


@pytest.mark.parametrize("end", [-40, 0, 30])
def test_later_epochs_and_data_sets_change_nothing_earlier(network, end):
    datasets = [observed(150, -100, 18.3), observed(80, -60, 17.0, seed=1), observed(60, 10, 19.0)]
    whole, short = predict_event(network, datasets), predict_event(network, until(datasets, end))
    n = len(short.times)
    assert 0 < n < len(whole.times) == 290 and whole.logits[STEP:].std(dim=0).min() > 0.05
    for name in ("times", "dataset", "logits"):
        a, b = getattr(short, name), getattr(whole, name)
        np.testing.assert_allclose(a, b[:n], rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_an_event_give_what_the_whole_gives(network, monkeypatch, seed):
    """Blocks of one epoch, shorter than the receptive field, without a refit, or of any size."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(STEP, 250, 2)
    datasets = [observed(n, -100, 18.0 + n % 3, seed=seed) for n in lengths]
    whole = predict_event(network, datasets)
    assert whole.logits[STEP:].std(dim=0).min() > 0.01
    for size in (1, 5, *rng.integers(6, 300, 3)):
        monkeypatch.setattr(inference, "EVENT_BLOCK", int(size))
        found = predict_event(network, datasets)
        p = [x.logits.softmax(1) for x in (found, whole)]
        torch.testing.assert_close(*p, rtol=0, atol=1e-6, equal_nan=True)
        for name in ("summaries", "states", "fits", "factors", "active", "counts", "covariance"):
            a, b = getattr(found.inputs, name), getattr(whole.inputs, name)
            np.testing.assert_array_equal(a, b, err_msg=f"{name}, blocks of {size}")


def test_an_event_has_no_logits_before_the_first_refit(network):
    found = predict_event(network, [observed(60, -50, 18.0)]).logits
    assert found.shape == (60, len(CLASSES))
    assert found[: STEP - 1].isnan().all() and found[STEP - 1 :].isfinite().all()
    few = predict_event(network, [observed(STEP - 1, -50, 18.0)]).logits
    assert few.shape == (STEP - 1, len(CLASSES)) and few.isnan().all()


def test_epochs_come_in_order_of_time_with_their_data_sets(network):
    datasets = [observed(30, -20, 18.0), observed(40, -60, 17.0, seed=1)]
    found = predict_event(network, datasets)
    assert (np.diff(found.times) >= 0).all()
    for k, d in enumerate((datasets[1], datasets[0])):  # in the order in which they begin
        assert np.array_equal(found.times[found.dataset == k], d.times)


@pytest.mark.parametrize("f_s", [1.0, 0.6])
def test_a_set_is_predicted_row_by_row(network, f_s):
    curves = toy_set(4, 100, f_s=f_s, shuffle=False)
    curves.X[3] = np.nan
    found = predict_proba(network, curves)
    assert found.shape == curves.X.shape and found.dtype == np.float32
    assert np.array_equal(np.isnan(found), np.isnan(curves.X))
    for row in (0, 5):
        on = np.isfinite(curves.X[row])
        values = (curves.times()[row], curves.X[row].astype(float), curves.sigmas()[row])
        data = DataSetEpochs(*(x[on] for x in values), float(curves.m_base[row]), True)
        logits = predict_event(network, [data], free=f_s < 1).logits
        expected = network.binary_of_two(logits)[STEP - 1 :]
        assert (found[row, on][: STEP - 1] == 0.5).all() and expected.std() > 0.01
        np.testing.assert_allclose(found[row, on][STEP - 1 :], expected, rtol=0, atol=1e-5)


def test_an_event_is_predicted_on_one_thread(network, monkeypatch):
    with watched_threads(network, monkeypatch) as seen:
        predict_event(network, [observed(30, -50, 18.0)])
    assert seen == [1]


@pytest.mark.parametrize("seed", range(3))
def test_epochs_divided_in_two_exact_data_sets_give_the_same_fits(network, seed):
    """Once the peak has passed: on the rise, starts of the search that differ may end apart."""
    one = observed(400, -100, 18.0, known=True, seed=seed)
    half = np.random.default_rng(seed).random(400) < 0.5
    two = [one._replace(times=one.times[h], mag=one.mag[h], sigma=one.sigma[h])
           for h in (half, ~half)]  # fmt: skip
    first, second = (predict_event(network, d, free=False).inputs for d in ([one], two))
    late = one.times[first.counts - 1] > 10
    assert np.array_equal(first.counts, second.counts)
    apart = abs(first.fits[late, 0, :3] - second.fits[late, 0, :3])
    assert (apart < 1e-3).all()  # of 25 d, 1 and 1: their errors are ten times as large
    np.testing.assert_allclose(
        first.summaries[late, :8], second.summaries[late, :8], rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": np.arange(30.0)[::-1]}, "`times` of data set 1 must not decrease"),
        ({"mag": np.full(30, np.nan)}, "`mag` of data set 1 holds values that are not finite"),
        ({"sigma": np.zeros(30)}, "`sigma` of data set 1 must be positive"),
        ({"mag": np.full(29, 18.0)}, r"`mag` of data set 1 has shape \(29,\), but \(30,\) was"),
        ({"times": np.zeros((30, 1))}, r"`times` of data set 1 has shape \(30, 1\), but"),
        ({"m_base": np.inf}, "`m_base` of data set 1 is inf; leave it out"),
    ],
)
def test_a_bad_data_set_is_refused_by_the_name_of_what_is_wrong(network, change, message):
    good = observed(30, -50, 18.0)
    with pytest.raises(InputError, match=message):
        predict_event(network, [good, good._replace(**change)])


def test_an_event_without_epochs_is_refused(network):
    for datasets in ([], [DataSetEpochs(*np.empty((3, 0)))]):
        with pytest.raises(InputError, match="no data set has an epoch"):
            predict_event(network, datasets)


def test_curves_of_different_length_do_not_depend_on_each_other(network):
    curves = toy_set(8, num_epochs=300)
    for row, last in enumerate(np.random.default_rng(0).integers(1, 300, len(curves))):
        curves.X[row, last:] = np.nan
    together = predict_proba(network, curves)
    for row in (0, 7, 15):
        apart = predict_proba(network, curves.rows(slice(row, row + 1)))
        np.testing.assert_allclose(apart[0], together[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"error_scale": (0.9, 1.8)}, {"baseline_error": 0.2}])
def test_where_errors_or_baselines_are_not_exact_they_are_fitted(network, change):
    curves = toy_set(3, 100)
    spoiled = replace(curves, meta=curves.meta | {"survey": change})
    assert curves.exact and not spoiled.exact
    assert not replace(curves, meta=curves.meta | {"condition": "red noise"}).exact
    exact, fitted = (predict_proba(network, each) for each in (curves, spoiled))
    assert np.nanmax(abs(exact - fitted)) > 1e-3


def test_call_at_a_fraction_is_the_last_one_made_by_then():
    times = np.linspace(0, 10, 11)
    p = np.full((3, 11), np.nan)
    p[0, [2, 5, 9]] = [0.2, 0.6, 0.9]  # at days 2, 5 and 9
    p[1] = np.arange(11) / 10
    got = inference.at_fractions(p, times, [0.1, 0.25, 0.5, 0.67, 1.0])
    np.testing.assert_allclose(got[0], [0.5, 0.2, 0.6, 0.6, 0.9], atol=1e-7)
    np.testing.assert_allclose(got[1], [0.1, 0.2, 0.5, 0.6, 1.0], atol=1e-7)
    np.testing.assert_allclose(got[2], 0.5)
    assert got.dtype == np.float32


@pytest.mark.parametrize("f_s", [1.0, 0.6])
def test_fractions_alone_give_what_every_epoch_gives(network, f_s):
    curves, fractions = toy_set(5, 120, f_s=f_s), (0.03, 0.1, 0.5, 0.75, 1.0)
    curves.X[3] = np.nan
    curves.X[4, :80] = np.nan  # nothing at half of the window
    expected = at_fractions(predict_proba(network, curves), curves.times(), fractions)
    found = predict_at_fractions(network, curves, fractions)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert (found[3] == 0.5).all() and (found[4, :3] == 0.5).all() and expected[:, 2:].std() > 0.01
    last = predict_at_fractions(network, curves)
    assert last.shape == (10, 1) and np.allclose(last[:, 0], expected[:, -1], atol=1e-5)


def test_window_is_the_grid_of_the_row_not_its_observed_part():
    times = np.array([[0.0, 5, 10], [0.0, 50, 100]])
    p = np.array([[np.nan, 0.7, np.nan], [np.nan, 0.3, np.nan]])
    np.testing.assert_allclose(
        inference.at_fractions(p, times, [0.49, 0.5]), [[0.5, 0.7], [0.5, 0.3]]
    )


def test_future_calls_change_nothing():
    rng = np.random.default_rng(0)
    times, p = np.linspace(-100, 100, 60), rng.uniform(size=(5, 60))
    wild = p.copy()
    wild[:, times > 0] = np.nan
    np.testing.assert_array_equal(
        inference.at_fractions(p, times)[:, :4], inference.at_fractions(wild, times)[:, :4]
    )


def test_phase_counts_from_the_peak_in_einstein_times():
    times = np.arange(10.0)
    p = np.tile(np.arange(10) / 10, (2, 1))
    p[0, 4] = np.nan
    got = inference.by_phase(p, times, t0=[5, 0], tE=[1, 2], edges=[-1, 0, 1, 30])
    # Row 0: epoch 4 lies in [-1, 0) but was not observed, so the call of epoch 3 stands.
    np.testing.assert_allclose(got[0], [0.3, 0.5, 0.9])
    np.testing.assert_allclose(got[1], [np.nan, 0.1, 0.9])  # its window begins at the peak


def test_chunks_give_what_the_whole_set_gives(network, monkeypatch):
    curves = toy_set(25, num_epochs=60)
    p = predict_proba(network, curves)
    monkeypatch.setattr(inference, "SET_CHUNK", 7)
    got = inference.predict(network, curves, season_rows=20)
    np.testing.assert_allclose(got.max_probability, inference.max_probability(p), atol=1e-6)
    np.testing.assert_allclose(got.p, inference.at_fractions(p, curves.times()), atol=1e-6)
    np.testing.assert_allclose(got.season, p[:20], atol=1e-6)
    assert inference.predict(network, curves, season_rows=0).season.shape == (0, 60)


def test_no_epochs_no_calls(network):
    assert classify([], [], [], 18.0, network).shape == (0,)


def test_batch_answer_has_no_hidden_state(network):
    columns = photometry(50)
    first, again = (classify(*columns, 18.0, network) for _ in range(2))
    assert (first == again).all() and torch.is_grad_enabled()


@pytest.mark.parametrize("m_base", [np.nan, 10**400])
def test_a_baseline_that_is_no_magnitude_is_refused(network, m_base):
    with pytest.raises(InputError, match="`m_base` is .*leave it out if unknown"):
        classify(*photometry(30), m_base, network)


def test_an_exact_baseline_says_more_than_a_given_one(network):
    time, mag, error = photometry(200)
    given, exact = (classify(time, mag, error, 18.0, network, exact=x) for x in (False, True))
    assert given.shape == exact.shape == (200,) and abs(given - exact).max() > 1e-3


def test_the_bar_counts_rows_to_the_end(network, monkeypatch):
    bars = []

    class Bar(tqdm):
        def close(self):
            bars.append((self.n, self.total, self.disable))
            super().close()

    monkeypatch.setattr(inference, "progress_bar", Bar)
    for progress in (True, False):
        predict_proba(network, toy_set(3, 40), progress=progress)
    assert bars[0] == (6, 6, False) and bars[-1][2]
