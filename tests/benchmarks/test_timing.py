"""Measuring instruments measure."""

import sys

import numpy as np
import pytest

from lensml.experiments.speed import AGE, aged_stream, peak_memory, resampled, stream_rate
from lensml.network import Network, NetworkConfig

ALLOCATE = "import numpy; x = numpy.ones({mb} * 2**17); "


def test_a_larger_array_is_a_higher_peak():
    peaks = [
        peak_memory([sys.executable, "-c", ALLOCATE.format(mb=mb) + "import time; time.sleep(0.3)"])
        for mb in (1, 101)
    ]
    assert peaks[1]["main_mb"] - peaks[0]["main_mb"] == pytest.approx(100, abs=10)


def test_a_command_that_fails_is_an_error_and_one_that_is_ended_is_not():
    with pytest.raises(RuntimeError, match="boom"):
        peak_memory([sys.executable, "-c", "raise SystemExit('boom')"])
    ended = peak_memory([sys.executable, "-c", "import time; time.sleep(60)"], seconds=0.5)
    assert ended["seconds"] < 10


def test_a_long_bar_on_standard_error_does_not_stop_the_command():
    talk = "import sys; sys.stderr.write('x' * 300_000)"
    assert peak_memory([sys.executable, "-c", talk])["seconds"] < 30


def test_the_interval_of_a_ratio_holds_it():
    top, bottom = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, 6.0, 8.0])
    got = resampled(lambda i: top[i].sum() / bottom[i].sum(), 4)
    assert got["low"] == got["value"] == got["high"] == 0.5


def test_events_that_share_a_call_are_advanced_faster():
    network = Network(NetworkConfig(channels=8, stem_channels=8, num_levels=2))
    alone, together = (stream_rate(network, size, calls=8) for size in (1, 200))
    assert together > 8 * alone  # measured: 18 to 25


def test_events_of_a_stream_are_of_all_ages():
    network = Network(NetworkConfig(channels=8, stem_channels=8, num_levels=2))
    stream, names = aged_stream(network, 32, np.random.default_rng(0))
    ages = stream.states.count[[stream.events[name] for name in names]]
    assert ages.min() <= AGE // 16 and ages.max() == AGE and len(set(ages)) == 32
