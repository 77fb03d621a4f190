"""Lines through a pipe: in order, in batches or alone, and over kills without loss."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
from sets import epoch_lines, one_by_one, random_network

from lensml.network import load_network, prior_shift
from lensml.paths import InputError
from lensml.streaming import server as feed
from lensml.streaming.classifier import StreamingClassifier
from lensml.streaming.server import SnapshotScheduler, answer_lines, read_batches

COMMAND = [sys.executable, "-m", "lensml", "stream"]


@pytest.fixture(scope="module")
def network():
    return random_network()


def test_lines_together_are_answered_as_lines_alone(network):
    lines = epoch_lines(7, 30, m_base=None) + epoch_lines(3, 5, seed=2)
    lines += epoch_lines(2, 20, seed=3, datasets=("I", "V", "new"))
    lines[20:20] = ["", "junk", lines[3], '{"event": "e1"}', "9" * 5000]
    alone = one_by_one(StreamingClassifier(network), lines)
    together = answer_lines(StreamingClassifier(network), lines)
    assert [b for _, b in alone] == [b for _, b in together] and len(alone) == len(lines) - 1
    for (a, _), (b, _) in zip(alone, together, strict=True):
        assert a.get("error") == b.get("error") and a["event"] == b["event"]
        assert a.get("p_binary", 0) == pytest.approx(b.get("p_binary", 0), abs=2e-6)
    assert sum(b is not None for _, b in together) == 4 + 15  # and those that come too late
    assert len({a["p_binary"] for a, b in together if not b}) > 150


def read_all(content: bytes, pieces: list[int]) -> list[list[str]]:
    """Batches read from a pipe that is written in pieces ending at `pieces`, then closed."""
    reader, writer = os.pipe()
    found, batches = 0, read_batches(reader)
    got = []
    for last in pieces:
        os.write(writer, content[found:last])
        found = last
        got.append(next(batches))
    os.write(writer, content[found:])
    os.close(writer)
    got += list(batches)
    os.close(reader)
    return got


def test_what_has_arrived_is_not_kept_waiting():
    got = read_all(b"one\ntwo\nthr" + b"ee\nfour", [4, 11])
    assert got[:2] == [["one"], ["two"]]
    assert [x for batch in got[2:] for x in batch] == ["three", "four"]


def test_silence_is_an_empty_batch(monkeypatch):
    monkeypatch.setattr(feed, "IDLE_SECONDS", 0.05)
    reader, writer = os.pipe()
    assert next(read_batches(reader)) == []
    os.close(reader), os.close(writer)


def test_a_full_pipe_is_read_in_bounded_batches():
    reader, writer = os.pipe()
    os.write(writer, b"x\n" * 30_000)
    os.close(writer)
    sizes = [len(batch) for batch in read_batches(reader)]
    os.close(reader)
    assert sum(sizes) == 30_000 and max(sizes) == feed.BATCH


def test_a_line_without_end_is_cut_and_the_next_is_whole(monkeypatch):
    monkeypatch.setattr(feed, "MAX_LINE_BYTES", 100)
    got = read_all(b"a\n" + b"z" * 5000 + b"\nb\xff\n", [2, 900, 2000])
    assert [x for batch in got for x in batch] == ["a", "z" * 100, "b\ufffd"]


def test_snapshots_take_at_most_a_small_fraction_of_the_time(network, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(feed.time, "monotonic", lambda: now[0])
    stream = StreamingClassifier(network)
    keeper = SnapshotScheduler(stream, tmp_path / "state")
    assert not keeper.due(quiet=True)
    stream.lines = 1
    assert keeper.due(quiet=True) and not keeper.due(quiet=False)
    stream.lines = feed.BATCH
    assert keeper.due(quiet=False)
    keeper.cost = 3.0
    now[0] = 3.0 * feed.MIN_PAUSE - 1
    assert not keeper.due(quiet=False)
    now[0] += 1
    assert keeper.due(quiet=False)
    keeper.save()
    assert not keeper.due(quiet=True)
    assert not SnapshotScheduler(stream, None).due(quiet=True)


def test_a_state_that_cannot_be_written_is_one_line(network, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        SnapshotScheduler(StreamingClassifier(network), tmp_path / "file" / "state").save()


def start(*flags: str) -> subprocess.Popen:
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *flags], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def ask(process: subprocess.Popen, line: str) -> dict:
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def test_a_single_line_is_answered_while_the_pipe_stays_open():
    process = start()
    try:
        for line in epoch_lines(2, 2):
            assert 0 <= ask(process, line)["p_binary"] <= 1
    finally:
        process.stdin.close()
        assert process.wait(20) == 0


def kept_lines(state) -> int:
    if not state.exists():
        return 0
    stream = StreamingClassifier(load_network()[0])
    stream.restore(state)
    return stream.lines


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stream_with_its_state_saved(tmp_path, kind):
    state = tmp_path / "state"
    process = start("--state", str(state))
    for line in epoch_lines(3, 4):
        ask(process, line)
    process.send_signal(kind)
    error = process.communicate(timeout=20)[1]
    assert process.returncode == 128 + kind and error.count("\n") == 1 and "12 lines" in error
    assert kept_lines(state) == 12


def test_a_closed_reader_ends_the_stream_in_one_line_and_counts_no_lost_answer(tmp_path):
    state = tmp_path / "state"
    process = start("--state", str(state))
    ask(process, epoch_lines(1, 2)[0])
    process.stdout.close()
    process.stdin.write(epoch_lines(1, 2)[1] + "\n")
    process.stdin.close()
    process.stdin = None
    error = process.stderr.read()
    assert process.wait(20) == 141 and error.count("\n") == 1 and "--state" in error
    assert kept_lines(state) < 2
    again = subprocess.run(
        [*COMMAND, "--state", str(state)],
        input="\n".join(epoch_lines(1, 2)) + "\n",
        capture_output=True,
        text=True,
    )
    assert "p_binary" in json.loads(again.stdout.splitlines()[1])


def test_a_damaged_state_is_one_line_and_stays_as_it_is(network, tmp_path):
    state = tmp_path / "state"
    StreamingClassifier(network).save(state)
    state.write_bytes(damaged := state.read_bytes()[:-3])
    run = subprocess.run(
        [*COMMAND, "--state", str(state)], input="", capture_output=True, text=True
    )
    assert (
        run.returncode == 2
        and run.stderr.count("\n") == 1
        and "state: not a readable" in run.stderr
    )
    assert state.read_bytes() == damaged and not run.stdout


def test_a_feed_with_bad_lines_ends_with_code_two(network):
    """Called in this process, on streams that are files."""
    reader, writer = os.pipe()
    os.write(writer, ("\n".join([*epoch_lines(1, 2), "junk"]) + "\n").encode())
    os.close(writer)
    answers, problems = io.StringIO(), io.StringIO()
    with os.fdopen(reader) as source:
        assert feed.serve(StreamingClassifier(network), source, answers, problems) == 2
    assert len(answers.getvalue().splitlines()) == 3
    assert problems.getvalue().startswith("lensml stream: line 3: ")


def test_answers_are_shown_at_a_prevalence(network):
    """And only they: a bad line has no P."""
    lines, shown = [*epoch_lines(1, 20), "junk"], []
    for prevalence in (0.5, 0.01):
        reader, writer = os.pipe()
        os.write(writer, ("\n".join(lines) + "\n").encode())
        os.close(writer)
        answers, stream = io.StringIO(), StreamingClassifier(network)
        with os.fdopen(reader) as source:
            feed.serve(stream, source, answers, io.StringIO(), prevalence=prevalence)
        shown.append([json.loads(line) for line in answers.getvalue().splitlines()])
    even, rare = ([a["p_binary"] for a in x[:-1]] for x in shown)
    assert rare == pytest.approx(prior_shift(even, 0.01), abs=1e-6)
    assert [a.get("prevalence") for a in shown[1]] == [0.01] * 20 + [None]


def test_a_batch_is_bounded_in_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(feed, "MAX_LINE_BYTES", 200_000)
    path = tmp_path / "lines"
    path.write_bytes(b"".join(b"z" * 190_000 + b"\n" for _ in range(20)))
    with path.open("rb") as file:
        batches = [sum(map(len, batch)) for batch in read_batches(file.fileno())]
    assert sum(batches) == 20 * 190_000 and max(batches) <= 2 * 200_000


def test_messages_and_answers_repeat_only_the_beginning_of_a_bad_line(network):
    long, bad = "e" * 100_000, {"time": 1.0, "mag": 18.0, "mag_err": -1.0, "m_base": 18.0}
    lines = [
        json.dumps({"event": long} | bad),
        json.dumps({"event": long} | bad | {"mag_err": 0.1}),  # refused for its name alone
        json.dumps({"event": [long]} | bad),
        json.dumps({"event": "a"} | bad | {"mag": [1] * 100_000}),
        json.dumps({"event": long}),
    ]
    stream = StreamingClassifier(network)
    for answer, problem in answer_lines(stream, lines):
        assert problem and len(problem) < 200 and len(json.dumps(answer)) < 400
    assert not stream.events
