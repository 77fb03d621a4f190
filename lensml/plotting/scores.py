"""Figures of scores: ROC, recall by delta-chi2 and method, early detection, maps, cost."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from scipy.stats import norm

from lensml import evaluation
from lensml.lensing import topology_borders
from lensml.plotting import style

DCHI2 = r"$\Delta\chi^2$"
CHANCE = ("ROC AUC", "AUC", "balanced accuracy", "area under the ROC curve")  # 0.5 by guessing
WORDS = {"_": " ", "roc": "ROC", "auc": "AUC", "1pct": "1 % false positives"}
WORDS |= {"train ": "training ", "seconds": "time per epoch [s]"}


def label_of(name: str) -> str:
    """Field words of a statistic, or of a column of `history.csv`."""
    for code, words in WORDS.items():
        name = name.replace(code, words)
    return name


@style.styled
def roc_and_pr(
    curves: Mapping[str, tuple], ideal_y: ArrayLike = (), ideal_score: ArrayLike | None = None
) -> Figure:
    """ROC, false positives on a logarithmic axis where alerts live, and precision over recall.

    `curves` are (class, score) by name; the ideal observer's score is its log-likelihood ratio.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # late, like seaborn

    figure, ((roc, pr),) = style.canvas(3.6, 1, 2)
    drawn = [(name, *pair, look | {"marker": ""}) for name, pair, look in style.looks(curves)]
    if ideal_score is not None:
        drawn.append(("ideal observer", ideal_y, ideal_score, style.IDEAL))
    lowest = min(1e-2, *(1 / max(1, int(np.sum(np.asarray(d[1]) == 0))) for d in drawn))
    for name, y, p, look in drawn:
        false, true, _ = roc_curve(y, p, drop_intermediate=False)
        precision, recall, _ = precision_recall_curve(y, p)
        auc, ap = evaluation.roc_auc(y, p), evaluation.average_precision(y, p)
        false, label = np.maximum(false, lowest / 2), f"{name}: AUC {auc:.3f}, AP {ap:.3f}"
        roc.step(false, true, where="post", label=label, **look)
        pr.plot(recall[:-1], precision[:-1], **look)
    x = np.geomspace(lowest, 1, 100)
    roc.plot(x, x, label="chance", **style.DOTTED)
    roc.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.01))
    roc.set(xlabel="false-positive rate", ylabel="recall (true-positive rate)")
    pr.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    return figure


@style.styled
def confusion(matrix: ArrayLike, ideal: ArrayLike | None = None) -> Figure:
    """Confusion matrices (2, 2) at threshold 0.5: counts and fractions of each true class."""
    from seaborn import heatmap  # late: it takes a second to import

    panels = [("network", matrix)] + ([("ideal observer", ideal)] if ideal is not None else [])
    figure, (row,) = style.canvas(2.9, 1, len(panels), width=3.3 * len(panels))
    for axes, (name, counts) in zip(row, panels, strict=True):
        counts = np.asarray(counts)
        fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        cells = [f"{f:.1%}\n{n:,}" for f, n in zip(fraction.flat, counts.flat, strict=True)]
        ticks = dict.fromkeys(("xticklabels", "yticklabels"), ["single", "binary"])
        look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "square": True, "fmt": ""}
        heatmap(fraction, annot=np.reshape(cells, (2, 2)), ax=axes, **ticks, **look)
        axes.set(title=name, xlabel="predicted class", ylabel="true class")
    return figure


