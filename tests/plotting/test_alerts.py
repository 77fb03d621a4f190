"""Each figure draws what it was given."""

import numpy as np
import pytest

from lensml import evaluation
from lensml.plotting import alerts as plots

NAN = np.nan
EDGES = np.linspace(-3, 3, 13)


@pytest.fixture(scope="module")
def figures():
    rng = np.random.default_rng(0)
    onset = rng.uniform(-30, 30, 200)
    ideal = onset + rng.normal(0, 5, 200)
    network = np.where(rng.random(200) < 0.8, ideal + rng.exponential(5, 200), NAN)
    found = np.linspace(0, 0.6, EDGES.size)
    prevalence = np.geomspace(0.003, 0.5, 20)
    rates = (
        evaluation.binomial_interval(np.arange(1000) < 9),
        evaluation.binomial_interval(np.arange(1000) < 300),
    )
    y = np.tile([0, 1], 500)
    p = np.clip(rng.normal(0.4 + 0.2 * y, 0.15), 0, 1)[:, None].repeat(7, axis=1)
    return {
        "latency": plots.alert_latency(
            {
                "network": network,
                "refit_limited": ideal,
                "template_search": ideal + 1,
                "onset": onset,
            }
        ),
        "phase": plots.alerts_by_phase(
            {"distinct": {"network": found, "refit_limited": found + 0.2}}, EDGES
        ),
        "purity": plots.purity_by_prevalence(
            prevalence, {"1 %": [evaluation.alert_rate_and_purity(*rates, x) for x in prevalence]}
        ),
        "reliability": plots.reliability(evaluation.reliability(y, p[:, 0])),
        "reliability_at_fractions": plots.reliability_at_fractions(
            y, {"before": p, "after": p**0.9}
        ),
    }


def test_every_figure_renders(figures, tmp_path):
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").stat().st_size > 5000


def test_detected_fraction_ends_at_all_that_were_detected(figures):
    lines = {line.get_label(): line for line in figures["latency"].axes[0].lines}
    assert lines["refit-limited observer"].get_ydata()[-1] == 1
    assert 0.7 < lines["network"].get_ydata()[-1] < 0.9
    assert lines["refit-limited observer"].get_linestyle() == "-."
    assert len({str(x.get_linestyle()) for x in lines.values()}) > 2


def test_a_network_without_alerts_is_drawn_at_zero():
    first = {"network": [NAN, NAN], "refit_limited": [NAN, 1.0], "onset": [NAN, 0.0]}
    figure = plots.alert_latency(first)
    assert figure.axes[0].lines[0].get_ydata().max() == 0


def test_purity_rises_with_prevalence(figures):
    purity = figures["purity"].axes[1].lines[0].get_ydata()
    assert (np.diff(purity) > 0).all() and 0 < purity[0] < purity[-1] < 1


def test_each_fraction_has_its_panel(figures):
    titles = [axes.get_title() for axes in figures["reliability_at_fractions"].axes]
    assert titles[0] == "10 % of the window" and titles[6] == "100 % of the window"


def test_phase_draws_network_and_refit_limited_observer(figures):
    labels = [line.get_label() for line in figures["phase"].axes[0].lines]
    assert labels[:2] == ["network", "refit-limited observer"]
    assert figures["phase"].axes[0].get_title() == "distinct"


def test_bins_of_few_light_curves_are_hollow_and_not_joined():
    y = np.r_[np.zeros(30), np.ones(30), [0, 1]]
    p = np.r_[np.full(30, 0.1), np.full(30, 0.9), 0.4, 0.5]
    axes = plots.reliability(evaluation.reliability(y, p)).axes[0]
    joined, alone = axes.lines[1], axes.lines[-1]
    np.testing.assert_allclose(joined.get_xdata(), [0.1, 0.9])
    np.testing.assert_allclose(alone.get_xdata(), [0.4, 0.5])
    assert alone.get_markerfacecolor() == "white" and alone.get_linestyle() == "None"
