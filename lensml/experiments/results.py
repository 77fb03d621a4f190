"""A chapter's run: its sets, its figures and tables, its numbers with their provenance."""

import io
import json
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lensml.experiments import presets
from lensml.experiments.machine import OUTPUT_VARIABLE, provenance
from lensml.experiments.presets import Experiment
from lensml.experiments.tables import (
    ResultsTable,
    flatten,
    format_number,
    plain,
    provenance_line,
    results_table,
    safe_keys,
)
from lensml.network import check_unseen, load_network, weights_hash
from lensml.paths import DATA, FIGURES, RESULTS, ROOT, InputError, atomic_path, check_size
from lensml.simulation import LightCurves, Simulation, load, reobserve, simulate
from lensml.training import train

BENCHMARKS = RESULTS / "benchmarks"  # one folder a device, one file a benchmark and date
PERFORMANCE = ("simulation", "pspl_fit", "training", "inference", "stream", "memory")
# Quoted alike, but need data, programs or a GPU that do not come with the package.
STUDIES = (
    *("real_events", "rtmodel", "search", "seeds", "stream_device"),
    *("baseline_seeds", "distinct_seeds", "stellar_seeds"),
)
LARGEST_FIGURE = 2_000_000  # bytes; a larger svg is stored as png


def output_root() -> Path:
    """Folder that stands for the repository's root when results and figures are written."""
    return Path(os.environ.get(OUTPUT_VARIABLE) or ROOT)


def results_path(chapter: str, size: str) -> Path:
    """Where `Chapter.save` writes: smoke below `_build`, desk and full below `data/results`."""
    folder = "_build/results" if check_size(size) == "smoke" else "data/results"
    return output_root() / folder / size / f"{chapter}.json"


def load_results(chapter: str) -> dict[str, Any] | None:
    """The committed record of the largest size ever run (full, else desk), or None."""
    for size in ("full", "desk"):
        path = RESULTS / size / f"{chapter}.json"
        if path.exists():
            return json.loads(path.read_text())
    return None


def season_thresholds(early_detection: Mapping[str, Any] | None) -> dict[str, float]:
    """Alert thresholds at 1 % and 0.1 % false alarms a season, from chapter 07's record.

    Raises:
        InputError: If there is no record, or it keeps no threshold.
    """
    stored = (early_detection or {}).get("numbers", {}).get("policies", {})
    names = {"1pct": "1_pct", "0_1pct": "0.1_pct"}
    if missing := [key for key in names.values() if key not in stored]:
        raise InputError(f"no stored result of chapter 07 keeps an alert threshold for {missing}")
    return {name: stored[key]["threshold"] for name, key in names.items()}


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


def write_json(value: Any, final: Path) -> None:
    """Write a result atomically, NaN refused."""
    with atomic_path(final) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_svg(figure: Figure, final: Path) -> None:
    """Write a figure atomically, without date or random ids: same numbers, same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": final.stem}), atomic_path(final) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, bbox_inches="tight")


def write_figure(figure: Figure, stem: Path) -> None:
    """Write `stem`.svg, or `stem`.png if the svg is too large."""
    vector, raster = stem.with_suffix(".svg"), stem.with_suffix(".png")
    write_svg(figure, vector)
    if vector.stat().st_size < LARGEST_FIGURE:
        raster.unlink(missing_ok=True)
        return
    with atomic_path(raster) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight")
    vector.unlink()


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as an image inside a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def display(thing: Any) -> None:
    """Show `thing` when running inside a notebook; do nothing elsewhere."""
    import IPython

    if IPython.get_ipython() is None:
        return
    if isinstance(thing, Figure):  # made without pyplot, whose backend would render it
        thing = IPython.display.Image(png(thing, dpi=110))
    IPython.display.display(thing)


def compare_with_committed(
    chapter: str, numbers: Mapping[str, Any] | None = None, size: str | None = None
) -> ResultsTable:
    """Table of a chapter's numbers: computed here at `size`, if given, beside the committed."""
    record, columns = load_results(chapter), {}
    if numbers is not None:
        columns[f"computed here ({size})"] = flatten(plain(numbers))
    if record:
        heading = f"committed ({record['provenance']['size']})"
        columns[heading] = flatten(record["numbers"])
    names = dict.fromkeys(name for found in reversed(columns.values()) for name in found)
    rows = [
        [name, *(format_number(c[name]) if name in c else "-" for c in columns.values())]
        for name in names
    ]
    return ResultsTable(["quantity", *columns], rows, provenance_line(chapter, record))


def made(simulation: Simulation, path: Path) -> Path:
    """The simulated set at `path`, made or found; small ones in this process alone."""
    workers = 1 if simulation.num_pairs < 200 else None  # done before a second one would start
    return simulate(path, simulation, workers=workers)


def one_file(simulation: Simulation) -> Path:
    """A set as one file under `data/sets`."""
    kind = "population" if simulation.population else "matched"
    stem = f"{simulation.preset}_{kind}_{simulation.num_pairs}_seed{simulation.seed}"
    stem += "_blended" * bool(simulation.blending)
    return made(simulation, DATA / "sets" / f"{stem}.npz")


