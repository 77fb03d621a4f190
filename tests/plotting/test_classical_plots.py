"""Figures and words of the contest, drawn from numbers alone."""

import numpy as np
import pytest
from sets import planted

from lensml import evaluation
from lensml.plotting import classical_plots
from lensml.simulation import FRACTIONS


@pytest.fixture(scope="module")
def contest():
    y, dchi2, pair, good, bad = planted()
    scores = {"network": bad, "anomaly templates": good, "ideal observer": good + 1e-3 * bad}
    beaten = evaluation.bins_where_worse(bad, {"anomaly templates": good}, y, dchi2, pair, num=60)
    return evaluation.compare(scores, y, dchi2, pair, num=40), beaten


def test_every_method_is_drawn_in_every_filled_bin(contest):
    left, right = classical_plots.recall_by_method(contest[0]).axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == list(contest[0])
    assert [t.get_text() for t in right.get_yticklabels()] == list(contest[0])
    filled = sum(row["binaries"] > 0 for row in contest[0]["network"]["recall_by_dchi2"])
    assert len(left.lines[0].get_xdata()) == filled


def test_half_recall_that_is_never_reached_leaves_its_line_empty(contest):
    never = {name: dict(row) for name, row in contest[0].items()}
    never["network"]["dchi2_at_half_recall"] = dict.fromkeys(("value", "low", "high"), np.inf)
    right = classical_plots.recall_by_method(never).axes[1]
    assert len(right.lines) == 2 * (len(never) - 1) + 1


def test_scores_over_the_window_are_drawn_by_method():
    y, _, _, good, bad = planted()
    scores = {"network": np.tile(bad[:, None], 7), "ideal observer": np.tile(good[:, None], 7)}
    auc, recall = classical_plots.scores_by_fraction(scores, y, FRACTIONS).axes
    assert [len(axes.lines) for axes in (auc, recall)] == [2, 2]


def test_tables_have_a_row_a_method(contest):
    table = classical_plots.method_table(contest[0])
    assert [row[0] for row in table.rows] == list(contest[0])
    assert {len(row) for row in table.rows} == {len(table.headings)}


def test_the_sentence_names_bin_method_and_interval(contest):
    text = classical_plots.verdict(contest[1])
    assert "at 75-160 (recall 0" in text and "of anomaly templates" in text
    assert "beyond chance" in text and text.endswith(".")
    assert "no classical method" in classical_plots.verdict([])
