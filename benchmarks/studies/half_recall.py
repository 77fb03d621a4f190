"""How strong an anomaly must be: scores of every search on large sets, one set a condition.

    python -m benchmarks.studies.half_recall scores FOLDER [--part K/N] [--only CONDITION ...]
    python -m benchmarks.studies.half_recall record FOLDER

With `--model RUN` (`events`: the shipped event network) the network alone is scored, no search
beside it, by all cores on each condition, and the record is `half_recall_events`.

`scores` writes one file a condition below FOLDER, per row: P(binary) of the shipped network or of
the runs that repeat its recipe, the ideal observer's log-likelihood ratio, the classical searches,
delta-chi2. A condition that is there is kept, so a killed run goes on; `--part` lets several
processes divide the conditions. `record` reads them all and writes the numbers that the book
quotes. No network was trained on any of the events, which is checked.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, fields
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.record import save_record
from benchmarks.studies.seeds import last_calls
from lensml import evaluation
from lensml.network import (
    EVENTS,
    Predictions,
    check_unseen,
    load_network,
    predict,
    weights_hash,
)
from lensml.paths import RESULTS, atomic_path, tune_allocator
from lensml.simulation import (
    LightCurves,
    Simulation,
    Survey,
    load,
    reobserve,
    simulate,
)

PAIRS, FEWER, SEED, OBSERVED_WITH = 6000, 1000, 7900, 0
SEEDS = RESULTS / "records" / "h200-2026-11-27" / "seeds"  # the shipped recipe, run again
DENSE = {"missing_fraction": 0.05}
# Name to parameter set, survey, seed of the events, and what beside the network is run.
CONDITIONS = {
    "baseline_100_mmag": ("baseline", Survey(), 0, ("classical",)),
    "baseline_10_mmag": ("baseline", Survey(sigma=0.01), 0, ("classical",)),
    "baseline_50_mmag": ("baseline", Survey(sigma=0.05), 0, ()),
    "baseline_200_mmag": ("baseline", Survey(sigma=0.2), 0, ()),
    "baseline_5_pct_missing": ("baseline", Survey(missing_fraction=0.05), 0, ()),
    "baseline_40_pct_missing": ("baseline", Survey(missing_fraction=0.4), 0, ()),
    "baseline_nights_of_8_h": ("baseline", Survey(**DENSE, night=1 / 3), 0, ()),
    "baseline_one_epoch_a_day": ("baseline", Survey(**DENSE, keep_every=(7, 7)), 0, ()),
    "baseline_one_epoch_in_3_days": ("baseline", Survey(**DENSE, keep_every=(22, 22)), 0, ()),
    "baseline_blended": ("baseline", Survey(), 0, ("blended",)),
    "stellar_100_mmag": ("stellar", Survey(), 0, ()),
    "stellar_10_mmag": ("stellar", Survey(sigma=0.01), 0, ()),
    "planetary_10_mmag": ("planetary", Survey(sigma=0.01), 0, ()),
    "planetary_100_mmag": ("planetary", Survey(), 0, ()),
    "distinct_100_mmag": ("distinct", Survey(), 0, ()),
    # The scatter of the estimator: three more sets of the first condition.
    "baseline_100_mmag_set_2": ("baseline", Survey(), 1, ("classical",)),
    "baseline_100_mmag_set_3": ("baseline", Survey(), 2, ("classical",)),
    "baseline_100_mmag_set_4": ("baseline", Survey(), 3, ("classical",)),
    # The shipped recipe with five other seeds, on the events of two of the conditions.
    "baseline_100_mmag_seeds": ("baseline", Survey(), 0, ("seeds",)),
    "distinct_100_mmag_seeds": ("distinct", Survey(), 0, ("seeds", "fewer")),
}

RANKING = ("roc_auc", "recall_at_1pct", "dchi2_at_half_recall", "dchi2_at_half_recall_strict")
STATISTICS = (*RANKING, "balanced_accuracy")
SETS = ("baseline_100_mmag", *(f"baseline_100_mmag_set_{k}" for k in (2, 3, 4)))  # disjoint
ANYTIME = {"anytime": SETS, "anytime_distinct": ("distinct_100_mmag",)}
ANYTIME |= {"anytime_10_mmag": ("baseline_10_mmag",)}
RESAMPLING = {"num": 400, "seed": 0}  # as the chapters at desk: the same intervals
TARGETS = {"sets_network_dchi2_at_half_recall_sd": "< 1"}
Scores = Mapping[str, NDArray]


def events(
    folder: Path, preset: str, seed: int, blended: bool, pairs: int = PAIRS, workers: int = 1
) -> LightCurves:
    """The pairs of a condition at the default survey, simulated on first use."""
    blending = {"blending": (0.1, 1.0)} if blended else {}
    simulation = Simulation(preset=preset, num_pairs=pairs, seed=SEED + seed, **blending)
    stem = f"{preset}_{pairs}_seed{SEED + seed}" + "_blended" * blended
    return load(simulate(folder / "sets" / stem, simulation, workers=workers, progress=False))


def predict_rows(task: tuple) -> tuple:
    """Reduced probabilities of some rows of a set by the network of a run."""
    run, curves = task
    return astuple(predict(load_network(run)[0], curves, season_rows=0))


def scores_of_model(pool: Pool, workers: int, folder: Path, name: str, run: Path, pairs: int):
    """What is kept of a condition of one network; rows divided among the processes of a pool."""
    preset, survey, seed, beside = CONDITIONS[name]
    blended = "blended" in beside
    curves = reobserve(events(folder, preset, seed, blended, pairs, workers), survey, OBSERVED_WITH)
    check_unseen(curves, load_network(run)[1], Path(name))
    kept = {"y": curves.y, "pair": curves.pair, "dchi2": curves.dchi2}
    kept |= {key: curves.param(key) for key in ("s", "q", "u0")}
    kept["ideal"] = evaluation.ideal_log_ratio(curves)
    tasks = [(run, curves.rows(slice(k, k + 200))) for k in range(0, len(curves), 200)]
    found = list(tqdm(pool.imap(predict_rows, tasks), name, total=len(tasks)))
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    kept |= dict(zip((f.name for f in fields(Predictions)), columns, strict=True))
    kept["p_end"] = kept["p"][None, :, -1]
    return kept


@cache
def training_search(folder: Path, sigma: float):
    """What gradient boosting learns from: other events of the baseline set at this error."""
    curves = reobserve(events(folder, "baseline", 50, False), Survey(sigma=sigma), OBSERVED_WITH)
    return evaluation.search_prefixes(curves, (1.0,))


def scores_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Everything kept of a condition, each (n,) or (networks, n)."""
    preset, survey, seed, beside = CONDITIONS[name]
    curves = reobserve(events(folder, preset, seed, "blended" in beside), survey, OBSERVED_WITH)
    curves = curves.rows(slice(0, 2 * FEWER)) if "fewer" in beside else curves
    kept = {"y": curves.y, "pair": curves.pair, "dchi2": curves.dchi2}
    kept |= {key: curves.param(key) for key in ("s", "q", "u0")}
    kept["ideal"] = evaluation.ideal_log_ratio(curves)
    runs = sorted(SEEDS.glob("seed*")) if "seeds" in beside else [None]
    networks, configs = zip(*map(load_network, runs), strict=True)
    for config in configs:
        check_unseen(curves, config, Path(name))
    if "seeds" in beside:
        return kept | {"p_end": last_calls(networks, curves, name)}
    kept |= asdict(predict(networks[0], curves, season_rows=4000))
    kept["p_end"] = kept["p"][None, :, -1]
    if "classical" in beside:
        searched = evaluation.search_prefixes(curves, (1.0,))
        learned = training_search(folder, survey.sigma)
        kept |= evaluation.classical_scores(searched, learned, seed=0)
    return kept


