"""A ledger holds each alert once, through kills and hands, and the rate of false ones."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from scipy.stats import binomtest
from sets import random_network

from lensml.network import STEP, save_network
from lensml.paths import InputError
from lensml.streaming import (
    AlertThreshold,
    Ledger,
    StreamingClassifier,
    answer_lines,
    exact_interval,
)
from lensml.streaming.thresholds import FILE

THRESHOLD = AlertThreshold(value=0.8, level=0.01, survey="default")
COMMAND = [sys.executable, "-m", "lensml", "stream"]


def answer(event, p, time=1.0):
    return {"event": event, "time": time, "p_binary": p}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("hits", "num"), [(0, 7), (3, 10), (10, 10), (1, 5000)])
def test_the_interval_is_the_exact_one_of_scipy(hits, num):
    exact = binomtest(hits, num).proportion_ci(method="exact")
    found = exact_interval(hits, num)
    assert [found["low"], found["high"]] == pytest.approx([exact.low, exact.high], abs=1e-12)


def test_an_event_is_written_at_its_first_alert_alone(tmp_path):
    ledger = Ledger(tmp_path / "alerts", THRESHOLD)
    ledger.record([answer("a", 0.7), answer("a", 0.9, 2.0), answer("a", 0.99, 3.0)])
    ledger.record([answer("a", 0.95, 4.0), answer(7, 0.81)])
    first = answer("a", 0.9, 2.0) | {"threshold": 0.8, "level": 0.01}
    assert lines_of(ledger.path) == [first, answer(7, 0.81) | {"threshold": 0.8, "level": 0.01}]


def test_an_event_without_an_answer_does_not_alert_at_a_low_threshold(tmp_path):
    low = AlertThreshold(value=0.3, level=0.01, survey="default")
    ledger = Ledger(tmp_path / "alerts", low)
    ledger.record([answer("a", 0.5), answer("b", 0.4)])
    assert ledger.alerts == {"b"}


def test_outcomes_settle_alerts_and_all_but_binaries_are_false(tmp_path):
    ledger = Ledger(tmp_path / "alerts", THRESHOLD)
    ledger.record(answer(name, 0.9) for name in "abcd")
    for name, outcome in zip("abcx", ("single", "binary", "other", "single"), strict=True):
        ledger.settle({"event": name, "outcome": outcome})
    rate = ledger.rate({name: slot for slot, name in enumerate("abcdefghi")})
    assert (rate["followed"], rate["alerts"], rate["settled"], rate["false_alarms"]) == (9, 4, 3, 2)
    assert rate["false_alarms_per_settled"] == exact_interval(2, 3)
    for wrong in ({"event": "a", "outcome": "planet"}, {"outcome": "single"}):
        with pytest.raises(InputError, match="one of single, binary, other"):
            ledger.settle(wrong)


def test_an_outcome_fed_again_is_not_written_again(tmp_path):
    ledger = Ledger(tmp_path / "alerts", THRESHOLD)
    for outcome in ("single", "single", "binary"):
        assert ledger.settle({"event": "a", "outcome": outcome})["outcome"] == outcome
    assert [line["outcome"] for line in lines_of(ledger.path)] == ["single", "binary"]


def test_without_a_ledger_its_lines_are_refused():
    lines = ['{"ledger": true}', '{"event": "a", "outcome": "single"}']
    for _, problem in answer_lines(StreamingClassifier(random_network()), lines):
        assert "needs --ledger FILE" in problem


def test_lines_edited_by_hand_count(tmp_path):
    ledger = Ledger(tmp_path / "alerts", THRESHOLD)
    ledger.record([answer("a", 0.9), answer("b", 0.9)])
    ledger._file.close()
    kept = lines_of(ledger.path)
    kept[0]["outcome"] = "single"
    text = "\n".join(map(json.dumps, [*kept, {"event": "b", "outcome": "binary"}]))
    ledger.path.write_text(text)  # without an end of the last line
    again = Ledger(ledger.path, THRESHOLD)
    assert again.rate("ab")["false_alarms"] == 1 and again.rate("ab")["settled"] == 2
    again.record([answer("c", 0.9)])
    assert len(lines_of(ledger.path)) == 4


def test_a_line_cut_by_a_kill_is_dropped_and_a_wrong_one_refused(tmp_path):
    path = tmp_path / "alerts"
    path.write_text(json.dumps(answer("a", 0.9)) + '\n{"event": "b", "ti')
    ledger = Ledger(path, THRESHOLD)
    assert ledger.alerts == {"a"} and len(lines_of(path)) == 1
    ledger.record([answer("b", 0.9)])
    assert [line["event"] for line in lines_of(path)] == ["a", "b"]
    ledger._file.close()
    path.write_text("hello\n")
    with pytest.raises(InputError, match="line 1 is no line of a ledger"):
        Ledger(path, THRESHOLD)
    assert path.read_text() == "hello\n"


def test_a_ledger_has_one_writer_and_must_be_writable(tmp_path):
    ledger = Ledger(tmp_path / "alerts", THRESHOLD)
    with pytest.raises(InputError, match="another stream writes this ledger"):
        Ledger(ledger.path, THRESHOLD)
    with pytest.raises(InputError, match="cannot be written"):
        Ledger(tmp_path / "gone" / "alerts", THRESHOLD)


def test_an_event_is_followed_and_alerts_once_with_all_its_data_sets(tmp_path):
    ledger = Ledger(tmp_path / "alerts", AlertThreshold(value=0.0, level=0.01, survey="default"))
    lines = [json.loads(line) for line in epochs("xy", num=10)]
    lines = [line | {"dataset": name, "mag": 18.0} for line in lines for name in "VI"]
    stream = StreamingClassifier(random_network())
    answers = answer_lines(stream, [*map(json.dumps, lines), '{"ledger": true}'], ledger=ledger)
    assert not any(problem for _, problem in answers)
    assert [line["event"] for line in lines_of(ledger.path)] == ["x", "y"]
    rate = answers[-1][0]
    assert (rate["followed"], rate["alerts"]) == (2, 2)


def epochs(names, anomalous=("x",), num=160):
    """Flat events, of which some brighten for 40 epochs; one line each, in order of time."""
    return [
        json.dumps(
            {"event": name, "time": float(k), "mag": 18.0 - (name in anomalous) * (80 <= k < 120)}
            | {"mag_err": 0.02, "m_base": 18.0}
        )
        for k in range(num)
        for name in names
    ]


@pytest.fixture
def run(tmp_path):
    """A run folder whose network has a threshold that the event `x` of `epochs` passes, not `y`.

    Random weights, of whose outputs the sign is chosen.
    """
    network = random_network()
    for _ in range(2):
        with torch.no_grad():
            network.head[-1].weight.neg_()
        answers = answer_lines(StreamingClassifier(network), epochs("xy"))
        p = [[a["p_binary"] for a, _ in answers if a["event"] == name] for name in "xy"]
        highest = [max(values[STEP:]) for values in p]
        if highest[0] > highest[1] + 0.01:
            break
    assert highest[0] > highest[1] + 0.01
    save_network(tmp_path / "run", network, {})
    stored = {"default": {"1pct": {"threshold": sum(highest) / 2}}}
    (tmp_path / "run" / FILE).write_text(json.dumps({"thresholds": stored}))
    return tmp_path / "run"


def start(path, *flags):
    pipe, command = subprocess.PIPE, [*COMMAND, "--ledger", str(path), *flags]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ask(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def test_a_killed_stream_resumes_without_a_doubled_alert(run, tmp_path):
    """Killed after an alert; fed again from the beginning, it goes on in the same ledger."""
    path, feed = tmp_path / "alerts", epochs("xy")
    process = start(path, "--prevalence", "0.01", "--model", str(run))
    answers = []
    while not (path.exists() and path.read_text().endswith("\n")):
        answers.append(ask(process, feed[len(answers)]))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (alert,) = lines_of(path)
    assert alert["event"] == "x" and alert["p_binary"] > alert["threshold"]
    shown, p = answers[-1]["p_binary"], alert["p_binary"]  # shown at the prevalence
    assert shown / (1 - shown) == pytest.approx(p / (1 - p) / 99) and alert["time"] >= 80
    assert answers[-1]["prevalence"] == 0.01
    with path.open("a") as file:
        file.write('{"event": "x", "outc')
    process = start(path, "--model", str(run))
    feed += ['{"event": "x", "outcome": "single"}', '{"event": "x", "outcome": "maybe"}']
    out, err = process.communicate("\n".join([*feed, '{"ledger": true}']) + "\n")
    *_, settled, refused, rate = map(json.loads, out.splitlines())
    assert settled == {"event": "x", "outcome": "single"} and "one of single" in refused["error"]
    kept = lines_of(path)
    assert kept == [alert, settled]
    assert (rate["followed"], rate["alerts"], rate["false_alarms"]) == (2, 1, 1)
    first, *_, last = err.splitlines()
    assert f"alerts above P = {alert['threshold']:.3f}" in first
    assert "1 alerts of 2 followed (1.26 to 98.74 %)" in last
    assert process.returncode == 2 and "Traceback" not in err
