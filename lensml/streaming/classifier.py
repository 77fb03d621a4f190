"""Live classification of named events, one epoch at a time, equal to the batch.

Epochs are checked here before they reach a slot of the cache. Many events advance in one call; an
event's probabilities do not depend on the others of its calls, but for rounding (2e-6).
"""

from array import array
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from lensml import network as net
from lensml.network import BASELINE_MAX, BASELINE_MIN, Network, is_finite
from lensml.paths import InputError
from lensml.streaming.cache import EventCache

STATE_VERSION = 4  # of what `save` writes; older states are refused
MAX_EVENTS = 100_000  # kept by default: 6 GB
MAX_NAME = 4096  # characters of an event's name, a small part of what its state takes
MAX_QUOTED = 80  # characters of an input that a message repeats
SEPARATOR = "\x1f"  # between the names of an event and of its data set: no name has it


@dataclass
class BaselineEstimator:
    """An event whose baseline is still being estimated from its own past."""

    mags: array = field(default_factory=lambda: array("d"))  # in rising order
    waiting: array = field(default_factory=lambda: array("d"))  # time, mag, mag_err of each epoch


class StreamingClassifier:
    """Live classification of any number of events.

    `network` is the classifier, None = the shipped one; `device` where events are kept, None =
    where the network is; `blended` whether f_s may be less than 1. A new event beyond `max_events`
    is refused: an old one, dropped, would begin again unnoticed with its next epoch.
    """

    def __init__(
        self,
        network: Network | None = None,
        device: str | torch.device | None = None,
        blended: bool = True,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self.network = (network or net.load_network()[0]).eval()
        self.cache = EventCache(self.network, device, blended=blended)
        self.events: dict[str, int] = {}  # name -> slot
        self.lines, self.max_events = 0, max_events  # `lines`: counted by the server, saved here
        self._estimators: dict[int, BaselineEstimator] = {}
        self._records = np.empty((0, 3))  # of each slot: last time, m_base as given, m_base in use

    @property
    def bytes_per_event(self) -> int:
        """Bytes of an event whose baseline is known; constant in time, its name not counted."""
        return self.cache.bytes_per_event + 8 * self._records.shape[1]

    def update(
        self, event: str, time: float, mag: float, mag_err: float, m_base: float | None = None
    ) -> float:
        """Take one epoch of `event`; P(binary) from all epochs so far.

        `time` [day] is later than the event's last, `mag_err` the 1-sigma error of `mag` [mag];
        the baseline `m_base` [mag] comes with the event's first epoch or not at all. An epoch that
        cannot be used is an InputError and changes nothing.
        """
        answers, problems = self.update_many([event], [time], [mag], [mag_err], [m_base])
        if problems:
            raise InputError(problems[0])
        return float(answers[0])

    def update_many(
        self,
        events: Sequence[str],
        times: Sequence[float],
        mags: Sequence[float],
        mag_errs: Sequence[float],
        m_bases: Sequence[float | None] | None = None,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Take one epoch of each entry; an event that comes twice is taken in the order given.

        Columns are as in `update`, each (n,), lists or arrays; a baseline not given is None or (in
        an array) NaN. Returned are P(binary) (n,), and by entry what was wrong with it: that has
        NaN and changed nothing, the others go on. Unequal columns are an InputError.
        """
        columns = (times, mags, mag_errs) if m_bases is None else (times, mags, mag_errs, m_bases)
        if any(len(column) != len(events) for column in columns):
            lengths = ", ".join(str(len(column)) for column in (events, *columns))
            raise InputError(f"`update_many` got columns of {lengths} entries; one each is needed")
        values = np.stack([_numbers(x) for x in (times, mags, mag_errs)])
        bases = np.full(len(events), nan) if m_bases is None else _numbers(m_bases)
        good = np.isfinite(values).all(0) & (values[2] > 0)
        if m_bases is not None and not isinstance(m_bases, np.ndarray):
            good &= np.isfinite(bases) | np.array([m is None for m in m_bases], bool)
        problems = {}
        for i in np.flatnonzero(~good).tolist():
            base = None if m_bases is None or m_bases[i] is None else m_bases[i]
            problems[i] = _value_error(events[i], times[i], mags[i], mag_errs[i], base)
        slot_of = self.events.get
        slots = np.array([slot_of(event, -1) for event in events], np.int64)
        for i in np.flatnonzero(good & (slots < 0)).tolist():
            known = self.events.get(events[i])
            if known is None and (problem := self._room_error(events[i])):
                problems[i], good[i] = problem, False
                continue
            slots[i] = self._add_event(events[i], bases[i]) if known is None else known
        answers = np.full(len(events), nan)
        left = np.flatnonzero(good)
        while len(left):
            first = np.sort(np.unique(slots[left], return_index=True)[1])
            now = left[first]
            last, given, _ = self._records[slots[now]].T
            changed = ~np.isnan(bases[now]) & (bases[now] != given)
            wrong = (values[0, now] <= last) | changed
            for i in now[wrong].tolist():
                problems[i] = self._order_error(events[i], slots[i], values[0, i], bases[i])
            now = now[~wrong]
            if len(now):
                answers[now] = self._advance(slots[now], *values[:, now])
            left = np.delete(left, first)
        return answers, problems

    def _add_event(self, event: str, m_base: float) -> int:
        (slot,) = self.cache.new_slots(1)
        if slot >= len(self._records):
            room = np.full((len(self.cache.count) - len(self._records), 3), nan)
            self._records = np.concatenate([self._records, room])
        self._records[slot] = -np.inf, m_base, m_base
        if np.isnan(m_base):
            self._estimators[slot] = BaselineEstimator()
        self.events[event] = slot
        return slot

    def _room_error(self, event: str) -> str | None:
        """Why no event of this name is added; None if it can be."""
        if len(event) > MAX_NAME:
            return f"event {quoted(event)}: a name of {len(event)} characters; {MAX_NAME} at most"
        if len(self.events) >= self.max_events:
            full = f"{len(self.events)} events are kept, no new one is taken"
            return f"event {quoted(event)}: {full}; give a larger --max_events"
        return None

    def _order_error(self, event: str, slot: int, time: float, m_base: float) -> str:
        """Why an epoch of usable values does not go with those before it: its time or baseline."""
        last, given, _ = self._records[slot].tolist()
        if time <= last:
            return (
                f"event {quoted(event)}: time {time:.6f} does not follow {last:.6f}; "
                "epochs must come in order, each once"
            )
        was = "not given" if np.isnan(given) else f"{given:g}"
        change = f"`m_base` is {m_base:g} but was {was} with the first epoch"
        return f"event {quoted(event)}: {change}; it cannot change"

    def _advance(self, slots: NDArray, times: NDArray, mags: NDArray, errors: NDArray) -> NDArray:
        """Answers of one epoch of each slot; all have been checked, and none comes twice."""
        self._records[slots, 0] = times
        # Events whose baseline is known go straight to the cache.
        bases = self._records[slots, 2]
        estimating = np.flatnonzero(np.isnan(bases)).tolist()
        if not estimating:
            return self.cache.advance(slots, times, bases - mags, errors)
        # The others wait for BASELINE_MIN epochs, then use the median of their past.
        answers, begun = np.full(len(slots), 0.5), []
        for i in estimating:
            slot, estimator = int(slots[i]), self._estimators[int(slots[i])]
            insort(estimator.mags, mags[i])
            if len(estimator.mags) < BASELINE_MIN:
                estimator.waiting.extend((times[i], mags[i], errors[i]))
                continue
            bases[i] = median(estimator.mags)
            if len(estimator.mags) == BASELINE_MIN:
                begun.append(i)
            elif len(estimator.mags) == BASELINE_MAX:
                self._records[slot, 2] = bases[i]
                del self._estimators[slot]
        # Those that have just got one take their waiting epochs first.
        if begun:
            waited = np.array([self._estimators[int(slot)].waiting for slot in slots[begun]])
            for epoch in waited.reshape(len(begun), -1, 3).transpose(1, 2, 0):
                self.cache.advance(slots[begun], epoch[0], bases[begun] - epoch[1], epoch[2])
            for slot in slots[begun].tolist():
                self._estimators[slot].waiting = array("d")
        ready = np.flatnonzero(~np.isnan(bases))
        if len(ready):
            columns = (x[ready] for x in (slots, times, bases - mags, errors))
            answers[ready] = self.cache.advance(*columns)
        return answers

    def save(self, path: Path) -> None:
        """Snapshot of all events, atomically; the buffers are written from where they lie."""
        names = [name.encode("utf-8", "surrogatepass") for name in self.events]
        kept = self._estimators.values()
        lengths = [[k, len(v.mags), len(v.waiting)] for k, v in self._estimators.items()]
        tensors = self.cache.tensors() | {
            "records": self._records[: len(names)],
            "names": np.frombuffer(bytearray(b"".join(names)), np.uint8),
            "name_lengths": np.array([len(name) for name in names], np.int64),
            "estimators": np.array(lengths, np.int64).reshape(-1, 3),
            "estimated": np.array([x for v in kept for y in (v.mags, v.waiting) for x in y], float),
        }
        tensors = {k: torch.as_tensor(v) for k, v in tensors.items()}
        notes = {"version": STATE_VERSION, "lines": self.lines, "events": len(names)}
        net.write_snapshot(path, tensors, notes | {"network": net.fingerprint(self.network)})

    def restore(self, path: Path) -> None:
        """Take up a snapshot of `save`; the answers go on as if nothing had happened.

        One that is damaged, of another version or network is an InputError and changes nothing.
        """
        tensors, notes = net.read_snapshot(path, STATE_VERSION)
        if notes["network"] != net.fingerprint(self.network):
            raise InputError(f"{path}: the state of another network; start without --state")
        self.cache.restore(tensors)
        text, ends = tensors["names"].numpy().tobytes(), tensors["name_lengths"].cumsum(0).tolist()
        parts = (text[a:b] for a, b in zip([0, *ends], ends, strict=False))
        names = (part.decode("utf-8", "surrogatepass") for part in parts)
        self.events = {name: slot for slot, name in enumerate(names)}
        self.lines = notes["lines"]
        self._records = tensors["records"].numpy().copy()
        estimated, self._estimators = array("d", tensors["estimated"].numpy().tobytes()), {}
        for slot, num_mags, num_waiting in tensors["estimators"].tolist():
            mags, estimated = estimated[:num_mags], estimated[num_mags:]
            self._estimators[slot] = BaselineEstimator(mags, estimated[:num_waiting])
            estimated = estimated[num_waiting:]


def quoted(value: object) -> str:
    """`value` as a message repeats it: its beginning, if it is long."""
    text = str(value).replace(SEPARATOR, " / ")
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 3]}..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def _numbers(values: Sequence) -> NDArray[np.float64]:
    """A column as float64 (n,), NaN where there is no finite number."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(float)
    if set(map(type, values)) <= {float}:
        return np.array(values, float)
    return np.array([float(x) if _is_number(x) else nan for x in values], float)


def _value_error(event: str, time, mag, mag_err, m_base) -> str | None:
    """Which value of an epoch cannot be used at all; None if each can."""
    for name, value in (("time", time), ("mag", mag), ("mag_err", mag_err), ("m_base", m_base)):
        if not (_is_number(value) or name == "m_base" and value is None):
            found = quoted(repr(value))
            return f"event {quoted(event)}: `{name}` is {found}, a number was expected"
    if mag_err <= 0:
        return f"event {quoted(event)}: `mag_err` is {mag_err:g}, it must be positive"
    return None
