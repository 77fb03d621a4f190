"""A network over a set it has never seen: numbers, intervals, limits and figures in one folder."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lensml import plotting
from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation import metrics
from lensml.network import Network, load_network, predict_proba, weights_hash
from lensml.paths import InputError, atomic_path
from lensml.simulation import FRACTIONS, LightCurves, load

__all__ = ["Predictions", "evaluate", "predict", "check_unseen", "report", "summary"]

CHUNK = 4096  # rows whose calls at every epoch are held at a time
SEASON_ROWS = 10_000  # rows whose calls at every epoch are kept, for alerts
REACHABLE_PAIRS = 200  # binaries whose prefixes are refitted
ONSET_FRACTIONS = tuple(sorted({*FRACTIONS, *(k / 20 for k in range(1, 21))}))
RATES = {"recall_at_1pct": 0.01, "recall_at_0.1pct": 0.001}


@dataclass(frozen=True)
class Predictions:
    """What the network said about each row of a set."""

    p: NDArray  # (n, 7) float32, P(binary) at FRACTIONS
    by_phase: NDArray  # (n, K) float32, last call by the end of each bin of early.PHASE_EDGES
    season: NDArray  # (m, T) float32, every call about the first m rows


def predict(
    network: Network,
    curves: LightCurves,
    *,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    season_rows: int = SEASON_ROWS,
) -> Predictions:
    """Call every row, `CHUNK` rows at a time; the observations are used as they are stored."""
    p, phase, season = [], [], []
    for start in range(0, len(curves), CHUNK):
        rows = curves.rows(slice(start, start + CHUNK))
        epochs = predict_proba(network, rows, batch_size=batch_size, device=device)
        p.append(early.at_fractions(epochs, rows.times()))
        t0, tE = rows.param("t0"), rows.param("tE")
        phase.append(early.against_phase(epochs, rows.times(), t0, tE).astype(np.float32))
        if start < season_rows:
            season.append(epochs[: season_rows - start])
    return Predictions(np.concatenate(p), np.concatenate(phase), np.concatenate(season))


def check_unseen(curves: LightCurves, config: dict, path: Path) -> None:
    """Refuse a set with events that the network was trained or validated on.

    An event is (preset, seed, index): another file name, noise or cadence does not make it new.

    Raises:
        InputError: Naming the command that makes fresh events.
    """
    preset, seed, events = curves.events()
    ranges = {name: config.get(name) or [] for name in ("trained_on", "validated_on")}
    for name, seen in ranges.items():
        same = [r for r in seen if (r["preset"], r["seed"]) == (preset, seed)]
        hits = sum(int(((events >= r["first"]) & (events < r["stop"])).sum()) for r in same)
        if hits:
            fresh = 1 + max(r["seed"] for seen in ranges.values() for r in seen)
            raise InputError(
                f"{path}: {hits} of its {events.size} events (preset {preset}, seed {seed}) are "
                f"among those the model was {name.replace('_', ' ')}; make fresh ones with "
                f"`lensml simulate --binary_params {preset} --seed {fresh} "
                f"--n_pspl {events.size} --n_binary {events.size} --output FRESH.npz`"
            )


def check_classes(curves: LightCurves, path: Path) -> None:
    """Refuse labels that cannot be scored."""
    counts = {int(label): int((curves.y == label).sum()) for label in (0, 1)}
    if sum(counts.values()) != len(curves) or 0 in counts.values():
        raise InputError(
            f"{path}: `y` holds {counts[0]} single lenses (0) and {counts[1]} binaries (1) in "
            f"{len(curves)} rows, but both classes and nothing else were expected; "
            "`lensml classify` calls curves of unknown class"
        )


def scores(y: NDArray, score: NDArray, p: NDArray, dchi2: NDArray) -> dict[str, Any]:
    """Every number of a full report; `score` ranks (n,), `p` is the probability (n,)."""
    result: dict[str, Any] = {
        "accuracy": metrics.accuracy(y, p),
        "balanced_accuracy": metrics.balanced_accuracy(y, p),
        "roc_auc": metrics.roc_auc(y, score),
        "average_precision": metrics.average_precision(y, score),
        "confusion_matrix": metrics.confusion_matrix(y, p),
        "ece": metrics.ece(y, p),
        "ece_debiased": metrics.ece(y, p, debiased=True),
        "brier": metrics.brier(y, p),
        **{name: metrics.recall_at_fpr(y, score, rate) for name, rate in RATES.items()},
        "recall_by_dchi2": None,
        "dchi2_at_half_recall": None,
    }
    if (known := np.isfinite(dchi2)).any() and 0 < (y[known] == 1).mean() < 1:
        y, score, dchi2 = y[known], score[known], dchi2[known]
        result["recall_by_dchi2"] = {
            name: metrics.recall_by_dchi2(y, score, dchi2, rate) for name, rate in RATES.items()
        }
        result["dchi2_at_half_recall"] = metrics.dchi2_50(y, score, dchi2)
    return result


def intervals(
    y: NDArray, score: NDArray, p: NDArray, dchi2: NDArray, pair: NDArray, num: int, seed: int
) -> dict[str, dict[str, float]]:
    """95 % intervals over pairs of the headline numbers."""
    statistics: dict[str, Callable] = {
        "accuracy": lambda y, s, p, d: metrics.accuracy(y, p),
        "balanced_accuracy": lambda y, s, p, d: metrics.balanced_accuracy(y, p),
        "roc_auc": lambda y, s, p, d: metrics.roc_auc(y, s),
        "average_precision": lambda y, s, p, d: metrics.average_precision(y, s),
        "brier": lambda y, s, p, d: metrics.brier(y, p),
        "recall_at_1pct": lambda y, s, p, d: metrics.recall_at_fpr(y, s, 0.01),
        "recall_at_0.1pct": lambda y, s, p, d: metrics.recall_at_fpr(y, s, 0.001),
    }
    if np.isfinite(dchi2).any():
        statistics["dchi2_at_half_recall"] = lambda y, s, p, d: metrics.dchi2_50(
            y[np.isfinite(d)], s[np.isfinite(d)], d[np.isfinite(d)]
        )
    columns = [y, score, p, dchi2]
    return {
        name: metrics.bootstrap(statistic, columns, pair, num=num, seed=seed)
        for name, statistic in statistics.items()
    }


def summary(
    curves: LightCurves, p: NDArray, ideal: NDArray | None, *, num: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Full report of one probability (n,) per row, the ideal observer (n,) on the same rows beside.

    Without noise-free curves the ideal observer is its expectation from `dchi2`, as far as it goes;
    what is not defined is None.
    """
    rows = (curves.y, p, p, curves.dchi2, curves.pair)
    result = scores(*rows[:4]) | {"intervals": intervals(*rows, num, seed)}
    observer = dict.fromkeys(result) | {"kind": None, "exact": limits.noise_is_known(curves)}
    result["bound_excess"] = None
    binaries = (curves.y == 1) & np.isfinite(curves.dchi2)
    if ideal is not None and np.isfinite(ideal).any():
        known = np.isfinite(ideal)
        y, ratio, dchi2, pair = (a[known] for a in (curves.y, ideal, curves.dchi2, curves.pair))
        rows = (y, ratio, limits.ideal_probability(ratio), dchi2, pair)
        observer |= scores(*rows[:4]) | {
            "intervals": intervals(*rows, num, seed),
            "kind": "realised",
        }
        result["bound_excess"] = limits.excess_over_ideal(
            p, ideal, curves.y, curves.pair, num=num, seed=seed
        )
    elif binaries.any():
        observer |= limits.expected_ideal(curves.dchi2[binaries]) | {"kind": "expected"}
    return result | {"ideal_observer": observer}


