"""P(binary) and classes at every epoch, of events and of sets, from all epochs at once.

What belongs to epoch k depends on epochs <= k only; `streaming` gives the same probabilities one
epoch at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lensml.network.batched import batch_logits, kernels_agree, pack_rows, without_tf32
from lensml.network.checkpoint import load_network
from lensml.network.inputs import (
    GIVEN,
    MOST_EPOCHS,
    DataSetEpochs,
    JointEpochs,
    JointInputs,
    event_inputs,
    input_blocks,
    joint_epochs,
    refit_counts,
)
from lensml.network.model import CLASSES, RECEPTIVE_FIELD, Network
from lensml.network.residuals import NUM_INPUTS
from lensml.paths import InputError, progress_bar
from lensml.simulation import FRACTIONS, LightCurves, until_fraction

PHASE_EDGES = np.linspace(-3, 3, 25)  # (t - t0) / tE
EVENT_BLOCK = 8192  # epochs of an event whose inputs are held at a time
SET_CHUNK = 4096  # rows whose probabilities at every epoch are held at a time
ROWS_ON_GPU = 1024  # that are fitted together
SEASON_ROWS = 10_000  # rows whose probabilities at every epoch are kept, for alerts


def find_device() -> torch.device:
    """CUDA or ROCm where there is one (both answer to `cuda`), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_supported(device: torch.device) -> bool:
    """Whether bfloat16 is computed, not emulated, on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


@contextmanager
def one_thread() -> Iterator[int]:
    """Keep torch to one thread and yield how many it had: operations this small gain nothing.

    On a busy machine two threads that waited for each other took a hundred times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def is_finite(value: float) -> bool:
    """Whether a number is finite as a float; an integer of 400 digits is not."""
    try:
        return isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class EventPrediction:
    """An event in order of time: N epochs of K data sets, J refits."""

    times: NDArray  # (N,) [day]
    dataset: NDArray  # (N,) int64, which data set an epoch is of
    logits: torch.Tensor  # (N, 5) of CLASSES; NaN before the first refit
    joint: JointEpochs
    inputs: JointInputs  # epochs and maps of the last EVENT_BLOCK alone


def _check(datasets: Sequence[DataSetEpochs]) -> None:
    """InputError by the name of what is wrong."""
    if not any(len(one.times) for one in datasets):
        raise InputError("no data set has an epoch; at least one was expected")
    for k, one in enumerate(datasets):
        shape = np.shape(one.times)
        for name, values in zip(("times", "mag", "sigma"), one[:3], strict=True):
            what = f"`{name}` of data set {k}"
            if np.shape(values) != shape or len(shape) != 1:
                expected = shape if len(shape) == 1 else "(n,)"
                raise InputError(
                    f"{what} has shape {np.shape(values)}, but {expected} was expected"
                )
            if not np.isfinite(values).all():
                raise InputError(f"{what} holds values that are not finite; drop those epochs")
        if (np.diff(one.times) < 0).any():
            raise InputError(f"`times` of data set {k} must not decrease; sort its epochs first")
        if (np.asarray(one.sigma) <= 0).any():
            raise InputError(f"`sigma` of data set {k} must be positive; drop the other epochs")
        if one.m_base is not None and not np.isfinite(one.m_base):
            raise InputError(f"`m_base` of data set {k} is {one.m_base}; leave it out if unknown")


@one_thread()
@torch.no_grad()
@without_tf32()
def predict_event(
    network: Network, datasets: Sequence[DataSetEpochs], free: bool = True
) -> EventPrediction:
    """Classes at every epoch of all data sets together, from the epochs up to it alone.

    InputError if there is no epoch, or one that no observer could have recorded.
    """
    _check(datasets)
    joint, device = joint_epochs(datasets), next(network.parameters()).device
    past = torch.zeros(0, NUM_INPUTS, device=device)
    embedding = past.new_zeros(1, network.embedding_size)
    logits = torch.empty(len(joint.owner), len(CLASSES))  # pieces would fragment the heap
    for rows, refits, inputs in input_blocks(joint, free, None, EVENT_BLOCK):
        active = inputs.active[rows]
        held = np.arange(rows.start, rows.stop) + 1 - np.append(inputs.counts, 0)[active]
        maps = inputs.maps, inputs.summaries[refits], inputs.states[refits]
        arrays = inputs.epochs, active - refits.start + 1, held.clip(0, 255), *maps
        epochs, place, held, *maps = (torch.from_numpy(x).to(device) for x in arrays)
        epochs = torch.cat([past, epochs])
        temporal = network.at_every_epoch(epochs)[len(past) :]
        past = epochs[1 - RECEPTIVE_FIELD :]
        # The refit in force before the block comes first.
        embedding = torch.cat([embedding[-1:], network.embed_refits(*maps)])
        logits[rows] = network.join(temporal, embedding[place], held)
    logits[torch.from_numpy(inputs.active < 0)] = torch.nan
    return EventPrediction(joint.times[joint.place], joint.owner, logits, joint, inputs)


