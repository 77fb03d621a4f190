"""Ideal observers: log-likelihood ratios, their expectation, and the test against them.

The ideal observer knows both noise-free curves of a pair and decides which one made the data: an
oracle bound. Its log-likelihood ratio is normal with mean -+D/2 and variance D for D = delta-chi2.
The refit-limited observer knows the binary, but fits the single lens to the data so far. Axes: n
rows, T epochs, F fractions of the window, P pairs, B rows at a time, L observed epochs.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr

from lensml.evaluation import metrics
from lensml.lensing import MAG, excess_magnification, refit
from lensml.network import STEP, DataSetEpochs, event_inputs, joint_epochs, refit_counts
from lensml.paths import InputError, available_cores, progress_bar
from lensml.simulation import LightCurves, Survey, error_bars, partner_rows, until_fraction

CHUNK = 1024  # rows held as float64 at a time
OUTLIER_WIDTH = 5.0  # of an outlier's noise, in sigma, as `survey.observe` draws it
ideal_probability = expit  # P(binary) of a log-likelihood ratio, classes equally likely


def paired_rows(
    lightcurves: LightCurves, chunk: int, chosen: NDArray | bool = True
) -> Iterator[tuple[NDArray, LightCurves, LightCurves, NDArray, NDArray]]:
    """Rows (m,) with a partner, `chunk` at a time, among the `chosen` (n,).

    Also yields these rows, their partners, and the noise-free magnitudes of their pair's single
    lens and of its binary, each (m, T).
    """
    partner = partner_rows(lightcurves)
    matched = np.flatnonzero((partner >= 0) & chosen)
    for start in progress_bar(range(0, matched.size, chunk), "pairs"):
        rows = matched[start : start + chunk]
        own, other = lightcurves.rows(rows), lightcurves.rows(partner[rows])
        if not np.array_equal(own.times(), other.times()):
            raise InputError(
                "`time` differs within a pair, so its two noise-free curves have no common grid; "
                "the ideal observer needs one grid per pair"
            )
        clean = np.asarray(own.noise_free(), dtype=float)
        shift = np.asarray(own.m_base, dtype=float) - np.asarray(other.m_base, dtype=float)
        partners = np.asarray(other.noise_free(), dtype=float) + shift[:, None]
        binary = (np.asarray(own.y) == 1)[:, None]
        both = np.where(binary, partners, clean), np.where(binary, clean, partners)
        yield rows, own, other, *both


def noise_is_known(lightcurves: LightCurves) -> bool:
    """Whether the likelihood is exact: no factor on an event's errors or baseline is hidden."""
    survey = lightcurves.meta.get("survey") or {}
    return not np.ptp(survey.get("error_scale", 1.0)) and not survey.get("baseline_error", 0.0)