def write_scores(folder: Path, names: list[str], of: Callable[[Path, str], Scores]) -> None:
    """Score the conditions that are not there yet."""
    for name in names:
        path = folder / f"{name}.npz"
        if not path.exists():
            kept = of(folder, name)
            with atomic_path(path) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, **kept)


def observers(scores: Scores) -> dict[str, NDArray]:
    """Score (n,) of the network, the ideal observer and, where they were run, the searches."""
    found = {"network": scores["p_end"][0], "ideal": scores["ideal"]}
    searches = "single-lens refit", "residual windows", "anomaly templates", "gradient boosting"
    return found | {name: scores[name] for name in searches if name in scores}


def columns_of(scores: Scores, observer: str, rank: NDArray) -> tuple[NDArray, ...]:
    """Arguments of `evaluation.STATISTICS`: class, ranking score, probability, delta-chi2."""
    p = evaluation.ideal_probability(rank) if observer == "ideal" else rank
    return scores["y"], rank, p, scores["dchi2"]


def names_of(observer: str) -> tuple[str, ...]:
    """Statistics defined for an observer; the ideal's half recall is a closed form."""
    if observer == "ideal":
        return "roc_auc", "recall_at_1pct", "balanced_accuracy"
    return STATISTICS if observer == "network" else RANKING


