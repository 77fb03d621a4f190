"""Measure the noise of real light curves: the table that `lensml.simulation.noise` draws from.

    python -m benchmarks.studies.noise FOLDER [--figures DIR] [--check]

FOLDER holds light curves and a `catalogue.csv`. Read are the single lenses of one observatory's
archives, label quality B and C, that `noise_third` sets aside for this: a third by hash of the
name; the others only measure. Each is fitted by a single lens with a blend and a robust loss; the
residuals, in units of the quoted errors, are modelled as a Gaussian process (white noise, a term a
night, an hour-angle term, red noise with its time-scale, a slow drift), whose amplitudes are
estimated by maximum a posteriori with log-normal priors a factor of four wide. The same steps on
white noise at the same epochs give what the priors and the fit alone leave: its quantiles are taken
off in quadrature. Quantiles over the curves, by class of the median error, go to
`lensml/simulation/noise.json`; no photometry does. `--check` measures what `sky_noise` draws, too.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import least_squares, minimize
from tqdm import tqdm

from lensml.paths import ROOT, atomic_path
from lensml.simulation import noise_third, sky_noise

TABLE = ROOT / "lensml" / "simulation" / "noise.json"
ARCHIVES = ("OGLE-II", "OGLE-IV")
MAX_EPOCHS, MIN_EPOCHS = 800, 60  # the last ones; a covariance matrix costs the cube
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SIGMA_EDGES = (0.02, 0.06)  # classes of the median quoted error [mag]
NAMES = ("error_factor", "night", "hour_angle", "red", "red_time", "drift")
# Means and standard deviations of the natural logarithms: prior of each of NAMES.
PRIOR = np.array([(0.2, 0.5), (-1.2, 1.4), (-1.6, 1.4), (-1.2, 1.4), (0.5, 2.0), (-1.2, 1.4)])
DRIFT_TIME = 100.0  # of the exponential covariance of the slow term [day]
FAINT, BRIGHT = 0.1, 0.5  # brightening below and above which scatter is compared [mag]
LAGS = np.array([0.0, 0.08, 0.5, 1.5, 4, 10, 30, 90, 250])  # bins of the autocorrelation [day]


def read(folder: Path) -> dict[str, tuple[NDArray, dict]]:
    """Times, magnitudes, errors (n, 3) and catalogue row of each curve that may be used."""
    curves = {}
    with (folder / "catalogue.csv").open() as file:
        for row in csv.DictReader(file):
            if row["class"] != "PSPL" or row["label_quality"] not in "BC":
                continue
            if row["observatory"] not in ARCHIVES or not noise_third(row["event"]):
                continue
            data = np.genfromtxt(folder / row["file"], delimiter=",", skip_header=1)
            data = data[np.isfinite(data).all(axis=1) & (data[:, 2] > 0)]
            if len(data) >= MIN_EPOCHS:
                curves[row["event"]] = data[np.argsort(data[:, 0])], row
    return curves


def single_lens(times, mag, sigma, row) -> tuple[NDArray, NDArray]:
    """Parameters (t0, u0, ln tE, baseline, logit f_s) and curve (n,) of a robust PSPL fit."""

    def curve(p):
        u = np.hypot(p[1], (times - p[0]) / np.exp(p[2]))
        excess = (u**2 + 2) / (u * np.sqrt(u**2 + 4)) - 1
        return p[3] - 2.5 * np.log10(1 + excess / (1 + np.exp(-p[4])))

    t0, tE, u0 = float(row["t0"]), float(row["tE"]), float(row["u0"])
    far = abs(times - t0) > 2 * tE
    base = np.median(mag[far]) if far.sum() > 5 else np.quantile(mag, 0.8)
    fits = []
    for u in (np.clip(u0, 0.01, 1.5), 0.05, 0.3, 0.8):
        for logit in (3.0, -1.0):
            start = [t0, u, np.clip(np.log(tE), 0.1, 6.4), base, logit]
            options = {"loss": "soft_l1", "x_scale": [tE / 5, 0.1, 0.3, 0.05, 2], "max_nfev": 200}
            bounds = [-np.inf, 1e-5, 0, -np.inf, -6], [np.inf, 3, 6.5, np.inf, 8]
            options["bounds"] = bounds
            fits.append(least_squares(lambda p: (mag - curve(p)) / sigma, start, **options))
    best = min(fits, key=lambda fit: fit.cost)
    return best.x, curve(best.x)


def kernels(times: NDArray) -> list[NDArray]:
    """Covariances (n, n) of unit amplitude that hold no free time: night, hour angle, drift."""
    lag = abs(times[:, None] - times)
    night = np.floor(times - 0.3)  # Chile: no night has this hour in it
    turn = 2 * np.pi * 1.0027379 * lag  # sidereal
    return [(night[:, None] == night).astype(float), np.cos(turn), np.exp(-lag / DRIFT_TIME), lag]


def amplitudes(times: NDArray, z: NDArray) -> dict[str, float]:
    """NAMES of residuals `z` (n,) in units of the quoted errors; the time in days."""
    night, hour, drift, lag = kernels(times)
    identity = np.eye(len(times))

    def objective(p):
        k, a, b, c, tau, d = np.exp(p)
        cov = k**2 * identity + a**2 * night + b**2 * hour + d**2 * drift
        cov += c**2 * np.exp(-lag / tau)
        factor = cholesky(cov, lower=True, check_finite=False)
        chi2 = z @ cho_solve((factor, True), z, check_finite=False)
        prior = (((p - PRIOR[:, 0]) / PRIOR[:, 1]) ** 2).sum()
        return 0.5 * (chi2 + prior) + np.log(factor.diagonal()).sum()

    options = {"maxfev": 260, "xatol": 0.05, "fatol": 0.05}
    found = minimize(objective, PRIOR[:, 0], method="Nelder-Mead", options=options)
    return dict(zip(NAMES, np.exp(found.x).tolist(), strict=True))


def autocorrelation(times: NDArray, z: NDArray) -> NDArray:
    """Mean product of pairs in bins of LAGS over the robust variance; NaN without 20 pairs."""
    i, j = np.triu_indices(len(times), 1)
    lag, product = abs(times[i] - times[j]), z[i] * z[j]
    place = np.digitize(lag, LAGS) - 1
    found = np.full(len(LAGS) - 1, np.nan)
    for b in range(len(found)):
        if (here := place == b).sum() >= 20:
            found[b] = product[here].mean()
    return found / (z**2).mean()


def season_ratios(times: NDArray, z: NDArray) -> list[float]:
    """Scatter of each season of 25 epochs or more over that of all, robust."""
    edges = np.flatnonzero(np.diff(times) > 60) + 1
    parts = [p for p in np.split(z, edges) if len(p) >= 25]
    spread = [1.4826 * np.median(abs(p - np.median(p))) for p in parts]
    return (np.array(spread) / np.median(spread)).tolist() if len(spread) > 2 else []


def bright_scatter(z: NDArray, brightening: NDArray) -> float:
    """Scatter of the epochs near the peak over that of the faint ones; NaN below 6 and 10."""
    faint, bright = z[brightening < FAINT], z[brightening > BRIGHT]
    if len(faint) < 10 or len(bright) < 6:
        return np.nan
    return float(np.median(abs(bright)) / np.median(abs(faint)))


def measure(times: NDArray, mag: NDArray, sigma: NDArray, row: dict) -> dict:
    """Everything that is read off one curve."""
    fit, curve = single_lens(times, mag, sigma, row)
    z = (mag - curve) / sigma
    width = 1.4826 * np.median(abs(z - np.median(z)))
    quiet = abs(times - fit[0]) > 3 * np.exp(fit[2])
    out = abs(z) > 4 * width
    kept = np.flatnonzero(~out)[-MAX_EPOCHS:]
    return amplitudes(times[kept], z[kept]) | {
        "sigma": float(np.median(sigma[quiet] if quiet.sum() > 20 else sigma)),
        "epochs": len(times),
        "bright": bright_scatter(z, fit[3] - curve),
        "a_night": len(kept) / len(np.unique(np.floor(times[kept] - 0.3))),
        "outliers": float(out.mean()),
        "sizes": (z[out] / width).tolist(),
        "quiet": float(np.std(z[quiet & ~out])) if quiet.sum() > 20 else np.nan,
        "lensed": float(np.std(z[~quiet & ~out])) if (~quiet).sum() > 20 else np.nan,
        "seasons": season_ratios(times, z),
        "correlation": autocorrelation(times[kept], z[kept]),
        "z": z,
    }


def table(found: list[dict], control: list[dict]) -> dict:
    """Quantiles over the curves by class of their error, net of `control`, white noise."""
    place = np.digitize([f["sigma"] for f in found], SIGMA_EDGES)
    classes = [[f for f, p in zip(found, place, strict=True) if p == k] for k in range(3)]
    quantiles, floors = {}, {}
    for name in NAMES:
        floors[name] = np.quantile([f[name] for f in control], LEVELS)
        raw = np.array([np.quantile([f[name] for f in part], LEVELS) for part in classes])
        if name == "error_factor":
            raw = raw / floors[name][2]
        elif name != "red_time":  # at least a fifth is left: an estimate of zero has no logarithm
            net = np.sqrt(np.maximum(raw**2 - floors[name] ** 2, (0.2 * raw) ** 2))
            raw = np.sort(net, axis=1)
        quantiles[name] = raw.round(4).tolist()
    ratios = np.concatenate([f["seasons"] for f in found])
    sizes = np.abs(np.concatenate([f["sizes"] for f in found]))
    return {
        "what": "noise of real single lenses: quantiles over curves, by median quoted error",
        "curves": [len(part) for part in classes],
        "epochs": int(sum(f["epochs"] for f in found)),
        "sigma_edges": SIGMA_EDGES,
        "levels": LEVELS,
        "units": "of the quoted error; red_time in days",
        **quantiles,
        "white_noise": {name: floors[name].round(4).tolist() for name in NAMES},
        "outlier_fraction": float(np.mean(np.concatenate([[f["outliers"]] for f in found]))),
        "curves_with_outliers": float(np.mean([f["outliers"] > 0 for f in found])),
        "bright": np.nanquantile([f["bright"] for f in found], LEVELS).round(3).tolist(),
        "bright_white": np.nanquantile([f["bright"] for f in control], LEVELS).round(3).tolist(),
        "outlier_size": np.quantile(sizes, LEVELS).round(2).tolist(),
        "season_scatter": np.quantile(ratios, LEVELS).round(3).tolist(),
    }


def draw(found: list[dict], checks: dict[str, list[dict]]) -> plt.Figure:
    """Amplitudes over quoted error against it, and autocorrelation against lag."""
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), layout="constrained")
    for axis, name in zip(axes.flat, [*NAMES, "outliers"], strict=False):
        for label, mark, part in [("real", "o", found), *((k, "x", v) for k, v in checks.items())]:
            x, y = ([f[key] for f in part] for key in ("sigma", name))
            axis.plot(x, y, mark, ms=4, alpha=0.6, label=label)
        axis.set(xscale="log", xlabel="median quoted error [mag]", ylabel=name.replace("_", " "))
        if name != "outliers":
            axis.set_yscale("log")
    axis = axes.flat[-1]
    middle = np.sqrt(np.maximum(LAGS[:-1], 0.03) * LAGS[1:])
    for label, part in {"real": found, **checks}.items():
        values = np.stack([f["correlation"] for f in part])
        count = np.isfinite(values).sum(axis=0)
        error = np.nanstd(values, axis=0) / np.sqrt(count)
        axis.errorbar(middle, np.nanmean(values, axis=0), error, fmt="o-", ms=4, label=label)
    axis.set(xscale="log", xlabel="lag [day]", ylabel="autocorrelation of residuals")
    axis.axhline(0, color="grey", lw=0.5)
    axis.legend()
    return figure


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="light curves and their catalogue.csv")
    parser.add_argument("--figures", type=Path, help="where to draw")
    parser.add_argument("--check", action="store_true", help="measure simulated noise, too")
    options = parser.parse_args(arguments)
    curves = read(options.folder)
    found = [measure(*data.T, row) for data, row in tqdm(curves.values(), "real")]
    checks = {}
    for label in ("white", "drawn") if options.check else ("white",):
        generator = np.random.default_rng(1)
        checks[label] = []
        for data, row in tqdm(curves.values(), label):
            times, mag, sigma = data.T
            offset = sigma * generator.standard_normal(len(times))
            if label == "drawn":
                noise = sky_noise(generator, times, sigma)
                offset = noise.systematic + noise.scale * offset
            truth = single_lens(times, mag, sigma, row)[1]
            checks[label].append(measure(times, truth + offset, sigma, row))
        if label == "white":
            with atomic_path(TABLE) as temporary:
                temporary.write_text(json.dumps(table(found, checks[label]), indent=1) + "\n")
    for label, part in {"real": found, **checks}.items():
        print(label, {k: np.quantile([f[k] for f in part], LEVELS).round(3) for k in NAMES})
        for key in ("quiet", "lensed", "bright", "outliers"):
            print("  ", key, np.nanquantile([f[key] for f in part], LEVELS).round(3))
        print("   correlation", np.nanmean([f["correlation"] for f in part], axis=0).round(3))
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        draw(found, checks).savefig(options.figures / "noise.svg")
        draw(found, checks).savefig(options.figures / "noise.png", dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())
