"""Evaluate a network on an unseen set: numbers, intervals and figures in one folder."""

import ast
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lensml import evaluation, network, plotting
from lensml.experiments.results import write_json, write_svg
from lensml.experiments.tables import OBSERVER_COLUMNS, format_number, plain
from lensml.paths import PACKAGE, InputError, atomic_path, cached_path, only_writer, progress_bar
from lensml.simulation import LightCurves, Survey, concatenate, load

SEARCHES = ("evaluation/anomaly_finder.py", "evaluation/baselines.py", "lensing/*.py")
PART = 8192  # rows of a large set whose predictions are written together
HEADLINE = [name for name in evaluation.STATISTICS if name not in ("accuracy", "brier")]


def evaluate(
    data: Path | str, output_dir: Path | str, run: Path | str | None = None,
    *, early_detection: bool = False, num_bootstrap: int = 200, seed: int = 0,
    prevalence: float = 0.5,
) -> dict[str, Any]:  # fmt: skip
    """Score a network on a set and write `metrics.json`, `predictions.npz` and figures (SVG).

    `data` is in the exchange format, its `X` used as it is stored; `run` a run folder of `train`,
    None = the shipped weights; `early_detection` also refits prefixes (refit-limited bound, onset)
    and counts alerts; `seed` is of the `num_bootstrap` resamples of pairs behind every interval;
    calls `at_prevalence` are also given, all else is of the set as it is. The same call takes up
    what a killed one has predicted of a large set. Returns what `metrics.json` holds. InputError if
    the set cannot be scored or has been seen.
    """
    data, output_dir, device = Path(data), Path(output_dir).absolute(), str(network.find_device())
    with only_writer(output_dir):
        loaded, config = network.load_network(run, device)
        curves = load(data)
        check_fresh(curves, config, data)
        singles, binaries = (int((curves.y == label).sum()) for label in (0, 1))
        if not (singles and binaries and singles + binaries == len(curves)):
            raise InputError(
                f"{data}: `y` holds {singles} single lenses (0) and {binaries} binaries (1) in "
                f"{len(curves)} rows, but both classes and nothing else were expected; "
                "`lensml classify` calls curves of unknown class"
            )
        how, parts = f"{device} {network.weights_hash(run)}", output_dir / ".parts"
        predictions = predict_in_parts(loaded, curves, parts, how)
        options = {"early_detection": early_detection, "num_bootstrap": num_bootstrap, "seed": seed}
        result, ideal = evaluation.full_report(curves, predictions, **options)
        p = predictions.p[:, -1]
        result["at_prevalence"] = evaluation.at_prevalence(curves.y, p, prevalence)
        preset, set_seed, _ = curves.events()
        result["provenance"] = {
            "weights_sha256": network.weights_hash(run),
            "data": data.name,
            "rows": len(curves),
            "set": {"preset": preset, "seed": set_seed, "survey": curves.meta.get("survey")},
            "bootstrap": {"resamples": num_bootstrap, "seed": seed},
            "device": device,
        }
        result = plain(result)
        drawn = figures(curves, p, result, ideal)
        with atomic_path(output_dir / "predictions.npz") as path:
            np.savez(path, p=predictions.p, y=curves.y, pair=curves.pair, dchi2=curves.dchi2)
        for name, figure in drawn.items():
            write_svg(figure, output_dir / f"{name}.svg")
        write_json(result, output_dir / "metrics.json")  # last: where it is, all is there
        shutil.rmtree(parts, ignore_errors=True)
        return result


def check_fresh(curves: LightCurves, config: Mapping[str, Any], path: Path) -> None:
    """`check_unseen`, with the set's own survey in the command that makes fresh events."""
    try:
        network.check_unseen(curves, config, path)
    except InputError as error:
        survey, default = curves.meta.get("survey") or {}, plain(Survey().describe())
        other = {k: v for k, v in survey.items() if k in default and v != default[k]}
        flags = ""
        for flag, key in (("--cadence", "missing_fraction"), ("--error", "sigma")):
            if isinstance(survey.get(key), float | int):
                flags += f" {flag} {survey[key]}"
                other.pop(key, None)
        if blending := curves.meta.get("blending"):
            flags += f" --blending {blending[0]} {blending[1]}"
        flags += " --population" * bool(curves.meta.get("population"))
        note = f"; no flag sets {', '.join(other)}, `lensml.simulation.reobserve` does"
        message = str(error).replace(" --output", f"{flags} --output") + note * bool(other)
        raise InputError(message) from None


