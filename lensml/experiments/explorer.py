"""One binary lens with sliders: caustics, track, light curve and P(binary) along it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lensml import lensing
from lensml.experiments.results import png
from lensml.lensing import BinaryLens, binary_magnification, fit_pspl
from lensml.network import classify
from lensml.plotting import BINARY, SINGLE, canvas, styled

if TYPE_CHECKING:
    from ipywidgets import VBox

TIMES = np.linspace(-60.0, 60.0, 900)  # the default survey's cadence, centred on the event [day]
T0, TE, RHO = 0.0, 20.0, 2e-3  # what the sliders leave alone [day, day, theta_E]
M_BASE = 18.0
DEFAULTS = {"s": 1.1, "q": 0.1, "u0": 0.15, "alpha": 1.0, "sigma": 0.05}
SLIDERS = {  # label, lowest and highest position
    "s": ("separation s", 0.1, 10),
    "q": ("mass ratio q", 1e-4, 1),
    "u0": ("impact u0", 0.001, 1),
    "alpha": ("angle alpha [rad]", 0, 6.283),
    "sigma": ("error [mag]", 3e-3, 0.2),
}


@dataclass(frozen=True)
class ExampleEvent:
    """One binary, its best single lens, one noisy observation and P(binary) at each epoch."""

    event: BinaryLens
    binary: NDArray  # (T,) noise-free magnitude
    twin: NDArray  # (T,) best single lens [mag]
    observed: NDArray  # (T,) [mag]
    p: NDArray  # (T,) P(binary) from the epochs so far
    dchi2: float

    @property
    def caption(self) -> str:
        """Topology, delta-chi2 and final P(binary) in one line."""
        kind = lensing.topology(self.event.s, self.event.q)
        return (
            f"{kind} binary, delta-chi2 against its twin {self.dchi2:,.1f}, "
            f"P(binary) at the end {self.p[-1]:.3f}"
        )


def observe_example(s: float, q: float, u0: float, alpha: float, sigma: float) -> ExampleEvent:
    """Simulate one event on TIMES, observe it, and classify it with the shipped network.

    The noise is the same at every position of the sliders, so that only the event changes.

    Args:
        s, q, u0, alpha: As in `BinaryLens` [theta_E, -, theta_E, rad].
        sigma: 1-sigma error of each epoch [mag].
    """
    event = BinaryLens(t0=T0, u0=u0, tE=TE, rho=RHO, s=s, q=q, alpha=alpha)
    delta = -2.5 * np.log10(binary_magnification(event, TIMES))
    grid = torch.from_numpy(TIMES)
    fit = fit_pspl(grid, torch.from_numpy(delta)[None], starts=torch.tensor([[[T0, u0, TE]]]))
    single = fit.delta_mag(grid)[0].numpy()
    observed = M_BASE + delta + sigma * np.random.default_rng(0).standard_normal(TIMES.size)
    p = classify(TIMES, observed, np.full(TIMES.size, sigma), M_BASE)
    dchi2 = float((((delta - single) / sigma) ** 2).sum())
    return ExampleEvent(event, M_BASE + delta, M_BASE + single, observed, p, dchi2)


@styled
def draw(example: ExampleEvent) -> Figure:
    """Caustics and track on the left; light curve, residual and P(binary) on the right."""
    figure, _ = canvas(4.2)
    figure.clear()
    axes = figure.subplot_mosaic(
        [["sky", "light"], ["sky", "residual"], ["sky", "call"]],
        width_ratios=[1, 1.5],
        height_ratios=[2.2, 1, 1.2],
    )
    _draw_caustics(axes["sky"], example.event)
    look = {"ls": "", "marker": ".", "ms": 1.5, "color": "0.6", "rasterized": True}
    axes["light"].plot(TIMES, example.observed, **look)
    axes["light"].plot(TIMES, example.twin, color=SINGLE, lw=1, label="twin")
    axes["light"].plot(TIMES, example.binary, color=BINARY, lw=1, label="binary")
    axes["light"].set(ylabel="magnitude")
    axes["light"].legend()
    axes["residual"].plot(TIMES, example.observed - example.twin, **look)
    axes["residual"].plot(TIMES, example.binary - example.twin, color=BINARY, lw=1)
    axes["residual"].set(ylabel="less twin")
    axes["call"].plot(TIMES, example.p, color=BINARY)
    axes["call"].set(ylim=(-0.03, 1.03), ylabel="P(binary)", xlabel="time [d]")
    for name in ("light", "residual"):
        axes[name].invert_yaxis()
        axes[name].tick_params(labelbottom=False)
    for name in ("light", "residual", "call"):
        axes[name].set_xlim(TIMES[0], TIMES[-1])
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
            axes.set(xlabel="", ylabel="")
            axes.set_title(titles[k] if k < len(titles) else "", fontsize=8)
    figure.supxlabel(r"$x$ [$\theta_\mathrm{E}$]", fontsize=9)
    figure.supylabel(r"$y$ [$\theta_\mathrm{E}$]", fontsize=9)
    return figure


def _draw_caustics(axes: Axes, event: BinaryLens, tall: float = 2.0) -> None:
    """A field around the closest approach, 3 theta_E wide and `tall` times as high."""
    path = lensing.track(event, event.t0 + event.tE * np.linspace(-3, 3, 601))
    total = 1 + event.q
    lenses = np.array([-event.s * event.q / total, event.s / total])
    for curve in lensing.caustic_curves(event.s, event.q):
        axes.plot(*curve, ".", ms=1, color=BINARY, rasterized=True)
    axes.plot(*path, color=SINGLE, lw=1)
    middle = path.shape[1] // 2
    arrow = {"arrowstyle": "->", "color": SINGLE}
    axes.annotate("", path[:, middle + 8], path[:, middle], arrowprops=arrow)
    axes.plot(lenses, [0, 0], "k+", ms=8)
    centre, reach = path[:, middle], 1.5
    axes.set(xlim=(centre[0] - reach, centre[0] + reach), aspect="equal")
    axes.set(ylim=(centre[1] - tall * reach, centre[1] + tall * reach))
    axes.set(xlabel=r"$x$ [$\theta_\mathrm{E}$]", ylabel=r"$y$ [$\theta_\mathrm{E}$]")


def snapshot(**parameters: float) -> Figure:
    """What `explore` shows at these parameters (those of `observe_example`), without sliders."""
    return draw(observe_example(**(DEFAULTS | parameters)))


def explore(**parameters: float) -> "VBox":
    """Sliders, a line of numbers and a figure that follows them; needs a running kernel.

    Args:
        **parameters: Where the sliders start, if not at `DEFAULTS`.
    """
    from ipywidgets import HTML, FloatLogSlider, FloatSlider, Image, Layout, VBox

    sliders = {}
    for name, value in (DEFAULTS | parameters).items():
        label, low, high = SLIDERS[name]
        kind, form = (FloatSlider, ".3f") if name in ("u0", "alpha") else (FloatLogSlider, ".4g")
        if kind is FloatLogSlider:
            low, high = np.log10([low, high])
        look = {"layout": Layout(width="34em"), "style": {"description_width": "9em"}}
        look |= {"description": label, "continuous_update": False, "readout_format": form}
        sliders[name] = kind(value, min=low, max=high, step=(high - low) / 500, **look)
    numbers, image = HTML(), Image(format="png")

    def follow(_=None) -> None:
        example = observe_example(**{name: slider.value for name, slider in sliders.items()})
        numbers.value, image.value = example.caption, png(draw(example), dpi=90)

    for slider in sliders.values():
        slider.observe(follow, names="value")
    follow()
    return VBox([*sliders.values(), numbers, image])


def frames(name: str, values: NDArray, **fixed: float) -> "VBox":
    """One slider over figures drawn beforehand, for published pages without a kernel.

    Args:
        name: Parameter that the slider changes, one of s, q, u0, alpha, sigma.
        values: Its positions, (K,).
        fixed: The other parameters, where they differ from the defaults.
    """
    from ipywidgets import Image, IntSlider, Layout, Stack, VBox, jslink

    if name not in DEFAULTS:
        raise ValueError(f"`name` is {name!r}, but one of {', '.join(DEFAULTS)} was expected")
    images = [png(snapshot(**fixed, **{name: float(value)}), dpi=90) for value in values]
    stack = Stack([Image(value=png, format="png") for png in images], selected_index=0)
    slider = IntSlider(
        0,
        min=0,
        max=len(images) - 1,
        description=f"{SLIDERS[name][0]}, {values[0]:.3g} to {values[-1]:.3g}",
        readout=False,
        layout=Layout(width="40em"),
        style={"description_width": "20em"},
    )
    jslink((slider, "value"), (stack, "selected_index"))
    return VBox([slider, stack])