def dchi2_axis(axes: Axes, thresholds: Mapping[str, float], rate: float) -> None:
    """Logarithmic axis of delta-chi2 with the ideal recall in closed form and thresholds."""
    lowest = min(1.0, *(0.7 * x for line in axes.lines for x in line.get_xdata() if x > 0))
    x = np.geomspace(lowest, 1e5, 300)
    ideal = evaluation.ideal_recall(x, rate)
    axes.plot(x, ideal, label="ideal observer (closed form)", **style.IDEAL)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for k, (name, value) in enumerate(thresholds.items()):
        axes.axvline(value, **style.DOTTED)
        axes.text(value * 1.06, 0.02 + 0.075 * k, name, fontsize=8, color="0.35", bbox=box)
    axes.set(xscale="log", xlim=(lowest, 1e5), ylim=(0, 1.02))
    axes.set(xlabel=f"{DCHI2} of the binary against its twin")
    axes.set(ylabel=f"recall at {100 * rate:g} % false positives")


def recall_points(
    axes: Axes, rows: Sequence[Mapping], rate: float, label: str, **look: Any
) -> None:
    """Recall of each filled bin at the median delta-chi2 of its binaries.

    The bin from zero spans decades: it stands alone, where the closed form is its mean `ideal`.
    """
    for joined in (True, False):
        part = [r for r in rows if r["binaries"] and (r["low"] > 0) == joined]
        keys = ("median", "binaries", "recall", "ideal")
        x, n, y, ideal = (style.numbers([r[key] for r in part]) for key in keys)
        x = x if joined else (norm.isf(rate) - norm.isf(ideal)) ** 2
        style.wilson_points(axes, x, y, n, label=label if joined else "_", **look)


@style.styled
def recall_by_dchi2(
    tables: Mapping[str, Sequence], thresholds: Mapping = style.PUBLISHED, rate: float = 0.01
) -> Figure:
    """`evaluation.recall_by_dchi2` at a `rate` of false positives, by name, and the ideal.

    Bars are 95 % Wilson intervals; bins of fewer than 20 binaries are hollow, without bar.
    """
    figure, ((axes,),) = style.canvas(3.7)
    for name, rows, look in style.looks(tables):
        recall_points(axes, rows, rate, name, **look)
    dchi2_axis(axes, thresholds, rate)
    return figure


@style.styled
def completeness_curve(
    curves: Mapping[str, Mapping], thresholds: Mapping = style.PUBLISHED, rate: float = 0.01
) -> Figure:
    """Recall over delta-chi2, outputs of `evaluation.completeness` by name, with 95 % bands."""
    figure, ((axes,),) = style.canvas(3.7)
    for name, c, look in style.looks(curves):
        axes.plot(c["dchi2"], c["recall"], label=name, **look)
        band = {"color": look["color"], "alpha": 0.15, "lw": 0}
        axes.fill_between(c["dchi2"], c["low"], c["high"], **band)
    axes.axhline(0.5, **style.DOTTED)
    dchi2_axis(axes, thresholds, rate)
    return figure


@style.styled
def recall_by_method(compared: Mapping[str, Mapping], rate: float = 0.01) -> Figure:
    """Recall by delta-chi2, and delta-chi2 at 50 % recall, of `compare_methods`.

    Bars are 95 % intervals. The ideal observer is drawn in closed form only, in both panels.
    """
    figure, ((left, right),) = style.canvas(3.8, 1, 2, width_ratios=[2.2, 1])
    methods = {name: c for name, c in compared.items() if name != "ideal observer"}
    for k, (name, c, look) in enumerate(style.looks(methods)):
        recall_points(left, c["recall_by_dchi2"], rate, name, **look)
        half = c["dchi2_at_half_recall"]
        if np.isfinite(value := style.numbers([half])).all():
            bar = style.lengths(value, np.nan_to_num(style.ends([half]), nan=value[0], posinf=1e5))
            right.errorbar(value, [-k], xerr=bar, **(look | {"linestyle": ""}))
    dchi2_axis(left, {}, rate)
    right.axvline(norm.isf(rate) ** 2, **style.IDEAL)
    right.set(xscale="log", xlabel=f"{DCHI2} at 50 % recall", ylim=(0.5 - len(methods), 0.5))
    right.set(yticks=-np.arange(len(methods)), yticklabels=[fill(name, 18) for name in methods])
    style.few_ticks(right.xaxis)
    return figure