def report_text(report: Mapping[str, Any]) -> str:
    """What `lensml evaluate` prints of a report: by class, then scores beside the ideal's."""
    parts = ("precision", "recall", "f1", "support")
    lines = [f"{'class':25}" + "".join(f"{name:>12}" for name in parts)]
    for name, row in report["classification_report"].items():
        values = ("-" if row[part] is None else row[part] for part in parts)
        shown = (f"{v:.3f}" if isinstance(v, float) else v for v in values)
        lines.append(f"{name:25}" + "".join(f"{value:>12}" for value in shown))
    ideal, found = report["ideal_observer"], report["intervals"]
    lines += ["", f"{'score, 95 % interval':33}{'network':28}ideal observer"]
    for name in (key for key in OBSERVER_COLUMNS if key in found):
        beside = (ideal.get("intervals") or {}).get(name) or ideal.get(name)
        bound = "-" if beside is None else format_number(beside)
        lines.append(f"{OBSERVER_COLUMNS[name]:33}{format_number(found[name]):28}{bound}")
    if called := report.get("at_prevalence"):
        lines += ["", f"P > 0.5, shifted: {format_number(called).replace('_', ' ')}"]
    return "\n".join(lines)


def figures(
    curves: LightCurves, p: NDArray, result: dict[str, Any], ideal: NDArray | None
) -> dict[str, Figure]:
    """Figures of a `full_report` by name, the ideal observer drawn beside the network.

    `p` is P(binary) at the end of the window (n,); `ideal` the log-likelihood ratio up to
    FRACTIONS (n, 7), None = unknown.
    """
    y, observer = curves.y, result["ideal_observer"]
    ratio = np.full(len(y), np.nan) if ideal is None else ideal[:, -1]
    known = np.isfinite(ratio)
    best = {"ideal_y": y[known], "ideal_score": ratio[known]} if known.any() else {}
    drawn = {
        "roc_and_pr": plotting.roc_and_pr({"network": (y, p)}, **best),
        "confusion": plotting.confusion(result["confusion_matrix"], observer["confusion_matrix"]),
        "reliability": plotting.reliability(evaluation.reliability(y, p)),
        "early_detection": plotting.early_detection({"network": result["early_detection"]}),
        "against_phase": plotting.scores_by_phase({"network": result["against_phase"]}),
    }
    if table := result["recall_by_dchi2"]:
        drawn["recall_by_dchi2"] = plotting.recall_by_dchi2({"network": table["recall_at_1pct"]})
    s, q, u0 = (curves.param(name) for name in ("s", "q", "u0"))
    shown = (y == 1) & np.isfinite(s) & np.isfinite(q)
    if shown.any():
        found, bound = p[shown] > evaluation.threshold_at_fpr(p[y == 0], 0.01), None
        if known[shown].all():
            bound = ratio[shown] > evaluation.threshold_at_fpr(ratio[known & (y == 0)], 0.01)
        drawn["map_s_q"] = plotting.recall_map(s[shown], q[shown], found, bound)
        drawn["against_u0"] = plotting.recall_by_u0(u0[shown], found, bound)
    return drawn


@dataclass(frozen=True)
class Assessment:
    """One network on one set."""

    curves: LightCurves
    p: NDArray  # (n,) float32, P(binary) at the end of the window
    ideal: NDArray | None  # (n,) log-likelihood ratio of the ideal observer, None without twins
    report: dict[str, Any]  # of `score_report`


