"""Training data on the device: noise-free curves, loaded shard by shard, split by pair."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lensml.paths import InputError
from lensml.simulation import LightCurves, Survey, iterate, noise_free_delta_mag, num_rows


@dataclass
class TrainingData:
    """P pairs as 2 P rows (single lens, binary) on T epochs, all on one device."""

    labels: Tensor  # (2 P,) float32; NaN = a row outside the loss
    time: Tensor  # (T,) float64 [day]
    survey: Survey  # how the first set was observed
    train_pairs: np.ndarray  # places of pairs, not events
    validation_pairs: np.ndarray
    trained_on: list[dict]  # {"preset", "seed", "first", "stop"}
    validated_on: list[dict]
    blended: Tensor  # (2 P,) bool: whether f_s is free in the row's refits
    clean: Tensor | None = None  # (2 P, T) float32, noise-free magnitude minus baseline
    observed: tuple[Tensor, Tensor] | None = None  # delta_mag (NaN = gap) and sigma, (2 P, T)

    def curriculum_order(self) -> np.ndarray:
        """Training pairs (P_train,) by falling distance of their noise-free curves, if any."""
        if self.clean is None:
            return self.train_pairs
        apart = torch.cat(
            [(chunk[1::2] - chunk[::2]).square().sum(1) for chunk in self.clean.split(4096)]
        )
        return self.train_pairs[np.argsort(-apart.cpu().numpy()[self.train_pairs], kind="stable")]


def survey_of(meta: dict) -> Survey:
    """The survey a set says it was observed with; the default where it says nothing."""
    known = {f.name for f in fields(Survey)}
    given = {k: v for k, v in meta.get("survey", {}).items() if k in known}
    return Survey(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


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


def _ranges(preset: str, seed: int, events: np.ndarray) -> list[dict]:
    """Events as ranges [first, stop)."""
    if not events.size:
        return []
    breaks = np.flatnonzero(np.diff(events) != 1) + 1
    return [
        {"preset": preset, "seed": seed, "first": int(run[0]), "stop": int(run[-1]) + 1}
        for run in np.split(events, breaks)
    ]


def load_training_data(
    paths: list[Path], validation_fraction: float, device: torch.device
) -> TrainingData:
    """Load sets for training; the last events of each set are kept for validation.

    A set without any binary holds contaminants, each after the single lens that fits it best: only
    the contaminants enter the loss, with label 0, and none is kept for validation. Memory: all
    rows, 4 bytes an epoch (8 without magnifications), and one shard. InputError if sets do not
    share their epochs or are not made of pairs.
    """
    sizes = [num_rows(p) for p in paths]
    total, num_epochs = sum(n for n, _ in sizes), sizes[0][1]
    if any(t != num_epochs for _, t in sizes):
        raise InputError(f"{paths}: all sets need the same epochs, but hold {sizes}")
    values = torch.empty(total, num_epochs, dtype=torch.float32, device=device)
    labels = torch.empty(total, dtype=torch.float32, device=device)
    blended = torch.zeros(total, dtype=torch.bool, device=device)
    sigmas, time, survey = None, None, None
    train, validation, trained_on, validated_on = [], [], [], []
    row = 0
    for path, (rows, _) in zip(paths, sizes, strict=True):
        held_back = rows // 2 - max(1, round(rows // 2 * validation_fraction))
        begun = row
        for shard in iterate(path):
            shard = _in_pairs(shard, path)
            place = slice(row, row + len(shard))
            if time is None:
                time, survey = shard.time, survey_of(shard.meta)
                if shard.magnification is None:
                    sigmas = torch.empty_like(values)
            clean = shard.magnification is not None
            if shard.time.shape != time.shape or clean != (sigmas is None):
                raise InputError(f"{path}: does not fit the set before it (epochs, magnification)")
            values[place] = _values(shard).to(device)
            if sigmas is not None:
                sigmas[place] = torch.from_numpy(np.array(shard.sigmas())).to(device)
            blended[place] = shard.blended
            label = shard.y.astype(np.float32)
            contaminants = not shard.y.any()
            if contaminants:
                label[::2] = np.nan
            labels[place] = torch.from_numpy(label).to(device)
            pairs = np.arange(len(shard) // 2) + row // 2
            late = (pairs - begun // 2 >= held_back) & (not contaminants)
            train.append(pairs[~late])
            validation.append(pairs[late])
            preset, seed, events = shard.events()
            if len(events) == len(pairs):
                trained_on += _ranges(preset, seed, events[~late])
                validated_on += _ranges(preset, seed, events[late])
            row += len(shard)
    if time.ndim != 1:
        raise InputError(f"{paths[0]}: training needs one grid of epochs, shape (T,), for all rows")
    return TrainingData(
        labels=labels,
        time=torch.from_numpy(time).to(device),
        survey=survey,
        train_pairs=np.concatenate(train),
        validation_pairs=np.concatenate(validation),
        trained_on=trained_on,
        validated_on=validated_on,
        blended=blended,
        **({"clean": values} if sigmas is None else {"observed": (values, sigmas)}),
    )


def _values(shard: LightCurves) -> Tensor:
    if shard.magnification is None:
        return torch.from_numpy(shard.X - shard.m_base[:, None])
    f_s = torch.from_numpy(np.nan_to_num(shard.param("f_s"), nan=1.0)).float()
    return noise_free_delta_mag(torch.from_numpy(shard.magnification), f_s)
