"""Tables of the model card and the data card, from the records beside them.

A card is Markdown with places ``<!-- table: scores -->`` to ``<!-- end -->``; `lensml book --quote`
puts the tables there anew, a test compares them.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lensml.experiments import format_number
from lensml.network import load_network, weights_hash
from lensml.paths import DATA, RESULTS, WEIGHTS

PLACE = re.compile(r"(<!-- table: (\w+) -->\n\n).*?(<!-- end -->)", re.DOTALL)
SCORES = {
    "roc_auc": "area under the ROC curve",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy at $P = 0.5$",
    "recall_at_1pct": "recall at 1 % false positives",
    "recall_at_0.1pct": "recall at 0.1 % false positives",
    "dchi2_at_half_recall": r"$\Delta\chi^2$ at 50 % recall, 1 % false positives",
    "brier": "Brier score",
}


def renew(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Put tables into their places in a card."""
    return PLACE.sub(lambda m: f"{m[1]}{tables[m[2]]()}\n\n{m[3]}", text)


def table(headings: str, rows: list[list[Any]]) -> str:
    """A Markdown table; headings are one string with bars between."""
    lines = [headings.split("|"), ["---"] * (headings.count("|") + 1), *rows]
    return "\n".join(f"| {' | '.join(str(x).strip() for x in line)} |" for line in lines)


def read(path: Path) -> Any:
    """A record."""
    return json.loads(path.read_text())


def model_tables(folder: Path = WEIGHTS) -> dict[str, Callable[[], str]]:
    """Tables of the model card by name, from the records in the folder of the weights."""
    config, metrics = read(folder / "config.json"), read(folder / "metrics.json")

    def facts() -> str:
        network, _ = load_network()
        size = (folder / "model.safetensors").stat().st_size
        count = sum(p.numel() for p in network.parameters())
        rows = [["parameters", f"{count:,}"], ["file", f"`model.safetensors`, {size:,} bytes"]]
        rows += [["SHA-256", f"`{weights_hash()}`"], ["torch of the training", config["torch"]]]
        return table("what|value", [*rows, ["commit of the training", f"`{config['commit']}`"]])

    def stages() -> str:
        lasts = []
        for name in ("first_stage_history.csv", "training_history.csv"):
            with open(folder / name, newline="") as file:
                lasts.append(list(csv.DictReader(file))[-1])
        keys = {"seconds": "time [s]", "step": "steps", "samples": "samples"}
        rows = [[v, *(f"{float(s[k]):,.0f}" for s in lasts)] for k, v in keys.items()]
        rows += [["loss on validation", *(s["loss"] for s in lasts)]]
        return table("at the end of|first stage|second stage", rows)

    def events() -> str:
        rows = [
            [use, e["preset"], e["seed"], f"{e['first']:,} to {e['stop'] - 1:,}"]
            for use, name in (("training", "trained_on"), ("validation", "validated_on"))
            for e in config[name]
        ]
        return table("used for|parameter set|seed|numbers of events", rows)

    def scores() -> str:
        ideal = metrics["ideal_observer"]
        rows = [
            [text, *(format_number(x["intervals"].get(key) or x[key]) for x in (metrics, ideal))]
            for key, text in SCORES.items()
        ]
        p = metrics["provenance"]
        where = f"{p['rows'] // 2:,} pairs of *{p['set']['preset']}*, seed {p['set']['seed']}"
        where += f", errors of {p['set']['survey']['sigma']} mag"
        return table("end of the window|network|ideal observer", rows) + f"\n\nThese are {where}."

    def thresholds() -> str:
        rows = [
            [survey, *(f"{x['threshold']:.4f}" for x in levels.values()), levels["1pct"]["singles"]]
            for survey, levels in read(folder / "alerts.json")["thresholds"].items()
        ]
        return table("survey|1 % of single lenses|0.1 %|single lenses", rows)

    return {f.__name__: f for f in (facts, stages, events, scores, thresholds)}


def data_tables(results: Path = RESULTS) -> dict[str, Callable[[], str]]:
    """Tables of the data card by name, from the committed records."""

    def origin(path: Path) -> list[str]:
        p = read(path)["provenance"]
        commit = f"`{p['commit'][:10]}`" + " (modified)" * p["modified"]
        time = f"{p['wall_time_s']:,.0f}"
        return [f"`{path.stem}`", commit, p["date"], time, p["device"]]

    def chapters() -> str:
        paths = [p for size in ("full", "desk") for p in sorted((results / size).glob("*.json"))]
        rows = [[p.parent.name, *origin(p)] for p in paths]
        return table("size|record|commit|date|time [s]|device", rows)

    def benchmarks() -> str:
        paths = sorted((results / "benchmarks").glob("*/*.json"))
        return table("record|commit|date|time [s]|device", [origin(p) for p in paths])

    return {f.__name__: f for f in (chapters, benchmarks)}


def cards() -> dict[Path, dict[str, Callable[[], str]]]:
    """Both cards with their tables."""
    return {WEIGHTS / "README.md": model_tables(), DATA / "README.md": data_tables()}
