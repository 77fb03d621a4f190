"""Ideal observers: log-likelihood ratios of a pair, their expectation, and the test against them.

The ideal observer knows both noise-free curves of a pair and decides which one made the data: an
oracle bound. Its log-likelihood ratio is normal with mean -+D/2 and variance D for D = delta-chi2.
The refit-limited observer knows the binary, but has to fit the single lens to the data so far: a
profile likelihood ratio. Axes: n rows, T epochs, F fractions of the window, P pairs, B rows at a
time, L observed epochs.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr, ndtri
from torch import Tensor
from tqdm import tqdm

from lensml.evaluation import metrics
from lensml.lensing import pspl_delta_mag
from lensml.network import BIN, PackedCurves, observed_epochs, prior_fits, update_fits
from lensml.paths import InputError
from lensml.simulation import LightCurves, Survey, error_bars

__all__ = [
    "assert_below_ideal",
    "excess_over_ideal",
    "expected_ideal",
    "ideal_log_ratio",
    "ideal_probability",
    "ideal_recall",
    "largest_z",
    "llr_series",
    "noise_is_known",
    "partner_rows",
    "profile_llr_series",
    "until_fraction",
]

CHUNK = 1024  # rows held as float64 at a time
OUTLIER_WIDTH = 5.0  # of an outlier's noise, in sigma, as `survey.observe` draws it
REFIT_ROWS = 64  # whose prefixes are refitted together
PASSES = 2  # of a refit; after one, some rows are still on the way to the minimum


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
            "`time` differs within a pair, so its two noise-free curves have no common grid; "
            "the ideal observer needs one grid per pair"
        )
    own_clean = np.asarray(own.noise_free(), dtype=float)
    shift = np.asarray(own.m_base, dtype=float) - np.asarray(other.m_base, dtype=float)
    other_clean = np.asarray(other.noise_free(), dtype=float) + shift[:, None]
    binary_row = (np.asarray(own.y) == 1)[:, None]
    single = np.where(binary_row, other_clean, own_clean)
    return own, single, np.where(binary_row, own_clean, other_clean)


def noise_is_known(lightcurves: LightCurves) -> bool:
    """Whether the likelihood is exact: the set stores all parameters of its noise.

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
    outliers = (lightcurves.meta.get("survey") or {}).get("outlier_fraction", 0.0)
    if not outliers:
        return core
    wing = -0.5 * square / OUTLIER_WIDTH**2 - np.log(OUTLIER_WIDTH * sigma)
    return np.logaddexp(np.log1p(-outliers) + core, np.log(outliers) + wing)


def llr_terms(lightcurves: LightCurves) -> Iterator[tuple[NDArray, LightCurves, NDArray]]:
    """Terms of the log-likelihood ratio, binary over twin, of rows that have a partner.

    Yields:
        Row numbers (m,), these rows, and the term of each epoch (m, T), 0 where not observed.
    """
    partner = partner_rows(lightcurves)
    matched = np.flatnonzero(partner >= 0)
    for start in range(0, matched.size, CHUNK):
        rows = matched[start : start + CHUNK]
        own, single, binary = pair_curves(lightcurves, rows, partner)
        seen = np.isfinite(own.X)
        data = np.where(seen, own.X, single)
        term = log_density(data, own, binary) - log_density(data, own, single)
        yield rows, own, np.where(seen, term, 0.0)


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
    ratio = np.full((len(lightcurves), fractions.size), np.nan)
    for rows, own, term in llr_terms(lightcurves):
        times = own.times()
        for k, fraction in enumerate(fractions):
            ratio[rows, k] = np.sum(term, axis=1, where=until_fraction(times, fraction))
    return ratio if np.ndim(until) else ratio[:, 0]


