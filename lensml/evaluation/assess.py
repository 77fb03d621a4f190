"""One network on one set, as a chapter needs it: the numbers, and the rows to look at."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from lensml.evaluation.evaluate import check_unseen, predict, summary
from lensml.evaluation.ideal_observer import ideal_log_ratio
from lensml.network import load_network
from lensml.simulation import LightCurves, load

__all__ = ["Assessment", "assess", "assert_below_ideal", "headline"]

HEADLINE = (
    "balanced_accuracy",
    "roc_auc",
    "average_precision",
    "recall_at_1pct",
    "recall_at_0.1pct",
    "dchi2_at_half_recall",
)


@dataclass(frozen=True)
class Assessment:
    """One network on one set."""

    curves: LightCurves
    p: NDArray  # (n,) float32, P(binary) when the window is over
    ideal: NDArray | None  # (n,) log-likelihood ratio of the ideal observer, None without twins
    report: dict[str, Any]  # of `evaluate.summary`


def assess(
    data: Path, run: Path | None = None, *, num_bootstrap: int = 200, seed: int = 0
) -> Assessment:
    """Score a network on a set like `evaluate`, at the end of the window only; nothing is written.

    Args:
        data: Set in the exchange format.
        run: Run folder of the network; None = the one that ships with the package.
        num_bootstrap, seed: Resamples of pairs behind each interval.

    Raises:
        InputError: If the network has seen one of the events.
        AssertionError: If a number lies above the ideal observer (`assert_below_ideal`).
    """
    network, config = load_network(run, "cuda" if torch.cuda.is_available() else "cpu")
    curves = load(data)
    check_unseen(curves, config, data)
    p = predict(network, curves, season_rows=1).p[:, -1]
    ideal = ideal_log_ratio(curves) if (curves.pair >= 0).any() else None
    report = summary(curves, p, ideal, num=num_bootstrap, seed=seed)
    assert_below_ideal(report)
    return Assessment(curves, p, ideal, report)


def assert_below_ideal(report: Mapping[str, Any]) -> None:
    """Refuse a number more than three standard errors above the ideal observer: it is a leak."""
    for name, excess in (report["bound_excess"] or {}).items():
        assert not excess["z"] > 3, f"{name} lies {excess['z']:.1f} sigma above the ideal: a leak"


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a chapter keeps of a report: intervals, calibration, recall table, the ideal beside."""
    ideal = report["ideal_observer"]
    chosen = {name: report["intervals"][name] for name in HEADLINE if name in report["intervals"]}
    chosen |= {name: report[name] for name in ("ece", "ece_debiased", "brier", "recall_by_dchi2")}
    if ideal["kind"]:
        beside = ideal.get("intervals") or ideal
        chosen["ideal"] = {name: beside[name] for name in HEADLINE if beside.get(name) is not None}
    if report["bound_excess"]:
        chosen["above_ideal_in_sigma"] = {k: v["z"] for k, v in report["bound_excess"].items()}
    return chosen