def true_sigma(lightcurves: LightCurves, clean: NDArray) -> NDArray:
    """Standard deviation of the noise if `clean` were the noise-free magnitudes, (m, T).

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
    """Log-density of each magnitude (m, T) if `clean` made it, less ln sqrt(2 pi)."""
    sigma = true_sigma(lightcurves, clean)
    square = ((data - clean) / sigma) ** 2
    core = -0.5 * square - np.log(sigma)
    outliers = (lightcurves.meta.get("survey") or {}).get("outlier_fraction", 0.0)
    if not outliers:
        return core
    wing = -0.5 * square / OUTLIER_WIDTH**2 - np.log(OUTLIER_WIDTH * sigma)
    return np.logaddexp(np.log1p(-outliers) + core, np.log(outliers) + wing)


def llr_terms(lightcurves: LightCurves) -> Iterator[tuple[NDArray, LightCurves, NDArray]]:
    """Paired rows (m,) and their log-likelihood ratio by epoch (m, T), 0 if unobserved."""
    for rows, own, _, single, binary in paired_rows(lightcurves, CHUNK):
        seen = np.isfinite(own.X)
        data = np.where(seen, own.X, single)
        term = log_density(data, own, binary) - log_density(data, own, single)
        yield rows, own, np.where(seen, term, 0.0)


def ideal_log_ratio(lightcurves: LightCurves, until: ArrayLike | None = None) -> NDArray:
    """Exact log-likelihood ratio, binary over single, of each row's own data, (n,) or (n, F).

    Only epochs up to the fractions `until` (F,) of the window count. Where the error depends on the
    magnitude, each hypothesis has its own and the ln sigma terms count; outliers of the survey
    enter as the mixture they were drawn from. NaN for rows whose partner is not in the set.
    """
    fractions = np.atleast_1d(1.0 if until is None else np.asarray(until, dtype=float))
    ratio = np.full((len(lightcurves), fractions.size), np.nan)
    for rows, own, term in llr_terms(lightcurves):
        times = own.times()
        for k, fraction in enumerate(fractions):
            ratio[rows, k] = np.sum(term, axis=1, where=until_fraction(times, fraction))
    return ratio if np.ndim(until) else ratio[:, 0]


def llr_series(curves: LightCurves) -> NDArray:
    """Log-likelihood ratio, binary over twin, up to each observed epoch, (n, T); else NaN.

    By Ville's inequality at most a fraction 1/a of the twins ever exceeds ln a: ln 100 is a
    season's threshold for 1 % before anything is measured.
    """
    ratio = np.full(curves.X.shape, np.nan)
    for rows, own, term in llr_terms(curves):
        ratio[rows] = np.where(np.isfinite(own.X), np.cumsum(term, axis=1), np.nan)
    return ratio


def expected_ideal(dchi2: ArrayLike, *, max_pairs: int = 2000) -> dict[str, float]:
    """Expected scores of the ideal observer over pairs of the given delta-chi2 (P,).

    Balanced accuracy, ROC AUC, average precision (classes of equal size) and recall at pooled 1 %
    and 0.1 % false positives. More than `max_pairs` are represented by their quantiles.
    """
    root = np.sqrt(np.maximum(np.asarray(dchi2, dtype=float), 1e-12))
    balanced = float(np.mean(ndtr(root / 2)))
    if root.size > max_pairs:
        root = np.quantile(root, (np.arange(max_pairs) + 0.5) / max_pairs)

    def passing(threshold: float, sign: int) -> float:
        """Fraction of binaries (+1) or singles (-1) above `threshold`."""
        return float(np.mean(ndtr((sign * root**2 / 2 - threshold) / root)))

    top = root.max() ** 2 / 2 + 10 * root.max() + 1
    # Most thresholds of interest lie near zero; asinh spacing reaches the largest ones too.
    grid = np.sinh(np.linspace(np.arcsinh(top), -np.arcsinh(top), 1501))
    true, false = (np.array([0, *(passing(t, sign) for t in grid)]) for sign in (1, -1))
    precision = np.divide(true, true + false, out=np.ones_like(true), where=true > 0)
    result = {"balanced_accuracy": balanced}
    for name, y, x in (("roc_auc", true, false), ("average_precision", precision, true)):
        result[name] = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))  # trapezoids
    for rate, name in ((0.01, "recall_at_1pct"), (0.001, "recall_at_0.1pct")):
        threshold = brentq(lambda t, r=rate: passing(t, -1) - r, -top, top)
        result[name] = passing(threshold, 1)
    return result


def excess_over_ideal(
    p: ArrayLike, ideal: ArrayLike, y: ArrayLike, pair: ArrayLike, *, num: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Network minus the realised ideal observer on the same rows, in standard errors.

    Of P(binary) and the log-likelihood ratio `ideal` (n,), whose rows of NaN are left out: for
    `roc_auc`, `balanced_accuracy` and `recall` (at 1 % pooled false positives) `network`, `ideal`,
    `excess`, `standard_error` over pairs, and `z`. A z above 3 is a leak.
    """
    known = np.isfinite(ideal)
    p, ideal, y, pair = (np.asarray(column)[known] for column in (p, ideal, y, pair))
    probability, result = ideal_probability(ideal), {}
    for key in ("roc_auc", "balanced_accuracy", "recall_at_1pct"):

        def both(i: NDArray | slice, of=metrics.STATISTICS[key]) -> tuple[float, float]:
            """Statistic of network and ideal observer on rows `i`."""
            return of(y[i], p[i], p[i], None), of(y[i], ideal[i], probability[i], None)

        network, best = both(slice(None))
        samples = np.array([both(i) for i in metrics.cluster_bootstrap(pair, num, seed)])
        excess, error = network - best, float(np.nanstd(samples[:, 0] - samples[:, 1], ddof=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = 0.0 if excess == 0 else float(np.divide(excess, error))
        values = {"network": network, "ideal": best, "excess": excess, "standard_error": error}
        result[key.removesuffix("_at_1pct")] = values | {"z": z}
    return result


def assert_below_ideal(z: Mapping[str, float], limit: float = 3.0) -> None:
    """Stop if a network lies above the realised ideal observer: that is a leak.

    `z` is its excess by name, in bootstrap standard errors (`excess_over_ideal`).
    """
    for name, excess in z.items():
        assert not excess > limit, (
            f"{name}: the network is {excess:.1f} standard errors above the ideal observer, a leak"
        )


def exact_epochs(curves: LightCurves, row: int) -> tuple[NDArray, DataSetEpochs]:
    """Places (N,) of the observed epochs of a row, and these, their baseline at zero."""
    on = np.flatnonzero(np.isfinite(curves.X[row]))
    delta = curves.X[row, on].astype(float) - float(curves.m_base[row])
    return on, DataSetEpochs(curves.times()[row, on], delta, curves.sigmas()[row, on], 0.0, True)


def causal_refits(curves: LightCurves) -> NDArray:
    """Single-lens fits to the data of every prefix of `refit_counts`, baselines known.

    Each begins where the previous one ended. Returns t0 [day], ln u0, ln tE and ln f_s of both
    models (all flux lensed, f_s free), (n, J, 2, 4); NaN where a row has fewer epochs.
    """
    num = len(refit_counts(int(np.isfinite(curves.X).sum(axis=1).max(initial=0))))
    result = np.full((len(curves), num, 2, 4), np.nan)

    def refit_row(row: int) -> None:
        on, epochs = exact_epochs(curves, row)
        if len(on) >= STEP:
            fits = event_inputs(joint_epochs([epochs]), curves.blended, no_maps).fits
            _refit_again(fits, epochs, curves.blended)
            result[row, : len(fits)] = fits[..., :4]

    no_maps = np.zeros(num, dtype=bool)
    with ThreadPoolExecutor(available_cores()) as pool:
        list(progress_bar(pool.map(refit_row, range(len(curves))), "refit", total=len(curves)))
    return result


def _refit_again(fits: NDArray, epochs: DataSetEpochs, free: bool) -> None:
    """A second refit of each prefix in place: after one, some are on the way to the minimum."""
    bright, zero = -epochs.mag, np.zeros(1)
    columns = epochs.times, np.exp(bright / MAG), bright, 1.0 / epochs.sigma
    covariances, low = np.zeros((2, 1, 15)), np.zeros(1, dtype=np.int64)
    for fit, count in zip(fits, refit_counts(len(bright)), strict=True):
        last, high = epochs.times[count - 1], np.array([count])
        refit(fit, covariances, last, zero, zero, free, *columns, low, high)


def profile_llr_series(curves: LightCurves, refits: NDArray | None = None) -> NDArray:
    """Profile likelihood ratio: `llr_series` with each prefix's best fit as twin, (n, T).

    `llr_series` less what a fit to the prefix gains over the twin, in half a chi-squared. Refits to
    the data come as `causal_refits`; an epoch between two takes the one that fits its own prefix
    better. NaN for rows with fewer epochs than the first refit has.
    """
    ratio, refits = llr_series(curves), causal_refits(curves) if refits is None else refits
    for rows, own, _, single, _ in paired_rows(curves, CHUNK):
        twin = single - np.asarray(own.m_base, dtype=float)[:, None]

        def reduce(place: int, rows=rows, own=own, twin=twin) -> None:
            on, epochs = exact_epochs(own, place)
            ratio[rows[place], on] -= refit_gains(epochs, twin[place, on], refits[rows[place]])

        with ThreadPoolExecutor(available_cores()) as pool:
            list(pool.map(reduce, range(len(own))))
    return ratio


def refit_gains(epochs: DataSetEpochs, twin: NDArray, refits: NDArray) -> NDArray:
    """Gain of the best single lens of each prefix over the twin, (N,), in ln likelihood.

    `twin` (N,) is the twin's magnitude less the baseline; `refits` are `causal_refits` (J, 2, 4).
    """
    counts = refit_counts(len(epochs.times))
    fits = refits[: len(counts), ..., None]
    t0, ln_u0, ln_tE, ln_f_s = (fits[:, :, k] for k in range(4))
    x = np.exp(2 * ln_u0) + ((epochs.times - t0) * np.exp(-ln_tE)) ** 2
    excess = excess_magnification(torch.from_numpy(x)).numpy()
    curve = -MAG * np.log1p(np.exp(ln_f_s) * excess)
    of_fits = ((epochs.mag - curve) / epochs.sigma) ** 2
    of_twin = ((epochs.mag - twin) / epochs.sigma) ** 2
    total = 0.5 * np.cumsum(of_twin - of_fits, axis=2).max(axis=1)
    gain = np.full(len(twin), -np.inf)
    # Of each refit up to the next one, and back to the previous one.
    for k, row in enumerate(total):
        near = slice(counts[k - 1] if k else 0, counts[k + 1] - 1 if k + 1 < len(counts) else None)
        gain[near] = np.maximum(gain[near], row[near])
    return np.where(np.isfinite(gain), np.maximum(gain, 0.0), np.nan)
