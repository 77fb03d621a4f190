"""The protocol classifies the events that were frozen, and refuses what has changed."""

import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.studies.real_events import protocol
from benchmarks.studies.real_events.protocol import (
    classify_all,
    events_of,
    freeze,
    read_frozen,
    read_target,
    select_span,
    survey_of,
)
from lensml.network import Network
from lensml.paths import InputError
from lensml.photometry import Event, Photometry
from lensml.streaming import classify_event

THRESHOLDS = {"1pct": 0.8, "0_1pct": 0.95}
BY_SURVEY = {"ogle": THRESHOLDS, "kmtnet": {"1pct": 0.95, "0_1pct": 0.99}, "default": THRESHOLDS}
FILES = [  # file, event, class, t0, tE, quality, observatory; the name says what is answered
    ("single-quiet.csv.gz", "s1", "PSPL", "150", "10", "B", "OGLE"),
    ("single-alert.csv.gz", "s2", "PSPL", "", "", "C", "OGLE-IV"),
    ("b1_binary-quiet.csv.gz", "b1", "binary", "150", "10", "A", "OGLE"),
    ("b1_binary-alert.csv.gz", "b1", "binary", "150", "10", "A", "KMTC01"),
    ("binary-early.csv.gz", "b2", "binary", "190", "10", "A", "KMTA02"),
    ("relabelled-quiet.csv.gz", "b2", "PSPL", "150", "10", "C", "OGLE"),
]


