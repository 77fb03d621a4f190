"""A chapter's numbers and figures, saved with where they came from, and shown again."""

import html
import io
import json
import math
import operator
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lensml.paths import (
    FIGURES,
    RESULTS,
    ROOT,
    SIZES,
    InputError,
    atomic_path,
    available_cores,
    check_size,
)

__all__ = [
    "BENCHMARKS",
    "PERFORMANCE",
    "STUDIES",
    "OUTPUT_VARIABLE",
    "Comparison",
    "benchmark_rows",
    "benchmarks_by_device",
    "device_name",
    "flatten",
    "format_number",
    "glue_numbers",
    "load_benchmark",
    "load_results",
    "provenance",
    "results_path",
    "save_figure",
    "save_results",
    "season_thresholds",
    "show_committed",
    "target_met",
]

OUTPUT_VARIABLE = "LENSML_OUTPUT"  # a folder that takes the repository's place for what is written
PACKAGES = ("lensml", "torch", "numpy", "VBMicrolensing", "MulensModel", "scikit-learn")
BENCHMARKS = RESULTS / "benchmarks"  # one folder a device, one file a benchmark and date
PERFORMANCE = ("simulation", "pspl_fit", "training", "inference", "stream", "memory")
# Quoted alike, but need data, programs or a GPU that do not come with the package.
STUDIES = (
    *("real_events", "rtmodel", "search", "seeds", "stream_device"),
    *("baseline_seeds", "distinct_seeds", "stellar_seeds"),
)
TARGET = re.compile(r"(>=|<=|<|>) *([\d.,]+)|([\d.]+) *\+- *([\d.]+)")
LARGEST_FIGURE = 2_000_000  # bytes; a larger svg is stored as png
SCREEN_DPI = 110  # of figures inside a page


def output_root() -> Path:
    """Folder that stands for the repository's root when results and figures are written."""
    return Path(os.environ.get(OUTPUT_VARIABLE) or ROOT)


def results_path(chapter: str, size: str) -> Path:
    """Where `save_results` writes: smoke below `_build`, desk and full below `data/results`."""
    check_size(size)
    folder = "_build/results" if size == "smoke" else "data/results"
    return output_root() / folder / size / f"{chapter}.json"


