"""Numbers in, figure out: one style for the whole book. Reads no file, trains nothing.

Colours are Okabe and Ito's, told apart by colour-blind readers. The ideal observer is always black
and dashed, what is reachable on a prefix grey and dash-dotted, marks set by others dotted. A number
may be given as a float or as an interval {"value", "low", "high"}, which is then drawn. "By name"
is a mapping from the label in the legend.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from lensml import evaluation
from lensml.evaluation import ideal_recall

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SINGLE, BINARY = COLOURS[:2]
IDEAL = {"color": "black", "linestyle": "--", "linewidth": 1.3}
REACHABLE = {"color": "0.45", "linestyle": "-.", "linewidth": 1.3}
MARK = {"color": "0.6", "linestyle": ":", "linewidth": 1.0}
# Delta-chi2 at which others call an event anomalous; sources in book/references.bib.
OTHERS = {"RTModel": 36.0, "AnomalyFinder": 75.0, "easyAnomalyFinder": 80.0}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
}
WIDTH = 7.2  # of a book column [inch]
SYMBOLS = dict(
    t0="$t_0$ [d]", u0="$u_0$", tE=r"$t_\mathrm{E}$ [d]", rho=r"$\rho$", alpha=r"$\alpha$ [rad]"
)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, whatever the settings outside."""

    @wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def canvas(height: float, *shape: int, width: float = WIDTH, **options) -> tuple[Figure, NDArray]:
    """A figure and its grid of axes, always an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*(shape or (1, 1)), squeeze=False, **options)


def coloured(by_name: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Name, value and colour of each entry; colours come round again after the last."""
    return [(name, x, COLOURS[k % len(COLOURS)]) for k, (name, x) in enumerate(by_name.items())]


def numbers(values: Sequence) -> NDArray:
    """The value of each number or interval; NaN for None."""
    plain = [v["value"] if isinstance(v, Mapping) else v for v in values]
    return np.array([np.nan if v is None else v for v in plain], dtype=float)


def few_ticks(axis: Axis) -> None:
    """Label a logarithmic axis in plain digits: at 1, 3, 10, ..., or at decades if it is long."""
    low, high = axis.get_view_interval()
    long = high > 1000 * max(low, 1e-300)
    axis.set_major_locator(LogLocator(subs=(1,) if long else (1, 3), numticks=4 if long else 8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


@styled
def roc_and_pr(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ideal_y: ArrayLike | None = None,
    ideal_score: ArrayLike | None = None,
) -> Figure:
    """ROC, false positives on a logarithmic axis where alerts live, and precision over recall.

    `curves` are (class, score) by name; the ideal observer's score is its log-likelihood ratio.
    """
    figure, ((roc, pr),) = canvas(3.3, 1, 2)
    drawn = [(name, y, p, {"color": colour}) for name, (y, p), colour in coloured(curves)]
    if ideal_score is not None:
        drawn.append(("ideal observer", ideal_y, ideal_score, IDEAL))
    lowest = min(1e-2, *(1 / max(1, int(np.sum(np.asarray(d[1]) == 0))) for d in drawn))
    for name, y, p, look in drawn:
        false, true = evaluation.roc_curve(y, p)
        auc, ap = evaluation.roc_auc(y, p), evaluation.average_precision(y, p)
        false = np.maximum(false, lowest / 2)
        roc.step(false, true, where="post", label=f"{name}, AUC {auc:.3f}", **look)
        pr.plot(*evaluation.pr_curve(y, p), label=f"{name}, AP {ap:.3f}", **look)
    x = np.geomspace(lowest, 1, 100)
    roc.plot(x, x, label="chance", **MARK)
    roc.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.01))
    roc.set(xlabel="false-positive rate", ylabel="recall (true-positive rate)")
    pr.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    roc.legend(), pr.legend(loc="lower left")
    return figure


@styled
def confusion(matrix: ArrayLike, ideal: ArrayLike | None = None) -> Figure:
    """Counts (2, 2) and shares of each true class, threshold 0.5; the ideal observer beside."""
    panels = [("network", matrix)] + ([("ideal observer", ideal)] if ideal is not None else [])
    figure, (row,) = canvas(2.9, 1, len(panels), width=3.3 * len(panels))
    for axes, (name, counts) in zip(row, panels, strict=True):
        counts = np.asarray(counts)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(2, 2):
            look = {"color": "white" if share[i, j] > 0.55 else "black", "ha": "center"}
            axes.text(j, i, f"{share[i, j]:.1%}\n{counts[i, j]:,}", va="center", **look)
        names = ["single", "binary"]
        axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=names, yticklabels=names, title=name)
        axes.set(xlabel="called", ylabel="true")
        axes.grid(False)
    return figure


