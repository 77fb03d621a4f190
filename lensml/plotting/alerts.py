"""Figures of alerts and of calibration, in the style of `plots`: numbers in, figure out."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from lensml.evaluation import reliability
from lensml.plotting.scores import (
    COLOURS,
    IDEAL,
    MARK,
    canvas,
    coloured,
    few_ticks,
    numbers,
    styled,
)
from lensml.simulation import FRACTIONS

__all__ = ["alerts_by_phase", "purity_by_prevalence", "alert_latency", "reliability_at_fractions"]


@styled
def alert_latency(network: ArrayLike, reachable: ArrayLike, onset: ArrayLike) -> Figure:
    """Alerts of the same binaries (n,) [day]: share alerted against the time since onset, and the
    difference where both alerted. Binaries without an onset are left out on the left.
    """
    network, reachable, onset = (np.asarray(x, dtype=float) for x in (network, reachable, onset))
    known = np.isfinite(onset)
    figure, ((left, right),) = canvas(3.0, 1, 2)
    looks = {"network": {"color": COLOURS[0]}, "reachable": IDEAL}
    for (name, look), alert in zip(looks.items(), (network, reachable), strict=True):
        lag = np.sort((alert - onset)[known & np.isfinite(alert)])
        share = np.arange(1, lag.size + 1) / max(1, known.sum())
        left.step(np.r_[-100, lag, 100], np.r_[0, share, share[-1:]] if lag.size else [0, 0],
                  where="post", label=name, **look)  # fmt: skip
    left.axvline(0, **MARK)
    left.set(xlabel="days since the anomaly became reachable", ylabel="share of binaries alerted")
    left.set(xlim=(-50, 100), ylim=(0, 1.02))
    left.legend(loc="lower right")
    difference = (network - reachable)[np.isfinite(network) & np.isfinite(reachable)]
    edge = max(5.0, float(np.max(np.abs(difference), initial=0)))
    right.hist(difference, np.linspace(-edge, edge, 41), color=COLOURS[0])
    right.axvline(0, **MARK)
    right.set(xlabel="network minus reachable [d]", ylabel="binaries alerted by both")
    return figure


@styled
def alerts_by_phase(by_name: Mapping[str, Mapping[str, Sequence]], edges: ArrayLike) -> Figure:
    """Share of binaries that have alerted by each phase: `network` and `reachable` (K,)."""
    figure, ((axes,),) = canvas(3.2, width=5.4)
    for name, shares, colour in coloured(by_name):
        axes.plot(edges, shares["network"], "o-", ms=3, color=colour, label=name)
        look = IDEAL | {"color": colour}
        axes.plot(edges, shares["reachable"], **look, label=f"{name}: reachable")
    axes.axvline(0, **MARK)
    axes.set(xlabel=r"phase $(t - t_0) / t_\mathrm{E}$", ylabel="share of binaries alerted")
    axes.set(ylim=(0, 1.02))
    axes.legend()
    return figure


@styled
def purity_by_prevalence(
    prevalence: Sequence[float],
    by_name: Mapping[str, Sequence[Mapping]],
    marks: Sequence[float] = (0.01, 0.1),
) -> Figure:
    """`alert_rate_and_purity` at each prevalence, by name of the policy; `marks` are dotted."""
    figure, row = canvas(3.0, 1, 2)
    panels = {"alerts_per_1000": "alerts per 1000 events", "purity": "share of alerts binary"}
    for axes, (key, label) in zip(row[0], panels.items(), strict=True):
        for name, rows, colour in coloured(by_name):
            values = [r[key] for r in rows]
            low, high = (np.array([v[end] for v in values]) for end in ("low", "high"))
            axes.plot(prevalence, numbers(values), color=colour, label=name)
            axes.fill_between(prevalence, low, high, color=colour, alpha=0.2, lw=0)
        for mark in marks:
            axes.axvline(mark, **MARK)
        axes.set(xscale="log", xlabel="share of events that are binary", ylabel=label)
        axes.set_xlim(min(prevalence), max(prevalence))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    row[0, 0].set_yscale("log")
    few_ticks(row[0, 0].yaxis)
    row[0, 1].set_ylim(0, 1.02)
    row[0, 0].legend()
    return figure


@styled
def reliability_at_fractions(
    y: ArrayLike, by_name: Mapping[str, ArrayLike], fractions: Sequence[float] = FRACTIONS
) -> Figure:
    """Observed over predicted share at each fraction of the window; calls (n, F) by name."""
    columns = (len(fractions) + 1) // 2
    figure, grid = canvas(4.2, 2, columns, sharex=True, sharey=True)
    for axes in grid.ravel()[len(fractions) :]:
        axes.set_axis_off()
    for k, (fraction, axes) in enumerate(zip(fractions, grid.ravel(), strict=False)):
        axes.plot([0, 1], [0, 1], label="calibrated", **IDEAL)
        for name, p, colour in coloured(by_name):
            r = reliability(y, np.asarray(p)[:, k])
            error = np.maximum([r["observed"] - r["low"], r["high"] - r["observed"]], 0)
            axes.errorbar(
                r["predicted"], r["observed"], error, fmt="o-", ms=2.5, lw=1, color=colour,
                elinewidth=0.7, label=name,
            )  # fmt: skip
        axes.set(title=f"{100 * fraction:g} % of the window", xlim=(0, 1), ylim=(-0.02, 1.02))
    handles, labels = grid[0, 0].get_legend_handles_labels()
    place = {"loc": "center", "bbox_to_anchor": (0.5, 0.5)}
    if len(fractions) < grid.size:
        empty = grid.ravel()[-1]
        empty.legend(handles, labels, bbox_transform=empty.transAxes, **place)
    figure.supxlabel("P(binary)", fontsize=9), figure.supylabel("share that is binary", fontsize=9)
    return figure
