"""Figures of scores: ROC, recall by delta-chi2 and method, early detection, maps, cost."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lensml import evaluation
from lensml.lensing import topology_borders
from lensml.plotting.style import (
    COLOURS,
    DOTTED,
    IDEAL,
    PUBLISHED_THRESHOLDS,
    REFIT_LIMITED,
    binomial_error,
    canvas,
    coloured,
    few_ticks,
    line_with_band,
    numbers,
    styled,
)


@styled
def roc_and_pr(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ideal_y: ArrayLike | None = None,
    ideal_score: ArrayLike | None = None,
) -> Figure:
    """ROC, false positives on a logarithmic axis where alerts live, and precision over recall.

    `curves` are (class, score) by name; the ideal observer's score is its log-likelihood ratio.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve  # late, like seaborn

    figure, ((roc, pr),) = canvas(3.3, 1, 2)
    drawn = [(name, y, p, {"color": colour}) for name, (y, p), colour in coloured(curves)]
    if ideal_score is not None:
        drawn.append(("ideal observer", ideal_y, ideal_score, IDEAL))
    lowest = min(1e-2, *(1 / max(1, int(np.sum(np.asarray(d[1]) == 0))) for d in drawn))
    for name, y, p, look in drawn:
        false, true, _ = roc_curve(y, p, drop_intermediate=False)
        precision, recall, _ = precision_recall_curve(y, p)
        auc, ap = evaluation.roc_auc(y, p), evaluation.average_precision(y, p)
        false = np.maximum(false, lowest / 2)
        roc.step(false, true, where="post", label=f"{name}, AUC {auc:.3f}", **look)
        pr.plot(recall[:-1], precision[:-1], label=f"{name}, AP {ap:.3f}", **look)
    x = np.geomspace(lowest, 1, 100)
    roc.plot(x, x, label="chance", **DOTTED)
    roc.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.01))
    roc.set(xlabel="false-positive rate", ylabel="recall (true-positive rate)")
    pr.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    roc.legend(), pr.legend(loc="lower left")
    return figure


@styled
def confusion(matrix: ArrayLike, ideal: ArrayLike | None = None) -> Figure:
    """Confusion matrices (2, 2) at threshold 0.5: counts and fractions of each true class."""
    from seaborn import heatmap  # late: it takes a second to import

    panels = [("network", matrix)] + ([("ideal observer", ideal)] if ideal is not None else [])
    figure, (row,) = canvas(2.9, 1, len(panels), width=3.3 * len(panels))
    for axes, (name, counts) in zip(row, panels, strict=True):
        counts = np.asarray(counts)
        fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        cells = [f"{f:.1%}\n{n:,}" for f, n in zip(fraction.flat, counts.flat, strict=True)]
        ticks = dict.fromkeys(("xticklabels", "yticklabels"), ["single", "binary"])
        text = {"annot": np.reshape(cells, (2, 2)), "fmt": ""}
        look = {"cmap": "Blues", "vmin": 0, "vmax": 1, "cbar": False, "square": True}
        heatmap(fraction, ax=axes, **text, **ticks, **look)
        axes.set(title=name, xlabel="predicted", ylabel="true")
    return figure


def dchi2_axis(axes: Axes, thresholds: Mapping[str, float], rate: float) -> None:
    """Logarithmic axis of delta-chi2 with the ideal recall in closed form and thresholds."""
    x = np.geomspace(1, 1e5, 300)
    axes.plot(
        x, evaluation.ideal_recall(x, rate), label=f"ideal, own twin at {100 * rate:g} %", **IDEAL
    )
    for k, (name, value) in enumerate(thresholds.items()):
        axes.axvline(value, **DOTTED)
        axes.text(value * 1.06, 0.02 + 0.075 * k, name, fontsize=7, color="0.35")
    axes.set(xscale="log", xlim=(1, 1e5), ylim=(0, 1.02), ylabel="recall")
    axes.set_xlabel(r"$\Delta\chi^2$ of the binary against its twin")
    axes.legend(loc="lower right")