def over_the_window(
    curves: LightCurves, p: NDArray, ideal: NDArray | None, num: int, seed: int
) -> dict[str, dict]:
    """Calls at each of FRACTIONS, `p` (n, 7), beside the bound of that prefix, `ideal` (n, 7)."""
    result = {}
    for k, fraction in enumerate(FRACTIONS):
        row: dict[str, Any] = {
            "accuracy": metrics.accuracy(curves.y, p[:, k]),
            "balanced_accuracy": metrics.bootstrap(
                metrics.balanced_accuracy, [curves.y, p[:, k]], curves.pair, num=num, seed=seed
            ),
            "roc_auc": metrics.bootstrap(
                metrics.roc_auc, [curves.y, p[:, k]], curves.pair, num=num, seed=seed
            ),
            "recall_at_1pct": metrics.recall_at_fpr(curves.y, p[:, k], 0.01),
            "ece": metrics.ece(curves.y, p[:, k]),
            "brier": metrics.brier(curves.y, p[:, k]),
            "ideal": None,
            "bound_excess": None,
            "reachable": None,
        }
        if ideal is not None and (known := np.isfinite(ideal[:, k])).any():
            y, ratio = curves.y[known], ideal[known, k]
            row["ideal"] = {
                "balanced_accuracy": metrics.balanced_accuracy(y, ratio, 0.0),
                "roc_auc": metrics.roc_auc(y, ratio),
                "recall_at_1pct": metrics.recall_at_fpr(y, ratio, 0.01),
            }
            row["bound_excess"] = limits.excess_over_ideal(
                p[:, k], ideal[:, k], curves.y, curves.pair, num=num, seed=seed
            )
        result[f"{fraction:g}" if fraction < 1 else "1.0"] = row
    return result


