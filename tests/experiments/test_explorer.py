"""The explorer follows its sliders and agrees with the physics."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from lensml.experiments import book_code
from lensml.lensing import point_lens_magnification, topology

explorer = book_code("explorer")


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


@pytest.fixture
def explored(monkeypatch):
    """The explorer without a network, its parts, and what was drawn: positions and whether P."""
    drawn = []

    def observed(**position):
        classified = position.pop("classified", True)
        drawn.append((position, classified))
        example = explorer_observe(**position, classified=False)
        return replace(example, p=np.full(explorer.TIMES.size, 0.5)) if classified else example

    explorer_observe = explorer.observe_example
    monkeypatch.setattr(explorer, "observe_example", observed)
    left, image = explorer.explore().children
    *sliders, buttons, sign = left.children
    return sliders, {b.description: b for b in buttons.children}, sign, image, drawn


def test_moving_a_slider_draws_a_preview_and_then_p(explored):
    sliders, _, sign, image, drawn = explored
    assert [slider.description.split()[1] for slider in sliders[:2]] == ["s", "ratio"]
    before = image.value
    del drawn[:]
    sliders[0].value = 5.0
    assert [classified for _, classified in drawn] == [False, True]
    assert drawn[-1][0]["s"] == 5.0 and sign.value == ""
    assert image.value[:4] == b"\x89PNG" and image.value != before
    sliders[0].value = explorer.DEFAULTS["s"]
    assert image.value == before


def test_p_is_computed_once_when_a_moving_slider_rests(explored, monkeypatch):
    sliders, _, sign, _, drawn = explored
    monkeypatch.setattr(explorer, "REST", 0.2)
    del drawn[:]

    async def drag():
        for position in (0.2, 0.3, 0.4):
            sliders[2].value = position
        while not drawn:
            await asyncio.sleep(0.01)
        assert "computing" in sign.value
        while sign.value:
            await asyncio.sleep(0.01)

    asyncio.run(drag())
    assert [p for _, p in drawn] == [False, False, False, True]
    assert drawn[-1][0]["u0"] == 0.4


def test_buttons_set_a_topology_or_the_start(explored):
    sliders, buttons, _, _, drawn = explored
    for name in explorer.PRESETS:
        del drawn[:]
        buttons[name].click()
        assert len(drawn) == 2  # once for all sliders: a preview and P
        expected = {"planetary": "wide"}.get(name, name)
        assert topology(drawn[-1][0]["s"], drawn[-1][0]["q"]) == expected
    buttons["reset"].click()
    assert [s.value for s in sliders] == pytest.approx(list(explorer.DEFAULTS.values()))


def test_every_preset_shows_an_anomaly():
    for positions in explorer.PRESETS.values():
        assert observe(classified=False, **positions).dchi2 > 200


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