@styled
def recall_by_dchi2(
    tables: Mapping[str, Sequence[Mapping]],
    ideal: Sequence[Mapping] | None = None,
    thresholds: Mapping[str, float] = PUBLISHED_THRESHOLDS,
    rate: float = 0.01,
) -> Figure:
    """`evaluation.recall_by_dchi2` by name; hollow where the threshold is pooled.

    Bars are binomial standard errors; `rate` is that of false positives.
    """
    figure, ((axes,),) = canvas(3.6)
    drawn = coloured(tables)
    drawn += [] if ideal is None else [("ideal observer, same rows", ideal, "black")]
    for k, (name, rows, colour) in enumerate(drawn):
        rows = [r for r in rows if r["binaries"]]
        # At the geometric middle of its bin, a little apart for each name.
        middle = [np.sqrt(max(r["low"], 1) * min(r["high"] or 1e5, 1e5)) for r in rows]
        x = np.array(middle) * (1 + 0.06 * (k - (len(drawn) - 1) / 2))
        y, n = numbers([r["recall"] for r in rows]), np.array([r["binaries"] for r in rows])
        axes.errorbar(x, y, binomial_error(y, n), color=colour, lw=0.8, elinewidth=1)
        own = np.array([r["threshold_from"] == "bin" for r in rows], dtype=bool)
        look = {"marker": "s" if colour == "black" else "o", "color": colour, "ls": "", "ms": 5}
        axes.plot(x[~own], y[~own], mfc="white", label=None if own.any() else name, **look)
        axes.plot(x[own], y[own], label=name if own.any() else None, **look)
    dchi2_axis(axes, thresholds, rate)
    return figure


@styled
def completeness_curve(
    curves: Mapping[str, Mapping],
    thresholds: Mapping[str, float] = PUBLISHED_THRESHOLDS,
    rate: float = 0.01,
) -> Figure:
    """Recall over delta-chi2, outputs of `evaluation.completeness` by name."""
    figure, ((axes,),) = canvas(3.6)
    for name, c, colour in coloured(curves):
        axes.plot(c["dchi2"], c["recall"], "o-", ms=3, color=colour, label=name)
        axes.fill_between(c["dchi2"], c["low"], c["high"], color=colour, alpha=0.2, lw=0)
    axes.axhline(0.5, **DOTTED)
    dchi2_axis(axes, thresholds, rate)
    return figure


def method_looks(names: Sequence[str]) -> dict[str, dict]:
    """Colour, marker and line of each method: network thick, ideal observer black and dashed."""
    others = [n for n in names if n not in ("network", "ideal observer")]
    result = {"network": {"color": COLOURS[0], "marker": "o", "lw": 2.0}}
    for k, name in enumerate(others):
        colour = COLOURS[1 + k % (len(COLOURS) - 1)]
        result[name] = {"color": colour, "marker": "sD^v<>"[k % 6], "lw": 1.0}
    result["ideal observer"] = IDEAL | {"marker": "_"}
    return {name: result[name] for name in names}


@styled
def recall_by_method(compared: Mapping[str, Mapping], rate: float = 0.01) -> Figure:
    """Recall by delta-chi2, and delta-chi2 at 50 % recall, of `compare_methods`.

    Bars are 95 % Wilson intervals on the left and bootstrap intervals on the right; symbols are
    hollow where the bin has too few twins for a threshold of its own.
    """
    figure, ((left, right),) = canvas(3.4, 1, 2, width_ratios=[2.4, 1])
    for k, (name, look) in enumerate(method_looks(list(compared)).items()):
        rows = compared[name]["recall_by_dchi2"]
        filled = [i for i, row in enumerate(rows) if row["binaries"]]
        place = np.array(filled) + 0.1 * (k - (len(compared) - 1) / 2)
        value, num = (np.array([rows[i][key] for i in filled]) for key in ("recall", "binaries"))
        low, high = evaluation.wilson_interval(value, num)
        pooled = np.array([rows[i]["threshold_from"] != "bin" for i in filled], dtype=bool)
        dots = {"color": look["color"], "ls": "", "marker": look.pop("marker"), "ms": 4.5}
        left.plot(place, value, label=name, **look)
        left.vlines(place, low, high, color=look["color"], lw=0.8)
        left.plot(place[pooled], value[pooled], mfc="white", **dots)
        left.plot(place[~pooled], value[~pooled], **dots)
        half = compared[name]["dchi2_at_half_recall"]
        if np.isfinite(half["value"]):
            low = half["low"] if np.isfinite(half["low"]) else half["value"]
            high = half["high"] if np.isfinite(half["high"]) else 1e5
            right.plot([low, high], [-k, -k], color=look["color"], lw=1.2)
            right.plot(half["value"], -k, **dots)
    bins = [row["bin"] for row in next(iter(compared.values()))["recall_by_dchi2"]]
    left.set(xlabel=r"$\Delta\chi^2$", ylabel=f"recall at {100 * rate:g} % false positives")
    left.set(xticks=range(len(bins)), ylim=(-0.02, 1.03))
    left.set_xticklabels(bins, rotation=30)
    left.legend(loc="lower right")
    right.axvline(25, **DOTTED)
    right.set(xscale="log", xlabel=r"$\Delta\chi^2$ at 50 % recall")
    right.set(yticks=-np.arange(len(compared)), yticklabels=list(compared))
    few_ticks(right.xaxis)
    return figure


