"""Figures show the numbers they were given, and the ideal observer beside them."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from sets import planted
from sklearn.metrics import roc_curve

from lensml import evaluation
from lensml.plotting import scores as plots
from lensml.plotting.style import PUBLISHED_THRESHOLDS
from lensml.simulation import FRACTIONS

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
        "recall_by_dchi2": plots.recall_by_dchi2({"network": TABLE}, TABLE),
        "completeness": plots.completeness_curve({"network": evaluation.completeness(Y, P, DCHI2)}),
        "early_detection": plots.early_detection({"network": WINDOW}),
        "against_phase": plots.scores_by_phase({"network": PHASE}),
        "map_s_q": plots.recall_map(s, q, found, found),
        "against_u0": plots.recall_by_u0(RNG.uniform(size=60), found, found),
        "history": plots.history({"epoch": [1, 2], "loss": [0.7, 0.6], "auc": [0.5, 0.6]}),
        "growth": plots.growth(
            {"events": {"stream": {"10": [1.0, 1.2], "100": [9.0]}}, "epochs": {"a": {"5": 2.0}}}
        ),
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
    assert line(roc, "ideal observer").get_label() == f"ideal observer, AUC {auc:.3f}"
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
    np.testing.assert_allclose(line(axes, "oracle bound").get_ydata(), [0.6, 0.65, 0.7])
    np.testing.assert_allclose(line(axes, "refit-limited bound").get_ydata(), [0.55, 0.6, 0.65])


def test_bins_without_own_threshold_are_hollow(figures):
    axes = figures["recall_by_dchi2"].axes[0]
    assert all(row["threshold_from"] == "pooled" for row in TABLE)  # 60 twins cannot show 1 %
    assert line(axes, "network").get_markerfacecolor() == "white"
    ideal = line(axes, "ideal, own twin")
    half = np.interp(0.5, ideal.get_ydata(), ideal.get_xdata())
    assert half == pytest.approx(2.3263**2, rel=0.05)
    for value in PUBLISHED_THRESHOLDS.values():
        assert any(np.allclose(x.get_xdata(), value) for x in axes.lines)


def test_map_shows_found_over_all():
    s, q = np.array([0.5, 0.5, 2.0, 2.0]), np.array([0.01, 0.01, 0.1, 0.1])
    mesh = plots.recall_map(s, q, [1, 0, 1, 1], bins=2).axes[0].collections[0]
    recall = np.ma.filled(mesh.get_array().reshape(2, 2), np.nan)
    np.testing.assert_array_equal(recall, [[0.5, np.nan], [np.nan, 1.0]])


def test_growth_is_relative_to_the_median_of_the_smallest_size(figures):
    axes = figures["growth"].axes[0]
    np.testing.assert_allclose(line(axes, "stream").get_ydata(), [1.0, 9.0 / 1.1])
    np.testing.assert_allclose(line(axes, "in proportion").get_ydata(), [1, 10])


@pytest.fixture(scope="module")
def compared():
    y, dchi2, pair, good, bad = planted()
    scores = {"network": bad, "anomaly templates": good, "ideal observer": good + 1e-3 * bad}
    return evaluation.compare_methods(scores, y, dchi2, pair, num=40)


def test_every_method_is_drawn_in_every_filled_bin(compared):
    left, right = plots.recall_by_method(compared).axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == list(compared)
    assert [t.get_text() for t in right.get_yticklabels()] == list(compared)
    filled = sum(row["binaries"] > 0 for row in compared["network"]["recall_by_dchi2"])
    assert len(left.lines[0].get_xdata()) == filled


def test_half_recall_that_is_never_reached_leaves_its_line_empty(compared):
    never = {name: dict(row) for name, row in compared.items()}
    never["network"]["dchi2_at_half_recall"] = dict.fromkeys(("value", "low", "high"), np.inf)
    right = plots.recall_by_method(never).axes[1]
    assert len(right.lines) == 2 * (len(never) - 1) + 1


def test_scores_over_the_window_are_drawn_by_method():
    y, _, _, good, bad = planted()
    scores = {"network": np.tile(bad[:, None], 7), "ideal observer": np.tile(good[:, None], 7)}
    auc, recall = plots.scores_by_fraction(scores, y, FRACTIONS).axes
    assert [len(axes.lines) for axes in (auc, recall)] == [2, 2]
