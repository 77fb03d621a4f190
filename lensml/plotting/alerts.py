"""Figures of alerts and of calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from lensml import evaluation
from lensml.plotting import style
from lensml.simulation import FRACTIONS

# Observers of an alert stream, as `evaluation.compare_observers` names them.
OBSERVERS = {
    "network": ("network", {"color": style.COLOURS[0]}),
    "template_search": ("template search", {"color": style.COLOURS[1], "linestyle": (0, (5, 1.2))}),
    "refit_limited": ("refit-limited observer", {"color": "0.45", "linestyle": "-."}),
    "oracle": ("oracle", style.IDEAL),
}


@style.styled
def alert_latency(first: Mapping[str, ArrayLike]) -> Figure:
    """First alerts of observers and `onset` of the same binaries, (n,) [day]; NaN = none.

    On the left the fraction of binaries with an onset detected by each time since then; on the
    right the latency of the network relative to the other observers, where both alert.
    """
    first = {name: np.asarray(values, dtype=float) for name, values in first.items()}
    known, network = np.isfinite(first["onset"]), first["network"]
    figure, ((left, right),) = style.canvas(3.2, 1, 2)
    for key, (name, look) in OBSERVERS.items():
        if key not in first:
            continue
        lag = np.sort((first[key] - first["onset"])[known & np.isfinite(first[key])])
        fraction = np.arange(1, lag.size + 1) / max(1, known.sum())
        x, y = np.r_[-200, lag, 200], np.r_[0, fraction, fraction[-1:] if lag.size else 0]
        left.step(x, y, where="post", label=name, **look)
        if key != "network":
            later = np.sort((network - first[key])[np.isfinite(network) & np.isfinite(first[key])])
            x, y = np.r_[-200, later, 200], np.r_[0, np.arange(1, later.size + 1), later.size]
            right.step(x, y / max(1, later.size), where="post", **look)
    left.set(xlabel="time since onset [d]", ylabel="fraction of binaries detected")
    right.set(xlabel="delay of the network's first alert [d]", ylabel="fraction of binaries")
    for axes, half_width in ((left, 40), (right, 20)):
        axes.axvline(0, **style.DOTTED)
        axes.set(xlim=(-half_width, half_width), ylim=(0, 1.02))
    return figure


@style.styled
def alerts_by_phase(by_name: Mapping[str, Mapping[str, Sequence]], edges: ArrayLike) -> Figure:
    """Fraction of binaries detected by each phase (K,), by set and observer."""
    figure, (row,) = style.canvas(3.2, 1, len(by_name), sharey=True)
    for axes, (title, fractions) in zip(row, by_name.items(), strict=True):
        for key, (name, look) in OBSERVERS.items():
            if key in fractions:
                axes.plot(edges, fractions[key], label=name, **look)
        axes.axvline(0, **style.DOTTED)
        axes.set(xlabel=r"phase $(t - t_0) / t_\mathrm{E}$", title=title, ylim=(0, 1.02))
    row[0].set_ylabel("fraction of binaries detected")
    return figure


@style.styled
def purity_by_prevalence(prevalence: Sequence[float], by_name: Mapping[str, Sequence]) -> Figure:
    """Alert rate and purity at each prevalence, by name of the threshold; 1, 10 % are dotted."""
    figure, (row,) = style.canvas(3.2, 1, 2)
    labels = {"alerts_per_1000": "alerts per 1000 events", "purity": "fraction of alerts binary"}
    for axes, (key, label) in zip(row, labels.items(), strict=True):
        for name, rows, look in style.looks(by_name):
            values, look = [r[key] for r in rows], look | {"marker": "", "label": name}
            style.line_with_band(axes, prevalence, values, **look)
        for value in (0.01, 0.1):
            axes.axvline(value, **style.DOTTED)
        axes.set(xscale="log", xlabel="fraction of events binary (prevalence)", ylabel=label)
        axes.set_xlim(min(prevalence), max(prevalence))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    row[0].set_yscale("log")
    style.few_ticks(row[0].yaxis)
    row[1].set_ylim(0, 1.02)
    return figure


def reliability_line(axes: Axes, bins: Mapping, **look: Any) -> None:
    """Observed over predicted frequency (`evaluation.reliability`), joined where n >= FEWEST."""
    bins = {key: np.asarray(x, dtype=float) for key, x in bins.items()}
    x, y, many = bins["predicted"], bins["observed"], bins["count"] >= style.FEWEST
    error = style.lengths(y, np.array([bins["low"], bins["high"]]))
    axes.errorbar(x[many], y[many], error[:, many], elinewidth=0.8, **look)
    axes.plot(x[~many], y[~many], **look | {"linestyle": "", "mfc": "white", "label": None})


@style.styled
def reliability(bins: Mapping) -> Figure:
    """Observed against predicted frequency (`evaluation.reliability`), by name, and counts."""
    several = {"network": bins} if "predicted" in bins else bins
    figure, ((top,), (bottom,)) = style.canvas(4.7, 2, 1, width=4.6, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], label="perfect calibration", **style.IDEAL)
    for name, r, look in style.looks(several):
        reliability_line(top, r, label=name, **look)
        bottom.plot(r["predicted"], r["count"], ms=3, **look)
    top.set(ylabel="fraction that are binaries", xlim=(0, 1), ylim=(-0.02, 1.02))
    bottom.set(xlabel="P(binary)", ylabel="light curves", yscale="log", xlim=(0, 1))
    style.few_ticks(bottom.yaxis)
    return figure


@style.styled
def reliability_at_fractions(y: ArrayLike, by_name: Mapping[str, ArrayLike]) -> Figure:
    """Observed over predicted frequency at each of FRACTIONS, of P(binary) (n, 7) by name."""
    figure, grid = style.canvas(4.4, 2, (len(FRACTIONS) + 1) // 2, sharex=True, sharey=True)
    for axes in grid.ravel()[len(FRACTIONS) :]:
        axes.set_axis_off()
    for k, (fraction, axes) in enumerate(zip(FRACTIONS, grid.ravel(), strict=False)):
        axes.plot([0, 1], [0, 1], label="perfect calibration", **style.IDEAL)
        for name, p, look in style.looks(by_name):
            bins = evaluation.reliability(y, np.asarray(p)[:, k])
            reliability_line(axes, bins, label=name, ms=2.5, lw=1, **look)
        axes.set(title=f"{100 * fraction:g} % of the window", xlim=(0, 1), ylim=(-0.02, 1.02))
    for axes in grid[-1]:
        axes.set_xlabel("P(binary)")
    figure.supylabel("fraction that are binaries", fontsize=9)
    return figure
