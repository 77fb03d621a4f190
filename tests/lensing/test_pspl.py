"""The batched single-lens fit against scipy's optimiser, on the curves it is made for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from lensml.lensing.joint_fits import _u2_of_excess
from lensml.lensing.magnification import binary_magnification, point_lens_magnification
from lensml.lensing.pspl import (
    excess_magnification,
    fit_prefixes,
    fit_pspl,
    pspl_delta_mag,
)
from lensml.seeds import event_generator
from lensml.simulation import PARAMETER_SETS, draw_binary

TIMES = np.linspace(-100.0, 100.0, 400)


def curves(name: str, num: int, f_s: float = 1.0):
    parameters = PARAMETER_SETS[name]
    events = [draw_binary(parameters, event_generator(2, name, i), (-100, 100)) for i in range(num)]
    magnification = np.stack([binary_magnification(e, TIMES) for e in events])
    return events, -2.5 * np.log10(1 + f_s * (magnification - 1))


def model(x: np.ndarray, blended: bool) -> np.ndarray:
    u = np.hypot(np.exp(x[1]), (TIMES - x[0]) / np.exp(x[2]))
    return -2.5 * np.log10(1 + (x[3] if blended else 1.0) * (point_lens_magnification(u) - 1))


def best_by_scipy(event, delta: np.ndarray, blended: bool) -> float:
    peak = TIMES[delta.argmin()]
    bounds = [(-np.inf, np.log(1e-7), np.log(1e-3)), (np.inf, np.log(30), np.log(1e5))]
    if blended:
        bounds = [(*bounds[0], 1e-3), (*bounds[1], 1.0)]
    costs = []
    for t0 in (event.t0, peak):
        for u0 in (event.u0, 3 * event.u0):
            for tE in (event.tE, 0.3 * event.tE):
                start = [t0, np.log(u0), np.log(tE), *([0.7] if blended else [])]
                found = least_squares(
                    lambda x: model(x, blended) - delta, start, bounds=bounds, max_nfev=60
                )
                costs.append(2 * found.cost)
    return min(costs)


def excess_over_scipy(name: str, num: int, f_s: float) -> np.ndarray:
    """Cost of each twin over the least that scipy finds from eight starts, less one."""
    blended = f_s < 1
    events, delta = curves(name, num, f_s)
    starts = torch.tensor([[[e.t0, e.u0, e.tE]] for e in events], dtype=torch.float64)
    fit = fit_pspl(torch.from_numpy(TIMES), torch.from_numpy(delta), starts=starts, blended=blended)
    best = [best_by_scipy(e, row, blended) for e, row in zip(events, delta, strict=True)]
    # 1e-5 mag^2 is what the accuracy rule of the magnifications themselves allows.
    return (fit.chi2.numpy() + 1e-5) / (np.array(best) + 1e-5) - 1


@pytest.mark.parametrize("name", PARAMETER_SETS)
def test_twins_are_optimal(name):
    """No start of scipy's finds a single lens that lies closer to the binary."""
    assert excess_over_scipy(name, 12, 1.0).max() < 1e-3


@pytest.mark.parametrize("f_s", [0.4, 0.15])
@pytest.mark.parametrize("name", ["baseline", "stellar"])
def test_blended_twins_are_optimal_too(name, f_s):
    """But for one in thirty, by a percent: where u0 and f_s fall together the valley is flat."""
    excess = excess_over_scipy(name, 16, f_s)
    assert (excess < 1e-3).mean() >= 0.93 and excess.max() < 0.02


def test_a_single_lens_is_recovered():
    generator = np.random.default_rng(0)
    truth = [
        torch.from_numpy(x)
        for x in (
            generator.uniform(-40, 40, 30),
            generator.uniform(0.01, 1, 30),
            generator.uniform(5, 60, 30),
            np.ones(30),
        )
    ]
    times = torch.from_numpy(TIMES)
    fit = fit_pspl(times, pspl_delta_mag(times, *truth))
    assert fit.chi2.max() < 1e-8
    for found, true in zip((fit.t0, fit.u0, fit.tE), truth, strict=False):
        torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-3)


def test_blending_is_recovered_where_it_is_free_and_one_elsewhere():
    times = torch.from_numpy(TIMES)
    one = torch.ones(1, dtype=torch.float64)
    data = pspl_delta_mag(times, 5 * one, 0.1 * one, 25 * one, 0.3 * one)
    free, fixed = fit_pspl(times, data, blended=True), fit_pspl(times, data)
    assert free.f_s.item() == pytest.approx(0.3, rel=1e-2) and free.chi2.item() < 1e-6
    assert fixed.f_s.item() == 1.0 and fixed.chi2 > 1e-3


def test_formula_is_the_point_lens():
    one = torch.ones(1, dtype=torch.float64)
    got = pspl_delta_mag(torch.from_numpy(TIMES), 3 * one, 0.2 * one, 20 * one, 0.6 * one)[0]
    u = np.hypot(0.2, (TIMES - 3) / 20)
    expected = -2.5 * np.log10(1 + 0.6 * (point_lens_magnification(u) - 1))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-13)


