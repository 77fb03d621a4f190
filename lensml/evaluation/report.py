"""Report of one network on one set, with the ideal observer on the same rows. Axes: n rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensml.evaluation import alerts, metrics
from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.network import find_device, load_network
from lensml.paths import InputError
from lensml.simulation import FRACTIONS, LightCurves, load

__all__ = [
    "Assessment",
    "assess",
    "check_classes",
    "check_unseen",
    "full_report",
    "headline",
    "score_report",
]

REFITTED_PAIRS = 200  # binaries whose prefixes are refitted for a full report
HEADLINE = (
    "balanced_accuracy",
    "roc_auc",
    "average_precision",
    "recall_at_1pct",
    "recall_at_0.1pct",
    "dchi2_at_half_recall",
)


def check_unseen(curves: LightCurves, config: Mapping[str, Any], path: Path) -> None:
    """Refuse a set with events that the network was trained or validated on.

    An event is (preset, seed, index): another file name, noise or cadence does not make it new.

    Args:
        curves: The set.
        config: `config.json` of the network, with `trained_on` and `validated_on`.
        path: File of the set, for the error.

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


def observer_scores(
    y: NDArray, rank: NDArray, p: NDArray, dchi2: NDArray, pair: NDArray, *, num: int, seed: int
) -> dict[str, Any]:
    """Every number of a full report of one observer, with `intervals` of its `STATISTICS`.

    Args:
        y, dchi2, pair: Class, delta-chi2 (NaN = unknown) and pair of each row (n,).
        rank: Score that ranks (n,).
        p: Probability (n,).
        num, seed: Resamples of pairs.
    """
    known = np.isfinite(dchi2)
    by_dchi2 = 0 < (y[known] == 1).sum() < known.sum()
    names = [n for n in metrics.STATISTICS if by_dchi2 or n != "dchi2_at_half_recall"]
    intervals = metrics.score_table(y, rank, p, dchi2, pair, names, num=num, seed=seed)
    values = {name: row["value"] for name, row in intervals.items()}
    rates = {"recall_at_1pct": 0.01, "recall_at_0.1pct": 0.001}
    columns = y[known], rank[known], dchi2[known]
    return dict.fromkeys(metrics.STATISTICS) | values | {
        "confusion_matrix": metrics.confusion_matrix(y, p),
        "ece": metrics.ece(y, p),
        "ece_debiased": metrics.ece(y, p, debiased=True),
        "recall_by_dchi2": {k: metrics.recall_by_dchi2(*columns, rate) for k, rate in rates.items()}
        if by_dchi2
        else None,
        "intervals": intervals,
    }  # fmt: skip


