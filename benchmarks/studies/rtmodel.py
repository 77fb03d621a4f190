"""RTModel (Bozza 2024) and the network on some events of ours: detections, false alarms, CPU time.

    python -m benchmarks.studies.rtmodel --python PEERS/bin/python [--quick] [--of_each 3]

RTModel is no requirement of the package: `python -m venv PEERS && PEERS/bin/pip install RTModel`
makes an environment for it, whose interpreter is given by `--python`. It runs in one process, with
static models only (one source, two sources, two lenses), errors as quoted, all else at its
defaults but for the time a single fit may take. An event takes some ten minutes of a core; what is
done is remembered under `_build/benchmarks/rtmodel`, so that a second call goes on.

The events, of every sixth epoch at 0.03 mag: binaries with a strong anomaly; planets; a planet
that a blended single lens fits as well; and twins of the first kind, single lenses. RTModel always
frees blend, baseline and size of the source and so has less to find than a search that knows them:
`dchi2_free_blend` is delta-chi2 against the best *blended* single lens. The network is not told the
baseline either; it alerts where P(binary) passes the shipped threshold for 1 % of single lenses.
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
from lensml.network import DataSetEpochs, Network, load_network, predict_event
from lensml.simulation import LightCurves, Simulation, Survey, load, simulate
from lensml.streaming import find_threshold

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


def pick(label: str, seed: int, which: int) -> tuple[LightCurves, dict[str, float]]:
    """A suitable event of a set, by its number, as one row, and the strength of its anomaly."""
    preset, strength, blended_strength, row = CHOSEN[label]
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(preset=preset, num_pairs=512, seed=seed, survey=SURVEY)
        curves = load(simulate(Path(folder) / "set.npz", simulation, workers=1, progress=False))
    for k in np.flatnonzero((curves.y == 1) & (curves.dchi2 > strength[0])):
        binary = curves.rows(slice(k, k + 1))
        free = with_free_blend(binary)
        between = blended_strength[0] <= free < blended_strength[1]
        if between and curves.dchi2[k] < strength[1]:
            if which:
                which -= 1
                continue
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


def by_network(network: Network, threshold: float, curve: LightCurves) -> dict[str, float]:
    """P(binary) at the end and at most, whether it alerts, and processor time for all epochs."""
    seen = np.isfinite(curve.X[0])
    columns = curve.times()[0], curve.X[0].astype(float), curve.sigmas()[0]
    datasets = [DataSetEpochs(*(x[seen] for x in columns))]
    started = time.process_time()
    logits = predict_event(network, datasets).logits
    p = network.probabilities(logits)[:, 1:3].sum(1).nan_to_num(0).numpy()
    found = {"network_cpu_seconds": time.process_time() - started, "network_p": float(p[-1])}
    return found | {"network_p_max": float(p.max()), "network_alerts": int(p.max() >= threshold)}


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
    parser.add_argument("--of_each", type=int, default=3, help="events; of the hidden planet one")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for a single fit")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    started, numbers, version = time.time(), {}, ""
    network, threshold = load_network()[0], find_threshold(None).value
    called: dict[str, list] = {}
    chosen = [(x, k) for x in CHOSEN for k in range(1 if x == "hidden_planet" else args.of_each)]
    for label, which in [("planet", 0)] if args.quick else chosen:
        curve, strength = pick(label, args.seed, which)
        fits = 2 if args.quick else 6  # from each starting point; 6 is the default
        name = f"{label}_{which + 1}" if which else label
        cache = QUICK / "rtmodel" / f"{name}-{args.seed}-{fits}-{args.limit:g}.json"
        if not cache.exists():
            found = model_event(args.python, curve, limit=args.limit, fits=fits)
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(found))
        else:  # its time counts as well
            started -= 60 * json.loads(cache.read_text())["minutes"]
        found = json.loads(cache.read_text())
        version = found.pop("version")
        by_network(network, threshold, curve)  # compiles
        found |= by_network(network, threshold, curve)
        numbers |= {f"{name}_{key}": value for key, value in (strength | found).items()}
        lens = found["conclusion"].endswith(("binary lens", "planetary lens"))
        called.setdefault(label, []).append((lens, found["network_alerts"]))
        called.setdefault("minutes", []).append(found["cpu_minutes"])
        called.setdefault("seconds", []).append(found["network_cpu_seconds"])
    minutes, seconds = called.pop("minutes"), called.pop("seconds")
    for k, who in enumerate(("rtmodel", "network")):
        numbers |= {f"{who}_calls_{x}": sum(int(c[k]) for c in rows) for x, rows in called.items()}
    numbers |= {f"of_{label}": len(rows) for label, rows in called.items()}
    numbers["rtmodel_median_cpu_minutes"] = float(np.median(minutes))
    numbers["network_median_cpu_seconds"] = float(np.median(seconds))
    save_record(
        "rtmodel", numbers, seed=args.seed, started=started, quick=args.quick,
        version=version, models=list(MODELS), seconds_for_a_fit=args.limit,
        survey=SURVEY.describe(),
    )  # fmt: skip


if __name__ == "__main__":
    main()
