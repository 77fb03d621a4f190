"""Training samples: an epoch of an event, its inputs, and what an observer believes there.

A sample is an epoch with its window of inputs and the map and summary of its refit. The target is
what an observer believes who knows both curves of the pair and all systematics: P(binary | data so
far). Its mean, given what the network sees, is the probability wanted, with less scatter than a
label.

Axes: S samples, N epochs of an event.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lensml.network import (
    CLASSES,
    RECEPTIVE_FIELD,
    STEP,
    DataSetEpochs,
    event_inputs,
    joint_epochs,
    refit_counts,
)

LATE = 0.75  # samples that come after the event has begun, t0 - 2 tE


class Samples(NamedTuple):
    """S samples."""

    windows: NDArray  # (S, W, NUM_INPUTS) float16
    maps: NDArray  # (S, NUM_CHANNELS, PHASE_BINS) float16
    summaries: NDArray  # (S, NUM_SUMMARY) float16
    states: NDArray  # (S, NUM_STATE) float16
    held: NDArray  # (S,) uint8, epochs after the refit
    targets: NDArray  # (S, 5) float32
    labels: NDArray  # (S,) uint8, the class of the event
    exact: NDArray  # (S,) bool, of the grid with exact baselines and errors


class Observation(NamedTuple):
    """One event as observed, and what an observer who knows both curves of its pair believes."""

    datasets: list[DataSetEpochs]
    free: bool  # whether f_s is free in its fits
    times: NDArray  # (N,) sorted [day]
    ratio: NDArray  # (N,) ln L(second curve) - ln L(first) of the epochs so far
    begins: float  # when the event begins [day]


def log_ratio_terms(
    mag: NDArray, one: NDArray, two: NDArray, noise1: NDArray, noise2: NDArray
) -> NDArray:
    """ln L(two) - ln L(one) of each epoch."""
    r1, r2 = (mag - one) / noise1, (mag - two) / noise2
    return (r1 * r1 - r2 * r2) / 2 + np.log(noise1 / noise2)


def cut_samples(
    observation: Observation,
    label: int,
    of_pair: int,
    count: int,
    generator: np.random.Generator,
    *,
    last: bool = False,
) -> Samples | None:
    """`count` samples of an event of class `label`, whose pair's second curve is `of_pair`.

    With `of_pair` 0 the target is the label. Epochs are drawn with replacement, LATE of them after
    the event has begun; with `last` the last sample is of the last epoch. None if the event has
    fewer epochs than its first refit.
    """
    counts = refit_counts(total := len(observation.times))
    if not len(counts):
        return None
    joint = joint_epochs(observation.datasets)
    first = min(int(np.searchsorted(observation.times, observation.begins)), total - 1)
    low = np.where(generator.random(count) < LATE, max(first, STEP - 1), STEP - 1)
    epoch = (low + generator.random(count) * (total - low)).astype(int)
    if last:
        epoch[-1] = total - 1
    active = np.searchsorted(counts, epoch + 1, side="right") - 1
    wanted = np.zeros(len(counts), dtype=bool)
    wanted[active] = True
    # Refits after the last sample are not made.
    stop = int(epoch.max()) + 1
    inputs = event_inputs(joint, observation.free, wanted, stop)
    padded = np.pad(inputs.epochs[:stop], ((RECEPTIVE_FIELD - 1, 0), (0, 0)))
    windows = padded[epoch[:, None] + np.arange(RECEPTIVE_FIELD)]
    targets = np.zeros((count, len(CLASSES)), dtype=np.float32)
    if of_pair:
        second = 1 / (1 + np.exp(-np.clip(observation.ratio[epoch], -60, 60)))
        targets[:, 0], targets[:, of_pair] = 1 - second, second
    else:
        targets[:, label] = 1
    half = [x[active].astype(np.float16) for x in inputs[1:4]]
    held = np.minimum(epoch + 1 - counts[active], 255).astype(np.uint8)
    labels = np.full(count, label, dtype=np.uint8)
    exact = np.full(count, all(d.exact for d in observation.datasets))
    return Samples(windows.astype(np.float16), *half, held, targets, labels, exact)


def joined(found: list[Samples | None]) -> Samples:
    """Samples of several events behind one another."""
    kept = [x for x in found if x is not None]
    return Samples(*(np.concatenate(column) for column in zip(*kept, strict=True)))
