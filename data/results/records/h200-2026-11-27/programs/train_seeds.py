"""Train the shipped recipe with several seeds on one GPU, and call fresh test sets with all of them.

    python train_seeds.py --sets FOLDER --out FOLDER --work FOLDER --seeds 1 2 3 --seconds S
        --switches refits exact block expert head graphs --evaluate_seconds 60

What `python book/scripts/train_shipped.py --times 4 --epochs 8 --batch_size 1024 --seed N` does for
each seed, with the kernels that are switched on; the sets are loaded once for all seeds, and wherever
steps are captured as graphs these are used again. Every run begins at `weights/first_stage`, as the
recipe says. Stops by itself before its time is over; finished runs are not repeated.
"""

import argparse
import io
import json
import logging
import os
import tarfile
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--sets", type=Path, required=True)
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--work", type=Path, required=True)
parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
parser.add_argument("--seconds", type=float, default=500.0)
parser.add_argument("--evaluate_seconds", type=float, default=60.0)
parser.add_argument("--switches", nargs="*", default=[])
parser.add_argument("--share", type=float, default=1.0)
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--batch_size", type=int, default=1024)
args = parser.parse_args()
STARTED = time.time()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from fused import switches  # noqa: E402
from fused.graph import GraphRun  # noqa: E402
from lensml import train as package  # noqa: E402
from lensml.checkpoint import MODEL, load_network, load_tensors, save_tensors  # noqa: E402
from lensml.dataset import load  # noqa: E402
from lensml.evaluate import refuse_seen_events  # noqa: E402
from lensml.features import encode, observed_epochs  # noqa: E402
from lensml.loop import Run, find_device  # noqa: E402
from lensml.resident import load_resident  # noqa: E402
from lensml.train import HISTORY, _check_folder, _write_config, _write_metrics  # noqa: E402
from sets import COMMIT, recipe, tests, training_folders  # noqa: E402

DEV = find_device()
GRAPHS = "graphs" in args.switches
KERNELS = [n for n in args.switches if n in switches.ALL]
package.git_commit = lambda: COMMIT + (f", kernels: {', '.join(args.switches)}" if args.switches else "")
log = package.log
log.setLevel(logging.INFO)
switches.install()
torch.set_flush_denormal(True)


def left() -> float:
    return args.seconds - (time.time() - STARTED)


def say(text: str) -> None:
    print(f"[{time.time() - STARTED:6.1f} s] {text}", flush=True)