@styled
def reliability(bins: Mapping) -> Figure:
    """Observed over predicted frequency (`metrics.reliability`, one or by name) and its rows."""
    several = {"network": bins} if "predicted" in bins else bins
    figure, column = canvas(4.2, 2, 1, width=4.2, sharex=True, height_ratios=[3, 1])
    top, bottom = column[:, 0]
    top.plot([0, 1], [0, 1], label="calibrated, as the ideal observer is", **IDEAL)
    for name, r, colour in coloured(several):
        observed = np.asarray(r["observed"])
        error = np.maximum([observed - r["low"], np.asarray(r["high"]) - observed], 0)
        top.errorbar(r["predicted"], observed, error, fmt="o-", ms=4, color=colour, label=name)
        bottom.plot(r["predicted"], r["count"], "o-", ms=3, color=colour)
    top.set(ylabel="share that is binary", ylim=(-0.02, 1.02))
    top.legend(loc="upper left")
    bottom.set(xlabel="P(binary)", ylabel="rows", yscale="log", xlim=(0, 1))
    few_ticks(bottom.yaxis)
    return figure


def dchi2_axis(axes: Axes, marks: Mapping[str, float], rate: float) -> None:
    """Logarithmic axis of delta-chi2 with the closed-form ideal and marks set by others."""
    x = np.geomspace(1, 1e5, 300)
    axes.plot(x, ideal_recall(x, rate), label=f"ideal, own twin at {100 * rate:g} %", **IDEAL)
    for k, (name, value) in enumerate(marks.items()):
        axes.axvline(value, **MARK)
        axes.text(value * 1.06, 0.02 + 0.075 * k, name, fontsize=7, color="0.35")
    axes.set(xscale="log", xlim=(1, 1e5), ylim=(0, 1.02), ylabel="recall")
    axes.set_xlabel(r"$\Delta\chi^2$ of the binary against its twin")
    axes.legend(loc="lower right")


@styled
def recall_by_dchi2(
    tables: Mapping[str, Sequence[Mapping]],
    ideal: Sequence[Mapping] | None = None,
    marks: Mapping[str, float] = OTHERS,
    rate: float = 0.01,
) -> Figure:
    """Rows of `metrics.recall_by_dchi2` by name; hollow where the threshold is the pooled one."""
    figure, ((axes,),) = canvas(3.6)
    drawn = coloured(tables)
    drawn += [] if ideal is None else [("ideal observer, same rows", ideal, "black")]
    for k, (name, rows, colour) in enumerate(drawn):
        rows = [r for r in rows if r["binaries"]]
        middle = [np.sqrt(max(r["low"], 1) * min(r["high"] or 1e5, 1e5)) for r in rows]
        x = np.array(middle) * (1 + 0.06 * (k - (len(drawn) - 1) / 2))
        y, n = numbers([r["recall"] for r in rows]), np.array([r["binaries"] for r in rows])
        error = np.sqrt(np.maximum(y * (1 - y), 0.25 / n) / n)
        axes.errorbar(x, y, error, color=colour, lw=0.8, elinewidth=1)
        own = np.array([r["threshold_from"] == "bin" for r in rows], dtype=bool)
        look = {"marker": "s" if colour == "black" else "o", "color": colour, "ls": "", "ms": 5}
        axes.plot(x[~own], y[~own], mfc="white", label=None if own.any() else name, **look)
        axes.plot(x[own], y[own], label=name if own.any() else None, **look)
    dchi2_axis(axes, marks, rate)
    return figure


@styled
def completeness_curve(
    curves: Mapping[str, Mapping], marks: Mapping[str, float] = OTHERS, rate: float = 0.01
) -> Figure:
    """Completeness over delta-chi2, outputs of `limits.completeness` by name."""
    figure, ((axes,),) = canvas(3.6)
    for name, c, colour in coloured(curves):
        axes.plot(c["dchi2"], c["recall"], "o-", ms=3, color=colour, label=name)
        axes.fill_between(c["dchi2"], c["low"], c["high"], color=colour, alpha=0.2, lw=0)
    axes.axhline(0.5, **MARK)
    dchi2_axis(axes, marks, rate)
    return figure