@styled
def scores_by_fraction(
    scores: Mapping[str, ArrayLike], y: ArrayLike, fractions: Sequence[float], rate: float = 0.01
) -> Figure:
    """ROC AUC and recall at pooled false positives of scores (n, F), by method."""
    figure, ((left, right),) = canvas(2.9, 1, 2)
    x = [100 * f for f in fractions]
    for name, look in method_looks(list(scores)).items():
        columns = np.asarray(scores[name], dtype=float).T
        left.plot(x, [evaluation.roc_auc(y, p) for p in columns], ms=4, label=name, **look)
        right.plot(x, [evaluation.recall_at_fpr(y, p, rate) for p in columns], ms=4, **look)
    left.set(ylabel="ROC AUC")
    right.set(ylabel=f"recall at {100 * rate:g} % false positives", ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="fraction of the window [%]", xlim=(0, 103))
    left.legend()
    return figure


@styled
def early_detection(
    by_name: Mapping[str, Mapping[str, Mapping]], score: str = "balanced_accuracy"
) -> Figure:
    """A score over the fraction of the window, by name, and its bounds where they are known."""
    figure, ((axes,),) = canvas(3.2, width=5.4)
    labels = {"ideal": "oracle bound (both curves known)", "refit_limited": "refit-limited bound"}
    looks = {"ideal": IDEAL, "refit_limited": REFIT_LIMITED}
    for name, by_fraction, colour in coloured(by_name):
        x, rows = [100 * float(f) for f in by_fraction], list(by_fraction.values())
        line_with_band(axes, x, [r[score] for r in rows], color=colour, label=name)
        for kind, look in looks.items():
            if all(r.get(kind) for r in rows):  # in the network's colour if there are several
                look = look | ({"color": colour} if len(by_name) > 1 else {})
                axes.plot(x, [r[kind][score] for r in rows], label=labels.pop(kind, None), **look)
    axes.axhline(0.5, **DOTTED)
    axes.set(xlabel="fraction of the window [%]", ylabel=score.replace("_", " "), xlim=(0, 101))
    axes.legend()
    return figure


@styled
def scores_by_phase(by_name: Mapping[str, Mapping[str, Sequence]]) -> Figure:
    """Balanced accuracy, recall and false positives by event phase (`against_phase`), by name."""
    figure, ((axes,),) = canvas(3.2, width=5.4)
    for name, c, colour in coloured(by_name):
        for key, look in (("balanced_accuracy", "o-"), ("recall", "-"), ("false_positives", ":")):
            label = f"{name}: {key.replace('_', ' ')}"
            axes.plot(c["phase"], numbers(c[key]), look, ms=3, lw=1.1, color=colour, label=label)
    axes.axvline(0, **DOTTED)
    axes.set(xlabel=r"phase $(t - t_0) / t_\mathrm{E}$", ylabel="fraction", ylim=(0, 1.02))
    axes.legend()
    return figure


