"""Sets for training: noise-free curves in pairs, split by pair, and samples of them.

Axes: P pairs, 2 P rows (single lens, then binary or contaminant), T epochs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lensml.network import PLANETARY_Q, DataSetEpochs
from lensml.paths import InputError, progress_bar
from lensml.simulation import (
    LightCurves,
    Survey,
    draw_numpy,
    iterate,
    large_array,
    noise_free_delta_mag,
    num_rows,
    observe,
    survey_of,
)
from lensml.training.samples import Observation, Samples, cut_samples, joined, log_ratio_terms

UNKNOWN_MASS = 9  # in place of a class: a binary of unknown q


class Pairs(NamedTuple):
    """P pairs of a set, all that a worker needs of them."""

    values: NDArray  # (P, 2, T) float32 magnitude less baseline: noise-free, or with gaps (NaN)
    sigma: NDArray | None  # (P, 2, T) float32 of what was observed [mag]; None = noise-free
    second: NDArray  # (P,) uint8 class of the second row; 0 = a contaminant, in the loss alone
    blended: NDArray  # (P,) bool, whether f_s is free in their fits
    begins: NDArray  # (P,) when the event begins [day]

    def some(self, chosen: NDArray | slice) -> "Pairs":
        """Some of the pairs."""
        return Pairs(*(x if x is None else np.asarray(x[chosen]) for x in self))


@dataclass
class TrainingData:
    """All pairs of the sets, and which of them are trained and validated on."""

    pairs: Pairs
    time: NDArray  # (T,) float64 [day]
    survey: Survey  # how the first set was observed
    train_pairs: NDArray  # places of pairs, not events
    validation_pairs: NDArray
    trained_on: list[dict]  # {"preset", "seed", "first", "stop"}
    validated_on: list[dict]

    @property
    def class_fractions(self) -> tuple[float, ...]:
        """Fractions of the network's classes: half single lenses, the binaries by their q."""
        known = self.pairs.second[np.isin(self.pairs.second, (1, 2))]
        planetary = float((known == 1).mean()) if len(known) else 0.5
        planetary = min(max(planetary, 0.01), 0.99)
        return (0.5, 0.5 * planetary, 0.5 * (1 - planetary), 0.0, 0.0)


