"""How strong an anomaly must be: scores of every search on large sets, one set a condition.

    python -m benchmarks.studies.half_recall scores FOLDER [--only CONDITION ...] [--classical]
    python -m benchmarks.studies.half_recall record FOLDER [--classical_from RECORD.json]

`scores` writes one file a condition below FOLDER, per row: P(binary) of the network, the ideal
observer's log-likelihood ratio, with `--classical` the classical searches, delta-chi2. The events
are those of the chapters, which share the network's predictions (`data/scores`). A condition that
is there is kept, so a killed run goes on. `record` reads them all and writes the numbers that the
book quotes; those of the classical searches, which no network changes, may come from an earlier
record. No network was trained on any of the events, which is checked.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.record import save_record
from lensml import evaluation, experiments
from lensml.network import check_unseen, load_network, weights_hash
from lensml.paths import DATA, atomic_path, tune_allocator
from lensml.simulation import (
    LightCurves,
    Simulation,
    Survey,
    load,
    reobserve,
    simulate,
)

PAIRS, SEED, OBSERVED_WITH = 6000, 7900, 0
OF_A_SET = 2000  # pairs of each of the disjoint sets that show the estimator's scatter
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
}

SEARCHES = "single-lens refit", "residual windows", "anomaly templates", "gradient boosting"
RANKING = ("roc_auc", "recall_at_1pct", "dchi2_at_half_recall", "dchi2_at_half_recall_strict")
STATISTICS = (*RANKING, "balanced_accuracy")
SETS = ("baseline_100_mmag", *(f"baseline_100_mmag_set_{k}" for k in (2, 3, 4)))  # disjoint
ANYTIME = {"anytime": SETS, "anytime_distinct": ("distinct_100_mmag",)}
ANYTIME |= {"anytime_10_mmag": ("baseline_10_mmag",)}
RESAMPLING = {"num": 200, "seed": 0}
TARGETS = {"sets_network_dchi2_at_half_recall_sd": "< 2"}
Scores = Mapping[str, NDArray]


def events(preset: str, seed: int, blended: bool, pairs: int = PAIRS) -> LightCurves:
    """The pairs of a condition at the default survey, those of the chapters."""
    blending = {"blending": (0.1, 1.0)} if blended else {}
    simulation = Simulation(preset=preset, num_pairs=pairs, seed=SEED + seed, **blending)
    stem = f"{preset}_matched_{pairs}_seed{SEED + seed}" + "_blended" * blended
    return load(simulate(DATA / "sets" / f"{stem}.npz", simulation, progress=False))


@cache
def training_search(sigma: float):
    """What gradient boosting learns from: other events of the baseline set at this error."""
    curves = reobserve(events("baseline", 50, False), Survey(sigma=sigma), OBSERVED_WITH)
    return evaluation.search_prefixes(curves, (1.0,))


def scores_of(
    name: str, run: Path | None = None, *, classical: bool = False, pairs: int = PAIRS
) -> dict[str, np.ndarray]:
    """Everything kept of a condition, each (n,) or (1, n)."""
    preset, survey, seed, beside = CONDITIONS[name]
    pairs = min(pairs, OF_A_SET) if name in SETS[1:] else pairs
    curves = reobserve(events(preset, seed, "blended" in beside, pairs), survey, OBSERVED_WITH)
    check_unseen(curves, load_network(run)[1], Path(name))
    kept = {"y": curves.y, "pair": curves.pair, "dchi2": curves.dchi2}
    kept |= {key: curves.param(key) for key in ("s", "q", "u0")}
    kept["ideal"] = evaluation.ideal_log_ratio(curves)
    kept |= asdict(experiments.predictions(curves, run))
    kept["p_end"] = kept["p"][None, :, -1]
    if classical and "classical" in beside:
        searched = evaluation.search_prefixes(curves, (1.0,))
        kept |= evaluation.classical_scores(searched, training_search(survey.sigma), seed=0)
    return kept


def observers(scores: Scores) -> dict[str, NDArray]:
    """Score (n,) of the network, the ideal observer and, where they were run, the searches."""
    found = {"network": scores["p_end"][0], "ideal": scores["ideal"]}
    return found | {name: scores[name] for name in SEARCHES if name in scores}


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


def first_pairs(scores: Scores, pairs: int) -> dict[str, NDArray]:
    """The first rows of a condition."""
    rows = slice(0, 2 * pairs)
    return {k: v[:, rows] if k == "p_end" else v[rows] for k, v in scores.items()}


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
    folder: Path, started: float, workers: int, run: Path | None, classical_from: Path | None
) -> None:
    """Read every condition's scores and write what the book quotes."""
    files = {name: folder / f"{name}.npz" for name in CONDITIONS}
    scores = {name: dict(np.load(path)) for name, path in files.items() if path.exists()}
    sets = [first_pairs(scores[name], OF_A_SET) for name in SETS if name in scores]
    together = pooled(sets)
    single = {n: s for n, s in scores.items() if n not in SETS[1:]}
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
    numbers |= over_sets(sets)
    numbers["pairs_of_a_set"] = OF_A_SET
    numbers["all_sets_pairs"] = int((together["y"] == 1).sum())
    for name, conditions in ANYTIME.items():
        if known := [scores[k] for k in conditions if k in scores]:
            numbers |= anytime(name, pooled(known))
    numbers |= {f"ideal_{k}": row["value"] for k, row in evaluation.IDEAL_HALF.items()}
    more: dict = {"weights_sha256": weights_hash(run)}
    if classical_from:
        earlier = json.loads(classical_from.read_text())
        searches = [f"{condition}_{key(name)}" for condition in single for name in SEARCHES]
        numbers = {
            k: v for k, v in earlier["numbers"].items() if k.startswith(tuple(searches))
        } | numbers
        more["classical"] = {"record": classical_from.name, "provenance": earlier["provenance"]}
    plain = {k: finite(v) if isinstance(v, dict) else v for k, v in numbers.items()}
    save_record("half_recall", plain, TARGETS, seed=SEED, started=started, **more)


def main() -> None:
    """Score or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("scores", "record"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--classical", action="store_true", help="the classical searches, too")
    parser.add_argument("--classical_from", type=Path, help="record whose numbers of these stay")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--model", type=Path, help="run folder of the network")
    args, started = parser.parse_args(), time.time()
    tune_allocator()
    if args.what == "record":
        write_record(args.folder, started, args.workers, args.model, args.classical_from)
        return
    for name in args.only:
        if not (path := args.folder / f"{name}.npz").exists():
            kept = scores_of(name, args.model, classical=args.classical)
            with atomic_path(path) as temporary, open(temporary, "wb") as stream:
                np.savez(stream, **kept)


if __name__ == "__main__":
    main()
