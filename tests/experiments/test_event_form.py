"""The form for one's own event shows what `classify_file` finds, or says what is wrong."""

import html
from datetime import UTC, datetime

import numpy as np
import pytest

from lensml.experiments import book_code
from lensml.photometry import installed_events
from lensml.streaming import classify_file

events = book_code("events")
FILES = installed_events()["OGLE-2003-BLG-235"].files


@pytest.fixture(scope="module")
def planet():
    return classify_file(FILES)


def filled(uploaded=(), **texts):
    """Widgets below the button, after it was pressed."""
    files, *rest, button, below = events.form().children
    fields = dict(zip(("path", "columns", "base"), rest, strict=True))
    files.value = tuple(
        {"name": name, "type": "", "size": len(content), "content": memoryview(content),
         "last_modified": datetime(2026, 1, 1, tzinfo=UTC)}
        for name, content in uploaded
    )  # fmt: skip
    for name, text in texts.items():
        fields[name].value = text
    button.click()
    return below.children


def sent(*paths):
    return [(path.name, path.read_bytes()) for path in paths]


def table(path, time, mag):
    lines = "".join(f"{t:.4f},{m:.4f},0.0200\n" for t, m in zip(time, mag, strict=True))
    path.write_text(f"hjd,mag,mag_err\n{lines}")
    return path


def test_uploaded_data_sets_are_classified_together(planet):
    *images, datasets, warnings, text = filled(sent(*FILES))
    assert [image.value[:4] for image in images] == [b"\x89PNG"] * 2
    assert html.unescape(text.value) == f"<pre>{planet.text()}</pre>"
    assert all(one["name"] in datasets.value for one in planet.answer["datasets"])
    assert warnings.value.count("<tr>") == 1 + max(1, len(planet.answer["warnings"]))


def test_a_path_and_a_baseline_are_used():
    found = classify_file(FILES[0], 19.3)
    assert html.escape(found.text()) in filled(path=f" {FILES[0]} ", base="19.3")[-1].value


@pytest.mark.parametrize(
    ("uploaded", "texts", "message"),
    [
        ([], {}, "no file yet"),
        ([("a.dat", b"no light curve")], {}, "a.dat"),
        (sent(FILES[0]), {"base": "bright"}, "baseline &#x27;bright&#x27;: expected a magnitude"),
        (sent(FILES[0]), {"base": "3"}, "cannot be the baseline"),
        ([], {"path": "nowhere.dat"}, "nowhere.dat"),
    ],
)
def test_what_cannot_be_used_is_answered_in_one_line(uploaded, texts, message):
    (answer,) = filled(uploaded, **texts)
    assert message in answer.value and "\n" not in answer.value and "/tmp" not in answer.value


def test_a_name_with_folders_stays_in_the_temporary_folder(tmp_path):
    name = f"../..{tmp_path}/own.dat"
    filled([(name, FILES[0].read_bytes())])
    assert not (tmp_path / "own.dat").exists()


def test_bars_are_the_classes_at_the_last_epoch(planet):
    (axes,) = events.class_bars(planet).axes
    assert [bar.get_width() for bar in axes.patches] == list(planet.answer["classes"].values())
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "single lens" and labels[-1] == "not microlensing"


def test_parts_of_the_misfit_add_up_to_all_of_it(planet):
    rows = events.datasets_table(planet).rows
    assert sum(float(row[-1]) for row in rows) == pytest.approx(1, abs=0.011)
    assert [row[1] for row in rows] == ["1,250", "285"]


def test_a_figure_of_a_span_has_no_epoch_outside(planet):
    t0, _, tE = planet.shape
    figure = events.event_figure(planet, span=(t0 - tE, t0 + tE))
    low, high = figure.axes[0].get_xlim()
    assert t0 - 1.1 * tE < low + 2_450_000 < high + 2_450_000 < t0 + 1.1 * tE
    assert low < t0 - 2_450_000 < high


def test_an_event_that_has_only_begun_is_drawn(tmp_path):
    time = 2457000 + np.arange(12.0)
    found = classify_file(table(tmp_path / "a.csv", time, 18 - 0.02 * np.arange(12) ** 1.5))
    assert len(events.event_figure(found).axes) == 3


def test_too_few_epochs_have_a_warning_that_is_explained_and_no_figure(tmp_path):
    path = table(tmp_path / "a.csv", 2457000 + np.arange(5.0), np.full(5, 18.0))
    found = classify_file(path)
    ((warning, meaning),) = events.warnings_table(found).rows
    assert "no answer yet" in warning and "until the first fit" in meaning
    datasets, warnings, text = filled(path=str(path))
    assert meaning in warnings.value and "no answer yet" in text.value
