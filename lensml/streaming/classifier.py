"""Live classification of named events, one epoch at a time, equal to the batch.

Epochs are checked here before they reach a slot of the cache. Many events advance in one call; an
event's probabilities do not depend on the others of its calls, but for rounding (2e-6).
"""

from collections.abc import Sequence
from math import nan
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lensml import network as net
from lensml.network import GIVEN, STEP, UNKNOWN, Network, is_finite, rounded_epochs
from lensml.paths import InputError
from lensml.streaming.cache import MOST_SETS, EventCache

STATE_VERSION = 5  # of what `save` writes; older states are refused
MAX_EVENTS = 100_000  # kept by default: 6 GB
MAX_NAME = 4096  # characters of the name of an event or a data set
MAX_QUOTED = 80  # characters of an input that a message repeats
SEPARATOR = "\x1f"  # between the names of an event and of its data set: no name has it


class StreamingClassifier:
    """Live classification of any number of events, each of any number of data sets.

    `network` is the classifier, None = the shipped one; `blended` whether f_s may be less than 1. A
    new event beyond `max_events` is refused: an old one, dropped, would begin again unnoticed with
    its next epoch.
    """

    def __init__(
        self,
        network: Network | None = None,
        blended: bool = True,
        max_events: int = MAX_EVENTS,
    ) -> None:
        self.network = (network or net.load_network()[0]).eval()
        self.cache = EventCache(self.network, free=blended)
        self.events: dict[str, int] = {}  # name -> slot
        self.lines, self.max_events = 0, max_events  # `lines`: counted by the server, saved here
        self.offsets: dict[str, int] = {}  # of a broker to brokers, saved here
        self._streams: dict[str, int] = {}  # event SEPARATOR data set -> row of `_records`
        self._num_sets: dict[int, int] = {}  # of each slot
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
            slot = self.events[event] = self.cache.new_slot()
        row, dataset = len(self._streams), self._num_sets.get(slot, 0)
        if row >= len(self._records):
            room = np.full((max(8, row), self._records.shape[1]), nan)
            self._records = np.concatenate([self._records, room])
        zero = mag if np.isnan(m_base) else m_base
        self._records[row] = slot, dataset, -np.inf, m_base, zero
        self.cache.set_width(slot, dataset, UNKNOWN if np.isnan(m_base) else GIVEN)
        self._num_sets[slot], self._streams[name] = dataset + 1, row
        return row

    def last_time(self, event: str, dataset: str | None = None) -> float | None:
        """Time of the last epoch of an event, of one data set or any [day]; None of a new one."""
        if dataset is not None:
            row = self._streams.get(_joined(event, dataset))
            return None if row is None else float(self._records[row, 2])
        slot = self.events.get(event)
        return None if slot is None else float(self.cache.histories.last[slot])

    def _room_error(self, event: str, name: str) -> str | None:
        """Why no data set of this name is added; None if it can be."""
        if len(name) > MAX_NAME:
            return f"event {quoted(name)}: a name of {len(name)} characters; {MAX_NAME} at most"
        if event not in self.events:
            if len(self.events) >= self.max_events:
                full = f"{len(self.events)} events are kept, no new one is taken"
                return f"event {quoted(event)}: {full}; give a larger --max_events"
        elif self._num_sets[self.events[event]] >= MOST_SETS:
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
        names = [name.encode("utf-8", "surrogatepass") for name in self._streams]
        tensors = self.cache.tensors() | {
            "records": torch.from_numpy(self._records[: len(names)].copy()),
            "names": torch.from_numpy(np.frombuffer(bytearray(b"".join(names)), np.uint8)),
            "name_lengths": torch.tensor([len(name) for name in names], dtype=torch.int64),
        }
        notes = {"version": STATE_VERSION, "lines": self.lines, "events": len(self.events)}
        notes |= {"offsets": self.offsets} if self.offsets else {}
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
        names = [part.decode("utf-8", "surrogatepass") for part in parts]
        self._records = tensors["records"].numpy().copy()
        self._streams = {name: row for row, name in enumerate(names)}
        slots = self._records[:, 0].astype(int).tolist()
        self._num_sets = dict(enumerate(np.bincount(slots).tolist()))
        events = dict(zip((name.partition(SEPARATOR)[0] for name in names), slots, strict=True))
        self.events = dict(sorted(events.items(), key=lambda item: item[1]))
        self.lines, self.offsets = notes["lines"], dict(notes.get("offsets", {}))


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
