"""The explorer follows its sliders and agrees with the physics."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lensml.experiments import explorer
from lensml.lensing import point_lens_magnification


def observe(**changes):
    return explorer.observe_example(**(explorer.DEFAULTS | changes))


@pytest.fixture(scope="module")
def strong():
    return observe()


def test_the_default_event_differs_from_its_twin(strong):
    assert strong.dchi2 > 500
    assert strong.p.shape == explorer.TIMES.shape
    assert np.all((strong.p >= 0) & (strong.p <= 1))


def test_a_companion_without_mass_leaves_the_point_lens():
    example = observe(q=1e-6, u0=0.3, alpha=0.5)
    u = np.hypot(0.3, explorer.TIMES / explorer.TE)
    single = explorer.M_BASE - 2.5 * np.log10(point_lens_magnification(u))
    np.testing.assert_allclose(example.binary, single, atol=1e-3)
    assert example.dchi2 < 1


def test_the_noise_stays_while_the_event_changes(strong):
    other = observe(u0=0.6)
    np.testing.assert_allclose(
        strong.observed - strong.binary, other.observed - other.binary, atol=1e-12
    )


def test_an_error_half_as_large_makes_four_times_the_delta_chi2(strong):
    sharper = observe(sigma=explorer.DEFAULTS["sigma"] / 2)
    assert sharper.dchi2 == pytest.approx(4 * strong.dchi2)


def test_moving_a_slider_changes_the_numbers_and_the_figure():
    box = explorer.explore()
    *sliders, numbers, image = box.children
    assert [slider.description.split()[-1] for slider in sliders[:3]] == ["s", "q", "u0"]
    before = numbers.value, image.value
    sliders[0].value = 5.0
    assert "wide" in numbers.value and numbers.value != before[0]
    assert image.value[:4] == b"\x89PNG" and image.value != before[1]
    sliders[0].value = explorer.DEFAULTS["s"]
    assert numbers.value == before[0]


def test_the_static_figure_shows_the_same_numbers(strong):
    figure = explorer.snapshot()
    assert isinstance(figure, Figure)
    assert figure.get_suptitle() == strong.caption


def test_frames_hold_one_figure_a_position():
    box = explorer.frames("u0", np.array([0.1, 0.5]))
    slider, stack = box.children
    assert slider.max == 1 and len(stack.children) == 2
    assert stack.children[0].value != stack.children[1].value
    with pytest.raises(ValueError, match="`name` is 'tE', but one of s, q, u0, alpha, sigma"):
        explorer.frames("tE", np.array([1.0]))
