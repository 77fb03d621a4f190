"""Train a network into a run folder, on the CPU, one GPU, several GPUs or several nodes."""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.pool import Pool
from pathlib import Path

import torch
import torch.distributed as dist

from lensml.network import CONFIG, find_device, load_network, run_folder
from lensml.paths import (
    InputError,
    atomic_path,
    available_cores,
    git_commit,
    only_writer,
    read_json,
    tune_allocator,
    writing,
)
from lensml.simulation import worker_pool
from lensml.training.data import TrainingData, load_training_data
from lensml.training.trainer import HISTORY, LAST, SHIPPED, Trainer, TrainingConfig

log = logging.getLogger(__name__)
ALONE = 2000  # curves; fewer are cut into samples before a second process would start


def _loop(run: Trainer, first: int) -> None:
    board = _tensorboard(run.run) if run.rank == 0 else None
    for epoch in range(first, run.config.max_epochs or run.config.epochs):
        started = time.perf_counter()
        loss, rate = run.train_epoch(epoch)
        validation_loss, auc = run.validate()
        seconds = time.perf_counter() - started
        values = (epoch + 1, loss, validation_loss, auc, rate, round(seconds, 2))
        run.history.append(dict(zip(HISTORY, values, strict=True)))
        if run.rank == 0:
            run.save(epoch)
            text = "epoch %d: loss %.4f, validation %.4f, AUC %.4f, %.0f s"
            log.info(text, *values[:4], seconds)
            if board:
                for name in HISTORY[1:]:
                    board.add_scalar(name, run.history[-1][name], epoch + 1)
        if run.should_stop():
            log.info("no better validation loss in %d epochs: stopped", run.config.patience)
            break


def _tensorboard(run: Path):
    """A TensorBoard writer where it is installed (`pip install lensml[monitor]`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run / "tensorboard"))


def train(
    data: list[Path] | Path,
    output: Path | str,
    config: TrainingConfig,
    *,
    name: str = "",
    resume: bool = False,
    wait: bool = False,
) -> Path:
    """Train a network on one or several sets into a run folder, which is returned.

    Noise is drawn afresh where the sets carry magnifications. The folder holds config.json with the
    `name` of the experiment, model.safetensors (best), last.safetensors (to resume), metrics.json,
    history.csv and training.log. A killed run ends with the same bits once resumed. InputError if
    the sets cannot be read, the folder holds another run, memory is short or, without `wait`,
    another process trains into the folder.
    """
    run = run_folder(output)
    first = os.environ.get("RANK", "0") == "0"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "RANK" not in os.environ:
        raise InputError(
            f"{os.environ['SLURM_STEP_NUM_TASKS']} tasks of a SLURM step would each train alone; "
            "start them by `srun torchrun ... -m lensml train`, or one task"
        )
    with only_writer(run, wait=wait) if first else nullcontext():
        _train(data, run, config, name, resume)
    return run


def _train(data, run: Path, config: TrainingConfig, name: str, resume: bool) -> None:
    paths = [Path(p) for p in ([data] if isinstance(data, str | Path) else data)]
    described = {"experiment_name": name, "data": [p.name for p in paths]}
    described["training"] = config.describe()
    if config.start_from:  # a run is known by its name, wherever it lies
        described["training"]["start_from"] = Path(config.start_from).name
    _check_folder(run, described, resume)
    gpus = torch.cuda.device_count()
    if gpus > 1 and "RANK" not in os.environ:
        torch.multiprocessing.spawn(_worker, (gpus, paths, run, config, described), gpus)
    else:
        _process(paths, run, config, described)


def _check_folder(run: Path, described: dict, resume: bool) -> None:
    if (run / LAST).exists() and not resume:
        raise InputError(
            f"{run}: holds a training run; --resume takes it up, another --output starts anew"
        )
    if (run / CONFIG).exists() and resume:
        found = read_json(run / CONFIG, {"training": dict})
        earlier, now = found["training"], described["training"]
        if other := sorted(k for k in now if earlier.get(k) != now[k]):
            raise InputError(
                f"{run}: was begun with other settings ({', '.join(other)}); give the same to "
                "resume it, or another --output"
            )


def _worker(rank: int, world: int, paths, run, config, described) -> None:
    """One process of `lensml train` on several GPUs of one machine."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29531")
    _process(paths, run, config, described)


def _process(paths: list[Path], run: Path, config: TrainingConfig, described: dict) -> None:
    device = find_device()
    # After some hundred steps, moments of the optimiser sink into denormal numbers, which a CPU
    # computes many times slower: 0.5 steps a second without this, 1.6 with it.
    torch.set_flush_denormal(True)
    if device.type == "cpu":
        tune_allocator()
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
    started = time.perf_counter()
    try:
        data = load_training_data(paths, config.validation_fraction)  # no run folder before it fits
    except torch.OutOfMemoryError:
        raise _too_large(config, device) from None
    with writing(run):
        run.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(run / "training.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with _makers(config, data) as (pool, workers):
            state = Trainer(config, data, run, device, pool, workers)
            first = state.restore() if (run / LAST).exists() else 0
            if state.rank == 0:
                _write_config(run, described, config.start_from, data, device)
                log.info("%d parameters on %s", state.network.num_parameters, device)
                if (steps := state.steps * config.epochs) * config.warmup_fraction < 1:
                    way = "give more events, more --epochs or a smaller --batch_size"
                    log.warning("%d steps in all are too few to learn from: %s", steps, way)
            _loop(state, first)
            if state.rank == 0:
                _write_metrics(run, state, time.perf_counter() - started)
    except torch.OutOfMemoryError:
        raise _too_large(config, device) from None
    finally:
        torch.set_flush_denormal(False)
        log.removeHandler(handler)
        handler.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _too_large(config: TrainingConfig, device: torch.device) -> InputError:
    way = f"try --batch_size {max(2, config.batch_size // 2)}"
    what = f"--batch_size {config.batch_size} does not fit into the memory of {device}"
    return InputError(f"{what}; {way}")


@contextmanager
def _makers(config: TrainingConfig, data: TrainingData) -> Iterator[tuple[Pool | None, int]]:
    """Processes that make samples, and their number; none for little work.

    On a CPU the network takes a fifth of a core meanwhile, on one thread.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    workers = max(1, available_cores() // world)
    if 2 * len(data.train_pairs) * (config.max_epochs or config.epochs) < ALONE:
        yield None, 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with worker_pool(workers) as pool:
            yield pool, workers
    finally:
        torch.set_num_threads(threads)


def _write_config(
    run: Path, described: dict, start: str | None, data: TrainingData, device: torch.device
) -> None:
    config = described | {"trained_on": data.trained_on, "validated_on": data.validated_on}
    if start:  # what the first weights had seen counts too
        before = load_network(None if start == SHIPPED else start)[1]
        for name in ("trained_on", "validated_on"):
            earlier = before.get(name, [])
            config[name] = earlier + [r for r in config[name] if r not in earlier]
    config["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    config |= {"torch": torch.__version__, "commit": git_commit()}
    with atomic_path(run / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=1))


def _write_metrics(run: Path, state: Trainer, seconds: float) -> None:
    best = min(state.history, key=lambda row: row["validation_loss"])
    metrics = {"split": "validation", "best_epoch": best["epoch"]}
    metrics |= {name: best[name] for name in ("validation_loss", "validation_auc")} | {
        "epochs": len(state.history),
        "seconds": round(sum(row["seconds"] for row in state.history), 1),
        "seconds_this_process": round(seconds, 1),
        "parameters": state.network.num_parameters,
    }
    with atomic_path(run / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=1))
