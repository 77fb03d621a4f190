"""What nobody can beat: the ideal observer of a pair, expected and realised, and the bound test.

The ideal observer knows both noise-free curves of a pair and must say which one made the data. Its
log-likelihood ratio is normal with mean -+D/2 and variance D for D = delta-chi2. Axes: n rows, T
epochs, F fractions of the window, P pairs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri

from lensml.evaluation import metrics
from lensml.lensing import fit_prefixes
from lensml.paths import InputError
from lensml.simulation import FRACTIONS, LightCurves, Survey, error_bars

__all__ = [
    "excess_over_ideal",
    "completeness",
    "expected_ideal",
    "ideal_log_ratio",
    "ideal_probability",
    "ideal_recall",
    "noise_is_known",
    "partner_rows",
    "prefix_dchi2",
    "until_fraction",
]

CHUNK = 1024  # rows held as float64 at a time
OUTLIER_WIDTH = 5.0  # of an outlier's noise, in sigma, as `survey.observe` draws it


def until_fraction(times: NDArray, fraction: float) -> NDArray:
    """Epochs (n, T) no later than `fraction` of each row's window, first + f (last - first)."""
    first, last = times[..., :1], times[..., -1:]
    if fraction >= 1:  # first + (last - first) may round to less than last
        return np.ones(times.shape, dtype=bool)
    return times <= first + fraction * (last - first)


def partner_rows(lightcurves: LightCurves) -> NDArray:
    """Row of the other member of each row's pair, (n,); -1 where there is none.

    Raises:
        InputError: If two rows of one pair and class are not the same event.
    """
    pair, y = np.asarray(lightcurves.pair), np.asarray(lightcurves.y)
    partner = np.full(pair.size, -1)
    for label in (0, 1):
        rows = np.flatnonzero((y == label) & (pair >= 0))
        names, first = np.unique(pair[rows], return_index=True)
        here = rows[first[np.searchsorted(names, pair[rows])]]
        a, b = lightcurves.params[rows], lightcurves.params[here]
        if not np.array_equal(a, b, equal_nan=True):
            bad = pair[rows[np.argmin(np.all((a == b) | (np.isnan(a) & np.isnan(b)), axis=1))]]
            raise InputError(
                f"`pair` {bad} names two different events of class {label}; "
                "sets of different seeds must be evaluated one by one"
            )
        seek = np.flatnonzero((y == 1 - label) & np.isin(pair, names) & (pair >= 0))
        partner[seek] = rows[first[np.searchsorted(names, pair[seek])]]
    return partner


def pair_curves(
    lightcurves: LightCurves, rows: NDArray, partner: NDArray
) -> tuple[LightCurves, NDArray, NDArray]:
    """The rows and, at their epochs, the noise-free (single, binary) magnitudes, each (m, T)."""
    own, other = lightcurves.rows(rows), lightcurves.rows(partner[rows])
    if not np.array_equal(own.times(), other.times()):
        raise InputError(
            "`time` differs within a pair, so its two noise-free curves share no epochs; "
            "the ideal observer needs one grid per pair"
        )
    own_clean = np.asarray(own.noise_free(), dtype=float)
    shift = np.asarray(own.m_base, dtype=float) - np.asarray(other.m_base, dtype=float)
    other_clean = np.asarray(other.noise_free(), dtype=float) + shift[:, None]
    binary_row = (np.asarray(own.y) == 1)[:, None]
    single = np.where(binary_row, other_clean, own_clean)
    return own, single, np.where(binary_row, own_clean, other_clean)


def noise_is_known(lightcurves: LightCurves) -> bool:
    """Whether the likelihood below is the exact one: nothing of the noise is hidden from the set.

    A per-event factor on the true errors or an error of the adopted baseline is not stored.
    """
    survey = lightcurves.meta.get("survey") or {}
    hidden_scale = np.ptp(np.atleast_1d(survey.get("error_scale", 1.0))) > 0
    return not hidden_scale and not survey.get("baseline_error", 0.0)


def true_sigma(lightcurves: LightCurves, clean: NDArray) -> NDArray:
    """Standard deviation of the noise if `clean` (m, T) were the noise-free magnitudes, (m, T).

    The quoted error, unless the survey has photon noise: there the quoted error follows from the
    observed magnitude, but the noise was drawn at the noise-free one.
    """
    survey = lightcurves.meta.get("survey") or {}
    quoted = np.asarray(lightcurves.sigmas(), dtype=float)
    if survey.get("photon_noise"):
        observed = np.asarray(lightcurves.X, dtype=float) - lightcurves.m_base[:, None]
        level = np.sqrt(np.maximum(quoted**2 - 0.003**2, 0)) * 10 ** (-0.2 * observed.clip(-8, 3))
        level = np.nanmedian(np.where(np.isfinite(observed), level, np.nan), axis=1, keepdims=True)
        change = torch.from_numpy(clean - np.asarray(lightcurves.m_base, dtype=float)[:, None])
        model = Survey(photon_noise=True)
        quoted = error_bars(torch.from_numpy(np.nan_to_num(level)), change, model).numpy()
    scale = np.atleast_1d(survey.get("error_scale", 1.0))
    return quoted * (scale[0] if np.ptp(scale) == 0 else 1.0)


