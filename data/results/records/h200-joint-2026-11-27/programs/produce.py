"""Make training samples on one core until it is stopped: produce.py WORKER OUTPUT VALIDATION."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lensml.network import PLANETARY_Q, NetworkConfig
from lensml.simulation import (
    BLOCK,
    PARAM_NAMES,
    Simulation,
    Survey,
    contaminant_training_set,
    make_block,
    noise_free_delta_mag,
)
from lensml.training.data import TrainingData, classes_of
from lensml.training.recipes import GENERAL_SURVEYS
from lensml.training.samples import SampleMaker

BLENDED = (0.1, 1.0)
SETS = [("baseline", None), ("stellar", None), ("planetary", None), ("distinct", None)]
SETS += [(name, BLENDED) for name in ("baseline", "stellar", "distinct")]
SET_WEIGHTS = [0.30, 0.17, 0.22, 0.09, 0.13, 0.06, 0.03]
KINDS = ["binary_source", "parallax", "finite_source", "variable_baseline"]
KIND_WEIGHTS = [0.45, 0.25, 0.2, 0.1]
SEEDS = {"train": 60221, "validation": 60222}  # blended sets have 2 more
SKY, HIDDEN, PER_CURVE, TIMES = 0.45, 0.25, 8, 2
PARALLEL = 1000  # workers at most: events are numbered apart


def make_data(blocks, contaminants, used):
    """`TrainingData` of blocks of 64 pairs and of contaminants."""
    clean, labels, blended, classes, shapes = [], [], [], [], []
    for (name, blending), first, seed in blocks:
        sim = Simulation(preset=name, num_pairs=10**9, seed=seed, blending=blending)
        rows = make_block((sim, range(first, first + BLOCK)))
        used.append((name, seed, first, first + BLOCK))
        f_s = torch.from_numpy(rows["params"][:, PARAM_NAMES.index("f_s")]).float()
        clean.append(noise_free_delta_mag(torch.from_numpy(rows["magnification"]), f_s))
        labels += [0.0, 1.0] * BLOCK
        q = rows["params"][:, PARAM_NAMES.index("q")]
        classes.append(np.where(np.isfinite(q), np.where(q < PLANETARY_Q, 1, 2), 0))
        blended += [blending is not None] * 2 * BLOCK
        shapes.append(rows["params"][:, :3])
    for kind, seed in contaminants:
        found = contaminant_training_set(kind, BLOCK, seed)
        used.append((f"impostor_{kind}", seed, 0, BLOCK))
        clean.append(-2.5 * torch.log10(torch.from_numpy(found.magnification)))
        labels += [np.nan, 0.0] * BLOCK
        classes.append(classes_of(found))
        blended += [False] * 2 * BLOCK
        shapes.append(found.params[:, :3])
    survey = Survey()
    none = np.zeros(0, int)
    return TrainingData(
        labels=torch.tensor(labels), time=torch.from_numpy(survey.times), survey=survey,
        train_pairs=none, validation_pairs=none, trained_on=[], validated_on=[],
        blended=torch.tensor(blended), classes=np.concatenate(classes),
        shapes=np.concatenate(shapes), clean=torch.cat(clean),
    )  # fmt: skip


def write(folder, name, parts):
    columns = [torch.cat(x) for x in zip(*parts, strict=True)]
    windows, held, maps, summaries, targets, labels, final = columns
    kinds = {"windows": windows.half(), "held": held.to(torch.uint8), "maps": maps.half()}
    kinds |= {"summaries": summaries.half(), "targets": targets, "labels": labels.to(torch.uint8)}
    kinds["final"] = final
    torch.save(kinds, folder / f".{name}")
    os.rename(folder / f".{name}", folder / name)
    return len(held)


def main():
    torch.set_num_threads(1)
    worker, output = int(sys.argv[1]), Path(sys.argv[2])
    only = len(sys.argv) > 3  # validation
    window = NetworkConfig().receptive_field
    k = 0
    while True:
        begun = time.time()
        split = "validation" if only else "train"
        place = worker + PARALLEL * k
        g = np.random.default_rng([SEEDS[split], place])
        count = 2 if only else 8
        chosen = g.choice(len(SETS), count, p=SET_WEIGHTS)
        if only:
            chosen = np.array([worker % len(SETS), (worker + 3) % len(SETS)])
        blocks = [
            (SETS[j], BLOCK * (place * count + i), SEEDS[split] + 2 * (SETS[j][1] is not None))
            for i, j in enumerate(chosen)
        ]
        kind = str(g.choice(KINDS, p=KIND_WEIGHTS))
        used = []
        more = [] if only and worker % 4 else [(kind, 100_000_000 + SEEDS[split] * 1000 + place)]
        data = make_data(blocks, more, used)
        maker, total = SampleMaker(data, window, PER_CURVE), 0
        for again in range(1 if only else TIMES):
            pairs = g.permutation(len(data.labels) // 2)
            seed = int(g.integers(2**31))
            parts = [maker.make(pairs, seed, GENERAL_SURVEYS, SKY, HIDDEN)]
            total += write(output, f"{worker}_{k}_{again}.pt", parts)
        rate = total / PER_CURVE / (time.time() - begun)
        print(split, worker, k, total, f"{rate:.0f} curves/s", used, flush=True)
        k += 1
        if only:
            break


main()
