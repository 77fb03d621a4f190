"""What an observer is told about one event, on real events and on made ones."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sets import blended_magnitude, data_sets, random_network

from lensml.network import CLASSES, STEP, predict_event, save_network
from lensml.paths import InputError
from lensml.photometry import Event, Photometry, installed_events
from lensml.streaming import classification
from lensml.streaming.classification import classify_event, classify_file
from lensml.streaming.thresholds import AlertThreshold

PLANET = installed_events()["OGLE-2003-BLG-235"].files  # OGLE and MOA, the one in flux
EPOCHS = (285, 1250)


@pytest.fixture(scope="module")
def planet():
    """The first planet found by microlensing, with the shipped network."""
    return classify_file(PLANET)


@pytest.fixture(scope="module")
def network():
    return random_network()


def made(datasets, bases=None):
    """An event of data sets `A`, `B`, ... of epochs."""
    bases = bases or [d.m_base for d in datasets]
    curves = [
        Photometry(name, d.times, d.mag, d.sigma, m_base=base)
        for name, d, base in zip("ABCD", datasets, bases, strict=False)
    ]
    return Event("made", tuple(curves))


def lens(num=200, sigma=0.01, f_s=0.6, base=18.3, first=0.0, last=300.0, seed=0, anomaly=0.0):
    """A data set of a blended single lens of t0 = 2457170, u0 = 0.2 and tE = 25 d.

    `anomaly` [mag] is added from day 185 to 190.
    """
    rng = np.random.default_rng(seed)
    time = 2457000 + np.sort(rng.uniform(first, last, num))
    mag = blended_magnitude(2457170.0, 0.2, 25.0, f_s, base, time)
    mag -= anomaly * ((time > 2457185) & (time < 2457190))
    return Photometry("x", time, mag + sigma * rng.standard_normal(num), np.full(num, sigma))


def table(path, curve):
    rows = zip(curve.time, curve.mag, curve.mag_err, strict=True)
    body = "\n".join(f"{t:.5f},{m:.4f},{e:.4f}" for t, m, e in rows)
    path.write_text(f"hjd,mag,mag_err\n{body}\n")
    return path


def test_an_answer_is_of_all_data_sets_together(planet):
    answer, epochs = planet.answer, planet.answer["epochs"]
    assert answer["n_epochs"] == len(epochs) == sum(EPOCHS)
    found = {row["name"]: row["n_epochs"] for row in answer["datasets"]}
    assert found == dict(zip(("OB03235_OGLE", "OB03235_MOA"), EPOCHS, strict=True))
    assert [e["time"] for e in epochs] == sorted(e["time"] for e in epochs)
    assert sum(e["dataset"] == "OB03235_OGLE" for e in epochs) == EPOCHS[0]
    assert [*answer["classes"]] == [*CLASSES]
    assert sum(answer["classes"].values()) == pytest.approx(1, abs=1e-6)
    binary = answer["classes"]["planetary"] + answer["classes"]["stellar"]
    assert answer["p_binary"] == pytest.approx(binary, abs=1e-6) == epochs[-1]["p_binary"]
    json.dumps(answer, allow_nan=False)


def test_the_text_of_an_answer_is_its_json_in_parts(planet, monkeypatch):
    whole = "".join(planet.json())
    assert whole == json.dumps(planet.answer) + "\n"
    monkeypatch.setattr(classification, "BLOCK", 100)
    parts = [*planet.json()]
    assert "".join(parts) == whole and len(parts) == 2 + -(-sum(EPOCHS) // 100)


GROWTH = """
import resource
import numpy as np
from lensml.network import load_network
from lensml.photometry import Event, Photometry
from lensml.streaming.classification import classify_event

