"""Peak memory of a command, and the growth of a cost with size."""

import sys

import numpy as np
import pytest

from benchmarks.scaling import growth_exponent, peak_memory

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


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_growth_exponent_finds_the_power_of_a_law(power):
    sizes = np.array([100, 200, 400, 800])
    got = growth_exponent(sizes, 3e-5 * sizes**power)
    assert got["value"] == pytest.approx(power, abs=1e-9)


def test_the_interval_of_a_growth_holds_the_truth_and_narrows_with_the_scatter():
    generator = np.random.default_rng(5)
    sizes = np.repeat([1, 2, 4, 8, 16], 4)
    held, widths = [], {0.01: [], 0.1: []}
    for scatter in widths:
        for _ in range(100):
            got = growth_exponent(sizes, sizes * np.exp(scatter * generator.normal(size=20)))
            held.append(got["low"] <= 1.0 <= got["high"])
            widths[scatter].append(got["high"] - got["low"])
    assert 0.90 < np.mean(held) < 0.99  # 95 % are meant to
    assert np.mean(widths[0.1]) == pytest.approx(10 * np.mean(widths[0.01]), rel=0.2)


def test_a_growth_needs_two_sizes():
    with pytest.raises(ValueError, match="2 measurements of 1 sizes"):
        growth_exponent([3, 3], [1.0, 2.0])
