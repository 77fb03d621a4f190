"""Live classification of named events, one epoch at a time, equal to the batch.

Epochs are checked here before they reach a slot of the cache. Many events advance in one call; an
event's probabilities do not depend on the others of its calls, but for rounding (2e-6).
"""

from collections.abc import Sequence
from itertools import islice
from math import nan
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lensml import network as net
from lensml.limits import MAX_EVENTS, MAX_NAME, MAX_QUOTED, MOST_SETS
from lensml.network import GIVEN, STEP, UNKNOWN, Network, is_finite, rounded_epochs
from lensml.paths import InputError
from lensml.streaming.cache import EventCache
from lensml.streaming.store import EventStore

STATE_VERSION = 7  # of what `save` writes; older states are refused
SEPARATOR = "\x1f"  # between the names of an event and of its data set: no name has it


class StreamingClassifier:
    """Live classification of any number of events, each of any number of data sets.

    `network` is the classifier, None = the shipped one; `blended` whether f_s may be less than 1.
    Beyond `max_events` the event that was seen least recently goes to a file, `store`, and comes
    back with its next epoch, answers unchanged; None = a nameless file for this process alone.
    """

    def __init__(
        self,
        network: Network | None = None,
        blended: bool = True,
        max_events: int = MAX_EVENTS,
        store: Path | None = None,
    ) -> None:
        self.network = (network or net.load_network()[0]).eval()
        self.cache = EventCache(self.network, free=blended)
        self.events: dict[str, int] = {}  # in memory: name -> slot, the last seen at the end
        self.stored = EventStore(store)  # the others
        self.lines, self.max_events = 0, max_events  # `lines`: counted by the server, saved here
        self.offsets: dict[str, int] = {}  # of topics that were read, saved here
        self._streams: dict[str, int] = {}  # event SEPARATOR data set -> row of `_records`
        self._names: dict[int, list[str]] = {}  # of each slot, in the order of its data sets
        self._free_slots, self._free_rows = [], []
        self._records = np.empty((0, 5))  # slot, data set, last time, baseline given, zero point

    @property
    def bytes_per_event(self) -> int:
        """Bytes of an event at most; constant in time, names not counted."""
        return self.cache.bytes_per_event + 8 * self._records.shape[1]

    def update(
        self,
        event: str,
        time: float,
        mag: float,
        mag_err: float,
        m_base: float | None = None,
        dataset: str = "",
    ) -> float:
        """Take one epoch of a data set of `event`; P(binary) from all epochs so far.

        `time` [day] is later than the data set's last, `mag_err` the 1-sigma error of `mag` [mag];
        the baseline `m_base` [mag] comes with the data set's first epoch or not at all. An epoch
        that cannot be used is an InputError and changes nothing. 0.5 until STEP epochs have come.
        """
        answers, problems = self.update_many([event], [time], [mag], [mag_err], [m_base], [dataset])
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
        datasets: Sequence[str] | None = None,
    ) -> tuple[NDArray[np.float64], dict[int, str]]:
        """Take one epoch of each entry; an event that comes twice is taken in the order given.

        Columns are as in `update`, each (n,), lists or arrays; a baseline not given is None or (in
        an array) NaN. Returned are P(binary) (n,), and by entry what was wrong with it: that has
        NaN and changed nothing, the others go on. Unequal columns are an InputError.
        """
        logits, problems = self.logits_many(events, times, mags, mag_errs, m_bases, datasets)
        found = self.network.probabilities(logits)[:, 1:3].sum(1).clamp_(max=1).double().numpy()
        found[~np.isfinite(logits[:, 0].numpy())] = 0.5
        found[list(problems)] = nan
        return found, problems

    def logits_many(
        self,
        events: Sequence[str],
        times: Sequence[float],
        mags: Sequence[float],
        mag_errs: Sequence[float],
        m_bases: Sequence[float | None] | None = None,
        datasets: Sequence[str] | None = None,
    ) -> tuple[torch.Tensor, dict[int, str]]:
        """As `update_many`, but logits (n, 5) of the classes; NaN where there is no answer yet."""
        names = events if datasets is None else list(map(_joined, events, datasets))
        columns = [c for c in (times, mags, mag_errs, m_bases, datasets) if c is not None]
        if any(len(column) != len(events) for column in columns):
            lengths = ", ".join(str(len(column)) for column in (events, *columns))
            raise InputError(f"`update_many` got columns of {lengths} entries; one each is needed")
        if len(events) > self.max_events:  # in pieces, whose events fit into memory together
            return self._in_pieces(events, times, mags, mag_errs, m_bases, datasets)
        self._bring(events)
        values = np.stack([_numbers(x) for x in (times, mags, mag_errs)])
        bases = np.full(len(events), nan) if m_bases is None else _numbers(m_bases)
        good = np.isfinite(values).all(0) & (values[2] > 0)
        if m_bases is not None and not isinstance(m_bases, np.ndarray):
            good &= np.isfinite(bases) | np.array([m is None for m in m_bases], bool)
        problems = {}
        for i in np.flatnonzero(~good).tolist():
            base = None if m_bases is None or m_bases[i] is None else m_bases[i]
            problems[i] = _value_error(names[i], times[i], mags[i], mag_errs[i], base)
        row_of = self._streams.get
        rows = np.array([row_of(name, -1) for name in names], np.int64)
        for i in np.flatnonzero(good & (rows < 0)).tolist():
            known = self._streams.get(names[i])
            if known is None and (problem := self._room_error(events[i], names[i])):
                problems[i], good[i] = problem, False
                continue
            new = known is None
            rows[i] = self._add(events[i], names[i], values[1, i], bases[i]) if new else known
        logits = torch.full((len(events), len(net.CLASSES)), nan)
        left = np.flatnonzero(good)
        while len(left):
            slots = self._records[rows[left], 0].astype(np.int64)
            first = np.sort(np.unique(slots, return_index=True)[1])
            now = left[first]
            _, _, last, given, _ = self._records[rows[now]].T
            changed = ~np.isnan(bases[now]) & (bases[now] != given)
            wrong = (values[0, now] <= last) | changed
            for i in now[wrong].tolist():
                problems[i] = self._order_error(names[i], rows[i], values[0, i], bases[i])
            now = now[~wrong]
            if len(now):
                logits[now] = self._advance(rows[now], *values[:, now])
            left = np.delete(left, first)
        return logits, problems

    def _in_pieces(self, events, *columns) -> tuple[torch.Tensor, dict[int, str]]:
        found, problems = [], {}
        for first in range(0, len(events), self.max_events):
            part = slice(first, first + self.max_events)
            mine = [column if column is None else column[part] for column in columns]
            logits, wrong = self.logits_many(events[part], *mine)
            found.append(logits)
            problems |= {first + i: problem for i, problem in wrong.items()}
        return torch.cat(found), problems

    def _bring(self, events: Sequence[str]) -> None:
        """Make those of some events that are known the last seen ones, and bring them to memory."""
        names = dict.fromkeys(events)
        for event in names:
            if event in self.events:
                self.events[event] = self.events.pop(event)
        away = [event for event in names if event not in self.events]
        self._store_oldest(len(self.events) + len(away) - self.max_events)
        if not (known := [event for event in away if event in self.stored.index]):
            return
        slots = self._slots(len(known))
        found = [self.stored.take(event) for event in known]
        width = self._records.shape[1]
        self.cache.unpack(slots, [kept[8 * width * len(streams) :] for streams, kept in found])
        for event, slot, (streams, kept) in zip(known, slots.tolist(), found, strict=True):
            self.events[event], self._names[slot] = slot, streams
            for k, name in enumerate(streams):
                self._streams[name] = row = self._row()
                self._records[row] = slot, *np.frombuffer(kept, float, width, k * 8 * width)[1:]

    def _slots(self, number: int) -> NDArray:
        """Cleared slots (number,); `_bring` has made room."""
        free, new = self._free_slots, self.cache.new_slot
        slots = np.array([free.pop() if free else new() for _ in range(number)])
        self.cache.clear(slots)
        return slots

    def _store_oldest(self, number: int) -> None:
        """Move the events that were seen least recently to the file."""
        oldest = dict(islice(self.events.items(), max(0, number)))
        packed = self.cache.pack(np.array([*oldest.values()])) if oldest else []
        for (event, slot), kept in zip(oldest.items(), packed, strict=True):
            names, last = self._names[slot], self.last_time(event)
            rows = [self._streams[name] for name in names]
            self.stored.put(event, names, self._records[rows].tobytes() + kept, last)
            del self.events[event], self._names[slot]
            self._free_slots.append(slot)
            self._free_rows += [self._streams.pop(name) for name in names]

    def _row(self) -> int:
        """A row of the records that no data set has."""
        if self._free_rows:
            return self._free_rows.pop()
        if (row := len(self._streams)) >= len(self._records):
            room = np.full((max(8, row), self._records.shape[1]), nan)
            self._records = np.concatenate([self._records, room])
        return row

    def _advance(self, rows: NDArray, times: NDArray, mags: NDArray, errors: NDArray):
        """Logits after one epoch of each row; all have been checked, no event comes twice."""
        slots, sets, _, _, zero = self._records[rows].T
        self._records[rows, 2] = times
        slots = slots.astype(np.int64)
        epochs = rounded_epochs(zero - mags, errors)
        logits = self.cache.advance(slots, sets.astype(np.int64), times, *epochs)
        logits[torch.from_numpy(self.cache.histories.count[slots] < STEP)] = nan
        return logits

    def _add(self, event: str, name: str, mag: float, m_base: float) -> int:
        """A row for a new data set, of a new event or not."""
        if (slot := self.events.get(event)) is None:
            slot = int(self._slots(1)[0])
            self.events[event], self._names[slot] = slot, []
        row, dataset = self._row(), len(self._names[slot])
        self._records[row] = slot, dataset, -np.inf, m_base, mag if np.isnan(m_base) else m_base
        self.cache.set_width(slot, dataset, UNKNOWN if np.isnan(m_base) else GIVEN)
        self._names[slot].append(name)
        self._streams[name] = row
        return row

    def last_time(self, event: str, dataset: str | None = None) -> float | None:
        """Time of the last epoch of an event, of one data set or any [day]; None of a new one."""
        if dataset is not None:
            self._bring([event])
            row = self._streams.get(_joined(event, dataset))
            return None if row is None else float(self._records[row, 2])
        if event in self.stored.index:
            return self.stored.index[event][3]
        slot = self.events.get(event)
        return None if slot is None else float(self.cache.histories.last[slot])

    @property
    def followed(self) -> list[str]:
        """Names of all events, in memory and on disk."""
        return [*self.events, *self.stored.index]

    def _room_error(self, event: str, name: str) -> str | None:
        """Why no data set of this name is added; None if it can be."""
        if len(name) > MAX_NAME:
            return f"event {quoted(name)}: a name of {len(name)} characters; {MAX_NAME} at most"
        if event in self.events and len(self._names[self.events[event]]) >= MOST_SETS:
            return (
                f"event {quoted(name)}: a data set more than {MOST_SETS}, which an event may have"
            )
        return None

    def _order_error(self, name: str, row: int, time: float, m_base: float) -> str:
        """Why an epoch of usable values does not go with those before it: its time or baseline."""
        last, given = self._records[row, 2:4].tolist()
        if time <= last:
            return (
                f"event {quoted(name)}: time {time:.6f} does not follow {last:.6f}; "
                "epochs must come in order, each once"
            )
        was = "not given" if np.isnan(given) else f"{given:g}"
        change = f"`m_base` is {m_base:g} but was {was} with the first epoch"
        return f"event {quoted(name)}: {change}; it cannot change"

    def save(self, path: Path) -> None:
        """Snapshot of all events, atomically."""
        self.stored.flush()
        names = [x.encode("utf-8", "surrogatepass") for x in (*self._streams, *self.stored.index)]
        tensors = self.cache.tensors() | {
            "records": torch.from_numpy(self._records[list(self._streams.values())]),
            "names": torch.from_numpy(np.frombuffer(bytearray(b"".join(names)), np.uint8)),
            "name_lengths": torch.tensor([len(name) for name in names], dtype=torch.int64),
            "seen": torch.tensor([*self.events.values()], dtype=torch.int64),
            "stored": torch.from_numpy(self.stored.table()),
        }
        notes = {"version": STATE_VERSION, "lines": self.lines, "events": len(self.followed)}
        notes |= {"offsets": self.offsets} if self.offsets else {}
        net.write_snapshot(path, tensors, notes | {"network": net.fingerprint(self.network)})
        self.stored.settle()

    def restore(self, path: Path) -> None:
        """Take up a snapshot of `save`; the answers go on as if nothing had happened.

        One that is damaged, of another version or network is an InputError and changes nothing.
        """
        tensors, notes = net.read_snapshot(path, STATE_VERSION)
        if notes["network"] != net.fingerprint(self.network):
            raise InputError(f"{path}: the state of another network; start without --state")
        text, ends = tensors["names"].numpy().tobytes(), tensors["name_lengths"].cumsum(0).tolist()
        parts = (text[a:b] for a, b in zip([0, *ends], ends, strict=False))
        names = [part.decode("utf-8", "surrogatepass") for part in parts]
        records = tensors["records"].numpy().copy()
        self.stored.restore(names[len(records) :], tensors["stored"].numpy())
        self.cache.restore(tensors)
        self._records, self._free_rows, self._names = records, [], {}
        self._streams = {name: row for row, name in enumerate(names[: len(records)])}
        for name, slot in zip(self._streams, records[:, 0].astype(int).tolist(), strict=True):
            self._names.setdefault(slot, []).append(name)
        seen = tensors["seen"].tolist()
        self.events = {self._names[slot][0].partition(SEPARATOR)[0]: slot for slot in seen}
        self._free_slots = sorted(set(range(self.cache.num_slots)) - set(seen))
        self.lines, self.offsets = notes["lines"], dict(notes.get("offsets", {}))
        self._store_oldest(len(self.events) - self.max_events)


def _joined(event: str, dataset: str) -> str:
    return f"{event}{SEPARATOR}{dataset}" if dataset else event


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
