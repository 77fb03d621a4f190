"""A running ledger of alerts and of how many of them were false.

It is a file of JSON lines. An alert is `{"event", "time", "p_binary", "threshold", "level"}`,
its outcome `{"event", "outcome"}`, written by the stream or by hand; the rate so far is a line too.
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


def exact_interval(hits: int, num: int) -> dict[str, float | None]:
    """Fraction `hits` of `num` with its exact 95 % interval (Clopper & Pearson 1934)."""
    from scipy.special import betaincinv  # late: no answer needs it

    if not num:
        return {"value": None, "low": 0.0, "high": 1.0}
    low = float(betaincinv(hits, num - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, num - hits, 0.975)) if hits < num else 1.0
    return {"value": hits / num, "low": low, "high": high}


class Ledger:
    """Alerts of a stream in a file that only grows, each event once, and their outcomes.

    A line is on disk before its answer is given. What a kill left half-written is cut off when the
    file is opened again; a second process is refused.
    """

    def __init__(self, path: Path, threshold: AlertThreshold) -> None:
        self.path, self.threshold = path, threshold
        self.alerts: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self._last_rate: dict[str, Any] | None = None
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
        """One line as the ledger holds it."""
        if "event" in line and "time" in line:
            self.alerts.add(str(line["event"]))
        if "outcome" in line:
            if "event" not in line or line["outcome"] not in OUTCOMES:
                raise InputError(
                    f"an outcome is of an event and one of {', '.join(OUTCOMES)}, but {line} came"
                )
            self.outcomes[str(line["event"])] = line["outcome"]
        self._last_rate = line.get("rate", self._last_rate)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        if text:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def settle(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Take the outcome `{"event", "outcome"}` of an event; the same as an answer."""
        kept = {key: line[key] for key in ("event", "outcome") if key in line}
        self._take(kept)
        self._write([kept])
        return kept

    def record(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write the first alert of each event among answers of the stream."""
        level, lines = {"threshold": self.threshold.value, "level": self.threshold.level}, []
        for answer in answers:
            p, event = answer.get("p_binary", 0.5), str(answer.get("event"))
            # One half is what an event has before its baseline is known.
            if p > self.threshold.value and p != 0.5 and event not in self.alerts:
                self.alerts.add(event)
                lines.append({k: answer[k] for k in ("event", "time", "p_binary")} | level)
        self._write(lines)

    def rate(self, followed: Iterable[str]) -> dict[str, Any]:
        """Alerts per event followed, and false alarms per settled alert, with exact intervals."""
        events = {name.partition(" / ")[0] for name in followed}  # without their data sets
        alerts = len(self.alerts & events)
        settled = [self.outcomes[event] for event in self.alerts & self.outcomes.keys()]
        false = sum(outcome != "binary" for outcome in settled)
        return {
            "followed": len(events),
            "alerts": alerts,
            "alerts_per_event": exact_interval(alerts, len(events)),
            "settled": len(settled),
            "false_alarms": false,
            "false_alarms_per_settled": exact_interval(false, len(settled)),
        }

    def close(self, followed: Iterable[str]) -> str:
        """Write the rate, if it has changed, and close the file; the rate in one line."""
        rate = self.rate(followed)
        if rate != self._last_rate:
            self._write([{"rate": rate}])
        self._file.close()
        parts = []
        for what, hits, of, key in (
            ("alerts", "alerts", "followed", "alerts_per_event"),
            ("false alarms", "false_alarms", "settled", "false_alarms_per_settled"),
        ):
            low, high = (f"{100 * rate[key][end]:.2f}" for end in ("low", "high"))
            parts.append(f"{rate[hits]} {what} of {rate[of]} {of} ({low} to {high} %)")
        return f"{self.path}: {'; '.join(parts)}"
