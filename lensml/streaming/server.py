"""Newline-delimited JSON through a streaming classifier, in batches as lines arrive.

Nothing waits for a batch to fill: what has arrived is answered, one line alone or a thousand
together, and no more than about a batch, of so many lines or bytes, is buffered. A snapshot is
taken only when every line it counts has been answered and written, so that feeding the lines after
it again gives the same.
"""

import json
import os
import select
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lensml.exits import SIGNALS
from lensml.limits import BATCH, MAX_LINE_BYTES
from lensml.network import is_finite, prior_shift
from lensml.paths import InputError, printable
from lensml.streaming.classifier import SEPARATOR, StreamingClassifier, quoted
from lensml.streaming.ledger import Ledger, event_name

IDLE_SECONDS = 1.0  # silence after which a snapshot is due [s]
LONGEST_PAUSE = 40_000  # between epochs of an event; a longer one is another time zero [day]
MIN_PAUSE = 20  # time between snapshots, in units of what the last one took
UNMEASURED = 90.0  # an error so large is a mark, as for light curve files [mag]
NEEDED = ("event", "time", "mag", "mag_err")


def answer_lines(
    stream: StreamingClassifier, lines: Iterable[str], first: int = 1, ledger: Ledger | None = None
) -> list[tuple]:
    """Answers to lines of one batch: `(answer, None)` each, `(answer, problem)` if bad.

    A bad line changes nothing; its answer names the event, if it has one, and the problem. Empty
    lines get no answer. `first` is the number of the first line, for messages. A `ledger` takes
    outcomes, and alerts before they are answered; `{"ledger": true}` asks for its rate.
    """
    replies, epochs, latest = [], [], {}
    for number, line in enumerate(lines, first):
        line = line.removeprefix("\ufeff") if number == 1 else line
        if not line.strip():
            continue
        event = None
        try:
            epoch = json.loads(line)
            if not isinstance(epoch, dict):
                raise InputError(f"{type(epoch).__name__} came, a JSON object was expected")
            event = epoch.get("event")
            if "outcome" in epoch or "ledger" in epoch:
                if ledger is None:
                    raise InputError("an outcome or a question to the ledger needs --ledger FILE")
                replies.append((ledger.settle(epoch) if "outcome" in epoch else {}, None))
                continue
            if missing := [k for k in NEEDED if k not in epoch]:
                raise InputError(
                    f"{', '.join(missing)} missing; an epoch has event, time, mag, mag_err"
                )
            kept = {key: epoch.get(key) for key in (*NEEDED, "m_base")}
            kept |= {"dataset": epoch["dataset"]} if "dataset" in epoch else {}
            names = _check(stream, kept, latest)
            epochs.append((len(replies), number, kept, names))
            replies.append(None)
        except (ValueError, RecursionError) as error:
            replies.append(_refusal(event, number, error))
    columns = [[epoch[k] for *_, epoch, _ in epochs] for k in (*NEEDED[1:], "m_base")]
    events, datasets = ([names[k] for *_, names in epochs] for k in (0, 1))
    p, problems = stream.update_many(events, *columns, datasets)
    for i, (place, number, epoch, _) in enumerate(epochs):
        answer = {k: epoch[k] for k in ("event", "dataset", "time") if k in epoch}
        answer["p_binary"] = float(p[i])
        bad = problems.get(i)
        replies[place] = _refusal(epoch["event"], number, bad) if bad else (answer, None)
    if ledger:
        ledger.record(answer for answer, problem in replies if not problem)
        for answer in (answer for answer, _ in replies if not answer):  # once all are answered
            answer.update(ledger.rate(stream.followed))
    return replies


def _check(stream: StreamingClassifier, epoch: dict, latest: dict) -> tuple[str, str]:
    """Names of an epoch's event and data set; InputError if its values are marks or jump."""
    event, time, mag = epoch["event"], epoch["time"], epoch["mag"]
    names = [event, epoch["dataset"]] if "dataset" in epoch else [event]
    if not all(isinstance(x, int | str) and not isinstance(x, bool) and x != "" for x in names):
        raise InputError(f"event or dataset {quoted(names)}; expected a name or a number")
    if any(SEPARATOR in str(name) for name in names):
        raise InputError(f"event or dataset {quoted(names)}; expected a name of plain characters")
    names = [event_name(name) for name in names]
    key, found = SEPARATOR.join(names), (*names, "")[:2]
    if isinstance(epoch["mag_err"], float | int) and epoch["mag_err"] >= UNMEASURED:
        mark = f"`mag_err` {quoted(epoch['mag_err'])} means not measured"
        raise InputError(f"event {quoted(key)}: {mark}; leave it out")
    if isinstance(mag, float | int) and (abs(mag) >= 50 or mag in (0, -9.99, -9.999)):
        mark = f"`mag` {quoted(mag)} means not measured"
        raise InputError(f"event {quoted(key)}: {mark}; leave it out")
    if isinstance(time, float | int) and is_finite(time):  # others are refused with the epoch
        last = stream.last_time(found[0])
        before = latest.setdefault(found[0], time if last is None else last)
        if abs(time - before) > LONGEST_PAUSE:
            raise InputError(f"event {quoted(key)}: time {time:.10g} is {LONGEST_PAUSE} d or more "
                             f"from {before:.10g}; expected one time zero")  # fmt: skip
    return found


