"""Lines of a stream: what means "not measured", has no name or jumps in time is refused."""

import json

import pytest
from sets import data_sets, in_order, random_network

from lensml.network import predict_event
from lensml.streaming import AlertThreshold, Ledger
from lensml.streaming.classifier import StreamingClassifier
from lensml.streaming.server import answer_lines

GOOD = {"event": "a", "time": 60400.5, "mag": 18.0, "mag_err": 0.02, "m_base": 18.0}


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.mark.parametrize(
    "change",
    [{"mag": 99.999}, {"mag": 0}, {"mag": -9.99}, {"event": None}, {"event": ""}, {"event": [1]},
     {"dataset": None}, {"time": 2460401.0}, {"time": 401.0}],
)  # fmt: skip
def test_a_doubtful_line_is_refused_and_changes_nothing(network, change):
    later = GOOD | {"time": 60402.0}
    lines = [json.dumps(x) for x in (GOOD, GOOD | {"time": 60401.0} | change, later)]
    together = answer_lines(StreamingClassifier(network), lines)
    alone = StreamingClassifier(network)
    one_by_one = [answer_lines(alone, [line], k)[0] for k, line in enumerate(lines, 1)]
    for answers in (together, one_by_one):
        assert [problem is None for _, problem in answers] == [True, False, True]


def test_data_sets_of_an_event_have_one_time_zero(network):
    """They are fitted together; another event may have another one."""
    lines = [GOOD | {"dataset": "V"}, GOOD | {"dataset": "I", "time": 2460401.0}]
    lines += [GOOD | {"event": "b", "time": 2460401.0}, GOOD | {"dataset": "I", "time": 60401.0}]
    lines = [json.dumps(line) for line in lines]
    alone = StreamingClassifier(network)
    for answers in (
        answer_lines(StreamingClassifier(network), lines),
        [answer_lines(alone, [line])[0] for line in lines],
    ):
        assert [problem is None for _, problem in answers] == [True, False, True, True]
        assert "event a / I: time 2460401 is 40000 d or more from 60400.5" in answers[1][1]


def test_lines_of_several_data_sets_are_classified_together(network):
    datasets, lines = data_sets(3, 60, given=(2,)), []
    for time, mag, error, base, name in in_order(datasets):
        epoch = {"event": 7, "dataset": name, "time": time, "mag": mag, "mag_err": error}
        lines.append(json.dumps(epoch | {"m_base": base}))
    answers = answer_lines(StreamingClassifier(network), lines)
    logits = predict_event(network, datasets).logits
    expected = network.probabilities(logits)[:, 1:3].sum(1).nan_to_num(0.5)
    assert [a["p_binary"] for a, _ in answers] == pytest.approx(expected.tolist(), abs=1e-5)
    assert expected.std() > 0.01 and all(a["event"] == 7 for a, _ in answers)


def test_data_sets_of_an_event_are_named_and_a_mark_of_bytes_is_no_error(network):
    sets = [GOOD | {"dataset": name, "time": t} for t in (1.0, 2.0) for name in ("I", "V")]
    lines = ["\ufeff" + json.dumps(sets[0]), *map(json.dumps, sets[1:])]
    answers = answer_lines(StreamingClassifier(network), lines)
    assert [(a["event"], a["dataset"], a["time"]) for a, _ in answers] == [
        ("a", "I", 1.0), ("a", "V", 1.0), ("a", "I", 2.0), ("a", "V", 2.0)
    ]  # fmt: skip
    assert not any(problem for _, problem in answers)


def test_an_event_named_like_another_with_its_data_set_is_another(network, tmp_path):
    stream = StreamingClassifier(network)
    ledger = Ledger(tmp_path / "alerts", AlertThreshold(value=0.9, level=0.01, survey="default"))
    lines = [GOOD | {"dataset": "I"}, GOOD | {"event": "a / I"}, GOOD | {"dataset": "V"}]
    answers = answer_lines(stream, [json.dumps(x) for x in lines], ledger=ledger)
    assert not any(problem for _, problem in answers) and len(stream.events) == 2
    assert ledger.rate(stream.events)["followed"] == 2