network, peaks = load_network()[0], []
for num in (20_000, 100_000):
    time, error = np.linspace(0, 2000, num), np.full(num, 0.02)
    mag = 18 + error * np.random.default_rng(0).standard_normal(num)
    found = classify_event(Event("x", (Photometry("x", time, mag, error),)), network)
    assert sum(map(len, found.json())) > 60 * num
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print((peaks[1] - peaks[0]) / 80_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss has other units")
def test_memory_grows_little_with_the_epochs_of_an_event():
    """Bytes an epoch: 220 measured; 3,300 with all inputs, layers and objects held at once."""
    found = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 700


def test_the_planet_s_anomaly_is_found_where_it_was(planet):
    """Published: caustics crossed from HJD 2452835 to 2452842; most of MOA's epochs are of then."""
    found, rows = planet.answer["dchi2"], planet.answer["datasets"]
    assert found["value"] > 500
    assert 2452830 < found["start"] < 2452842 < found["end"] < 2452850
    share = {row["name"]: row["share"] for row in rows}
    assert sum(share.values()) == pytest.approx(1) and share["OB03235_MOA"] > 0.5
    assert "chi-squared above a single lens's" in planet.text()


def test_answers_are_those_of_predict_event(network):
    datasets = data_sets(3, 80, given=(1,))
    found = classify_event(made(datasets), network)
    expected = predict_event(network, datasets)
    p = network.probabilities(expected.logits)[:, 1:3].sum(1).nan_to_num(0.5)
    np.testing.assert_allclose(found.p, p, rtol=0, atol=1e-5)
    assert [e["dataset"] for e in found.answer["epochs"]] == ["ABC"[k] for k in expected.dataset]
    assert (found.p[: STEP - 1] == 0.5).all() and found.p[STEP:].std() > 0.01


def test_the_order_of_files_does_not_matter(tmp_path, network):
    save_network(tmp_path / "run", network, {})
    curves = lens(150), lens(90, base=17.0, first=100, seed=1)
    files = [table(tmp_path / f"{k}.csv", curve) for k, curve in enumerate(curves)]
    one, two = (classify_file(order, run=tmp_path / "run") for order in (files, files[::-1]))
    np.testing.assert_allclose(one.p, two.p, rtol=0, atol=1e-5)
    for name in ("classes", "dchi2"):
        assert one.answer[name] == pytest.approx(two.answer[name], rel=1e-4)
    assert [row["name"] for row in two.answer["datasets"]] == ["0", "1"]


def test_alert_highest_and_last_are_those_of_the_epochs(network):
    event = made(data_sets(2, 150))
    p = classify_event(event, network).p
    value = float(np.quantile(p[STEP:], 0.8))
    threshold = AlertThreshold(value=value, level=0.01, survey="default", singles=6000)
    found = classify_event(event, network, threshold=threshold)
    answer, times = found.answer, [epoch["time"] for epoch in found.answer["epochs"]]
    first = next(k for k, x in enumerate(found.p) if x > value and k >= STEP - 1)
    assert answer["first_alert"] == times[first]
    top = STEP - 1 + found.p[STEP - 1 :].argmax()
    assert answer["p_binary_max"] == found.p[top] and answer["time_max"] == times[top]
    assert answer["p_binary"] == found.p[-1] == answer["epochs"][-1]["p_binary"]
    assert answer["threshold"] == value and answer["threshold_of"]["survey"] == "default"
    assert "1 % of simulated single lenses" in found.text() and "set on 6,000" in found.text()
    assert found.p[-1] < 0.5 and "fell below 0.5 after the alert" in answer["warnings"][-1]
    never = AlertThreshold(value=0.999, level=0.01, survey="default")
    assert classify_event(event, network, threshold=never).answer["first_alert"] is None


def test_a_fitted_baseline_is_that_of_the_lens_and_has_an_error(network):
    curves = lens(300, seed=3), lens(200, base=16.5, f_s=0.9, first=80, seed=4)
    found = classify_event(Event("x", curves), network)
    for row, truth in zip(found.answer["datasets"], (18.3, 16.5), strict=True):
        assert row["source"] == "fitted with a single lens" and row["trusted"]
        assert row["baseline"] == pytest.approx(truth, abs=5 * row["baseline_error"])
        assert 0.0005 < row["baseline_error"] < 0.02
        assert row["error_factor"] == pytest.approx(1, abs=0.15)
    assert not found.answer["warnings"]
    assert found.answer["baseline"] == {  # of the longest data set
        "magnitude": found.answer["datasets"][0]["baseline"],
        "source": "fitted with a single lens",
        "trusted": True,
        "error": found.answer["datasets"][0]["baseline_error"],
    }
    t0, u0, tE = found.shape
    assert (t0, u0, tE) == (pytest.approx(2457170, abs=0.1), pytest.approx(0.2, abs=0.02),
                            pytest.approx(25, rel=0.1))  # fmt: skip


def test_quoted_errors_that_are_too_small_are_found_out(network):
    curve = lens(300, sigma=0.03)
    small = Photometry("x", curve.time, curve.mag, curve.mag_err / 3)
    found = [classify_event(Event("x", (c,)), network).answer for c in (curve, small)]
    factors = [answer["datasets"][0]["error_factor"] for answer in found]
    assert factors == [pytest.approx(1, abs=0.15), pytest.approx(3, rel=0.15)]
    assert found[1]["dchi2"]["value"] < 3 * found[0]["dchi2"]["value"] + 20


def test_an_event_without_quiet_epochs_has_no_trusted_baseline(network):
    """Near the peak of a blended lens f_s and baseline cannot be told apart."""
    curve = lens(60, sigma=0.05, first=165, last=176)
    answer = classify_event(Event("x", (curve,)), network).answer
    assert not answer["baseline"]["trusted"] and answer["baseline"]["error"] > 0.1
    assert "not trusted: the fit knows it to" in answer["warnings"][0]


@pytest.mark.parametrize("base", [18.3, 17.3, 19.3])
def test_a_given_baseline_far_off_is_doubted(base, network):
    found = classify_event(Event("x", (lens(300),)), network, base)
    baseline, right = found.answer["baseline"], base == 18.3
    assert baseline["magnitude"] == base and baseline["source"] == "given"
    assert baseline["trusted"] == right == (not found.answer["warnings"])
    assert ("given; trusted" in found.text()) == right
    if not right:
        assert f"{base:.3f} mag was given, a single lens fits best" in found.answer["warnings"][0]
        assert "NOT TRUSTED" in found.text()


def test_a_baseline_that_cannot_be_one_is_refused(tmp_path):
    files = [table(tmp_path / f"{k}.csv", lens(40, seed=k)) for k in range(2)]
    with pytest.raises(InputError, match="--m_base 30 cannot be the baseline of 0: expected 1"):
        classify_file(files[0], 30.0)
    with pytest.raises(InputError, match="2 data sets of mag came; expected one"):
        classify_file(files, 18.3)


@pytest.mark.parametrize("m_base", [None, 18.0])
@pytest.mark.parametrize("num", [1, STEP - 1, STEP])
def test_few_epochs_are_no_answer(num, m_base, network):
    time, ones = 2457000 + np.arange(float(num)), np.ones(num)
    event = Event("x", (Photometry("x", time, 18 * ones, 0.02 * ones),))
    threshold = AlertThreshold(value=0.0, level=0.01, survey="default")
    found, none = classify_event(event, network, m_base, threshold), num < STEP
    answer = found.answer
    assert ("no answer yet: fewer than 8 epochs" in found.text()) == none
    assert ("P(binary) =" in found.text()) == (not none) == bool(found.fits)
    assert answer["n_epochs"] == num and (answer["p_binary"] == 0.5) == none
    assert (answer["first_alert"] is None) == none == (answer["dchi2"]["value"] is None)
    assert all((value is None) == none for value in answer["classes"].values())
    assert json.loads(json.dumps(answer, allow_nan=False))["baseline"]["source"] == (
        "given" if m_base else "none" if none else "fitted with a single lens"
    )


def test_a_network_of_ones_own_has_no_stored_threshold(tmp_path, network):
    save_network(tmp_path / "run", network, {})
    found = classify_file(table(tmp_path / "a.csv", lens(40)), run=tmp_path / "run")
    assert found.answer["threshold"] is None and "threshold none is known" in found.text()


def test_a_prevalence_shifts_odds_and_not_when_it_alerts(network):
    event = made(data_sets(2, 150))
    value = float(np.median(classify_event(event, network).p[STEP:]))
    threshold = AlertThreshold(value=value, level=0.01, survey="default")
    even, rare = (
        classify_event(event, network, threshold=threshold, prevalence=x) for x in (0.5, 0.05)
    )
    assert rare.answer["first_alert"] == even.answer["first_alert"] is not None
    assert rare.answer["threshold"] == even.answer["threshold"]
    assert rare.answer["prevalence"] == 0.05 and even.answer["prevalence"] == 0.5
    odds, before = (x.p[STEP:] / (1 - x.p[STEP:]) for x in (rare, even))
    np.testing.assert_allclose(odds, before / 19, rtol=1e-4)
    ratio = {k: v / even.answer["classes"][k] for k, v in rare.answer["classes"].items()}
    assert ratio["single"] == pytest.approx(ratio["other"], rel=1e-4)
    assert ratio["planetary"] == pytest.approx(ratio["stellar"], rel=1e-4)
    assert ratio["single"] == pytest.approx(19 * ratio["planetary"], rel=1e-4)
    assert rare.answer["p_binary_max"] == rare.p[STEP - 1 :].max()
    assert "0.05 in what follows" in rare.text()


def test_a_small_anomaly_is_measured_in_the_data_set_that_has_it(network):
    """Its chi-squared is a lower limit: the single lens bends towards it."""
    quiet = Event("x", (lens(300, seed=5), lens(300, base=17.0, seed=6)))
    bumpy = Event("x", (lens(300, seed=5), lens(300, base=17.0, seed=6, anomaly=0.15)))
    before, after = (classify_event(event, network).answer for event in (quiet, bumpy))
    assert 0 <= before["dchi2"]["value"] < 50
    inside = (bumpy.datasets[1].time > 2457185) & (bumpy.datasets[1].time < 2457190)
    injected = inside.sum() * (0.15 / 0.01) ** 2
    assert injected / 2 < after["dchi2"]["value"] < 1.2 * injected
    assert 2457184 < after["dchi2"]["start"] < after["dchi2"]["end"] < 2457191
    share = {row["baseline"] > 18: row["share"] for row in after["datasets"]}
    assert share[False] > 0.9 and sum(share.values()) == pytest.approx(1)


def test_aligned_puts_data_sets_of_other_zero_points_on_one_scale(network):
    """Blends, too: on the scale of the data set of most weight, both follow one curve."""
    curves = lens(300, sigma=0.004, seed=7), lens(200, base=15.0, f_s=0.3, sigma=0.01, seed=8)
    found = classify_event(Event("x", curves), network)
    times, mag, error = found.aligned()
    assert (np.diff(times) >= 0).all() and len(times) == 500
    of_first = np.isin(times, curves[0].time)
    np.testing.assert_allclose(mag[of_first], curves[0].mag, rtol=0, atol=1e-9)
    np.testing.assert_allclose(error[of_first], 0.004)
    pull = (mag - found.magnitude(times)) / error
    for own in (of_first, ~of_first):
        assert abs(pull[own].mean()) < 0.25 and 0.85 < pull[own].std() < 1.15
    peak = ~of_first & (mag == mag[~of_first].min())
    assert mag[peak] < mag[~of_first].max() - 0.7 and 0.004 < error[peak] < 0.02


def test_an_event_that_is_no_lens_is_named(network):
    other = random_network()
    with torch.no_grad():
        other.head[-1].bias[4] += 30
    found = classify_event(made(data_sets(1, 60)), other)
    assert "P(not microlensing) = 1.00" in found.answer["warnings"][-1]
    assert "classes   other 1.000" in found.text()


def test_data_sets_of_two_time_zeros_are_pointed_out(network):
    shifted = lens(60, seed=1)
    shifted = Photometry("y", shifted.time - 2450000, shifted.mag, shifted.mag_err)
    warned = [
        "are their times of one zero?" in classify_event(Event("x", sets), network).text()
        for sets in ((lens(60), shifted), (lens(60), lens(60, first=1000, last=1300)))
    ]
    assert warned == [True, False]
