"""Light curves, priors and real photometry are drawn as given."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from lensml.plotting import events as plots

RNG = np.random.default_rng(0)
TIMES = np.linspace(-100, 100, 50)
S, Q = 10 ** RNG.uniform(-1, 1, 60), 10 ** RNG.uniform(-3, 0, 60)


def drawn() -> dict[str, Figure]:
    curves = RNG.normal(18, 0.1, (4, 2, 50))
    return {
        "gallery": plots.gallery(TIMES, curves, curves, np.full(4, 0.1), list("abcd")),
        "priors": plots.prior_histograms({"a": {"s": S, "u0": Q}, "b": {"s": S[:30]}}),
        "real_event": plots.real_event(
            TIMES, curves[0, 0], np.full(50, 0.1), curves[0, 1], np.full(50, 0.4), threshold=0.9
        ),
    }


@pytest.mark.parametrize(("name", "figure"), drawn().items())
def test_every_figure_can_be_printed_at_book_width(name, figure):
    assert figure.get_size_inches()[0] <= 7.3
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_a_distribution_adds_up_to_one_and_sets_share_their_bins():
    log_axis, linear = plots.prior_histograms({"a": {"s": S, "u0": Q}, "b": {"s": S[:30]}}).axes[:2]
    assert (log_axis.get_xscale(), linear.get_xscale()) == ("log", "linear")
    assert [t.get_text() for t in log_axis.get_legend().get_texts()] == ["a", "b"]
    first, second = (line.get_xydata() for line in log_axis.lines)
    np.testing.assert_allclose(first[1:-1, 0], second[1:-1, 0])


def test_unobserved_epochs_are_left_out_of_a_real_event():
    mag = np.full(50, 18.0)
    mag[::2] = np.nan
    figure = plots.real_event(TIMES, mag, np.full(50, 0.1), mag, np.full(50, 0.4), start=0.0)
    kept = figure.axes[2].lines[0].get_xdata()
    np.testing.assert_array_equal(kept, TIMES[1::2][TIMES[1::2] >= 0])