def log_density(data: NDArray, lightcurves: LightCurves, clean: NDArray) -> NDArray:
    """Log-density of each observed magnitude under one hypothesis, (m, T), less ln sqrt(2 pi)."""
    sigma = true_sigma(lightcurves, clean)
    square = ((data - clean) / sigma) ** 2
    core = -0.5 * square - np.log(sigma)
    share = (lightcurves.meta.get("survey") or {}).get("outlier_fraction", 0.0)
    if not share:
        return core
    wing = -0.5 * square / OUTLIER_WIDTH**2 - np.log(OUTLIER_WIDTH * sigma)
    return np.logaddexp(np.log1p(-share) + core, np.log(share) + wing)


def ideal_log_ratio(lightcurves: LightCurves, until: ArrayLike | None = None) -> NDArray:
    """Exact log-likelihood ratio, binary over single, of each row's own data.

    Where the error depends on the magnitude, each hypothesis has its own and the ln sigma terms
    count; outliers of the survey enter as the mixture they were drawn from.

    Args:
        lightcurves: Set with `magnification`; rows in any order, matched by `pair` and `y`.
        until: Fractions of the window (F,); only epochs up to each of them count.

    Returns:
        (n,), or (n, F) with `until`. NaN for rows whose partner is not in the set.

    Raises:
        InputError: If the set has no noise-free magnification.
    """
    fractions = np.atleast_1d(1.0 if until is None else np.asarray(until, dtype=float))
    partner = partner_rows(lightcurves)
    ratio = np.full((partner.size, fractions.size), np.nan)
    matched = np.flatnonzero(partner >= 0)
    for start in range(0, matched.size, CHUNK):
        rows = matched[start : start + CHUNK]
        own, single, binary = pair_curves(lightcurves, rows, partner)
        seen = np.isfinite(own.X)
        data = np.where(seen, own.X, single)
        term = log_density(data, own, binary) - log_density(data, own, single)
        term = np.where(seen, term, 0.0)
        times = own.times()
        for k, fraction in enumerate(fractions):
            ratio[rows, k] = np.sum(term, axis=1, where=until_fraction(times, fraction))
    return ratio if np.ndim(until) else ratio[:, 0]


def ideal_probability(log_ratio: NDArray) -> NDArray:
    """P(binary) of the ideal observer, both classes equally likely beforehand."""
    return expit(log_ratio)


def ideal_recall(dchi2: ArrayLike, rate: float) -> NDArray:
    """Expected recall of one anomaly when its own twin may pass at `rate`: Phi(sqrt(D) - z)."""
    return ndtr(np.sqrt(np.maximum(dchi2, 0)) + ndtri(rate))


def expected_ideal(dchi2: ArrayLike, *, max_pairs: int = 2000) -> dict[str, float]:
    """Values the ideal observer expects over pairs of the given delta-chi2 (P,), noise averaged.

    Balanced accuracy, its ROC area, average precision (classes of equal size) and recall at pooled
    1 % and 0.1 % false positives. More than `max_pairs` are represented by their quantiles.
    """
    dchi2 = np.maximum(np.asarray(dchi2, dtype=float), 1e-12)
    root = np.sqrt(dchi2)
    balanced = float(np.mean(ndtr(root / 2)))
    if dchi2.size > max_pairs:
        root = np.quantile(root, (np.arange(max_pairs) + 0.5) / max_pairs)

    def passing(threshold: float, sign: int) -> float:
        """Share of binaries (+1) or singles (-1) above `threshold`."""
        return float(np.mean(ndtr((sign * root**2 / 2 - threshold) / root)))

    top = root.max() ** 2 / 2 + 10 * root.max() + 1
    # Most thresholds of interest lie near zero; asinh spacing reaches the largest ones too.
    grid = np.sinh(np.linspace(np.arcsinh(top), -np.arcsinh(top), 1501))
    true, false = (np.array([passing(t, sign) for t in grid]) for sign in (1, -1))
    true, false = np.append(0, true), np.append(0, false)
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true > 0)
    result = {
        "balanced_accuracy": balanced,
        "roc_auc": float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2)),
        "average_precision": float(np.sum(np.diff(true) * (precision[1:] + precision[:-1]) / 2)),
    }
    for rate, name in ((0.01, "recall_at_1pct"), (0.001, "recall_at_0.1pct")):
        threshold = brentq(lambda t, r=rate: passing(t, -1) - r, -top, top)
        result[name] = passing(threshold, 1)
    return result


