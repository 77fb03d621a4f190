"""A quarter of an hour of a GPU: check the kernels, time them, train, evaluate; keep everything.

    python -m benchmarks.gpu_program OUT [--seconds 560] [--minutes 12]     on a machine with a GPU
    python -m benchmarks.gpu_program OUT --dry                              every line, on a CPU

Parts run in an order in which the first ones decide most; each is guarded, so that a failure costs
itself alone, and `program.json` is written after each. The network for all events is trained in
OUT/run for --minutes, its weights saved every minute; what this call has no time for is left to the
next one with the same OUT. `--dry` uses Triton's interpreter, a few short curves and no graph: its
times mean nothing, and it says so.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import resampled
from lensml.evaluation import ideal_log_ratio, roc_auc
from lensml.experiments import provenance
from lensml.network import (
    DataSetEpochs,
    Network,
    event_inputs,
    fit_events,
    innovations,
    joint_epochs,
    kernels_agree,
    load_network,
    map_refits,
    pack_events,
    predict_by_kernels,
    predict_proba,
)
from lensml.paths import atomic_path
from lensml.simulation import Simulation, Survey, load, simulate
from lensml.training import (
    EventTrainingConfig,
    Learner,
    Trainer,
    TrainingConfig,
    load_training_data,
    train_events,
)


@dataclass
class Program:
    """What all parts share."""

    out: Path
    seconds: float
    dry: bool
    device: torch.device
    workers: int
    minutes: float  # of training, over all calls
    share: float  # of the time that is left when training begins
    seed: int
    rows: dict = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.time() - self.started)

    def part(self, name: str, work: Callable[["Program"], dict], need: float) -> None:
        """Run one part if there is time for it; what it found or why it failed is kept."""
        begun = time.time()
        if self.left < need and not self.dry:
            self.rows[name] = {"skipped": f"{self.left:.0f} s were left, {need:.0f} needed"}
        else:
            try:
                self.rows[name] = work(self)
            except Exception as problem:  # another part may do better
                traceback.print_exc()
                self.rows[name] = {"failed": f"{type(problem).__name__}: {problem}"[:500]}
        self.rows[name]["seconds"] = round(time.time() - begun, 2)
        print(f"[{time.time() - self.started:6.1f}] {name}: {self.rows[name]}", flush=True)
        self.write()

    def write(self) -> None:
        """All parts so far, in one file."""
        seed, kept = self.seed, {"dry": self.dry, "parts": self.rows}
        kept["provenance"] = provenance(size="full", seed=seed, started=self.started)
        if self.device.type == "cuda":
            kept["device"] = torch.cuda.get_device_name(self.device)
            kept["memory_GB"] = torch.cuda.max_memory_allocated() / 1e9
        with atomic_path(self.out / "program.json") as temporary:
            temporary.write_text(json.dumps(kept, indent=1))

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable, repeats: int = 5) -> float:
        """Median wall time of `work` [s], the first call not counted."""
        seconds = []
        for _ in range(1 if self.dry else repeats + 1):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - begun)
        return float(np.median(seconds[1:] or seconds))


def curves_of(program: Program, num_pairs: int, *, blended: bool = False, seed: int = 0):
    """A fresh set; of a few short curves in a dry run."""
    survey = Survey(num_epochs=14, missing_fraction=0.1) if program.dry else Survey()
    sim = Simulation(
        preset="baseline", num_pairs=2 if program.dry else num_pairs, survey=survey,
        blending=(0.1, 1.0) if blended else None, seed=program.seed + seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return load(simulate(Path(folder) / "set.npz", sim, workers=program.workers))


def event(program: Program, seed: int, sets: int) -> list[DataSetEpochs]:
    """One event in several data sets, of which one has a known baseline."""
    generator, found = np.random.default_rng(seed), []
    for k in range(sets):
        n = 9 if program.dry else 150
        times = np.sort(generator.uniform(k * 5, 100, n))
        bright = 1.5 / np.hypot(0.3, (times - 60) / 12)
        mag = 18 + k - 2.5 * np.log10(1 + bright) + 0.02 * generator.standard_normal(n)
        found.append(DataSetEpochs(times, mag, np.full(n, 0.02), 18.0 + k if k == 1 else None))
    return found


def check(program: Program) -> dict:
    """Kernels against the compiled functions of a CPU, on single and joint events."""
    found: dict = {}
    if program.device.type == "cuda":
        found["agree"] = kernels_agree(program.device)
    kinds = (torch.float32,) if program.dry else (torch.float64, torch.float32)
    for sets in (2,) if program.dry else (1, 3):
        datasets = event(program, 7 + sets, sets)
        joint = joint_epochs(datasets)
        one = event_inputs(joint)
        refits = torch.arange(len(one.counts), device=program.device)
        for kind in kinds:
            events = pack_events([joint], [True], program.device, kind)
            fits = fit_events(events)
            got = [innovations(events, fits)[0]]
            got += map_refits(events, fits, torch.zeros_like(refits), refits)
            for name, mine, expected in zip(one._fields, got, one[:4], strict=False):
                apart = np.abs(mine.cpu().numpy() - expected)
                label = f"{name}_{sets}_sets_{str(kind).removeprefix('torch.')}"
                found[label] = {"max": float(apart.max()), "mean": float(apart.mean())}
    return found


def refits(program: Program) -> dict:
    """All refits, maps and innovations of many curves; one core of a CPU beside them."""
    found, curves = {}, curves_of(program, 2048)
    base, sigma = curves.m_base[:, None].astype(float), curves.sigmas()
    joints = []
    for row in range(len(curves)):
        on = np.isfinite(curves.X[row])
        mag = curves.X[row, on].astype(float)
        data = DataSetEpochs(curves.time[on], mag, sigma[row, on], float(base[row, 0]), True)
        joints.append(joint_epochs([data]))
    some = joints[:4]
    event_inputs(some[0], True)  # compiles
    for free in (True,) if program.dry else (False, True):
        begun = time.process_time()
        for joint in some:
            event_inputs(joint, free)
        per_row = (time.process_time() - begun) / len(some)
        label = "free" if free else "lensed"
        found[f"cpu_core_ms_a_row_{label}"] = 1e3 * per_row
        for kind in (torch.float32,) if program.dry else (torch.float32, torch.float64):
            events = pack_events(joints, [free] * len(joints), program.device, kind)
            name = f"{label}_{str(kind).removeprefix('torch.')}"
            seconds = program.timed(lambda e=events: fit_events(e), 3)
            found[f"refits_rows_per_s_{name}"] = len(joints) / seconds
            found[f"over_a_core_{name}"] = per_row * len(joints) / seconds
            fits = fit_events(events)
            found[f"innovations_ms_{name}"] = 1e3 * program.timed(
                lambda e=events, f=fits: innovations(e, f), 3
            )
            rows = torch.arange(len(joints), device=program.device).repeat_interleave(2)
            last = torch.minimum(events.refits[rows] - 1, rows * 0 + len(events.counts) - 1)
            found[f"maps_per_s_{name}"] = len(rows) / program.timed(
                lambda e=events, f=fits, r=rows, j=last: map_refits(e, f, r, j), 3
            )
    return found


def inference(program: Program) -> dict:
    """Rows classified at every epoch by kernels, and row by row on a CPU in the same run."""
    found, network = {}, load_network()[0]
    for blended in (False,) if program.dry else (False, True):
        curves = curves_of(program, 4096, blended=blended, seed=1)
        few = curves.rows(slice(0, 2 if program.dry else 200))
        begun = time.perf_counter()
        expected = predict_proba(network.cpu(), few)
        cpu = len(few) / (time.perf_counter() - begun)
        on_device = copy.deepcopy(network).to(program.device)
        got = predict_by_kernels(on_device, few)
        apart = np.nanmax(np.abs(got - expected))
        seconds = program.timed(lambda n=on_device, c=curves: predict_by_kernels(n, c), 2)
        label = "blended" if blended else "lensed"
        found |= {
            f"rows_per_s_{label}": len(curves) / seconds, f"rows_per_s_of_a_cpu_{label}": cpu,
            f"largest_difference_of_p_{label}": float(apart),
        }  # fmt: skip
    return found


def steps(program: Program) -> dict:
    """A step of training: launched kernel by kernel, and recorded; losses after equal steps."""
    found, losses = {}, {}
    run = trainer(program, Path(tempfile.mkdtemp()), 2 if program.dry else 512)
    rows = next(run.batches(0))
    first = copy.deepcopy(run.network.state_dict())
    for recorded in (False, True) if program.device.type == "cuda" else (False,):
        network = Network(run.network.config).to(program.device)
        network.load_state_dict(first)
        learner = Learner(network, 1e-3, 0.01, recorded=recorded)
        label = "recorded" if recorded else "launched"
        losses[label] = [float(learner.step_on(rows)[0]) for _ in range(3 if program.dry else 20)]
        seconds = program.timed(lambda x=learner: x.step_on(rows), 20)
        found[f"{label}_ms"] = 1e3 * seconds
        found[f"{label}_samples_per_s"] = len(rows.held) / seconds
        found[f"{label}_losses"] = losses[label]
    if len(losses) == 2:
        found["loss_apart"] = float(np.abs(np.subtract(*losses.values())).max())
    found["samples_of_a_step"] = len(rows.held)
    return found


def trainer(program: Program, folder: Path, batch: int) -> Trainer:
    """Training on a set, made by kernels where there is a GPU."""
    survey = Survey(num_epochs=12, missing_fraction=0.1) if program.dry else Survey()
    sim = Simulation(num_pairs=4 if program.dry else 16_384, seed=program.seed + 2, survey=survey)
    path = simulate(folder / "train.npz", sim, workers=program.workers)
    config = TrainingConfig(epochs=50, batch_size=batch, per_curve=2 if program.dry else 8)
    run = Trainer(config, load_training_data([path], 0.25), folder, program.device)
    run.on_device = True if program.dry else run.on_device
    return run


def epochs(program: Program) -> dict:
    """Training on a set: curves a second over whole epochs, observation and refits included."""
    run, found = trainer(program, Path(tempfile.mkdtemp()), 4 if program.dry else 512), {}
    rows = 2 * run.steps * run.pairs_per_batch
    run.train_epoch(0)  # compiles and records
    seconds, losses = [], []
    for epoch in range(1, 2 if program.dry else 4):
        program.wait()
        begun = time.perf_counter()
        losses.append(run.train_epoch(epoch)[0])
        program.wait()
        seconds.append(time.perf_counter() - begun)
    found["curves_per_s"] = rows / float(np.median(seconds))
    found["losses"] = losses
    found["hours_of_a_million_50_times"] = 50e6 / found["curves_per_s"] / 3600
    found["made_by_kernels"] = run.on_device
    return found


def training(program: Program) -> dict:
    """The network for all events, with what is left of the time; goes on where it was."""
    run = program.out / "run"
    small = dict(least=64, batch_size=16, warmup_steps=2, validation_blocks=1, per_curve=1)
    settings = small if program.dry else dict(batch_size=4096, learning_rate=2e-3, least=100_000)
    minutes = 5.0 if program.dry else program.minutes
    config = EventTrainingConfig(minutes=minutes, seed=program.seed + 100, **settings)
    run.mkdir(parents=True, exist_ok=True)
    here = 0.0 if program.dry else program.left * program.share  # with start and validation
    train_events(run, config, program.workers, here)
    notes = json.loads((run / "config.json").read_text())
    return {"of_minutes": minutes, "state": notes["state"], "validation": notes["validation"]}


def evaluation(program: Program) -> dict:
    """Shipped and new weights on fresh pairs, the ideal observer beside them."""
    found = {}
    networks = {"shipped": load_network()[0], "new": load_network(program.out / "run")[0]}
    for preset in ("baseline",) if program.dry else ("baseline", "planetary", "stellar"):
        survey = Survey(num_epochs=14, missing_fraction=0.1) if program.dry else Survey()
        num = 2 if program.dry else 10_000
        sim = Simulation(preset=preset, num_pairs=num, seed=program.seed + 3, survey=survey)
        with tempfile.TemporaryDirectory() as folder:
            curves = load(simulate(Path(folder) / "set.npz", sim, workers=program.workers))
        ideal = ideal_log_ratio(curves)
        found[f"{preset}_ideal_auc"] = area(curves.y, ideal, curves.pair)
        for name, network in networks.items():
            p = predict_by_kernels(network.to(program.device), curves)
            last = np.where(np.isfinite(p), np.arange(p.shape[1]), -1).max(1)
            end = p[np.arange(len(p)), last]
            found[f"{preset}_{name}_auc"] = area(curves.y, end, curves.pair)
    return found


def area(y, score, pair) -> dict[str, float]:
    """Area under the ROC curve with its interval over pairs."""
    order = np.lexsort((y, pair))
    both = np.asarray(score)[order].reshape(-1, 2)
    labels = np.tile([0, 1], len(both))

    def of(index):
        return roc_auc(labels, both[index].flatten())

    return resampled(of, len(both))


def checked_apart(args: argparse.Namespace) -> dict:
    """The check in a process of its own: a kernel that fails there spoils no other part.

    Then the network is trained with fits on the cores, and nothing else is done.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_program", str(args.out / "check")]
    command += ["--only", "check", "--seed", str(args.seed), "--workers", str(args.workers)]
    run = subprocess.run(command, check=False)
    file = args.out / "check" / "program.json"
    found = json.loads(file.read_text())["parts"]["check"] if file.exists() else {}
    if run.returncode or not found.get("agree"):
        os.environ["LENSML_KERNELS"] = "0"
        found.setdefault("failed", f"the process ended with {run.returncode}")
    return found