@style.styled
def early_detection(by_name: Mapping[str, Mapping], score: str = "balanced_accuracy") -> Figure:
    """A score over the fraction of the window, by name, and its bounds where they are known."""
    figure, ((axes,),) = style.canvas(3.6)
    bounds = {"ideal": "oracle bound", "refit_limited": "refit-limited bound"}
    for name, by_fraction, look in style.looks(by_name):
        x, rows = [100 * float(f) for f in by_fraction], list(by_fraction.values())
        look |= {"linestyle": "-", "label": name}
        style.line_with_band(axes, x, [r[score] for r in rows], **look)
        for (kind, what), stroke in zip(bounds.items(), ("--", "-."), strict=True):
            if all(r.get(kind) for r in rows):
                line = {"linestyle": stroke, "color": look["color"], "label": f"{name}: {what}"}
                axes.plot(x, style.numbers([r[kind][score] for r in rows]), linewidth=1.1, **line)
    if label_of(score) in CHANCE:
        axes.axhline(0.5, **style.DOTTED)
    axes.set(xlabel="fraction of the window [%]", ylabel=label_of(score), xlim=(0, 101))
    return figure


@style.styled
def scores_by_phase(by_name: Mapping[str, Mapping[str, Sequence]]) -> Figure:
    """Balanced accuracy, recall and false positives by event phase (`against_phase`), by name."""
    figure, (row,) = style.canvas(2.7, 1, 3, sharex=True, sharey=True)
    for axes, key in zip(row, ("balanced_accuracy", "recall", "false_positives"), strict=True):
        for name, c, look in style.looks(by_name):
            axes.plot(c["phase"], style.numbers(c[key]), ms=3, label=name, **look)
        axes.axvline(0, **style.DOTTED)
        axes.set(title=label_of(key), xlabel=r"$(t - t_0) / t_\mathrm{E}$", ylim=(0, 1.02))
    row[0].set_ylabel("fraction")
    return figure


@style.styled
def recall_map(
    s: ArrayLike, q: ArrayLike, found: ArrayLike, ideal: ArrayLike | None = None, bins: int = 14
) -> Figure:
    """Recall over log s and log q: `found` (n,) by the network, `ideal` by the ideal observer."""
    panels = [("network", found)] + ([("ideal observer", ideal)] if ideal is not None else [])
    figure, (row,) = style.canvas(3.2, 1, len(panels), width=3.55 * len(panels), sharey=True)
    edges = [np.geomspace(np.min(x) * 0.999, np.max(x) * 1.001, bins + 1) for x in (s, q)]
    total, ratios = np.histogram2d(s, q, edges)[0], np.geomspace(1e-4, 1, 100)
    for axes, (name, hits) in zip(row, panels, strict=True):
        hit = np.histogram2d(s, q, edges, weights=np.asarray(hits, dtype=float))[0]
        recall = np.divide(hit, total, out=np.full_like(hit, np.nan), where=total > 0)
        mesh = axes.pcolormesh(*edges, recall.T, vmin=0, vmax=1, cmap="cividis", rasterized=True)
        for border in topology_borders(ratios):  # of close, resonant and wide caustics
            axes.plot(border, ratios, color="white", lw=1.6)
            axes.plot(border, ratios, color="0.1", lw=0.8)
        axes.set(xscale="log", yscale="log", xlabel=r"separation $s$ [$\theta_\mathrm{E}$]")
        axes.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]], title=name)
        axes.grid(False)
        style.few_ticks(axes.xaxis), style.few_ticks(axes.yaxis)
    row[0].set_ylabel("mass ratio $q$")
    figure.colorbar(mesh, ax=list(row), label="recall at 1 % false positives")
    return figure