def deliver() -> None:
    """All runs so far as one file: weights in float16, configuration, history, metrics, log."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for run in sorted(args.work.glob("seed*")):
            for name in (MODEL, "config.json", "metrics.json", "history.csv", "training.log"):
                path = run / name
                if not path.exists():
                    continue
                if name == MODEL:
                    tensors, notes = load_tensors(path)
                    path = run / "float16.safetensors"
                    save_tensors(path, {k: x.half() for k, x in tensors.items()}, notes)
                archive.add(path, f"{run.name}/{name}")
    temporary = args.out / "runs.tmp"
    temporary.write_bytes(buffer.getvalue())
    temporary.rename(args.out / "runs.tar")


def one_seed(run, folder: Path, described: dict) -> bool:
    """Train a run to its end; False if the time was too short for it."""
    handler = logging.FileHandler(folder / "training.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    begun = time.perf_counter()
    spent = [0.0]
    try:
        _write_config(folder, described, run.config.start_from, run.data, DEV)
        log.info("%d parameters on %s", run.network.num_parameters, DEV)
        for epoch in range(run.config.epochs):
            if left() < args.evaluate_seconds + 1.1 * max(spent[1:] or spent) + 8:
                say(f"{folder.name}: stopped before epoch {epoch + 1}, the time is over")
                deliver()
                return False
            first = time.perf_counter()
            loss, rate = run.train_epoch(epoch)
            validating = time.perf_counter()
            validation_loss, auc = run.validate()
            seconds = time.perf_counter() - first
            spent.append(seconds)
            values = (epoch + 1, loss, validation_loss, auc, rate, round(seconds, 2))
            run.history.append(dict(zip(HISTORY, values, strict=True)))
            run.save(epoch)
            log.info("epoch %d: loss %.4f, validation %.4f, AUC %.4f, %.0f s", epoch + 1, *values[1:4], seconds)
            say(
                f"{folder.name} epoch {epoch + 1}: loss {loss:.4f}, validation {validation_loss:.4f}, "
                f"AUC {auc:.4f}, {seconds:.1f} s of which validation {time.perf_counter() - validating:.1f}"
            )
            if not np.isfinite(validation_loss) or (validation_loss > 0.68 and args.share == 1):
                raise FloatingPointError(f"validation loss {validation_loss}")
            deliver()
        _write_metrics(folder, run, time.perf_counter() - begun)
    finally:
        log.removeHandler(handler)
        handler.close()
    deliver()
    return True


def train_all() -> list[Path]:
    """Finished runs."""
    while not (args.sets / "train_ready").exists():
        if left() < args.evaluate_seconds + 30:
            raise TimeoutError("no training sets")
        time.sleep(0.5)
    of = recipe(args.share)
    paths = training_folders(args.sets, of)
    config = replace(of.training, epochs=args.epochs, batch_size=args.batch_size)
    say("loading the training sets")
    data = load_resident(paths, config.validation_fraction, DEV)
    say(f"{len(data.labels)} rows, {len(data.train_pairs)} pairs to train on, {len(data.validation_pairs)} to validate")
    run, done, whole = None, [], 0.0
    for seed in args.seeds:
        folder = args.work / f"seed{seed}"
        if (folder / "metrics.json").exists():
            done.append(folder)
            continue
        if whole and left() < 1.02 * whole + args.evaluate_seconds + 8:
            say(f"seed {seed} is not begun: {left():.0f} s are left, one takes {whole:.0f}")
            break
        config = replace(config, seed=seed)
        described = {
            "experiment_name": "general", "data": [p.name for p in paths],
            "training": json.loads(json.dumps(asdict(config))),
        }  # fmt: skip
        _check_folder(folder, described, resume=True)
        begun = time.time()
        if run is None or not GRAPHS:
            run = (GraphRun if GRAPHS else Run)(config, data, folder, DEV)
        else:
            run.restart(config, folder)
        if not one_seed(run, folder, described):
            break
        whole = time.time() - begun
        done.append(folder)
        say(f"seed {seed}: {whole:.1f} s in all, {8 * run.steps * args.batch_size / whole:.0f} curves/s; {torch.cuda.max_memory_allocated() / 2**30 if DEV.type == 'cuda' else 0:.1f} GiB")
        if GRAPHS:
            say(f"calls of the data path took {run.seconds['data']:.1f} s so far; {len(run.graphs)} graphs")
    del run, data
    return done


@torch.no_grad()
def calls(networks, curves, batch: int = 1024):
    """Logits of each network at the last epoch of each row and at half of the window, float32."""
    found = np.full((2, len(networks), len(curves)), np.nan, dtype=np.float32)
    times, sigmas = curves.times(), curves.sigmas()
    middle = times[0, 0] + 0.5 * (times[0, -1] - times[0, 0])
    for first in range(0, len(curves), batch):
        rows = slice(first, first + batch)
        observed = observed_epochs(*(x[rows] for x in (curves.X, sigmas, times, curves.m_base)), DEV)
        features = encode(observed)
        refits = networks[0].refits(observed, blended=curves.blended)
        last = (observed.valid.sum(1) - 1).clamp_min(0)[:, None]
        by_half = (observed.valid & (observed.times <= middle)).sum(1)
        for k, network in enumerate(networks):
            logits = network(features, refits)
            found[0, k, rows] = logits.gather(1, last)[:, 0].cpu().numpy()
            at_half = logits.gather(1, (by_half - 1).clamp_min(0)[:, None])[:, 0]
            at_half = torch.where(by_half > 0, at_half, torch.zeros_like(at_half))
            found[1, k, rows] = at_half.cpu().numpy()
    return found


def evaluate(done: list[Path]) -> None:
    """Logits of the shipped weights and of all finished runs on the test sets, one file."""
    folders = [None, *done]
    names = ["shipped", *(f.name for f in done)]
    loaded = [load_network(f, DEV) for f in folders]
    networks = [n.eval() for n, _ in loaded]
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    kept, spent = {"networks": np.array(names)}, 0.0
    for name in tests():
        table = args.sets / f"table_{name}.npz"
        while not table.exists() and left() > 15:
            time.sleep(0.5)
        if not table.exists() or left() < 12 + spent:
            say(f"{name}: not called, {left():.0f} s are left")
            continue
        begun = time.time()
        curves = load(args.sets / name)
        for _, config in loaded:
            refuse_seen_events(curves, config, Path(name))
        with np.load(table) as file:
            kept |= {f"{name}/{k}": file[k] for k in file.files}
        logits = calls(networks, curves)
        kept[f"{name}/logits"], kept[f"{name}/logits_at_half"] = logits
        kind = "baseline" if name.startswith("baseline") else "others"  # files stay below 16 MiB
        files = {
            k: narrow(v) for k, v in kept.items()
            if k == "networks" or k.startswith("baseline") == (kind == "baseline")
        }  # fmt: skip
        temporary = args.out / "calls.tmp.npz"
        np.savez_compressed(temporary, **files)
        temporary.rename(args.out / f"calls_{kind}.npz")
        spent = time.time() - begun
        say(f"{name}: {len(curves)} rows by {len(networks)} networks in {spent:.1f} s, {len(curves) / spent:.0f} rows/s")


def narrow(x: np.ndarray) -> np.ndarray:
    """No wider than needed in a file."""
    if x.dtype == np.float64:
        return x.astype(np.float32)
    return x.astype(np.int32) if x.dtype == np.int64 else x


def main() -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    switches.use(*KERNELS)
    say(f"switches: {args.switches}; device {DEV}")
    side = torch.cuda.Stream() if DEV.type == "cuda" else None
    with torch.cuda.stream(side) if side else nullcontext():
        done = train_all()
        if DEV.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        switches.use(*({"exact"} & set(KERNELS)))
        evaluate(done)
    deliver()
    say(f"finished runs: {[f.name for f in done]}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    main()
