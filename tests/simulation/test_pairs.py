"""Pairs of a survey share all but noise; the twin is the best single lens in all data sets."""

import numpy as np
import pytest

from lensml.lensing import BinaryLens
from lensml.paths import InputError
from lensml.simulation import SURVEYS, pairs, quoted_sigma, schedule, survey_set
from lensml.simulation.pairs import _fit_twin, _point_lens


@pytest.mark.parametrize("name", SURVEYS)
def test_a_pair_has_one_plan_and_two_noises(name):
    for pair in survey_set(name, 2, 5):
        assert len(pair.binary) == len(pair.twin) == len(pair.plans)
        assert len(pair.twin_params) == 3 + len(pair.plans)
        for b, t, p in zip(pair.binary, pair.twin, pair.plans, strict=True):
            np.testing.assert_array_equal(b.times, t.times)
            np.testing.assert_array_equal(b.times, p.times)
            assert b.m_base == t.m_base and not np.array_equal(b.mag - b.truth, t.mag - t.truth)


def test_pairs_do_not_depend_on_their_number():
    one, more = survey_set("ogle", 1, 3), survey_set("ogle", 3, 3)
    np.testing.assert_array_equal(one[0].binary[0].mag, more[0].binary[0].mag)
    assert more[1].dchi2 != more[0].dchi2


def test_the_twin_of_a_single_lens_is_that_lens():
    event = BinaryLens(t0=3.0, u0=0.2, tE=25.0, rho=1e-3, s=1.0, q=1e-9, alpha=0.4)
    plans = schedule("follow_up", np.random.default_rng(1), 3.0, 25.0)
    epochs = np.unique(np.concatenate([p.times for p in plans]))
    curve = _point_lens(np.array([3.0, 0.2, np.log(25.0)]), epochs)
    best, f_s, dchi2 = _fit_twin(event, plans, epochs, curve)
    np.testing.assert_allclose(best, [3.0, 0.2, np.log(25.0)], rtol=1e-3)
    np.testing.assert_allclose(f_s, [p.f_s for p in plans], rtol=1e-2)
    assert dchi2 < 1e-3


def test_delta_chi2_is_what_separates_the_noise_free_curves():
    for pair in survey_set("kmtnet", 4, 11, "distinct"):
        total = sum(
            (((b.truth - t.truth) / quoted) ** 2).sum()
            for b, t, quoted in zip(pair.binary, pair.twin, noise_free_errors(pair), strict=True)
        )
        assert pair.dchi2 == pytest.approx(total, rel=1e-6)


def test_no_single_lens_near_the_twin_fits_better():
    generator = np.random.default_rng(2)
    for pair in survey_set("ogle", 6, 78, "distinct"):
        (plan,), (error,), p = pair.plans, noise_free_errors(pair), pair.twin_params
        for _ in range(40):
            size = 10 ** generator.uniform(-5, -2, 4)
            t0, u0, tE, f_s = p + size * generator.choice((-1, 1), 4) * [p[2], *p[1:]]
            magnification = _point_lens(np.array([t0, u0, np.log(tE)]), plan.times)
            curve = plan.m_base - 2.5 * np.log10(1 + min(f_s, 1.0) * (magnification - 1))
            chi2 = (((curve - pair.binary[0].truth) / error) ** 2).sum()
            assert chi2 > pair.dchi2 * (1 - 1e-4) - 1e-3


def test_an_event_on_which_the_solver_fails_is_drawn_anew(monkeypatch):
    calls = []

    def fails_once(event, times, **options):
        calls.append(event)
        if len(calls) == 1:
            raise RuntimeError("no convergence")
        return np.full(len(times), np.nan) if len(calls) == 2 else solver(event, times, **options)

    solver = pairs.binary_magnification
    monkeypatch.setattr(pairs, "binary_magnification", fails_once)
    (pair,) = survey_set("ogle", 1, 3)
    assert len({e.t0 for e in calls}) == len(calls) == 3 and np.isfinite(pair.dchi2)


def noise_free_errors(pair):
    return [quoted_sigma(p, b.truth) for p, b in zip(pair.plans, pair.binary, strict=True)]


def test_unknown_surveys_are_refused():
    with pytest.raises(InputError, match="one of ogle"):
        survey_set("hst", 1, 0)
