"""Report of one network on one set, with the ideal observer on the same rows (n,)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_fscore_support

from lensml.evaluation import alerts, metrics
from lensml.evaluation import early_detection as early
from lensml.evaluation import ideal_observer as limits
from lensml.evaluation.calibration import calibration_errors, ece
from lensml.network import Predictions
from lensml.simulation import FRACTIONS, LightCurves

REFITTED_PAIRS = 200  # binaries whose prefixes are refitted for a full report


def classification_report(y: ArrayLike, p: ArrayLike) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of "single" and "binary" at P = 0.5.

    A precision without any such call is NaN.
    """
    y, p = metrics.check_scores(y, p)
    parts = precision_recall_fscore_support(y, p > 0.5, labels=[0, 1], zero_division=np.nan)
    names = ("precision", "recall", "f1", "support")
    rows = zip(*(column.tolist() for column in parts), strict=True)
    rows = (dict(zip(names, row, strict=True)) for row in rows)
    return dict(zip(("single", "binary"), rows, strict=True))


def observer_scores(
    columns: Sequence[NDArray], pair: NDArray, *, num: int, seed: int, ideal: bool = False
) -> dict[str, Any]:
    """Every number of a full report of one observer, with `intervals` of its `STATISTICS`.

    Of the `ideal` observer the delta-chi2 at 50 % recall is the closed form `IDEAL_HALF`, and
    recall by delta-chi2 is left out: the rows of the network hold it as `ideal`.
    `columns`: class, ranking score, probability and delta-chi2 (NaN = unknown) of each row, (n,).
    """
    y, rank, p, dchi2 = columns
    known, options = np.isfinite(dchi2), {"num": num, "seed": seed}
    by_dchi2 = not ideal and 0 < (y[known] == 1).sum() < known.sum()
    names = [name for name in metrics.STATISTICS if by_dchi2 or name not in metrics.IDEAL_HALF]
    intervals = metrics.score_table(columns, pair, names, **options)
    intervals |= metrics.IDEAL_HALF if ideal else {}
    result = dict.fromkeys((*metrics.STATISTICS, "recall_by_dchi2"))
    result |= {name: row["value"] for name, row in intervals.items()} | {"intervals": intervals}
    result["confusion_matrix"] = metrics.confusion_matrix(y, p)
    result["classification_report"] = classification_report(y, p)
    result |= calibration_errors(y, p, pair, **options)
    if by_dchi2:
        result["recall_by_dchi2"] = {
            name: metrics.recall_by_dchi2(y[known], rank[known], dchi2[known], rate)
            for name, rate in (("recall_at_1pct", 0.01), ("recall_at_0.1pct", 0.001))
        }
    return result


def score_report(
    curves: LightCurves, p: NDArray, ideal: NDArray | None, *, num: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Full report of P(binary) of each row (n,), with the ideal observer's on the same rows.

    `ideal` is the log-likelihood ratio (n,), NaN = no partner. Without it the ideal observer is its
    expectation from `dchi2`, as far as that goes; what is not defined is None. Returns numbers of
    the network, `intervals`, `ideal_observer` and `bound_excess` (`excess_over_ideal`).
    """
    options = {"num": num, "seed": seed}
    y, dchi2, pair = curves.y, curves.dchi2, curves.pair
    result = observer_scores((y, p, p, dchi2), pair, **options)
    observer = dict.fromkeys(result) | {"kind": None, "exact": limits.noise_is_known(curves)}
    result["bound_excess"] = None
    binaries = dchi2[(y == 1) & np.isfinite(dchi2)]
    if ideal is not None and (known := np.isfinite(ideal)).any():
        columns = (y, ideal, limits.ideal_probability(ideal), dchi2)
        columns = [c[known] for c in columns]
        observer |= observer_scores(columns, pair[known], ideal=True, **options)
        observer["kind"] = "realised"
        result["bound_excess"] = limits.excess_over_ideal(p, ideal, y, pair, **options)
    elif binaries.size:
        half = {name: row["value"] for name, row in metrics.IDEAL_HALF.items()}
        observer |= limits.expected_ideal(binaries) | half | {"kind": "expected"}
    return result | {"ideal_observer": observer}


def scores_by_fraction(
    curves: LightCurves, p: NDArray, ideal: NDArray | None, *, num: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Scores at each of FRACTIONS with the ideal observer's of that prefix.

    `p` is P(binary) and `ideal` the log-likelihood ratio up to FRACTIONS, each (n, 7).
    """
    y, pair, of, options = curves.y, curves.pair, metrics.STATISTICS, {"num": num, "seed": seed}
    by_fraction = {}
    for k, name in enumerate(early.FRACTION_KEYS):
        columns = y, p[:, k], p[:, k], curves.dchi2
        row: dict[str, Any] = {"ece": ece(y, p[:, k], pair)}
        row |= metrics.score_table(columns, pair, ("balanced_accuracy", "roc_auc"), **options)
        row |= {key: of[key](*columns) for key in ("accuracy", "recall_at_1pct", "brier")}
        row |= dict.fromkeys(("ideal", "bound_excess", "refit_limited"))
        if ideal is not None and (known := np.isfinite(ideal[:, k])).any():
            ratio = ideal[known, k]
            best = y[known], ratio, limits.ideal_probability(ratio), curves.dchi2[known]
            names = ("balanced_accuracy", "roc_auc", "recall_at_1pct")
            row["ideal"] = {key: of[key](*best) for key in names}
            row["bound_excess"] = limits.excess_over_ideal(p[:, k], ideal[:, k], y, pair, **options)
        by_fraction[name] = row
    return by_fraction


def full_report(
    curves: LightCurves, predictions: Predictions, *, early_detection: bool = False,
    num_bootstrap: int = 200, seed: int = 0,
) -> tuple[dict[str, Any], NDArray | None]:  # fmt: skip
    """All numbers of `metrics.json` but provenance, of a set and `predict` on it.

    `early_detection` also refits prefixes (refit-limited bound, onset) and counts alerts. Returns
    the report, and the log-likelihood ratio of the ideal observer up to FRACTIONS (n, 7), None
    without noise-free pairs.
    """
    options = {"num": num_bootstrap, "seed": seed}
    paired = curves.magnification is not None and (curves.pair >= 0).any()
    ideal = limits.ideal_log_ratio(curves, FRACTIONS) if paired else None
    last = None if ideal is None else ideal[:, -1]
    result = score_report(curves, predictions.p[:, -1], last, **options)
    by_fraction = scores_by_fraction(curves, predictions.p, ideal, **options)
    result["alerts"] = None
    if early_detection:
        rows = curves.rows(slice(len(predictions.season)))
        onset = np.full(len(rows), np.nan)
        if paired:
            refits = early.refit_prefixes(rows, REFITTED_PAIRS)
            early.add_refit_limited(by_fraction, refits, curves)
            onset = early.onset_times(rows, refits)
        columns = predictions.season, rows.times(), rows.y, rows.pair, onset
        result["alerts"], _ = alerts.season_report(*columns, rate=0.01, **options)
    result["early_detection"] = by_fraction
    result["against_phase"] = early.scores_by_phase(curves.y, predictions.by_phase)
    return result, ideal
