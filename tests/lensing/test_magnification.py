"""The binary lens against limits, a polynomial solver of our own and MulensModel."""

from dataclasses import replace

import MulensModel
import numpy as np
import pytest
from numpy.polynomial import Polynomial
from scipy.integrate import quad

from lensml.lensing.caustics import caustic_curves
from lensml.lensing.lenses import BinaryLens, magnification_centre, to_centre_of_mass
from lensml.lensing.magnification import (
    binary_magnification,
    check_epochs,
    finite_source_magnification,
    point_lens_magnification,
)
from lensml.seeds import event_generator
from lensml.simulation import PARAMETER_SETS, draw_binary

TIMES = np.linspace(-60.0, 60.0, 241)


def lens(**changes) -> BinaryLens:
    base = BinaryLens(t0=0.0, u0=0.3, tE=20.0, rho=1e-3, s=1.0, q=1e-3, alpha=0.5)
    return replace(base, **changes)


def random_events(per_set: int) -> list[BinaryLens]:
    return [
        draw_binary(parameters, event_generator(11, name, i), (-100.0, 100.0))
        for name, parameters in PARAMETER_SETS.items()
        for i in range(per_set)
    ]


def point_source_binary(x: float, y: float, s: float, q: float) -> float:
    """Magnification from the fifth-order polynomial of the lens equation (Witt & Mao 1995)."""
    m, z = np.array([1, q]) / (1 + q), np.array([-q, 1]) * s / (1 + q)
    zeta = complex(x, y)
    own = [Polynomial([-zk, 1]) for zk in z]
    p = own[0] * own[1]
    n = [(zeta.conjugate() - zk) * p + m[0] * own[1] + m[1] * own[0] for zk in z]
    whole = Polynomial([-zeta, 1]) * n[0] * n[1] - m[0] * p * n[1] - m[1] * p * n[0]
    roots = whole.roots()
    back = roots - m[0] / (roots.conj() - z[0]) - m[1] / (roots.conj() - z[1])
    image = roots[np.abs(back - zeta) < 1e-6]
    shear = m[0] / (image.conj() - z[0]) ** 2 + m[1] / (image.conj() - z[1]) ** 2
    return float(np.sum(1 / np.abs(1 - np.abs(shear) ** 2)))


def test_tiny_companion_matches_point_lens():
    u = np.hypot(0.3, TIMES / 20)
    for s in (0.3, 1.0, 3.0):
        np.testing.assert_allclose(
            binary_magnification(lens(s=s, q=1e-8), TIMES), point_lens_magnification(u), rtol=1e-3
        )


@pytest.mark.parametrize("q", [1e-3, 0.1, 1.0])
def test_close_binary_acts_as_one_lens_at_the_centre_of_mass(q):
    u = np.hypot(0.5, TIMES / 20)
    got = binary_magnification(lens(s=0.02, q=q, u0=0.5), TIMES)
    np.testing.assert_allclose(got, point_lens_magnification(u), rtol=1.5e-3)


@pytest.mark.parametrize("q", [1e-3, 0.1, 1.0])
def test_wide_binary_is_a_point_lens_of_the_heavier_mass_at_its_magnification_centre(q):
    """The companion adds a shear q / s^2 and its own unlensed-looking image: nothing more."""
    u = np.hypot(0.5, TIMES[80:161] / 20) * np.sqrt(1 + q)  # in Einstein radii of the heavier mass
    for alpha in (0.5, 2.0, 4.0):
        got = binary_magnification(lens(s=60.0, q=q, u0=0.5, alpha=alpha), TIMES[80:161])
        np.testing.assert_allclose(got, point_lens_magnification(u), rtol=2.5e-3)