def provenance(*, size: str, seed: int | Iterable[int], started: float) -> dict[str, Any]:
    """Say which code, seed, machine and time made a result.

    Args:
        size: "smoke", "desk" or "full".
        seed: The seed, or all seeds that were used.
        started: `time.time()` at the beginning of the run [s].
    """
    check_size(size)
    return {
        "size": size,
        "commit": git("rev-parse", "HEAD") or "unknown",
        "modified": bool(
            git("status", "--porcelain", "-uno", "--", ".", ":!data/results", ":!figures")
        ),
        "seeds": [int(s) for s in np.atleast_1d(np.asarray(seed))],
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "wall_time_s": round(time.time() - started, 1),
        "device": device_name(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def git(*arguments: str) -> str:
    """Output of a git command in the repository; empty outside of one."""
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def installed(package: str) -> str | None:
    """Version of an installed package, None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def device_name() -> str:
    """The accelerator torch would use, else the processor."""
    import torch  # late: a reader of committed results need not wait for it

    if torch.cuda.is_available():
        kind = "ROCm" if torch.version.hip else "CUDA"
        return f"{torch.cuda.get_device_name(0)} ({kind}, {torch.cuda.device_count()} visible)"
    return f"CPU, {processor_name()}"


def processor_name() -> str:
    """Model of the processor as Linux names it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def save_results(
    chapter: str,
    numbers: Mapping[str, Any],
    *,
    size: str,
    seed: int | Iterable[int],
    started: float,
    figures: Iterable[str] = (),
) -> Path:
    """Write a chapter's numbers with their provenance, whole or not at all.

    Args:
        chapter: File stem of the notebook, such as "02_baseline".
        numbers: Name to number, to interval ``{"value", "low", "high"}``, or to a nested mapping
            or list of these. Numpy scalars and arrays are converted; NaN becomes null.
        size, seed, started: See `provenance`.
        figures: Names given to `save_figure`.

    Returns:
        The file written.
    """
    record = {
        "chapter": chapter,
        "numbers": plain(numbers),
        "figures": list(figures),
        "provenance": provenance(size=size, seed=seed, started=started),
    }
    final = results_path(chapter, size)
    final.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(final) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return final


def plain(value: Any) -> Any:
    """Turn numpy scalars, arrays and nested mappings into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"a result of type {type(value).__name__} cannot be stored: {value!r}")


def load_results(chapter: str) -> dict[str, Any] | None:
    """The committed record of the largest size ever run (full, else desk), or None."""
    for size in ("full", "desk"):
        path = RESULTS / size / f"{chapter}.json"
        if path.exists():
            return json.loads(path.read_text())
    return None


def season_thresholds(early_detection: Mapping[str, Any] | None) -> dict[str, float]:
    """Alert thresholds at 1 % and 0.1 % false alarms a season, from chapter 07's stored record.

    Raises:
        InputError: If there is no record, or it keeps no threshold.
    """
    numbers = (early_detection or {}).get("numbers", {})
    kept = numbers.get("policies") or {}
    found = {"1pct": kept.get("1_pct"), "0_1pct": kept.get("0.1_pct")}
    if not kept:  # results from before there were two rates
        found = {"1pct": numbers.get("alerts", {}).get("baseline")}
    thresholds = {rate: row["threshold"] for rate, row in found.items() if row}
    if not thresholds:
        raise InputError("no stored result of chapter 07 keeps an alert threshold; give one")
    return thresholds


def benchmarks_by_device(name: str, root: Path = BENCHMARKS) -> dict[str, dict[str, Any]]:
    """The newest record of a benchmark on each device, by the device's folder."""
    found = {}
    dated = re.compile(re.escape(name) + r"-\d{4}-\d\d-\d\d\.json")
    for path in sorted(root.glob("*/*.json"), key=lambda p: p.name):
        if dated.fullmatch(path.name):
            found[path.parent.name] = json.loads(path.read_text())
    return found


def load_benchmark(name: str, root: Path = BENCHMARKS) -> dict[str, Any] | None:
    """The newest record of a benchmark on any device; None if there is none."""
    records = benchmarks_by_device(name, root).values()
    return max(records, key=lambda record: record["provenance"]["date"], default=None)


def target_met(value: float | Mapping[str, float], target: str) -> bool | None:
    """Whether `value` meets `>= 50`, `< 2` or `1.00 +- 0.05`; None without a target."""
    if not target:
        return None
    if (found := TARGET.match(target)) is None:
        raise ValueError(
            f"`target` is {target!r}, but '>= 50', '< 2' or '1.00 +- 0.05' was expected"
        )
    value = value["value"] if isinstance(value, Mapping) else value
    relation, limit, centre, width = found.groups()
    if centre:
        return abs(value - float(centre)) <= float(width)
    limit = float(limit.replace(",", ""))
    compare = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt}
    return compare[relation](value, limit)


def benchmark_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Rows `[quantity, value, target, met or missed]` of one benchmark record, as text."""
    rows = []
    for name, value in record["numbers"].items():
        target = record["marks"].get(name, "")
        outcome = {None: "", True: "met", False: "missed"}[target_met(value, target)]
        rows.append([name.replace("_", " "), format_number(value), target, outcome])
    return rows


def save_figure(figure: Figure, name: str, size: str) -> None:
    """Show a figure in the notebook, and keep it if nothing larger has been run.

    It goes to ``figures/<name>.svg`` (png above 2 MB) only for desk and full, and desk never
    replaces a figure of full. The same numbers give the same bytes.

    Args:
        figure: The figure; it is closed afterwards.
        name: "NN_what", beginning with the chapter's number.
        size: Size of the run that made the figure.
    """
    check_size(size)
    if size != "smoke" and SIZES.index(size) >= largest_size(name[:2]):
        folder = output_root() / FIGURES.relative_to(ROOT)
        folder.mkdir(parents=True, exist_ok=True)
        write_figure(figure, folder / name)
    display(figure)
    plt.close(figure)


def largest_size(number: str) -> int:
    """Rank in `SIZES` of the largest committed result of chapter "NN", 0 if there is none."""
    ranks = [SIZES.index(size) for size in SIZES if any((RESULTS / size).glob(f"{number}_*.json"))]
    return max(ranks, default=0)


def write_figure(figure: Figure, stem: Path) -> None:
    """Write `stem`.svg without date or random ids; `stem`.png instead if the svg is too large."""
    vector, raster = stem.with_suffix(".svg"), stem.with_suffix(".png")
    with matplotlib.rc_context({"svg.hashsalt": stem.name}), atomic_path(vector) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, bbox_inches="tight")
    if vector.stat().st_size < LARGEST_FIGURE:
        raster.unlink(missing_ok=True)
        return
    with atomic_path(raster) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    vector.unlink()


def display(thing: Any) -> None:
    """Show `thing` when running inside a notebook; do nothing elsewhere."""
    from IPython import display as ipython_display
    from IPython import get_ipython

    if get_ipython() is None:
        return
    if isinstance(thing, Figure):  # made without pyplot, whose backend would render it
        picture = io.BytesIO()
        thing.savefig(picture, format="png", dpi=SCREEN_DPI)
        thing = ipython_display.Image(picture.getvalue())
    ipython_display.display(thing)


def is_interval(value: Any) -> bool:
    """Whether `value` is stored as ``{"value", "low", "high"}``."""
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def flatten(numbers: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and intervals under joined names ``a_b``; lists are left out: they need a figure."""
    flat: dict[str, Any] = {}
    for key, value in numbers.items():
        name = "".join(c if c.isalnum() else "_" for c in f"{prefix}{key}")
        if isinstance(value, Mapping) and not is_interval(value):
            flat |= flatten(value, f"{name}_")
        elif not isinstance(value, list | tuple | np.ndarray):
            flat[name] = value
    return flat


def format_number(value: Any) -> str:
    """The one way a number is printed: three figures, or the decimals its interval allows."""
    if is_interval(value):
        value, low, high = value["value"], value["low"], value["high"]
        if None in (value, low, high):
            return format_number(value)
        decimals = decimals_of(high - low)
        return f"{value:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"
    if value is None:
        return "not defined"
    if isinstance(value, bool | str):
        return {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
    if isinstance(value, int | np.integer) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0.9 < abs(value) < 1:  # what is missing to one is the message
        return f"{value:.{max(3, decimals_of(2 - 2 * abs(value)))}f}"
    return f"{value:.3g}"


def decimals_of(width: float) -> int:
    """Decimals that show an interval of this full width with two figures at most."""
    if width <= 0:
        return 3
    return int(np.clip(-math.floor(math.log10(width / 2)), 0, 6))


class Comparison:
    """A table of what was computed here beside what is committed; HTML and plain text."""

    def __init__(self, headings: list[str], rows: list[list[str]], note: str) -> None:
        self.headings, self.rows, self.note = headings, rows, note

    def __repr__(self) -> str:
        lines = [self.headings, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headings))]
        text = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*text, self.note])

    def _repr_html_(self) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        head = line(self.headings, "th")
        note = re.sub("`(.+?)`", r"<code>\1</code>", html.escape(self.note))
        return (
            f'<table class="table"><thead>{head}</thead><tbody>{body}</tbody></table>'
            f"<p><em>{note}</em></p>"
        )


