"""Lines of a stream: what means "not measured", has no name or jumps in time is refused."""

import json

import pytest

from lensml.network import load_network
from lensml.streaming import AlertThreshold, Ledger
from lensml.streaming.classifier import StreamingClassifier
from lensml.streaming.server import answer_lines

GOOD = {"event": "a", "time": 60400.5, "mag": 18.0, "mag_err": 0.02, "m_base": 18.0}


@pytest.fixture(scope="module")
def network():
    return load_network()[0]


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


def test_data_sets_of_an_event_are_kept_apart_and_a_mark_of_bytes_is_no_error(network):
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
    assert not any(problem for _, problem in answers) and len(stream.events) == 3
    assert ledger.rate(stream.events)["followed"] == 2
