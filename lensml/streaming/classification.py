"""Classes along one event, its baselines, when to alert, what to distrust."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lensml import network as net
from lensml.lensing import MAG
from lensml.network import CLASSES, STEP, DataSetEpochs, EventPrediction, predict_event
from lensml.paths import InputError
from lensml.photometry import Event, Photometry, read_event
from lensml.streaming.thresholds import AlertThreshold, find_threshold

BRIGHTER, FAINTER = 1.0, 3.0  # a given baseline against the median and the faintest epoch [mag]
TRUSTED = 0.1  # error up to which a fitted baseline is trusted [mag]
GIVEN_OFF = 0.2  # from which a given baseline is doubted [mag]
LONGEST_PAUSE = 3650.0  # between data sets; a longer one may be another time zero [day]
BLOCK = 8192  # epochs that are written together
PENALTY = 2.0  # of an epoch in the search for an anomaly: chi-squared above it counts


@dataclass(frozen=True)
class DataSetFit:
    """One data set and the single lens that fits all data sets of the event together."""

    curve: Photometry
    m_base: float  # fitted [mag]
    error: float  # of it [mag]
    f_s: float
    error_factor: float  # scatter between neighbours over quoted errors


@dataclass(frozen=True)
class Classification:
    """An event with P(binary) at each epoch (N,) in order of time."""

    event: Event
    found: EventPrediction
    p: NDArray
    overall: dict[str, Any]  # `answer` without what belongs to each epoch
    fits: list[DataSetFit]  # in the order of `found`; empty before the first refit
    threshold: AlertThreshold | None = None

    @cached_property
    def answer(self) -> dict[str, Any]:
        """The object of `--json`."""
        return json.loads("".join(self.json()))

    def json(self) -> Iterator[str]:
        """Parts of the text of `--json`: objects of 1e6 epochs would take 350 MB at once."""
        yield json.dumps(self.overall)[:-1] + ', "epochs": ['
        names, found = [row["name"] for row in self.overall["datasets"]], self.found
        for first in range(0, len(self.p), BLOCK):
            some = (x[first : first + BLOCK].tolist() for x in (found.times, self.p, found.dataset))
            rows = zip(*some, strict=True)
            rows = [{"time": t, "p_binary": x, "dataset": names[k]} for t, x, k in rows]
            yield ", "[: 2 * first] + json.dumps(rows)[1:-1]
        yield "]}\n"

    @property
    def shape(self) -> NDArray:
        """t0 [day], u0 and tE [day] of the fit to all epochs."""
        t0, ln_u0, ln_tE = self.found.inputs.fits[-1][1][:3]
        return np.array([t0, np.exp(ln_u0), np.exp(ln_tE)])

    def aligned(self) -> tuple[NDArray, NDArray, NDArray]:
        """Times, magnitudes and errors (N,) on the scale of the data set of most weight."""
        order = self.found.dataset
        to = max(self.fits, key=_weight)
        times, mag, error = self.found.times, np.empty(len(order)), np.empty(len(order))
        for k, one in enumerate(self.fits):
            mine = np.flatnonzero(order == k)
            flux = 10 ** (-0.4 * (one.curve.mag - one.m_base))
            lensed = 1 + to.f_s * (flux - 1) / one.f_s  # brightness, of the other's blend
            lensed = np.maximum(lensed, 1e-3)
            mag[mine] = to.m_base - 2.5 * np.log10(lensed)
            error[mine] = one.curve.mag_err * flux * to.f_s / one.f_s / lensed
        return times, mag, error

    def magnitude(self, time: NDArray) -> NDArray:
        """The single lens at any times (m,) on that scale [mag]."""
        to, (t0, u0, tE) = max(self.fits, key=_weight), self.shape
        x = u0**2 + ((np.asarray(time) - t0) / tE) ** 2
        return to.m_base - MAG * np.log1p(to.f_s * ((x + 2) / np.sqrt(x * (x + 4)) - 1))

    def text(self) -> str:
        """Summary of a title and lines of a name and what belongs to it."""
        answer, times = self.overall, self.found.times
        scale = self.event.datasets[0].time_scale
        lines = [("read", self.event.summary().partition(": ")[2])]
        for one in answer["datasets"] if self.fits else []:
            trust = "trusted" if one["trusted"] else "NOT TRUSTED, see below"
            what = f"{one['baseline']:.3f} +- {one['baseline_error']:.3f} mag, {one['source']}"
            name = f" of {one['name']}" if len(self.fits) > 1 else ""
            lines += [("baseline", f"{what}{name}; {trust}")]
        if self.fits:
            alert, threshold = answer["first_alert"], self.threshold
            when = "never" if alert is None else f"first at {scale} {alert:.3f}"
            if alert is not None:
                t0, _, tE = self.shape
                when += f", {(alert - t0) / tE:+.2f} tE from the fitted peak,"
            what = f"{when} above {threshold.text()}" if threshold else "none is known"
            lines += [("threshold" if threshold is None else "alert", what)]
            if (prevalence := answer["prevalence"]) != 0.5:
                lines += [("prevalence", f"{prevalence:g} in what follows, not in the alert")]
            highest = ("highest", answer["p_binary_max"], answer["time_max"])
            for name, p, time in (highest, ("last", answer["p_binary"], times[-1])):
                lines += [(name, f"P(binary) = {p:.3f} at {scale} {time:.3f}")]
            likely = sorted(answer["classes"].items(), key=lambda item: -item[1])
            lines += [("classes", ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in likely))]
            misfit = answer["dchi2"]
            span = (
                f"{misfit['value']:.0f} from {scale} {misfit['start']:.3f} to {misfit['end']:.3f}"
            )
            lines += [("misfit", f"chi-squared above a single lens's: {span}")]
        lines += [("WARNING", warning) for warning in answer["warnings"]]
        span = f"{len(times)} epochs, {scale} {times[0]:.3f} to {times[-1]:.3f}"
        return "\n".join([f"{self.event.name}: {span}", *(f"  {a:9} {b}" for a, b in lines)])


def classify_file(
    paths: Path | str | Sequence[Path | str],
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
    if m_base is not None:
        _check_baseline(event, m_base)
    name = str(paths if isinstance(paths, Path | str) else paths[0])
    network = net.load_network(run)[0]
    return classify_event(event, network, m_base, find_threshold(run, survey), prevalence, name)


def _check_baseline(event: Event, m_base: float) -> None:
    curve = event.datasets[0]
    low, high = np.median(curve.mag) - BRIGHTER, curve.mag.max() + FAINTER
    why = f"expected {low:.1f} to {high:.1f} mag, from its median epoch less {BRIGHTER:g} to "
    why += f"its faintest plus {FAINTER:g}"
    if (count := len(event.datasets)) > 1 or curve.kind != "mag":
        why = f"{count} data sets of {curve.kind} came; expected one, of magnitudes"
    elif low <= m_base <= high:
        return
    raise InputError(
        f"--m_base {m_base:g} cannot be the baseline of {event.name}: {why}; leave it out "
        "if it is unknown"
    )


def classify_event(
    event: Event,
    network: net.Network,
    m_base: float | None = None,
    threshold: AlertThreshold | None = None,
    prevalence: float = 0.5,
    name: str = "",
) -> Classification:
    """All data sets of an event together; `m_base` [mag] is that of the only one."""
    curves = sorted(event.datasets, key=lambda c: (c.time[0], c.mag_err[0], c.mag[0]))
    given = [m_base if m_base is not None else curve.m_base for curve in curves]
    columns = zip(curves, given, strict=True)
    found = predict_event(network, [DataSetEpochs(c.time, c.mag, c.mag_err, b) for c, b in columns])
    p_alert, p = (
        network.probabilities(found.logits, x)[:, 1:3].sum(1).clamp(max=1).nan_to_num(0.5)
        for x in (0.5, prevalence)
    )
    p_alert, p = p_alert.double().numpy(), p.double().numpy()
    classes = network.probabilities(found.logits[-1], prevalence).double().numpy()
    fits, warnings = _fits(found, curves), []
    ends = np.maximum.accumulate([curve.time[-1] for curve in curves])
    pauses = [curve.time[0] - end for curve, end in zip(curves[1:], ends, strict=False)]
    if max(pauses, default=0.0) > LONGEST_PAUSE:
        warnings += [f"{max(pauses):.0f} days lie between data sets: are their times of one zero?"]
    datasets = [
        {"name": c.name, "n_epochs": len(c), "baseline": b, "source": "given"}
        for c, b in zip(curves, given, strict=True)
    ]
    if not fits:
        warnings += [f"no answer yet: fewer than {STEP} epochs"]
        classes = np.full(len(CLASSES), np.nan)
    for one, row, base in zip(fits, datasets, given, strict=False):
        _describe_baseline(one, row, base, warnings)
    misfit, parts = _misfit(found, curves, fits)
    for row, part in zip(datasets, parts, strict=False):
        row["share"] = part
    first = STEP - 1
    above = first + np.flatnonzero(p_alert[first:] > (threshold.value if threshold else np.inf))
    if above.size and p_alert[-1] < 0.5:
        warnings += ["P fell below 0.5 after the alert: look at the residuals around it"]
    if fits and classes[4] > 0.5:
        warnings += [f"P(not microlensing) = {classes[4]:.2f}: a variable star or bad data"]
    top = first + int(p[first:].argmax()) if len(p) > first else None
    longest = max(range(len(curves)), key=lambda k: len(curves[k]))
    row = datasets[longest]
    overall = {
        "file": name,
        "n_epochs": len(p),
        "p_binary": float(p[-1]),
        "p_binary_max": float(p[-1 if top is None else top]),
        "time_max": None if top is None else float(found.times[top]),
        "first_alert": float(found.times[above[0]]) if above.size else None,
        "threshold": threshold.value if threshold else None,
        "threshold_of": threshold and {k: v for k, v in asdict(threshold).items() if k != "value"},
        "prevalence": prevalence,
        "classes": {k: float(v) if fits else None for k, v in zip(CLASSES, classes, strict=True)},
        "dchi2": misfit,
        "baseline": {
            "magnitude": row["baseline"],
            "source": row["source"] if row["baseline"] is not None else "none",
            "trusted": row.get("trusted", row["baseline"] is not None),
            "error": row.get("baseline_error"),
        },
        "datasets": datasets,
        "warnings": warnings,
    }
    return Classification(event, found, p, overall, fits, threshold)


def _describe_baseline(one: DataSetFit, row: dict, given: float | None, warnings: list) -> None:
    """What is used as the baseline of a data set, and whether it holds."""
    of, off = f" of {row['name']}", abs(one.m_base - (given or 0.0))
    if given is None:
        row |= {"baseline": one.m_base, "source": "fitted with a single lens"}
        row["trusted"] = one.error <= TRUSTED
        why = f"the fit knows it to {one.error:.2f} mag only"
    else:
        row["trusted"] = off <= GIVEN_OFF
        why = f"{given:.3f} mag was given, a single lens fits best with {one.m_base:.3f} mag"
    row |= {"baseline_error": one.error, "f_s": one.f_s, "error_factor": one.error_factor}
    if not row["trusted"]:
        warnings += [f"the baseline{of} is not trusted: {why}; give --m_base if it is known"]


def _fits(found: EventPrediction, curves: Sequence[Photometry]) -> list[DataSetFit]:
    """The last refit, by data set."""
    if not len(found.inputs.counts):
        return []
    fit, factors = found.inputs.fits[-1][1], found.inputs.factors[-1]
    error = np.sqrt(np.maximum(found.inputs.covariance[1, :, 14], 0))
    return [
        DataSetFit(
            curve, float(found.joint.zero[k] - fit[4 + 2 * k]), float(error[k]),
            float(np.exp(fit[3 + 2 * k])), float(factors[k]),
        )
        for k, curve in enumerate(curves)
    ]  # fmt: skip


def _misfit(
    found: EventPrediction, curves: Sequence[Photometry], fits: Sequence[DataSetFit]
) -> tuple[dict[str, float | None], list[float]]:
    """Where a single lens fits worst: chi-squared above its mean there, and each set's share.

    The stretch of epochs of largest sum of squared residuals, less PENALTY each; errors are scaled
    to the scatter between neighbours. It is a lower limit of the delta-chi-squared of a binary.
    """
    if not fits:
        return {"value": None, "start": None, "end": None}, []
    fit, (t0, ln_u0, ln_tE) = found.inputs.fits[-1][1], found.inputs.fits[-1][1][:3]
    excess = np.empty(len(found.times))
    for k, (one, curve) in enumerate(zip(fits, curves, strict=True)):
        x = np.exp(2 * ln_u0) + ((curve.time - t0) / np.exp(ln_tE)) ** 2
        lens = (x + 2) / np.sqrt(x * (x + 4))
        model = one.m_base - MAG * np.log1p(np.exp(fit[3 + 2 * k]) * (lens - 1))
        residual = (curve.mag - model) / curve.mag_err / one.error_factor
        excess[found.dataset == k] = np.minimum(residual**2, 2500.0)
    total = np.concatenate([[0.0], np.cumsum(excess - PENALTY)])
    lowest = np.minimum.accumulate(total)
    end = int((total - lowest).argmax())
    start = int(total[: end + 1].argmin())
    if end == start:
        return {"value": 0.0, "start": float(t0), "end": float(t0)}, [0.0] * len(fits)
    part = slice(start, end)
    value = float((excess[part] - 1).sum())
    owner = found.dataset[part]
    parts = [float((excess[part][owner == k] - 1).sum() / value) for k in range(len(fits))]
    times = found.times[part]
    return {"value": value, "start": float(times[0]), "end": float(times[-1])}, parts


def _weight(one: DataSetFit) -> float:
    return float((one.curve.mag_err**-2.0).sum())