def test_excess_and_its_inverse_agree_at_all_distances():
    u2 = torch.logspace(-8, 3, 300, dtype=torch.float64)
    excess = excess_magnification(u2)
    np.testing.assert_allclose(excess, point_lens_magnification(u2.sqrt()) - 1, rtol=1e-7)
    torch.testing.assert_close(
        torch.from_numpy(_u2_of_excess(excess.numpy())), u2, rtol=1e-10, atol=0
    )
    far = torch.tensor([1e12], dtype=torch.float64)  # A - 1 = 2 / u^4 would be rounded to zero
    torch.testing.assert_close(excess_magnification(far) * far**2, 0 * far + 2)


def test_rows_do_not_influence_each_other():
    """To the last bit, although rows that have converged leave the others alone."""
    _, delta = curves("distinct", 40)
    data = torch.from_numpy(delta)
    together = fit_pspl(torch.from_numpy(TIMES), data)
    for rows in (slice(0, 1), slice(7, 24), slice(39, 40)):
        some = fit_pspl(torch.from_numpy(TIMES), data[rows])
        for name in ("t0", "u0", "tE", "chi2"):
            assert (getattr(some, name) == getattr(together, name)[rows]).all()


@pytest.mark.parametrize("blended", [False, True])
def test_prefixes_together_fit_at_least_as_well_as_each_alone(blended):
    _, delta = curves("distinct", 12, 0.5 if blended else 1.0)
    data, times = torch.from_numpy(delta), torch.from_numpy(TIMES)
    observed = torch.from_numpy(np.random.default_rng(0).random(delta.shape) > 0.2)
    whole = fit_pspl(times, data, blended=blended)
    prefixes = [times <= end for end in (-60.0, -20.0, 0.0, 30.0, 100.0)]
    together = fit_prefixes(
        times, data, prefixes, weight=observed * 1e4, starts=whole.start(), blended=blended
    )
    excess = []
    for prefix, fit in zip(prefixes, together, strict=True):
        seen = (observed & prefix) * 1e4
        misfit = (pspl_delta_mag(times, fit.t0, fit.u0, fit.tE, fit.f_s) - data) ** 2
        torch.testing.assert_close((misfit * seen).sum(1), fit.chi2, rtol=1e-6, atol=1e-6)
        alone = fit_pspl(times, data, weight=seen, starts=whole.start(), blended=blended)
        excess.append((fit.chi2 + 0.1) / (alone.chi2 + 0.1) - 1)
    excess = torch.cat(excess)
    assert (excess < 1e-3).double().mean() > 0.95 and excess.max() < 0.1


def test_prefixes_without_a_start_are_searched():
    _, delta = curves("baseline", 3)
    times, data = torch.from_numpy(TIMES), torch.from_numpy(delta)
    (fit,) = fit_prefixes(times, data, [times < 200])
    assert (fit.chi2 <= fit_pspl(times, data).chi2 * (1 + 1e-6) + 1e-9).all()


def test_epochs_without_weight_may_hold_anything():
    _, delta = curves("baseline", 4)
    weight = (np.random.default_rng(1).random(delta.shape) > 0.3) * 100.0
    times = torch.from_numpy(TIMES)
    clean = fit_pspl(times, torch.from_numpy(delta), weight=torch.from_numpy(weight))
    spoiled = np.where(weight > 0, delta, np.nan)
    again = fit_pspl(times, torch.from_numpy(spoiled), weight=torch.from_numpy(weight))
    torch.testing.assert_close(again.chi2, clean.chi2)
    torch.testing.assert_close(again.t0, clean.t0)


def test_julian_dates_lose_nothing():
    _, delta = curves("baseline", 4)
    data = torch.from_numpy(delta)
    near = fit_pspl(torch.from_numpy(TIMES), data)
    far = fit_pspl(torch.from_numpy(TIMES + 2_457_000.0), data)
    torch.testing.assert_close(far.t0 - 2_457_000.0, near.t0, rtol=0, atol=1e-3)
    torch.testing.assert_close(far.chi2, near.chi2, rtol=1e-3, atol=1e-6)


def test_curves_on_their_own_epochs_fit_as_on_shared_ones():
    _, delta = curves("baseline", 3)
    times = torch.from_numpy(TIMES)
    shared = fit_pspl(times, torch.from_numpy(delta))
    own = fit_pspl(times.expand(3, -1), torch.from_numpy(delta))
    assert (shared.chi2 == own.chi2).all()
    np.testing.assert_array_equal(shared.delta_mag(times), own.delta_mag(times))


def test_no_start_at_all_is_refused():
    with pytest.raises(ValueError, match="`starts` is None"):
        fit_pspl(torch.from_numpy(TIMES), torch.zeros(1, 400), search=False)


def test_an_added_anomaly_costs_what_it_adds():
    """A binary with a vanishing companion is its own twin."""
    events, _ = curves("baseline", 4)
    tiny = np.stack([binary_magnification(replace(e, q=1e-8), TIMES) for e in events])
    fit = fit_pspl(torch.from_numpy(TIMES), torch.from_numpy(-2.5 * np.log10(tiny)))
    assert fit.chi2.max() < 0.01**2 * 0.1  # under 0.1 in delta-chi2 at 0.01 mag
