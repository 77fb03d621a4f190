"""Timings of chapter 10."""

import numpy as np
import pytest
from sets import photometry, random_network, toy_set

from benchmarks.performance import stream as live
from benchmarks.timing import (
    CYCLE,
    aged_stream,
    batch_speed,
    resampled,
    simulation_speed,
    stream_rate,
    stream_seconds,
)
from lensml.network import STEP
from lensml.simulation import Simulation


@pytest.fixture(scope="module")
def network():
    return random_network()


def test_simulation_is_measured_beside_its_solver():
    found = simulation_speed(Simulation(num_pairs=2), workers=1)
    assert found["events"] == 4 and 0 < found["twin_ms"] < found["solver_ms"] + found["twin_ms"]
    assert found["whole"]["value"] < found["throughput"]["value"]


def test_the_interval_of_a_ratio_holds_it():
    top, bottom = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, 6.0, 8.0])
    got = resampled(lambda i: top[i].sum() / bottom[i].sum(), 4)
    assert got["low"] == got["value"] == got["high"] == 0.5


def test_events_that_share_a_call_are_advanced_faster(network):
    alone, together = (stream_rate(network, size, calls=8) for size in (1, 200))
    assert together > 4 * alone


def test_events_of_a_stream_are_of_all_ages(network):
    stream, names = aged_stream(network, 32, np.random.default_rng(0))
    ages = stream.cache.histories.count[[stream.events[name] for name in names]]
    assert ages.min() <= CYCLE // 16 and ages.max() == CYCLE and len(set(ages)) == 32


def test_updates_are_timed_one_by_one(network):
    seconds, stream = stream_seconds(network, *photometry(30), None)
    assert seconds.shape == (30,) and (seconds > 0).all()
    assert [*stream.events] == ["event"] and stream.cache.histories.count[0] == 30


def test_whole_curves_are_timed(network):
    curves = toy_set(5, 40)
    found = batch_speed(network, curves, repeats=1)
    each = np.isfinite(curves.X).sum() / 10
    assert found["calls_per_s"] / found["rows_per_s"] == pytest.approx(each)


def test_the_updates_that_refit_are_counted_apart():
    """Of updates number CYCLE + 1 and following."""
    counts = live.of_refits(np.arange(CYCLE + 1, CYCLE + 101))
    assert counts.tolist() == [*range(CYCLE + STEP, CYCLE + 101, STEP)]


def test_reading_again_costs_more_than_a_step(network):
    generator = np.random.default_rng(0)
    again = live.rereading_seconds(network, 800, generator)
    seconds = live.growth_in_epochs(network, [200], generator)[200]
    assert len(seconds) == 3 and again > 4 * np.median(seconds) / (10 * 200)