def score_report(
    curves: LightCurves, p: NDArray, ideal: NDArray | None, *, num: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Full report of one probability a row, with the ideal observer's on the same rows.

    Without noise-free curves the ideal observer is its expectation from `dchi2`, as far as that
    goes; what is not defined is None.

    Args:
        curves: The set, n rows.
        p: P(binary) of each row (n,).
        ideal: Log-likelihood ratio of the ideal observer (n,), NaN = no partner; None = unknown.
        num, seed: Resamples of pairs behind each interval.

    Returns:
        Numbers of the network, `intervals`, `ideal_observer` and `bound_excess`
        (`excess_over_ideal`).
    """
    y, dchi2, pair = curves.y, curves.dchi2, curves.pair
    result = observer_scores(y, p, p, dchi2, pair, num=num, seed=seed)
    observer = dict.fromkeys(result) | {"kind": None, "exact": limits.noise_is_known(curves)}
    result["bound_excess"] = None
    binaries = dchi2[(y == 1) & np.isfinite(dchi2)]
    if ideal is not None and (known := np.isfinite(ideal)).any():
        y, ratio, dchi2, pair = (column[known] for column in (y, ideal, dchi2, pair))
        probability = limits.ideal_probability(ratio)
        observer |= observer_scores(y, ratio, probability, dchi2, pair, num=num, seed=seed)
        observer["kind"] = "realised"
        result["bound_excess"] = limits.excess_over_ideal(
            p[known], ratio, y, pair, num=num, seed=seed
        )
    elif binaries.size:
        observer |= limits.expected_ideal(binaries) | {"kind": "expected"}
    return result | {"ideal_observer": observer}


def scores_by_fraction(
    curves: LightCurves, p: NDArray, ideal: NDArray | None, *, num: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Scores at each of FRACTIONS with the ideal observer's of that prefix.

    Args:
        curves: The set, n rows.
        p: P(binary) at FRACTIONS (n, 7).
        ideal: Log-likelihood ratio up to FRACTIONS (n, 7); None = unknown.
        num, seed: Resamples of pairs.
    """
    y, pair, of = curves.y, curves.pair, metrics.STATISTICS
    by_fraction = {}
    for k, name in enumerate(early.FRACTION_KEYS):
        columns = y, p[:, k], p[:, k], curves.dchi2
        row: dict[str, Any] = metrics.score_table(
            *columns, pair, ("balanced_accuracy", "roc_auc"), num=num, seed=seed
        )
        row |= {key: of[key](*columns) for key in ("accuracy", "recall_at_1pct", "brier")}
        row |= {"ece": metrics.ece(y, p[:, k])}
        row |= dict.fromkeys(("ideal", "bound_excess", "reachable"))
        if ideal is not None and (known := np.isfinite(ideal[:, k])).any():
            ratio = ideal[known, k]
            best = y[known], ratio, limits.ideal_probability(ratio), curves.dchi2[known]
            names = ("balanced_accuracy", "roc_auc", "recall_at_1pct")
            row["ideal"] = {key: of[key](*best) for key in names}
            row["bound_excess"] = limits.excess_over_ideal(
                p[:, k], ideal[:, k], y, pair, num=num, seed=seed
            )
        by_fraction[name] = row
    return by_fraction


def full_report(
    curves: LightCurves,
    predictions: early.Predictions,
    *,
    early_detection: bool = False,
    num_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[dict[str, Any], NDArray | None]:
    """All numbers of `metrics.json` but provenance.

    Args:
        curves: The set, n rows.
        predictions: Of `predict` on it.
        early_detection: Also refit prefixes (refit-limited bound, onset) and count alerts.
        num_bootstrap, seed: Resamples of pairs behind every interval.

    Returns:
        The report, and the log-likelihood ratio of the ideal observer up to FRACTIONS (n, 7), None
        without noise-free pairs.
    """
    options = {"num": num_bootstrap, "seed": seed}
    paired = curves.magnification is not None and (curves.pair >= 0).any()
    ideal = limits.ideal_log_ratio(curves, FRACTIONS) if paired else None
    last = None if ideal is None else ideal[:, -1]
    result = score_report(curves, predictions.p[:, -1], last, **options)
    by_fraction = scores_by_fraction(curves, predictions.p, ideal, **options)
    result["alerts"] = None
    if early_detection:
        rows = curves.rows(slice(len(predictions.season)))
        onset = np.full(len(rows), np.nan)
        if paired:
            refits = early.refit_prefixes(rows, REFITTED_PAIRS)
            early.add_refit_limited(by_fraction, refits)
            onset = early.onset_times(rows, refits)
        result["alerts"] = alerts.alert_summary(
            predictions.season, rows.times(), rows.y, rows.pair, onset, rate=0.01
        )
    result["early_detection"] = by_fraction
    result["against_phase"] = early.scores_by_phase(curves.y, predictions.by_phase)
    return result, ideal


@dataclass(frozen=True)
class Assessment:
    """One network on one set."""

    curves: LightCurves
    p: NDArray  # (n,) float32, P(binary) at the end of the window
    ideal: NDArray | None  # (n,) log-likelihood ratio of the ideal observer, None without twins
    report: dict[str, Any]  # of `score_report`


def assess(
    data: Path, run: Path | None = None, *, num_bootstrap: int = 200, seed: int = 0
) -> Assessment:
    """Score a network on a set at the end of the window; nothing is written.

    Args:
        data: Set in the exchange format.
        run: Run folder of the network; None = the one that ships with the package.
        num_bootstrap, seed: Resamples of pairs behind each interval.

    Raises:
        InputError: If the network has seen one of the events.
        AssertionError: If a number lies above the ideal observer (`assert_below_ideal`).
    """
    network, config = load_network(run, find_device())
    curves = load(data)
    check_unseen(curves, config, data)
    p = early.predict(network, curves, season_rows=0).p[:, -1]
    ideal = limits.ideal_log_ratio(curves) if (curves.pair >= 0).any() else None
    report = score_report(curves, p, ideal, num=num_bootstrap, seed=seed)
    excess = report["bound_excess"] or {}
    limits.assert_below_ideal({name: row["z"] for name, row in excess.items()})
    return Assessment(curves, p, ideal, report)


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that a chapter keeps of a `score_report`, with those of the ideal observer."""
    ideal = report["ideal_observer"]
    chosen = {name: report["intervals"][name] for name in HEADLINE if name in report["intervals"]}
    chosen |= {name: report[name] for name in ("ece", "ece_debiased", "brier", "recall_by_dchi2")}
    if ideal["kind"]:
        beside = ideal.get("intervals") or ideal
        chosen["ideal"] = {name: beside[name] for name in HEADLINE if beside.get(name) is not None}
    if report["bound_excess"]:
        chosen["above_ideal_in_sigma"] = {k: v["z"] for k, v in report["bound_excess"].items()}
    return chosen
