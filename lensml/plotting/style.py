"""One style for all figures: colours, line styles, sizes, intervals and ticks.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. The ideal observer is always
black and dashed, the refit-limited observer grey and dash-dotted, published thresholds dotted. A
number is a float or an interval {"value", "low", "high"}, which is then drawn. "By name" is a
mapping from the label in the legend.
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

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
SINGLE, BINARY = COLOURS[:2]
IDEAL = {"color": "black", "linestyle": "--", "linewidth": 1.3}
REFIT_LIMITED = {"color": "0.45", "linestyle": "-.", "linewidth": 1.3}
DOTTED = {"color": "0.6", "linestyle": ":", "linewidth": 1.0}
THRESHOLD = {"color": "0.3", "linestyle": "-.", "linewidth": 1.0}
# Delta-chi2 above which published searches call an event anomalous; see book/references.bib.
PUBLISHED_THRESHOLDS = {"RTModel": 36.0, "AnomalyFinder": 75.0, "easyAnomalyFinder": 80.0}
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


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the book's style, whatever the settings outside."""

    @wraps(draw)
    def wrapper(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def canvas(height: float, *shape: int, width: float = WIDTH, **options) -> tuple[Figure, NDArray]:
    """A figure and its grid of axes, always an array (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=200)  # of what is rasterised
    return figure, figure.subplots(*(shape or (1, 1)), squeeze=False, **options)


def coloured(by_name: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    """Name, value and colour of each entry; after the last colour they repeat."""
    return [(name, x, COLOURS[k % len(COLOURS)]) for k, (name, x) in enumerate(by_name.items())]


def numbers(values: Sequence) -> NDArray:
    """The value of each number or interval; NaN for None."""
    plain = [v["value"] if isinstance(v, Mapping) else v for v in values]
    return np.array([np.nan if v is None else v for v in plain], dtype=float)


def line_with_band(axes: Axes, x: ArrayLike, values: Sequence, fmt: str = "o-", **look) -> None:
    """Numbers or intervals over `x`, with a band of the ends if all are intervals."""
    axes.plot(x, numbers(values), fmt, ms=3.5, **look)
    if all(isinstance(v, Mapping) and v["low"] is not None for v in values):
        low, high = ([v[end] for v in values] for end in ("low", "high"))
        axes.fill_between(x, low, high, color=look["color"], alpha=0.2, lw=0)


def binomial_error(fraction: NDArray, n: NDArray) -> NDArray:
    """Standard error of fractions of `n`, at least that of half a count."""
    return np.sqrt(np.maximum(fraction * (1 - fraction), 0.25 / n) / n)


def few_ticks(axis: Axis) -> None:
    """Label a logarithmic axis in plain digits: at 1, 3, 10, ..., or at decades if it is long."""
    low, high = axis.get_view_interval()
    long = high > 1000 * max(low, 1e-300)
    axis.set_major_locator(LogLocator(subs=(1,) if long else (1, 3), numticks=4 if long else 8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
