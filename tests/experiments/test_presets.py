"""Each chapter's experiment, in three sizes, tested on events that no network was trained on."""

import pytest

from lensml.experiments import presets
from lensml.network import load_network
from lensml.paths import SIZES, InputError

CHAPTERS = [
    presets.simulated_events,
    presets.baseline,
    presets.distinct,
    presets.cadence,
    presets.photometric_error,
    presets.planetary_stellar,
    presets.early_detection,
    presets.physical_limits,
    presets.alerts_and_calibration,
    presets.classical_searches,
]


@pytest.mark.parametrize("preset", CHAPTERS, ids=lambda f: f.__name__)
def test_sizes_differ_in_number_only(preset):
    smoke, desk, full = (preset(size) for size in SIZES)
    assert smoke.tests.keys() == desk.tests.keys() == full.tests.keys()
    for name in smoke.tests:
        counts = [e.tests[name].num_pairs for e in (smoke, desk, full)]
        assert counts == sorted(counts) and counts[0] < counts[2]
        assert smoke.tests[name].preset == full.tests[name].preset
        assert smoke.tests[name].survey == full.tests[name].survey
    assert smoke.surveys.keys() == full.surveys.keys()
    assert "<th>size</th><td>smoke</td>" in smoke._repr_html_()


@pytest.mark.parametrize("preset", CHAPTERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", SIZES)
def test_no_chapter_tests_on_events_of_training(preset, size):
    """Neither those of the shipped network nor those of the chapter's own."""
    experiment = preset(size)
    config = load_network()[1]
    seen = {(p["preset"], p["seed"]) for k in ("trained_on", "validated_on") for p in config[k]}
    seen |= {(s.preset, s.seed) for s, _ in experiment.fine_tuned.values()}
    tests = {(t.preset, t.seed) for t in experiment.tests.values()}
    assert not tests & seen


@pytest.mark.parametrize("preset", CHAPTERS, ids=lambda f: f.__name__)
def test_another_seed_means_other_test_events(preset):
    one, two = preset("smoke", 0), preset("smoke", 1)
    assert all(one.tests[k].seed != two.tests[k].seed for k in one.tests)


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="'huge'.*smoke, desk, full"):
        presets.baseline("huge")