def llr_series(curves: LightCurves) -> NDArray:
    """Log-likelihood ratio, binary over twin, up to each observed epoch, (n, T).

    NaN where nothing was observed and for rows without a partner; the last value of a row is
    `ideal_log_ratio`. By Ville's inequality at most a fraction 1/a of the twins ever exceeds ln a,
    so that ln 100 is a season's threshold for 1 % before anything is measured.

    Raises:
        InputError: If the set has no noise-free magnification.
    """
    ratio = np.full(curves.X.shape, np.nan)
    for rows, own, term in llr_terms(curves):
        ratio[rows] = np.where(np.isfinite(own.X), np.cumsum(term, axis=1), np.nan)
    return ratio


def ideal_probability(log_ratio: NDArray) -> NDArray:
    """P(binary) of the ideal observer, both classes equally likely beforehand."""
    return expit(log_ratio)


def ideal_recall(dchi2: ArrayLike, rate: float) -> NDArray:
    """Expected recall of one anomaly when its own twin passes at `rate`: Phi(sqrt(D) - z)."""
    return ndtr(np.sqrt(np.maximum(dchi2, 0)) + ndtri(rate))


def expected_ideal(dchi2: ArrayLike, *, max_pairs: int = 2000) -> dict[str, float]:
    """Scores the ideal observer expects over pairs of the given delta-chi2 (P,), noise averaged.

    Balanced accuracy, its ROC area, average precision (classes of equal size) and recall at pooled
    1 % and 0.1 % false positives. More than `max_pairs` are represented by their quantiles.
    """
    dchi2 = np.maximum(np.asarray(dchi2, dtype=float), 1e-12)
    root = np.sqrt(dchi2)
    balanced = float(np.mean(ndtr(root / 2)))
    if dchi2.size > max_pairs:
        root = np.quantile(root, (np.arange(max_pairs) + 0.5) / max_pairs)

    def passing(threshold: float, sign: int) -> float:
        """Fraction of binaries (+1) or singles (-1) above `threshold`."""
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
) -> dict[str, dict[str, float]]:
    """Network minus the realised ideal observer on the same rows, in bootstrap standard errors.

    Args:
        p: P(binary) of the network (n,).
        ideal: Log-likelihood ratio of the ideal observer (n,); rows of NaN are left out.
        y, pair: Class and pair of each row (n,).
        num, seed: Resamples of whole pairs.

    Returns:
        For `roc_auc`, `balanced_accuracy` and `recall` (at 1 % pooled false positives): `network`,
        `ideal`, `excess`, `standard_error` and `z`. A z above 3 is a leak.
    """
    p, ideal, y, pair = (np.asarray(a) for a in (p, ideal, y, pair))
    known = np.isfinite(ideal)
    p, ideal, y, pair = p[known], ideal[known], y[known], pair[known]
    sides = (p, p), (ideal, ideal_probability(ideal))
    names = {name: name for name in ("roc_auc", "balanced_accuracy")} | {"recall": "recall_at_1pct"}

    def both(i: NDArray | slice) -> list[list[float]]:
        """Statistics of network and ideal observer on rows `i`, by name."""
        columns = [(y[i], score[i], probability[i], None) for score, probability in sides]
        return [[metrics.STATISTICS[key](*c) for c in columns] for key in names.values()]

    samples = np.array([both(i) for i in metrics.cluster_bootstrap(pair, num, seed)])
    result = {}
    for k, (name, (network, best)) in enumerate(zip(names, both(slice(None)), strict=True)):
        excess = network - best
        error = float(np.nanstd(samples[:, k, 0] - samples[:, k, 1], ddof=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            z = 0.0 if excess == 0 else float(np.divide(excess, error))
        values = {"network": network, "ideal": best, "excess": excess}
        result[name] = values | {"standard_error": error, "z": z}
    return result


def largest_z(excess: Mapping[str, Mapping[str, float]]) -> float:
    """Largest of the excesses of `excess_over_ideal` in standard errors."""
    return max(row["z"] for row in excess.values())


def assert_below_ideal(z: Mapping[str, float], limit: float = 3.0) -> None:
    """Stop if a number lies above the realised ideal observer: that is a leak.

    Args:
        z: Excess of the network by name, in bootstrap standard errors (`excess_over_ideal`).
        limit: Standard errors allowed.

    Raises:
        AssertionError: Naming the first number above `limit`.
    """
    for name, excess in z.items():
        assert not excess > limit, (
            f"{name}: the network is {excess:.1f} standard errors above the ideal observer, a leak"
        )


def profile_llr_series(curves: LightCurves, *, progress: bool = False) -> NDArray:
    """Profile likelihood ratio: `llr_series` with each prefix's best single lens as twin, (n, T).

    It is `llr_series` less what a fit to the prefix gains over the twin, in half a chi-squared.
    Every BIN observed epochs the prefix is refitted to the data, begun where the last refit ended;
    an epoch between two refits takes, of both, the one that fits its own prefix better. NaN for
    rows with less than BIN epochs.

    Raises:
        InputError: If the set has no noise-free magnification.
    """
    ratio, partner = llr_series(curves), partner_rows(curves)
    matched = np.flatnonzero(partner >= 0)
    for start in tqdm(range(0, matched.size, REFIT_ROWS), "refit prefixes", disable=not progress):
        rows = matched[start : start + REFIT_ROWS]
        own, single, _ = pair_curves(curves, rows, partner)
        observed = observed_epochs(own.X, own.sigmas(), own.times(), own.m_base)
        twin = np.asarray(own.m_base, dtype=float)[:, None] - single
        twin = torch.as_tensor(twin).gather(1, observed.index)
        blended = torch.as_tensor(own.blended).expand(len(rows))
        gain = refit_gains(observed, twin, blended).numpy()
        row, column = np.nonzero(observed.valid.numpy())
        ratio[rows[row], observed.index.numpy()[row, column]] -= gain[row, column]
    return ratio


@torch.no_grad()
def refit_gains(observed: PackedCurves, twin: Tensor, blended: Tensor) -> Tensor:
    """Gain of the best single lens of each prefix over the twin, (B, L), in ln likelihood.

    Args:
        observed: Curves without gaps.
        twin: Brightening of the twin at their epochs, (B, L) float64 [mag].
        blended: Whether f_s may be less than 1, (B,).
    """
    times, bright = observed.times, observed.brightening.double()
    root = observed.valid / observed.sigma.double().clamp_min(1e-3)
    lengths = observed.valid.sum(1)
    of_twin = ((bright - twin) * root).square()
    gain = torch.full_like(twin, -torch.inf)
    theta = None
    for count in range(BIN, int(lengths.max()) + 1, BIN):
        alive = (lengths >= count).nonzero()[:, 0]
        epochs = [x[alive, :count] for x in (times, bright, root)]
        last = epochs[0][:, -1]
        # Refit the prefix of `count` epochs from where the previous refit ended.
        if theta is None:
            theta = prior_fits(len(lengths), last.new_zeros(len(lengths))).theta
            theta[alive, :, 0] += last[:, None]
        now = theta[alive]
        for _ in range(PASSES):
            now, _ = update_fits(now, epochs[0], -epochs[1], epochs[2], last, blended[alive])
        theta[alive] = now
        # Its gain up to the next refit, and back to the previous one.
        reach = slice(0, count + BIN - 1)
        near = slice(count - BIN, count + BIN - 1)
        of_fits = [chi2_terms(now[:, m], times, bright, root, alive, reach) for m in range(2)]
        saved = of_twin[alive, reach] - torch.stack(of_fits)
        total = 0.5 * torch.cumsum(saved, dim=2).amax(0)
        gain[alive, near] = torch.maximum(gain[alive, near], total[:, near])
    begun = torch.isfinite(gain)
    return torch.where(begun, gain.clamp_min(0.0), torch.nan)


def chi2_terms(theta: Tensor, times, bright, root, rows: Tensor, part: slice) -> Tensor:
    """Squared residuals of rows from fits `theta` (R, 4), in units of their errors."""
    t0, ln_u0, ln_tE, ln_f_s = theta.unbind(1)
    curve = -pspl_delta_mag(times[rows, part], t0, ln_u0.exp(), ln_tE.exp(), ln_f_s.exp())
    return ((bright[rows, part] - curve) * root[rows, part]).square()
