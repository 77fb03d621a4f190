"""Slots advance alike in any company, on any kind of slab, and do not drift."""

import numpy as np
import pytest
import torch

from lensml.network import MAX_HISTORY, classify, load_network, predict_proba
from lensml.simulation import LightCurves
from lensml.streaming.cache import LENGTHS, SHIFT, EventCache
from lensml.streaming.step import RECENT, bin_sums


@pytest.fixture(scope="module")
def network():
    return load_network()[0]


def epochs(num: int, length: int, seed: int = 0):
    """Times, brightening and errors (num, length): a peak, gaps of a season, errors to 0.003."""
    generator = np.random.default_rng(seed)
    step = generator.exponential(0.7, (num, length)) + 0.01
    step[:, ::97] += 150.0
    times = 2.46e6 + np.cumsum(step, axis=1)
    sigma = generator.choice([0.003, 0.02, 0.2], (num, length))
    near = (times - times[:, length // 2][:, None]) / 30
    bright = 2.5 * np.log10(1 + 2 / np.hypot(0.2, near))
    return times, bright + sigma * generator.standard_normal((num, length)), sigma


def advance_all(states, columns, slots=None):
    slots = np.arange(len(columns[0])) if slots is None else slots
    states.new_slots(len(slots))
    length = columns[0].shape[1]
    return np.array([states.advance(slots, *(c[:, k] for c in columns)) for k in range(length)]).T


def test_thousands_of_epochs_equal_the_batch_answer(network):
    columns = epochs(8, 700)
    streamed = advance_all(EventCache(network), columns)
    for i, (times, bright, sigma) in enumerate(zip(*columns, strict=True)):
        batch = classify(times, 18 - bright, sigma, 18.0, network)
        np.testing.assert_allclose(streamed[i], batch, rtol=0, atol=1e-5)


def test_slots_of_different_ages_equal_the_batch_answer(network):
    """Every depth of the pyramid occurs in one call, and most events complete nothing."""
    num, length = 40, 300
    times, bright, sigma = epochs(num, length, seed=2)
    states = EventCache(network)
    states.new_slots(num)
    generator = np.random.default_rng(0)
    ages, p = np.zeros(num, int), np.full((num, length), np.nan)
    while (left := np.flatnonzero(ages < length)).size:
        now = generator.permutation(left)[: generator.integers(1, num)]
        at = now, ages[now]
        p[at] = states.advance(now, times[at], bright[at], sigma[at])
        ages[now] += 1
    curves = LightCurves(
        X=(18 - bright).astype(np.float32),
        y=np.zeros(num, np.int8),
        time=times,
        sigma=sigma.astype(np.float32),
        m_base=np.full(num, 18.0, np.float32),
        pair=np.full(num, -1),
        dchi2=np.full(num, np.nan),
        params=np.full((num, 8), np.nan),
        meta={},
    )
    # The set holds magnitudes in float32; what they round to is what the stream must be given.
    rounded = advance_all(EventCache(network), (times, np.float32(18.0) - curves.X, sigma))
    batch = predict_proba(network, curves)
    np.testing.assert_allclose(rounded, batch, rtol=0, atol=1e-5)
    together = advance_all(EventCache(network), (times, bright, sigma))
    np.testing.assert_allclose(p, together, rtol=0, atol=2e-6)


def staggered(states, columns, starts, calls):
    """Answers (num, calls) where event i begins with call starts[i]; all that are on share it."""
    num = len(starts)
    states.new_slots(num)
    p = np.full((num, calls), np.nan)
    for k in range(calls):
        on = np.flatnonzero(starts <= k)
        p[on, k] = states.advance(on, *(c[on, k - starts[on]] for c in columns))
    return p


def test_answers_of_all_ages_are_to_the_last_bit_those_of_an_event_alone(network):
    """Refits of prefixes of 8 to 304 epochs, some padded to 256 and some to 512, share calls."""
    starts, calls = np.array([0, 9, 40, 51, 200, 208, 216, 240, 247, 290]), 305
    columns = epochs(len(starts), calls, seed=6)
    together = EventCache(network)
    p = staggered(together, columns, starts, calls)
    for i in (0, 1, 3, 6, 8):
        alone = EventCache(network)
        own = slice(i, i + 1)
        seen = [c[own, : calls - starts[i]] for c in columns]
        np.testing.assert_array_equal(p[own, starts[i] :], advance_all(alone, seen))
        for name in ("fits", "said"):
            np.testing.assert_array_equal(together.slabs[name][own], alone.slabs[name][:1])


def test_few_refits_at_a_time_give_what_many_give(network, monkeypatch):
    columns, starts = epochs(5, 60, seed=7), np.array([0, 8, 8, 16, 16])
    expected = staggered(EventCache(network), columns, starts, 60)
    monkeypatch.setattr("lensml.streaming.cache.REFITTED", 2 * LENGTHS[0])
    parts, refit_and_map = [], EventCache._refit

    def watched(self, slots, *more):
        parts.append(len(slots))
        refit_and_map(self, slots, *more)

    monkeypatch.setattr(EventCache, "_refit", watched)
    np.testing.assert_array_equal(staggered(EventCache(network), columns, starts, 60), expected)
    assert parts.count(2) > 6 and max(parts) == 2


def test_a_call_refits_its_events_in_groups_of_padded_length(network, monkeypatch):
    groups = []
    monkeypatch.setattr(
        EventCache, "_refit", lambda self, slots, count, n: groups.append((n, *count))
    )
    states = EventCache(network)
    ages = [7, 15, 239, 8, 255, 303, 511, 2047, 4047]
    slots = np.array(states.new_slots(len(ages)))
    states.count[slots] = ages
    states.advance(slots, *np.ones((3, len(ages))))
    assert groups == [(256, 8, 16, 240, 256), (512, 304), (2048, 4048)]


def test_an_event_longer_than_what_refits_reach_equals_the_batch_answer(network):
    times, bright, sigma = epochs(3, MAX_HISTORY + 180, seed=8)
    streamed = advance_all(EventCache(network), (times, bright, sigma))
    for i in range(3):
        batch = classify(times[i], 18 - bright[i], sigma[i], 18.0, network)
        np.testing.assert_allclose(streamed[i], batch, rtol=0, atol=1e-5)


def test_torch_slabs_of_a_device_give_what_numpy_slabs_give(network):
    columns = epochs(5, 300)
    p = [advance_all(EventCache(network, on_cpu=kind), columns) for kind in (True, False)]
    np.testing.assert_allclose(p[0], p[1], rtol=0, atol=1e-6)


def test_errors_of_the_sums_do_not_outlive_sixteen_epochs(network):
    """Sums are moved along, which rounds each time, and taken anew: nothing can pile up."""
    columns = epochs(2, 400, seed=4)
    states = [EventCache(network), EventCache(network)]
    for own in states:
        advance_all(own, [c[:, :330] for c in columns])
    states[1].slabs["sums"] += 1e3
    spoilt = 0.0
    for k in range(330, 400):
        for own in states:
            own.advance(np.arange(2), *(c[:, k] for c in columns))
        sums = [own.slabs["sums"][:2] for own in states]
        if spoilt := np.abs(sums[0] - sums[1]).max():
            assert k < 330 + SHIFT
    assert spoilt == 0
    own = states[0]
    moved, recent = own.slabs["sums"][:2].reshape(2, 3, 3, 4), slice(400 - RECENT, 400)
    phase = (400 - 1) % SHIFT
    since = columns[0][:, [400 - 1 - phase]]
    weight = np.float32(np.maximum(np.float32(columns[2]), 1e-3).astype(float) ** -2).astype(float)
    bright = np.float32(columns[1]).astype(float)
    anew = [weight, weight * bright, weight * (columns[0] - since)]
    anew = bin_sums(np.stack([x[:, recent] for x in anew], axis=1))
    np.testing.assert_allclose(moved, anew, rtol=1e-9)


def test_room_grows_and_keeps_what_is_there(network):
    columns = epochs(3, 40)
    states = EventCache(network)
    before = advance_all(states, [c[:, :20] for c in columns])
    first = states.new_slots(1000)
    assert first == range(3, 1003) and len(states.count) >= 1003
    slots = np.arange(3)
    after = [states.advance(slots, *(c[:, k] for c in columns)) for k in range(20, 40)]
    whole = advance_all(EventCache(network), columns)
    assert (np.hstack([before, np.array(after).T]) == whole).all()


def test_a_slot_is_as_large_as_its_slabs_and_does_not_grow(network):
    states = EventCache(network)
    states.new_slots(10)
    sizes = []
    for k in range(300):
        states.advance(np.arange(10), np.full(10, k + 1.0), np.full(10, 0.1), np.full(10, 0.02))
        sizes.append(sum(t.numel() * t.element_size() for t in states.tensors().values()))
    assert set(sizes) == {10 * states.bytes_per_event}
    assert states.bytes_per_event < 60e3, "a million events in 60 GB, 33 of them for refits"


def test_absurd_values_neither_break_a_slot_nor_spread(network):
    """A magnitude of 1e39 has no float32; its event recovers once it is out of reach."""
    states = EventCache(network)
    states.new_slots(2)
    slots = np.arange(2)
    for k in range(600):
        bright, sigma = np.full(2, 0.1), np.full(2, 0.02)
        if k == 3:
            bright[0], sigma[0] = 1e39, 1e30
        with np.errstate(over="ignore"):
            p = states.advance(slots, np.full(2, k + 1.0), bright, sigma)
        assert np.isfinite(p).all()
    assert torch.isfinite(states.tensors()["near"]).all()


def test_the_number_of_threads_is_as_before_an_update(network):
    states, threads = EventCache(network), torch.get_num_threads()
    seen, step = [], states.step
    states.new_slots(1)

    class Watched:
        min_rows = step.min_rows

        def __call__(self, *inputs, **more):
            seen.append(torch.get_num_threads())
            return step(*inputs, **more)

    states.step = Watched()
    torch.set_num_threads(2)
    try:
        states.advance(np.array([0]), *np.ones((3, 1)))
        assert torch.get_num_threads() == 2 and seen == [1]
    finally:
        torch.set_num_threads(threads)