@styled
def recall_map(
    s: ArrayLike, q: ArrayLike, found: ArrayLike, ideal: ArrayLike | None = None, bins: int = 14
) -> Figure:
    """Recall over log s and log q: `found` (n,) by the network, `ideal` by the ideal observer."""
    panels = [("network", found)] + ([("ideal observer", ideal)] if ideal is not None else [])
    figure, (row,) = canvas(3.2, 1, len(panels), width=3.6 * len(panels), sharey=True)
    edges = [np.geomspace(np.min(x) * 0.999, np.max(x) * 1.001, bins + 1) for x in (s, q)]
    total, ratios = np.histogram2d(s, q, edges)[0], np.geomspace(1e-4, 1, 100)
    for axes, (name, hits) in zip(row, panels, strict=True):
        hit = np.histogram2d(s, q, edges, weights=np.asarray(hits, dtype=float))[0]
        recall = np.divide(hit, total, out=np.full_like(hit, np.nan), where=total > 0)
        mesh = axes.pcolormesh(*edges, recall.T, vmin=0, vmax=1, cmap="cividis", rasterized=True)
        for border in topology_borders(ratios):  # of close, resonant and wide caustics
            axes.plot(border, ratios, color="0.2", lw=0.8)
        axes.set(xscale="log", yscale="log", xlabel="separation $s$", title=name)
        axes.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
        axes.grid(False)
        few_ticks(axes.xaxis), few_ticks(axes.yaxis)
    row[0].set_ylabel("mass ratio $q$")
    figure.colorbar(mesh, ax=list(row), label="recall at 1 % false positives")
    return figure


@styled
def recall_by_u0(u0: ArrayLike, found: ArrayLike, ideal: ArrayLike | None = None) -> Figure:
    """Recall in up to ten equally filled bins of u0, with binomial standard errors."""
    u0 = np.asarray(u0)
    order = np.array_split(np.argsort(u0), max(1, min(10, u0.size // 5)))
    x, n = [np.median(u0[i]) for i in order], np.array([i.size for i in order])
    figure, ((axes,),) = canvas(2.9, width=4.6)
    drawn = {"network": (found, {"color": COLOURS[0]}), "ideal observer": (ideal, IDEAL)}
    for name, (hits, look) in drawn.items():
        if hits is not None:
            y = np.array([np.mean(np.asarray(hits)[i]) for i in order])
            axes.errorbar(x, y, binomial_error(y, n), marker="o", ms=3.5, label=name, **look)
    axes.set(xlabel="impact parameter $u_0$", ylabel="recall at 1 % false positives")
    axes.set_ylim(0, 1.02)
    axes.legend()
    return figure


@styled
def bars(
    conditions: Sequence[str],
    values: Mapping[str, Sequence],
    ideal: Sequence | None = None,
    label: str = "balanced accuracy",
) -> Figure:
    """A number per condition, by name; the ideal observer's as a line."""
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
def history(columns: Mapping[str, Sequence[float]], x: str = "epoch") -> Figure:
    """Training history: losses in one panel, every other column of `history.csv` in a second."""
    losses = [c for c in columns if "loss" in c]
    groups = [group for group in (losses, [c for c in columns if c not in [*losses, x]]) if group]
    figure, (row,) = canvas(2.8, 1, len(groups), width=3.6 * len(groups))
    for axes, group in zip(row, groups, strict=True):
        for name in group:
            axes.plot(columns[x], columns[name], label=name.replace("_", " "))
        axes.set_xlabel(x), axes.legend()
    return figure


@styled
def growth(panels: Mapping[str, Mapping[str, Mapping]], label: str = "time") -> Figure:
    """Cost against size in logarithms, relative to the median at the smallest size.

    `panels` are by what grows (the label of the axis), by name: size to cost or costs measured.
    """
    from seaborn import lineplot

    figure, (row,) = canvas(2.7, 1, len(panels))
    look = {"estimator": "median", "errorbar": None, "marker": "o", "ms": 4, "mew": 0}
    for axes, (what, by_name) in zip(row, panels.items(), strict=True):
        for name, costs, colour in coloured(by_name):
            pairs = [(float(size), y) for size, ys in costs.items() for y in np.atleast_1d(ys)]
            x, y = np.array(pairs).T
            y /= np.median(y[x == x.min()])
            lineplot(x=x, y=y, color=colour, label=name, legend=False, ax=axes, **look)
            axes.plot(x, y, ".", ms=3, color=colour, alpha=0.5)
        ends = np.array(axes.dataLim.intervalx)
        axes.plot(ends, ends / ends[0], label="in proportion", **DOTTED)
        axes.set(xscale="log", yscale="log", xlabel=what)
        few_ticks(axes.xaxis), few_ticks(axes.yaxis)
        axes.legend()
    row[0].set_ylabel(f"{label}, smallest size = 1")
    return figure
