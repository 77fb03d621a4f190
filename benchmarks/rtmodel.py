"""RTModel (Bozza 2024) on three events of ours: how long full modelling takes, what it concludes.

    python benchmarks/rtmodel.py --python PEERS/bin/python [--quick] [--seed 77]

RTModel is no requirement of the package: `python -m venv PEERS && PEERS/bin/pip install RTModel`
makes an environment for it, whose interpreter is given by `--python`. It runs in one process, with
static models only (one source, two sources, two lenses), errors as quoted, all else at its
defaults but for the time a single fit may take. The events: a binary with a strong anomaly, a
planet with a moderate one, and the twin of the first, a single lens; every sixth epoch, 0.03 mag.
"""

import argparse
import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from lensml.benchmark import keep_benchmark
from lensml.dataset import LightCurves, load
from lensml.simulate import Simulation, simulate
from lensml.survey import Survey

SURVEY = Survey(sigma=0.03, keep_every=(6, 6))
CHOSEN = {  # label: set, range of delta-chi2, class of the row
    "binary": ("distinct", (2000, 1e5), 1),
    "planet": ("planetary", (200, 1000), 1),
    "twin": ("distinct", (2000, 1e5), 0),
}
MODELS = ("PS", "BS", "LS")  # single lens, binary source, binary lens
RUNNER = """
import sys
from importlib.metadata import version
from RTModel import RTModel
folder, limit, fits, *models = sys.argv[1:]
peer = RTModel(folder)
peer.set_processors(1)
peer.config_Reader(renormalize=0)
peer.config_InitCond(modelcategories=models)
peer.config_LevMar(timelimit=float(limit), nfits=int(fits))
peer.run()
print("version", version("RTModel"))
"""


def pick(preset: str, between: tuple[float, float], label: int, seed: int) -> LightCurves:
    """The first event of a set whose anomaly has that delta-chi2, as a set of one row."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(preset=preset, num_pairs=64, seed=seed, survey=SURVEY)
        curves = load(simulate(Path(folder) / "set.npz", simulation, workers=1, progress=False))
    suited = (curves.y == label) & (between[0] < curves.dchi2) & (curves.dchi2 < between[1])
    return curves.rows(np.flatnonzero(suited)[:1])


def write_event(folder: Path, curve: LightCurves) -> None:
    """One event as RTModel reads it: magnitude, error, HJD - 2450000, and a place on the sky."""
    (folder / "Data").mkdir(parents=True)
    seen = np.isfinite(curve.X[0])
    table = np.column_stack([curve.X[0], curve.sigmas()[0], curve.times()[0] + 9000])[seen]
    np.savetxt(folder / "Data" / "I.dat", table, fmt="%.6f", header="Mag err HJD-2450000")
    (folder / "Data" / "event.coordinates").write_text("17:50:00.00 -30:00:00.0\n")


def model_event(python: str, curve: LightCurves, *, limit: float, fits: int) -> dict:
    """What RTModel makes of one event: its times, its conclusion, the best chi2 of each model."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "event"
        write_event(folder, curve)
        started, used = time.perf_counter(), cpu_seconds()
        command = [python, "-c", RUNNER, str(folder), str(limit), str(fits), *MODELS]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, used = time.perf_counter() - started, cpu_seconds() - used
        nature = folder / "Nature.txt"
        if run.returncode or not nature.exists():
            raise SystemExit(f"RTModel failed:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
        text = nature.read_text()
        print(text, flush=True)
        return {
            "minutes": seconds / 60,
            "cpu_minutes": used / 60,
            "epochs": int(np.isfinite(curve.X).sum()),
            "dchi2": float(curve.dchi2[0]),
            "conclusion": re.search(r"(.+)\n-", text)[1].lower(),
            "fits_out_of_time": sum(map(int, re.findall(r"timed out fits: (\d+)", run.stdout))),
            "version": re.search(r"version (\S+)", run.stdout)[1],
            **{
                f"chi2_{model}": float(x)
                for model, x in re.findall(r"^([PBL]S): ([\d.]+)", text, re.M)
            },
        }


def cpu_seconds() -> float:
    """Processor time of all processes this one has waited for [s]."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Model, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="of an environment that has RTModel")
    parser.add_argument("--quick", action="store_true", help="the planet alone; not kept")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for a single fit")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    started, numbers, version = time.time(), {}, ""
    for label, (preset, between, row) in CHOSEN.items():
        if args.quick and label != "planet":
            continue
        curve = pick(preset, between, row, args.seed)
        fits = 2 if args.quick else 6  # from each starting point; 6 is the default
        found = model_event(args.python, curve, limit=args.limit, fits=fits)
        version = found.pop("version")
        numbers |= {f"{label}_{name}": value for name, value in found.items()}
    keep_benchmark(
        "rtmodel", numbers, seed=args.seed, started=started, quick=args.quick,
        version=version, models=list(MODELS), seconds_for_a_fit=args.limit,
        survey=SURVEY.describe(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
