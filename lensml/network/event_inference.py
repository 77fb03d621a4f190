"""Classes of events and of sets at every epoch, from all data sets of an event together."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lensml.network.event_model import CLASSES, EventNetwork
from lensml.network.joint_inputs import (
    DataSetEpochs,
    JointEpochs,
    JointInputs,
    event_inputs,
    joint_epochs,
)
from lensml.network.residual_maps import one_thread
from lensml.paths import InputError
from lensml.simulation import LightCurves


@dataclass(frozen=True)
class EventPrediction:
    """An event in order of time: N epochs of K data sets, J refits."""

    times: NDArray  # (N,) [day]
    dataset: NDArray  # (N,) int64, which data set an epoch is of
    logits: torch.Tensor  # (N, 5) of CLASSES; NaN before the first refit
    joint: JointEpochs
    inputs: JointInputs


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


@torch.no_grad()
def event_logits(network: EventNetwork, inputs: JointInputs) -> torch.Tensor:
    """Logits (N, 5) at every epoch of an event; before the first refit they mean nothing."""
    device = next(network.parameters()).device
    maps, summaries, states = (torch.from_numpy(x).to(device) for x in inputs[1:4])
    temporal = network.at_every_epoch(torch.from_numpy(inputs.epochs).to(device))
    if not len(maps):
        return temporal.new_zeros(len(temporal), len(CLASSES))
    embedding = network.embed_refits(maps, summaries, states)
    active = torch.from_numpy(np.maximum(inputs.active, 0)).to(device)
    counts = torch.from_numpy(inputs.counts).to(device)
    held = torch.arange(1, len(active) + 1, device=device) - counts[active]
    return network.join(temporal, embedding[active], held.clamp_(0, 255))


@one_thread()
def predict_event(
    network: EventNetwork, datasets: Sequence[DataSetEpochs], free: bool = True
) -> EventPrediction:
    """Classes at every epoch of all data sets together, from the epochs up to it alone.

    InputError if there is no epoch, or one that no observer could have recorded.
    """
    _check(datasets)
    joint = joint_epochs(datasets)
    inputs = event_inputs(joint, free)
    logits = event_logits(network, inputs).cpu()
    logits[torch.from_numpy(inputs.active < 0)] = torch.nan
    return EventPrediction(joint.times[joint.place], joint.owner, logits, joint, inputs)


def predict_events(
    network: EventNetwork, curves: LightCurves, *, progress: bool = False
) -> NDArray[np.float32]:
    """P(binary) of two classes (n, T) at every epoch of a set; NaN where not observed.

    Baselines and errors of a set are exact; f_s is free where the set is blended.
    """
    times, sigmas = curves.times(), curves.sigmas()
    blended = np.broadcast_to(np.asarray(curves.blended), len(curves))
    result = np.full(curves.X.shape, np.nan, dtype=np.float32)

    def classify_row(row: int) -> None:
        on = np.flatnonzero(np.isfinite(curves.X[row]))
        if len(on):
            mag, base = curves.X[row, on].astype(float), float(curves.m_base[row])
            data = DataSetEpochs(times[row, on], mag, sigmas[row, on], base, True)
            found = predict_event(network, [data], bool(blended[row]))
            result[row, on] = network.binary_of_two(found.logits).nan_to_num(0.5)

    with one_thread() as threads, ThreadPoolExecutor(threads) as pool:
        rows = range(len(curves))
        list(tqdm(pool.map(classify_row, rows), "classify", len(rows), disable=not progress))
    return result