def excess_over_ideal(
    p: ArrayLike,
    ideal: ArrayLike,
    y: ArrayLike,
    pair: ArrayLike,
    *,
    num: int = 200,
    seed: int = 0,
    rate: float = 0.01,
) -> dict[str, dict[str, float]]:
    """Network minus the realised ideal observer on the same rows, in bootstrap standard errors.

    Args:
        p: P(binary) of the network (n,).
        ideal: Log-likelihood ratio of the ideal observer (n,); rows of NaN are left out.
        y, pair: Class and pair of each row (n,).
        num, seed: Resamples of whole pairs.
        rate: Pooled false-positive rate at which recalls are compared.

    Returns:
        For `roc_auc`, `balanced_accuracy` and `recall`: `network`, `ideal`, `excess`,
        `standard_error` and `z`. A z above 3 is a leak.
    """
    p, ideal, y, pair = (np.asarray(a) for a in (p, ideal, y, pair))
    known = np.isfinite(ideal)
    p, ideal, y, pair = p[known], ideal[known], y[known], pair[known]
    statistics = {
        "roc_auc": lambda y, score, _: metrics.roc_auc(y, score),
        "balanced_accuracy": lambda y, score, half: metrics.balanced_accuracy(y, score, half),
        "recall": lambda y, score, _: metrics.recall_at_fpr(y, score, rate),
    }
    samples = {name: [] for name in statistics}
    for i in metrics.cluster_bootstrap(pair, num, seed):
        for name, of in statistics.items():
            samples[name].append(of(y[i], p[i], 0.5) - of(y[i], ideal[i], 0.0))
    result = {}
    for name, of in statistics.items():
        network, best = of(y, p, 0.5), of(y, ideal, 0.0)
        error = float(np.nanstd(samples[name], ddof=1))
        excess = network - best
        with np.errstate(divide="ignore", invalid="ignore"):
            z = 0.0 if excess == 0 else float(np.divide(excess, error))
        result[name] = {
            "network": network,
            "ideal": best,
            "excess": excess,
            "standard_error": error,
            "z": z,
        }
    return result


def completeness(
    y: ArrayLike, p: ArrayLike, dchi2: ArrayLike, rate: float = 0.01, bins: int = 24
) -> dict[str, NDArray]:
    """Recall in bins of log delta-chi2, finer than the table, at the tables' thresholds.

    Returns:
        `dchi2` (geometric middle), `recall`, `low`, `high` (95 % Wilson), `count`; each (k,).
    """
    y, p = metrics.check_scores(y, p)
    dchi2 = np.asarray(dchi2, dtype=float)
    threshold, _ = metrics.bin_thresholds(y, p, dchi2, rate)
    rows = y & (dchi2 > 0)
    found, log_d = (p > threshold)[rows], np.clip(np.log10(dchi2[rows]), -1, 5)
    index = np.clip(((log_d + 1) / 6 * bins).astype(int), 0, bins - 1)
    # One bin a value: the interval of `reliability` is the one wanted here.
    r = metrics.reliability(found, (index + 0.5) / bins, bins)
    return {
        "dchi2": 10 ** (r["predicted"] * 6 - 1),
        "recall": r["observed"],
        "low": r["low"],
        "high": r["high"],
        "count": r["count"],
    }


def prefix_dchi2(
    lightcurves: LightCurves,
    fractions: Sequence[float] = FRACTIONS,
    *,
    device: str | None = None,
    chunk: int = 256,
) -> tuple[NDArray, NDArray]:
    """Delta-chi2 of each binary's prefix against the best single lens *of that prefix*.

    The twin is fitted to the whole curve, which no observer has yet: what can be told apart on a
    prefix is what remains after a fit to the prefix.

    Args:
        lightcurves: Matched set with `magnification`.
        fractions: Of the window, rising (F,).
        device: Where the fits run; CPU by default.
        chunk: Binaries fitted together.

    Returns:
        The row of each binary that has a twin, (P,), and its delta-chi2, (P, F).
    """
    partner = partner_rows(lightcurves)
    binaries = np.flatnonzero((np.asarray(lightcurves.y) == 1) & (partner >= 0))
    names = [str(name) for name in lightcurves.param_names]
    columns = [names.index(name) for name in ("t0", "u0", "tE", "f_s")]
    result = np.empty((binaries.size, len(fractions)))
    for start in range(0, binaries.size, chunk):
        rows = binaries[start : start + chunk]
        own, single, binary = pair_curves(lightcurves, rows, partner)
        twin = lightcurves.params[partner[rows]][:, columns]
        delta = binary - np.asarray(own.m_base, dtype=float)[:, None]
        weight = np.isfinite(own.X) / np.asarray(own.sigmas(), dtype=float) ** 2
        against_twin = weight * (binary - single) ** 2
        blended = bool((twin[:, 3] < 1).any())
        prefixes = [until_fraction(own.times(), fraction) for fraction in fractions]
        fits = fit_prefixes(
            torch.as_tensor(np.array(own.times()), device=device),
            torch.as_tensor(delta, device=device),
            [torch.as_tensor(prefix) for prefix in prefixes],
            weight=torch.as_tensor(weight, device=device),
            starts=torch.as_tensor(twin[:, None], device=device),
            blended=blended,
        )
        for k, (fit, prefix) in enumerate(zip(fits, prefixes, strict=True)):
            bound = (against_twin * prefix).sum(axis=1)
            result[start : start + chunk, k] = np.minimum(fit.chi2.cpu().numpy(), bound)
    return binaries, result
