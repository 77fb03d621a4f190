"""Simulation beside the bare solver in the same run, on the same events, and how it grows.

    python -m benchmarks.performance.simulation [--quick] [--preset baseline] [--workers W]
        [--seed 0]

Every turn of events is first given to VBMicrolensing's curve function, all epochs, in a loop in
each worker, and then to `lensml simulate`'s own workers, twins and files included: a busy machine
slows both. Idle workers at the end of a turn count as cost of `lensml simulate`. Then wall times at
several numbers of events, epochs and workers, in turns, with the exponent of their growth; and the
error that skipping epochs adds, beside a solution of every epoch, on events of all four sets.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from benchmarks.record import save_record
from benchmarks.scaling import growth_exponent
from benchmarks.timing import pipeline_seconds, simulation_speed, worker_map
from lensml.lensing import binary_magnification
from lensml.paths import available_cores
from lensml.seeds import event_generator
from lensml.simulation import PARAMETER_SETS, Simulation, Survey, draw_binary, parameter_set

TARGETS = {
    "whole": ">= 0.9",
    "core_hours_per_million": "<= 1",
    "events_exponent": "<= 1.05",
    "epochs_exponent": "<= 1.05",
    **{f"added_error_{name}": "< 0.1" for name in PARAMETER_SETS},
}
EPOCHS = (375, 750, 1500, 3000)


def growth(preset: str, seed: int, workers: int, *, quick: bool) -> tuple[dict, dict]:
    """Exponents, and the seconds they come from: {"events": {size: [s, ...]}, ...}."""
    sizes = (512, 1024, 2048) if quick else (1024, 2048, 4096, 8192)
    turns = 2 if quick else 3
    events, epochs, over_workers = {}, {}, {}
    fixed = sizes[0]
    with worker_map(workers) as over, worker_map(1) as alone:
        for turn in range(turns):
            first = turn * sizes[-1]  # other events in each turn
            sim = Simulation(preset=preset, num_pairs=turns * sizes[-1], seed=seed)
            for size in sizes:
                seconds = pipeline_seconds(over, sim, first, first + size)
                events.setdefault(size, []).append(seconds)
            for count in EPOCHS:
                other = replace(sim, survey=Survey(num_epochs=count))
                seconds = pipeline_seconds(over, other, first, first + fixed)
                epochs.setdefault(count, []).append(seconds)
            for count, this in ((1, alone), (workers, over)):
                seconds = pipeline_seconds(this, sim, first, first + fixed)
                over_workers.setdefault(count, []).append(seconds)
    numbers = {
        "events_exponent": _exponent(events),
        "epochs_exponent": _exponent(epochs),
        "workers_speed_up": sum(over_workers[1]) / sum(over_workers[workers]),
    }
    return numbers, {"events": events, "epochs": epochs, "workers": over_workers}


def _exponent(seconds: dict[int, list[float]]) -> dict[str, float]:
    sizes = np.repeat(list(seconds), [len(s) for s in seconds.values()])
    return growth_exponent(sizes, np.concatenate(list(seconds.values())))


def added_error(num_events: int, seed: int) -> dict[str, float]:
    """Largest delta-chi2 at 0.01 mag of a sampled curve against every epoch solved, per set."""
    survey, worst = Survey(), {}
    for name in PARAMETER_SETS:
        largest = 0.0
        for i in range(num_events):
            generator = event_generator(seed, name, i)
            event = draw_binary(parameter_set(name), generator, survey.window)
            every = binary_magnification(event, survey.times, every_epoch=True)
            ratio = binary_magnification(event, survey.times) / every
            largest = max(largest, float(np.sum((2.5 * np.log10(ratio) / 0.01) ** 2)))
        worst[f"added_error_{name}"] = largest
    return worst


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; not kept")
    parser.add_argument("--preset", default="baseline")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=available_cores())
    args = parser.parse_args()
    started = time.time()
    num_pairs = 2048 if args.quick else 16_384
    sim = Simulation(preset=args.preset, num_pairs=num_pairs, seed=args.seed)
    numbers = simulation_speed(sim, workers=args.workers, progress=True)
    exponents, seconds = growth(args.preset, args.seed, args.workers, quick=args.quick)
    numbers |= exponents | added_error(40 if args.quick else 500, args.seed)
    name = "simulation" if args.preset == "baseline" else f"simulation_{args.preset}"
    save_record(
        name,
        numbers,
        TARGETS,
        seed=args.seed,
        started=started,
        quick=args.quick,
        preset=args.preset,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
