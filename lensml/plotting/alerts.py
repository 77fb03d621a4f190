"""Figures of alerts and of calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from lensml import evaluation
from lensml.plotting.style import (
    COLOURS,
    DOTTED,
    IDEAL,
    canvas,
    coloured,
    few_ticks,
    line_with_band,
    styled,
)
from lensml.simulation import FRACTIONS


@styled
def alert_latency(network: ArrayLike, refit_limited: ArrayLike, onset: ArrayLike) -> Figure:
    """First alerts and onsets of the same binaries (n,) [day], NaN where there is none.

    On the left the fraction of binaries with an onset detected by each time since then; on the
    right the latency relative to the refit-limited observer, where both alert.
    """
    network, refit_limited, onset = np.array([network, refit_limited, onset], dtype=float)
    known = np.isfinite(onset)
    figure, ((left, right),) = canvas(3.0, 1, 2)
    looks = {"network": {"color": COLOURS[0]}, "refit-limited observer": IDEAL}
    for (name, look), alert in zip(looks.items(), (network, refit_limited), strict=True):
        latency = np.sort((alert - onset)[known & np.isfinite(alert)])
        fraction = np.arange(1, latency.size + 1) / max(1, known.sum())
        last = fraction[-1] if latency.size else 0
        left.step(np.r_[-100, latency, 100], np.r_[0, fraction, last], where="post", label=name,
                  **look)  # fmt: skip
    left.axvline(0, **DOTTED)
    left.set(xlabel="time since onset [d]", ylabel="fraction of binaries detected")
    left.set(xlim=(-50, 100), ylim=(0, 1.02))
    left.legend(loc="lower right")
    difference = (network - refit_limited)[np.isfinite(network) & np.isfinite(refit_limited)]
    edge = max(5.0, float(np.max(np.abs(difference), initial=0)))
    right.hist(difference, np.linspace(-edge, edge, 41), color=COLOURS[0])
    right.axvline(0, **DOTTED)
    right.set(xlabel="latency relative to refit-limited observer [d]", ylabel="binaries")
    return figure


@styled
def alerts_by_phase(by_name: Mapping[str, Mapping[str, Sequence]], edges: ArrayLike) -> Figure:
    """Fraction of binaries detected by each phase: `network` and `reachable` (K,), by name."""
    figure, ((axes,),) = canvas(3.2, width=5.4)
    for name, fractions, colour in coloured(by_name):
        axes.plot(edges, fractions["network"], "o-", ms=3, color=colour, label=name)
        look = IDEAL | {"color": colour}
        axes.plot(edges, fractions["reachable"], **look, label=f"{name}: refit-limited observer")
    axes.axvline(0, **DOTTED)
    axes.set(xlabel=r"phase $(t - t_0) / t_\mathrm{E}$", ylabel="fraction of binaries detected")
    axes.set(ylim=(0, 1.02))
    axes.legend()
    return figure


@styled
def purity_by_prevalence(
    prevalence: Sequence[float],
    by_name: Mapping[str, Sequence[Mapping]],
    shown: Sequence[float] = (0.01, 0.1),
) -> Figure:
    """Alert rate and purity at each prevalence, by name of the threshold; `shown` are dotted."""
    figure, (row,) = canvas(3.0, 1, 2)
    labels = {"alerts_per_1000": "alerts per 1000 events", "purity": "fraction of alerts binary"}
    for axes, (key, label) in zip(row, labels.items(), strict=True):
        for name, rows, colour in coloured(by_name):
            line_with_band(axes, prevalence, [r[key] for r in rows], "-", color=colour, label=name)
        for value in shown:
            axes.axvline(value, **DOTTED)
        axes.set(xscale="log", xlabel="fraction of events binary (prevalence)", ylabel=label)
        axes.set_xlim(min(prevalence), max(prevalence))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    row[0].set_yscale("log")
    few_ticks(row[0].yaxis)
    row[1].set_ylim(0, 1.02)
    row[0].legend()
    return figure


def reliability_line(axes: Axes, bins: Mapping, **look) -> None:
    """Observed over predicted frequency with its intervals (`evaluation.reliability`)."""
    observed = np.asarray(bins["observed"])
    error = np.maximum([observed - bins["low"], np.asarray(bins["high"]) - observed], 0)
    axes.errorbar(bins["predicted"], observed, error, fmt="o-", **look)


@styled
def reliability(bins: Mapping) -> Figure:
    """Observed against predicted frequency (`evaluation.reliability`), and counts."""
    several = {"network": bins} if "predicted" in bins else bins
    figure, ((top,), (bottom,)) = canvas(4.2, 2, 1, width=4.2, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], label="calibrated (ideal observer)", **IDEAL)
    for name, r, colour in coloured(several):
        reliability_line(top, r, ms=4, color=colour, label=name)
        bottom.plot(r["predicted"], r["count"], "o-", ms=3, color=colour)
    top.set(ylabel="fraction binary", ylim=(-0.02, 1.02))
    top.legend(loc="upper left")
    bottom.set(xlabel="P(binary)", ylabel="rows", yscale="log", xlim=(0, 1))
    few_ticks(bottom.yaxis)
    return figure


@styled
def reliability_at_fractions(
    y: ArrayLike, by_name: Mapping[str, ArrayLike], fractions: Sequence[float] = FRACTIONS
) -> Figure:
    """Observed over predicted frequency at each fraction of the window, of P(binary) (n, F)."""
    figure, grid = canvas(4.2, 2, (len(fractions) + 1) // 2, sharex=True, sharey=True)
    for axes in grid.ravel()[len(fractions) :]:
        axes.set_axis_off()
    look = {"ms": 2.5, "lw": 1, "elinewidth": 0.7}
    for k, (fraction, axes) in enumerate(zip(fractions, grid.ravel(), strict=False)):
        axes.plot([0, 1], [0, 1], label="calibrated", **IDEAL)
        for name, p, colour in coloured(by_name):
            bins = evaluation.reliability(y, np.asarray(p)[:, k])
            reliability_line(axes, bins, color=colour, label=name, **look)
        axes.set(title=f"{100 * fraction:g} % of the window", xlim=(0, 1), ylim=(-0.02, 1.02))
    if len(fractions) < grid.size:  # the legend takes the empty panel
        grid[-1, -1].legend(*grid[0, 0].get_legend_handles_labels(), loc="center")
    figure.supxlabel("P(binary)", fontsize=9), figure.supylabel("fraction binary", fontsize=9)
    return figure