def test_against_the_lens_polynomial_where_the_source_is_small():
    checked = 0
    for event in random_events(6):
        event = replace(event, rho=1e-5)
        times = event.t0 + event.tE * np.linspace(-1.5, 1.5, 25)
        u0, t0 = to_centre_of_mass(event)
        tau = (times - t0) / event.tE
        sin_a, cos_a = np.sin(event.alpha), np.cos(event.alpha)
        x, y = u0 * sin_a - tau * cos_a, -u0 * cos_a - tau * sin_a
        exact = np.array([point_source_binary(*xy, event.s, event.q) for xy in zip(x, y)])  # noqa: B905
        smooth = exact < 50  # near a caustic even this source is not a point
        got = binary_magnification(event, times, tolerance=1e-4)
        np.testing.assert_allclose(got[smooth], exact[smooth], rtol=1e-3)
        checked += smooth.sum()
    assert checked > 500


def test_agrees_with_mulensmodel_on_200_random_events():
    """To 1e-3 everywhere on the curve, caustic crossings included."""
    for event in random_events(50):
        times = event.t0 + event.tE * np.linspace(-2, 2, 60)
        u0, t0 = to_centre_of_mass(event)
        other = MulensModel.Model(
            {"t_0": t0, "u_0": u0, "t_E": event.tE, "rho": event.rho, "s": event.s, "q": event.q,
             "alpha": np.degrees(event.alpha)}
        )  # fmt: skip
        other.set_magnification_methods([times[0] - 1, "VBM", times[-1] + 1])
        other.set_magnification_methods_parameters({"VBM": {"accuracy": 1e-4}})
        expected = other.get_magnification(times)
        np.testing.assert_allclose(binary_magnification(event, times), expected, rtol=1e-3)


def test_t0_moves_the_curve_in_time():
    curve = binary_magnification(lens(), TIMES)
    np.testing.assert_allclose(binary_magnification(lens(t0=7.5), TIMES + 7.5), curve, rtol=1e-4)


def test_tE_stretches_the_curve():
    curve = binary_magnification(lens(), TIMES)
    np.testing.assert_allclose(binary_magnification(lens(tE=50.0), TIMES * 2.5), curve, rtol=1e-4)


def test_u0_sets_the_peak_of_a_single_lens():
    for u0 in (0.05, 0.3, 0.9):
        peak = binary_magnification(lens(u0=u0, q=1e-9), TIMES).max()
        assert peak == pytest.approx(point_lens_magnification(u0), rel=1e-3)


def test_rho_limits_the_peak_of_a_source_behind_the_lens():
    for rho in (0.01, 0.1):
        peak = binary_magnification(lens(u0=1e-9, rho=rho, q=1e-9), np.array([0.0]))
        assert peak[0] == pytest.approx(np.sqrt(1 + 4 / rho**2), rel=2e-3)


@pytest.mark.parametrize(("alpha", "side"), [(0.0, -1), (np.pi, 1)])
@pytest.mark.parametrize("s", [1.6, 2.0, 3.0])
def test_s_and_alpha_say_when_a_source_on_the_axis_meets_the_planet(s, alpha, side):
    """The planetary caustic lies s - 1 / s from the star, on the planet's side."""
    event = lens(s=s, q=1e-4, u0=1e-4, alpha=alpha)
    at = side * (s - 1 / s)
    tau = np.linspace(at - 0.3, at + 0.3, 601)
    single = point_lens_magnification(np.abs(tau))
    excess = binary_magnification(event, tau * event.tE) / single - 1
    centre = np.average(tau, weights=np.abs(excess) ** 2)
    assert centre == pytest.approx(at, abs=0.01)


def test_u0_and_alpha_of_a_source_that_passes_across_the_axis():
    """At alpha = 90 degrees the track meets the axis at x = u0, on the planet or opposite."""
    x = 2.0 - 0.5
    on_planet = binary_magnification(lens(s=2.0, u0=x, alpha=np.pi / 2, q=1e-3), np.array([0.0]))
    opposite = binary_magnification(lens(s=2.0, u0=x, alpha=-np.pi / 2, q=1e-3), np.array([0.0]))
    assert on_planet[0] > 2
    assert opposite[0] == pytest.approx(point_lens_magnification(x), rel=0.01)


