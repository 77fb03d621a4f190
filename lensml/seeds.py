"""Independent random streams from one seed, by (seed, set, index) of an event."""

import zlib

import numpy as np

from lensml.paths import InputError


def _words(seed: int, *names: str | int) -> list[int]:
    return [seed, *(zlib.crc32(n.encode()) if isinstance(n, str) else n for n in names)]


def check_seed(seed: int) -> int:
    """Reject what NumPy's `SeedSequence` cannot take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"`seed` is {seed!r}, but an integer from 0 to 2**63 - 1 was expected")
    return seed


def event_generator(
    seed: int, preset: str, event: int, stream: str = "event"
) -> np.random.Generator:
    """Generator of one event's own stream, independent of every other event, set and stream.

    `SeedSequence` hashes all words together, so (seed, event) = (1, 0) and (0, 1) share nothing;
    `seed + event` would.
    """
    return np.random.default_rng(np.random.SeedSequence(_words(seed, preset, event, stream)))


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for generators that take one number, such as torch's."""
    state = np.random.SeedSequence(_words(seed, *names)).generate_state(1, np.uint64)
    return int(state[0] >> 1)
