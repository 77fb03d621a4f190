"""Figures of events: light curves, priors, real photometry."""

from collections.abc import Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lensml.plotting.style import BINARY, COLOURS, DOTTED, SINGLE, canvas, few_ticks, styled

SYMBOLS = dict(
    t0="$t_0$ [d]", u0="$u_0$", tE=r"$t_\mathrm{E}$ [d]", rho=r"$\rho$", alpha=r"$\alpha$ [rad]"
)


@styled
def gallery(
    times: NDArray, X: NDArray, clean: NDArray, sigma: NDArray, titles: Sequence[str] = ()
) -> Figure:
    """Pairs of curves, and the noise-free binary less its twin with a band of one sigma below.

    `times` (T,) [day]; `X`, `clean` (P, 2, T): twin, binary [mag]; `sigma` (P,) [mag].
    """
    wide, tall = min(3, len(X)), -(-len(X) // 3)
    figure, grid = canvas(2.5 * tall, 2 * tall, wide, sharex=True, height_ratios=[2, 1] * tall)
    for k, (data, curves, error) in enumerate(zip(X, clean, sigma, strict=True)):
        top, bottom = grid[2 * (k // wide), k % wide], grid[2 * (k // wide) + 1, k % wide]
        for i, (name, colour) in enumerate((("twin", SINGLE), ("binary", BINARY))):
            top.plot(times, data[i], ".", ms=1, color=colour, alpha=0.25, rasterized=True)
            top.plot(times, curves[i], color=colour, lw=1, label=name)
        bottom.axhspan(-error, error, color="0.85", lw=0)
        bottom.plot(times, curves[1] - curves[0], color=BINARY, lw=1)
        top.invert_yaxis(), bottom.invert_yaxis()
        top.set_title(titles[k] if k < len(titles) else "", fontsize=8)
    for axes in grid.flat:
        axes.set_visible(bool(axes.lines))
    grid[0, 0].legend()
    grid[0, 0].set_ylabel("magnitude"), grid[1, 0].set_ylabel("difference")
    figure.supxlabel("time [d]", fontsize=9)
    return figure


@styled
def prior_histograms(samples: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Distributions of parameters, {set: {parameter: values}}; logarithmic bins where usual."""
    names = list(dict.fromkeys(name for columns in samples.values() for name in columns))
    figure, grid = canvas(2.0 * -(-len(names) // 4), -(-len(names) // 4), min(4, len(names)))
    options = {"bins": 30, "stat": "probability", "common_norm": False, "fill": False}
    for axes, name in zip(grid.flat, names, strict=False):
        values = {k: np.asarray(v[name]) for k, v in samples.items() if name in v}
        log = name in ("tE", "rho", "s", "q")
        sns.histplot(values, element="step", log_scale=log, legend=name == names[0],
                     palette=list(COLOURS[: len(values)]), ax=axes, **options)  # fmt: skip
        axes.set(xlabel=SYMBOLS.get(name, f"${name}$"), ylabel="", yticks=[])
        few_ticks(axes.xaxis) if log else None
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    return figure


@styled
def real_event(
    time: ArrayLike,
    mag: ArrayLike,
    error: ArrayLike,
    model: ArrayLike,
    p: ArrayLike,
    *,
    threshold: float | None = None,
    title: str = "",
    start: float = -np.inf,
) -> Figure:
    """Photometry with its point-lens fit, residuals and P(binary) over time; each (T,).

    `threshold` is that of alerts, `start` the first time to show [day].
    """
    columns = np.array([time, mag, error, model, p], dtype=float)
    time, mag, error, model, p = columns[:, np.isfinite(columns[1]) & (columns[0] >= start)]
    figure, grid = canvas(4.8, 3, 1, sharex=True, height_ratios=[3, 1.2, 1.5])
    light, residual, call = grid[:, 0]
    look = {"fmt": ".", "ms": 2.5, "elinewidth": 0.5, "color": "0.45"}
    light.errorbar(time, mag, error, label="photometry", **look)
    light.plot(time, model, color=SINGLE, label="single-lens fit", zorder=3)
    residual.errorbar(time, mag - model, error, **look)
    residual.axhline(0, color=SINGLE, zorder=3)
    top = 1.3 * np.quantile(np.abs(mag - model), 0.995) + 1e-3
    residual.set(ylim=(top, -top), ylabel="residual [mag]")
    call.step(time, p, where="post", color=BINARY)
    call.set(ylim=(-0.03, 1.03), ylabel="P(binary)", xlabel="time [d]")
    if threshold is not None:
        call.axhline(threshold, label="alert threshold", **DOTTED)
        call.legend(loc="upper left")
    faint, bright = np.quantile(mag, 0.995), min(mag.min(), model.min())
    room = 0.08 * (faint - bright) + 0.02  # outliers and their bars may leave the frame
    light.set(ylim=(faint + room, bright - room), ylabel="magnitude", title=title)
    light.legend()
    return figure
