"""Tables and words of the comparison with classical searches."""

import pytest
from sets import planted

from lensml import evaluation
from lensml.plotting import classical_plots


@pytest.fixture(scope="module")
def contest():
    y, dchi2, pair, good, bad = planted()
    scores = {"network": bad, "anomaly templates": good, "ideal observer": good + 1e-3 * bad}
    beaten = evaluation.bins_where_worse(bad, {"anomaly templates": good}, y, dchi2, pair, num=60)
    return evaluation.compare(scores, y, dchi2, pair, num=40), beaten


def test_tables_have_a_row_a_method(contest):
    table = classical_plots.method_table(contest[0])
    assert [row[0] for row in table.rows] == list(contest[0])
    assert {len(row) for row in table.rows} == {len(table.headings)}


def test_the_sentence_names_bin_method_and_interval(contest):
    text = classical_plots.verdict(contest[1])
    assert "at 75-160 (recall 0" in text and "of anomaly templates" in text
    assert "beyond chance" in text and text.endswith(".")
    assert "no classical method" in classical_plots.verdict([])
