"""One style for all figures: colours, line styles, sizes, intervals and ticks.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers and line styles
differ as well, for print without colour. The ideal observer is always black and dashed, published
thresholds are dotted. A number is a float or an interval {"value", "low", "high"}, which is then
drawn. "By name" is a mapping from the label in the legend.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray

from lensml import evaluation

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS, STROKES = "osD^vP", ("-", (0, (5, 1.2)), "-.", (0, (1, 1)), (0, (6, 1, 1, 1, 1, 1)))
SINGLE, BINARY = COLOURS[:2]
IDEAL = {"color": "black", "linestyle": "--", "linewidth": 1.3}
DOTTED = {"color": "0.6", "linestyle": ":", "linewidth": 1.0}
# Delta-chi2 above which published searches call an event anomalous; see book/references.bib.
PUBLISHED = {"RTModel": 36.0, "AnomalyFinder": 75.0, "easyAnomalyFinder": 80.0}
FEWEST = 20  # events behind an interval
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
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "lines.markeredgewidth": 0.8,
}
WIDTH = 7.1  # of a book column of 688 px [inch]


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, whatever the settings outside, with one legend below."""

    @wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            legend_below(figure := draw(*args, **kwargs))
            return figure

    return wrapper


def canvas(
    height: float, *shape: int, width: float = WIDTH, **options: Any
) -> tuple[Figure, NDArray]:
    """A figure and its grid of axes, always an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=200)  # of rastered parts
    return figure, figure.subplots(*(shape or (1, 1)), squeeze=False, **options)


def looks(by_name: Mapping[str, Any]) -> list[tuple[str, Any, dict]]:
    """Name, value and look of each entry; after the last colour they repeat."""
    drawn = zip(by_name.items(), cycle(COLOURS), cycle(MARKERS), cycle(STROKES), strict=False)
    return [(*item, {"color": c, "marker": m, "linestyle": s}) for item, c, m, s in drawn]


def legend_below(figure: Figure) -> None:
    """One legend of all axes below the figure, in as many columns as there is room for."""
    found = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    if handles := {label: handle for pairs in found for handle, label in pairs}:
        columns = int(figure.get_figwidth() / (0.55 + 0.065 * max(map(len, handles))))
        ncols = max(1, min(columns, len(handles)))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=ncols)


def numbers(values: Sequence) -> NDArray:
    """The value of each number or interval; NaN for None."""
    plain = [v["value"] if isinstance(v, Mapping) else v for v in values]
    return np.array([np.nan if v is None else v for v in plain], dtype=float)


def ends(values: Sequence) -> NDArray:
    """Low and high ends of each interval (2, k); NaN where a number has none."""
    both = [(v.get("low"), v.get("high")) if isinstance(v, Mapping) else () for v in values]
    return np.array([b if b and None not in b else (np.nan, np.nan) for b in both], dtype=float).T


def lengths(value: NDArray, low_high: NDArray) -> NDArray:
    """Lengths of error bars (2, k) from values (k,) and their ends (2, k)."""
    return np.maximum([value - low_high[0], low_high[1] - value], 0)


def wilson_points(axes: Axes, x: ArrayLike, value: ArrayLike, n: ArrayLike, **look: Any) -> None:
    """Fractions of `n` over `x` with 95 % Wilson bars; hollow and without bar below `FEWEST`."""
    x, value, n = (np.asarray(column, dtype=float) for column in (x, value, n))
    bars = lengths(value, np.array(evaluation.wilson_interval(value, n)))
    bars[:, few := n < FEWEST] = np.nan
    axes.errorbar(x, value, bars, fmt="none", color=look["color"], elinewidth=0.9)
    axes.plot(x, value, **({"linewidth": 0.9} | look))
    axes.plot(x[few], value[few], **(look | {"linestyle": "", "mfc": "white", "label": None}))


def line_with_band(axes: Axes, x: ArrayLike, values: Sequence, **look: Any) -> None:
    """Numbers or intervals over `x`, with a band between the ends of intervals."""
    axes.plot(x, numbers(values), **look)
    if np.isfinite(band := ends(values)).any():
        axes.fill_between(x, *band, color=look["color"], alpha=0.2, lw=0)


def few_ticks(axis: Axis) -> None:
    """Label a logarithmic axis in plain digits: at 1, 3, 10, ..., or at decades if it is long."""
    low, high = axis.get_view_interval()
    long = high > 100 * max(low, 1e-300)
    axis.set_major_locator(LogLocator(subs=(1,) if long else (1, 3), numticks=4 if long else 8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
