"""The cache: of constant size, alike for any batch and number of threads, and without drift."""

import numpy as np
import pytest
from sets import random_network, watched_threads

from lensml.limits import MOST_SETS
from lensml.network import STEP, Histories, new_histories, refit_counts, rounded_epochs
from lensml.streaming.cache import RAGGED, EventCache

CAPACITY = new_histories(1, 1).times.shape[1]  # epochs of a history
SAME = {"rtol": 0, "atol": 2e-6}  # of probabilities: sums round by the number of events of a call


@pytest.fixture(scope="module")
def network():
    return random_network()


def epochs(num: int, length: int, seed: int = 0):
    """Data sets, times, brightness and inverse errors (num, length) of peaks: gaps of a season."""
    generator = np.random.default_rng(seed)
    step = generator.exponential(0.7, (num, length)) + 0.01
    step[:, ::97] += 150.0
    times = np.cumsum(step, axis=1)
    sigma = generator.choice([0.003, 0.02, 0.2], (num, length))
    near = (times - times[:, length // 2][:, None]) / 30
    bright = 2.5 * np.log10(1 + 2 / np.hypot(0.2, near))
    bright += sigma * generator.standard_normal((num, length))
    sets = np.where(np.arange(length) < 12, 0, generator.integers(0, 2, (num, length)))
    return np.maximum.accumulate(sets, axis=1) * sets, times, *rounded_epochs(bright, sigma)


def probabilities(cache, *columns):
    """Probabilities (n, 5) after one more epoch of each slot."""
    return cache.network.probabilities(cache.advance(*columns)).numpy()


def advance_all(cache, columns, slots=None):
    """Probabilities (n, length, 5) of columns (n, length), one epoch of all in a call."""
    if slots is None:
        slots = np.array([cache.new_slot() for _ in columns[0]])
        for slot in slots:
            cache.set_width(slot, 1, 2.0)
    length = columns[0].shape[1]
    found = [probabilities(cache, slots, *(c[:, k] for c in columns)) for k in range(length)]
    return np.stack(found, axis=1)


def staggered(cache, columns, starts, calls):
    """Probabilities (n, calls, 5) where event i begins with call starts[i], all in one call."""
    for _ in starts:
        cache.set_width(cache.new_slot(), 1, 2.0)
    p = np.full((len(starts), calls, 5), np.nan)
    for k in range(calls):
        on = np.flatnonzero(starts <= k)
        p[on, k] = probabilities(cache, on, *(c[on, k - starts[on]] for c in columns))
    return p


def kept(cache, slots):
    """Histories of slots, of each array what is in use."""
    used = cache.histories.used[slots].max()
    arrays = {name: getattr(cache.histories, name)[slots] for name in Histories._fields}
    return {k: x[:, :used] if k in RAGGED else x for k, x in arrays.items()}


def assert_same_state(cache, slots, other, others):
    """What is kept of `slots` is what another cache keeps of `others`; sums of fits may round."""
    ours, theirs = kept(cache, slots), kept(other, others)
    for name, values in ours.items():
        close = dict.fromkeys(("rtol", "atol"), 0 if values.dtype.kind == "i" else 1e-6)
        np.testing.assert_allclose(values, theirs[name], err_msg=name, **close)
    np.testing.assert_array_equal(cache.fitted[slots], other.fitted[others])


def memory(cache):
    """Bytes of all arrays."""
    return sum(x.nbytes for x in (*cache.histories, cache.tokens, cache.embedding, cache.fitted))


def test_fits_and_answers_do_not_depend_on_the_ages_of_the_other_events(network):
    starts, calls = np.array([0, 9, 40, 51, 200, 208, 216, 240, 247, 290]), 305
    columns = epochs(len(starts), calls, seed=6)
    together = EventCache(network)
    p = staggered(together, columns, starts, calls)
    for i in (0, 1, 3, 6, 8):
        alone = EventCache(network)
        own = [c[i : i + 1, : calls - starts[i]] for c in columns]
        expected = advance_all(alone, own)[0]
        np.testing.assert_allclose(p[i, starts[i] :], expected, **SAME)
        assert_same_state(together, [i], alone, [0])
    assert np.nanstd(p[0, STEP:, 1]) > 0.02


def test_events_on_several_threads_are_those_on_one(network, monkeypatch):
    columns, caches = epochs(200, 40, seed=7), []
    for threads in (1, 3):
        monkeypatch.setattr("lensml.streaming.cache.available_cores", lambda n=threads: n)
        caches.append(EventCache(network))
    p = [advance_all(cache, columns) for cache in caches]
    np.testing.assert_allclose(*p, **SAME)
    assert_same_state(caches[0], range(200), caches[1], range(200))


def test_refits_are_made_of_the_slots_that_are_due(network, monkeypatch):
    """At counts of `refit_counts`; the embedding of the others stays what it was."""
    made, embed = [], network.embed_refits

    def watched(maps, *more):
        made.append(len(maps))
        assert maps.abs().sum((1, 2)).gt(0).all()
        return embed(maps, *more)

    monkeypatch.setattr(network, "embed_refits", watched)
    starts = np.array([0, 3, 8, 11, 27])
    columns, cache = epochs(5, 60, seed=3), EventCache(network)
    for _ in starts:
        cache.set_width(cache.new_slot(), 1, 2.0)
    for k in range(60):
        on, before = np.flatnonzero(starts <= k), cache.embedding.clone()
        cache.advance(on, *(c[on, k - starts[on]] for c in columns))
        ages = k + 1 - starts
        due = (ages > 0) & (ages % STEP == 0)
        assert sum(made) == due.sum()
        changed = (cache.embedding[:5] != before[:5]).any(dim=1).numpy()
        np.testing.assert_array_equal(changed, due)
        made.clear()
    np.testing.assert_array_equal(cache.fitted[:5], [refit_counts(60 - s)[-1] for s in starts])


def test_late_refits_follow_their_schedule(network):
    cache = EventCache(network)
    advance_all(cache, epochs(1, 1700, seed=5))
    counts = refit_counts(1700)
    assert cache.fitted[0] == counts[-1] and counts[-1] - counts[-2] > STEP
    assert cache.histories.due[0] == refit_counts(2000)[len(counts)]


def test_room_grows_and_keeps_what_is_there(network):
    columns = epochs(3, 40)
    cache, small = EventCache(network), EventCache(network)
    before = advance_all(cache, [c[:, :20] for c in columns])
    more = [cache.new_slot() for _ in range(1000)]
    assert more == [*range(3, 1003)] and len(cache.fitted) >= 1003
    after = advance_all(cache, [c[:, 20:] for c in columns], np.arange(3))
    whole = advance_all(small, columns)
    np.testing.assert_allclose(np.concatenate([before, after], axis=1), whole, **SAME)
    assert len(small.fitted) == 8
    assert_same_state(cache, range(3), small, range(3))


def test_a_further_data_set_makes_room_and_keeps_what_is_there(network):
    """Its epochs come after the room has grown, or where there was room from the beginning."""
    columns = epochs(2, 80, seed=1)
    grown, roomy = EventCache(network), EventCache(network)
    for cache in (grown, roomy):
        cache.new_slot(), cache.new_slot()
        cache.set_width(0, 1, 2.0)
    roomy.set_width(1, MOST_SETS - 1, 2.0)
    slots, p = np.arange(2), []
    for cache in (grown, roomy):
        first = advance_all(cache, [c[:, :50] for c in columns], slots)
        cache.set_width(1, 5, 0.05)
        before = kept(grown, slots)
        late = [c[:, 50:] for c in columns]
        late[0] = late[0].copy()
        late[0][1] = np.where(np.arange(30) % 2, 2, late[0][1])  # the number after its others
        p.append(np.concatenate([first, advance_all(cache, late, slots)], axis=1))
    np.testing.assert_allclose(*p, **SAME)
    assert before["width"].shape[1] == 16 and roomy.histories.width.shape[1] == MOST_SETS
    assert grown.histories.sets[:2].tolist() == [2, 3]
    fits = grown.histories.fits[:2], roomy.histories.fits[:2, :, : 3 + 2 * 16]
    np.testing.assert_allclose(*fits, rtol=1e-6, atol=1e-6)


def test_memory_is_constant_and_a_history_is_merged_beyond_its_capacity(network):
    """Merged neighbours keep their weight; the latest epochs are as they came."""
    num, length = 2, CAPACITY + 900
    sets, times, bright, weight = epochs(num, length, seed=2)
    cache, sizes = EventCache(network), set()
    for _ in range(num):
        cache.set_width(cache.new_slot(), 1, 2.0)
    for k in range(length):
        cache.advance(np.arange(num), *(c[:, k] for c in (sets, times, bright, weight)))
        sizes.add(memory(cache))
    h = cache.histories
    assert sizes == {len(cache.fitted) * cache.bytes_per_event}
    assert (h.count[:num] == length).all() and (h.used[:num] < CAPACITY).all()
    for i in range(num):
        used = h.used[i]
        assert h.times[i, used - 64 : used].tolist() == times[i, -64:].tolist()
        assert h.bright[i, used - 64 : used].tolist() == bright[i, -64:].tolist()
        for k in range(2):
            own = h.owner[i, :used] == k
            total = (weight[i, sets[i] == k].astype(float) ** 2).sum()
            assert (h.weight[i, :used][own].astype(float) ** 2).sum() == pytest.approx(total, 1e-5)


def test_a_step_runs_on_one_thread_and_leaves_the_number_as_it_was(network, monkeypatch):
    columns = epochs(1, STEP)
    with watched_threads(network, monkeypatch) as seen:
        advance_all(EventCache(network), columns)
    assert seen == [1] * STEP


def test_a_slot_of_one_data_set_is_small(network):
    assert EventCache(network).bytes_per_event < 60e3, "a hundred thousand events in 6 GB"


def test_dates_of_seven_digits_round_no_answer(network):
    sets, times, bright, weight = epochs(2, 300, seed=4)
    times = np.round(times * 2**16) / 2**16  # so that the later dates are exact
    early = advance_all(EventCache(network), [sets, times, bright, weight])
    late = advance_all(EventCache(network), [sets, times + 2.0**21, bright, weight])
    np.testing.assert_allclose(late, early, rtol=0, atol=1e-5)


def test_absurd_values_neither_break_a_slot_nor_spread(network):
    """A magnitude of 1e39 has no float32, and is cut."""
    sets, times, bright, weight = epochs(2, 300, seed=8)
    plain = advance_all(EventCache(network), [sets, times, bright, weight])
    absurd = bright.copy(), weight.copy()
    cut = rounded_epochs(np.array([1e39, -1e39, 0.1]), np.array([1e30, 1e-30, 1e-30]))
    for into, values in zip(absurd, cut, strict=True):
        into[0, [3, 40, 100]] = values
    p = advance_all(EventCache(network), [sets, times, *absurd])
    assert np.isfinite(p).all() and (p[0, 40:] != plain[0, 40:]).any()
    np.testing.assert_allclose(p[1], plain[1], **SAME)


def test_what_is_kept_comes_back_and_goes_on(network):
    """In a cache that held other events before; unused room is not kept."""
    columns, length = epochs(3, 120, seed=9), 75
    whole = advance_all(EventCache(network), columns)
    cache, again = EventCache(network), EventCache(network)
    advance_all(cache, [c[:, :length] for c in columns])
    tensors = {name: x.clone() for name, x in cache.tensors().items()}
    assert tensors["times"].shape == (3 * length,) and tensors["tokens"].shape[0] == 3
    advance_all(again, epochs(20, 30))
    again.restore(tensors)
    assert again.num_slots == 3
    assert_same_state(again, range(3), cache, range(3))
    after = advance_all(again, [c[:, length:] for c in columns], np.arange(3))
    np.testing.assert_allclose(after, whole[:, length:], **SAME)
    assert again.new_slot() == 3 and not again.histories.count[3]


def test_an_empty_cache_comes_back_empty(network):
    again = EventCache(network)
    advance_all(again, epochs(2, 10))
    again.restore(EventCache(network).tensors())
    columns = epochs(1, 20)
    expected = advance_all(EventCache(network), columns)
    np.testing.assert_allclose(advance_all(again, columns), expected, **SAME)


def test_packed_slots_go_on_in_another_cache_with_more_room(network):
    """A cache of more slots and data sets, in other slots; one event has no epoch yet."""
    columns, length = epochs(3, 120, seed=9), 75
    whole = advance_all(EventCache(network), columns)
    cache, again = EventCache(network), EventCache(network)
    advance_all(cache, [c[:, :length] for c in columns])
    packed = cache.pack(np.array([0, 2, cache.new_slot()]))
    advance_all(again, epochs(20, 30))
    again.set_width(5, 4, 2.0)
    assert again.histories.width.shape[1] > cache.histories.width.shape[1]
    slots = np.array([7, 3, 11])
    again.clear(slots)
    again.unpack(slots, [memoryview(row) for row in packed])
    assert not again.histories.count[11]
    after = advance_all(again, [c[[0, 2], length:] for c in columns], slots[:2])
    np.testing.assert_allclose(after, whole[[0, 2], length:], **SAME)
    again.clear(slots)
    wider = EventCache(network)
    for _ in range(3):
        wider.new_slot()
    wider.unpack(np.arange(3), packed)
    wider.unpack(np.arange(1), again.pack(slots[:1]))  # makes room for more data sets
    assert wider.histories.width.shape == (8, again.histories.width.shape[1])
    after = advance_all(wider, [c[[2], length:] for c in columns], np.array([1]))
    np.testing.assert_allclose(after, whole[[2], length:], **SAME)
