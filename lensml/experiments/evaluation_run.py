"""Evaluate a network on an unseen set: numbers, intervals and figures in one folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lensml import plotting
from lensml.evaluation import (
    check_classes,
    check_unseen,
    detected,
    full_report,
    predict,
    reliability,
)
from lensml.experiments.results import write_svg
from lensml.experiments.tables import plain
from lensml.network import find_device, load_network, weights_hash
from lensml.paths import atomic_path
from lensml.simulation import LightCurves, load


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
        early_detection: Also refit prefixes (refit-limited bound, onset) and count alerts.
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
    device = str(device or find_device())
    network, config = load_network(run, device)
    curves = load(data)
    check_unseen(curves, config, data)
    check_classes(curves, data)
    predictions = predict(network, curves, batch_size=batch_size, device=device)
    result, ideal = full_report(
        curves, predictions, early_detection=early_detection, num_bootstrap=num_bootstrap, seed=seed
    )
    preset, set_seed, _ = curves.events()
    result["provenance"] = {
        "weights_sha256": weights_hash(run),
        "data": data.name,
        "rows": len(curves),
        "set": {"preset": preset, "seed": set_seed, "survey": curves.meta.get("survey")},
        "bootstrap": {"resamples": num_bootstrap, "seed": seed},
        "device": device,
    }
    result = plain(result)
    drawn = figures(curves, predictions.p[:, -1], result, ideal)
    write(output_dir, curves, predictions.p, result, drawn)
    return result


def figures(
    curves: LightCurves, p: NDArray, result: dict[str, Any], ideal: NDArray | None
) -> dict[str, Figure]:
    """Figures of a report by name, the ideal observer drawn beside the network.

    Args:
        curves: The set, n rows.
        p: P(binary) at the end of the window (n,).
        result: Of `full_report`.
        ideal: Log-likelihood ratio up to FRACTIONS (n, 7); None = unknown.
    """
    y = curves.y
    ratio = np.full(len(y), np.nan) if ideal is None else ideal[:, -1]
    known = np.isfinite(ratio)
    best = {"ideal_y": y[known], "ideal_score": ratio[known]} if known.any() else {}
    observer = result["ideal_observer"]
    drawn = {
        "roc_and_pr": plotting.roc_and_pr({"network": (y, p)}, **best),
        "confusion": plotting.confusion(result["confusion_matrix"], observer["confusion_matrix"]),
        "reliability": plotting.reliability(reliability(y, p)),
        "early_detection": plotting.early_detection({"network": result["early_detection"]}),
        "against_phase": plotting.scores_by_phase({"network": result["against_phase"]}),
    }
    if table := result["recall_by_dchi2"]:
        tables = {f"network, {name[10:-3]} % false": rows for name, rows in table.items()}
        bound = (observer["recall_by_dchi2"] or {}).get("recall_at_1pct")
        drawn["recall_by_dchi2"] = plotting.recall_by_dchi2(tables, bound)
    s, q, u0 = (curves.param(name) for name in ("s", "q", "u0"))
    binary = y == 1
    shown = (np.isfinite(s) & np.isfinite(q))[binary]
    if shown.any():
        found = detected(y, p)[shown]
        bound = None
        if known[binary][shown].all():
            bound = detected(y[known], ratio[known])[shown[known[binary]]]
        s, q, u0 = (column[binary][shown] for column in (s, q, u0))
        drawn["map_s_q"] = plotting.recall_map(s, q, found, bound)
        drawn["against_u0"] = plotting.recall_by_u0(u0, found, bound)
    return drawn


def write(
    folder: Path, curves: LightCurves, p: NDArray, result: dict, drawn: dict[str, Figure]
) -> None:
    """Write each file atomically; `metrics.json` last: where it is, all is there."""
    with atomic_path(folder / "predictions.npz") as path:
        np.savez(path, p=p, y=curves.y, pair=curves.pair, dchi2=curves.dchi2)
    for name, figure in drawn.items():
        write_svg(figure, folder / f"{name}.svg")
    with atomic_path(folder / "metrics.json") as path:
        path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
