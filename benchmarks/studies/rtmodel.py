"""RTModel (Bozza 2024) on three events of ours: how long full modelling takes, what it concludes.

    python -m benchmarks.studies.rtmodel --python PEERS/bin/python [--quick] [--seed 77]

RTModel is no requirement of the package: `python -m venv PEERS && PEERS/bin/pip install RTModel`
makes an environment for it, whose interpreter is given by `--python`. It runs in one process, with
static models only (one source, two sources, two lenses), errors as quoted, all else at its
defaults but for the time a single fit may take. An event takes some ten minutes of a core; what is
done is remembered under `_build/benchmarks/rtmodel`, so that a second call goes on.

The events, of every sixth epoch at 0.03 mag: a binary with a strong anomaly; a planet; a planet
that a blended single lens fits as well; and the twin of the first, a single lens. RTModel always
frees blend, baseline and size of the source and so has less to find than a search that knows them:
`dchi2_free_blend` is delta-chi2 against the best *blended* single lens.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import QUICK, save_record
from lensml.lensing import fit_pspl
from lensml.simulation import LightCurves, Simulation, Survey, load, simulate

SURVEY = Survey(sigma=0.03, keep_every=(6, 6))
CHOSEN = {  # label: set, delta-chi2 of the pair, the same with a free blend, class of the row
    "binary": ("distinct", (2000, 1e5), (1000, 1e5), 1),
    "planet": ("planetary", (200, 1e4), (200, 1000), 1),
    "hidden_planet": ("planetary", (200, 1000), (0, 9), 1),
    "twin": ("distinct", (2000, 1e5), (1000, 1e5), 0),
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


def pick(label: str, seed: int) -> tuple[LightCurves, dict[str, float]]:
    """The first suitable event of a set, as a set of one row, and the strength of its anomaly."""
    preset, strength, blended_strength, row = CHOSEN[label]
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(preset=preset, num_pairs=512, seed=seed, survey=SURVEY)
        curves = load(simulate(Path(folder) / "set.npz", simulation, workers=1, progress=False))
    for k in np.flatnonzero((curves.y == 1) & (curves.dchi2 > strength[0])):
        binary = curves.rows(slice(k, k + 1))
        free = with_free_blend(binary)
        between = blended_strength[0] <= free < blended_strength[1]
        if between and curves.dchi2[k] < strength[1]:
            chosen = curves.rows((curves.pair == curves.pair[k]) & (curves.y == row))
            return chosen, {"dchi2": row * float(curves.dchi2[k]), "dchi2_free_blend": row * free}
    raise SystemExit(f"no event of {preset} fits `{label}`; take another --seed")


def write_event(folder: Path, curve: LightCurves) -> None:
    """One event as RTModel reads it: magnitude, error, HJD - 2450000, and a place on the sky."""
    (folder / "Data").mkdir(parents=True)
    seen = np.isfinite(curve.X[0])
    table = np.column_stack([curve.X[0], curve.sigmas()[0], curve.times()[0] + 9000])[seen]
    np.savetxt(folder / "Data" / "I.dat", table, fmt="%.6f", header="Mag err HJD-2450000")
    (folder / "Data" / "event.coordinates").write_text("17:50:00.00 -30:00:00.0\n")


def with_free_blend(curve: LightCurves) -> float:
    """Delta-chi2 that is left of one event when the single lens may be blended, as RTModel's is."""
    delta = torch.from_numpy(curve.noise_free() - curve.m_base[:, None])
    weight = torch.from_numpy(np.isfinite(curve.X) / curve.sigmas().astype(float) ** 2)
    fit = fit_pspl(torch.from_numpy(curve.time), delta, weight=weight, blended=True)
    return float(min(fit.chi2[0], curve.dchi2[0]))


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
    parser.add_argument(
        "--quick", action="store_true", help="the planet alone, fewer fits; not kept"
    )
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for a single fit")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    started, numbers, version = time.time(), {}, ""
    for label in ["planet"] if args.quick else CHOSEN:
        curve, strength = pick(label, args.seed)
        fits = 2 if args.quick else 6  # from each starting point; 6 is the default
        cache = QUICK / "rtmodel" / f"{label}-{args.seed}-{fits}-{args.limit:g}.json"
        if not cache.exists():
            found = model_event(args.python, curve, limit=args.limit, fits=fits)
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(found))
        else:  # its time counts as well
            started -= 60 * json.loads(cache.read_text())["minutes"]
        found = json.loads(cache.read_text())
        version = found.pop("version")
        numbers |= {f"{label}_{name}": value for name, value in (strength | found).items()}
    save_record(
        "rtmodel", numbers, seed=args.seed, started=started, quick=args.quick,
        version=version, models=list(MODELS), seconds_for_a_fit=args.limit,
        survey=SURVEY.describe(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
