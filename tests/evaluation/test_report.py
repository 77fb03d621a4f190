"""Reports of one probability a row, with the ideal observer's."""

from dataclasses import replace

import numpy as np
from sets import toy_set

from lensml.evaluation import ideal_observer as limits
from lensml.evaluation.report import score_report


def test_delta_chi2_alone_gives_the_expected_ideal():
    curves = toy_set(30, seed=2)
    p = np.where(curves.y == 1, 0.7, 0.3)
    result = score_report(replace(curves, magnification=None), p, None, num=20)
    expected = limits.expected_ideal(curves.dchi2[curves.y == 1])
    assert result["ideal_observer"]["kind"] == "expected"
    assert result["ideal_observer"]["roc_auc"] == expected["roc_auc"]