@styled
def early_detection(
    by_name: Mapping[str, Mapping[str, Mapping]], score: str = "balanced_accuracy"
) -> Figure:
    """A score over the share of the window seen: `early_detection` of `metrics.json`, by name.

    Drawn beside it, where known: the bound, and what is reachable after a refit to the prefix.
    """
    figure, ((axes,),) = canvas(3.2, width=5.4)
    labels = {"ideal": "bound: both curves known", "reachable": "reachable: refit to the prefix"}
    looks = {"ideal": IDEAL, "reachable": REACHABLE}
    for name, by_fraction, colour in coloured(by_name):
        x, rows = [100 * float(f) for f in by_fraction], list(by_fraction.values())
        values = [r[score] for r in rows]
        axes.plot(x, numbers(values), "o-", ms=3.5, color=colour, label=name)
        if all(isinstance(v, Mapping) and v["low"] is not None for v in values):
            low, high = ([v[k] for v in values] for k in ("low", "high"))
            axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
        for kind, look in looks.items():
            if all(r.get(kind) for r in rows):  # in the network's colour if there are several
                look = look | ({"color": colour} if len(by_name) > 1 else {})
                axes.plot(x, [r[kind][score] for r in rows], label=labels.pop(kind, None), **look)
    axes.axhline(0.5, **MARK)
    axes.set(xlabel="share of the window seen [%]", ylabel=score.replace("_", " "), xlim=(0, 101))
    axes.legend()
    return figure


@styled
def scores_by_phase(by_name: Mapping[str, Mapping[str, Sequence]]) -> Figure:
    """Calls by event phase, outputs of `evaluate.against_phase` by name."""
    figure, ((axes,),) = canvas(3.2, width=5.4)
    for name, c, colour in coloured(by_name):
        for key, look in (("balanced_accuracy", "o-"), ("recall", "-"), ("false_positives", ":")):
            label = f"{name}: {key.replace('_', ' ')}"
            axes.plot(c["phase"], numbers(c[key]), look, ms=3, lw=1.1, color=colour, label=label)
    axes.axvline(0, **MARK)
    axes.set(xlabel=r"phase $(t - t_0) / t_\mathrm{E}$", ylabel="share", ylim=(0, 1.02))
    axes.legend()
    return figure


def topology_borders(axes: Axes) -> None:
    """Borders of close, resonant and wide caustics (Erdl & Schneider 1993)."""
    q, s = np.geomspace(1e-4, 1, 100), np.linspace(0.3, 0.99999, 4000)
    side = ((1 - s**4) / 3) ** 3 / s**8  # equals q / (1 + q)^2 on the close border, falling in s
    close = np.interp(q / (1 + q) ** 2, side[::-1], s[::-1])
    for border in (close, np.sqrt((1 + np.cbrt(q)) ** 3 / (1 + q))):
        axes.plot(border, q, color="0.2", lw=0.8)


@styled
def recall_map(
    s: ArrayLike, q: ArrayLike, found: ArrayLike, ideal: ArrayLike | None = None, bins: int = 14
) -> Figure:
    """Share of binaries `found` by the network, and by the ideal observer, over log s and log q."""
    panels = [("network", found)] + ([("ideal observer", ideal)] if ideal is not None else [])
    figure, (row,) = canvas(3.2, 1, len(panels), width=3.6 * len(panels), sharey=True)
    edges = [np.geomspace(np.min(x) * 0.999, np.max(x) * 1.001, bins + 1) for x in (s, q)]
    total = np.histogram2d(s, q, edges)[0]
    for axes, (name, hits) in zip(row, panels, strict=True):
        hit = np.histogram2d(s, q, edges, weights=np.asarray(hits, dtype=float))[0]
        share = np.divide(hit, total, out=np.full_like(hit, np.nan), where=total > 0)
        mesh = axes.pcolormesh(*edges, share.T, vmin=0, vmax=1, cmap="cividis", rasterized=True)
        topology_borders(axes)
        axes.set(xscale="log", yscale="log", xlabel="separation $s$", title=name)
        axes.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
        axes.grid(False)
        few_ticks(axes.xaxis), few_ticks(axes.yaxis)
    row[0].set_ylabel("mass ratio $q$")
    figure.colorbar(mesh, ax=list(row), label="recall at 1 % false positives")
    return figure


