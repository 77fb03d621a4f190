"""Surveys keep the cadences, seasons and errors that their docstrings state."""

import numpy as np
import pytest

from lensml.paths import InputError
from lensml.simulation import (
    SURVEYS,
    DataSet,
    NoiseLevels,
    noise_levels,
    observe_event,
    quoted_sigma,
    schedule,
)
from lensml.simulation.schedules import CHILE, ground


def draws(name, count=40, tE=20.0, **options):
    """Schedules of several events of one survey."""
    return [schedule(name, np.random.default_rng(k), 100.0, tE, **options) for k in range(count)]


def flat(times):
    return np.zeros(len(times))


def in_night_spacing(dataset):
    """Median time between epochs of one night [minute]."""
    step = np.diff(dataset.times) * 1440
    return np.median(step[step < 400])


@pytest.mark.parametrize("name", SURVEYS)
def test_epochs_are_sorted_and_not_too_many(name):
    for plans in draws(name, 25):
        assert 20 <= sum(len(d.times) for d in plans) <= 4000
        assert len({d.name for d in plans}) == len(plans)
        for d in plans:
            assert (np.diff(d.times) > 0).all() and d.depth.shape == d.times.shape
            assert 0 < d.f_s <= 1 and d.floor > 0


@pytest.mark.parametrize("name", SURVEYS)
def test_the_same_generator_gives_the_same_schedule(name):
    (one,), (two,) = draws(name, 1), draws(name, 1)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.times, b.times)
        assert (a.m_base, a.f_s) == (b.m_base, b.f_s)


def test_ogle_visits_most_events_once_in_one_to_three_nights_for_years():
    plans = [p[0] for p in draws("ogle", 60)]
    slow = [d for d in plans if np.median(np.diff(d.times)) > 0.5]
    assert 0.65 < len(slow) / len(plans) < 0.95
    for d in slow:
        step = np.diff(d.times)
        assert 0.9 < np.median(step) < 5
        assert d.times[0] < 100 - 250 and step.max() > 80  # a baseline, and a pause of a season
    for d in plans:
        assert np.median(np.diff(d.times)) > 0.5 or 17 < in_night_spacing(d) < 66


def test_kmtnet_has_three_sites_and_overlapping_fields_of_half_an_hour():
    rates = {30: 0, 60: 0, 150: 0, 300: 0}
    for plans in draws("kmtnet", 60, tE=5.0, max_epochs=10**6):
        assert {d.name[3] for d in plans} <= set("CSA")
        spacing = np.median([in_night_spacing(d) for d in plans if len(d.times) > 50] or [0])
        nearest = min(rates, key=lambda r: abs(r - spacing))
        rates[nearest] += 1
        if len(plans) == 6:
            assert nearest == 30 and spacing == pytest.approx(30, rel=0.1)
    assert min(rates.values()) > 2


def test_two_sites_do_not_observe_at_the_same_hours():
    plans = {d.name[3]: d.times for d in draws("kmtnet", 1, tE=60.0)[0]}
    hours = [np.median((np.unwrap(2 * np.pi * (t % 1)) / (2 * np.pi)) % 1) for t in plans.values()]
    assert len(hours) < 2 or np.min(np.diff(np.sort(hours))) > 0.1


def test_the_bulge_season_lasts_from_february_to_october():
    times = ground(np.random.default_rng(0), CHILE, (-365.0, 365.0), 0.0, 0.02)
    season = (times + 182.6) % 365.25 - 182.6
    assert 110 < season.max() < 135 and -135 < season.min() < -110
    nights = [times[np.floor(times - 0.7) == n] for n in range(-20, 20)]
    assert 8 < max(np.ptp(n) * 24 for n in nights if len(n)) < 9.2


def test_weather_takes_the_nights_that_the_site_loses():
    generator, times = np.random.default_rng(1), []
    for _ in range(40):
        times.append(np.unique(np.floor(ground(generator, CHILE, (-60, 60), 0.0, 0.02) - 0.7)))
    assert np.mean([len(t) for t in times]) / 120 == pytest.approx(CHILE.clear, abs=0.04)