@pytest.mark.parametrize("q", [0.01, 0.3, 1.0])
def test_q_is_the_mass_of_the_companion_over_that_of_the_heavier_lens(q):
    """Far from the heavier lens, the companion is a point lens of radius sqrt(q / (1 + q))."""
    s, u = 40.0, 0.2
    m1, m2 = 1 / (1 + q), q / (1 + q)
    x = s * m1 - m1 / s + u  # the magnification centre of the companion, and u beyond it
    event = lens(s=s, q=q, alpha=np.pi / 2, u0=x - magnification_centre(s, q))
    got = binary_magnification(event, np.array([0.0]))
    assert got[0] == pytest.approx(point_lens_magnification(u / np.sqrt(m2)), rel=5e-3)


def test_a_curve_does_not_depend_on_the_events_before_it():
    events = random_events(8)
    forward = [binary_magnification(e, TIMES) for e in events]
    backward = [binary_magnification(e, TIMES) for e in reversed(events)][::-1]
    assert all((a == b).all() for a, b in zip(forward, backward, strict=True))


def delta_chi2(curve, reference) -> float:
    """Of the difference of two magnifications, in errors of 0.01 mag."""
    return float(np.sum((2.5 * np.log10(curve / reference) / 0.01) ** 2))


SEASON = np.linspace(-100, 100, 1500)


def test_numerical_error_stays_far_below_the_noise():
    """Summed over 1500 epochs at 0.01 mag: under 0.1 in delta-chi2."""
    for event in random_events(8):
        fine = binary_magnification(event, SEASON, tolerance=1e-5, every_epoch=True)
        assert delta_chi2(binary_magnification(event, SEASON), fine) < 0.1


@pytest.mark.parametrize("num_epochs", [40, 200, 375, 1500, 3000])
def test_sampled_curves_are_those_of_every_epoch(num_epochs):
    """What skipping epochs adds is a twentieth of what the accuracy rule allows, or less."""
    times = np.linspace(-100, 100, num_epochs)
    for event in random_events(25 if num_epochs == 1500 else 6):
        every = binary_magnification(event, times, every_epoch=True)
        assert delta_chi2(binary_magnification(event, times), every) < 0.005


@pytest.mark.parametrize("s", [0.25, 0.5, 0.9, 1.1, 2.0, 4.0])
def test_no_small_caustic_is_missed_between_samples(s):
    """Short events aimed at every caustic of a planet, between two nodes of the first passes."""
    centres = [c.mean(axis=1) for c in caustic_curves(s, 1e-4)]
    generator = np.random.default_rng(3)
    seen = []
    for centre in centres:
        for _ in range(4):
            alpha, tE = generator.uniform(0, 2 * np.pi), generator.uniform(3, 15)
            sin_a, cos_a = np.sin(alpha), np.cos(alpha)
            # Through the caustic's centre in the middle of the survey, whatever the origin.
            u0 = centre @ (sin_a, -cos_a) - magnification_centre(s, 1e-4) * sin_a
            tau = -(centre @ (cos_a, sin_a)) - magnification_centre(s, 1e-4) * cos_a
            event = BinaryLens(t0=generator.uniform(-30, 30) - tau * tE, u0=u0, tE=tE, rho=1e-3,
                               s=s, q=1e-4, alpha=alpha)  # fmt: skip
            every = binary_magnification(event, SEASON, every_epoch=True)
            assert delta_chi2(binary_magnification(event, SEASON), every) < 0.005
            seen.append(np.abs(np.diff(every, 2)).max())
    assert max(seen) > 0.05  # some of them are sharp


def test_uneven_epochs_are_all_solved():
    times = np.sort(np.random.default_rng(0).uniform(-100, 100, 300))
    for event in random_events(2):
        every = binary_magnification(event, times, every_epoch=True)
        assert (binary_magnification(event, times) == every).all()