@styled
def recall_by_u0(u0: ArrayLike, found: ArrayLike, ideal: ArrayLike | None = None) -> Figure:
    """Share of binaries found in up to ten equally filled bins of u0, with binomial errors."""
    u0 = np.asarray(u0)
    order = np.array_split(np.argsort(u0), max(1, min(10, u0.size // 5)))
    x, n = [np.median(u0[i]) for i in order], np.array([i.size for i in order])
    figure, ((axes,),) = canvas(2.9, width=4.6)
    drawn = {"network": (found, {"color": COLOURS[0]}), "ideal observer": (ideal, IDEAL)}
    for name, (hits, look) in drawn.items():
        if hits is not None:
            y = np.array([np.mean(np.asarray(hits)[i]) for i in order])
            error = np.sqrt(np.maximum(y * (1 - y), 0.25 / n) / n)
            axes.errorbar(x, y, error, marker="o", ms=3.5, label=name, **look)
    axes.set(xlabel="impact parameter $u_0$", ylabel="recall at 1 % false", ylim=(0, 1.02))
    axes.legend()
    return figure


@styled
def history(columns: Mapping[str, Sequence[float]], x: str = "epoch") -> Figure:
    """Training history: losses in one panel, every other column of `history.csv` in a second."""
    drawn = [c for c in columns if c != x]
    groups = [[c for c in drawn if "loss" in c], [c for c in drawn if "loss" not in c]]
    groups = [group for group in groups if group]
    figure, (row,) = canvas(2.8, 1, len(groups), width=3.6 * len(groups))
    for axes, group in zip(row, groups, strict=True):
        for name in group:
            axes.plot(columns[x], columns[name], label=name.replace("_", " "))
        axes.set_xlabel(x), axes.legend()
    return figure


@styled
def bars(
    conditions: Sequence[str],
    values: Mapping[str, Sequence],
    ideal: Sequence | None = None,
    label: str = "balanced accuracy",
) -> Figure:
    """A number per condition, by name, with the ideal observer's per condition as a line above."""
    figure, ((axes,),) = canvas(3.0, width=max(4.2, 0.9 * len(conditions) + 1.5))
    x, width = np.arange(len(conditions)), 0.8 / len(values)
    for k, (name, row, colour) in enumerate(coloured(values)):
        place = x + (k - (len(values) - 1) / 2) * width
        axes.bar(place, numbers(row), 0.9 * width, label=name, color=colour)
        for at, v in zip(place, row, strict=True):
            if isinstance(v, Mapping) and v.get("low") is not None:
                axes.plot([at, at], [v["low"], v["high"]], color="black", lw=1)
    if ideal is not None:
        axes.hlines(numbers(ideal), x - 0.45, x + 0.45, "black", "--", label="ideal observer")
    axes.set(xticks=x, xticklabels=conditions, ylabel=label)
    axes.grid(False, axis="x")
    figure.legend(loc="outside upper center", ncols=4)
    return figure


@styled
def growth(panels: Mapping[str, Mapping[str, Mapping]], label: str = "time") -> Figure:
    """Cost against size in logarithms, each by name and relative to that of its smallest size.

    Args:
        panels: By what grows (the label of the axis), by name: size to cost or costs measured.
        label: What the cost is.
    """
    figure, (row,) = canvas(2.7, 1, len(panels))
    for axes, (what, by_name) in zip(row, panels.items(), strict=True):
        ends = []
        for name, costs, colour in coloured(by_name):
            sizes = np.array([float(size) for size in costs])
            middle = np.array([np.median(values) for values in costs.values()])
            axes.plot(sizes, middle / middle[0], "o-", ms=3.5, color=colour, label=name)
            for size, values in zip(sizes, costs.values(), strict=True):
                each = np.atleast_1d(values) / middle[0]
                axes.plot(np.full(len(each), size), each, ".", ms=3, color=colour, alpha=0.5)
            ends += [sizes.min(), sizes.max()]
        low, high = min(ends), max(ends)
        axes.plot([low, high], [1, high / low], label="in proportion", **MARK)
        axes.set(xscale="log", yscale="log", xlabel=what)
        few_ticks(axes.xaxis), few_ticks(axes.yaxis)
        axes.legend()
    row[0].set_ylabel(f"{label}, smallest size = 1")
    return figure
