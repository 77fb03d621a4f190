"""How much of a result is the seed of a training run: several runs on the same fresh events.

    python -m benchmarks.studies.seeds RUN [RUN ...] [--pairs 1000] [--quick]
    python -m benchmarks.studies.seeds RUN [RUN ...] --only baseline_at_100_mmag
        --name baseline_seeds

Each RUN is a run folder of `lensml train`, or `shipped`. All read the same pairs under the same
noise, and refits are made once for all of them. `--only` and `--name` are for networks trained for
one set alone; `presets.specialised_run(presets.baseline("desk", seed), "baseline")` makes or finds
one. Kept are, of each quantity, the mean over runs with the smallest and the largest beside it, and
of the first run its 95 % interval over pairs. An event that any of the runs was trained on is
refused.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.record import save_record
from lensml import evaluation
from lensml.network import (
    Network,
    check_unseen,
    encode,
    load_network,
    observed_epochs,
    residual_inputs,
    weights_hash,
)
from lensml.simulation import LightCurves, Simulation, Survey, load, simulate

SEED = 7777
CONDITIONS = {
    "baseline_at_100_mmag": ("baseline", 0.1),
    "baseline_at_50_mmag": ("baseline", 0.05),
    "baseline_at_10_mmag": ("baseline", 0.01),
    "stellar_at_100_mmag": ("stellar", 0.1),
    "planetary_at_10_mmag": ("planetary", 0.01),
    "distinct_at_100_mmag": ("distinct", 0.1),
    "planetary_at_100_mmag": ("planetary", 0.1),
}
USUAL = tuple(name for name in CONDITIONS if name != "planetary_at_100_mmag")
NAMES = ("seeds", "baseline_seeds", "distinct_seeds", "stellar_seeds", "planetary_seeds")
BATCH = 256


@torch.no_grad()
def last_calls(networks: list[Network], curves: LightCurves, name: str) -> np.ndarray:
    """P(binary) of each network at the last observed epoch of each row, (networks, n)."""
    calls = np.empty((len(networks), len(curves)))
    times, sigmas = curves.times(), curves.sigmas()
    for first in tqdm(range(0, len(curves), BATCH), name):
        rows = slice(first, first + BATCH)
        epochs = (x[rows] for x in (curves.X, sigmas, times, curves.m_base))
        observed = observed_epochs(*epochs)
        features, refits = encode(observed), residual_inputs(observed, blended=curves.blended)
        last = (observed.valid.sum(1) - 1).clamp_min(0)[:, None]
        for k, network in enumerate(networks):
            calls[k, rows] = torch.sigmoid(network(features, refits).gather(1, last))[:, 0]
    return calls


def recall_between(y, p, dchi2, low: float, high: float) -> float:
    """Recall of binaries in a range of delta-chi2, thresholds from the twins nearest in it."""
    threshold = evaluation.neighbour_thresholds(y, p, dchi2, 0.01)
    inside = (y == 1) & (dchi2 >= low) & (dchi2 < high)
    return float((p > threshold)[inside].mean()) if inside.any() else float("nan")


STATISTICS = {
    "dchi2_at_half_recall": evaluation.dchi2_50,
    "recall_160_500": lambda y, p, d: recall_between(y, p, d, 160, 500),
    "recall_above_500": lambda y, p, d: recall_between(y, p, d, 500, np.inf),
    "recall_at_1pct": lambda y, p, d: evaluation.recall_at_fpr(y, p, 0.01),
    "roc_auc": lambda y, p, d: evaluation.roc_auc(y, p),
    "balanced_accuracy": lambda y, p, d: evaluation.balanced_accuracy(y, p),
    "ece": lambda y, p, d: evaluation.ece(y, p),
}


def target_of(condition: str, statistic: str) -> str:
    """What the first run should reach at size desk, as `experiments.target_met` reads it."""
    if condition.startswith("distinct"):
        return ">= 0.985" if statistic == "balanced_accuracy" else ""
    half = "<= 60" if condition == "baseline_at_10_mmag" else "<= 36"
    targets = {
        "dchi2_at_half_recall": half,
        "recall_160_500": ">= 0.90",
        "recall_above_500": ">= 0.97",
    }
    return targets.get(statistic, "")


def finite(number: dict) -> dict | None:
    """A number with its interval, None where it is not defined."""
    return number if np.isfinite(list(number.values())).all() else None


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=USUAL)
    parser.add_argument("--name", default="seeds", choices=NAMES)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    started = time.time()
    pairs = args.pairs or (60 if args.quick else 1000)
    folders = [None if run == "shipped" else Path(run) for run in args.runs]
    loaded = [load_network(folder) for folder in folders]
    networks = [network for network, _ in loaded]
    numbers, targets, by_run = {"runs": len(networks), "pairs": pairs}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for condition in args.only:
            preset, sigma = CONDITIONS[condition]
            simulation = Simulation(
                preset=preset, num_pairs=pairs, seed=SEED, survey=Survey(sigma=sigma)
            )
            path = simulate(Path(scratch) / f"{condition}.npz", simulation, progress=False)
            curves = load(path)
            for _, config in loaded:
                check_unseen(curves, config, path)
            calls = last_calls(networks, curves, condition)
            columns = curves.y, curves.dchi2
            ideal = evaluation.ideal_log_ratio(curves)
            for name, of in STATISTICS.items():
                each = [float(of(columns[0], p, columns[1])) for p in calls]
                quantity = f"{condition}_{name}"
                by_run[quantity] = [x if np.isfinite(x) else None for x in each]
                spread = {"value": np.mean(each), "low": min(each), "high": max(each)}
                first = evaluation.bootstrap(
                    lambda y, p, d, of=of: of(y, p, d),
                    [columns[0], calls[0], columns[1]],
                    curves.pair,
                    num=60 if args.quick else 300,
                    seed=SEED,
                )
                for key, value in ((quantity, first), (f"{quantity}_over_runs", spread)):
                    if (value := finite(value)) is not None:
                        numbers[key] = {k: float(v) for k, v in value.items()}
                if quantity in numbers and (target := target_of(condition, name)):
                    targets[quantity] = target
            for name in ("roc_auc", "recall_at_1pct", "balanced_accuracy"):
                ratio = (
                    ideal if name != "balanced_accuracy" else evaluation.ideal_probability(ideal)
                )
                numbers[f"{condition}_ideal_{name}"] = float(
                    STATISTICS[name](columns[0], ratio, columns[1])
                )
            for p in calls:  # above the ideal observer by three standard errors is a leak
                excess = evaluation.excess_over_ideal(p, ideal, curves.y, curves.pair, num=100)
                assert all(row["z"] <= 3 for row in excess.values()), (condition, excess)
    described = [
        {"weights": weights_hash(f), "seed": c.get("training", {}).get("seed"), "run": run}
        for run, f, (_, c) in zip(args.runs, folders, loaded, strict=True)
    ]
    for row in described:
        row["run"] = Path(row["run"]).name
    save_record(
        args.name, numbers, targets, seed=SEED, started=started, quick=args.quick,
        by_run=by_run, described=described,
    )  # fmt: skip


if __name__ == "__main__":
    main()
