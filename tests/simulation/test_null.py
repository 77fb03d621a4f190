"""A companion without mass leaves nothing to see."""

import numpy as np

from lensml.simulation.null import null_pairs


def test_massless_companions_differ_from_their_twins_by_nothing_measurable():
    curves = null_pairs(8, seed=3)
    assert curves.dchi2.max() < 0.01
    binary = curves.rows(slice(1, None, 2))
    assert (binary.param("u0") > 5 * binary.param("rho")).all()
    assert (binary.param("q") == 1e-8).all()


def test_a_null_pair_is_the_same_in_any_set_and_its_rows_are_observed_apart():
    few, more = null_pairs(2, seed=3), null_pairs(5, seed=3)
    np.testing.assert_array_equal(few.X, more.X[:4])
    np.testing.assert_array_equal(few.pair, [0, 0, 1, 1])
    residual = few.X - few.noise_free()
    both = np.isfinite(residual[0]) & np.isfinite(residual[1])
    assert not np.array_equal(np.isfinite(few.X[0]), np.isfinite(few.X[1]))
    assert abs(np.corrcoef(residual[0, both], residual[1, both])[0, 1]) < 0.15
    assert abs(np.nanstd(residual) - 0.1) < 0.005