@style.styled
def recall_by_u0(u0: ArrayLike, found: ArrayLike, ideal: ArrayLike | None = None) -> Figure:
    """Recall in up to ten equally filled bins of u0, with 95 % Wilson intervals."""
    u0 = np.asarray(u0)
    order = np.array_split(np.argsort(u0), max(1, min(10, u0.size // 5)))
    x, n = [np.median(u0[i]) for i in order], [i.size for i in order]
    figure, ((axes,),) = style.canvas(3.2, width=5.0)
    own = {"color": style.COLOURS[0]}
    drawn = ("network", found, own, "o"), ("ideal observer", ideal, style.IDEAL, "s")
    for name, hits, look, marker in drawn:
        if hits is not None:
            y = [np.mean(np.asarray(hits)[i]) for i in order]
            style.wilson_points(axes, x, y, n, label=name, marker=marker, **look)
    axes.set(xlabel=r"impact parameter $u_0$ [$\theta_\mathrm{E}$]", ylim=(0, 1.02))
    axes.set_ylabel("recall at 1 % false positives")
    return figure


@style.styled
def bars(
    conditions: Sequence[str],
    values: Mapping[str, Sequence],
    ideal: Sequence | None = None,
    label: str = "balanced accuracy",
    by: str = "",
) -> Figure:
    """A dot with its interval per condition, from top to bottom, by name; the ideal as a line.

    Scores of which guessing reaches 0.5 have that marked, differences have zero marked; others
    begin at zero. `by` is what the conditions are.
    """
    named = [fill(" ".join(str(c).split()), 34) for c in conditions]
    lines = sum(max(1.4 * (1 + c.count("\n")), 0.6 + len(values)) for c in named)
    figure, ((axes,),) = style.canvas(1.0 + 0.14 * lines)
    y, lowest = np.arange(len(named)), 0.0
    for k, (name, row, look) in enumerate(style.looks(values)):
        place, x = y + (k - (len(values) - 1) / 2) * 0.7 / len(values), style.numbers(row)
        look = {"label": name, "elinewidth": 1.1, "clip_on": False} | look | {"linestyle": ""}
        axes.errorbar(x, place, xerr=style.lengths(x, style.ends(row)), **look)
        lowest = np.nanmin([lowest, *x, *style.ends(row)[0]])
    if ideal is not None:
        top = style.numbers(ideal)
        axes.vlines(top, y - 0.36, y + 0.36, "black", "--", label="ideal observer")
    for edge in y[1:] - 0.5:
        axes.axhline(edge, color="0.85", linewidth=0.7)
    if label in CHANCE or lowest < 0:
        mark = {"label": "chance"} if label in CHANCE else {}
        axes.axvline(0.5 if mark else 0, **mark, **style.DOTTED)
    else:
        axes.set_xlim(0)
    axes.set(yticks=y, yticklabels=named, xlabel=label, ylabel=by, ylim=(len(named) - 0.5, -0.5))
    axes.grid(False, axis="y")
    return figure


@style.styled
def history(columns: Mapping[str, Sequence[float]], x: str = "epoch") -> Figure:
    """Training history: losses share a panel, every other column of `history.csv` has its own."""
    panels = {"loss": [c for c in columns if "loss" in c]}
    panels |= {label_of(c): [c] for c in columns if c != x and "loss" not in c}
    panels = {label: names for label, names in panels.items() if names}
    tall = -(-len(panels) // 2)
    figure, grid = style.canvas(0.6 + 1.9 * tall, tall, min(2, len(panels)), sharex=True)
    for axes, (label, names) in zip(grid.flat, panels.items(), strict=False):
        alone = {"marker": "o"} if len(columns[x]) < 30 else {}
        for name, stroke in zip(names, style.STROKES, strict=False):
            label_ = label_of(name) if len(names) > 1 else None
            axes.plot(columns[x], columns[name], linestyle=stroke, label=label_, **alone)
        axes.set(ylabel=label)
        axes.ticklabel_format(axis="y", useOffset=False, useMathText=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