def against_phase(curves: LightCurves, by_phase: NDArray) -> dict[str, list[float]]:
    """Balanced accuracy by event phase, over rows whose window holds that phase."""
    middle = (early.PHASE_EDGES[1:] + early.PHASE_EDGES[:-1]) / 2
    inside = [np.isfinite(column) for column in by_phase.T]
    columns = list(zip(inside, by_phase.T, strict=True))
    return {
        "phase": middle.tolist(),
        "balanced_accuracy": [metrics.balanced_accuracy(curves.y[i], c[i]) for i, c in columns],
        "recall": [metrics.fraction(c[i & (curves.y == 1)] > 0.5) for i, c in columns],
        "false_positives": [metrics.fraction(c[i & (curves.y == 0)] > 0.5) for i, c in columns],
        "rows": [int(i.sum()) for i in inside],
    }


def early_detection(curves: LightCurves, season: NDArray, by_fraction: dict) -> dict[str, Any]:
    """Reachable marks into `by_fraction`; returns alerts at 1 % of seasons with a false alarm.

    The prefixes of the first `REACHABLE_PAIRS` binaries are refitted; alerts of single lenses are
    counted on all rows of `season` (m, T).
    """
    rows = curves.rows(slice(len(season)))
    onset = np.full(len(rows), np.nan)
    if curves.magnification is not None:
        pairs = np.unique(rows.pair[(limits.partner_rows(rows) >= 0)])[:REACHABLE_PAIRS]
        chosen = np.flatnonzero(np.isin(rows.pair, pairs))
        if chosen.size:
            sub = rows.rows(chosen)
            at, dchi2 = limits.prefix_dchi2(sub, ONSET_FRACTIONS)
            onset[chosen[at]] = early.onset_times(dchi2, sub.times()[at], ONSET_FRACTIONS)
            for name, row in by_fraction.items():
                column = dchi2[:, ONSET_FRACTIONS.index(float(name))]
                row["reachable"] = limits.expected_ideal(column) | {"pairs": int(at.size)}
    return early.alert_summary(season, rows.times(), rows.y, rows.pair, onset, rate=0.01)


