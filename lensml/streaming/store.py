"""Events that a stream keeps on disk, because more came than memory may hold."""

import json
import os
import tempfile
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from lensml.paths import InputError, writing

UNIT = 48 * 1024  # bytes of a place; most events need one, what they leave is a hole in the file


class EventStore:
    """A file of places of UNIT bytes; `index` says where an event lies.

    A place that the last snapshot refers to is not written again before the next one, so that a
    killed stream finds there what it had. `path` None: a nameless file for this process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._file = path, None
        self.index: dict[str, tuple[float, ...]] = {}  # place, bytes, checksum, last time
        self._end, self._free, self._left = 0, {}, []  # places; free ones by number of units

    def _descriptor(self) -> int:
        if self._file is None:
            mode = "r+b" if self.index else "w+b"
            with writing(self.path or tempfile.gettempdir()):
                self._file = open(self.path, mode) if self.path else tempfile.TemporaryFile()
        return self._file.fileno()

    def put(self, event: str, names: list[str], kept: bytes, last: float) -> None:
        """Keep bytes of an event, whose data sets have `names`."""
        head = json.dumps(names).encode()
        data = len(head).to_bytes(8, "little") + head + kept
        units = -(-len(data) // UNIT)
        free = self._free.get(units)
        at = free.pop() if free else self._end
        self._end = max(self._end, at + units)
        with writing(self.path or tempfile.gettempdir()):
            descriptor = self._descriptor()
            if os.pwrite(descriptor, data, at * UNIT) < len(data):
                raise OSError("no room left on the disk")
        self.index[event] = at, len(data), crc32(data), last

    def take(self, event: str) -> tuple[list[str], memoryview]:
        """Names and bytes of an event that `put` kept, which is given up here."""
        at, size, checksum, _ = map(int, (*self.index[event][:3], 0))
        data = os.pread(self._descriptor(), size, at * UNIT)
        if crc32(data) != checksum:
            raise InputError(f"{self.path}: damaged; move it and the state away, feed all again")
        del self.index[event]
        self._left.append((-(-size // UNIT), at))
        end = 8 + int.from_bytes(data[:8], "little")
        if self.path is None:
            self.settle()
        return json.loads(data[8:end]), memoryview(data)[end:]

    def flush(self) -> None:
        """All is on the disk before a snapshot refers to it."""
        if self._file:
            os.fsync(self._file.fileno())

    def settle(self) -> None:
        """No snapshot refers any more to the places that were left."""
        for units, at in self._left:
            self._free.setdefault(units, []).append(at)
        self._left = []

    def table(self) -> NDArray:
        """The index without its names (events, 4), for a snapshot."""
        return np.array([*self.index.values()], float).reshape(-1, 4)

    def restore(self, names: list[str], table: NDArray) -> None:
        """Take up the index of a snapshot; what lies between its events is free."""
        self.index = dict(zip(names, map(tuple, table.tolist()), strict=True))
        taken = {int(at) + k for at, size, *_ in table for k in range(-int(-size // UNIT))}
        self._end = max(taken, default=-1) + 1
        self._free = {1: sorted(set(range(self._end)) - taken)}
        if self.index and (self.path is None or not self.path.is_file()):
            raise InputError(f"{self.path}: the events that left memory are missing there")
