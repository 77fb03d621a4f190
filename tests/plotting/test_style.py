"""The style holds inside a figure only; numbers and intervals are drawn alike."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lensml.plotting.scores import bars
from lensml.plotting.style import few_ticks, legend_below, line_with_band, looks, numbers


def test_style_stays_inside_the_figure():
    figure = bars(["a"], {"network": [0.5]})
    assert matplotlib.rcParams["axes.spines.top"] is True
    assert not figure.axes[0].spines["top"].get_visible()


def test_an_interval_counts_by_its_value_and_none_is_left_empty():
    got = numbers([1, {"value": 2.0, "low": 1.0, "high": 3.0}, None])
    np.testing.assert_array_equal(got, [1, 2, np.nan])


def test_a_band_is_drawn_where_every_number_is_an_interval():
    axes = Figure().subplots()
    interval = {"value": 2.0, "low": 1.0, "high": 3.0}
    line_with_band(axes, [0, 1], [interval, interval], color="black")
    line_with_band(axes, [0, 1], [1.0, interval | {"low": None}], color="black")
    assert len(axes.lines) == 2 and len(axes.collections) == 1
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (1, 3)


def test_a_long_logarithmic_axis_is_labelled_at_decades():
    axes = Figure().subplots()
    axes.set(xscale="log", yscale="log", xlim=(1, 1e5), ylim=(1, 30))
    few_ticks(axes.xaxis), few_ticks(axes.yaxis)
    inside = [t for t in axes.yaxis.get_major_locator()() if 1 <= t <= 30]
    np.testing.assert_allclose(inside, [1, 3, 10, 30])
    assert all(np.log10(t) % 1 == 0 for t in axes.xaxis.get_major_locator()())


def test_no_two_of_six_entries_look_alike_even_without_colour():
    drawn = [look for _, _, look in looks(dict.fromkeys("abcdef"))]
    assert len({look["color"] for look in drawn}) == len({look["marker"] for look in drawn}) == 6
    assert len({str(look["linestyle"]) for look in drawn[:5]}) == 5


def test_the_legend_stands_below_the_axes_and_names_each_entry_once():
    figure = bars(["a"], {"network": [0.5], "a much longer name of another network": [0.4]})
    legend_below(other := Figure())
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= figure.axes[0].get_tightbbox().y0
    assert not other.legends
