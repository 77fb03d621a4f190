"""A season of one survey at a realistic mixture: alerts a night, their purity, what is found.

    python -m benchmarks.studies.season [--events 10000] [--survey roman] [--model RUN]

Events are drawn in the proportions of FRACTIONS, observed as the survey observes, and classified
epoch by epoch with all their data sets, baselines unknown. An alert is the first epoch at which
P(binary) passes a threshold; a night is a day of the season. Purity is the fraction of alerts that
are binary lenses, completeness the fraction of binary lenses that alert, strong ones (delta-chi2
against their own point lens above STRONG) beside all. The record goes to data/results/benchmarks,
a killed run goes on from _build/benchmarks/season. On two cores about half an hour.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.record import QUICK, save_record
from benchmarks.studies.sky import (
    ALERTS,
    interval,
    process_network,
    processes,
    stored_threshold,
)
from lensml.lensing import binary_magnification, point_lens_magnification
from lensml.network import CLASSES, STEP, DataSetEpochs, predict_event, weights_hash
from lensml.paths import InputError, atomic_path, available_cores
from lensml.seeds import event_generator
from lensml.simulation import (
    SURVEYS,
    Survey,
    draw_binary,
    draw_variable,
    observe_event,
    parameter_set,
    quoted_sigma,
    schedule,
)
from lensml.streaming import LEVELS

SEED, CHUNK, STRONG = 91_003, 20, 160.0
FRACTIONS = {"single": 0.80, "binary": 0.05, "binary_source": 0.05, "variable": 0.10}
FLUX_RATIO = (0.01, 1.0)  # of the second source to the first, log-uniform
COLUMNS = ("kind", "dchi2", "highest", "class", *(f"alert_{x}" for x in LEVELS.values()), "t0")


def point_lens(lens, times: NDArray, t0: float | None = None, u0: float | None = None) -> NDArray:
    """Magnification of a single lens with the timing of `lens`, at another t0 and u0 if given."""
    t0, u0 = lens.t0 if t0 is None else t0, lens.u0 if u0 is None else u0
    return point_lens_magnification(np.hypot(u0, (times - t0) / lens.tE))


def draw(survey: str, index: int):
    """Event number `index`: its kind, data sets, delta-chi2 of a binary, t0 [day]."""
    generator = event_generator(SEED, f"season_{survey}", index)
    kind = str(generator.choice(list(FRACTIONS), p=list(FRACTIONS.values())))
    found = False
    while not found:  # an event on which the solver fails is drawn anew
        lens = draw_binary(parameter_set("baseline"), generator, Survey().window)
        plans = schedule(survey, generator, lens.t0, lens.tE)
        epochs = np.unique(np.concatenate([plan.times for plan in plans]))
        if kind == "binary":
            with suppress(RuntimeError, ArithmeticError):
                curve = binary_magnification(lens, epochs, every_epoch=True)
                found = np.isfinite(curve).all() and (curve > 0.99).all()
        else:
            curve, found = point_lens(lens, epochs), True
    if kind == "binary_source":
        ratio = np.exp(generator.uniform(*np.log(FLUX_RATIO)))
        second = lens.t0 + generator.normal(0, 1.5) * lens.tE, generator.uniform(0.01, 1.0)
        curve = (curve + ratio * point_lens(lens, epochs, *second)) / (1 + ratio)
    star = draw_variable(generator, lens.t0) if kind == "variable" else None

    def delta_mag(times: NDArray) -> NDArray:
        if star:
            return star.delta_mag(times)
        return -2.5 * np.log10(curve[np.searchsorted(epochs, times)])

    seen, dchi2 = observe_event(generator, delta_mag, plans), 0.0
    if kind == "binary":
        for plan, one in zip(plans, seen, strict=True):
            twin = plan.m_base - 2.5 * np.log10(1 + plan.f_s * (point_lens(lens, plan.times) - 1))
            dchi2 += float((((one.truth - twin) / quoted_sigma(plan, one.truth)) ** 2).sum())
    return kind, [DataSetEpochs(one.times, one.mag, one.sigma) for one in seen], dchi2, lens.t0


def classify_numbers(task: tuple[str, Sequence[int], Sequence[float]]) -> NDArray[np.float64]:
    """A row of COLUMNS for each event of a chunk; alerts at the thresholds given, NaN = none."""
    survey, indices, thresholds = task
    rows, network = np.full((len(indices), len(COLUMNS)), np.nan), process_network()
    for row, index in zip(rows, indices, strict=True):
        kind, data, dchi2, t0 = draw(survey, index)
        found = predict_event(network, data)
        probabilities = network.probabilities(found.logits[STEP - 1 :])
        p, times = probabilities[:, 1:3].sum(1).numpy(), found.times[STEP - 1 :]
        row[:4] = list(FRACTIONS).index(kind), dchi2, p.max(), probabilities[-1].argmax()
        for k, threshold in enumerate(thresholds):
            above = np.flatnonzero(p > threshold)
            row[4 + k] = times[above[0]] if len(above) else np.nan
        row[-1] = t0
    return rows


def classified(survey: str, num: int, thresholds: list, run: Path, workers: int) -> NDArray:
    """Rows (num, C) of COLUMNS; those on disk are taken from there."""
    path = QUICK / "season" / f"{survey}-{weights_hash(run)[:16]}.npy"
    rows = np.load(path) if path.exists() else np.empty((0, len(COLUMNS)))
    with processes(run, workers) as mapped:
        starts = range(len(rows), num, CHUNK)
        tasks = [(survey, range(k, min(k + CHUNK, num)), thresholds) for k in starts]
        for done, new in enumerate(tqdm(mapped(classify_numbers, tasks), survey, len(tasks)), 1):
            rows = np.concatenate([rows, new])
            if done % 10 == 0 or done == len(tasks):
                with atomic_path(path) as temporary:
                    np.save(temporary, rows)
    return rows[:num]


def summary(rows: NDArray, thresholds: dict[str, float]) -> dict:
    """Rates by kind, purity, completeness and alerts a night at each threshold."""
    table = dict(zip(COLUMNS, rows.T, strict=True))
    kinds, numbers = list(FRACTIONS), {"events": len(rows)}
    binary = table["kind"] == kinds.index("binary")
    strong = binary & (table["dchi2"] > STRONG)
    numbers |= {"binaries": int(binary.sum()), "strong_binaries": int(strong.sum())}
    for name, threshold in thresholds.items():
        alert = np.isfinite(table[f"alert_{name}"])
        numbers[f"threshold_{name}"] = threshold
        numbers[f"purity_{name}"] = interval(binary[alert])
        numbers[f"completeness_{name}"] = interval(alert[binary])
        numbers[f"completeness_strong_{name}"] = interval(alert[strong])
        for k, kind in enumerate(kinds):
            numbers[f"alerts_of_{kind}_{name}"] = interval(alert[table["kind"] == k])
        # The peaks spread over the window of the priors: that long is the season.
        nights = Survey().window[1] - Survey().window[0]
        numbers[f"alerts_per_night_{name}"] = float(alert.sum() / nights)
    for k, kind in enumerate(kinds):
        called = table["class"][table["kind"] == k]
        counts = np.bincount(called.astype(int), minlength=len(CLASSES)) / max(1, len(called))
        numbers |= {f"{kind}_called_{c}": float(x) for c, x in zip(CLASSES, counts, strict=True)}
    return numbers


def curve(rows: NDArray) -> dict[str, list[float]]:
    """Purity, completeness and alerts a night over thresholds on the highest P(binary)."""
    highest, binary = rows[:, 2], rows[:, 0] == list(FRACTIONS).index("binary")
    strong = binary & (rows[:, 1] > STRONG)
    keys = ("threshold", "purity", "completeness", "completeness_strong", "alerts")
    found = {key: [] for key in keys}
    for threshold in np.unique(np.quantile(highest, 1 - np.geomspace(0.5, 0.002, 40))):
        alert = highest > threshold
        if alert.sum() < 5:
            continue
        values = threshold, binary[alert].mean(), alert[binary].mean(), alert[strong].mean()
        for key, value in zip(found, (*values, alert.mean()), strict=True):
            found[key].append(round(float(value), 5))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, classify, print and keep; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--survey", default="roman", choices=list(SURVEYS))
    parser.add_argument("--model", type=Path, help="run folder of the network")
    parser.add_argument("--threshold", type=float, nargs=2, metavar="P", help="at 1 %%, 0.1 %%")
    parser.add_argument("--quick", action="store_true", help="keep the record in _build only")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    args = parser.parse_args(arguments)
    started = time.time()
    try:
        levels = {name: level for level, name in LEVELS.items()}
        values = args.threshold or [
            stored_threshold(args.model, args.survey, level) for level in levels.values()
        ]
        thresholds = dict(zip(levels, values, strict=True))
        rows = classified(args.survey, args.events, list(values), args.model, args.workers)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    more = {"fractions": FRACTIONS, "survey": args.survey, "curve": curve(rows)}
    more |= {"quick": args.quick, "weights": weights_hash(args.model), "alerts_file": ALERTS}
    save_record("season", summary(rows, thresholds), seed=SEED, started=started, **more)
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