def code_digest(patterns: Sequence[str] = ("network/*.py", "lensing/*.py")) -> str:
    """Digest of files of the package, without docstrings and comments."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in PACKAGE.glob(pattern)):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = node.body[bool(ast.get_docstring(node)) :]
        digest.update(path.name.encode() + ast.dump(tree).encode())
    return digest.hexdigest()


def kept_path(how: str, *sets: LightCurves) -> Path:
    """File below ``data/scores`` for what is computed from these sets in the way of `how`."""
    digest = hashlib.sha256(how.encode())
    for curves in sets:
        digest.update(f"{curves.blended} {curves.exact} {curves.X.shape}".encode())
        for values in (curves.X, curves.time, curves.sigma, curves.m_base, curves.params):
            digest.update(np.ascontiguousarray(values).tobytes())
    return cached_path("scores", f"{digest.hexdigest()[:24]}.npz")


def predict_in_parts(
    loaded: network.Network, curves: LightCurves, folder: Path, how: str,
    season_rows: int = network.SEASON_ROWS,
) -> network.Predictions:  # fmt: skip
    """`predict`, in files of `folder` PART rows at a time; those there are read.

    A file's name is a digest of its rows, the code and `how`, which names weights and device.
    """
    if len(curves) <= PART:
        return network.predict(loaded, curves, season_rows=season_rows, progress=True)
    found, code = [], code_digest()
    for first in progress_bar(range(0, len(curves), PART), "parts"):
        rows = curves.rows(slice(first, first + PART))
        left = min(max(0, season_rows - first), PART)
        path = folder / kept_path(f"{how} {code} {left}", rows).name
        if not path.exists():
            part = network.predict(loaded, rows, season_rows=left, progress=True)
            with atomic_path(path) as temporary:
                np.savez(temporary, **asdict(part))
        with np.load(path) as kept:
            found.append({name: kept[name] for name in kept.files})
    return network.Predictions(**concatenate(found))


def predictions(
    curves: LightCurves, run: Path | str | None = None, *, season_rows: int = 0
) -> network.Predictions:
    """`predict`, or what it returned for the same curves, weights, code and kind of device.

    Kept below ``data/scores`` under a digest of all of these, so that chapters which look at the
    same events share the work. Arguments as in `predict`; `run` as in `load_network`.
    """
    device = network.find_device()
    path = kept_path(f"{device.type} {network.weights_hash(run)} {code_digest()}", curves)
    season_rows = min(season_rows, len(curves))
    if path.exists():
        with np.load(path) as kept:
            if len(kept["season"]) >= season_rows:
                found = network.Predictions(**kept)
                return replace(found, season=found.season[:season_rows])
    loaded, _ = network.load_network(run, device)
    parts = path.with_suffix(".parts")
    found = predict_in_parts(
        loaded, curves, parts, f"{device.type} {network.weights_hash(run)}", season_rows
    )
    with atomic_path(path) as temporary:
        np.savez(temporary, **asdict(found))
    shutil.rmtree(parts, ignore_errors=True)
    return found


def final_probability(curves: LightCurves, run: Path | str | None = None) -> NDArray:
    """P(binary) (n,) at the end of each row's window, kept as `predictions` are.

    From these where they are kept, else by the end alone, which takes a third of the time.
    """
    device = network.find_device()
    how = f"{device.type} {network.weights_hash(run)} {code_digest()}"
    if kept_path(how, curves).exists():
        return predictions(curves, run).p[:, -1]
    path = kept_path(f"end {how}", curves)
    if not path.exists():
        loaded, _ = network.load_network(run, device)
        p = network.predict_at_fractions(loaded, curves, progress=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, p=p[:, 0])
    with np.load(path) as kept:
        return kept["p"]


def classical(curves: LightCurves, training: LightCurves) -> dict[str, NDArray]:
    """`classical_scores` of whole curves (n,), by method, kept as `predictions` are.

    Gradient boosting learns from `training`, other events through the same survey.
    """
    path = kept_path(code_digest(SEARCHES), curves, training)
    if not path.exists():
        sets = (evaluation.search_prefixes(each, (1.0,)) for each in (curves, training))
        with atomic_path(path) as temporary:
            np.savez(temporary, **evaluation.classical_scores(*sets))
    with np.load(path) as kept:
        return dict(kept)


def scored(curves: LightCurves, run: Path | str | None = None) -> evaluation.Scores:
    """Network and ideal observer on a matched set at the end of the window."""
    return evaluation.score(curves, final_probability(curves, run))


def assess(
    curves: LightCurves, run: Path | None = None, *, num_bootstrap: int = 200, seed: int = 0
) -> Assessment:
    """Score a network on unseen events at the end of the window; options as in `evaluate`."""
    network.check_unseen(curves, network.load_network(run)[1], Path("the test set"))
    p = final_probability(curves, run)
    ideal = evaluation.ideal_log_ratio(curves) if (curves.pair >= 0).any() else None
    report = evaluation.score_report(curves, p, ideal, num=num_bootstrap, seed=seed)
    excess = report["bound_excess"] or {}
    evaluation.assert_below_ideal({name: row["z"] for name, row in excess.items()})
    return Assessment(curves, p, ideal, report)


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that a chapter keeps of a `score_report`, with those of the ideal observer."""
    ideal = report["ideal_observer"]
    chosen = {name: report["intervals"][name] for name in HEADLINE if name in report["intervals"]}
    chosen |= {name: report[name] for name in ("ece", "ece_at_most", "brier", "recall_by_dchi2")}
    if ideal["kind"]:
        beside = ideal.get("intervals") or ideal
        chosen["ideal"] = {name: beside[name] for name in HEADLINE if beside.get(name) is not None}
    if report["bound_excess"]:
        chosen["above_ideal_in_sigma"] = {k: v["z"] for k, v in report["bound_excess"].items()}
    return chosen