def _refusal(event: object, number: int, error: object) -> tuple[dict, str]:
    problem, name = f"line {number}: {error}", quoted(event)
    return {"event": event if name == str(event) else name, "error": problem}, problem


def read_batches(descriptor: int, wake: int | None = None) -> Iterator[list[str]]:
    """Lines as they arrive, up to BATCH together; an empty list after IDLE_SECONDS of silence.

    As soon as the descriptor `wake` can be read, the reading ends.
    """
    lines, rest, cut, ended = deque(), b"", False, False
    watched = [descriptor] if wake is None else [descriptor, wake]
    while lines or not ended:
        wait = 0 if lines else IDLE_SECONDS
        while len(lines) < BATCH and sum(map(len, lines)) < MAX_LINE_BYTES and not ended:
            ready = select.select(watched, [], [], wait)[0]
            if wake in ready:
                return
            if not ready:
                break
            wait = 0
            chunk = os.read(descriptor, 1 << 16)
            ended = not chunk
            *whole, rest = (rest + (chunk or b"\n" * bool(rest))).split(b"\n")
            lines.extend(whole[cut:])
            cut = cut and not whole
            if cut:
                rest = b""
            elif len(rest) > MAX_LINE_BYTES:
                lines.append(rest[:MAX_LINE_BYTES])
                rest, cut = b"", True
            wait = wait if lines else IDLE_SECONDS
        count = min(BATCH, len(lines))
        if count or not ended:  # each line is held once: as bytes until now, as text from here
            yield [lines.popleft().decode("utf-8", "replace") for _ in range(count)]


class SnapshotScheduler:
    """Takes snapshots of a stream, in at most a twentieth of the time."""

    def __init__(self, stream: StreamingClassifier, path: Path | None) -> None:
        self.stream, self.path = stream, path
        self.kept, self.cost, self.last = stream.lines, 0.0, time.monotonic()

    def due(self, quiet: bool) -> bool:
        """Whether to save now: enough lines or silence, and the last saving long enough ago."""
        new = self.stream.lines - self.kept
        rested = time.monotonic() - self.last >= MIN_PAUSE * self.cost
        return self.path is not None and rested and (new >= BATCH or (quiet and new > 0))

    def save(self) -> None:
        """Write the snapshot, if one is wanted at all."""
        if self.path is None:
            return
        started = time.monotonic()
        self.stream.save(self.path)
        self.kept, self.last = self.stream.lines, time.monotonic()
        self.cost = self.last - started


@contextmanager
def wake_on_signals() -> Iterator[tuple[int | None, list[int]]]:
    """A descriptor that is readable once a signal to end has come, and the signals."""
    came: list[int] = []
    try:
        before = {s: signal.signal(s, lambda number, _: came.append(number)) for s in SIGNALS}
    except ValueError:  # only the main thread may ask for signals
        yield None, came
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    earlier = signal.set_wakeup_fd(writer)
    try:
        yield reader, came
    finally:
        signal.set_wakeup_fd(earlier)
        for number, handler in before.items():  # a second one does not break the end
            signal.signal(number, signal.SIG_IGN if came else handler)
        os.close(reader)
        os.close(writer)


def shift_answers(replies: Iterable[tuple], prevalence: float) -> None:
    """Shift P(binary) of answers to `prevalence`, and name it, unless it is that of training."""
    for answer in (a for a, _ in replies if prevalence != 0.5 and "p_binary" in a):
        answer["p_binary"] = float(prior_shift(answer["p_binary"], prevalence))
        answer["prevalence"] = prevalence


def serve(
    stream: StreamingClassifier,
    source: TextIO,
    answers: TextIO,
    problems: TextIO,
    state: Path | None = None,
    ledger: Ledger | None = None,
    prevalence: float = 0.5,
) -> int:
    """Answer every line of `source` until it ends or a signal comes.

    `source` has a descriptor; `problems` gets a line for each bad line, `state` the snapshots.
    `ledger` takes the alerts, by P(binary) before it is shifted to `prevalence` for the answers.
    The exit code is 0, 2 if there was a bad line, 128 + number of the signal that ended it. Where
    the reader of `answers` has gone it is a BrokenPipeError: the last snapshot stays, so that the
    lines whose answers were lost can be fed again.
    """
    keeper, code, number = SnapshotScheduler(stream, state), 0, 1
    keeper.save()  # a path that cannot be written is better known now than after a night
    with wake_on_signals() as (wake, signals):
        for lines in read_batches(source.fileno(), wake):
            replies = answer_lines(stream, lines, number, ledger) if lines else []
            shift_answers(replies, prevalence)
            number += len(lines)
            stream.lines += len(lines)
            answers.write("".join(f"{json.dumps(answer)}\n" for answer, _ in replies))
            answers.flush()
            for problem in (problem for _, problem in replies if problem):
                print(f"lensml stream: {printable(problem)}", file=problems)
                code = 2
            if keeper.due(quiet=not lines):
                keeper.save()
        keeper.save()
        if ledger:
            print(f"lensml stream: {ledger.text(stream.followed)}", file=problems)
        if signals:
            where = f"; the state after {stream.lines} lines is in {state}" if state else ""
            print(f"lensml stream: ended by a signal{where}", file=problems)
            return 128 + signals[0]
    return code
