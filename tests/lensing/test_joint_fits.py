"""Joint point-lens fits: against finite differences, dense algebra and known events."""

from types import SimpleNamespace

import numpy as np
import pytest

from lensml.lensing import MAG, brightness, error_factors, refit
from lensml.lensing.joint_fits import BLEND_WIDTH, WIDTH, _covariance, linearise

TRUTH = np.array([10.0, np.log(0.2), np.log(20.0), np.log(0.7), 0.4, np.log(0.4), -0.3])
LOOSE, EXACT = np.array([2.0, 2.0]), np.zeros(2)


def event(sigma=0.01, width=LOOSE, noise=0.0, num=200, seed=0):
    """Two data sets of the fit TRUTH: arguments of the compiled functions, by name."""
    rng = np.random.default_rng(seed)
    times = np.concatenate([np.sort(rng.uniform(-90, 80, num)) for _ in range(2)])
    low, high = np.array([0, num]), np.array([num, 2 * num])
    bright = np.array([brightness(TRUTH, int(i >= num), t)[0] for i, t in enumerate(times)])
    bright += noise * sigma * rng.standard_normal(2 * num)
    centre = TRUTH[4::2].copy() if width[0] == 0 else np.zeros(2)
    return with_bright(
        SimpleNamespace(times=times, w=np.full(2 * num, 1 / sigma), low=low, high=high,
                        centre=centre, width=width), bright,
    )  # fmt: skip


def with_bright(e, bright):
    """The same epochs with other brightness."""
    return SimpleNamespace(**e.__dict__ | {"bright": bright, "flux": np.exp(bright / MAG)})


def linearised(fit, free, e):
    """Cost and state at a fit."""
    state, last = np.empty((3, 11)), e.times.max()
    args = (last, e.centre, e.width, e.times, e.flux, e.w, e.low, e.high)
    return linearise(fit, free, *args, state), state


