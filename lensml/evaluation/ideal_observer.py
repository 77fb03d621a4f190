"""Ideal observers: log-likelihood ratios, their expectation, and the test against them.

The ideal observer knows both noise-free curves of a pair and decides which one made the data: an
oracle bound. Its log-likelihood ratio is normal with mean -+D/2 and variance D for D = delta-chi2.
The refit-limited observer knows the binary, but fits the single lens to the data so far. Axes: n
rows, T epochs, F fractions of the window, P pairs, B rows at a time, L observed epochs.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, ndtr
from torch import Tensor

from lensml.evaluation import metrics
from lensml.lensing import pspl_delta_mag
from lensml.network import BIN, PackedCurves, observed_epochs, prior_fits, update_fits
from lensml.paths import InputError, progress_bar
from lensml.simulation import LightCurves, Survey, error_bars, partner_rows, until_fraction

CHUNK = 1024  # rows held as float64 at a time
OUTLIER_WIDTH = 5.0  # of an outlier's noise, in sigma, as `survey.observe` draws it
REFIT_ROWS = 64  # whose prefixes are refitted together
ideal_probability = expit  # P(binary) of a log-likelihood ratio, classes equally likely
PASSES = 2  # of a refit; after one, some rows are still on the way to the minimum


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


@torch.no_grad()
def causal_refits(curves: LightCurves) -> NDArray:
    """Single-lens fits to the data of every prefix of BIN, 2 BIN, ... observed epochs.

    Each begins where the previous one ended. Returns t0 [day], ln u0, ln tE and ln f_s of both
    models of `update_fits`, (n, J, 2, 4); NaN where a row has fewer epochs.
    """
    num = int(np.isfinite(curves.X).sum(axis=1).max(initial=0)) // BIN
    result = np.full((len(curves), num, 2, 4), np.nan)
    for start in progress_bar(range(0, len(curves), REFIT_ROWS), "refit"):
        own = curves.rows(slice(start, start + REFIT_ROWS))
        observed = observed_epochs(own.X, own.sigmas(), own.times(), own.m_base)
        times, bright, root = weighted_epochs(observed)
        blended = torch.as_tensor(own.blended).expand(len(own))
        lengths, theta = observed.valid.sum(1), None
        for k in range(int(lengths.max()) // BIN):
            alive = (lengths >= (k + 1) * BIN).nonzero()[:, 0]
            epochs = [x[alive, : (k + 1) * BIN] for x in (times, bright, root)]
            last = epochs[0][:, -1]
            if theta is None:
                theta = prior_fits(len(own), last.new_zeros(len(own))).theta
                theta[alive, :, 0] += last[:, None]
            now = theta[alive]
            for _ in range(PASSES):
                now, _ = update_fits(now, epochs[0], -epochs[1], epochs[2], last, blended[alive])
            theta[alive] = now
            result[start + alive.numpy(), k] = now.numpy()
    return result


def weighted_epochs(observed: PackedCurves) -> tuple[Tensor, Tensor, Tensor]:
    """Times [day], brightening [mag] and 1 / sigma, 0 for pads, each (B, L) float64."""
    root = observed.valid / observed.sigma.double().clamp_min(1e-3)
    return observed.times, observed.brightening.double(), root


def profile_llr_series(curves: LightCurves, refits: NDArray | None = None) -> NDArray:
    """Profile likelihood ratio: `llr_series` with each prefix's best fit as twin, (n, T).

    `llr_series` less what a fit to the prefix gains over the twin, in half a chi-squared. Refits to
    the data come every BIN observed epochs (`causal_refits`); an epoch between two takes the one
    that fits its own prefix better. NaN for rows with less than BIN epochs.
    """
    ratio, refits = llr_series(curves), causal_refits(curves) if refits is None else refits
    for rows, own, _, single, _ in paired_rows(curves, REFIT_ROWS):
        observed = observed_epochs(own.X, own.sigmas(), own.times(), own.m_base)
        twin = np.asarray(own.m_base, dtype=float)[:, None] - single
        twin = torch.as_tensor(twin).gather(1, observed.index)
        gain = refit_gains(observed, twin, torch.from_numpy(refits[rows])).numpy()
        row, column = np.nonzero(observed.valid.numpy())
        ratio[rows[row], observed.index.numpy()[row, column]] -= gain[row, column]
    return ratio


def refit_gains(observed: PackedCurves, twin: Tensor, refits: Tensor) -> Tensor:
    """Gain of the best single lens of each prefix over the twin, (B, L), in ln likelihood.

    `twin` is the brightening of the twin at the epochs `observed`, (B, L) float64 [mag]; `refits`
    are `causal_refits` of these rows.
    """
    times, bright, root = weighted_epochs(observed)
    lengths = observed.valid.sum(1)
    of_twin = ((bright - twin) * root).square()
    gain = torch.full_like(twin, -torch.inf)
    for k in range(int(lengths.max()) // BIN):
        count = (k + 1) * BIN
        alive = (lengths >= count).nonzero()[:, 0]
        now = refits[alive, k]
        # The gain of this refit up to the next one, and back to the previous one.
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
