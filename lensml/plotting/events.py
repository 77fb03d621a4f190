"""Figures of events: light curves, priors, real photometry."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lensml.plotting import style

THETA = r" [$\theta_\mathrm{E}$]"
SYMBOLS = dict(t0="$t_0$ [d]", u0="$u_0$" + THETA, tE=r"$t_\mathrm{E}$ [d]", s="$s$" + THETA)
SYMBOLS |= dict(rho=r"$\rho$" + THETA, alpha=r"$\alpha$ [rad]")
MOST_VECTORS = 3000  # epochs; more of them are drawn as pixels: a file of megabytes otherwise
TWIN = {"color": style.SINGLE, "linestyle": (0, (5, 1.2))}


@style.styled
def gallery(
    times: NDArray,
    X: NDArray,
    clean: NDArray,
    sigma: NDArray,
    titles: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> Figure:
    """Pairs of curves; below, the noise-free binary minus its twin, with a band of one sigma.

    `times` (T,) [day]; `X`, `clean` (P, 2, T): twin, binary [mag]; `sigma` (P,) [mag]; `titles`
    name each pair, `rows` each row of three.
    """
    wide, tall = min(3, len(X)), -(-len(X) // 3)
    options = {"sharex": True, "height_ratios": [2, 1] * tall}
    figure, grid = style.canvas(2.7 * tall + 0.3, 2 * tall, wide, **options)
    for k, (data, curves, error) in enumerate(zip(X, clean, sigma, strict=True)):
        top, bottom = grid[2 * (k // wide), k % wide], grid[2 * (k // wide) + 1, k % wide]
        for i, (name, look) in enumerate((("twin", TWIN), ("binary", {"color": style.BINARY}))):
            dots = {"ms": 1.5, "mew": 0, "color": look["color"], "alpha": 0.25}
            top.plot(times, data[i], "o", rasterized=True, **dots)
            top.plot(times, curves[i], lw=1, label=name, zorder=3 - i, **look)
        bottom.axhspan(-error, error, color="0.85", lw=0, label=r"$\pm 1\,\sigma$ of an epoch")
        bottom.plot(times, curves[1] - curves[0], color=style.BINARY, lw=1)
        top.invert_yaxis(), bottom.invert_yaxis()
        top.set_title(titles[k] if k < len(titles) else "", fontsize=8.5)
    for axes in grid.flat:
        axes.set_visible(bool(axes.lines))
    for k, (top, bottom) in enumerate(zip(grid[::2, 0], grid[1::2, 0], strict=True)):
        top.set_ylabel(f"{rows[k]}\nmagnitude" if k < len(rows) else "magnitude")
        bottom.set_ylabel("minus twin\n[mag]")
    for axes in grid[-1]:
        axes.set_xlabel("time [d]")
    figure.align_ylabels()
    return figure


@style.styled
def prior_histograms(samples: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Distributions of parameters, {set: {parameter: values}}; logarithmic bins where usual."""
    names = list(dict.fromkeys(name for columns in samples.values() for name in columns))
    tall, wide = -(-len(names) // 4), min(4, len(names))
    figure, grid = style.canvas(0.4 + 1.9 * tall, tall, wide, sharey=True)
    options = {"bins": 30, "stat": "probability", "common_norm": False, "fill": False}
    for axes, name in zip(grid.flat, names, strict=False):
        values = {k: np.asarray(v[name]) for k, v in samples.items() if name in v}
        log = name in ("tE", "rho", "s", "q")
        sns.histplot(values, element="step", log_scale=(log, False), legend=False,
                     palette=list(style.COLOURS[: len(values)]), ax=axes, **options)  # fmt: skip
        for key, stroke, line in zip(values, style.STROKES, axes.lines[::-1], strict=False):
            line.set(label=key, linestyle=stroke, linewidth=1.2)
        axes.set(xlabel=SYMBOLS.get(name, f"${name}$"), ylabel="fraction of events")
        style.few_ticks(axes.xaxis) if log else None
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    return figure


@style.styled
def real_event(
    time: ArrayLike,
    mag: ArrayLike,
    error: ArrayLike,
    model: Callable[[NDArray], NDArray],
    p: ArrayLike | Mapping[str, ArrayLike],
    *,
    threshold: float | None = None,
    title: str = "",
    start: float = -np.inf,
    datasets: Sequence[str] = (),
) -> Figure:
    """Photometry (T,) with its single-lens fit, residuals, and P(binary) over time.

    Full HJD are drawn less 2450000, from `start` [day] on; `model` is the fit, magnitude at any
    times (m,); `p` is (T,), or several by name, and alerts above `threshold`; `datasets` (T,) names
    the data set of each epoch, which has a colour then.
    """
    time, mag, error = (np.asarray(x, dtype=float) for x in (time, mag, error))
    shown = np.isfinite(mag) & (time >= start)
    zero = 2_450_000 * int(np.median(time) > 2_400_000)
    x, residuals = time[shown] - zero, ((mag - model(time)) / error)[shown]
    figure, grid = style.canvas(5.2, 3, 1, sharex=True, height_ratios=[3, 1.2, 1.5])
    light, residual, call = grid[:, 0]
    names = np.asarray(datasets if len(set(datasets)) > 1 else ["photometry"] * len(time))[shown]
    # The largest in grey, the others in colours, the smallest on top.
    sets = sorted(set(names.tolist()), key=lambda name: (-(names == name).sum(), name))
    colours = dict(
        zip(sets, ["0.45", *sns.color_palette("husl", max(1, len(sets) - 1))], strict=False)
    )
    for k, name in enumerate(sets):
        own, look = (
            names == name,
            {"fmt": "o", "ms": 2.5, "mew": 0, "elinewidth": 0.5, "zorder": 1 + k / 99},
        )
        label = name if len(sets) < 8 or k == 0 else None
        if len(sets) >= 8 and k == 0:
            label += f", and {len(sets) - 1} others in colours"
        bars = x[own], mag[shown][own], error[shown][own]
        drawn = light.errorbar(*bars, label=label, color=colours[name], **look)
        for artist in (drawn.lines[0], *drawn.lines[2]) if len(x) > MOST_VECTORS else ():
            artist.set_rasterized(True)
    dense = np.linspace(x[0], x[-1], 1000)
    peak = dense[model(dense + zero).argmin()]
    dense = np.union1d(dense, np.linspace(peak - 0.02 * np.ptp(x), peak + 0.02 * np.ptp(x), 400))
    curve = model(dense + zero)
    light.plot(dense, curve, color=style.SINGLE, label="single-lens fit", zorder=3)
    for name in sets:
        own = names == name
        look = {"ms": 2.5, "mew": 0, "color": colours[name], "rasterized": len(x) > MOST_VECTORS}
        residual.plot(x[own], residuals[own], "o", **look)
    residual.axhline(0, color=style.SINGLE, zorder=3)
    top = max(4.0, 1.2 * np.quantile(np.abs(residuals), 0.995))
    residual.set(ylim=(top, -top), ylabel=r"(data $-$ fit) / $\sigma$")
    for k, (name, q) in enumerate((p if isinstance(p, Mapping) else {"P(binary)": p}).items()):
        look = {"color": ("0.2", style.BINARY)[k == 0], "lw": 1.0 + 0.4 * (k == 0), "zorder": 4 - k}
        call.step(x, np.asarray(q)[shown], where="post", label=name, **look)
        above = np.flatnonzero((np.asarray(q) > (threshold or np.inf)) & np.isfinite(mag))
        if above.size and shown[above[0]]:
            label = f"first alert: {name}" if isinstance(p, Mapping) else "first alert"
            first = {"color": look["color"], "ls": ((0, (1, 1)), (0, (4, 2)))[k > 0], "lw": 1.2}
            for axes in grid[:, 0]:
                axes.axvline(time[above[0]] - zero, label=label if axes is call else None, **first)
    if threshold is not None:
        call.axhline(threshold, label=f"alert threshold {threshold:.3f}", ls="-.", c="0.3", lw=1)
    call.set(ylim=(-0.03, 1.03), xlim=(x[0] - 0.01 * np.ptp(x), x[-1] + 0.01 * np.ptp(x)))
    call.set(ylabel="P(binary)", xlabel="HJD \N{MINUS SIGN} 2450000 [d]" if zero else "time [d]")
    call.ticklabel_format(axis="x", useOffset=False, style="plain")
    faint, bright = np.quantile(mag[shown], 0.995), min(mag[shown].min(), curve.min())
    room = 0.08 * (faint - bright) + 0.02  # outliers and their bars may leave the frame
    light.set(ylim=(faint + room, bright - room), ylabel="magnitude", title=title)
    figure.align_ylabels()
    return figure
