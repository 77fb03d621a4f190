"""The contest of chapter 8 as figures, tables and a sentence. Numbers in; reads no file.

"By method" is a mapping from the name in the legend; "network" and "ideal observer" have looks of
their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from lensml import evaluation
from lensml.evaluation import wilson_interval
from lensml.experiments import Comparison, format_number, plain
from lensml.plotting import scores as plots

__all__ = ["scores_by_fraction", "fixed_table", "method_table", "recall_by_method", "verdict"]

NETWORK, IDEAL = "network", "ideal observer"
MARKERS = "osD^v<>"


def looks(names: Sequence[str]) -> dict[str, dict]:
    """Colour, marker and line of each method: the network strong, the ideal black and dashed."""
    others = [n for n in names if n not in (NETWORK, IDEAL)]
    result = {NETWORK: {"color": plots.COLOURS[0], "marker": "o", "lw": 2.0}}
    for k, name in enumerate(others):
        colour = plots.COLOURS[1 + k % (len(plots.COLOURS) - 1)]
        result[name] = {"color": colour, "marker": MARKERS[1 + k % 6], "lw": 1.0}
    result[IDEAL] = plots.IDEAL | {"marker": "_"}
    return {name: result[name] for name in names}


@plots.styled
def recall_by_method(compared: Mapping[str, Mapping], rate: float = 0.01) -> Figure:
    """Recall in each bin of delta-chi2 and delta-chi2 at half recall, `classical.compare`.

    Bars are 95 % Wilson intervals on the left and bootstrap intervals on the right; symbols are
    hollow where the bin has too few twins for a threshold of its own.
    """
    figure, ((left, right),) = plots.canvas(3.4, 1, 2, width_ratios=[2.4, 1])
    for k, (name, look) in enumerate(looks(list(compared)).items()):
        rows = compared[name]["recall_by_dchi2"]
        filled = [i for i, row in enumerate(rows) if row["binaries"]]
        place = np.array(filled) + 0.1 * (k - (len(compared) - 1) / 2)
        shown = [wilson_interval(rows[i]["recall"], rows[i]["binaries"]) for i in filled]
        value, low, high = (np.array([s[key] for s in shown]) for key in ("value", "low", "high"))
        pooled = np.array([rows[i]["threshold_from"] != "bin" for i in filled], dtype=bool)
        marker = look.pop("marker")
        left.plot(place, value, label=name, **look)
        left.vlines(place, low, high, color=look["color"], lw=0.8)
        dots = {"color": look["color"], "ls": "", "marker": marker, "ms": 4.5}
        left.plot(place[pooled], value[pooled], mfc="white", **dots)
        left.plot(place[~pooled], value[~pooled], **dots)
        half = plain(compared[name]["dchi2_at_half_recall"])
        if half["value"] is not None:
            ends = [half["low"] or half["value"], half["high"] or 1e5]
            right.plot(ends, [-k, -k], color=look["color"], lw=1.2)
            right.plot(half["value"], -k, **dots)
    labels = [row["bin"] for row in next(iter(compared.values()))["recall_by_dchi2"]]
    left.set(xticks=range(len(labels)), ylim=(-0.02, 1.03))
    left.set_xticklabels(labels, rotation=30)
    left.set(xlabel=r"$\Delta\chi^2$", ylabel=f"recall at {100 * rate:g} % false positives")
    left.legend(loc="lower right")
    right.axvline(25, **plots.MARK)
    right.set(xscale="log", xlabel=r"$\Delta\chi^2$ at half recall")
    right.set(yticks=-np.arange(len(compared)), yticklabels=list(compared))
    plots.few_ticks(right.xaxis)
    return figure


@plots.styled
def scores_by_fraction(
    scores: Mapping[str, ArrayLike], y: ArrayLike, fractions: Sequence[float], rate: float = 0.01
) -> Figure:
    """ROC area and recall at pooled false positives of scores (n, F), by method."""
    figure, (row,) = plots.canvas(2.9, 1, 2)
    x = [100 * f for f in fractions]
    for name, look in looks(list(scores)).items():
        columns = np.asarray(scores[name], dtype=float).T
        row[0].plot(x, [evaluation.roc_auc(y, p) for p in columns], ms=4, label=name, **look)
        row[1].plot(x, [evaluation.recall_at_fpr(y, p, rate) for p in columns], ms=4, **look)
    row[0].set(ylabel="area under the ROC curve")
    row[1].set(ylabel=f"recall at {100 * rate:g} % false positives", ylim=(0, None))
    for axes in row:
        axes.set(xlabel="share of the window seen [%]", xlim=(0, 103))
    row[0].legend()
    return figure


def method_table(compared: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """One row a method, `classical.compare`: the headline and the recall of every bin."""
    bins = next(iter(compared.values()))["recall_by_dchi2"]
    headings = ["", "ROC area", "recall", "delta-chi2 at half recall"]
    headings += [f"{row['bin']} ({row['binaries']})" for row in bins]
    rows = []
    for name, found in compared.items():
        head = [found[key] for key in ("roc_auc", "recall", "dchi2_at_half_recall")]
        each = [f"{r['recall']:.2f}" if r["binaries"] else "-" for r in found["recall_by_dchi2"]]
        rows.append([name, *map(format_number, plain(head)), *each])
    return Comparison(headings, rows, "Recall in bins of delta-chi2 (binaries in the bin).")


def fixed_table(fixed: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """One row a rule, `anomaly.score_at_fixed_thresholds`."""
    bins = next(iter(fixed.values()))["recall_by_dchi2"]
    headings = ["template called if", "false positives", "recall", *(row["bin"] for row in bins)]
    rows = []
    for name, found in fixed.items():
        cells = [f"{found['false_positives']:.4f}", f"{found['recall']:.3f}"]
        cells += [f"{r['recall']:.2f}" if r["binaries"] else "-" for r in found["recall_by_dchi2"]]
        at = f" (delta-chi2 > {found['threshold']:.1f})" if "threshold" in found else ""
        rows.append([name + at, *cells])
    return Comparison(headings, rows, "The last row takes its threshold from these single lenses.")


def verdict(beaten: Sequence[Mapping[str, Any]], above: float = 25.0) -> str:
    """Where the network is not better, in words: `classical.bins_where_worse`."""
    start = rf"Above $\Delta\chi^2$ = {above:g}"
    if not beaten:
        return f"{start} no classical method finds more than the network in any bin."
    bins = dict.fromkeys(row["bin"] for row in beaten)
    each = [in_one_bin([row for row in beaten if row["bin"] == name]) for name in bins]
    return f"{start} the network finds less than a classical method {'; '.join(each)}."


def in_one_bin(rows: Sequence[Mapping[str, Any]]) -> str:
    """The method that leads in one bin, by how much, and how many others are ahead."""
    lead = max(rows, key=lambda row: row["other"])
    certain = sum(row["certain"] for row in rows)
    gap = {key: round(value, 2) for key, value in lead["difference"].items()}
    ahead = f"{len(rows)} method{'s' * (len(rows) > 1)} ahead, {certain} of them beyond chance"
    return (
        f"at {lead['bin']} (recall {lead['network']:.2f} against {lead['other']:.2f} of "
        f"{lead['method']}, {lead['binaries']} binaries, difference {gap['value']:.2f}, "
        f"{gap['low']:.2f} to {gap['high']:.2f}; {ahead})"
    )