def show_committed(
    chapter: str, numbers: Mapping[str, Any] | None = None, size: str | None = None
) -> Comparison:
    """Table of a chapter's numbers: computed here (if given) beside the committed result.

    Args:
        chapter: File stem of the notebook.
        numbers: What this run computed, as given to `save_results`.
        size: Size of this run.
    """
    record = load_results(chapter)
    here = flatten(plain(numbers or {}))
    there = flatten(record["numbers"]) if record else {}
    headings, columns = ["quantity"], []
    if numbers is not None:
        headings.append(f"computed here ({size})")
        columns.append(here)
    if record:
        headings.append(f"committed ({record['provenance']['size']})")
        columns.append(there)
    rows = [
        [name.replace("_", " "), *(format_number(c[name]) if name in c else "-" for c in columns)]
        for name in dict.fromkeys([*there, *here])
    ]
    return Comparison(headings, rows, origin(chapter, record))


def origin(chapter: str, record: Mapping[str, Any] | None) -> str:
    """One sentence on where the committed numbers come from."""
    if record is None:
        return (
            f"No result of {chapter} is committed yet; "
            f"`python -m lensml run {chapter} --size desk` makes one."
        )
    p = record["provenance"]
    seeds = ", ".join(map(str, p["seeds"]))
    changed = " with local changes" if p["modified"] else ""
    return (
        f"Committed result: size {p['size']}, commit {p['commit'][:10]}{changed}, seed {seeds}, "
        f"{p['device']}, {p['wall_time_s']:,.0f} s, {p['date']}."
    )


def glue_numbers(numbers: Mapping[str, Any], prefix: str) -> None:
    """Glue every number under ``prefix_name``, as `format_number` prints it."""
    from myst_nb import glue

    for name, value in flatten(plain(numbers)).items():
        glue(f"{prefix}_{name}", format_number(value), display=False)
