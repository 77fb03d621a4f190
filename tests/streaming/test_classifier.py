"""Named events: separate, of constant size, saved and restored; bad epochs change nothing."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sets import one_by_one, photometry

from lensml.network import (
    BASELINE_MAX,
    BASELINE_MIN,
    Network,
    NetworkConfig,
    causal_baseline,
    classify,
    load_network,
)
from lensml.paths import InputError
from lensml.streaming.classifier import StreamingClassifier


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network()[0]


def stream_all(stream, name, columns, m_base=None):
    epochs = zip(*(c.tolist() for c in columns), strict=True)
    return np.array([stream.update(name, *epoch, m_base) for epoch in epochs])


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
        assert (
            mixed[:, i] == stream_all(StreamingClassifier(network), "x", columns[i], 18.0)
        ).all()


def test_state_does_not_grow_with_the_event(network):
    stream = StreamingClassifier(network)
    sizes = []
    for k in range(700):
        stream.update("x", float(k), 18.0 + 0.01 * (k % 7), 0.02, 18.0)
        buffers = stream.cache.tensors().values()
        sizes.append(sum(t.numel() * t.element_size() for t in buffers))
    assert len(set(sizes)) == 1 and sizes[0] + 3 * 8 == stream.bytes_per_event


def test_baseline_comes_from_the_past_and_then_stays():
    mag = photometry(400)[1]
    base = causal_baseline(mag)
    for k in (19, 20, 50, 199):
        assert base[k] == np.median(mag[: k + 1])
    assert (base[BASELINE_MAX:] == np.median(mag[:BASELINE_MAX])).all()
    assert (base[:BASELINE_MIN] == base[BASELINE_MIN - 1]).all()
    assert len(causal_baseline(mag[:5])) == 5


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
    "[" * 100_000,
]


@pytest.mark.parametrize("bad", BAD_LINES, ids=[line[:50] for line in BAD_LINES])
def test_a_bad_line_changes_nothing(network, bad):
    begin = [json.dumps(GOOD | {"time": float(t), "m_base": 18.0}) for t in (1, 2, 3, 4)]
    stream = StreamingClassifier(network)
    answers = one_by_one(stream, [*begin, bad, json.dumps(GOOD)])
    clean = one_by_one(StreamingClassifier(network), [*begin, json.dumps(GOOD)])
    assert answers[4][1].startswith("line 5: ") and "\n" not in answers[4][1]
    assert "error" in answers[4][0]
    assert answers[5] == clean[4] and len(stream.events) == 1
    json.dumps(answers[4][0])


def test_a_bad_first_line_leaves_no_event_behind(network):
    stream = StreamingClassifier(network)
    one_by_one(stream, [json.dumps(GOOD | {"mag": None}), "", "   \n"])
    assert not stream.events


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


def test_a_state_of_another_network_or_of_nothing_is_refused(network, tmp_path):
    stream = StreamingClassifier(network)
    stream.update("x", 1.0, 18.0, 0.1, 18.0)
    stream.save(tmp_path / "state")
    other = StreamingClassifier(Network(NetworkConfig(channels=16, stem_channels=8, num_levels=3)))
    with pytest.raises(InputError, match="another network"):
        other.restore(tmp_path / "state")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="not a readable"):
        StreamingClassifier(network).restore(tmp_path / "text")
    assert not other.events


def test_batch_answer_has_no_hidden_state(network):
    columns = photometry(50)
    first, again = (classify(*columns, 18.0, network) for _ in range(2))
    assert (first == again).all() and torch.is_grad_enabled()


def test_command_line_keeps_state_between_calls(tmp_path):
    columns = photometry(30)
    lines = [
        json.dumps(dict(zip(("event", "time", "mag", "mag_err", "m_base"), (*("x",), *e, 18.0))))  # noqa: B905
        for e in zip(*(c.tolist() for c in columns), strict=True)
    ]

    def run(part):
        command = [sys.executable, "-m", "lensml", "stream", "--state", str(tmp_path / "state")]
        done = subprocess.run(command, input="\n".join(part), capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return [json.loads(line)["p_binary"] for line in done.stdout.splitlines()]

    streamed = run(lines[:13]) + run(lines[13:])
    np.testing.assert_allclose(streamed, classify(*columns, 18.0), rtol=0, atol=1e-5)


def in_columns(entries):
    """Columns of `update_many` from (event, time, mag, mag_err, m_base) entries."""
    return [list(column) for column in zip(*entries, strict=True)]


def test_an_event_that_comes_several_times_is_taken_in_order(network):
    columns = photometry(50)
    entries = [("x", *e, 18.0) for e in zip(*(c.tolist() for c in columns), strict=True)]
    answers, problems = StreamingClassifier(network).update_many(*in_columns(entries))
    alone = stream_all(StreamingClassifier(network), "x", columns, 18.0)
    assert not problems and np.abs(answers - alone).max() < 2e-6


def test_bad_entries_are_named_and_the_others_go_on(network):
    """One entry of each fault among good ones: what is left is a stream that never got them."""
    good = [(f"e{i}", 1.0, 18.0, 0.1, 18.0) for i in range(3)]
    later = [(f"e{i}", 2.0, 17.9, 0.1, None) for i in range(3)]
    bad = [
        ("e0", 1.0, 17.0, 0.1, None),
        ("e0", 1.5, 17.0, 0.1, 17.0),
        ("e1", 1.5, "17", 0.1, None),
        ("e1", 1.5, 17.0, True, None),
        ("e2", float("nan"), 17.0, 0.1, None),
        ("e2", 1.5, 10**400, 0.1, None),
        ("e2", 1.5, 17.0, -0.1, None),
        ("new", 1.5, 17.0, 0.1, float("nan")),
        ("new", 1.5, None, 0.1, 18.0),
    ]
    stream = StreamingClassifier(network)
    answers, problems = stream.update_many(*in_columns(good + bad + later))
    assert sorted(problems) == list(range(3, 3 + len(bad)))
    assert all(f"event {bad[i - 3][0]}: " in problem for i, problem in problems.items())
    assert np.isnan(answers[3 : 3 + len(bad)]).all() and "new" not in stream.events
    clean = StreamingClassifier(network)
    expected = [clean.update_many(*in_columns(part))[0] for part in (good, later)]
    answers = answers[[0, 1, 2, -3, -2, -1]]
    np.testing.assert_allclose(answers, np.concatenate(expected), rtol=0, atol=2e-6)


def test_arrays_and_lists_are_the_same_columns(network):
    names, ones = ["a", "b"], np.ones(2)
    p = [
        StreamingClassifier(network).update_many(names, *columns)[0]
        for columns in (
            (ones, 18 * ones, 0.1 * ones, 17.5 * ones),
            ([1, 1], [18, 18], [0.1, 0.1], [17.5, 17.5]),
        )
    ]
    assert (p[0] == p[1]).all()
    unknown = StreamingClassifier(network).update_many(
        names, ones, ones, ones, np.array([17.0, np.nan])
    )[0]
    assert unknown[0] != 0.5 and unknown[1] == 0.5
    with pytest.raises(InputError, match="columns of 2, 1, 2, 2 entries"):
        StreamingClassifier(network).update_many(names, ones[:1], ones, ones)


def test_a_snapshot_while_baselines_are_estimated_goes_on(network, tmp_path):
    """Events at every stage of that estimate, names of any letters, in one snapshot."""
    curves = {f"é\n{i}": photometry(225, i) for i in range(4)}
    starts = dict(zip(curves, (0, 15, 90, 205), strict=True))
    stream = StreamingClassifier(network)
    for name, columns in curves.items():
        stream_all(stream, name, [c[: starts[name]] for c in columns])
    stream.lines = 77
    stream.save(tmp_path / "state")
    again = StreamingClassifier(network)
    again.restore(tmp_path / "state")
    assert again.lines == 77 and again.events == stream.events
    for name, columns in curves.items():
        rest = [c[starts[name] :] for c in columns]
        assert (stream_all(again, name, rest) == stream_all(stream, name, rest)).all()


def test_a_full_stream_takes_no_new_event_and_goes_on_with_the_old(network):
    stream = StreamingClassifier(network, max_events=2)
    names = ["a", "b", "c", "a"]
    p, problems = stream.update_many(names, [1.0, 1.0, 1.0, 2.0], [18.0] * 4, [0.1] * 4, [18.0] * 4)
    assert [*problems] == [2] and "2 events are kept" in problems[2]
    assert np.isfinite(p[[0, 1, 3]]).all() and [*stream.events] == ["a", "b"]
    with pytest.raises(InputError, match="event d: 2 events are kept"):
        stream.update("d", 3.0, 18.0, 0.1)
    assert 0 <= stream.update("b", 3.0, 18.0, 0.1) <= 1
