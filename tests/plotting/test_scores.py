"""Figures show the numbers they were given, and the ideal observer beside them."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from sets import planted
from sklearn.metrics import roc_curve

from lensml import evaluation
from lensml.plotting import scores as plots
from lensml.plotting.style import PUBLISHED

RNG = np.random.default_rng(0)
Y = np.tile([0, 1], 60)
DCHI2 = np.repeat(10 ** RNG.uniform(-1, 4, 60), 2)
RATIO = (Y - 0.5) * DCHI2 + np.sqrt(DCHI2) * RNG.normal(size=120)
P = evaluation.ideal_probability(0.5 * RATIO)
TABLE = evaluation.recall_by_dchi2(Y, P, DCHI2, 0.01)
WINDOW = {
    f: {
        "balanced_accuracy": {"value": 0.5 + k / 20, "low": 0.45, "high": 0.95},
        "ideal": {"balanced_accuracy": 0.6 + k / 20},
        "refit_limited": {"balanced_accuracy": 0.55 + k / 20},
    }
    for k, f in enumerate(("0.1", "0.5", "1.0"))
}
PHASE = {
    "phase": [-1, 0, 1],
    "balanced_accuracy": [0.5, None, 0.8],
    "recall": [0.1, 0.5, 0.7],
    "false_positives": [0.1, 0.1, 0.1],
}


def drawn() -> dict[str, Figure]:
    s, q, found = 10 ** RNG.uniform(-1, 1, 60), 10 ** RNG.uniform(-3, 0, 60), P[1::2] > 0.5
    return {
        "roc_and_pr": plots.roc_and_pr({"network": (Y, P)}, Y, RATIO),
        "confusion": plots.confusion([[5, 1], [2, 4]], [[6, 0], [0, 6]]),
        "recall_by_dchi2": plots.recall_by_dchi2({"network": TABLE}),
        "completeness": plots.completeness_curve({"network": evaluation.completeness(Y, P, DCHI2)}),
        "early_detection": plots.early_detection({"network": WINDOW}),
        "against_phase": plots.scores_by_phase({"network": PHASE}),
        "map_s_q": plots.recall_map(s, q, found, found),
        "against_u0": plots.recall_by_u0(RNG.uniform(size=60), found, found),
        "history": plots.history({"epoch": [1, 2], "loss": [0.7, 0.6], "auc": [0.5, 0.6]}),
        "bars": plots.bars(["a", "b"], {"network": [0.5, {"value": 0.6}]}, [0.8, 0.9]),
    }


@pytest.fixture(scope="module")
def figures():
    return drawn()


def line(axes, label):
    return next(x for x in axes.lines if str(x.get_label()).startswith(label))


@pytest.mark.parametrize("name", drawn())
def test_every_figure_can_be_printed_at_book_width(figures, name):
    assert figures[name].get_size_inches()[0] <= 7.3
    figures[name].savefig(io.BytesIO(), format="png", dpi=40)


def test_roc_draws_network_and_ideal_observer(figures):
    roc = figures["roc_and_pr"].axes[0]
    auc = evaluation.roc_auc(Y, RATIO)
    assert line(roc, "ideal observer").get_label().startswith(f"ideal observer: AUC {auc:.3f}")
    np.testing.assert_allclose(
        line(roc, "network").get_ydata(), roc_curve(Y, P, drop_intermediate=False)[1]
    )


def test_confusion_shows_fraction_of_the_true_class_and_counts(figures):
    texts = [t.get_text() for t in figures["confusion"].axes[0].texts]
    assert texts == ["83.3%\n5", "16.7%\n1", "33.3%\n2", "66.7%\n4"]
    assert len(figures["confusion"].axes) == 2


def test_early_detection_draws_oracle_and_refit_limited_bounds(figures):
    axes = figures["early_detection"].axes[0]
    np.testing.assert_allclose(line(axes, "network").get_xydata()[1], [50, 0.55])
    for bound, start in (("oracle", 0.6), ("refit-limited", 0.55)):
        found = line(axes, f"network: {bound} bound").get_ydata()
        np.testing.assert_allclose(found, start + np.array([0, 0.05, 0.1]))


ROWS = [
    {"low": low, "high": high, "binaries": n, "median": median, "recall": recall, "ideal": ideal}
    for low, high, n, median, recall, ideal in (
        (0.0, 9.0, 900, 0.02, 0.03, 0.07), (9.0, 25.0, 100, 14.0, 0.5, 0.9),
        (25.0, 75.0, 48, 40.0, 1.0, 1.0), (75.0, np.inf, 5, 200.0, 1.0, 1.0),
    )
]  # fmt: skip


def test_recall_stands_at_the_median_of_its_bin_with_a_wilson_bar():
    axes = plots.recall_by_dchi2({"network": ROWS}).axes[0]
    np.testing.assert_allclose(line(axes, "network").get_xydata()[:, 0], [14, 40, 200])
    bars = [s for c in axes.collections for s in c.get_segments() if len(s)]
    assert len(bars) == 3  # none for a bin of five
    low, high = bars[1][:, 1]
    assert low == pytest.approx(0.926, abs=1e-3) and high == pytest.approx(1)  # 48 of 48
    hollow = [x for x in axes.lines if x.get_markerfacecolor() == "white" and len(x.get_xdata())]
    assert [x.get_xdata().tolist() for x in hollow] == [[200.0]]


def test_the_bin_from_zero_stands_alone_as_far_below_the_ideal_as_it_is():
    axes = plots.recall_by_dchi2({"network": ROWS}).axes[0]
    joined = [x for x in axes.lines if len(x.get_xdata()) > 1 and x.get_marker() == "o"]
    assert [x.get_xdata().min() for x in joined] == [14]  # so no line crosses the ideal
    alone = next(x for x in axes.lines if len(x.get_xdata()) == 1 and x.get_ydata() == 0.03)
    assert evaluation.ideal_recall(alone.get_xdata(), 0.01) == pytest.approx(0.07)


def test_ideal_observer_is_the_closed_form_and_published_thresholds_are_marked(figures):
    axes = figures["recall_by_dchi2"].axes[0]
    ideal = line(axes, "ideal observer")
    half = np.interp(0.5, ideal.get_ydata(), ideal.get_xdata())
    assert half == pytest.approx(2.3263**2, rel=0.05)
    for value in PUBLISHED.values():
        assert any(np.allclose(x.get_xdata(), value) for x in axes.lines)


def test_conditions_are_read_from_top_to_bottom_and_an_auc_is_drawn_about_chance():
    long = "one epoch in three days, but only in the nights of the first season"
    auc = {"value": 0.6, "low": 0.55, "high": 0.65}
    figure = plots.bars(
        ["one epoch a day", long], {"network": [auc, 0.5]}, label="AUC", by="cadence"
    )
    axes = figure.axes[0]
    assert axes.get_ylim()[0] > axes.get_ylim()[1] and axes.get_ylabel() == "cadence"
    assert line(axes, "chance").get_xdata() == [0.5, 0.5] and axes.get_xlim()[0] > 0.4
    assert axes.collections[0].get_segments()[0].tolist() == [[0.55, 0], [0.65, 0]]
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in axes.get_yticklabels()]
    assert not boxes[0].overlaps(boxes[1]) and min(b.x0 for b in boxes) >= 0


def test_a_fraction_is_drawn_from_zero_and_a_difference_about_it():
    assert plots.bars(["a"], {"n": [0.3]}, label="fraction").axes[0].get_xlim()[0] == 0
    axes = plots.bars(["a"], {"n": [-0.3]}, label="loss").axes[0]
    assert any(list(x.get_xdata()) == [0, 0] for x in axes.lines)


def test_each_column_of_a_history_has_its_panel_and_one_epoch_a_marker():
    columns = {"epoch": [1], "train_loss": [0.6931471], "validation_loss": [0.6931472]}
    figure = plots.history(columns | {"validation_auc": [0.5], "seconds": [38.0]})
    assert [a.get_ylabel() for a in figure.axes if a.get_visible()] == [
        "loss", "validation AUC", "time per epoch [s]",
    ]  # fmt: skip
    assert all(x.get_marker() == "o" for x in figure.axes[0].lines)
    assert not figure.axes[0].yaxis.get_major_formatter().get_useOffset()


def test_map_shows_found_over_all():
    s, q = np.array([0.5, 0.5, 2.0, 2.0]), np.array([0.01, 0.01, 0.1, 0.1])
    mesh = plots.recall_map(s, q, [1, 0, 1, 1], bins=2).axes[0].collections[0]
    recall = np.ma.filled(mesh.get_array().reshape(2, 2), np.nan)
    np.testing.assert_array_equal(recall, [[0.5, np.nan], [np.nan, 1.0]])


@pytest.fixture(scope="module")
def compared():
    y, dchi2, pair, good, bad = planted()
    scores = {"network": bad, "anomaly templates": good, "ideal observer": good + 1e-3 * bad}
    return evaluation.compare_methods(scores, y, dchi2, pair, num=40)


def test_every_method_is_drawn_in_every_filled_bin(compared):
    left, right = plots.recall_by_method(compared).axes
    methods = ["network", "anomaly templates"]  # the ideal observer is a line
    assert [t.get_text().replace("\n", " ") for t in right.get_yticklabels()] == methods
    assert line(left, "ideal observer").get_linestyle() == "--"
    rows = compared["network"]["recall_by_dchi2"]
    filled = sum(row["binaries"] > 0 and row["low"] > 0 for row in rows)
    assert len(line(left, "network").get_xdata()) == filled


def test_half_recall_that_is_never_reached_leaves_its_line_empty(compared):
    never = {name: dict(row) for name, row in compared.items()}
    never["network"]["dchi2_at_half_recall"] = dict.fromkeys(("value", "low", "high"), np.inf)
    right = plots.recall_by_method(never).axes[1]
    assert len(right.lines) == 2  # the templates and the ideal observer
