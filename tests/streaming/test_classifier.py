"""Named events: separate, of constant size, saved and restored; bad epochs change nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sets import data_sets, in_order, one_by_one, photometry, random_network

from lensml.limits import MOST_SETS
from lensml.network import STEP, Network, NetworkConfig, load_network, predict_event
from lensml.paths import InputError
from lensml.streaming.classifier import StreamingClassifier

SAME = {"rtol": 0, "atol": 2e-6}  # sums round by what shares a call, and by where arrays lie


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network()


def stream_all(stream, name, columns, m_base=None):
    epochs = zip(*(c.tolist() for c in columns), strict=True)
    return np.array([stream.update(name, *epoch, m_base) for epoch in epochs])


def in_columns(entries):
    """Columns of `update_many` from (event, time, mag, mag_err, m_base, dataset) entries."""
    return [list(column) for column in zip(*entries, strict=True)]


def test_events_do_not_depend_on_each_other(network):
    columns = [photometry(60, seed) for seed in range(3)]
    stream = StreamingClassifier(network)
    mixed = np.array(
        [
            [stream.update(f"e{i}", *(float(c[k]) for c in columns[i]), 18.0) for i in range(3)]
            for k in range(60)
        ]
    )
    for i in range(3):
        alone = stream_all(StreamingClassifier(network), "x", columns[i], 18.0)
        np.testing.assert_allclose(mixed[:, i], alone, **SAME)
    assert (mixed[: STEP - 1] == 0.5).all() and mixed[STEP:].std() > 0.01


def test_state_does_not_grow_with_the_event(network):
    stream, sizes = StreamingClassifier(network), set()
    for k in range(700):
        stream.update("x", float(k), 18.0 + 0.01 * (k % 7), 0.02, 18.0)
        cache = stream.cache
        arrays = (*cache.histories, cache.tokens, cache.embedding, cache.fitted, stream._records)
        sizes.add(sum(x.nbytes for x in arrays))
    assert sizes == {8 * stream.bytes_per_event}, "eight events for which there is room"


def test_data_sets_of_an_event_share_its_fits(network):
    """Their epochs are of one event; those of another event of the same data sets are not."""
    entries = in_order(data_sets(2, 80))
    together, apart = StreamingClassifier(network), StreamingClassifier(network)
    p, alone = np.array([
        [together.update("x", *e), apart.update(f"x {e[-1]}", *e)] for e in entries
    ]).T  # fmt: skip
    assert [*together.events] == ["x"] and len(apart.events) == 2
    assert abs(p - alone)[-20:].min() > 1e-4
    assert together.last_time("x") == entries[-1][0] and together.last_time("x set 1") is None


GOOD = {"event": "x", "time": 5.0, "mag": 18.1, "mag_err": 0.05}
BAD_LINES = [
    "nonsense",
    "[1, 2]",
    "3",
    "null",
    "{}",
    json.dumps({k: v for k, v in GOOD.items() if k != "mag"}),
    json.dumps(GOOD | {"time": 4.0}),
    json.dumps(GOOD | {"time": 3.0}),
    json.dumps(GOOD | {"mag": "18"}),
    json.dumps(GOOD | {"mag": None}),
    json.dumps(GOOD | {"mag": float("nan")}),
    json.dumps(GOOD | {"mag": 10**400}),
    json.dumps(GOOD | {"time": float("inf")}),
    json.dumps(GOOD | {"mag_err": 0}),
    json.dumps(GOOD | {"mag_err": -0.1}),
    json.dumps(GOOD | {"mag_err": True}),
    json.dumps(GOOD | {"m_base": 17.0}),
    json.dumps(GOOD | {"m_base": float("nan")}),
    json.dumps(GOOD | {"dataset": "V", "m_base": float("nan")}),
    json.dumps(GOOD | {"dataset": "V", "mag_err": 0}),
    "[" * 100_000,
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=[line[:50] for line in BAD_LINES])
def test_a_bad_line_changes_nothing(network, bad):
    begin = [json.dumps(GOOD | {"time": 0.5 * t, "m_base": 18.0}) for t in range(1, 9)]
    stream, untouched = StreamingClassifier(network), StreamingClassifier(network)
    answers = one_by_one(stream, [*begin, bad, json.dumps(GOOD)])
    clean = one_by_one(untouched, [*begin, json.dumps(GOOD)])
    assert answers[8][1].startswith("line 9: ") and "\n" not in answers[8][1]
    assert "error" in answers[8][0]
    p, expected = (x[-1][0].pop("p_binary") for x in (answers, clean))
    assert answers[-1] == clean[-1] and p == pytest.approx(expected, abs=2e-6) != 0.5
    assert stream._streams == untouched._streams and stream._names == untouched._names
    json.dumps(answers[8][0])


def test_a_bad_first_line_leaves_no_event_behind(network):
    stream = StreamingClassifier(network)
    one_by_one(stream, [json.dumps(GOOD | {"mag": None}), "", "   \n"])
    assert not stream.events and not stream.cache.num_slots


def test_a_state_of_another_network_or_of_nothing_is_refused(network, tmp_path):
    stream = StreamingClassifier(network)
    stream.update("x", 1.0, 18.0, 0.1, 18.0)
    stream.save(tmp_path / "state")
    other = StreamingClassifier(Network(NetworkConfig(channels=16)))
    with pytest.raises(InputError, match="another network"):
        other.restore(tmp_path / "state")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="not a readable"):
        StreamingClassifier(network).restore(tmp_path / "text")
    assert not other.events


def test_command_line_keeps_state_between_calls(tmp_path):
    datasets = data_sets(2, 40, given=(0,))
    lines = []
    for time, mag, error, base, name in in_order(datasets):
        epoch = {"event": "x", "dataset": name, "time": time, "mag": mag, "mag_err": error}
        lines.append(json.dumps(epoch | ({} if base is None else {"m_base": base})))

    def run(part):
        command = [sys.executable, "-m", "lensml", "stream", "--state", str(tmp_path / "state")]
        done = subprocess.run(command, input="\n".join(part), capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [json.loads(line)["p_binary"] for line in done.stdout.splitlines()]

    streamed, network = run(lines[:33]) + run(lines[33:]), load_network()[0]
    batch = network.probabilities(predict_event(network, datasets).logits)[:, 1:3].sum(1)
    np.testing.assert_allclose(streamed, batch.nan_to_num(0.5), rtol=0, atol=1e-5)


def test_an_event_that_comes_several_times_is_taken_in_order(network):
    """Its data sets, too, of which one begins after the other in the same call."""
    entries = [("x", *epoch) for epoch in in_order(data_sets(3, 70, given=(1,)))]
    p, problems = StreamingClassifier(network).update_many(*in_columns(entries))
    stream = StreamingClassifier(network)
    alone = [stream.update(*entry) for entry in entries]
    assert not problems and np.std(alone) > 0.01
    np.testing.assert_allclose(p, alone, **SAME)


def test_bad_entries_are_named_and_the_others_go_on(network):
    """One entry of each fault among good ones: what is left is a stream that never got them."""
    begin = [(f"e{i}", 0.1 * k, 18.0, 0.1, 18.0, "") for k in range(10) for i in range(3)]
    later = [(f"e{i}", 2.0, 17.9, 0.1, None, "") for i in range(3)]
    bad = [
        ("e0", 0.9, 17.0, 0.1, None, ""),
        ("e0", 1.5, 17.0, 0.1, 17.0, ""),
        ("e1", 1.5, "17", 0.1, None, ""),
        ("e1", 1.5, 17.0, True, None, ""),
        ("e2", float("nan"), 17.0, 0.1, None, ""),
        ("e2", 1.5, 10**400, 0.1, None, ""),
        ("e2", 1.5, 17.0, -0.1, None, ""),
        ("e2", 1.5, 17.0, -0.1, None, "V"),
        ("new", 1.5, 17.0, 0.1, float("nan"), ""),
        ("new", 1.5, None, 0.1, 18.0, ""),
    ]
    stream = StreamingClassifier(network)
    answers, problems = stream.update_many(*in_columns(begin + bad + later))
    wrong = range(len(begin), len(begin) + len(bad))
    assert sorted(problems) == [*wrong]
    for i, entry in zip(wrong, bad, strict=True):
        assert f"event {' / '.join([entry[0], *[entry[5]] * bool(entry[5])])}: " in problems[i]
    assert np.isnan(answers[wrong]).all() and "new" not in stream.events
    clean = StreamingClassifier(network)
    expected = [clean.update_many(*in_columns(part))[0] for part in (begin, later)]
    np.testing.assert_allclose(np.delete(answers, wrong), np.concatenate(expected), **SAME)
    assert stream._streams == clean._streams and (answers[-3:] != 0.5).all()


def test_arrays_and_lists_are_the_same_columns(network):
    names, ones = [f"e{i}" for i in range(2)] * STEP, np.ones(2 * STEP)
    times, bases = np.repeat(np.arange(1.0, STEP + 1), 2), np.tile([17.5, np.nan], STEP)
    p = [
        StreamingClassifier(network).update_many(names, *columns)[0]
        for columns in (
            (times, 18 * ones, 0.1 * ones, bases),
            ([int(t) for t in times], [18] * len(ones), [0.1] * len(ones), [17.5, None] * STEP),
        )
    ]
    np.testing.assert_allclose(*p, **SAME)
    assert abs(p[0][-2] - p[0][-1]) > 1e-4, "one baseline is given, the other is not"
    with pytest.raises(InputError, match="columns of 16, 1, 16, 16 entries"):
        StreamingClassifier(network).update_many(names, ones[:1], ones, ones)


def test_no_epochs_no_answers(network):
    p, problems = StreamingClassifier(network).update_many([], [], [], [], [], [])
    assert p.shape == (0,) and not problems


def test_probabilities_do_not_exceed_one(network):
    """Two of float32 that make up all may add to more."""
    sure = random_network(1)
    with torch.no_grad():
        sure.head[-1].bias[[0, 3, 4]] -= 60
    entries = [("x", *epoch) for epoch in in_order(data_sets(3, 150))]
    logits, _ = StreamingClassifier(sure).logits_many(*in_columns(entries))
    assert (sure.probabilities(logits)[:, 1:3].sum(1) > 1).any()
    p, _ = StreamingClassifier(sure).update_many(*in_columns(entries))
    assert p.max() == 1


def test_a_snapshot_goes_on_at_any_age_and_with_further_data_sets(network, tmp_path):
    """Events of every age and number of data sets, names of any letters, in one snapshot."""
    events = {f"é\n{i}": in_order(data_sets(1 + i, 110, i, given=(1,))) for i in range(4)}
    starts = dict(zip(events, (0, 5, 70, 150), strict=True))
    stream = StreamingClassifier(network)
    for name, epochs in events.items():
        for epoch in epochs[: starts[name]]:
            stream.update(name, *epoch)
    stream.lines = 77
    stream.save(tmp_path / "state")
    again = StreamingClassifier(network)
    again.update("other", 1.0, 18.0, 0.1)
    again.restore(tmp_path / "state")
    assert again.lines == 77 and again.events == stream.events
    for name, epochs in events.items():
        for epoch in epochs[starts[name] :]:
            assert again.update(name, *epoch) == pytest.approx(
                stream.update(name, *epoch), abs=2e-6
            )
    assert again._streams == stream._streams and again._names == stream._names
    assert sorted(map(len, again._names.values())) == [1, 2, 3, 4]


def arrivals(num_events: int, lines: int) -> list[tuple]:
    """Epochs of events in turn, some with two data sets, in an order that leaves many behind."""
    draw, count, found = np.random.default_rng(5), [0] * num_events, []
    for _ in range(lines):
        k = int(draw.integers(num_events))
        count[k] += 1
        mag = 18 - 2 * np.exp(-((count[k] - 10) ** 2) / 20) + draw.normal(0, 0.02)
        found.append((f"e{k}", float(count[k]), mag, 0.02, None, "V" * (k % 3 == 0 and k % 2)))
    return found


def test_events_that_leave_memory_come_back_with_the_same_answers(network, tmp_path):
    """Also through a snapshot, after a kill, and with another number of events in memory."""
    lines = arrivals(12, 400)
    roomy = StreamingClassifier(network)
    expected = [roomy.update(*line) for line in lines]
    small = StreamingClassifier(network, max_events=3)
    assert [small.update(*line) for line in lines] == expected
    assert len(small.events) == 3 and sorted(small.followed) == sorted(roomy.events)
    assert small.cache.num_slots == 3 and len(small._records) <= 16
    state, store = tmp_path / "state", tmp_path / "state.events"
    options, found, begin = {"max_events": 3, "store": store}, [], 0
    while begin < len(lines):
        stream = StreamingClassifier(network, **options)
        if begin:
            stream.restore(state)
        for line in lines[begin : begin + 90]:
            found.append(stream.update(*line))
        stream.save(state)
        begin += 90
        for line in lines[begin : begin + 40]:  # lost, with the process, and fed again
            stream.update(*line)
        options["max_events"] = 2 + begin // 90
    assert found == expected
    assert store.stat().st_size <= (12 + 130) * 48 * 1024  # events, and lines between snapshots


def test_a_batch_of_more_events_than_memory_holds_is_answered_in_pieces(network):
    lines = arrivals(12, 100)
    columns = list(map(list, zip(*lines, strict=True)))
    p, problems = StreamingClassifier(network, max_events=2).update_many(*columns)
    roomy = StreamingClassifier(network)
    np.testing.assert_allclose(p, [roomy.update(*line) for line in lines], atol=1e-5)
    assert not problems


def test_events_on_disk_that_are_gone_or_damaged_are_refused(network, tmp_path):
    state, store = tmp_path / "state", tmp_path / "state.events"
    stream = StreamingClassifier(network, max_events=1, store=store)
    for name in "abc":
        stream.update(name, 1.0, 18.0, 0.1)
    stream.save(state)
    data = bytearray(store.read_bytes())
    store.write_bytes(bytes(len(data)))
    again = StreamingClassifier(network, max_events=1, store=store)
    again.restore(state)
    with pytest.raises(InputError, match="state.events: damaged"):
        again.update("a", 2.0, 18.0, 0.1)
    store.unlink()
    with pytest.raises(InputError, match="missing there"):
        StreamingClassifier(network, max_events=1, store=store).restore(state)


def test_an_event_has_a_limited_number_of_data_sets(network):
    stream = StreamingClassifier(network)
    names = [f"s{k}" for k in range(MOST_SETS + 1)]
    for time in (1.0, 2.0):
        times, ones = np.full(len(names), time), np.ones(len(names))
        columns = ["x"] * len(names), times, 18 * ones, 0.1 * ones
        p, problems = stream.update_many(*columns, datasets=names)
        assert [*problems] == [MOST_SETS] and np.isnan(p[MOST_SETS])
        assert f"event x / s{MOST_SETS}: a data set more than" in problems[MOST_SETS]
    assert np.isfinite(p[:-1]).all() and (p[:-1] != 0.5).all()
    assert stream.cache.histories.count[0] == 2 * MOST_SETS