PARTS = (  # name, work, seconds needed
    ("check", check, 100), ("refits", refits, 80), ("inference", inference, 40),
    ("steps", steps, 30), ("epochs", epochs, 40), ("training", training, 60),
    ("evaluation", evaluation, 40),
)  # fmt: skip


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for what is found")
    parser.add_argument(
        "--dry", action="store_true", help="every line on a CPU, times mean nothing"
    )
    parser.add_argument("--seconds", type=float, default=560.0, help="in all")
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, over all calls")
    parser.add_argument("--train", type=float, default=0.7, help="share of what is left, to train")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--seed", type=int, default=81_000)
    parser.add_argument("--only", nargs="+", choices=[name for name, *_ in PARTS])
    args = parser.parse_args()
    if args.dry:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are read on first use
    elif not torch.cuda.is_available():
        parser.error("no GPU here; --dry runs every line on a CPU")
    device = torch.device("cpu" if args.dry else "cuda")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the other cores simulate
    program = Program(
        args.out, args.seconds, args.dry, device, args.workers, args.minutes, args.train, args.seed
    )
    chosen = [part for part in PARTS if args.only is None or part[0] in args.only]
    if not args.dry:
        os.environ.setdefault("TRITON_CACHE_DIR", str(args.out.resolve() / "triton"))
        if len(chosen) > 1 and chosen[0][0] == "check":
            program.rows["check"] = checked_apart(args)
            only_training = "failed" in program.rows["check"]
            chosen = [p for p in chosen[1:] if not only_training or p[0] == "training"]
    for name, work, need in chosen:
        program.part(name, work, need)
    failed = [name for name, row in program.rows.items() if "failed" in row]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {args.out / 'program.json'}")


if __name__ == "__main__":
    main()