def interval(task: tuple) -> tuple[str, dict | None]:
    """Key, and one statistic with its 95 % interval over pairs; None where it is not defined.

    It is kept below the folder of scores; delete `intervals` there if a statistic is redefined.
    """
    key, name, columns, pair, folder = task
    digest = hashlib.sha256(name.encode())
    for column in (*columns, pair):
        digest.update(np.ascontiguousarray(column).tobytes())
    path = folder / "intervals" / f"{digest.hexdigest()[:24]}.json"
    if not path.exists():
        found = evaluation.score_table(columns, pair, [name], **RESAMPLING)[name]
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(finite(found)))
    found = json.loads(path.read_text())
    return key, None if found["value"] is None else found


def finite(number: Mapping) -> dict[str, float | None]:
    """Plain numbers for JSON, None for what is not finite."""
    return {k: float(v) if np.isfinite(v) else None for k, v in number.items()}


def pooled(parts: list[Scores]) -> dict[str, NDArray]:
    """Several disjoint sets as one; their pairs are renumbered so that none meets another."""
    joined = {
        key: np.concatenate([part[key] for part in parts], axis=1 if key == "p_end" else 0)
        for key in parts[0]
        if all(key in part for part in parts) and key != "season"  # large, and not used
    }
    joined["p_end"] = np.concatenate([part["p_end"][:1] for part in parts], axis=1)
    first = np.cumsum([0, *(part["pair"].max() + 1 for part in parts[:-1])])
    shifted = [part["pair"] + start for part, start in zip(parts, first, strict=True)]
    return joined | {"pair": np.concatenate(shifted)}


def tasks_of(prefix: str, scores: Scores, folder: Path) -> list[tuple]:
    """What `interval` computes for one set."""
    return [
        (f"{prefix}_{key(observer)}_{name}", name, columns, scores["pair"], folder)
        for observer, rank in observers(scores).items()
        for columns in [columns_of(scores, observer, rank)]
        for name in names_of(observer)
    ]


def key(observer: str) -> str:
    """Spelling of an observer in the record."""
    return observer.replace(" ", "_").replace("-", "_")


def of_runs(scores: Scores, name: str) -> list[float]:
    """One statistic of each run that repeats the shipped recipe."""
    of = evaluation.STATISTICS[name]
    return [float(of(*columns_of(scores, "network", p))) for p in scores["p_end"]]


def over_seeds(
    condition: str, scores: Scores, of_shipped: Scores, folder: Path
) -> dict[str, float | dict]:
    """Mean, range and standard deviation over the runs that repeat the recipe, by statistic.

    Beside them the value of the shipped network on the same pairs, and the standard deviation of
    the estimator, from its interval.
    """
    n = len(scores["y"])
    shipped = {k: v[:, :n] if k == "p_end" else v[:n] for k, v in of_shipped.items()}
    of_network = {task[1]: task for task in tasks_of(condition, shipped, folder)[: len(STATISTICS)]}
    numbers = {}
    for name in STATISTICS:
        each = of_runs(scores, name)
        _, found = interval(of_network[name])
        if not np.isfinite(each).all() or not found or None in found.values():
            continue
        quantity = f"seeds_{condition}_{name}"
        numbers[quantity] = {"value": np.mean(each), "low": np.min(each), "high": np.max(each)}
        numbers[f"{quantity}_sd"] = float(np.std(each, ddof=1))
        numbers[f"{quantity}_shipped"] = found["value"]
        numbers[f"{quantity}_estimator_sd"] = (found["high"] - found["low"]) / 3.92
    return numbers


def over_sets(parts: list[Scores]) -> dict[str, float]:
    """Each disjoint set's value, their mean and standard deviation, by method and statistic."""
    numbers: dict[str, float] = {"sets": len(parts)}
    for observer in observers(parts[0]):
        for name in names_of(observer):
            of = evaluation.STATISTICS[name]
            each = [of(*columns_of(s, observer, observers(s)[observer])) for s in parts]
            if np.isfinite(each).all():
                quantity = f"sets_{key(observer)}_{name}"
                numbers |= {f"{quantity}_set_{k}": x for k, x in enumerate(each, 1)}
                numbers[f"{quantity}_mean"] = float(np.mean(each))
                numbers[f"{quantity}_sd"] = float(np.std(each, ddof=1))
    return numbers


