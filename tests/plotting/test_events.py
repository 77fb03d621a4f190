"""Light curves, priors and real photometry are drawn as given."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from lensml.plotting import events as plots

RNG = np.random.default_rng(0)
TIMES = np.linspace(-100, 100, 50)
S, Q = 10 ** RNG.uniform(-1, 1, 60), 10 ** RNG.uniform(-3, 0, 60)


def faint_peak(times):
    return 18 - 1 / (1 + (times / 0.5) ** 2)


def drawn() -> dict[str, Figure]:
    curves = RNG.normal(18, 0.1, (4, 2, 50))
    return {
        "gallery": plots.gallery(
            TIMES, curves, curves, np.full(4, 0.1), list("abcd"), ["first", "second"]
        ),
        "priors": plots.prior_histograms({"a": {"s": S, "u0": Q}, "b": {"s": S[:30]}}),
        "real_event": plots.real_event(
            TIMES, curves[0, 0], np.full(50, 0.1), faint_peak, np.full(50, 0.4), threshold=0.9
        ),
    }


@pytest.mark.parametrize(("name", "figure"), drawn().items())
def test_every_figure_can_be_printed_at_book_width(name, figure):
    assert figure.get_size_inches()[0] <= 7.3
    figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_a_distribution_adds_up_to_one_and_sets_share_their_bins():
    log_axis, linear = plots.prior_histograms({"a": {"s": S, "u0": Q}, "b": {"s": S[:30]}}).axes[:2]
    assert (log_axis.get_xscale(), linear.get_xscale()) == ("log", "linear")
    assert {line.get_label(): len(line.get_xdata()) for line in log_axis.lines}.keys() == {"a", "b"}
    assert log_axis.get_ylabel() == "fraction of events"
    first, second = (line.get_xydata() for line in log_axis.lines)
    np.testing.assert_allclose(first[1:-1, 0], second[1:-1, 0])


def test_rows_of_the_gallery_are_named_and_its_difference_has_a_unit():
    curves = RNG.normal(18, 0.1, (4, 2, 50))
    figure = plots.gallery(TIMES, curves, curves, np.full(4, 0.1), (), ["baseline", "distinct"])
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels[:2] == ["baseline\nmagnitude", "minus twin\n[mag]"]
    assert labels[2] == "distinct\nmagnitude"


def real_event(zero=0.0, mag=None, p=None, **options):
    times = TIMES + zero
    mag = faint_peak(TIMES) if mag is None else mag
    p = np.full(50, 0.4) if p is None else p
    model = lambda t: faint_peak(t - zero)  # noqa: E731
    return plots.real_event(times, mag, np.full(50, 0.1), model, p, **options).axes


def line(axes, label):
    return next(x for x in axes.lines if x.get_label() == label)


def test_unobserved_epochs_are_left_out_of_a_real_event():
    mag = np.full(50, 18.0)
    mag[::2] = np.nan
    axes = real_event(mag=mag, start=0.0)
    np.testing.assert_array_equal(
        line(axes[2], "P(binary)").get_xdata(), TIMES[1::2][TIMES[1::2] >= 0]
    )


def test_the_fit_of_a_real_event_is_drawn_at_its_peak_between_epochs():
    top = line(real_event()[0], "single-lens fit").get_ydata().min()
    assert top < 17.01 < faint_peak(TIMES).min()


def test_a_full_julian_date_is_drawn_less_2450000_and_another_as_it_is():
    full, other = real_event(zero=2_457_000.0)[2], real_event()[2]
    assert full.get_xlabel().startswith("HJD") and 6890 < full.get_xlim()[0] < 6910
    assert other.get_xlabel() == "time [d]" and other.get_xlim()[0] < -99


def test_the_first_alert_is_marked_where_p_first_exceeds_the_threshold():
    p = np.where(np.arange(50) < 30, 0.4, 0.95)
    axes = real_event(p=p, threshold=0.9)
    assert line(axes[2], "first alert").get_xdata()[0] == TIMES[30]
    assert not [x for x in real_event(threshold=0.9)[2].lines if x.get_label() == "first alert"]
    both = real_event(p={"quoted": p, "rescaled": np.full(50, 0.4)}, threshold=0.9)[2]
    labels = [x.get_label() for x in both.lines]
    assert "first alert: quoted" in labels and "first alert: rescaled" not in labels


def test_residuals_of_a_real_event_are_in_units_of_the_error():
    dots = real_event(mag=faint_peak(TIMES) + 0.2)[1].lines[0]
    np.testing.assert_allclose(dots.get_ydata(), 2.0)
