"""Alert thresholds of the network on single lenses of the sky, and what else alerts.

    python -m benchmarks.studies.sky thresholds [--events 1500] [--model RUN] [--store]
    python -m benchmarks.studies.sky transfer [--events 1000] [--model RUN] [--threshold P]

`thresholds` simulates so many single lenses for each survey of `SURVEYS`, of a point source and
from the priors of the sets, observed at the epochs, with the blends and the noise of that survey,
and classifies all data sets of an event together, baselines unknown. The threshold of a level is
the lowest one that at most this fraction of the lenses ever pass, by survey and for all surveys
together ("default", equal numbers of each); with it comes the exact 95 % interval of the fraction
of others that pass it (order statistics). `--store` writes them into the run folder, as
`alerts.json`.

`transfer` measures how often single lenses and other events of the thesis' grid alert at the
default threshold of 1 %. At 0.1 mag: single lenses under each of `CONDITIONS`. The baseline is
unknown, but where the condition is a wrong baseline, which is then given; the right one given is
the control. At 0.01 mag: each of `KINDS` and of `VARIABLES`, and how many are called what they are
at the last epoch. The record goes to data/results/benchmarks.

Events have seeds of their own, and event i does not depend on their number. What was classified is
kept under _build/benchmarks/sky by the hash of the weights, set by set, so that a killed run goes
on; remove that folder when the code of the inputs or of the simulation has changed. Three minutes
on two cores for the thresholds, six for the transfer.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from benchmarks.record import QUICK, save_record
from lensml.evaluation import binomial_interval, season_policy
from lensml.experiments import result_key
from lensml.lensing import point_lens_magnification
from lensml.network import (
    CLASSES,
    STEP,
    DataSetEpochs,
    Network,
    load_network,
    predict_event,
    run_folder,
    weights_hash,
)
from lensml.paths import InputError, atomic_path, available_cores
from lensml.seeds import event_generator
from lensml.simulation import (
    CONDITIONS,
    KINDS,
    SURVEYS,
    VARIABLES,
    LightCurves,
    Survey,
    contaminant_set,
    draw_binary,
    draw_variable,
    observe_event,
    parameter_set,
    schedule,
    spoil,
)
from lensml.streaming import LEVELS, find_threshold

SKY_SEED, GRID_SEED = 91_001, 91_002  # training has 70001 and 70002
ALERTS = "alerts.json"  # of a run folder
CHUNK = 10  # events that a process takes at once
GIVEN = "baseline given"  # the control of a wrong baseline
MEANING = (
    "P(binary) that so many simulated single lenses pass at any epoch, by survey and for all of "
    "them together (default); true_rate: exact 95 % interval of that fraction among others, from "
    "order statistics"
)
Data = Sequence[DataSetEpochs]  # of one event
_network: list[Network] = []  # that of a process


def single_on_sky(survey: str, index: int) -> list[DataSetEpochs]:
    """Single lens number `index` as a survey sees it; its baselines are not known."""
    generator = event_generator(SKY_SEED, f"sky_{survey}", index)
    lens = draw_binary(parameter_set("baseline"), generator, Survey().window)  # t0, u0, tE of it

    def delta_mag(times: NDArray) -> NDArray:
        u = np.hypot(lens.u0, (times - lens.t0) / lens.tE)
        return -2.5 * np.log10(point_lens_magnification(u))

    seen = observe_event(generator, delta_mag, schedule(survey, generator, lens.t0, lens.tE))
    return [DataSetEpochs(one.times, one.mag, one.sigma) for one in seen]


def of_set(curves: LightCurves, given: bool = False) -> list[Data]:
    """Each row of a set as an event; errors and baselines are not taken for exact."""
    times, sigmas, found = curves.times(), curves.sigmas(), []
    for row, mag in enumerate(curves.X):
        on = np.flatnonzero(np.isfinite(mag))
        base = float(curves.m_base[row]) if given else None
        columns = times[row, on], mag[on].astype(float), sigmas[row, on].astype(float)
        found.append([DataSetEpochs(*columns, base)])
    return found


def spoiled(condition: str, rows: range) -> list[Data]:
    """Single lenses of the grid at 0.1 mag under one of `CONDITIONS`, or GIVEN."""
    plain = contaminant_set("point_source", rows.stop, GRID_SEED)
    curves = plain if condition == GIVEN else spoil(plain, condition, GRID_SEED)
    given = condition == GIVEN or CONDITIONS[condition][0] == "baseline"
    return of_set(curves.rows(slice(rows.start, rows.stop)), given)


def contaminants(kind: str, rows: range) -> list[Data]:
    """One of `KINDS` on the grid at 0.01 mag."""
    curves = contaminant_set(kind, rows.stop, GRID_SEED, Survey(sigma=0.01))
    return of_set(curves.rows(slice(rows.start, rows.stop)))


def variables(kind: str, rows: range) -> list[Data]:
    """One of `VARIABLES` on the grid at 0.01 mag."""
    survey, found = Survey(sigma=0.01), []
    for index in rows:
        generator = event_generator(GRID_SEED, f"variable_{kind}", index)
        times = survey.times[generator.random(survey.num_epochs) >= survey.missing_fraction]
        star = draw_variable(generator, generator.uniform(-50, 50), kind)
        noise = survey.sigma * generator.standard_normal(len(times))
        mag = generator.uniform(16, 20) + star.delta_mag(times) + noise
        found.append([DataSetEpochs(times, mag, np.full(len(times), survey.sigma))])
    return found


def load_into_process(run: Path) -> None:
    """Load the network of a run for `classified`, which then has one thread."""
    torch.set_num_threads(1)
    _network[:] = [load_network(run)[0]]


def process_network() -> Network:
    """The network that `processes` gave this one."""
    return _network[0]


def classified(events: Sequence[Data]) -> NDArray[np.float64]:
    """Highest P(binary) from the first refit on, and the number of the last class, (n, 2)."""
    network, found = process_network(), np.empty((len(events), 2))
    for row, data in enumerate(events):
        p = network.probabilities(predict_event(network, data).logits[STEP - 1 :])
        found[row] = float(p[:, 1:3].sum(1).max()), int(p[-1].argmax())
    return found


@contextmanager
def processes(run: Path, workers: int) -> Iterator[Callable]:
    """A `map` over this process alone, or over so many of one thread each."""
    if workers > 1:
        with get_context("spawn").Pool(workers, load_into_process, (run,)) as pool:
            yield pool.imap
    else:
        threads = torch.get_num_threads()
        load_into_process(run)
        try:
            yield map
        finally:
            torch.set_num_threads(threads)


def kept_or_classified(
    name: str, make: Callable[[range], Sequence[Data]], num: int, folder: Path, mapped: Callable
) -> NDArray[np.float64]:
    """`classified` of the first `num` events of a set, those in `folder` taken from there."""
    path = folder / f"{name}.npy"
    found = np.load(path) if path.exists() else np.empty((0, 2))
    if len(found) < num:
        events = make(range(len(found), num))
        chunks = [events[k : k + CHUNK] for k in range(0, len(events), CHUNK)]
        bar = tqdm(mapped(classified, chunks), name, len(chunks), unit_scale=CHUNK, disable=None)
        found = np.concatenate([found, *bar])
        with atomic_path(path) as temporary:
            np.save(temporary, found)
    return found[:num]


def thresholds_by_level(maxima: Mapping[str, ArrayLike]) -> dict[str, dict[str, Any]]:
    """Thresholds as `alerts.json` keeps them, of the highest P(binary) (n,) by survey.

    Adds "default", of all surveys together.
    """
    found: dict[str, dict[str, Any]] = {}
    pooled = np.concatenate([np.asarray(x) for x in maxima.values()])
    for survey, values in {"default": pooled, **maxima}.items():
        policies = {name: season_policy(values, [], level) for level, name in LEVELS.items()}
        found[survey] = {
            name: {
                "threshold": policy["threshold"],
                "level": policy["rate"],
                "singles": policy["set_on"],
                "true_rate": policy["expected"],
            }
            for name, policy in policies.items()
        }
    return found


def stored_threshold(run: Path, survey: str = "default", level: float = 0.01) -> float:
    """The threshold of a survey in a run folder; InputError if it is not of these weights."""
    found = find_threshold(run, survey, level)
    stored = found and json.loads((run_folder(run) / ALERTS).read_text())
    if not stored or stored.get("weights_sha256") != weights_hash(run):
        wrong = "was set with other weights" if found else "is not there"
        raise InputError(
            f"{run_folder(run) / ALERTS} {wrong}; `python -m benchmarks.studies.sky thresholds "
            "--store` makes it, or give --threshold"
        )
    return found.value


def set_thresholds(run: Path, num: int, folder: Path, mapped: Callable, store: bool) -> None:
    """Thresholds of all surveys, printed, and with `store` written into the run folder."""
    maxima = {}
    for name in SURVEYS:

        def make(rows: range, name: str = name) -> list[Data]:
            return [single_on_sky(name, k) for k in rows]

        maxima[name] = kept_or_classified(name, make, num, folder, mapped)[:, 0]
    found = thresholds_by_level(maxima)
    print(f"{'survey':12}{'level':>8}{'P':>9}{'set on':>8}  {'true rate [%]':20} default's [%]")
    for survey, levels in found.items():
        own = maxima.get(survey)
        for name, row in levels.items():
            low, high = (100 * row["true_rate"][k] for k in ("low", "high"))
            default = found["default"][name]["threshold"]
            passed = "" if own is None else f"{100 * np.mean(own > default):.2f}"
            interval = f"{low:.3f} to {high:.3f}"
            numbers = f"{row['level']:8g}{row['threshold']:9.4f}{row['singles']:8d}"
            print(f"{survey:12}{numbers}  {interval:20} {passed}".rstrip())
    if store:
        record = {
            "meaning": MEANING,
            "command": f"python -m benchmarks.studies.sky thresholds --events {num} --store",
            "seed": SKY_SEED,
            "weights_sha256": weights_hash(run),
            "thresholds": found,
        }
        with atomic_path(run_folder(run) / ALERTS) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
        print(run_folder(run) / ALERTS)


def interval(hits: ArrayLike) -> dict[str, float | None]:
    """`binomial_interval` for a record: None in place of NaN."""
    return {key: None if x != x else x for key, x in binomial_interval(hits).items()}


def measure_transfer(num: int, folder: Path, mapped: Callable, threshold: float) -> dict[str, Any]:
    """Fraction of each set that ever alerts, and of some that is called what it is at the end."""
    sets: dict[str, tuple[Callable, str | None]] = {}
    for condition in (*CONDITIONS, GIVEN):
        sets[f"transfer_{result_key(condition)}"] = partial(spoiled, condition), None
    for kind in KINDS:
        own = "binary_source" if kind == "binary_source" else "single"
        sets[f"contaminant_{kind}"] = partial(contaminants, kind), own
    for kind in VARIABLES:
        sets[f"variable_{kind}"] = partial(variables, kind), "other"
    numbers = {}
    for name, (make, own) in sets.items():
        found = kept_or_classified(name, make, num, folder, mapped)
        numbers[f"{name}_alerts"] = interval(found[:, 0] > threshold)
        if own:
            numbers[f"{name}_called_{own}"] = interval(found[:, 1] == CLASSES.index(own))
    return numbers


def main(arguments: Sequence[str] | None = None) -> int:
    """Set thresholds, or measure and keep the transfer; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["thresholds", "transfer"])
    parser.add_argument("--events", type=int, help="of each set; default 1500 and 1000")
    parser.add_argument("--model", type=Path, help="run folder of the network")
    parser.add_argument("--store", action="store_true", help="write alerts.json into the run")
    parser.add_argument("--threshold", type=float, metavar="P", help="in place of the stored one")
    parser.add_argument("--quick", action="store_true", help="keep the record in _build only")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    args = parser.parse_args(arguments)
    started, run = time.time(), args.model
    setting = args.what == "thresholds"
    num = args.events or (1500 if setting else 1000)
    try:
        load_network(run)  # says so if it is none
        folder = QUICK / "sky" / weights_hash(run)[:16]
        threshold = None if setting else args.threshold or stored_threshold(run)
        with processes(run, args.workers) as mapped:
            if setting:
                set_thresholds(run, num, folder, mapped, args.store)
                return 0
            numbers = measure_transfer(num, folder, mapped, threshold)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    numbers = {"threshold_1pct": threshold, "events_of_each_kind": num} | numbers
    options = {"quick": args.quick, "weights": weights_hash(run)}
    save_record("sky", numbers, seed=GRID_SEED, started=started, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
