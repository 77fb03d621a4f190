"""Alert thresholds that ship with the weights: by survey, with their exact interval."""

import json

import pytest

from lensml.network import weights_hash
from lensml.paths import WEIGHTS, InputError
from lensml.streaming.thresholds import FILE, LEVELS, find_threshold

RATE = {"value": 0.01, "low": 0.008, "high": 0.013}


def thresholds(*values):
    """As they are stored, of both levels."""
    rows = zip(LEVELS.values(), values, strict=True)
    return {name: {"threshold": x, "singles": 6000, "true_rate": RATE} for name, x in rows}


def test_the_stored_thresholds_are_of_the_shipped_weights():
    stored = json.loads((WEIGHTS / FILE).read_text())
    assert stored["weights_sha256"] == weights_hash() and "default" in stored["thresholds"]


def test_without_a_run_the_threshold_is_that_of_the_shipped_network():
    stored = json.loads((WEIGHTS / FILE).read_text())["thresholds"]
    for survey, by_level in stored.items():
        for level, name in LEVELS.items():
            found = find_threshold(None, survey, level)
            assert (found.value, found.survey) == (by_level[name]["threshold"], survey)
            assert 0.5 < found.value < 1


def test_each_survey_has_a_threshold_of_its_own_and_an_unknown_one_is_refused(tmp_path):
    stored = {"default": thresholds(0.8, 0.9), "Roman": thresholds(0.7, 0.95)}
    (tmp_path / FILE).write_text(json.dumps({"thresholds": stored}))
    found = find_threshold(tmp_path, "Roman", 0.001)
    assert found.value == 0.95 and found.singles == 6000 and found.true_rate["high"] == 0.013
    assert "survey Roman, set on 6,000 of them, true rate 0.80 to 1.30 %" in found.text()
    assert find_threshold(tmp_path).value == 0.8
    for survey, level in (("Rubin", 0.01), ("Roman", 0.05)):
        with pytest.raises(InputError, match="known are default at 1pct, 0_1pct; Roman at"):
            find_threshold(tmp_path, survey, level)


def test_a_file_from_before_there_were_surveys_is_read(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"thresholds": {"1pct": 0.8, "0_1pct": 0.9}}))
    found = find_threshold(tmp_path, level=0.001)
    assert (found.value, found.survey, found.singles, found.true_rate) == (
        0.9,
        "default",
        None,
        None,
    )


def test_a_network_without_thresholds_has_none(tmp_path):
    assert find_threshold(tmp_path) is None
