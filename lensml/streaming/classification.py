"""P(binary) along one light curve, whether its baseline holds, and when to alert."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lensml import network
from lensml.lensing import fit_pspl, pspl_delta_mag
from lensml.paths import InputError
from lensml.photometry import Event, Photometry, read_event
from lensml.streaming.thresholds import AlertThreshold, find_threshold

BRIGHTER, FAINTER = 1.0, 3.0  # a baseline against the median and the faintest epoch [mag]
QUIET, FEWEST_QUIET = 3.0, 10  # a baseline needs epochs so far from the peak [tE], so many
MOST_EPOCHS = 5000  # that check a baseline


@dataclass(frozen=True)
class SingleLensFit:
    """Blended single lens on a whole curve, baseline free; hindsight, so it only checks."""

    shape: torch.Tensor  # t0 [day], u0, tE [day], f_s
    m_base: float  # [mag]
    sigmas: float  # by which it is preferred to the baseline in use, errors scaled to the fit

    def magnitude(self, time: NDArray) -> NDArray:
        """Fitted magnitude at `time`, shape (m,) [mag]."""
        return self.m_base + pspl_delta_mag(torch.as_tensor(time), *self.shape[:, None])[0].numpy()

    def phase(self, time: NDArray) -> NDArray:
        """Time from the peak, (n,) [tE]."""
        return (time - self.shape[0].item()) / self.shape[2].item()


def fit_single_lens(curve: Photometry, m_base: float) -> SingleLensFit:
    """Fit at trial baselines, closer and closer around the best, and at `m_base` [mag]."""
    stride = -(-len(curve) // MOST_EPOCHS)
    time, mag, error = (x[::stride] for x in (curve.time, curve.mag, curve.mag_err))
    trials = np.append(np.quantile(mag, np.linspace(0.05, 1, 12)), mag.max() + [0.5, 1, 2, 4])
    for _ in range(3):
        rows = np.append(trials, m_base)
        weight = torch.as_tensor(error.clip(1e-6, 1e6) ** -2.0).expand(len(rows), -1)
        data = torch.as_tensor(mag - rows[:, None])
        fit = fit_pspl(torch.as_tensor(time - time[0]), data, weight=weight, blended=True)
        best = int(fit.chi2.argmin())
        near = np.searchsorted(trials, rows[best]) + [-1, 1]
        trials = np.linspace(*trials[near.clip(0, len(trials) - 1)], 16)
    shape = torch.stack([fit.t0[best] + time[0], fit.u0[best], fit.tE[best], fit.f_s[best]])
    scale = max(1.0, float(fit.chi2[best]) / max(1, len(time) - 5))
    sigmas = (float(fit.chi2[-1] - fit.chi2[best]) / scale) ** 0.5
    return SingleLensFit(shape, float(rows[best]), sigmas)


@dataclass(frozen=True)
class Classification:
    """One event with P(binary) at each epoch (n,) of `curve`, and the object of `--json`."""

    event: Event
    curve: Photometry  # of its data sets the one with most epochs
    p: NDArray
    answer: dict[str, Any]
    fit: SingleLensFit | None  # None with fewer than BASELINE_MIN epochs
    threshold: AlertThreshold | None = None

    def text(self) -> str:
        """Summary of a title and lines of a name and what belongs to it."""
        curve, answer, scale = self.curve, self.answer, self.curve.time_scale
        base, alert, threshold = answer["baseline"], answer["first_alert"], answer["threshold"]
        lines = [("read", self.event.summary().partition(": ")[2])]
        if len(self.event.datasets) > 1:
            lines += [("data set", f"{curve.name}, with most epochs, gives what follows")]
        if base["magnitude"] is not None:
            trust = "trusted" if base["trusted"] else "NOT TRUSTED, see below"
            lines += [("baseline", f"{base['magnitude']:.3f} mag, {base['source']}; {trust}")]
            when = "never" if alert is None else f"first at {scale} {alert:.3f}"
            if alert is not None and self.fit:
                when += f", {self.fit.phase(alert):+.2f} tE from the fitted peak,"
            what = f"{when} above {self.threshold.text()}" if threshold else "none is known"
            lines += [("threshold" if threshold is None else "alert", what)]
            if (prevalence := answer["prevalence"]) != 0.5:
                lines += [("prevalence", f"{prevalence:g} in what follows, not in the alert")]
            highest = ("highest", answer["p_binary_max"], answer["time_max"])
            for name, p, time in (highest, ("last", answer["p_binary"], curve.time[-1])):
                lines += [(name, f"P(binary) = {p:.3f} at {scale} {time:.3f}")]
        lines += [("WARNING", warning) for warning in answer["warnings"]]
        epochs = answer["epochs"]
        first, last = epochs[0]["time"], epochs[-1]["time"]
        span = f"{len(epochs)} epochs, {scale} {first:.3f} to {last:.3f}"
        return "\n".join([f"{self.event.name}: {span}", *(f"  {a:9} {b}" for a, b in lines)])


def classify_file(
    paths: Path | Sequence[Path],
    m_base: float | None = None,
    run: Path | None = None,
    columns: str | None = None,
    prevalence: float = 0.5,
    survey: str = "default",
) -> Classification:
    """One event, of a file, several or a folder, classified; `columns` as in `read_event`.

    Alerts compare P(binary) with the threshold of `survey` before it is shifted to `prevalence`.
    InputError if `m_base` [mag] cannot be its baseline.
    """
    event = read_event(paths, columns=columns)
    curve, model = event.datasets[0], network.load_network(run)[0]
    if m_base is not None:
        low, high = np.median(curve.mag) - BRIGHTER, curve.mag.max() + FAINTER
        why = f"expected {low:.1f} to {high:.1f} mag, from its median epoch less {BRIGHTER:g} to "
        why += f"its faintest plus {FAINTER:g}"
        if (count := len(event.datasets)) > 1 or curve.kind != "mag":
            why = f"{count} data sets of {curve.kind} came; expected one, of magnitudes"
        elif low <= m_base <= high:
            why = ""
        if why:
            raise InputError(
                f"--m_base {m_base:g} cannot be the baseline of {event.name}: {why}; leave it out "
                "if it is unknown"
            )
    name = str(paths if isinstance(paths, Path | str) else paths[0])
    options = name, m_base, model, find_threshold(run, survey), prevalence
    return combine([_classify(event, curve, options) for curve in event.datasets])


def combine(found: list[Classification]) -> Classification:
    """Data sets as one event: each epoch has the P of its own, the event that of the longest."""
    longest = max(found, key=lambda one: len(one.curve))
    epochs = [e | {"dataset": one.curve.name} for one in found for e in one.answer["epochs"]]
    if len(found) > 1:
        epochs.sort(key=lambda epoch: epoch["time"])
        longest.answer.update(n_epochs=len(epochs), epochs=epochs)
    sets = [{"name": one.curve.name, "n_epochs": len(one.curve)} for one in found]
    longest.answer["datasets"] = sets
    return longest


def _classify(event: Event, curve: Photometry, options: tuple) -> Classification:
    """One data set, classified on its own."""
    name, m_base, model, threshold, prevalence = options
    columns, least = (curve.time, curve.mag, curve.mag_err), network.BASELINE_MIN
    p = network.classify(*columns, m_base, model)
    enough, warnings = len(curve) >= least, []
    used = m_base if m_base is not None else float(network.causal_baseline(curve.mag)[-1])
    fit = fit_single_lens(curve, used) if enough else None
    baseline = {"magnitude": used, "source": "given", "trusted": True, "epochs": None}
    if m_base is None:
        epochs = min(len(curve), network.BASELINE_MAX)
        baseline |= {"source": f"median of the first {epochs} epochs", "epochs": epochs}
    if m_base is None and not enough:
        baseline |= {"magnitude": None, "source": "none", "trusted": False, "epochs": len(curve)}
        warnings += [f"no answer yet: fewer than {least} epochs, too few to estimate a baseline"]
    elif fit:
        quiet = int((np.abs(fit.phase(curve.time)) > QUIET).sum())
        off = abs(fit.m_base - used) > np.median(curve.mag_err) / 2 and fit.sigmas > 3
        why = f"a single lens fits the whole curve best with {fit.m_base:.3f} mag"
        if quiet < FEWEST_QUIET:
            off, why = m_base is None, f"{quiet} epochs lie {QUIET:g} tE or more from the peak"
        if off:
            baseline["trusted"] = False
            warnings += [f"the baseline is not trusted: {why}; give --m_base if it is known"]
    first = 0 if m_base is not None else least - 1  # of an answer
    above = first + np.flatnonzero(p[first:] > (threshold.value if threshold else np.inf))
    if above.size and p[-1] < 0.5:
        warnings += ["P fell below 0.5 after the alert: check the baseline and the residuals"]
    top = first + int(p[first:].argmax()) if len(p) > first else None
    p = network.prior_shift(p, prevalence)
    answer = {
        "file": name,
        "n_epochs": len(p),
        "p_binary": float(p[-1]),
        "p_binary_max": float(p[-1 if top is None else top]),
        "time_max": None if top is None else float(curve.time[top]),
        "first_alert": float(curve.time[above[0]]) if above.size else None,
        "threshold": threshold.value if threshold else None,
        "threshold_of": threshold and {k: v for k, v in asdict(threshold).items() if k != "value"},
        "prevalence": prevalence,
        "baseline": baseline,
        "warnings": warnings,
        "epochs": [{"time": t, "p_binary": x} for t, x in np.stack([curve.time, p], 1).tolist()],
    }
    return Classification(event, curve, p, answer, fit, threshold)