@pytest.fixture
def folder(tmp_path):
    """Curves of 100 epochs a day apart from day 100 on, brighter where P(binary) will be high."""
    for k, (name, *_) in enumerate(FILES):
        bright = {"quiet": 18.0, "alert": 17.0, "early": 17.0}[name.split("-")[1][:5]]
        days = [day + k / 100 for day in range(100, 200)]
        rows = [f"{t},{bright if 145 <= t < 150 else 18.0},0.02" for t in days]
        text = "\n".join(["time,mag,mag_err", *rows])
        (tmp_path / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    with open(tmp_path / "catalogue.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "event", "class", "t0", "tE", "label_quality", "observatory"])
        writer.writerows(FILES)
    return tmp_path


@pytest.fixture
def events(folder):
    return events_of(freeze(folder, folder / "list.json"))


def answered(event: Event, network) -> SimpleNamespace:
    """What `classify_event` gives, P 0.9 at the bright epochs of any data set."""
    time = np.concatenate([curve.time for curve in event.datasets])
    mag = np.concatenate([curve.mag for curve in event.datasets])[np.argsort(time)]
    fits = [SimpleNamespace(error_factor=1 + k) for k in range(len(event.datasets))]
    p = np.where(mag < 17.5, 0.9, 0.5)
    found, classes = SimpleNamespace(times=np.sort(time)), {"single": 0.6, "stellar": 0.4}
    return SimpleNamespace(event=event, found=found, p=p, fits=fits, answer={"classes": classes})


@pytest.fixture
def found(folder, events, monkeypatch):
    monkeypatch.setattr(protocol, "classify_event", answered)
    return classify_all(folder, events, None, BY_SURVEY)[0]


def test_the_frozen_list_reads_back_and_holds_no_photometry(folder):
    targets = freeze(folder, folder / "list.json")
    assert read_frozen(folder / "list.json") == targets
    assert targets[1].t0 is None and targets[0].tE == 10 and len(targets[0].sha256) == 64
    keys = {
        key for entry in json.loads((folder / "list.json").read_text())["files"] for key in entry
    }
    assert keys == {"file", "sha256", "event", "label", "quality", "t0", "tE", "observatory"}


def test_a_catalogue_need_not_name_observatories(folder):
    rows = list(csv.reader((folder / "catalogue.csv").open()))
    with open(folder / "catalogue.csv", "w", newline="") as file:
        csv.writer(file).writerows(row[:-1] for row in rows)
    events = events_of(freeze(folder, folder / "list.json"))
    assert {event.survey for event in events} == {"default"}


def test_a_file_that_has_changed_is_refused(folder, events):
    path = folder / FILES[2][0]
    path.write_bytes(gzip.compress(b"time,mag,mag_err\n1,18,0.1\n"))
    with pytest.raises(InputError, match=r"binary-quiet.csv.gz has changed since"):
        classify_all(folder, events[2:], None, BY_SURVEY)
    path.unlink()
    with pytest.raises(InputError, match=r"binary-quiet.csv.gz cannot be read"):
        classify_all(folder, events[2:], None, BY_SURVEY)


def test_a_list_of_other_rules_or_none_at_all_is_refused(folder):
    freeze(folder, folder / "list.json")
    record = json.loads((folder / "list.json").read_text())
    (folder / "other.json").write_text(json.dumps(record | {"fewest_epochs": 5}))
    with pytest.raises(InputError, match="frozen under other rules"):
        read_frozen(folder / "other.json")
    (folder / "other.json").write_text("{}")
    with pytest.raises(InputError, match="no frozen list"):
        read_frozen(folder / "other.json")
    with pytest.raises(InputError, match="does not exist"):
        freeze(folder / "nowhere", folder / "list.json")


def test_the_committed_list_was_frozen_under_these_rules():
    from benchmarks.studies.real_events.__main__ import LIST

    events = events_of(read_frozen(LIST))
    assert len({target.sha256 for event in events for target in event.files}) > 300
    assert {event.survey for event in events} >= {"ogle", "kmtnet", "roman", "default"}


def test_files_of_one_event_and_label_are_one_entry(folder, events):
    assert [(e.name, e.label, len(e.files)) for e in events] == [
        ("s1", "PSPL", 1), ("s2", "PSPL", 1), ("b1", "binary", 2), ("b2", "binary", 1),
        ("b2", "PSPL", 1),
    ]  # fmt: skip
    curves = read_target(folder, events[2]).datasets
    assert [curve.name for curve in curves] == ["binary-quiet", "binary-alert"]


def test_thresholds_are_those_of_the_survey_that_observed_alone():
    assert survey_of(["OGLE"]) == survey_of(["OGLE-II", "OGLE-IV"]) == "ogle"
    assert survey_of(["KMTC01", "KMTA41"]) == "kmtnet" and survey_of(["MOA"]) == "moa"
    assert survey_of(["OGLE", "KMTC01"]) == survey_of(["OGLE", "Danish"]) == "default"
    assert survey_of([""]) == survey_of(["Gaia", "LCO-g"]) == "default"


def test_every_event_is_classified_in_both_time_spans_against_its_survey(found, events):
    assert len(found) == len(events) * 2
    assert {c.span for c in found} == set(protocol.SPANS)
    alert = next(c for c in found if c.event == "b1")
    assert (alert.num_sets, alert.num_epochs, alert.factor) == (2, 200, 1.5)
    assert alert.survey == "default" and alert.called == "single"
    assert alert.alerted == {"1pct": True, "0_1pct": False}
    assert alert.phase == {"1pct": pytest.approx(-0.497), "0_1pct": None}
    assert alert.detected("1pct") and not alert.detected("0_1pct")
    quiet = next(c for c in found if c.event == "b2" and c.label == "binary")
    assert quiet.survey == "kmtnet" and not quiet.alerted["1pct"], "0.9 is below its threshold"


def test_an_alert_before_the_first_refit_is_none(folder, events, monkeypatch):
    def early(event, network):
        result = answered(event, network)
        result.p[:] = np.where(np.arange(len(result.p)) < 7, 0.99, 0.5)
        return result

    monkeypatch.setattr(protocol, "classify_event", early)
    assert not any(c.alerted["1pct"] for c in classify_all(folder, events, None, BY_SURVEY)[0])


def test_a_summary_agrees_with_the_classification_of_all_data_sets_together(folder, events):
    torch.manual_seed(0)
    network = Network().eval()
    torch.nn.init.normal_(network.head[-1].weight)
    (whole, season), skipped = classify_all(folder, events[2:3], network, BY_SURVEY)
    together = classify_event(read_target(folder, events[2]), network)
    assert whole.final == together.p[-1] == together.answer["p_binary"]
    assert whole.highest == together.answer["p_binary_max"] == season.highest
    assert whole.factor == np.median([row["error_factor"] for row in together.answer["datasets"]])
    assert skipped == {}


def test_events_of_few_epochs_are_counted_and_left_out(folder, events, monkeypatch):
    monkeypatch.setattr(protocol, "classify_event", answered)
    monkeypatch.setattr(protocol, "MIN_EPOCHS", 150)
    found, skipped = classify_all(folder, events, None, BY_SURVEY)
    assert {c.event for c in found} == {"b1"} and skipped == {"whole": 4, "season": 4}


def test_baselines_of_a_season_come_from_earlier_seasons_only():
    time = np.concatenate([np.arange(100.0) + 365 * k for k in range(3)])
    mag = np.full(300, 18.0)
    mag[100:200], mag[200:] = 16.0, 30.0
    long = Photometry("x", time, mag, np.full(300, 0.1))
    late = Photometry("y", time[150:250] + 0.5, mag[150:250] + 1, np.full(100, 0.1))
    gone = Photometry("z", time[:50] + 0.2, mag[:50], np.full(50, 0.1))
    event = Event("e", (long, late, gone))
    season = select_span(event, "season", 400.0)
    assert [(c.name, len(c), c.m_base) for c in season.datasets] == [
        ("x", 100, 18),
        ("y", 50, None),
    ]
    assert np.array_equal(season.datasets[0].time, time[100:200])
    unknown = select_span(event, "season", None)  # that of the brightest epochs
    assert np.array_equal(unknown.datasets[0].time, time[100:200])
    assert select_span(event, "whole", 400.0) is event
    first = select_span(event, "season", 50.0)
    assert [(c.name, c.m_base) for c in first.datasets] == [("x", None), ("z", None)]
    third = select_span(event, "season", 800.0)
    assert [(c.name, c.m_base) for c in third.datasets] == [("x", 17.0), ("y", 17.0)]
    short = Event("e", (gone,))
    assert select_span(short, "season", 20.0) is short