def fitted(e, refits=25, free=True):
    """Fits and covariances after repeated refits, the first from the prior means."""
    fits, covariances = np.zeros((2, 7)), np.zeros((2, 2, 15))
    last = e.times.max()
    fits[:, :3] = last, np.log(0.5), np.log(22.4)
    args = (e.centre, e.width, free, e.times, e.flux, e.bright, e.w, e.low, e.high)
    for _ in range(refits):
        refit(fits, covariances, last, *args)
    return fits, covariances


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("width", [LOOSE, EXACT], ids=["loose", "exact"])
@pytest.mark.parametrize("outliers", [0, 20])
def test_the_gradient_is_that_of_the_cost(free, width, outliers):
    e = event(sigma=0.03, width=width, noise=1.0)
    bright = e.bright.copy()
    bright[:: 400 // outliers if outliers else 1000] -= 0.3  # 10 errors: Huber's loss is linear
    e = with_bright(e, bright)
    fit = TRUTH + np.array([0.7, 0.1, -0.1, -0.1, 0.02, 0.2, -0.03])
    if not free:
        fit[3::2] = 0.0
    state = linearised(fit, free, e)[1]
    gradient = np.concatenate([state[0, :3], state[1:, :2].ravel()])
    moving = [0, 1, 2, *([3, 5] if free else []), *([4, 6] if width[0] > 0 else [])]
    for i in range(7):
        step = np.zeros(7)
        step[i] = 1e-5
        up, down = (linearised(fit + sign * step, free, e)[0] for sign in (1, -1))
        expected = (up - down) / 4e-5 if i in moving else 0.0
        assert gradient[i] == pytest.approx(expected, rel=1e-4, abs=0)


def test_an_event_of_two_data_sets_is_recovered_with_its_baselines():
    fits, covariances = fitted(event(sigma=1e-3))
    np.testing.assert_allclose(fits[1], TRUTH, atol=2e-3)
    errors = np.sqrt(covariances[1][:, [0, 3, 5, 12, 14]])
    for k in range(2):
        own = [0, 1, 2, 3 + 2 * k, 4 + 2 * k]
        assert (abs(fits[1, own] - TRUTH[own]) < 0.2 * errors[k]).all()  # the priors pull a little


def test_the_model_without_blending_keeps_all_flux_lensed():
    fits, _ = fitted(event(noise=1.0))
    assert (fits[0, 3::2] == 0).all()
    both, covariances = fitted(event(noise=1.0), free=False)
    assert np.array_equal(both[0], both[1]) and np.array_equal(*covariances)


def test_a_fit_lies_within_its_errors():
    offsets = []
    for seed in range(40):
        fits, covariances = fitted(event(noise=1.0, seed=seed), refits=15)
        errors = np.sqrt(covariances[1, 0, [0, 3, 5, 12, 14]])
        offsets.append((fits[1, :5] - TRUTH[:5]) / errors)
    assert (abs(np.mean(offsets, axis=0)) < 0.6).all()  # 3 errors and more of 40 fits
    assert (np.std(offsets, axis=0) < 1.35).all() and (np.std(offsets, axis=0) > 0.7).all()


def test_an_outlier_pulls_less_where_errors_are_not_exact():
    moved = []
    for width in (LOOSE, EXACT):
        clean = event(width=width)
        bright = clean.bright.copy()
        bright[abs(clean.times - 15.0).argmin()] += 50 * 0.01
        fits = [fitted(e)[0][1, :3] for e in (clean, with_bright(clean, bright))]
        moved.append(abs(fits[1] - fits[0]))
    assert (moved[0] < 0.5 * moved[1]).all()


def test_scatter_twice_the_quoted_errors_is_found():
    for width, low, high in ((LOOSE, 1.7, 2.2), (EXACT, 1.0, 1.0)):
        e, factors = event(width=width, noise=2.0, num=300), np.full(2, 0.5)
        error_factors(TRUTH, e.width, e.times, e.bright, e.w, e.low, e.high, factors)
        assert (factors >= low).all() and (factors <= high).all()


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("width", [LOOSE, EXACT], ids=["loose", "exact"])
def test_the_covariance_is_the_inverse_of_the_full_matrix(free, width):
    e, fit = event(width=width), TRUTH.copy()
    if not free:
        fit[3::2] = 0.0
        bright = [brightness(fit, int(i >= 200), t)[0] for i, t in enumerate(e.times)]
        e = with_bright(e, np.array(bright))
    # The Jacobian by finite differences, in units of the errors, and the priors.
    jacobian = np.empty((400, 7))
    for j in range(7):
        step = np.zeros(7)
        step[j] = 1e-5
        for i, t in enumerate(e.times):
            k = int(i >= 200)
            difference = brightness(fit + step, k, t)[0] - brightness(fit - step, k, t)[0]
            jacobian[i, j] = difference / 2e-5 * e.w[i]
    own = [BLEND_WIDTH, LOOSE[0]] * 2
    matrix = jacobian.T @ jacobian + np.diag(1 / np.array([*WIDTH, *own]) ** 2)
    moving = [0, 1, 2, *([3, 5] if free else []), *([4, 6] if width[0] > 0 else [])]
    inverse = np.zeros((7, 7))
    inverse[np.ix_(moving, moving)] = np.linalg.inv(matrix[np.ix_(moving, moving)])
    covariance = np.empty((2, 15))
    _covariance(linearised(fit, free, e)[1], covariance)
    for k in range(2):
        i = [0, 1, 2, 3 + 2 * k, 4 + 2 * k]
        c = inverse[np.ix_(i, i)]
        expected = [*c[0, :3], *c[1, 1:3], c[2, 2], *c[:3, 3], *c[:3, 4], c[3, 3], c[3, 4], c[4, 4]]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(covariance[k], expected, rtol=1e-4, atol=1e-7 * scale)