def test_sampled_curves_do_not_depend_on_the_events_before_them():
    events = random_events(6)
    forward = [binary_magnification(e, SEASON) for e in events]
    backward = [binary_magnification(e, SEASON) for e in reversed(events)][::-1]
    assert all((a == b).all() for a, b in zip(forward, backward, strict=True))


def disc_by_rings(u: float, rho: float) -> float:
    """The same disc cut into rings about the *lens*, which share one magnification each."""

    def ring(v: float) -> float:
        covered = np.clip((u * u + v * v - rho * rho) / (2 * u * v), -1, 1)
        return (v * v + 2) / np.sqrt(v * v + 4) * 2 * np.arccos(covered)

    light = quad(ring, abs(u - rho), u + rho, limit=300, epsrel=1e-10)[0]
    if u < rho:
        light += quad(lambda v: (v * v + 2) / np.sqrt(v * v + 4) * 2 * np.pi, 0, rho - u)[0]
    return light / (np.pi * rho**2)


@pytest.mark.parametrize("rho", [1e-3, 0.01, 0.1, 0.5])
def test_disc_behind_a_point_lens_agrees_with_rings(rho):
    u = rho * np.concatenate([np.linspace(0.01, 3, 42), np.linspace(4, 60, 10)])
    expected = [disc_by_rings(x, rho) for x in u]
    np.testing.assert_allclose(finite_source_magnification(u, rho), expected, rtol=1e-4)


def test_disc_behind_a_point_lens_agrees_with_mulensmodel():
    """Witt & Mao (1994) by its elliptic integrals, good to some 1e-3."""
    u, rho = np.linspace(0.003, 0.1, 40), 0.02
    model = MulensModel.Model({"t_0": 0, "u_0": 0, "t_E": 1, "rho": rho})
    model.set_magnification_methods([-5, "finite_source_uniform_WittMao94", 5])
    got = finite_source_magnification(u, rho)
    np.testing.assert_allclose(got, model.get_magnification(u), rtol=3e-3)


def test_disc_right_behind_the_lens_is_an_einstein_ring():
    for rho in (1e-3, 0.05, 1.0):
        got = finite_source_magnification(np.array([0.0]), rho)[0]
        assert got == pytest.approx(np.sqrt(1 + 4 / rho**2), rel=1e-6)


def test_disc_has_no_steps_where_methods_would_hand_over():
    """A step of some mmag, as between two methods, would show in the slope."""
    rho = 0.01
    u = np.linspace(0, 80 * rho, 40_001)
    log_a = np.log(finite_source_magnification(u, rho))
    slope = np.diff(log_a) / np.diff(u)
    change = np.abs(np.diff(slope)) * (u[1] - u[0])
    rim = np.abs(u[1:-1] - rho) < 0.2 * rho  # a true kink: half the disc enters within u ~ rho
    assert change[~rim].max() < 1e-4 and np.abs(np.diff(log_a)).max() < 0.02


def test_a_point_is_the_limit_of_a_small_disc():
    u = np.linspace(0.01, 2, 50)
    point = point_lens_magnification(u)
    assert (finite_source_magnification(u, 0.0) == point).all()
    np.testing.assert_allclose(finite_source_magnification(u, 1e-5), point, rtol=1e-5)


def test_point_lens_has_closed_values():
    assert point_lens_magnification(1.0) == pytest.approx(3 / np.sqrt(5))
    assert point_lens_magnification(1e-6) == pytest.approx(1e6, rel=1e-6)
    assert point_lens_magnification(1e3) == pytest.approx(1, abs=1e-9)


def test_unsorted_epochs_are_named_in_the_error():
    with pytest.raises(ValueError, match=r"times\[2\] = 1 d follows times\[1\] = 5 d"):
        check_epochs(np.array([0.0, 5.0, 1.0]))
    with pytest.raises(ValueError, match=r"shape \(T,\)"):
        check_epochs(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="increase strictly"):
        binary_magnification(lens(), np.array([0.0, np.nan, 2.0]))
