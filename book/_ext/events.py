"""Real events in figures and tables, and a form that takes the files of one's own.

`found` is what `lensml.streaming.classify_file` gives.
"""

import html
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from lensml.experiments import ResultsTable, png
from lensml.network import PLANETARY_Q, prior_shift
from lensml.paths import InputError
from lensml.plotting import BINARY, SINGLE, canvas, real_event, styled
from lensml.streaming import classify_file

FAINT = 1.0  # error from which an epoch is not drawn [mag]
FEWEST = 20  # epochs of a figure
NAMES = {
    "single": "single lens",
    "planetary": f"binary lens, q < {PLANETARY_Q:g}",
    "stellar": f"binary lens, q > {PLANETARY_Q:g}",
    "binary_source": "binary source",
    "other": "not microlensing",
}
EXPLAINED = {  # part of a warning -> what it means
    "no answer yet": "P is 0.5 until the first fit. Wait for more epochs.",
    "is not trusted": "The fit does not know how bright the star is without the lens. "
    "Epochs before or after the event, or a known baseline, decide it.",
    "fell below 0.5": "Later epochs favour a single lens, or few epochs made the alert. "
    "Look at the residuals at its time, by data set.",
    "not microlensing": "No lens changes like this. P(binary) then has little meaning.",
}
DPI = 150


def event_figure(found, title: str = "", span: tuple[float, float] | None = None) -> Figure:
    """Data sets on one scale with their single-lens fit, residuals, P(binary).

    From and to `span` [day], None = from 6 tE before the peak on, at least 60 d, or all if few
    epochs came since. Epochs whose error on that scale is above 1 mag are not drawn.
    """
    times, mag, error = found.aligned()
    t0, _, tE = found.shape
    start, end = span or (t0 - max(6 * tE, 60), np.inf)
    if (times >= start).sum() < FEWEST:
        start = -np.inf
    drawn = (error < max(FAINT, np.median(error))) & (times <= end)
    threshold, prevalence = found.answer["threshold"], found.answer["prevalence"]
    if threshold is not None:  # alerts compare P before it is shifted to a prevalence
        threshold = float(prior_shift(threshold, prevalence))
    return real_event(
        times, np.where(drawn, mag, np.nan), error, found.magnitude, found.p, title=title,
        threshold=threshold, start=start,
        datasets=[epoch["dataset"] for epoch in found.answer["epochs"]],
    )  # fmt: skip


@styled
def class_bars(found) -> Figure:
    """Probabilities of the five classes at the last epoch."""
    figure, ((axes,),) = canvas(1.9)
    values = list(found.answer["classes"].values())
    colours = [SINGLE, BINARY, BINARY, "0.6", "0.6"]
    bars = axes.barh([NAMES[name] for name in found.answer["classes"]], values, color=colours)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.set(xlim=(0, 1.1), xlabel="probability at the last epoch")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    return figure


def datasets_table(found) -> ResultsTable:
    """Epochs, baseline, errors and part of the misfit of each data set."""
    heads = ["data set", "epochs", "baseline [mag]", "trusted", "lensed fraction f_s"]
    heads += ["error factor", "part of the misfit"]
    rows = []
    for one in found.answer["datasets"]:
        if found.fits:
            base = f"{one['baseline']:.3f} ± {one['baseline_error']:.3f}"
            fitted = [base, "yes" if one["trusted"] else "no", f"{one['f_s']:.2f}"]
            fitted += [f"{one['error_factor']:.2f}", f"{one['share']:.2f}"]
        rows.append([one["name"], f"{one['n_epochs']:,}", *(fitted if found.fits else ["-"] * 5)])
    misfit, scale = found.answer["dchi2"], found.event.datasets[0].time_scale
    note = "no fit yet"
    if found.fits:
        note = f"Misfit: chi-squared {misfit['value']:,.0f} above that of a single lens, "
        note += f"{scale} {misfit['start']:.2f} to {misfit['end']:.2f}."
    return ResultsTable(heads, rows, note)


def warnings_table(found) -> ResultsTable:
    """What to distrust, and what each warning means."""
    rows = [
        [warning, " ".join(text for part, text in EXPLAINED.items() if part in warning)]
        for warning in found.answer["warnings"]
    ]
    return ResultsTable(["warning", "what it means"], rows or [["none", ""]])


def classify_uploaded(uploaded: Sequence[Mapping], **settings):
    """`classify_file` of files that a browser sent: each a mapping with `name` and `content`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / Path(one["name"]).name for one in uploaded]
        for path, one in zip(paths, uploaded, strict=True):
            path.write_bytes(one["content"])
        try:
            return classify_file(paths, **settings)
        except InputError as error:
            raise InputError(str(error).replace(f"{folder}/", "")) from None


def results(found) -> list[widgets.Widget]:
    """Figures and tables of an event, as widgets."""
    wide = {"width": "750px", "max_width": "100%"}
    figures = [event_figure(found, found.event.name), class_bars(found)] if found.fits else []
    images = [
        widgets.Image(value=png(figure, DPI), format="png", layout=wide) for figure in figures
    ]
    tables = [datasets_table(found), warnings_table(found)]
    text = f"<pre>{html.escape(found.text())}</pre>"
    return [*images, *(widgets.HTML(x) for x in (*(t._repr_html_() for t in tables), text))]


def form(**settings) -> widgets.VBox:
    """A form for the files of one event, and below it the results; needs a running kernel.

    `settings` go to `classify_file`.
    """
    look = {"layout": {"width": "45em"}, "style": {"description_width": "10em"}}
    files = widgets.FileUpload(multiple=True, description="files", layout={"width": "20em"})
    path, columns, base = (
        widgets.Text(description=name, placeholder=example, **look)
        for name, example in (
            ("or a path", "a file or a folder on the machine of the kernel"),
            ("columns", "only if the header leaves doubt: time=1,mag=2,err=3"),
            ("baseline [mag]", "only if it is known"),
        )
    )
    button, below = widgets.Button(description="classify"), widgets.VBox()

    def classify(_: object = None) -> None:
        below.children = [widgets.HTML("<em>classifying ...</em>")]
        try:
            if not (files.value or path.value.strip()):
                raise InputError("no file yet: upload one, or give a path")
            try:
                m_base = float(base.value) if base.value.strip() else None
            except ValueError:
                raise InputError(f"baseline {base.value!r}: expected a magnitude") from None
            options = settings | {"m_base": m_base, "columns": columns.value.strip() or None}
            found = (
                classify_uploaded(files.value, **options)
                if files.value
                else classify_file(Path(path.value.strip()).expanduser(), **options)
            )
            below.children = results(found)
        except InputError as error:
            below.children = [widgets.HTML(f"<p>{html.escape(str(error))}</p>")]

    button.on_click(classify)
    return widgets.VBox([files, path, columns, base, button, below])