def test_rubin_has_six_bands_and_a_visit_in_three_days():
    plans = draws("rubin", 30)
    assert {d.name for p in plans for d in p} == set("ugrizy")
    visits = [np.unique(np.floor(np.concatenate([d.times for d in p]) - 0.7)) for p in plans]
    steps = np.concatenate([np.diff(v) for v in visits])
    assert 2 < steps[steps < 60].mean() < 5


def test_roman_observes_every_12_minutes_in_one_season_of_72_days():
    for plans in draws("roman", 12, tE=40.0, max_epochs=10**6):
        wide = plans[0]
        assert wide.name == "F146"
        step = np.diff(wide.times) * 1440
        dense = wide.times[1:][step < 13]
        assert np.median(step) == pytest.approx(12.1, abs=0.01)
        assert np.ptp(dense) <= 72 and dense[0] <= 100
        assert np.ptp(wide.depth) == 0  # no weather


def test_follow_up_is_dense_and_starts_near_the_peak():
    for plans in draws("follow_up", 20):
        assert plans[0].name == "OGLE"
        for d in plans[1:]:
            assert d.times[0] > 100 - 0.67 * 20 and np.ptp(d.times) < 21
            if len(d.times) > 30:
                assert in_night_spacing(d) < 45


def test_errors_follow_the_published_figures():
    at = {"times": np.zeros(3), "name": "", "m_base": 18.0, "f_s": 1.0}
    ogle = DataSet(depth=np.full(3, 20.5), floor=0.004, **at)
    errors = quoted_sigma(ogle, np.array([10.0, 18.4, 20.5]))
    np.testing.assert_allclose(errors, [0.004, 0.03, 0.2], rtol=0.12)
    roman = DataSet(depth=np.full(1, 24.7), floor=0.001, **at)
    assert quoted_sigma(roman, np.array([21.15])) == pytest.approx(0.01, rel=0.15)


def test_white_noise_as_quoted_has_unit_chi_square():
    chi = []
    for plans in draws("kmtnet", 20):
        for o in observe_event(np.random.default_rng(1), flat, plans, noise=False):
            assert (o.systematic == 0).all()
            chi.append((o.mag - o.truth) / o.white)
    chi = np.concatenate(chi)
    assert np.mean(chi**2) == pytest.approx(1, abs=4 * np.sqrt(2 / len(chi)))


def test_each_data_set_blends_the_same_source():
    plans = schedule("follow_up", np.random.default_rng(3), 0.0, 20.0)
    for o, d in zip(
        observe_event(np.random.default_rng(4), lambda t: np.full(len(t), -2.5), plans),
        plans,
        strict=True,
    ):
        np.testing.assert_allclose(o.truth, d.m_base - 2.5 * np.log10(1 + 9 * d.f_s))
        assert o.m_base == d.m_base and (o.sigma > 0).all()


def test_errors_are_quoted_from_the_observed_magnitude():
    (plan,) = schedule("moa", np.random.default_rng(3), 0.0, 20.0)
    (o,) = observe_event(np.random.default_rng(4), flat, [plan])
    np.testing.assert_array_equal(o.sigma, quoted_sigma(plan, o.mag))


def test_a_pair_shares_its_levels_and_not_its_noise():
    plans = schedule("kmtnet", np.random.default_rng(5), 0.0, 20.0)
    levels = noise_levels(np.random.default_rng(6), plans)
    assert len(levels) == len(plans) and all(isinstance(x, NoiseLevels) for x in levels)
    one, two = (observe_event(np.random.default_rng(k), flat, plans, levels) for k in (7, 8))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.times, b.times)
        residuals = [(o.mag - o.truth) / o.white for o in (a, b)]
        assert abs(np.corrcoef(*residuals)[0, 1]) < 0.9


def test_unknown_surveys_are_named():
    with pytest.raises(InputError, match="`survey` is 'hst', but one of ogle"):
        schedule("hst", np.random.default_rng(0), 0.0, 20.0)
