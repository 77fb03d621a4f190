"""The fit of one observed light curve finds parameters and baseline of a blended single lens."""

import numpy as np
import pytest
from sets import blended_magnitude, blended_photometry

from lensml.lensing.free_baseline import fit_pspl_free_baseline
from lensml.photometry import baseline_magnitude, load_installed


@pytest.mark.parametrize("m_base", [18.3, 18.1])
def test_fit_finds_the_parameters_and_the_baseline_of_a_blended_single_lens(m_base):
    time, mag, mag_err = blended_photometry()
    fit = fit_pspl_free_baseline(time, mag, mag_err, m_base)
    assert fit.t0 == pytest.approx(2457170.3, abs=0.1)
    assert fit.m_base == pytest.approx(18.3, abs=0.005)
    assert (fit.u0, fit.tE, fit.f_s) == pytest.approx((0.2, 25.0, 0.6), rel=0.15)
    assert abs(fit.chi2_per_dof - 1) < 5 * np.sqrt(2 / len(time))
    clean = blended_magnitude(2457170.3, 0.2, 25.0, 0.6, 18.3, time)
    np.testing.assert_allclose(fit.magnitude(time), clean, atol=0.01)
    np.testing.assert_allclose(fit.residuals, (mag - fit.magnitude(time)) / mag_err)


def test_one_outlier_does_not_draw_the_fit_to_itself():
    time, mag, mag_err = blended_photometry()
    mag[30] -= 3.0
    mag_err[30] = 0.5  # a cloud: bright and uncertain
    assert fit_pspl_free_baseline(time, mag, mag_err, 18.3).t0 == pytest.approx(2457170.3, abs=0.3)


def test_fit_of_a_real_single_lens_is_near_the_one_with_parallax():
    """MulensModel's fit of the same data, parallax included: t0 = 2453630.39, tE = 93.65 d."""
    curve = load_installed("OGLE-2005-BLG-086")
    fit = fit_pspl_free_baseline(curve.time, curve.mag, curve.mag_err, baseline_magnitude(curve))
    assert fit.t0 == pytest.approx(2453630.39, abs=5)
    assert fit.tE == pytest.approx(93.65, rel=0.2)


def test_fit_needs_more_epochs_than_parameters():
    with pytest.raises(ValueError, match="`time` has 5 epochs; six or more are needed"):
        fit_pspl_free_baseline(*np.ones((3, 5)), 1.0)
