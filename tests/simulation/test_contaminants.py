"""What is no binary lens follows its own physics, comes from its own stream, and counts as 0."""

from dataclasses import replace

import MulensModel
import numpy as np
import pytest

from lensml.lensing import point_lens_magnification
from lensml.paths import InputError
from lensml.simulation import lightcurves as dataset
from lensml.simulation.contaminants import (
    CONDITIONS,
    FIELD,
    KINDS,
    Contaminant,
    contaminant_magnification,
    contaminant_set,
    contaminant_training_set,
    draw_contaminant,
    spoil,
    sun_offset,
)
from lensml.simulation.survey import Survey

TIMES = np.linspace(-100, 100, 401)
SURVEY = Survey(num_epochs=200)
SINGLE = Contaminant(t0=5.0, u0=0.2, tE=40.0)


def paczynski(event: Contaminant) -> np.ndarray:
    return point_lens_magnification(np.hypot(event.u0, (TIMES - event.t0) / event.tE))


def test_without_any_effect_an_event_is_a_point_source_and_a_point_lens():
    np.testing.assert_allclose(contaminant_magnification([SINGLE], TIMES)[0], paczynski(SINGLE))


def test_vanishing_parallax_leaves_a_single_lens():
    event = replace(SINGLE, pi_E_N=1e-9, pi_E_E=-1e-9, date=50.0)
    found = contaminant_magnification([event], TIMES)[0]
    np.testing.assert_allclose(found, paczynski(SINGLE), rtol=1e-7)


@pytest.mark.parametrize("date", [0.0, 80.0, 170.0, 260.0, 330.0])
@pytest.mark.parametrize("u0", [0.2, -0.2])
def test_parallax_agrees_with_mulensmodel_at_any_time_of_the_year(date, u0):
    event = Contaminant(t0=20.0, u0=u0, tE=80.0, pi_E_N=0.5, pi_E_E=-0.3, date=date)
    zero = 2451545.0 + date
    parameters = {"t_0": zero + event.t0, "u_0": u0, "t_E": event.tE}
    parameters |= {"pi_E_N": 0.5, "pi_E_E": -0.3, "t_0_par": zero + event.t0}
    model = MulensModel.Model(parameters, coords=f"{FIELD[0] / 15:.0f}:00:00 -29:30:00")
    expected = model.get_magnification(zero + TIMES)
    found = contaminant_magnification([event], TIMES)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    bare = contaminant_magnification([replace(event, pi_E_N=0.0, pi_E_E=0.0)], TIMES)[0]
    assert np.abs(bare / expected - 1).max() > 0.05  # there is something to agree on


def test_parallax_leaves_position_and_velocity_at_the_peak_alone():
    near = sun_offset(np.array([99.9, 100.0, 100.1]), 100.0)
    np.testing.assert_allclose(near, 0, atol=2e-6)  # AU; the acceleration alone gives 1.5e-6
    far = np.hypot(*sun_offset(np.array([0.0, 200.0]), 100.0))
    assert (far > 0.3).all() and (far < 2.5).all()


def test_a_disc_far_from_the_lens_is_a_point_and_one_over_it_is_not():
    far = replace(SINGLE, rho=0.001)  # u0 = 200 rho
    np.testing.assert_allclose(
        contaminant_magnification([far], TIMES)[0], paczynski(far), rtol=1e-4
    )
    over = Contaminant(t0=0.0, u0=1e-3, tE=40.0, rho=0.01)
    peak = contaminant_magnification([over], TIMES)[0].max()
    assert peak < np.sqrt(1 + 4 / over.rho**2) < paczynski(over).max()  # Witt & Mao (1994)


def test_a_dark_second_source_leaves_a_single_lens_and_an_equal_one_the_mean():
    second = replace(SINGLE, t0_2=-30.0, u0_2=0.05)
    dark = contaminant_magnification([replace(second, flux_ratio=1e-9)], TIMES)[0]
    np.testing.assert_allclose(dark, paczynski(SINGLE), rtol=1e-7)
    equal = contaminant_magnification([replace(second, flux_ratio=1.0)], TIMES)[0]
    other = paczynski(Contaminant(t0=-30.0, u0=0.05, tE=SINGLE.tE))
    np.testing.assert_allclose(equal, (paczynski(SINGLE) + other) / 2)


