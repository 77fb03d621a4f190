"""What an observer is told about one light curve, on real events and on made ones."""

import json

import numpy as np
import pytest
from sets import blended_photometry

from lensml.paths import WEIGHTS
from lensml.photometry import installed_events
from lensml.streaming import classify_file


@pytest.fixture(scope="module")
def planet():
    """The first planet found by microlensing; its causal baseline is 0.2 mag too bright."""
    return classify_file(installed_events()["OGLE-2003-BLG-235"].files[0])


def table(path, time, mag, mag_err):
    body = "\n".join(f"{t:.5f},{m:.4f},{e:.4f}" for t, m, e in zip(time, mag, mag_err, strict=True))
    path.write_text(f"hjd,mag,mag_err\n{body}\n")
    return path


def test_alert_highest_and_last_are_those_of_the_epochs(planet):
    answer, p = planet.answer, planet.p
    times = [epoch["time"] for epoch in answer["epochs"]]
    first = next(k for k, value in enumerate(p) if value > answer["threshold"])
    assert answer["first_alert"] == times[first]
    assert answer["p_binary_max"] == p.max() and answer["time_max"] == times[p.argmax()]
    assert answer["p_binary"] == p[-1] == answer["epochs"][-1]["p_binary"]
    json.dumps(answer, allow_nan=False)


def test_a_baseline_that_the_whole_curve_denies_is_not_trusted(planet):
    baseline = planet.answer["baseline"]
    assert baseline["magnitude"] == pytest.approx(19.09) and baseline["epochs"] == 200
    assert baseline["source"] == "median of the first 200 epochs" and not baseline["trusted"]
    not_trusted, fell = planet.answer["warnings"]
    assert "19.295 mag" in not_trusted and "fell below 0.5 after the alert" in fell
    assert f"WARNING   {fell}" in planet.text() and "NOT TRUSTED" in planet.text()


def test_a_given_baseline_that_fits_is_trusted_and_the_planet_is_kept():
    found = classify_file(installed_events()["OGLE-2003-BLG-235"].files[0], 19.3)
    assert found.answer["baseline"]["trusted"] and not found.answer["warnings"]
    assert found.answer["p_binary"] > 0.9 and "given; trusted" in found.text()


def test_a_quiet_past_gives_a_trusted_baseline(tmp_path):
    past, (time, mag, error) = 2456400 + 3.0 * np.arange(200), blended_photometry()
    noise = np.random.default_rng(0).normal(18.3, 0.01, 200)
    columns = np.append(past, time), np.append(noise, mag), np.append(0 * past + 0.01, error)
    found = classify_file(table(tmp_path / "a.csv", *columns))
    assert found.answer["baseline"]["trusted"] and not found.answer["warnings"]
    assert found.fit.m_base == pytest.approx(18.3, abs=0.02)


def test_an_event_without_quiet_epochs_has_no_trusted_baseline(tmp_path):
    time, mag, error = blended_photometry()
    near = mag < 18.0
    found = classify_file(table(tmp_path / "a.csv", time[near], mag[near], error[near]))
    assert not found.answer["baseline"]["trusted"]
    assert "from the peak" in found.answer["warnings"][0]


@pytest.mark.parametrize("m_base", [None, 18.0])
def test_few_epochs_are_no_answer_unless_the_baseline_is_given(m_base, tmp_path):
    time = 2457000 + np.arange(12.0)
    path = table(tmp_path / "a.csv", time, np.full(12, 18.0), np.full(12, 0.02))
    found = classify_file(path, m_base)
    assert ("no answer yet" in found.text()) == (m_base is None)
    assert ("P(binary) =" in found.text()) == (m_base is not None)
    assert found.answer["n_epochs"] == 12 and 0 <= found.answer["p_binary"] <= 1
    assert (found.answer["time_max"] is None) == (m_base is None)


def test_a_network_of_ones_own_has_no_stored_threshold(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / name).symlink_to(WEIGHTS / name)
    time = 2457000 + np.arange(40.0)
    path = table(tmp_path / "a.csv", time, np.full(40, 18.0), np.full(40, 0.02))
    found = classify_file(path, run=tmp_path / "run")
    assert found.answer["threshold"] is None and "threshold none is known" in found.text()


def test_a_prevalence_shifts_what_is_shown_and_not_when_it_alerts(planet):
    rare = classify_file(installed_events()["OGLE-2003-BLG-235"].files[0], prevalence=0.05)
    assert rare.answer["first_alert"] == planet.answer["first_alert"]
    assert rare.answer["threshold"] == planet.answer["threshold"]
    assert rare.answer["prevalence"] == 0.05 and planet.answer["prevalence"] == 0.5
    odds, before = (x.p / (1 - x.p) for x in (rare, planet))
    np.testing.assert_allclose(odds, before / 19, rtol=1e-9)
    assert rare.answer["p_binary_max"] == rare.p.max() and "0.05 in what follows" in rare.text()


def test_an_answer_says_which_threshold_it_used(planet):
    assert planet.answer["threshold_of"]["survey"] == "default"
    assert "1 % of simulated single lenses" in planet.text() and "survey default" in planet.text()
