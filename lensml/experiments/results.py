"""A chapter's run: its sets, its figures and tables, its numbers with their provenance."""

import base64
import html
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
from lensml.experiments.machine import OUTPUT_VARIABLE, device_name, provenance
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
from lensml.paths import (
    DATA,
    FIGURES,
    RESULTS,
    ROOT,
    SIZES,
    atomic_path,
    available_cores,
    cached_path,
    check_size,
)
from lensml.simulation import LightCurves, Simulation, load, reobserve, simulate
from lensml.training import TrainingConfig, train

BENCHMARKS = RESULTS / "benchmarks"  # one folder a device, one file a benchmark and date
PERFORMANCE = ("simulation", "pspl_fit", "training", "inference", "stream", "memory")
# Quoted alike, but need data, programs or a GPU that do not come with the package.
STUDIES = (
    *("ablation", "earlier_commit", "half_recall", "kernels", "real_events", "rtmodel"),
    *("season", "sky", "stream_day", "stream_device"),
)


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


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as an image inside a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def display(thing: Any, **origin: Any) -> None:
    """Show a figure, its svg file, data by media type or any object inside a notebook.

    `origin` is its metadata: what the book needs to know (`figure`, `table`, `own`, ...).
    """
    import IPython

    if thing is None or IPython.get_ipython() is None:
        return
    if isinstance(thing, Figure):  # made without pyplot, whose backend would render it
        thing = IPython.display.Image(png(thing, dpi=220), retina=True)
    elif isinstance(thing, Path):
        thing = {"image/svg+xml": thing.read_text(), "text/plain": thing.stem}
    options = {"metadata": {"lensml": origin}} if origin else {}
    IPython.display.display(thing, raw=isinstance(thing, Mapping), **options)


def beside_committed(
    numbers: Mapping[str, Any], size: str, record: Mapping[str, Any]
) -> ResultsTable:
    """Table of a run's numbers at `size` beside those of the committed record."""
    here, kept = flatten(numbers), flatten(record["numbers"])
    rows = [
        [name, *(format_number(c[name]) if name in c else "-" for c in (here, kept))]
        for name in kept | here
    ]
    committed = f"committed ({record['provenance']['size']})"
    return ResultsTable(["quantity", f"computed here ({size})", committed], rows)


def set_path(simulation: Simulation) -> Path:
    """Folder of a chapter's set: below ``data/sets``, or in the cache of sets if it is there."""
    kind = "population" if simulation.population else "matched"
    stem = f"{simulation.preset}_{kind}_{simulation.num_pairs}_seed{simulation.seed}"
    return cached_path("sets", stem + "_blended" * bool(simulation.blending))


def run_path(simulation: Simulation, config: TrainingConfig) -> Path:
    """Run folder of a chapter's network; another recipe has another."""
    start = weights_hash() if config.start_from else ""
    recipe = zlib.crc32(f"{simulation}{config}{start}".encode())
    stem = f"{simulation.preset}_{simulation.num_pairs}_seed{simulation.seed}"
    return DATA / "runs" / f"{stem}_{recipe:08x}"


def made(simulation: Simulation) -> Path:
    """A chapter's set, made or found; small ones in this process alone."""
    workers = 1 if simulation.num_pairs < 200 else None  # done before a second one would start
    return simulate(set_path(simulation), simulation, workers=workers, wait=True)