def test_a_varying_source_is_magnified_like_any_other():
    event = replace(SINGLE, amplitude=0.05, period=20.0, phase=1.0, drift=0.1)
    found = -2.5 * np.log10(contaminant_magnification([event], TIMES)[0] / paczynski(SINGLE))
    expected = 0.05 * np.sin(2 * np.pi * TIMES / 20 + 1) + 0.1 * (TIMES + 100) / 100
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_the_same_in_a_set_of_any_size(kind):
    few, more = (contaminant_set(kind, n, seed=2, survey=SURVEY) for n in (3, 67))
    for name in ("X", "sigma", "m_base", "params", "magnification"):
        np.testing.assert_array_equal(getattr(few, name), getattr(more, name)[:3])
    assert not np.array_equal(more.magnification[0], more.magnification[64])
    last = contaminant_magnification([draw_contaminant(kind, 2, 66)], SURVEY.times)[0]
    np.testing.assert_allclose(more.magnification[66], last, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_kind_is_a_binary_lens(kind, tmp_path):
    curves = dataset.load(dataset.save(tmp_path / "set.npz", contaminant_set(kind, 5, 0, SURVEY)))
    assert (curves.y == 0).all() and (curves.pair == -1).all()
    assert np.isnan(curves.dchi2).all() and np.isnan(curves.param("q")).all()
    preset, seed, events = curves.events()
    assert (preset, seed, list(events)) == (f"impostor_{kind}", 0, [0, 1, 2, 3, 4])
    residual = curves.X - curves.noise_free()
    assert abs(np.nanstd(residual) / 0.1 - 1) < 0.1
    assert 0.7 < np.isfinite(curves.X).mean() < 0.9


def test_kinds_share_the_priors_of_the_binaries_but_no_event():
    events = {kind: [draw_contaminant(kind, 0, i) for i in range(400)] for kind in KINDS}
    assert len({e.t0 for kind in events.values() for e in kind}) == 5 * 400
    for kind in events.values():
        assert abs(np.mean([np.log10(e.tE) for e in kind]) - 1.37) < 0.06
        assert max(abs(e.t0) for e in kind) <= 50
    below = np.mean([e.u0 < e.rho for e in events["finite_source"]])
    assert 0.1 < below < 0.25  # the disc is resolved
    assert 0.12 < np.median([np.hypot(e.pi_E_N, e.pi_E_E) for e in events["parallax"]]) < 0.21
    assert abs(np.mean([e.drift == 0 for e in events["variable_baseline"]]) - 0.5) < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_of_a_contaminant_is_a_single_lens_no_worse_than_its_own(kind):
    curves = contaminant_training_set(kind, 4, 2)
    delta = -2.5 * np.log10(curves.magnification)
    assert delta.shape == (8, 1500) and delta.dtype == np.float32 and not curves.y.any()
    events = [draw_contaminant(kind, 2, i) for i in range(4)]
    flux = contaminant_magnification(events, curves.time)
    np.testing.assert_allclose(delta[1::2], -2.5 * np.log10(flux), atol=1e-5)
    own = [Contaminant(t0=e.t0, u0=abs(e.u0), tE=e.tE) for e in events]
    own = -2.5 * np.log10(contaminant_magnification(own, curves.time))
    twin, event = delta[::2].astype(float), delta[1::2].astype(float)
    left = ((event - twin) ** 2).sum(axis=1)
    # A descent ends where a step gains a millionth.
    assert (left <= ((event - own) ** 2).sum(axis=1) * (1 + 1e-5) + 1e-8).all()
    alone = contaminant_training_set(kind, 1, 2)
    np.testing.assert_array_equal(curves.magnification[:2], alone.magnification)


def test_unknown_kinds_and_empty_sets_are_named_in_one_line():
    for call in (
        lambda: contaminant_set("xallarap", 1, 0),
        lambda: contaminant_training_set("xallarap", 1, 0),
        lambda: draw_contaminant("xallarap", 0, 0),
    ):
        with pytest.raises(InputError, match="'xallarap', but one of point_source, .* expected$"):
            call()
    with pytest.raises(InputError, match="`num_events` is 0"):
        contaminant_set("parallax", 0, 0)
    with pytest.raises(InputError, match="`num_events` is 0"):
        contaminant_training_set("parallax", 0, 0)


SINGLES = contaminant_set("point_source", 200, 4, Survey(num_epochs=400))


def spoiled(condition):
    """Change of each epoch in errors, (n, T), and the new set."""
    curves = spoil(SINGLES, condition, 5)
    return (curves.X - SINGLES.X) / SINGLES.sigmas(), curves


@pytest.mark.parametrize("condition", CONDITIONS)
def test_spoiling_changes_only_what_is_observed_and_not_by_the_size_of_the_set(condition):
    change, curves = spoiled(condition)
    np.testing.assert_array_equal(np.isfinite(curves.X), np.isfinite(SINGLES.X))
    for name in ("y", "time", "sigma", "params", "magnification"):
        assert getattr(curves, name) is getattr(SINGLES, name)
    assert not curves.blended and curves.meta["condition"] == condition
    few = spoil(SINGLES.rows(slice(7)), condition, 5)
    np.testing.assert_array_equal(few.X, curves.X[:7])
    np.testing.assert_array_equal(few.m_base, curves.m_base[:7])
    if condition != "as quoted":
        other = spoil(SINGLES, condition, 6)
        assert not (
            np.array_equal(other.X, curves.X, equal_nan=True)
            and np.array_equal(other.m_base, curves.m_base)
        )


@pytest.mark.parametrize(("condition", "size"), [("0.3", 0.3), ("0.5", 0.5), ("1", 1.0)])
def test_red_noise_has_its_size_and_a_time_scale_of_a_day(condition, size):
    change, curves = spoiled(f"red noise, {condition} sigma")
    assert abs(np.nanstd(change) / size - 1) < 0.03
    step = curves.time[1] - curves.time[0]
    for lag in (1, 2, 4):
        product = np.nanmean(change[:, lag:] * change[:, :-lag])
        assert abs(product / size**2 - np.exp(-lag * step)) < 0.05


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_white_noise_grows_by_its_factor(factor):
    _, curves = spoiled("as quoted" if factor == 1 else "1.2 times as large")
    residual = (curves.X - curves.noise_free()) / curves.sigmas()
    assert abs(np.nanstd(residual) / factor - 1) < 0.01


@pytest.mark.parametrize("percent", [1, 3])
def test_outliers_are_so_many_and_have_five_times_the_noise(percent):
    change, curves = spoiled(f"outliers, {percent} %")
    hit = np.isfinite(change) & (change != 0)
    assert abs(hit.sum() / np.isfinite(change).sum() / (percent / 100) - 1) < 0.12
    residual = (curves.X - curves.noise_free()) / curves.sigmas()
    assert abs(residual[hit].std() / 5 - 1) < 0.08


@pytest.mark.parametrize("size", ["0.2", "1"])
def test_a_wrong_baseline_changes_what_is_adopted_and_not_the_magnitudes(size):
    _, curves = spoiled(f"baseline off by {size} sigma")
    np.testing.assert_array_equal(curves.X, SINGLES.X)
    off = (curves.m_base - SINGLES.m_base) / 0.1
    assert abs(off.std() / float(size) - 1) < 0.2


def test_an_undeclared_blend_flattens_the_event_and_leaves_the_baseline():
    change, curves = spoiled("undeclared blend")
    magnified = SINGLES.magnification
    shift = change * SINGLES.sigmas()
    assert np.nanmin(shift) > -1e-4  # fainter everywhere
    far = np.isfinite(shift) & (magnified < 1.001)
    assert np.abs(shift[far]).max() < 2e-3
    peak = np.nanargmax(np.where(np.isfinite(shift), magnified, np.nan), axis=1)
    rows = np.arange(len(curves))
    bright = magnified[rows, peak]
    flux = 10 ** (-0.4 * (shift[rows, peak] - 2.5 * np.log10(bright)))
    f_s = ((flux - 1) / (bright - 1))[bright > 1.5]
    assert f_s.min() > 0.09 and f_s.max() < 1.01 and abs(f_s.mean() - 0.55) < 0.08


def test_an_unknown_condition_is_named_in_the_error():
    with pytest.raises(InputError, match="`condition` is 'fog', but one of as quoted"):
        spoil(SINGLES, "fog", 0)
