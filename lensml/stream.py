"""Same weights, one epoch at a time: the live answer equals the batch answer.

State per event is constant in time: the last few hundred epochs for the features, and for each
block of the network the two tokens of past that its convolution reaches.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lensml.checkpoint import load_network, load_tensors, save_tensors
from lensml.features import HISTORY, Observed, encode, observed_epochs
from lensml.model import PATCH, Network
from lensml.paths import InputError

__all__ = ["Stream", "baseline_from_the_past", "classify_curve", "stream_lines"]

BASELINE_MIN = 20  # epochs before a baseline estimated from the past is believed
BASELINE_MAX = 200  # epochs after which it is kept
STATE_VERSION = 1


def baseline_from_the_past(magnitude: NDArray) -> NDArray[np.float64]:
    """Baseline that epoch k could adopt from epochs <= k alone, shape (n,) [mag].

    The median of what has been seen, frozen after BASELINE_MAX epochs: later brightening cannot
    drag it. Epochs before BASELINE_MIN carry the first believed value (no call is made there).
    """
    magnitude = np.asarray(magnitude, dtype=float)
    base = np.empty(len(magnitude))
    for k in range(min(len(magnitude), BASELINE_MAX)):
        base[k] = np.median(magnitude[: max(k + 1, min(BASELINE_MIN, len(magnitude)))])
    base[BASELINE_MAX:] = base[BASELINE_MAX - 1] if len(magnitude) > BASELINE_MAX else 0.0
    return base


def _finite(value: float) -> bool:
    """Whether a number is finite as a float; an integer of 400 digits is not."""
    try:
        return isfinite(value)
    except OverflowError:
        return False


def _check_curve(time: NDArray, mag: NDArray, mag_err: NDArray) -> None:
    for name, values in (("time", time), ("mag", mag), ("mag_err", mag_err)):
        if values.shape != time.shape or values.ndim != 1:
            raise InputError(f"`{name}` has shape {values.shape}, but {time.shape} was expected")
        if not np.isfinite(values).all():
            raise InputError(f"`{name}` holds values that are not finite; drop those epochs first")
    if (np.diff(time) <= 0).any():
        raise InputError("`time` must increase strictly; sort the epochs and drop repeated times")
    if (mag_err <= 0).any():
        raise InputError("`mag_err` must be positive; drop epochs without an error first")


@torch.no_grad()
def classify_curve(
    time: NDArray,
    mag: NDArray,
    mag_err: NDArray,
    m_base: float | None = None,
    network: Network | None = None,
) -> NDArray[np.float64]:
    """P(binary) at every epoch of one curve, from epochs up to it alone.

    Args:
        time: Epochs, shape (n,), strictly increasing [day].
        mag: Magnitudes, (n,) [mag].
        mag_err: 1-sigma errors, (n,) [mag].
        m_base: Baseline magnitude if it is known; else it is estimated from the past only, and
            P = 0.5 until BASELINE_MIN epochs are there.
        network: The classifier; None = the shipped one.

    Returns:
        P(binary), shape (n,).

    Raises:
        InputError: If epochs do not increase, or values are not finite or errors not positive.
    """
    time, mag, mag_err = (np.asarray(x, dtype=float) for x in (time, mag, mag_err))
    _check_curve(time, mag, mag_err)
    if m_base is not None and not _finite(m_base):
        raise InputError(
            f"`m_base` is {m_base}, but a magnitude was expected; leave it out if unknown"
        )
    if not len(time):
        return np.empty(0)
    network = network or load_network()[0]
    base = baseline_from_the_past(mag) if m_base is None else np.full(len(mag), float(m_base))
    # The difference is taken in float64; only then does float32 suffice.
    observed = observed_epochs((mag - base)[None], mag_err[None], time[None], np.zeros(1))
    p = torch.sigmoid(network(encode(observed)))[0].double().numpy()
    if m_base is None:
        p[: BASELINE_MIN - 1] = 0.5
    return p


@dataclass
class EventState:
    """What the stream remembers of one event."""

    tensors: dict[str, Tensor]  # of the network, by name
    count: int = 0  # epochs seen
    m_base: float | None = None
    first_mags: list[float] = field(default_factory=list)  # to estimate the baseline
    waiting: list[tuple[float, float, float]] = field(default_factory=list)  # before there is one
    history: list[tuple[float, float, float]] = field(default_factory=list)  # time, bright., sigma
    last_time: float = -np.inf


class Stream:
    """Live classification of any number of events, one epoch at a time."""

    def __init__(self, network: Network | None = None) -> None:
        self.network = (network or load_network()[0]).eval()
        self.events: dict[str, EventState] = {}

    @torch.no_grad()
    def update(
        self, event: str, time: float, mag: float, mag_err: float, m_base: float | None = None
    ) -> float:
        """Take one epoch of `event`; P(binary) from everything seen so far.

        Args:
            event: Its name.
            time: Epoch, later than the event's last [day].
            mag, mag_err: Magnitude and its 1-sigma error [mag].
            m_base: Baseline magnitude, with the event's first epoch or not at all.

        Raises:
            InputError: If the epoch does not follow the last one or a value is unusable; the
                state is left unchanged.
        """
        state = self.events.get(event)
        self._check(state, event, time, mag, mag_err, m_base)
        if state is None:
            state = self.events[event] = EventState(self._blank(), m_base=m_base)
        state.last_time = time
        if state.m_base is not None:
            return self._advance(state, time, state.m_base - mag, mag_err)
        if len(state.first_mags) < BASELINE_MAX:
            state.first_mags.append(mag)
        base = float(np.median(state.first_mags))
        if len(state.first_mags) < BASELINE_MIN:
            state.waiting.append((time, mag, mag_err))
            return 0.5
        for epoch, earlier, error in state.waiting:
            self._advance(state, epoch, base - earlier, error)
        state.waiting = []
        return self._advance(state, time, base - mag, mag_err)

    def _check(self, state, event, time, mag, mag_err, m_base) -> None:
        for name, value in (("time", time), ("mag", mag), ("mag_err", mag_err), ("m_base", m_base)):
            if name == "m_base" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not _finite(value):
                raise InputError(f"event {event}: `{name}` is {value!r}, a number was expected")
        if mag_err <= 0:
            raise InputError(f"event {event}: `mag_err` is {mag_err:g}, it must be positive")
        if state is None:
            return
        if time <= state.last_time:
            raise InputError(
                f"event {event}: time {time:.6f} does not follow {state.last_time:.6f}; "
                "epochs must come in order, each once"
            )
        if m_base is not None and m_base != state.m_base:
            raise InputError(
                f"event {event}: `m_base` is {m_base:g} but was "
                f"{'not given' if state.m_base is None else format(state.m_base, 'g')} "
                "with the first epoch; it cannot change"
            )

    def _blank(self) -> dict[str, Tensor]:
        config, tensors = self.network.config, {}
        for k, block in enumerate(self.network.stem):
            tensors[f"stem{k}"] = torch.zeros(1, block.past, config.stem_channels)
        tensors["context"] = torch.zeros(1, 1, config.channels)
        for level in range(config.num_levels):
            width = config.stem_channels if level == 0 else config.channels
            tensors[f"pending{level}"] = torch.zeros(1, 0, width)
            tensors[f"coarse{level}"] = torch.zeros(1, 1, config.channels)
            for way in ("down", "up"):
                for k, block in enumerate(getattr(self.network, way)[level]):
                    tensors[f"{way}{level}.{k}"] = torch.zeros(1, block.past, config.channels)
        return tensors

    def _advance(self, state: EventState, time: float, brightening: float, sigma: float) -> float:
        state.history.append((time, brightening, sigma))
        del state.history[:-HISTORY]
        state.count += 1
        epochs = torch.tensor(state.history, dtype=torch.float64).T[:, None]
        observed = Observed(
            epochs[1].float(),
            epochs[2].float(),
            epochs[0],
            torch.ones_like(epochs[0], dtype=torch.bool),
            torch.empty(0),
        )
        network, tensors = self.network, state.tensors
        x = network.embed(encode(observed)[:, -1:])
        for k, block in enumerate(network.stem):
            x = self._block(tensors, f"stem{k}", block, x)
        if (token := self._join(tensors, 0, x)) is not None:
            tensors["context"] = self._level(tensors, 0, token)
        logit = network.head(torch.cat([x, tensors["context"]], dim=2))
        return float(torch.sigmoid(logit))

    @staticmethod
    def _block(tensors: dict[str, Tensor], name: str, block, x: Tensor) -> Tensor:
        window = torch.cat([tensors[name], block.norm(x)], dim=1)
        tensors[name] = window[:, 1:]
        return x + block.step(x, window)

    def _join(self, tensors: dict[str, Tensor], level: int, x: Tensor) -> Tensor | None:
        """Collect tokens until a group is complete; the merged token then, else None."""
        pending = torch.cat([tensors[f"pending{level}"], x], dim=1)
        complete = pending.shape[1] == (PATCH if level == 0 else 2)
        tensors[f"pending{level}"] = pending[:, :0] if complete else pending
        return self.network.merge[level](pending.flatten(1)[:, None]) if complete else None

    def _level(self, tensors: dict[str, Tensor], level: int, x: Tensor) -> Tensor:
        """Down, through the coarser level when it has a new token, and up again."""
        for k, block in enumerate(self.network.down[level]):
            x = self._block(tensors, f"down{level}.{k}", block, x)
        if level + 1 < len(self.network.down):
            if (token := self._join(tensors, level + 1, x)) is not None:
                above = self._level(tensors, level + 1, token)
                tensors[f"coarse{level}"] = self.network.lift[level](above)
            x = x + tensors[f"coarse{level}"]
        for k, block in enumerate(self.network.up[level]):
            x = self._block(tensors, f"up{level}.{k}", block, x)
        return x

    def save(self, path: Path) -> None:
        """Snapshot of all events, atomically."""
        tensors, notes = {}, []
        for i, (name, s) in enumerate(self.events.items()):
            tensors |= {f"{i}/{key}": value for key, value in s.tensors.items()}
            for key in ("history", "waiting", "first_mags"):
                width = 1 if key == "first_mags" else 3
                values = torch.tensor(getattr(s, key), dtype=torch.float64)
                tensors[f"{i}/{key}"] = values.reshape(-1, width)
            notes.append([name, s.count, s.m_base, s.last_time])
        save_tensors(path, tensors, {"version": STATE_VERSION, "events": notes})

    def restore(self, path: Path) -> None:
        """Take up a snapshot of `save`; the answers go on as if nothing had happened."""
        tensors, notes = load_tensors(path)
        if notes.get("version") != STATE_VERSION:
            raise InputError(f"{path}: not a state of this version; start without --state")
        for i, (name, count, m_base, last_time) in enumerate(notes["events"]):
            own = {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{i}/")}
            lists = {k: own.pop(k).tolist() for k in ("history", "waiting", "first_mags")}
            if own.keys() != (blank := self._blank()).keys() or any(
                own[k].shape[2:] != blank[k].shape[2:] for k in blank
            ):
                raise InputError(f"{path}: the state of another network; start without --state")
            state = EventState(own, count=count, m_base=m_base, last_time=last_time)
            state.history = [tuple(row) for row in lists["history"]]
            state.waiting = [tuple(row) for row in lists["waiting"]]
            state.first_mags = [row[0] for row in lists["first_mags"]]
            self.events[name] = state


def stream_lines(stream: Stream, lines: Iterable[str]) -> Iterator[tuple[dict, str | None]]:
    """Answer newline-delimited JSON: `(answer, None)`, or `(answer, problem)` for a bad line.

    A bad line changes nothing; its answer names the event, if it has one, and the problem.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        event = None
        try:
            epoch = json.loads(line)
            if not isinstance(epoch, dict):
                raise InputError(f"{type(epoch).__name__} came, a JSON object was expected")
            event = epoch.get("event")
            missing = [k for k in ("event", "time", "mag", "mag_err") if k not in epoch]
            if missing:
                raise InputError(
                    f"{', '.join(missing)} missing; an epoch has event, time, mag, mag_err"
                )
            given = (epoch["time"], epoch["mag"], epoch["mag_err"], epoch.get("m_base"))
            p = stream.update(str(event), *given)
            yield {"event": event, "time": epoch["time"], "p_binary": p}, None
        except (InputError, json.JSONDecodeError, RecursionError) as error:
            problem = f"line {number}: {error}"
            yield {"event": event, "error": problem}, problem