class Chapter:
    """One run of a chapter: its preset, its clock, and what it shows and saves.

    Args:
        name: File stem of the notebook; ``02_baseline`` takes `presets.baseline`.
        size: "smoke", "desk" or "full".
        seed: Of all that is drawn.
        sizes_differ: Whether a run at smoke is less than one at desk.
    """

    def __init__(self, name: str, size: str, seed: int = 0, *, sizes_differ: bool = True) -> None:
        self.name, self.size, self.seed = name, check_size(size), seed
        preset = getattr(presets, name[3:], None)
        self.experiment: Experiment | None = preset(size, seed) if preset else None
        self.figures: list[str] = []  # shown so far
        self.started = time.time()
        self._sizes_differ = sizes_differ

    def _repr_html_(self) -> str:
        return self.experiment._repr_html_() if self.experiment else ""

    @property
    def num_bootstrap(self) -> int:
        """Resamples of pairs behind each interval."""
        return self.experiment.num_bootstrap

    @property
    def mark(self) -> str:
        """What tables and figures of size smoke carry; empty at other sizes."""
        if self.size != "smoke" or not self._sizes_differ:
            return ""
        tests = self.experiment.tests.values() if self.experiment else ()
        pairs = max((test.num_pairs for test in tests), default=0)
        return f"smoke size: {f'{pairs} pairs, ' * bool(pairs)}not a result"

    def test_path(self, name: str) -> Path:
        """File of the test set `name`, simulated on first use."""
        return one_file(self.experiment.tests[name])

    def test_set(self, name: str, survey: str | None = None) -> LightCurves:
        """The test set `name` through one of the chapter's surveys; None = the set's own.

        Matched events are observed by `reobserve` in every chapter, so that two chapters which look
        at one condition have the same rows.

        Raises:
            InputError: If the shipped network was trained or validated on one of its events.
        """
        path, simulation = self.test_path(name), self.experiment.tests[name]
        curves = load(path)
        check_unseen(curves, load_network()[1], path)
        if simulation.population:
            return curves
        through = self.experiment.surveys[survey] if survey else simulation.survey
        return reobserve(curves, through, self.seed)

    def training_set(self) -> LightCurves:
        """The events that the baseline methods of chapter 8 learn from."""
        return load(one_file(self.experiment.baseline_methods.training))

    def fine_tuned(self, name: str) -> Path:
        """Run folder of the network made for `name`; trained on first use, resumes."""
        simulation, config = self.experiment.fine_tuned[name]
        stem = f"{simulation.preset}_{simulation.num_pairs}_seed{simulation.seed}"
        data = made(simulation, DATA / "sets" / f"train_{stem}")
        start = weights_hash() if config.start_from else ""
        recipe = zlib.crc32(f"{simulation}{config}{start}".encode())  # another one, another folder
        return train(data, DATA / "runs" / f"{stem}_{recipe:08x}", config, name=name, resume=True)

    def figure(self, figure: Figure, name: str) -> None:
        """Show a figure, close it, and keep it if nothing larger has been run.

        It goes to ``figures/NN_name.svg`` (png above 2 MB) only for desk and full, and desk never
        replaces a figure of full. The same numbers give the same bytes.
        """
        stem = f"{self.name[:2]}_{name}"
        self.figures.append(stem)
        if self.mark:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7}
            look = {"color": "0.4", "fontsize": 13, "bbox": box, "zorder": 10}
            figure.text(0.5, 0.5, self.mark, ha="center", va="center", **look)
        full = RESULTS / "full" / f"{self.name}.json"
        if self.size == "full" or (self.size == "desk" and not full.exists()):
            write_figure(figure, output_root() / FIGURES.relative_to(ROOT) / stem)
        display(figure)
        plt.close(figure)

    def table(
        self,
        rows: ResultsTable | Mapping[str, Mapping[str, Any]],
        columns: Sequence[str] | Mapping[str, str] = (),
        note: str = "",
    ) -> ResultsTable:
        """`results_table` of this run, or a table made before, with the mark of size smoke."""
        table = rows if isinstance(rows, ResultsTable) else results_table(rows, columns, note)
        table.note = " ".join(filter(None, [table.note, self.mark and f"({self.mark})"]))
        return table

    def save(self, numbers: Mapping[str, Any], *, spell_keys: bool = False) -> ResultsTable:
        """Write the chapter's numbers, provenance and names of figures, whole or not at all.

        Args:
            numbers: Name to number, to interval ``{"value", "low", "high"}``, or to a nested
                mapping or list of these. Numpy types are converted; NaN becomes null.
            spell_keys: Store every key as `result_key` spells it, not as it is.

        Returns:
            The numbers of this run beside the committed ones.
        """
        numbers = plain(safe_keys(numbers) if spell_keys else numbers)
        origin = provenance(size=self.size, seed=self.seed, started=self.started)
        record = {"chapter": self.name, "numbers": numbers}
        record |= {"figures": self.figures, "provenance": origin}
        write_json(record, results_path(self.name, self.size))
        return compare_with_committed(self.name, numbers, self.size)


start = Chapter  # what a notebook calls to begin: experiments.start("02_baseline", size, seed)