class Chapter:
    """One run of a chapter: its preset, its clock, and what it shows and saves.

    `name` is the notebook's file stem; ``02_baseline`` takes `presets.baseline`. A page shows the
    committed result of the largest size. Where this run is smaller, its own figures, tables and
    numbers stand in one collapsed block, which `save` shows. `sizes_differ` says whether a run at
    smoke is less than one at desk.
    """

    def __init__(self, name: str, size: str, seed: int = 0, *, sizes_differ: bool = True) -> None:
        self.name, self.size, self.seed = name, check_size(size), seed
        preset = getattr(presets, name[3:], None)
        self.experiment: Experiment | None = preset(size, seed) if preset else None
        self.record = load_results(name)  # the committed one
        committed = self.record["provenance"]["size"] if self.record else "smoke"
        self.own = SIZES.index(size) >= SIZES.index(committed)  # whether the page shows this run
        self.figures: list[str] = []  # shown so far
        self.tables: dict[str, dict[str, Any]] = {}  # the same
        self.started = time.time()
        self._sizes_differ = sizes_differ
        self._images: dict[str, bytes] = {}  # of this run, where the page shows another

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        """What is about to run, on which machine, for how long, and where its results go."""
        results = results_path(self.name, self.size)
        earlier = json.loads(results.read_text()) if results.exists() else self.record
        rows = {"size": self.size, "seed": self.seed}
        if earlier:
            p = earlier["provenance"]
            took = f"{p['wall_time_s']:,.0f} s at size {p['size']} on {p['device']}"
            rows["an earlier run took"] = f"{took}, {p.get('cores', '?')} cores"
        rows["this machine"] = f"{device_name()}; {available_cores()} cores"
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 1e9
            rows["this machine"] += f", {free:.1f} GB of memory free"
        rows |= {"numbers go to": results, "figures go to": self._figure_folder()}
        if not self.own:
            rows["this page shows"] = f"the committed result, {self.record['provenance']['size']}"
        table = ResultsTable(["", self.name], [[k, str(v)] for k, v in rows.items()])
        sets = self.experiment._repr_html_() if self.experiment else ""
        bundle = {"text/html": table._repr_html_() + sets, "text/plain": repr(table)}
        return bundle, {"lensml": {"start": self.name}}

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

    def test_set(self, name: str, survey: str | None = None) -> LightCurves:
        """The test set `name`, unseen in training, through a chapter's survey or its own (None).

        Matched events are observed by `reobserve`: chapters of one condition share their rows.
        """
        simulation = self.experiment.tests[name]
        curves = load(path := made(simulation))
        check_unseen(curves, load_network()[1], path)
        if simulation.population:
            return curves
        through = self.experiment.surveys[survey] if survey else simulation.survey
        return reobserve(curves, through, self.seed)

    def fine_tuned(self, name: str) -> Path:
        """Run folder of the network made for `name`; trained on first use, resumes."""
        simulation, config = self.experiment.fine_tuned[name]
        run = run_path(simulation, config)
        return train(made(simulation), run, config, name=name, resume=True, wait=True)

    def _figure_folder(self) -> Path:
        """Where figures of this run go: ``figures`` only if they are to replace what is there."""
        committed = FIGURES.relative_to(ROOT)
        mine = f"_build/figures/{self.size}"
        return output_root() / (committed if self.own and self.size != "smoke" else mine)

    def figure(self, figure: Figure, name: str) -> None:
        """Show the committed figure of that name, or this one if the page shows this run.

        This one is written to ``figures/NN_name.svg`` if its size is desk or full and nothing
        larger is committed, else below ``_build/figures``. The same numbers give the same bytes.
        """
        stem = f"{self.name[:2]}_{name}"
        self.figures.append(stem)
        if self.mark:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7}
            look = {"color": "0.4", "fontsize": 13, "bbox": box, "zorder": 10}
            figure.text(0.5, 0.5, self.mark, ha="center", va="center", **look)
        shown = self._figure_folder() / f"{stem}.svg"
        write_svg(figure, shown)
        if not self.own:
            self._images[stem] = png(figure, dpi=100)
            shown = kept if (kept := FIGURES / f"{stem}.svg").exists() else shown
        display(shown, figure=stem)
        plt.close(figure)

    def table(
        self, rows: ResultsTable | Mapping[str, Mapping[str, Any]],
        columns: Sequence[str] | Mapping[str, str] = (), caption: str = "", note: str = "",
        name: str = "",
    ) -> None:  # fmt: skip
        """Show the committed table of that name, or this one if the page shows this run.

        `rows` and `columns` are what `results_table` takes, or a table made before; `name` is its
        key in the chapter's record, by default the number of tables so far.
        """
        table = rows if isinstance(rows, ResultsTable) else results_table(rows, columns)
        number = len(self.tables) + 1
        key = name or str(number)
        shown = {"caption": caption or table.caption, "headings": table.headings}
        shown |= {"rows": table.rows, "note": note or table.note}
        self.tables[key] = shown
        if self.mark:
            shown = shown | {"note": f"{shown['note']} ({self.mark})".strip()}
        if not self.own:
            shown = self.record.get("tables", {}).get(key, shown)
        table = numbered_table(self.name, number, shown)
        bundle = {"text/html": table._repr_html_(), "text/plain": repr(table)}
        display(bundle, table=shown | {"key": key, "number": number})

    def save(self, numbers: Mapping[str, Any], *, spell_keys: bool = False) -> None:
        """Write numbers, tables, names of figures and provenance, whole or not at all; show them.

        `numbers` are nested mappings and lists of numbers and intervals; NaN becomes null. With
        `spell_keys` every key is stored as `result_key` spells it.
        """
        numbers = plain(safe_keys(numbers) if spell_keys else numbers)
        origin = provenance(size=self.size, seed=self.seed, started=self.started)
        record = {"chapter": self.name, "numbers": numbers, "figures": self.figures}
        record |= {"tables": self.tables, "provenance": origin}
        path = results_path(self.name, self.size)
        write_json(record, path)
        if not self.own:
            own = {"text/html": self._own_run(record), "text/plain": f"this copy's run: {path}"}
            display(own, own=self.name)
        line = provenance_line(self.name, load_results(self.name))
        display({"text/markdown": line, "text/plain": line}, provenance=self.name)

    def _own_run(self, record: Mapping[str, Any]) -> str:
        """Figures, tables and numbers of this run in one collapsed block of HTML."""
        p = record["provenance"]
        head = f"This copy's own run: size {self.size}, {p['wall_time_s']:,.0f} s, {p['device']}"
        head += f"; {self.mark.partition(': ')[2]}" * bool(self.mark)
        images = "".join(
            '<figure style="display: inline-block; margin: 4px"><img width="320" '
            f'alt="{html.escape(stem.replace("_", " "))}, size {self.size}" '
            f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
            f"<figcaption>{html.escape(stem)}</figcaption></figure>"
            for stem, image in self._images.items()
        )
        tables = [numbered_table(self.name, i, t) for i, t in enumerate(self.tables.values(), 1)]
        tables.append(beside_committed(record["numbers"], self.size, self.record))
        return (
            f'<details class="own-run"><summary>{html.escape(head)}</summary>{images}'
            f"{''.join(table._repr_html_() for table in tables)}</details>"
        )


def numbered_table(chapter: str, number: int, kept: Mapping[str, Any]) -> ResultsTable:
    """A table of a chapter's record with its number before the caption."""
    caption = f"**Table {int(chapter[:2])}.{number}.** {kept['caption']}".strip()
    return ResultsTable(kept["headings"], kept["rows"], kept["note"], caption)


start = Chapter  # what a notebook calls to begin: experiments.start("02_baseline", size, seed)
