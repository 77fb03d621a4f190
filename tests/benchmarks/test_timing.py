"""Timings of chapter 10."""

import numpy as np

from benchmarks.timing import CYCLE, aged_stream, resampled, simulation_speed, stream_rate
from lensml.network import Network, NetworkConfig
from lensml.simulation import Simulation


def test_simulation_is_measured_beside_its_solver():
    found = simulation_speed(Simulation(num_pairs=2), workers=1)
    assert found["events"] == 4 and 0 < found["twin_ms"] < found["solver_ms"] + found["twin_ms"]
    assert found["whole"]["value"] < found["throughput"]["value"]


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
    ages = stream.cache.count[[stream.events[name] for name in names]]
    assert ages.min() <= CYCLE // 16 and ages.max() == CYCLE and len(set(ages)) == 32
