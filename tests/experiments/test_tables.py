"""A number is printed one way, a result's key is spelled one way, a table has one shape."""

import numpy as np
import pytest

from lensml.experiments.tables import (
    ResultsTable,
    flatten,
    format_number,
    observers_table,
    plain,
    provenance_line,
    result_key,
    results_table,
    safe_keys,
)


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (interval(0.9712, 0.965, 0.9743), "0.971 (0.965 to 0.974)"),
        (interval(0.2, 0.1, 0.4), "0.20 (0.10 to 0.40)"),
        (interval(23.4, 20.1, 27.9), "23 (20 to 28)"),
        (interval(12345.0, 12000.0, 13000.0), "12,345 (12,000 to 13,000)"),
        (interval(-0.0001, -0.01, 0.01), "0.000 (-0.010 to 0.010)"),
        (interval(1.0, 0.926, 1.0), "1.00 (0.93 to 1.00)"),
        (interval(0.997, 0.95, 1.0), "0.997 (0.950 to 1.000)"),
        (interval(0.9999995, 0.999999, 1.0), "> 0.9999"),
        (interval(0.99998, 0.9992, 1.0), "> 0.9999 (0.9992 to 1.0000)"),
        (interval(31.62, 31.62, 31.62), "31.6"),
        (interval(0.5, None, None), "0.5"),
        (0.012345, "0.0123"),
        (0.00001, "1e-5"),
        (-0.0, "0"),
        (0.9995, "0.9995"),
        (0.999999, "> 0.9999"),
        (0.95, "0.950"),
        (1234567, "1,234,567"),
        (1.0, "1"),
        (None, "not defined"),
        (True, "yes"),
        ("distinct", "distinct"),
        ({"a": 0.123456789, "b": [1, 2.5]}, "a 0.123, b 1, 2.5"),
    ],
)
def test_a_number_shows_as_many_figures_as_its_interval_allows(value, text):
    assert format_number(value).replace("\u00a0", " ") == text


def test_a_number_with_its_interval_stays_on_one_line():
    for value in (interval(0.5, 0.4, 0.6), interval(0.99998, 0.9992, 1.0), 0.999999, None):
        assert " " not in format_number(value)


def test_nested_numbers_get_joined_names_and_lists_are_left_out():
    numbers = {"auc": {"0.1 mag": 0.8, "ideal": {"value": 1, "low": 0, "high": 2}}, "curve": [1, 2]}
    assert set(flatten(numbers)) == {"auc_0_1_mag", "auc_ideal"}


def test_numpy_and_undefined_numbers_become_json():
    numbers = {"a": np.float32(0.5), "b": np.arange(2), "c": np.nan, "d": {"e": np.bool_(True)}}
    assert plain(numbers) == {"a": 0.5, "b": [0, 1], "c": None, "d": {"e": True}}
    with pytest.raises(TypeError, match="set cannot be stored"):
        plain({"auc": {1, 2}})


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("5 % missing", "5_pct_missing"),
        ("nights of 8 h", "nights_of_8_h"),
        ("baseline, 0.1 mag", "baseline_0p1_mag"),
        ("0.05 mag", "50_mmag"),
        ("25 %", "25_pct"),
        ("0.1 %", "0.1_pct"),
        ("at 10 %", "at_10_pct"),
        ("wide,\ns > 3", "wide_s_3_above"),
        ("q < 0.01", "q_0p01_below"),
        ("$u_0$ < 0.1", "u0_0p1_below"),
        ("single-lens refit", "single_lens_refit"),
        ("OGLE-2003-BLG-235", "OGLE_2003_BLG_235"),
        ("recall_at_0.1pct", "recall_at_0.1pct"),
        ("75-160", "75-160"),
        ("2k-10k", "2k-10k"),
        (">500", ">500"),
        ("50_mmag", "50_mmag"),
    ],
)
def test_names_of_conditions_become_keys(name, key):
    assert result_key(name) == key


def test_keys_are_spelled_at_every_depth_and_values_stay():
    numbers = {"0.1 mag": {"q < 0.01": 0.5, "curve": [{"s > 3": 1}]}}
    assert safe_keys(numbers) == {"100_mmag": {"q_0p01_below": 0.5, "curve": [{"s > 3": 1}]}}


def test_a_table_has_a_dash_where_a_row_has_no_number():
    table = results_table({"network": {"roc_auc": 0.75}, "scan": {}}, ["roc_auc"], "a note")
    assert table.headings == ["", "roc auc"]
    assert table.rows == [["network", "0.75"], ["scan", "-"]]
    assert "a note" in repr(table) and "<td>0.75</td>" in table._repr_html_()


def test_text_of_a_table_is_neither_tag_nor_column():
    table = ResultsTable(["$q < 1$"], [["<b>|"]], "`n` < 3", "**Table 2.1.** Of all.")
    shown = table._repr_html_()
    assert "<td>&lt;b&gt;|</td>" in shown and "<code>n</code> &lt; 3" in shown
    assert "<b>Table 2.1.</b> Of all.</caption>" in shown


def test_columns_may_have_headings_of_their_own():
    table = results_table({"a": {"x": 1}}, {"x": "number of pairs"})
    assert table.headings == ["", "number of pairs"]


def test_the_observers_table_has_a_line_for_each_observer():
    scores = dict.fromkeys(("roc_auc", "balanced_accuracy", "recall_at_1pct"), 0.5)
    summary = {"network": scores, "ideal": scores, "bound_z": -2.0}
    table = observers_table({"0.1 mag": summary})
    assert [row[0] for row in table.rows] == ["0.1 mag: network", "0.1 mag: ideal observer"]
    assert [row[-1] for row in table.rows] == ["-2", "-"]


def test_the_origin_of_a_committed_result_fits_one_line():
    provenance = {"size": "desk", "commit": "0123456789ab", "modified": False, "seeds": [0, 1]}
    provenance |= {"device": "CPU", "wall_time_s": 5.0, "date": "2026-11-26 10:00 UTC"}
    line = provenance_line("02_baseline", {"provenance": provenance})
    assert "seed 0, 1" in line and "size desk" in line and "commit 0123456789," in line
    assert "lensml run 02_baseline --size desk" in provenance_line("02_baseline", None)
