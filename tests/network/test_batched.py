"""Kernels of many events at once: the inputs and probabilities of `inputs`, one event at a time."""

import numpy as np
import pytest
import torch
from sets import data_sets, photometry, random_network, toy_set

from lensml.network import (
    DataSetEpochs,
    event_inputs,
    joint_epochs,
    predict_event,
    predict_proba,
)
from lensml.network.batched import (
    batch_logits,
    fit_events,
    innovations,
    kernels_agree,
    map_refits,
    pack_events,
    pack_rows,
)
from lensml.network.inference import predict_by_kernels
from lensml.paths import InputError

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def one_set(length, seed, base, exact=False):
    time, mag, error = photometry(length, seed)
    return [DataSetEpochs(time, mag, error, base, exact)]


EVENTS = (  # data sets, whether f_s is free
    (one_set(40, 1, 18.0, True), True),
    (data_sets(3, 40, given=(1,)), True),
    (one_set(24, 3, 18.0), False),
    (one_set(5, 4, None), True),  # too few for a refit
    (one_set(26, 5, None), True),
)


def packed(events, dtype):
    return pack_events([joint_epochs(d) for d, _ in events], [f for _, f in events], DEVICE, dtype)


def inputs_of(events, row):
    """Inputs that the kernels make of one of the events, as NumPy arrays."""
    found = fit_events(events, tile=256)
    refits = torch.arange(int(events.refits[row]), device=DEVICE)
    maps = map_refits(events, found, torch.full_like(refits, row), refits)
    return [x.cpu().numpy() for x in (innovations(events, found)[row], *maps)], found


@pytest.fixture(scope="module")
def double():
    events = packed(EVENTS, torch.float64)
    return events, fit_events(events, tile=256)


@pytest.mark.parametrize("row", range(len(EVENTS)))
def test_kernels_give_the_inputs_of_one_event(double, row):
    events, found = double
    datasets, free = EVENTS[row]
    joint = joint_epochs(datasets)
    one, refits = event_inputs(joint, free), torch.arange(int(events.refits[row]), device=DEVICE)
    assert len(refits) == len(one.counts)
    epochs = innovations(events, found)[row, : len(joint.times)].cpu().numpy()
    np.testing.assert_allclose(epochs, one.epochs, atol=1e-5)
    rows = torch.full_like(refits, row)
    for got, expected in zip(map_refits(events, found, rows, refits), one[1:4], strict=True):
        np.testing.assert_allclose(got.cpu().numpy(), expected, atol=3e-5)
    num, sets = len(refits), len(joint.width)
    factors = found.factors[row, :num, :sets].cpu().numpy()
    np.testing.assert_allclose(factors, one.factors, atol=1e-5)
    fits = found.fits[row, :num, :, : 3 + 2 * sets].cpu().numpy().copy()
    fits[:, :, 0] += joint.times[joint.place[0]]
    np.testing.assert_allclose(fits, one.fits, atol=1e-4)


def test_single_precision_is_enough_for_training():
    datasets, free = EVENTS[0]
    (epochs, maps, summaries, states), _ = inputs_of(packed([(datasets, free)], torch.float32), 0)
    one = event_inputs(joint_epochs(datasets), free)
    for got, expected in zip((epochs, maps, summaries, states), one[:4], strict=True):
        np.testing.assert_allclose(got, expected, atol=0.05)
        assert np.abs(got - expected).mean() < 1e-3


def test_probabilities_are_those_of_one_event_at_a_time(double):
    network = random_network().to(DEVICE)
    logits, begun = batch_logits(network, *double)
    for row, (datasets, free) in enumerate(EVENTS):
        alone = predict_event(network, datasets, free).logits
        known = alone.isfinite().all(1)
        assert torch.equal(begun[row, : len(alone)].cpu(), known)
        got = logits[row, : len(alone)].cpu()[known].softmax(1)
        torch.testing.assert_close(got, alone[known].softmax(1), rtol=0, atol=1e-4)


def test_rows_of_a_set_are_packed_as_events_are():
    curves, rows = toy_set(2, 40), range(4)
    bright = torch.from_numpy(curves.m_base[:, None].astype(float) - curves.X.astype(float))
    seen = bright.isfinite()
    sigma = torch.tensor(curves.sigmas())
    free = torch.tensor([True, False, True, False])
    got = pack_rows(
        *(x.to(DEVICE) for x in (torch.from_numpy(curves.time), bright, sigma, seen, free)),
        dtype=torch.float64,
    )
    joints = []
    for row in rows:
        on = seen[row].numpy()
        values = curves.time[on], curves.X[row, on].astype(float), curves.sigmas()[row, on]
        joints.append(joint_epochs([DataSetEpochs(*values, float(curves.m_base[row]), True)]))
    expected = pack_events(joints, free.tolist(), DEVICE)
    for name, values in expected._asdict().items():
        mine = getattr(got, name)
        if isinstance(values, bool):
            assert mine == values
            continue
        if name == "place":
            inside = torch.arange(values.shape[1], device=DEVICE) < expected.total[:, None]
            mine, values = mine[inside], values[inside]
        torch.testing.assert_close(mine, values, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("exact", [True, False])
def test_rows_of_a_set_are_predicted_as_one_by_one(exact):
    curves = toy_set(2, 30, bump=1.0)
    curves.X[1] = np.nan
    curves.X[2, 5:] = np.nan  # too few epochs for a refit
    if not exact:
        curves.meta["survey"] = {"error_scale": 1.2}
    assert curves.exact == exact
    network = random_network()
    expected = predict_proba(network, curves, device="cpu")
    got = predict_by_kernels(network.to(DEVICE), curves)
    assert np.array_equal(np.isnan(got), np.isnan(expected)) and (got[2, :5] == 0.5)[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_gpu_does_not_round_while_events_are_classified(monkeypatch):
    """By default its convolutions take inputs of 10 bits; training may go on with them."""
    seen, network = [], random_network()
    embed = network.embed_refits
    flags = torch.backends.cudnn, torch.backends.cuda.matmul

    def watched(*inputs):
        seen.append([x.allow_tf32 for x in flags])
        return embed(*inputs)

    monkeypatch.setattr(network, "embed_refits", watched)
    monkeypatch.setattr(flags[0], "allow_tf32", True)
    predict_event(network, one_set(20, 1, 18.0))
    assert seen == [[False, False]] and flags[0].allow_tf32


def test_kernels_are_for_a_gpu():
    assert not kernels_agree(torch.device("cpu"))
    if torch.cuda.is_available():
        assert kernels_agree(torch.device("cuda"))


def test_events_of_too_few_epochs_have_no_logits():
    events = packed([(one_set(5, 4, None), True), (one_set(7, 5, 18.0), False)], torch.float64)
    logits, begun = batch_logits(random_network().to(DEVICE), events)
    assert logits.shape == (2, 7, 5) and not logits.any() and not begun.any()


def test_kernels_can_be_refused(monkeypatch):
    monkeypatch.setenv("LENSML_KERNELS", "0")
    kernels_agree.cache_clear()
    assert not kernels_agree(torch.device("cuda"))
    kernels_agree.cache_clear()


def test_a_history_that_would_be_merged_is_refused():
    with pytest.raises(InputError, match="2100 epochs"):
        packed([(one_set(2100, 1, None), True)], torch.float64)
