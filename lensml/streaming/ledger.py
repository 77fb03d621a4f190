"""A running ledger of alerts and of how many of them were false.

It is a file of JSON lines. An alert is `{"event", "time", "p_binary", "threshold", "level"}`,
its outcome `{"event", "outcome"}`, written by the stream or by hand.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lensml.paths import InputError
from lensml.streaming.thresholds import AlertThreshold

OUTCOMES = ("single", "binary", "other")  # all but a binary make a false alarm


def event_name(event: object) -> str:
    """Name of an event or data set of JSON: the number 1 and the text "1" are two events."""
    number = not isinstance(event, str) or event[:1] == '"' or event.lstrip("-").isdecimal()
    return json.dumps(event) if number else event


def exact_interval(hits: int, num: int) -> dict[str, float | None]:
    """Fraction `hits` of `num` with its exact 95 % interval (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv  # late: no answer needs it

    low = float(betaincinv(hits, num - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, num - hits, 0.975)) if hits < num else 1.0
    return {"value": hits / num if num else None, "low": low, "high": high}


class Ledger:
    """Alerts of a stream in a file that only grows, each event once, and their outcomes.

    A line is on disk before its answer is given; one that a kill left half-written is cut off.
    """

    def __init__(self, path: Path, threshold: AlertThreshold) -> None:
        self.path, self.threshold = path, threshold
        self.alerts, self.outcomes = set(), {}  # names; outcomes by name
        try:
            self._file = open(path, "a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path}: another stream writes this ledger") from None
        except OSError as error:
            raise InputError(f"{path}: the ledger cannot be written ({error})") from None
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        try:  # the last line, by hand without its end, or cut by a kill
            lines += [rest] * (json.loads(rest or b"{}") != {})
            self._file.write(b"\n" * bool(rest))
        except ValueError:
            self._file.truncate(self._file.tell() - len(rest))
        for number, line in enumerate(lines, 1):
            try:
                self._take(json.loads(line) if line.strip() else {})
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: line {number} is no line of a ledger: {error}") from None
        self._file.flush()

    def _take(self, line: Mapping[str, Any]) -> None:
        if "event" in line and "time" in line:
            self.alerts.add(event_name(line["event"]))
        if "outcome" in line:
            if "event" not in line or line["outcome"] not in OUTCOMES:
                wanted = f"an outcome is of an event and one of {', '.join(OUTCOMES)}"
                raise InputError(f"{wanted}, but {line} came")
            self.outcomes[event_name(line["event"])] = line["outcome"]

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        if text := "".join(f"{json.dumps(line)}\n" for line in lines):
            try:
                self._file.write(text.encode())
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise InputError(f"{self.path}: the ledger cannot be written ({error})") from None

    def settle(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Take the outcome `{"event", "outcome"}` of an event; the same as an answer."""
        kept = {key: line[key] for key in ("event", "outcome") if key in line}
        before = self.outcomes.get(event_name(kept.get("event")))
        self._take(kept)
        self._write([kept] * (kept["outcome"] != before))  # not again when fed again
        return kept

    def record(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write the first alert of each event among answers of the stream."""
        level, lines = {"threshold": self.threshold.value, "level": self.threshold.level}, []
        for answer in answers:
            p, event = answer.get("p_binary", 0.5), event_name(answer.get("event"))
            if p > self.threshold.value and p != 0.5 and event not in self.alerts:  # 0.5: no answer
                self.alerts.add(event)
                lines.append({k: answer[k] for k in ("event", "time", "p_binary")} | level)
        self._write(lines)

    def rate(self, followed: Iterable[str]) -> dict[str, Any]:
        """Alerts per event followed, and false alarms per settled alert, with exact intervals."""
        events = set(followed)
        alerts = len(self.alerts & events)
        settled = [self.outcomes[event] != "binary" for event in self.alerts & set(self.outcomes)]
        false = sum(settled)
        return {
            "followed": len(events),
            "alerts": alerts,
            "alerts_per_event": exact_interval(alerts, len(events)),
            "settled": len(settled),
            "false_alarms": false,
            "false_alarms_per_settled": exact_interval(false, len(settled)),
        }

    def text(self, followed: Iterable[str]) -> str:
        """The rate so far in one line."""
        rate = self.rate(followed)
        found = (rate["alerts_per_event"], rate["false_alarms_per_settled"])
        ends = [f"{100 * x['low']:.2f} to {100 * x['high']:.2f} %" for x in found]
        alerts = f"{rate['alerts']} alerts of {rate['followed']} followed ({ends[0]})"
        false = f"{rate['false_alarms']} false alarms of {rate['settled']} settled ({ends[1]})"
        return f"{self.path}: {alerts}; {false}"
