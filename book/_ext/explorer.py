"""One binary lens with sliders: caustics, track, light curve and P(binary) along it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lensml import lensing
from lensml.experiments import png
from lensml.lensing import BinaryLens, binary_magnification, fit_pspl
from lensml.network import classify
from lensml.plotting import BINARY, SINGLE, canvas, styled

TIMES = np.linspace(-60.0, 60.0, 900)  # the default survey's cadence, centred on the event [day]
T0, TE, RHO = 0.0, 20.0, 2e-3  # what the sliders leave alone [day, day, theta_E]
M_BASE = 18.0
DEFAULTS = {"s": 1.1, "q": 0.1, "u0": 0.15, "alpha": 1.0, "sigma": 0.05}
SLIDERS = {  # label, lowest and highest position
    "s": ("separation s [theta_E]", 0.1, 10),
    "q": ("mass ratio q", 1e-4, 1),
    "u0": ("impact u0 [theta_E]", 0.001, 1),
    "alpha": ("angle alpha [rad]", 0, 6.283),
    "sigma": ("error [mag]", 3e-3, 0.2),
}
PRESETS = {
    "close": {"s": 0.6, "q": 0.5, "u0": 0.1, "alpha": 1.0},
    "resonant": {"s": 1.0, "q": 0.3, "u0": 0.1, "alpha": 0.6},
    "wide": {"s": 2.5, "q": 0.5, "u0": 0.05, "alpha": 0.3},
    "planetary": {"s": 1.3, "q": 0.005, "u0": 0.3, "alpha": 0.7},
}
PREVIEW, CRISP = 96, 192  # dots per inch, one and two a pixel of the page
REST = 0.5  # from the last change to P(binary) [s]


@dataclass(frozen=True)
class ExampleEvent:
    """One binary, its best single lens, one noisy observation and P(binary) at each epoch."""

    event: BinaryLens
    binary: NDArray  # (T,) noise-free magnitude
    twin: NDArray  # (T,) best single lens [mag]
    observed: NDArray  # (T,) [mag]
    p: NDArray | None  # (T,) P(binary) from the epochs so far; None while it is computed
    dchi2: float

    @property
    def caption(self) -> str:
        """Topology, delta-chi2 and final P(binary) in one line."""
        kind = lensing.topology(self.event.s, self.event.q)
        last = "..." if self.p is None else f"{self.p[-1]:.3f}"
        strength = rf"$\Delta\chi^2$ against its twin {self.dchi2:,.1f}"
        return f"{kind} binary, {strength}, P(binary) at the end {last}"


def observe_example(
    s: float, q: float, u0: float, alpha: float, sigma: float, *, classified: bool = True
) -> ExampleEvent:
    """Simulate one event on TIMES, observe it, and classify it with the shipped network.

    The noise is always the same, so that only the event changes. `sigma` is the error of an epoch
    [mag]; the network takes most of the time, `classified` runs it.
    """
    event = BinaryLens(t0=T0, u0=u0, tE=TE, rho=RHO, s=s, q=q, alpha=alpha)
    delta = -2.5 * np.log10(binary_magnification(event, TIMES))
    grid = torch.from_numpy(TIMES)
    fit = fit_pspl(grid, torch.from_numpy(delta)[None], starts=torch.tensor([[[T0, u0, TE]]]))
    single = fit.delta_mag(grid)[0].numpy()
    observed = M_BASE + delta + sigma * np.random.default_rng(0).standard_normal(TIMES.size)
    errors = np.full(TIMES.size, sigma)
    p = classify(TIMES, observed, errors, M_BASE, exact=True) if classified else None
    dchi2 = float((((delta - single) / sigma) ** 2).sum())
    return ExampleEvent(event, M_BASE + delta, M_BASE + single, observed, p, dchi2)


@styled
def draw(example: ExampleEvent) -> Figure:
    """Caustics and track on the left; light curve, residual and P(binary) on the right."""
    figure, _ = canvas(4.4)
    figure.clear()
    figure.set_layout_engine("none")  # always the same panels: a layout costs half the time
    axes = figure.subplot_mosaic(
        [["sky", "light"], ["sky", "residual"], ["sky", "call"]],
        width_ratios=[1, 1.5],
        height_ratios=[2.2, 1, 1.2],
        gridspec_kw={"left": 0.075, "right": 0.985, "bottom": 0.17, "top": 0.92, "wspace": 0.27},
    )
    _draw_caustics(axes["sky"], example.event)
    look = {"ls": "", "marker": ".", "ms": 1.5, "color": "0.6", "rasterized": True}
    axes["light"].plot(TIMES, example.observed, **look)
    axes["light"].plot(TIMES, example.twin, "--", color=SINGLE, lw=1, label="twin")
    axes["light"].plot(TIMES, example.binary, color=BINARY, lw=1, label="binary")
    axes["residual"].plot(TIMES, example.observed - example.twin, **look)
    axes["residual"].plot(TIMES, example.binary - example.twin, color=BINARY, lw=1)
    if example.p is None:
        axes["call"].text(0.5, 0.5, "computing ...", ha="center", transform=axes["call"].transAxes)
    else:
        axes["call"].plot(TIMES, example.p, color=BINARY)
    axes["call"].set(ylim=(-0.03, 1.03), ylabel="P(binary)")
    axes["call"].set(xlim=TIMES[[0, -1]], xlabel="time [d]")
    for name, label in (("light", "magnitude"), ("residual", "minus twin\n[mag]")):
        axes[name].set(ylabel=label, xlim=TIMES[[0, -1]]), axes[name].invert_yaxis()
        axes[name].tick_params(labelbottom=False)
    figure.align_ylabels([axes[name] for name in ("light", "residual", "call")])
    figure.suptitle(example.caption, fontsize=9)
    return figure


@styled
def plot_caustics(events: Sequence[BinaryLens], titles: Sequence[str] = ()) -> Figure:
    """Caustics, lenses and track of several events, three in a row."""
    tall = -(-len(events) // 3)
    figure, grid = canvas(2.4 * tall, tall, 3)
    for k, axes in enumerate(grid.flat):
        axes.set_visible(k < len(events))
        if k < len(events):
            _draw_caustics(axes, events[k], tall=1.0)
            axes.set_title(titles[k] if k < len(titles) else "", fontsize=8.5)
    return figure


def _draw_caustics(axes: Axes, event: BinaryLens, tall: float = 2.0) -> None:
    """A field around the closest approach, 3 theta_E wide and `tall` times as high."""
    path = lensing.track(event, event.t0 + event.tE * np.linspace(-3, 3, 601))
    lenses = np.array([-event.q, 1]) * event.s / (1 + event.q)
    for curve in lensing.caustic_curves(event.s, event.q):
        axes.plot(*curve, ".", ms=1, color=BINARY, rasterized=True)
    axes.plot(*path, color=SINGLE, lw=1)
    middle, arrow = path.shape[1] // 2, {"arrowstyle": "->", "color": SINGLE}
    centre, reach = path[:, middle], 1.5
    axes.annotate("", path[:, middle + 8], centre, arrowprops=arrow)
    axes.plot(lenses, [0, 0], "k+", ms=8)
    x, y = ((c - r, c + r) for c, r in zip(centre, (reach, tall * reach), strict=True))
    axes.set(xlim=x, ylim=y, aspect="equal")
    axes.set(xlabel=r"$x$ [$\theta_\mathrm{E}$]", ylabel=r"$y$ [$\theta_\mathrm{E}$]")


def snapshot(**parameters: float) -> Figure:
    """What `explore` shows at these parameters (those of `observe_example`), without sliders."""
    return draw(observe_example(**(DEFAULTS | parameters)))


def explore(**parameters: float) -> widgets.HBox:
    """Sliders from `DEFAULTS | parameters`, and a figure that follows; needs a running kernel.

    While a slider moves, caustic and light curve follow; P(binary) is computed once all rest.
    """
    sliders, start, timer, held = {}, DEFAULTS | parameters, None, False
    for name, value in start.items():
        label, low, high = SLIDERS[name]
        kind, form = widgets.FloatSlider, ".3f"
        if name not in ("u0", "alpha"):
            (low, high), kind, form = np.log10([low, high]), widgets.FloatLogSlider, ".4g"
        look = {"layout": {"width": "25em"}, "style": {"description_width": "11em"}}
        look |= {"description": label, "readout_format": form}
        sliders[name] = kind(value, min=low, max=high, step=(high - low) / 500, **look)
    image = widgets.Image(format="png", layout={"width": "600px", "max_width": "100%"})
    sign = widgets.HTML()

    def show(classified: bool) -> None:
        sign.value = "" if classified else "<em>computing P(binary) ...</em>"
        example = observe_example(**{n: x.value for n, x in sliders.items()}, classified=classified)
        image.value = png(draw(example), dpi=CRISP if classified else PREVIEW)

    def follow(_: object = None) -> None:
        nonlocal timer
        if held:
            return
        if timer is not None:
            timer.cancel()
        show(False)
        try:  # P once the sliders rest; at once where no event loop runs
            timer = asyncio.get_running_loop().call_later(REST, show, True)
        except RuntimeError:
            show(True)

    def move(positions: Mapping[str, float]) -> None:
        nonlocal held
        held = True  # so as not to draw once a slider
        for name, slider in sliders.items():
            slider.value = positions[name]
        held = False
        follow()

    buttons = []
    for name, positions in {**PRESETS, "reset": start}.items():
        buttons.append(widgets.Button(description=name, layout={"width": "7.5em"}))
        buttons[-1].on_click(lambda _, positions=DEFAULTS | positions: move(positions))
    for slider in sliders.values():
        slider.observe(follow, names="value")
    show(True)
    rows = widgets.HBox(buttons, layout={"flex_flow": "row wrap", "width": "26em"})
    left = widgets.VBox([*sliders.values(), rows, sign])
    return widgets.HBox([left, image], layout={"flex_flow": "row wrap", "align_items": "center"})


def frames(name: str, values: NDArray, **fixed: float) -> widgets.VBox:
    """One slider over figures drawn beforehand, for published pages without a kernel.

    It changes `name` (one of s, q, u0, alpha, sigma) to `values` (K,); `fixed` are the others.
    """
    if name not in DEFAULTS:
        raise ValueError(f"`name` is {name!r}, but one of {', '.join(DEFAULTS)} was expected")
    images = [png(snapshot(**(fixed | {name: float(value)})), dpi=CRISP) for value in values]
    wide = {"width": "682px", "max_width": "100%"}
    stack = widgets.Stack([widgets.Image(value=x, format="png", layout=wide) for x in images])
    stack.selected_index = 0
    look = {"readout": False, "style": {"description_width": "22em"}, "layout": {"width": "42em"}}
    look["description"] = f"{SLIDERS[name][0]}, {values[0]:.3g} to {values[-1]:.3g}"
    slider = widgets.IntSlider(0, min=0, max=len(images) - 1, **look)
    widgets.jslink((slider, "value"), (stack, "selected_index"))
    return widgets.VBox([slider, stack])
