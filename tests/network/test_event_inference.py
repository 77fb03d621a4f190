"""Classes of events: causal, the same for a set as for its rows, none before the first refit."""

import numpy as np
import pytest
import torch
from sets import blended_magnitude, random_event_network, toy_set

from lensml.network.event_inference import predict_event, predict_events
from lensml.network.event_model import CLASSES, EventNetwork
from lensml.network.joint_inputs import STEP, DataSetEpochs
from lensml.paths import InputError


@pytest.fixture(scope="module")
def network() -> EventNetwork:
    return random_event_network()


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
    found = predict_events(network, curves)
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
    seen, threads, join = [], torch.get_num_threads(), network.join

    def watched(*inputs):
        seen.append(torch.get_num_threads())
        return join(*inputs)

    monkeypatch.setattr(network, "join", watched)
    torch.set_num_threads(2)
    try:
        predict_event(network, [observed(30, -50, 18.0)])
        assert torch.get_num_threads() == 2 and seen == [1]
    finally:
        torch.set_num_threads(threads)


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