def _per_row(work: Callable[[int], None], rows: int, progress: bool) -> None:
    """`work` of every row on all threads, each of which computes alone."""
    with one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        with progress_bar(None, "classify", total=rows, disable=not progress) as bar:
            for _ in pool.map(work, range(rows)):
                bar.update()


def _as_event(curves: LightCurves, row: int) -> tuple[NDArray, DataSetEpochs]:
    """Places of the observed epochs of a row, and its data set."""
    on = np.flatnonzero(np.isfinite(curves.X[row]))
    mag, sigma = curves.X[row, on].astype(float), curves.sigmas()[row, on]
    base = float(curves.m_base[row])
    return on, DataSetEpochs(curves.times()[row, on], mag, sigma, base, curves.exact)


def predict_proba(
    network: Network, curves: LightCurves, *, device: str | torch.device | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:  # fmt: skip
    """P(binary) of two classes (n, T) at every epoch of a set; NaN where not observed.

    Entry k depends on epochs <= k only; 0.5 before the first refit. f_s is free where the set is
    blended or its baselines are not exact. `device` None = the network's own.
    """
    network = (network if device is None else network.to(device)).eval()
    device = next(network.parameters()).device
    if curves.X.shape[1] <= MOST_EPOCHS and kernels_agree(device):
        return predict_by_kernels(network, curves, progress=progress)
    free = curves.blended or not curves.exact
    result = np.full(curves.X.shape, np.nan, dtype=np.float32)

    def classify_row(row: int) -> None:
        on, data = _as_event(curves, row)
        if len(on):
            found = predict_event(network, [data], free)
            result[row, on] = network.binary_of_two(found.logits).nan_to_num(0.5)

    _per_row(classify_row, len(curves), progress)
    return result


def predict_at_fractions(
    network: Network, curves: LightCurves, fractions: Sequence[float] = (1.0,), *,
    progress: bool = False,
) -> NDArray[np.float32]:  # fmt: skip
    """P(binary) (n, F) at fractions of the window, as `at_fractions` of `predict_proba`.

    Several times as fast on a CPU where they are few: maps, and the network, of these epochs alone.
    """
    network, device = network.eval(), next(network.parameters()).device
    free = curves.blended or not curves.exact
    result = np.full((len(curves), len(fractions)), 0.5, dtype=np.float32)
    if device.type != "cpu":
        for first in range(0, len(curves), SET_CHUNK):
            some = curves.rows(slice(first, first + SET_CHUNK))
            p = predict_proba(network, some, progress=progress)
            result[first : first + SET_CHUNK] = at_fractions(p, some.times(), fractions)
        return result

    @torch.no_grad()
    def classify_row(row: int) -> None:
        on, data = _as_event(curves, row)
        times = curves.times()[row]
        seen = np.array([until_fraction(times, x)[on].sum() for x in fractions])  # epochs by then
        counts = refit_counts(int(seen.max(initial=0)))
        active = np.searchsorted(counts, seen, side="right") - 1
        known = active >= 0
        if not known.any():
            return
        active, stop = active[known], int(seen.max())
        wanted = np.zeros(len(counts), dtype=bool)
        wanted[active] = True
        inputs = event_inputs(joint_epochs([data]), free, wanted, stop)
        padded = np.pad(inputs.epochs, ((RECEPTIVE_FIELD - 1, 0), (0, 0)))
        windows = padded[seen[known][:, None] + np.arange(-1, RECEPTIVE_FIELD - 1)]
        refits = (torch.from_numpy(x[active]) for x in inputs[1:4])
        held = torch.from_numpy(np.minimum(seen[known] - counts[active], 255))
        logits = network(torch.from_numpy(windows), *refits, held)
        result[row, known] = network.binary_of_two(logits)

    _per_row(classify_row, len(curves), progress)
    return result


def predict_by_kernels(
    network: Network, curves: LightCurves, *, progress: bool = False
) -> NDArray[np.float32]:
    """`predict_proba` of many rows at once where the network lies, fits in float64."""
    device, exact = next(network.parameters()).device, curves.exact
    free = torch.full((ROWS_ON_GPU,), curves.blended or not exact, device=device)
    result = np.full(curves.X.shape, np.nan, dtype=np.float32)
    steps = range(0, len(curves), ROWS_ON_GPU)
    for first in progress_bar(steps, "classify", disable=not progress):
        rows = slice(first, first + ROWS_ON_GPU)
        mag, base, sigma, times = (
            torch.as_tensor(np.array(x[rows]), device=device).double()
            for x in (curves.X, curves.m_base, curves.sigmas(), curves.times())
        )
        seen = mag.isfinite()
        if not seen.any():
            continue
        bright, width = base[:, None] - mag, 0.0 if exact else GIVEN
        events = pack_rows(times, bright, sigma, seen, free[: len(mag)], width, torch.float64)
        logits, begun = batch_logits(network, events)
        p = torch.where(begun, network.binary_of_two(logits), 0.5)
        inside = torch.arange(p.shape[1], device=device) < events.total[:, None]
        part = result[rows]
        part[seen.cpu().numpy()] = p[inside].float().cpu().numpy()
    return result


def classify(
    time: NDArray,
    mag: NDArray,
    mag_err: NDArray,
    m_base: float | None = None,
    network: Network | None = None,
    *,
    blended: bool = True,
    exact: bool = False,
) -> NDArray[np.float64]:
    """P(binary) of two classes (n,) at every epoch of one curve, from epochs up to it alone.

    `time` increases [day], `mag` and `mag_err` [mag]. A given `m_base` holds to `GIVEN`, or with
    `exact` as the errors do, as on the thesis' grid; without, the fits find it. P = 0.5 before the
    first refit. `network` None = the shipped one; `blended` False = all flux is lensed. InputError
    if epochs do not increase, values are not finite or errors not positive.
    """
    time, mag, mag_err = (np.asarray(x, dtype=float) for x in (time, mag, mag_err))
    if not len(time):
        return np.empty(0)
    if m_base is not None and not is_finite(m_base):
        raise InputError(
            f"`m_base` is {m_base}, but a magnitude was expected; leave it out if unknown"
        )
    network = network or load_network()[0]
    known = exact and m_base is not None
    found = predict_event(network, [DataSetEpochs(time, mag, mag_err, m_base, known)], blended)
    return network.binary_of_two(found.logits).nan_to_num(0.5).double().numpy()


@dataclass(frozen=True)
class Predictions:
    """Probabilities of a network on each row of a set."""

    p: NDArray  # (n, 7) float32, P(binary) at FRACTIONS
    by_phase: NDArray  # (n, K) float32, the last by the end of each bin of PHASE_EDGES
    max_probability: NDArray  # (n,) float32, the highest at any epoch
    season: NDArray  # (m, T) float32, at every epoch of the first m rows


def predict(
    network: Network,
    curves: LightCurves,
    *,
    device: str | torch.device | None = None,
    season_rows: int = SEASON_ROWS,
    progress: bool = False,
) -> Predictions:
    """P(binary) of every row, reduced `SET_CHUNK` rows at a time; else as `predict_proba`.

    Of the first `season_rows` rows the probabilities at every epoch are kept.
    """
    parts = []
    for start in range(0, len(curves), SET_CHUNK):
        rows = curves.rows(slice(start, start + SET_CHUNK))
        times, t0, tE = rows.times(), rows.param("t0"), rows.param("tE")
        p_epochs = predict_proba(network, rows, device=device, progress=progress)
        reduced = at_fractions(p_epochs, times), by_phase(p_epochs, times, t0, tE)
        season = p_epochs[: max(0, season_rows - start)]
        parts.append((*reduced, max_probability(p_epochs), season))
    return Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def last_by(p_epochs: NDArray, epoch: NDArray) -> NDArray:
    """P(binary) at the last observed epoch up to each index `epoch` (n, K); 0.5 if none."""
    index = np.where(np.isfinite(p_epochs), np.arange(p_epochs.shape[1]), -1)
    latest = np.take_along_axis(np.maximum.accumulate(index, axis=1), epoch.clip(0), axis=1)
    found = (epoch >= 0) & (latest >= 0)
    return np.where(found, np.take_along_axis(p_epochs, latest.clip(0), axis=1), 0.5)


def at_fractions(
    p_epochs: NDArray, times: NDArray, fractions: Sequence[float] = FRACTIONS
) -> NDArray:
    """P(binary) at fractions of the window, (n, F): at the last epoch by then, 0.5 if none.

    The window is the grid `times` (n, T) or (T,), not the observed part of it.
    """
    times = np.broadcast_to(times, p_epochs.shape)
    seen = [until_fraction(times, fraction).sum(axis=1) for fraction in fractions]
    return last_by(p_epochs, np.stack(seen, axis=1) - 1).astype(np.float32)


def by_phase(
    p_epochs: NDArray, times: NDArray, t0: ArrayLike, tE: ArrayLike, edges: ArrayLike = PHASE_EDGES
) -> NDArray:
    """P(binary) at the last epoch by the end of each bin of phase (t - t0) / tE, (n, K).

    Bins without an epoch of a row, observed or not, are NaN: the window ended or had not begun.
    """
    times = np.broadcast_to(times, p_epochs.shape)
    phase = (times - np.asarray(t0)[:, None]) / np.asarray(tE)[:, None]
    before = np.stack([(phase < edge).sum(axis=1) for edge in np.asarray(edges)], axis=1)
    # A bin holds an epoch where the number of epochs before its edges differs.
    last = last_by(p_epochs, before[:, 1:] - 1)
    return np.where(np.diff(before, axis=1) > 0, last, np.nan)


def max_probability(p_epochs: NDArray) -> NDArray:
    """Highest P(binary) of each row at any epoch, (n,); 0.5 for a row without observed epoch."""
    peak = np.where(np.isfinite(p_epochs), p_epochs, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(peak), peak, 0.5)
