"""The protocol calls what was frozen, as a survey would have, and refuses what has changed."""

import csv
import gzip
import json

import numpy as np
import pytest

from lensml.experiments import protocol
from lensml.experiments.protocol import classify_all, freeze, read_frozen
from lensml.paths import InputError
from lensml.photometry import Photometry

MARKS = {"1pct": 0.8, "0_1pct": 0.95}
FILES = [  # file, event, class, t0, tE, quality; the name says what the fake network answers
    ("single-quiet.csv.gz", "s1", "PSPL", "150", "10", "B"),
    ("single-alert.csv.gz", "s2", "PSPL", "", "", "C"),
    ("binary-quiet.csv.gz", "b1", "binary", "150", "10", "A"),
    ("binary-alert.csv.gz", "b1", "binary", "150", "10", "A"),
    ("binary-early.csv.gz", "b2", "binary", "190", "10", "A"),
]


@pytest.fixture
def folder(tmp_path):
    """Curves of 100 epochs a day apart from day 100 on, brighter where the call will be high."""
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
def calls(folder, monkeypatch):
    def answer(time, mag, mag_err, m_base, network):
        return np.where(mag < 17.5, 0.9, 0.5)

    monkeypatch.setattr(protocol, "classify", answer)
    cases = freeze(folder, folder / "list.json")
    return classify_all(folder, cases, None, MARKS)[0]


def test_the_frozen_list_reads_back_and_holds_no_photometry(folder):
    cases = freeze(folder, folder / "list.json")
    again, rescaling = read_frozen(folder / "list.json")
    assert again == cases and rescaling == protocol.Rescaling()
    assert cases[1].t0 is None and cases[0].tE == 10 and len(cases[0].sha256) == 64
    keys = {
        key for entry in json.loads((folder / "list.json").read_text())["files"] for key in entry
    }
    assert keys == {"file", "sha256", "event", "label", "quality", "t0", "tE"}


def test_a_file_that_has_changed_is_refused(folder):
    cases = freeze(folder, folder / "list.json")
    path = folder / FILES[2][0]
    path.write_bytes(gzip.compress(b"time,mag,mag_err\n1,18,0.1\n"))
    with pytest.raises(InputError, match=r"binary-quiet.csv.gz has changed since"):
        classify_all(folder, cases[2:], None, MARKS)
    path.unlink()
    with pytest.raises(InputError, match=r"binary-quiet.csv.gz cannot be read"):
        classify_all(folder, cases[2:], None, MARKS)


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


def test_every_file_is_called_in_both_views_with_both_kinds_of_errors(calls):
    assert len(calls) == len(FILES) * 4
    assert {(c.view, c.arm) for c in calls} == {
        (v, a) for v in protocol.VIEWS for a in protocol.ARMS
    }
    alert = next(c for c in calls if c.file == "binary-alert.csv.gz")
    assert alert.alerted == {"1pct": True, "0_1pct": False}
    assert alert.phase == {"1pct": pytest.approx(-0.5), "0_1pct": None}
    assert alert.recognised("1pct") and not alert.recognised("0_1pct")


def test_the_season_of_the_event_knows_its_baseline_from_earlier_seasons_only():
    time = np.concatenate([np.arange(100.0) + 365 * k for k in range(3)])
    mag = np.full(300, 18.0)
    mag[100:200], mag[200:] = 16.0, 30.0
    curve = Photometry("x", time, mag, np.full(300, 0.1))
    assert protocol.view_of(curve, "season", 400.0) == (slice(100, 200), 18.0)
    assert protocol.view_of(curve, "season", None) == (slice(100, 200), 18.0)  # the brightest
    assert protocol.view_of(curve, "whole", 400.0) == (slice(0, 300), None)
    assert protocol.view_of(curve, "season", 50.0) == (slice(0, 100), None)
