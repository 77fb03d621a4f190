"""Thresholds belong to the weights that set them; every event of a study is made by its number."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binom

from benchmarks.studies import sky
from lensml.network import CLASSES, Network, save_network
from lensml.paths import InputError
from lensml.simulation import CONDITIONS, KINDS, SURVEYS, VARIABLES
from lensml.streaming import find_threshold


@pytest.fixture
def run(tmp_path):
    """Run folder of a network with random weights."""
    torch.manual_seed(0)
    network = Network()
    torch.nn.init.normal_(network.head[-1].weight)
    (tmp_path / "run").mkdir()
    save_network(tmp_path / "run", network, {})
    return tmp_path / "run"


def same(one, two) -> bool:
    return len(one) == len(two) and all(
        np.array_equal(x, y)
        for a, b in zip(one, two, strict=True)
        for x, y in zip(a, b, strict=True)
    )


def test_a_single_lens_of_the_sky_is_made_by_its_survey_and_number_alone():
    first = sky.single_on_sky("kmtnet", 3)
    assert same(first, sky.single_on_sky("kmtnet", 3))
    assert not same(first, sky.single_on_sky("kmtnet", 4))
    assert not same(sky.single_on_sky("ogle", 3), sky.single_on_sky("follow_up", 3)[:1])
    assert all(one.m_base is None and not one.exact for one in first)


@pytest.mark.parametrize(
    ("name", "given"),
    [("red noise, 0.3 sigma", False), ("baseline off by 1 sigma", True), (sky.GIVEN, True)],
)
def test_a_baseline_is_given_only_where_it_is_what_is_tested(name, given):
    events = sky.spoiled(name, range(2, 4))
    assert [one.m_base is not None for (one,) in events] == [given, given]
    assert all(np.isfinite(one.mag).all() and not one.exact for (one,) in events)
    assert same(events[1], sky.spoiled(name, range(3, 4))[0]), "a row depends on the set's size"


def test_the_right_baseline_is_the_control_of_a_wrong_one():
    right, wrong = (sky.spoiled(n, range(8)) for n in (sky.GIVEN, "baseline off by 1 sigma"))
    assert all(np.array_equal(a.mag, b.mag) for (a,), (b,) in zip(right, wrong, strict=True))
    off = [b.m_base - a.m_base for (a,), (b,) in zip(right, wrong, strict=True)]
    assert 0.03 < np.std(off) < 0.3  # rms of 0.1 mag


@pytest.mark.parametrize("make", [sky.contaminants, sky.variables])
def test_an_event_of_a_kind_is_made_by_its_number_alone(make):
    kind = "binary_source" if make is sky.contaminants else "nova"
    assert same(make(kind, range(3))[2], make(kind, range(2, 3))[0])


def test_a_threshold_holds_on_others_as_order_statistics_say():
    maxima = {"a": np.linspace(0.001, 1, 1000), "b": np.linspace(0.0005, 0.5, 1000)}
    found = sky.thresholds_by_level(maxima)
    assert list(found) == ["default", "a", "b"]
    assert [row["1pct"]["singles"] for row in found.values()] == [2000, 1000, 1000]
    for values, row in (
        (maxima["a"], found["a"]),
        (np.concatenate([*maxima.values()]), found["default"]),
    ):
        for level in row.values():
            above = int((values > level["threshold"]).sum())
            assert above == round(level["level"] * len(values))
            # A rate is as high if with it so many or fewer had passed in one sample in forty.
            rate = level["true_rate"]
            assert binom.sf(above, len(values), rate["high"]) == pytest.approx(0.975)
            assert binom.sf(above, len(values), rate["low"]) == pytest.approx(0.025)


def test_what_was_classified_is_kept_and_only_more_is_added(tmp_path):
    made = []

    def make(rows):
        made.append(rows)
        return list(rows)

    def mapped(function, chunks):
        return [np.array([[k, 0.0] for k in chunk]) for chunk in chunks]

    first = sky.kept_or_classified("x", make, 25, tmp_path, mapped)
    more = sky.kept_or_classified("x", make, 40, tmp_path, mapped)
    fewer = sky.kept_or_classified("x", make, 7, tmp_path, None)
    assert made == [range(25), range(25, 40)]
    assert first[:, 0].tolist() == list(range(25)) and fewer[:, 0].tolist() == list(range(7))
    assert more[:, 0].tolist() == list(range(40))


def test_stored_thresholds_are_those_of_the_surveys_and_of_these_weights(run, tmp_path, capsys):
    with pytest.raises(InputError, match="is not there"):
        sky.stored_threshold(run)
    with sky.processes(run, 1) as mapped:
        sky.set_thresholds(run, 3, tmp_path / "kept", mapped, store=True)
    stored = json.loads((run / sky.ALERTS).read_text())
    assert set(stored["thresholds"]) == {"default", *SURVEYS} and stored["seed"] == sky.SKY_SEED
    highest = {name: np.load(tmp_path / "kept" / f"{name}.npy")[:, 0].max() for name in SURVEYS}
    assert len(set(highest.values())) > 1
    for name, value in highest.items():  # of three, none may pass it
        assert sky.stored_threshold(run, name) == find_threshold(run, name).value == value
    assert sky.stored_threshold(run) == max(highest.values())
    torch.manual_seed(1)
    save_network(run, Network(), {})
    with pytest.raises(InputError, match="was set with other weights"):
        sky.stored_threshold(run)
    assert sky.main(["transfer", "--model", str(run), "--events", "1"]) == 2
    assert "other weights" in capsys.readouterr().err


def test_every_condition_and_kind_is_counted_above_the_threshold(monkeypatch, tmp_path):
    def kept(name, make, num, folder, mapped):
        label = "binary_source" if name == "contaminant_binary_source" else "other"
        classes = np.where(np.arange(num) < 3 * num // 4, CLASSES.index(label), 0)
        return np.stack([np.linspace(0, 1, num), classes], axis=1)

    monkeypatch.setattr(sky, "kept_or_classified", kept)
    numbers = sky.measure_transfer(40, tmp_path, None, 0.895)
    names = {name.removesuffix("_alerts") for name in numbers if name.endswith("_alerts")}
    assert len(names) == len(CONDITIONS) + 1 + len(KINDS) + len(VARIABLES)
    assert all(numbers[f"{name}_alerts"]["hits"] == 5 for name in names)
    assert numbers["contaminant_binary_source_called_binary_source"]["value"] == 0.75
    assert numbers["variable_nova_called_other"]["value"] == 0.75
    assert numbers["contaminant_parallax_called_single"]["value"] == 0.25
    assert numbers["transfer_red_noise_0p3_sigma_alerts"]["low"] > 0
