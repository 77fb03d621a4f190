"""The cache: of constant size, alike for any batch and kind of memory, and without drift."""

import numpy as np
import pytest
import torch

from lensml.network import load_network
from lensml.streaming.cache import LENGTHS, EventCache, completed_levels


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


def staggered(states, columns, starts, calls):
    """Answers (num, calls) where event i begins with call starts[i]; all that are on share it."""
    num = len(starts)
    states.new_slots(num)
    p = np.full((num, calls), np.nan)
    for k in range(calls):
        on = np.flatnonzero(starts <= k)
        p[on, k] = states.advance(on, *(c[on, k - starts[on]] for c in columns))
    return p


def test_fits_and_answers_do_not_depend_on_the_ages_of_the_other_events(network):
    """Refits of prefixes of 8 to 304 epochs, some padded to 256 and some to 512, share calls."""
    starts, calls = np.array([0, 9, 40, 51, 200, 208, 216, 240, 247, 290]), 305
    columns = epochs(len(starts), calls, seed=6)
    together = EventCache(network)
    p = staggered(together, columns, starts, calls)
    for i in (0, 1, 3, 6, 8):
        alone = EventCache(network)
        own = slice(i, i + 1)
        seen = [c[own, : calls - starts[i]] for c in columns]
        expected = advance_all(alone, seen)
        np.testing.assert_allclose(p[own, starts[i] :], expected, rtol=0, atol=2e-6)
        for name in ("theta", "covariance"):  # refits are the same to the last bit
            np.testing.assert_array_equal(together.buffers[name][own], alone.buffers[name][:1])


def test_few_refits_at_a_time_give_what_many_give(network, monkeypatch):
    columns, starts = epochs(5, 60, seed=7), np.array([0, 8, 8, 16, 16])
    expected = staggered(EventCache(network), columns, starts, 60)
    monkeypatch.setattr("lensml.streaming.cache.REFITTED", 2 * LENGTHS[0])
    parts, refit_and_map = [], EventCache._refit

    def watched(self, slots, *more):
        parts.append(len(slots))
        refit_and_map(self, slots, *more)

    monkeypatch.setattr(EventCache, "_refit", watched)
    p = staggered(EventCache(network), columns, starts, 60)
    np.testing.assert_allclose(p, expected, rtol=0, atol=2e-6)
    assert parts.count(2) > 6 and max(parts) == 2


def test_a_call_refits_its_events_in_groups_of_padded_length(network, monkeypatch):
    groups = []
    monkeypatch.setattr(
        EventCache, "_refit", lambda self, slots, count, n: groups.append((n, *sorted(count)))
    )
    states = EventCache(network)
    ages = [7, 15, 239, 8, 255, 303, 511, 2047, 4047]
    slots = np.array(states.new_slots(len(ages)))
    states.count[slots] = ages
    states.advance(slots, *np.ones((3, len(ages))))
    assert groups == [(256, 8, 16, 240, 256), (512, 304), (2048, 4048)]


def test_buffers_are_indexed_on_a_device_as_on_a_cpu(network):
    columns = epochs(5, 300)
    on_cpu, as_device = EventCache(network), EventCache(network)
    as_device.on_cpu = False
    p = [advance_all(cache, columns) for cache in (on_cpu, as_device)]
    np.testing.assert_allclose(p[0], p[1], rtol=0, atol=1e-6)


def test_sums_of_a_hundred_thousand_epochs_round_no_answer(network):
    """Features are differences of cumulative sums, which grow with the event."""
    columns = epochs(2, 400, seed=4)
    young, old = EventCache(network), EventCache(network)
    expected = advance_all(young, columns)
    old.new_slots(2)
    weight = 1e5 / 0.02**2
    old.buffers["totals"] += torch.tensor([weight, 0.3 * weight, 2e3 * weight])
    for k in range(400):
        p = old.advance(np.arange(2), *(c[:, k] for c in columns))
        np.testing.assert_allclose(p, expected[:, k], rtol=0, atol=1e-5)


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


def test_cache_memory_per_event_is_constant(network):
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


def test_a_step_runs_on_one_thread_and_leaves_the_number_as_it_was(network, monkeypatch):
    states, threads, seen = EventCache(network), torch.get_num_threads(), []
    states.new_slots(1)
    step = network.step

    def watched(*inputs):
        seen.append(torch.get_num_threads())
        return step(*inputs)

    monkeypatch.setattr(network, "step", watched)
    torch.set_num_threads(2)
    try:
        states.advance(np.array([0]), *np.ones((3, 1)))
        assert torch.get_num_threads() == 2 and seen == [1]
    finally:
        torch.set_num_threads(threads)


def test_completed_levels_are_those_whose_tokens_end_with_an_epoch():
    for count in range(1, 1100):
        ending = [k for k in range(7) if count % (4 * 2**k) == 0]
        assert completed_levels(count, 7) == len(ending)
    assert completed_levels(2**20, 3) == 3