def anytime(name: str, scores: Scores) -> dict[str, float | dict]:
    """Of the curves that ever reach P, the fraction that are binaries, and their number."""
    found = evaluation.anytime_calibration(scores["y"], scores["max_probability"])
    numbers = {}
    for level, row in found.items():
        quantity = f"{name}_{100 * float(level):g}_pct"
        numbers[f"{quantity}_curves"] = row["of"]
        if row["of"] >= 20:
            numbers[quantity] = {k: row[k] for k in ("value", "low", "high")}
    return numbers


def write_record(
    folder: Path, origin: Mapping, started: float, workers: int, run: Path | None = None
) -> None:
    """Read every condition's scores and write what the book quotes."""
    files = {name: folder / f"{name}.npz" for name in CONDITIONS}
    scores = {name: dict(np.load(path)) for name, path in files.items() if path.exists()}
    sets = [scores[name] for name in SETS if name in scores]
    together = pooled(sets)
    seeds = {n.removesuffix("_seeds"): s for n, s in scores.items() if n.endswith("_seeds")}
    single = {n: s for n, s in scores.items() if n not in SETS[1:] and not n.endswith("_seeds")}
    tasks = [task for name, s in single.items() for task in tasks_of(name, s, folder)]
    tasks += tasks_of("all_sets", together, folder)
    with get_context("spawn").Pool(workers) as pool:
        computed = pool.imap_unordered(interval, tasks)
        found = {k: v for k, v in tqdm(computed, total=len(tasks)) if v is not None}
    numbers: dict = {name: found[name] for name, *_ in tasks if name in found}
    for condition, s in single.items():
        numbers[f"{condition}_pairs"] = int((s["y"] == 1).sum())
        errors = evaluation.calibration_errors(s["y"], s["p_end"][0], s["pair"], **RESAMPLING)
        numbers |= {f"{condition}_network_{k}": errors[k] for k in ("ece", "ece_at_most")}
    for condition, s in seeds.items():
        numbers |= over_seeds(condition, s, scores[condition], folder)
        numbers["seeds_runs"] = len(s["p_end"])
        numbers[f"seeds_{condition}_pairs"] = int((s["y"] == 1).sum())
    numbers |= over_sets(sets)
    numbers["all_sets_pairs"] = int((together["y"] == 1).sum())
    for name, conditions in ANYTIME.items():
        if known := [scores[k] for k in conditions if k in scores]:
            numbers |= anytime(name, pooled(known))
    numbers |= {f"ideal_{k}": row["value"] for k, row in evaluation.IDEAL_HALF.items()}
    by_run = {
        condition: {name: of_runs(s, name) for name in STATISTICS} for condition, s in seeds.items()
    }
    origin = dict(origin) | {"weights_sha256": weights_hash(run)}
    more = {"by_run": by_run, "scores": origin}
    plain = {k: finite(v) if isinstance(v, dict) else v for k, v in numbers.items()}
    name = "half_recall_events" if run else "half_recall"
    save_record(name, plain, TARGETS, seed=SEED, started=started, **more)


def main() -> None:
    """Score or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("scores", "record"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", default="1/1", metavar="K/N")
    parser.add_argument("--only", nargs="+", choices=CONDITIONS)
    parser.add_argument("--scores_commit", default="", help="commit that made the scores")
    parser.add_argument("--scores_seconds", type=float, help="wall time that they took [s]")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--model", help="run folder; `events` is the shipped event network")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of a condition, with --model")
    args, started = parser.parse_args(), time.time()
    run = EVENTS if args.model == "events" else args.model and Path(args.model)
    tune_allocator()
    if args.what == "record":
        origin = {"commit": args.scores_commit, "wall_time_s": args.scores_seconds}
        write_record(args.folder, origin, started, args.workers, run)
        return
    part, parts = map(int, args.part.split("/"))
    names = args.only or list(CONDITIONS)
    names = names[part - 1 :: parts]
    if not run:
        return write_scores(args.folder, names, scores_of)
    names = [n for n in names if "seeds" not in CONDITIONS[n][3]]
    with get_context("spawn").Pool(args.workers) as pool:
        of = partial(scores_of_model, pool, args.workers, run=run, pairs=args.pairs)
        write_scores(args.folder, names, of)


if __name__ == "__main__":
    main()