def _in_pairs(shard: LightCurves, path: Path) -> LightCurves:
    """Rows ordered single, binary, single, binary, ... whatever their order in the file."""
    key = np.where(shard.pair >= 0, shard.pair, np.arange(len(shard)) // 2)
    order = np.lexsort((shard.y, key))
    paired = shard.y[order].reshape(-1, 2) if len(shard) % 2 == 0 else np.empty((1, 2))
    if not ((paired == [0, 1]).all() or (paired == 0).all()):
        raise InputError(
            f"{path}: every binary needs one single lens beside it (equal `pair`, or rows in turn)"
        )
    return shard if (order == np.arange(len(shard))).all() else shard.rows(order)


def _ranges(preset: str, seed: int, events: NDArray) -> list[dict]:
    """Events as ranges [first, stop)."""
    if not events.size:
        return []
    breaks = np.flatnonzero(np.diff(events) != 1) + 1
    return [
        {"preset": preset, "seed": seed, "first": int(run[0]), "stop": int(run[-1]) + 1}
        for run in np.split(events, breaks)
    ]


def load_training_data(paths: list[Path], validation_fraction: float) -> TrainingData:
    """Load sets for training; the last events of each set are kept for validation.

    A set without any binary holds contaminants, each after the single lens that fits it best: only
    the contaminants enter the loss, with label 0, and none is kept for validation. All rows take 4
    bytes an epoch (8 without magnifications), in memory or, above 2 GB, in a nameless file
    of the system's folder for such; and one shard. InputError if sets do not share their
    epochs or are not made of pairs, or that folder has no room.
    """
    sizes = [num_rows(p) for p in paths]
    total, num_epochs = sum(n for n, _ in sizes) // 2, sizes[0][1]
    if any(t != num_epochs for _, t in sizes):
        raise InputError(f"{paths}: all sets need the same epochs, but hold {sizes}")
    pairs = Pairs(
        large_array((total, 2, num_epochs)),
        None,
        np.empty(total, dtype=np.uint8),
        np.zeros(total, dtype=bool),
        np.empty(total),
    )
    time, survey = None, None
    train, validation, trained_on, validated_on = [], [], [], []
    place, bar = 0, progress_bar(None, "read", total=total, unit="pair")
    for path, (rows, _) in zip(paths, sizes, strict=True):
        held_back = rows // 2 - max(1, round(rows // 2 * validation_fraction))
        begun = place
        for shard in iterate(path):
            shard = _in_pairs(shard, path)
            here = slice(place, place + len(shard) // 2)
            clean = shard.magnification is not None
            if time is None:
                time, survey = shard.time, survey_of(shard.meta)
                if not clean:
                    pairs = pairs._replace(sigma=large_array(pairs.values.shape))
            if shard.time.shape != time.shape or clean != (pairs.sigma is None):
                raise InputError(f"{path}: does not fit the set before it (epochs, magnification)")
            pairs.values[here] = _values(shard).reshape(-1, 2, num_epochs)
            if pairs.sigma is not None:
                pairs.sigma[here] = shard.sigmas().reshape(-1, 2, num_epochs)
            pairs.blended[here] = shard.blended
            pairs.second[here] = _second_class(shard)
            t0, tE = (shard.param(name)[1::2] for name in ("t0", "tE"))
            pairs.begins[here] = np.nan_to_num(t0 - 2 * tE, nan=-np.inf)
            places = np.arange(here.start, here.stop)
            late = (places - begun >= held_back) & bool(shard.y.any())
            train.append(places[~late])
            validation.append(places[late])
            preset, seed, events = shard.events()
            if len(events) == len(places):
                trained_on += _ranges(preset, seed, events[~late])
                validated_on += _ranges(preset, seed, events[late])
            place = here.stop
            bar.update(len(places))
    bar.close()
    if time.ndim != 1:
        raise InputError(f"{paths[0]}: training needs one grid of epochs, shape (T,), for all rows")
    train, validation = np.concatenate(train), np.concatenate(validation)
    return TrainingData(pairs, time, survey, train, validation, trained_on, validated_on)


def _values(shard: LightCurves) -> NDArray:
    if shard.magnification is None:
        return shard.X - shard.m_base[:, None]
    f_s = torch.from_numpy(np.nan_to_num(shard.param("f_s"), nan=1.0)).float()
    return noise_free_delta_mag(torch.from_numpy(shard.magnification), f_s).numpy()


def _second_class(shard: LightCurves) -> NDArray:
    q = shard.param("q")[1::2]
    binary = np.where(np.isnan(q), UNKNOWN_MASS, np.where(q < PLANETARY_Q, 1, 2))
    return np.where(shard.y[1::2] > 0, binary, 0)


def pair_samples(
    pairs: Pairs,
    time: NDArray,
    survey: Survey,
    seeds: list[int],
    per_curve: int,
    hide_blending: float = 0.0,
    last: bool = False,
) -> Samples:
    """Samples of pairs under noise of `seeds` (P,), `per_curve` a row that counts.

    Noise-free pairs are observed by `survey`; others are as they were. Targets are probabilities of
    who knows both curves, where these and the errors are known, and labels elsewhere. Unblended
    pairs are fitted with f_s free in a fraction `hide_blending`. With `last` the last sample of
    each row is of its last epoch.
    """
    found = []
    for k, seed in enumerate(seeds):
        generator = np.random.default_rng(seed)
        values, second = pairs.values[k], int(pairs.second[k])
        if pairs.sigma is None:
            draws = draw_numpy([generator], len(time))
            clean = torch.from_numpy(values)
            delta, sigma, seen = observe(clean, draws, survey, torch.from_numpy(time))
            delta, sigma, seen = delta.numpy(), sigma.numpy(), seen.numpy()
        else:
            delta, sigma, seen = values, pairs.sigma[k], np.isfinite(values)
        soft = pairs.sigma is None and survey.exact and not survey.photon_noise and second > 0
        hidden = generator.random() < hide_blending
        free = bool(pairs.blended[k]) or hidden or not survey.exact
        for row in (0, 1) if second else (1,):
            on = np.flatnonzero(seen[row])
            mag, noise = delta[row, on].astype(float), sigma[row, on].astype(float)
            data = DataSetEpochs(time[on], mag, noise, 0.0, survey.exact)
            ratio = (
                log_ratio_terms(mag, *values[:, on], noise, noise) if soft else np.zeros(len(on))
            )
            seen_so = Observation([data], free, time[on], np.cumsum(ratio), pairs.begins[k])
            binary = 2 if second == UNKNOWN_MASS else second
            label = binary if row else 0
            samples = cut_samples(
                seen_so, label, binary if soft else 0, per_curve, generator, last=last
            )
            if samples is not None and second == UNKNOWN_MASS:
                samples.targets[:, 1:3] = samples.targets[:, 1:3].sum(1, keepdims=True) / 2
            found.append(samples)
    if not any(x is not None for x in found):
        raise InputError(
            "no row of these pairs has as many epochs as a first refit needs, 8; "
            "give sets with more observed epochs"
        )
    return joined(found)