def report(
    curves: LightCurves,
    prediction: Predictions,
    *,
    early_marks: bool = False,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[dict[str, Any], NDArray | None]:
    """All numbers of `metrics.json` but provenance, and the ideal log-likelihood ratio (n, 7)."""
    ideal = None
    if curves.magnification is not None and (curves.pair >= 0).any():
        ideal = limits.ideal_log_ratio(curves, FRACTIONS)
    full = None if ideal is None else ideal[:, -1]
    result = summary(curves, prediction.p[:, -1], full, num=num_bootstrap, seed=seed)
    windows = over_the_window(curves, prediction.p, ideal, num_bootstrap, seed)
    result["alerts"] = early_detection(curves, prediction.season, windows) if early_marks else None
    result["early_detection"] = windows
    result["against_phase"] = against_phase(curves, prediction.by_phase)
    return result, ideal


def figures(
    curves: LightCurves, prediction: Predictions, result: dict, ideal: NDArray | None
) -> dict[str, Figure]:
    """The pictures of a report by name, the ideal observer drawn beside the network."""
    y, p = curves.y, prediction.p[:, -1]
    ratio = np.full(len(y), np.nan) if ideal is None else ideal[:, -1]
    known = np.isfinite(ratio)
    best = {"ideal_y": y[known], "ideal_score": ratio[known]} if known.any() else {}
    observer = result["ideal_observer"]
    drawn = {
        "roc_and_pr": plotting.roc_and_pr({"network": (y, p)}, **best),
        "confusion": plotting.confusion(result["confusion_matrix"], observer["confusion_matrix"]),
        "reliability": plotting.reliability(metrics.reliability(y, p)),
        "early_detection": plotting.early_detection({"network": result["early_detection"]}),
        "against_phase": plotting.scores_by_phase({"network": result["against_phase"]}),
    }
    if table := result["recall_by_dchi2"]:
        tables = {f"network, {name[10:-3]} % false": rows for name, rows in table.items()}
        drawn["recall_by_dchi2"] = plotting.recall_by_dchi2(
            tables, (observer["recall_by_dchi2"] or {}).get("recall_at_1pct")
        )
    binary = (y == 1) & np.isfinite(curves.param("s")) & np.isfinite(curves.param("q"))
    if binary.any():
        found = (p > metrics.threshold_at_fpr(p[y == 0], 0.01))[binary]
        mark = None
        if known[binary].all():
            mark = (ratio > metrics.threshold_at_fpr(ratio[known & (y == 0)], 0.01))[binary]
        parameters = [curves.param(name)[binary] for name in ("s", "q", "u0")]
        drawn["map_s_q"] = plotting.recall_map(*parameters[:2], found, mark)
        drawn["against_u0"] = plotting.recall_by_u0(parameters[2], found, mark)
    return drawn


def plain(value: Any) -> Any:
    """What JSON can hold: lists for arrays, None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(folder: Path, curves: LightCurves, p: NDArray, result: dict, drawn: dict) -> None:
    """Each file atomically; `metrics.json` last, so that its presence means all is there."""
    with atomic_path(folder / "predictions.npz") as path:
        np.savez(path, p=p, y=curves.y, pair=curves.pair, dchi2=curves.dchi2)
    for name, figure in drawn.items():
        with matplotlib.rc_context({"svg.hashsalt": name}):
            with atomic_path(folder / f"{name}.svg") as path:
                figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")
    with atomic_path(folder / "metrics.json") as path:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def evaluate(
    data: Path | str,
    output_dir: Path | str,
    run: Path | str | None = None,
    *,
    early_detection: bool = False,
    batch_size: int = 256,
    device: str | None = None,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Score a network on a set and write `metrics.json`, `predictions.npz` and figures (SVG).

    Args:
        data: Set in the exchange format; `X` is used as it is stored.
        output_dir: Folder for the results, made if need be.
        run: Run folder of `train`; None = the weights that ship with the package.
        early_detection: Also refit prefixes (reachable mark, onset) and count alerts over a season.
        batch_size: Curves the network reads at a time.
        device: Where it runs; None = a GPU if there is one.
        num_bootstrap: Resamples of pairs behind every interval.
        seed: Of the resampling.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: If the set cannot be read or scored, or holds events the network has seen.
    """
    data, output_dir = Path(data), Path(output_dir)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network, config = load_network(run, device)
    curves = load(data)
    check_unseen(curves, config, data)
    check_classes(curves, data)
    prediction = predict(network, curves, batch_size=batch_size, device=device)
    result, ideal = report(
        curves, prediction, early_marks=early_detection, num_bootstrap=num_bootstrap, seed=seed
    )
    preset, set_seed, _ = curves.events()
    result["provenance"] = {
        "weights_sha256": weights_hash(run),
        "data": data.name,
        "rows": len(curves),
        "set": {"preset": preset, "seed": set_seed, "survey": curves.meta.get("survey")},
        "bootstrap": {"resamples": num_bootstrap, "seed": seed},
        "device": str(device),
    }
    result = plain(result)
    write(output_dir, curves, prediction.p, result, figures(curves, prediction, result, ideal))
    return result
