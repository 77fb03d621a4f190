"""The protocol classifies what was frozen, and refuses what has changed."""

import csv
import gzip
import json

import numpy as np
import pytest

from benchmarks.studies.real_events import protocol
from benchmarks.studies.real_events.protocol import classify_all, freeze, read_frozen
from lensml.paths import InputError
from lensml.photometry import Photometry

THRESHOLDS = {"1pct": 0.8, "0_1pct": 0.95}
FILES = [  # file, event, class, t0, tE, quality; the name says what the fake network answers
    ("single-quiet.csv.gz", "s1", "PSPL", "150", "10", "B"),
    ("single-alert.csv.gz", "s2", "PSPL", "", "", "C"),
    ("binary-quiet.csv.gz", "b1", "binary", "150", "10", "A"),
    ("binary-alert.csv.gz", "b1", "binary", "150", "10", "A"),
    ("binary-early.csv.gz", "b2", "binary", "190", "10", "A"),
]


@pytest.fixture
def folder(tmp_path):
    """Curves of 100 epochs a day apart from day 100 on, brighter where P(binary) will be high."""
    for name, *_ in FILES:
        bright = {"quiet": 18.0, "alert": 17.0, "early": 17.0}[name.split("-")[1][:5]]
        rows = [f"{100 + k},{bright if 45 <= k < 50 else 18.0},0.02" for k in range(100)]
        text = "\n".join(["time,mag,mag_err", *rows])
        (tmp_path / name).write_bytes(gzip.compress(text.encode(), mtime=0))
    with open(tmp_path / "catalogue.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "event", "class", "t0", "tE", "label_quality"])
        writer.writerows(FILES)
    return tmp_path


@pytest.fixture
def found(folder, monkeypatch):
    def answer(time, mag, mag_err, m_base, network):
        return np.where(mag < 17.5, 0.9, 0.5)

    monkeypatch.setattr(protocol, "classify", answer)
    targets = freeze(folder, folder / "list.json")
    return classify_all(folder, targets, None, THRESHOLDS)[0]


def test_the_frozen_list_reads_back_and_holds_no_photometry(folder):
    targets = freeze(folder, folder / "list.json")
    again, rescaling = read_frozen(folder / "list.json")
    assert again == targets and rescaling == protocol.Rescaling()
    assert targets[1].t0 is None and targets[0].tE == 10 and len(targets[0].sha256) == 64
    keys = {
        key for entry in json.loads((folder / "list.json").read_text())["files"] for key in entry
    }
    assert keys == {"file", "sha256", "event", "label", "quality", "t0", "tE"}


def test_a_file_that_has_changed_is_refused(folder):
    targets = freeze(folder, folder / "list.json")
    path = folder / FILES[2][0]
    path.write_bytes(gzip.compress(b"time,mag,mag_err\n1,18,0.1\n"))
    with pytest.raises(InputError, match=r"binary-quiet.csv.gz has changed since"):
        classify_all(folder, targets[2:], None, THRESHOLDS)
    path.unlink()
    with pytest.raises(InputError, match=r"binary-quiet.csv.gz cannot be read"):
        classify_all(folder, targets[2:], None, THRESHOLDS)


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


def test_every_file_is_classified_in_both_time_spans_under_both_error_models(found):
    assert len(found) == len(FILES) * 4
    assert {(c.span, c.errors) for c in found} == {
        (s, e) for s in protocol.SPANS for e in protocol.ERROR_MODELS
    }
    alert = next(c for c in found if c.file == "binary-alert.csv.gz")
    assert alert.alerted == {"1pct": True, "0_1pct": False}
    assert alert.phase == {"1pct": pytest.approx(-0.5), "0_1pct": None}
    assert alert.detected("1pct") and not alert.detected("0_1pct")


def test_the_baseline_of_a_season_comes_from_earlier_seasons_only():
    time = np.concatenate([np.arange(100.0) + 365 * k for k in range(3)])
    mag = np.full(300, 18.0)
    mag[100:200], mag[200:] = 16.0, 30.0
    curve = Photometry("x", time, mag, np.full(300, 0.1))
    assert protocol.select_span(curve, "season", 400.0) == (slice(100, 200), 18.0)
    assert protocol.select_span(curve, "season", None) == (slice(100, 200), 18.0)  # the brightest
    assert protocol.select_span(curve, "whole", 400.0) == (slice(0, 300), None)
    assert protocol.select_span(curve, "season", 50.0) == (slice(0, 100), None)
