"""Simulate light-curve sets: binaries and their twins on all cores, sharded and resumable."""

import itertools
import json
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.pool import Pool
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

from lensml.lensing import (
    BinaryLens,
    binary_magnification,
    finite_source_magnification,
    fit_pspl,
    point_lens_magnification,
)
from lensml.limits import MAX_PAIRS, MAX_SHARDS, MAX_WORKERS
from lensml.paths import (
    InputError,
    atomic_path,
    available_cores,
    deaf,
    git_commit,
    only_writer,
    parse_json,
    progress_bar,
    read_json,
    tune_allocator,
    writing,
)
from lensml.seeds import check_seed, event_generator
from lensml.simulation.lightcurves import (
    META,
    PARAM_NAMES,
    LightCurves,
    concatenate,
    merge_shards,
    observe_pairs,
    read_members,
    save,
)
from lensml.simulation.priors import draw_binary, draw_single, parameter_set
from lensml.simulation.survey import Survey

log = logging.getLogger(__name__)
BLOCK = 64  # events made together; blocks are aligned to multiples of it in the event's index
MAX_PENDING = 64  # blocks that may wait to be written: more than are made while a shard is written
BASELINE_MAG = (16.0, 20.0)
FORMAT_VERSION = 2  # raised when the same arguments give other bits: interpolation, blocks of 64


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Everything that decides the bits of a set."""

    preset: str = "baseline"
    num_pairs: int = 100_000
    seed: int = 0
    survey: Survey = Survey()
    blending: tuple[float, float] | None = None  # range of f_s, drawn per event
    population: bool = False  # singles from the priors instead of twins
    shard_size: int = 10_000  # events a shard

    def __post_init__(self) -> None:
        parameter_set(self.preset)
        check_seed(self.seed)
        for name in ("num_pairs", "shard_size"):
            if not 1 <= getattr(self, name) <= MAX_PAIRS:
                what = f"`{name}` is {getattr(self, name)}"
                raise InputError(f"{what}, but 1 to {MAX_PAIRS} was expected")
        if self.num_pairs > MAX_SHARDS * self.shard_size:
            what = f"{self.num_pairs} events in shards of {self.shard_size} (`shard_size`)"
            raise InputError(f"{what} are more than {MAX_SHARDS} shards; make them larger")
        if self.blending is not None and not 0 < self.blending[0] <= self.blending[1] <= 1:
            raise InputError(f"`blending` is {self.blending}, but 0 < LO <= HI <= 1 was expected")

    def shards(self) -> list[range]:
        """Events of each shard, consecutive."""
        return [
            range(first, min(first + self.shard_size, self.num_pairs))
            for first in range(0, self.num_pairs, self.shard_size)
        ]

    def describe(self) -> dict:
        """Plain values for JSON; two sets with the same description have the same bits."""
        described = asdict(self) | {"num_events": self.num_pairs, "recipe": FORMAT_VERSION}
        del described["num_pairs"]
        return json.loads(json.dumps(described))  # lists in place of tuples


def _draw_and_magnify(sim: Simulation, index: int, times: np.ndarray):
    """One binary and its curve; an event on which the solver fails is redrawn and counted."""
    generator = event_generator(sim.seed, sim.preset, index)
    for redrawn in itertools.count():
        event = draw_binary(parameter_set(sim.preset), generator, (times[0], times[-1]))
        try:
            curve = binary_magnification(event, times)
        except (RuntimeError, ArithmeticError):
            curve = np.array([np.nan])
        if curve.shape == times.shape and np.isfinite(curve).all() and (curve > 0.99).all():
            return event, curve, redrawn


def _noise_free(magnification: np.ndarray, f_s: np.ndarray) -> np.ndarray:
    """Magnitude minus baseline (n, T) of magnification (n, T) and blending f_s (n,)."""
    return -2.5 * np.log10(1 + f_s[:, None] * (magnification - 1))


def fit_twins(
    events: list[BinaryLens], curves: np.ndarray, f_s: np.ndarray, times: np.ndarray, blended: bool
) -> tuple[np.ndarray, np.ndarray]:
    """PSPL twin of each binary: parameters (n, 8) and unblended magnification (n, T).

    `curves` (n, T) are noise-free magnifications at `times` (T,) [day], `f_s` (n,) the lensed part
    of the baseline flux, free if `blended`; fits start from the events' t0, u0 and tE, too.
    """
    delta = _noise_free(curves, f_s)
    starts = torch.tensor([[[e.t0, e.u0, e.tE]] for e in events], dtype=torch.float64)
    grid = torch.from_numpy(times)
    fit = fit_pspl(grid, torch.from_numpy(delta), starts=starts, blended=blended)
    params = np.full((len(events), len(PARAM_NAMES)), np.nan)
    for name in ("t0", "u0", "tE", "f_s"):
        params[:, PARAM_NAMES.index(name)] = getattr(fit, name).numpy()
    t0, u0, tE = params[:, :3].T[:, :, None]
    return params, point_lens_magnification(np.hypot(u0, (times - t0) / tE))


def make_block(task: tuple[Simulation, range]) -> dict[str, np.ndarray]:
    """Members of events of one block of BLOCK, and how many of them were redrawn.

    The block is padded with copies: array shapes, and with them the last bits of vectorised
    logarithms and sums, do not depend on how a set is cut into shards.
    """
    sim, wanted = task
    times = sim.survey.times
    slot = np.array([i % BLOCK for i in wanted])
    pick = np.zeros(BLOCK, dtype=int)
    pick[slot] = np.arange(len(slot))
    made = [_draw_and_magnify(sim, i, times) for i in wanted]
    padded = [made[k] for k in pick]
    indices = [wanted[k] for k in pick]
    rows = _pair_up(sim, indices, [e for e, _, _ in padded], np.stack([c for _, c, _ in padded]))
    noise_free = _noise_free(rows["magnification"], rows["params"][:, PARAM_NAMES.index("f_s")])
    noise = [event_generator(sim.seed, sim.preset, i, "noise") for i in indices]
    seen = noise_free, rows["m_base"], noise, sim.survey, times
    rows |= observe_pairs(*seen, matched=not sim.population)
    rows["magnification"] = rows["magnification"].astype(np.float32)
    keep = np.stack([2 * slot, 2 * slot + 1], axis=1).ravel()
    rows = {key: value[keep] for key, value in rows.items()}
    return rows | {"redrawn": np.array([sum(r for _, _, r in made)])}


def _pair_up(sim: Simulation, indices: list, events: list, curves: np.ndarray) -> dict:
    """Rows of both classes: each binary after its twin or an unrelated single lens."""
    times = sim.survey.times
    sides = [event_generator(sim.seed, sim.preset, i, "side") for i in indices]
    m_base = np.array([g.uniform(*BASELINE_MAG) for g in sides], dtype=np.float32)
    f_s = np.array([g.uniform(*sim.blending) if sim.blending else 1.0 for g in sides])
    binary = np.array([[e.t0, e.u0, e.tE, e.rho, e.s, e.q, e.alpha, 1.0] for e in events])
    binary[:, 7] = f_s
    if sim.population:
        parameters = parameter_set(sim.preset)
        generators = [event_generator(sim.seed, sim.preset, i, "single") for i in indices]
        singles = [draw_single(parameters, g) for g in generators]
        u = [np.hypot(e.u0, (times - e.t0) / e.tE) for e in singles]
        other_curves = np.stack(
            [finite_source_magnification(x, e.rho) for x, e in zip(u, singles, strict=True)]
        )
        single = np.full_like(binary, np.nan)
        single[:, :4] = [[e.t0, e.u0, e.tE, e.rho] for e in singles]
        single[:, 7] = f_s
    else:
        single, other_curves = fit_twins(events, curves, f_s, times, bool(sim.blending))
    return {
        "magnification": _interleave(other_curves, curves),
        "params": _interleave(single, binary),
        "m_base": m_base.repeat(2),
        "pair": (np.full_like(indices, -1) if sim.population else np.array(indices)).repeat(2),
    }


def _interleave(single: np.ndarray, binary: np.ndarray) -> np.ndarray:
    return np.stack([single, binary], axis=1).reshape(-1, single.shape[1])


def _blocks(events: range) -> list[range]:
    edges = [*range(events.start - events.start % BLOCK, events.stop, BLOCK), events.stop]
    return [range(max(a, events.start), b) for a, b in itertools.pairwise(edges)]


def _start_worker() -> None:
    tune_allocator()
    torch.set_num_threads(1)


class _Worker(SpawnProcess):
    """Ended by its pool alone: one that SIGTERM ends may hold a lock, for which a pool waits."""

    terminate = SpawnProcess.kill


def worker_pool(workers: int) -> Pool:
    """Processes of one thread each, whose allocator keeps what is freed.

    They import the package, not the script that starts them, which therefore needs no guard.
    """
    context = SpawnContext()  # safe beside CUDA and its threads
    context.Process = _Worker
    script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        with deaf(signal.SIGTERM):
            return context.Pool(workers, initializer=_start_worker)
    finally:
        sys.modules["__main__"] = script


def bounded_imap(pool: Pool, tasks: list, ahead: int = MAX_PENDING) -> Iterator[dict]:
    """Results of `make_block` in order, with at most `ahead` tasks pending.

    A disk slower than the workers would fill the memory otherwise. Close it before the pool.
    """
    room, ended = threading.Semaphore(ahead), threading.Event()

    def given() -> Iterator[tuple[Simulation, range]]:
        for task in tasks:
            while not room.acquire(timeout=0.1):
                if ended.is_set():
                    return
            yield task

    try:
        for block in pool.imap(make_block, given()):
            room.release()
            yield block
    finally:
        ended.set()


def shard_set(sim: Simulation, events: range, blocks: list[dict]) -> LightCurves:
    """One shard from the blocks that `make_block` made of its events."""
    rows = concatenate(blocks)
    meta = sim.describe() | {
        "first_event": events.start,
        "num_events": len(events),
        "num_rows": 2 * len(events),
        "redrawn": int(rows.pop("redrawn").sum()),
        "versions": {name: version(name) for name in ("VBMicrolensing", "numpy", "torch")},
        "commit": git_commit(),
    }
    y = np.tile(np.array([0, 1], dtype=np.int8), len(events))
    return LightCurves(**rows, y=y, time=sim.survey.times, meta=meta)


def _shard_paths(sim: Simulation, folder: Path) -> dict[Path, range]:
    return {folder / f"part-{k:05d}.npz": events for k, events in enumerate(sim.shards())}


def _write_shards(
    sim: Simulation, shards: Mapping[Path, range], workers: int, progress: bool
) -> None:
    """Make the missing shards in order; finished ones are left as they are."""
    todo = [(path, events) for path, events in shards.items() if not path.exists()]
    total = sum(map(len, shards.values()))
    tasks = [(sim, block) for _, events in todo for block in _blocks(events)]
    workers = min(workers, len(tasks))
    label = f"simulate {sim.preset}"
    options = {"total": total, "unit": "event", "leave": True}
    bar = progress_bar(None, label, disable=not progress, **options)
    bar.update(total - sum(len(events) for _, events in todo))
    if workers <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            _collect(sim, todo, map(make_block, tasks), bar)
        finally:
            torch.set_num_threads(threads)
    else:
        with worker_pool(workers) as pool, closing(bounded_imap(pool, tasks)) as results:
            _collect(sim, todo, results, bar)
    bar.close()


def _collect(sim: Simulation, todo: list, results: Iterator[dict], bar: tqdm) -> None:
    for path, events in todo:
        blocks = []
        for block in _blocks(events):
            blocks.append(next(results))
            bar.update(len(block))
        save(path, shard_set(sim, events, blocks))
        log.info("wrote %s, events %d to %d", path.name, events.start, events.stop - 1)


def _claim(folder: Path, sim: Simulation) -> None:
    """Mark a folder as this simulation's; refuse one that holds another's."""
    begun = folder / "simulation.json"
    wanted = sim.describe()
    if begun.exists():
        found = read_json(begun, {})
        if different := [k for k in wanted if found.get(k) != wanted[k]]:
            was = ", ".join(f"{k} = {found.get(k)}" for k in different)
            raise InputError(
                f"{folder}: holds a set with other arguments ({was}); "
                "give the same arguments to finish it, or another --output"
            )
        return
    # A killed process may have left a temporary file, whose name begins with a dot.
    if folder.exists() and not (
        folder.is_dir() and all(x.name[0] == "." for x in folder.iterdir())
    ):
        raise InputError(f"{folder}: exists and is not a light-curve set; give another --output")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(begun) as temporary:
        temporary.write_text(json.dumps(wanted, indent=1))


def simulate(
    output: Path | str,
    simulation: Simulation,
    *,
    workers: int | None = None,
    progress: bool = True,
    wait: bool = False,
) -> Path:
    """Simulate a set into one `.npz`, or a folder of shards if `output` has no suffix.

    An unfinished `output` is resumed, a finished one is left alone, one made with other arguments
    gives InputError; it is returned. `workers` are processes, None = one a core. Another process
    that makes it is an InputError, or with `wait` waited for.
    """
    output = Path(output)
    workers = min(workers or available_cores(), MAX_WORKERS)
    single = output.suffix == ".npz"
    if _finished(output, simulation):  # perhaps where this process may not write
        return output
    with only_writer(output, wait=wait):
        if _finished(output, simulation):  # meanwhile
            return output
        folder = output.with_name(f".{output.name}.parts") if single else output
        _claim(folder, simulation)
        if single and simulation.shard_size > simulation.num_pairs:
            simulation = replace(simulation, shard_size=simulation.num_pairs)
        for leftover in folder.glob(".part-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        paths = _shard_paths(simulation, folder)
        _write_shards(simulation, paths, workers, progress)
        _finish(output, simulation, list(paths), folder if single else None)
    return output


def _finish(output: Path, simulation: Simulation, paths: list[Path], parts: Path | None) -> None:
    """Merge shards that lie in `parts` into one file, or write the manifest of their folder."""
    redrawn = sum(_meta(p).get("redrawn", 0) for p in paths)
    meta = _meta(paths[0]) | {"num_events": simulation.num_pairs, "redrawn": redrawn}
    meta["num_rows"] = 2 * simulation.num_pairs
    if parts:
        merge_shards(paths, output, meta)
        shutil.rmtree(parts)
    else:
        with atomic_path(output / "manifest.json") as temporary:
            temporary.write_text(json.dumps(meta | {"num_shards": len(paths)}, indent=1))


def simulate_shards(
    output: Path | str,
    simulation: Simulation,
    chosen: range,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make some shards of a set in a folder, beside other processes that make others.

    The set is complete once `finish_shards` has been called. InputError if a shard is not one of
    the set's, or another process makes the same.
    """
    output = Path(output)
    if output.suffix == ".npz":
        raise InputError(f"{output}: shards lie in a folder; give a name without .npz")
    paths = _shard_paths(simulation, output)
    if not (chosen and 0 <= chosen.start < chosen.stop <= len(paths)):
        raise InputError(
            f"shards {chosen.start}:{chosen.stop} came, but the set has {len(paths)}, "
            f"from 0 to {len(paths) - 1}; A:B counts from A to before B"
        )
    with only_writer(output, among=True):
        with only_writer(output.with_name(f"{output.name}.claim"), wait=True):
            _claim(output, simulation)
        own = {path: paths[path] for path in list(paths)[chosen.start : chosen.stop]}
        with ExitStack() as held:
            for path in own:
                held.enter_context(only_writer(path))
            _write_shards(simulation, own, workers or available_cores(), progress)
    return output


def finish_shards(output: Path | str, simulation: Simulation) -> Path:
    """Write the manifest of a set whose shards were made one by one; InputError if some lack."""
    output = Path(output)
    with only_writer(output):
        _claim(output, simulation)
        paths = list(_shard_paths(simulation, output))
        if lacking := [k for k, path in enumerate(paths) if not path.exists()]:
            shown = ", ".join(map(str, lacking[:10])) + ", ..." * (len(lacking) > 10)
            raise InputError(f"{output}: shards {shown} are not made yet; give them to --shards")
        _finish(output, simulation, paths, None)
    return output


def _meta(path: Path) -> dict:
    text = read_members(path, ("meta",))["meta"]
    return parse_json(str(text), META, f"{path}: meta")


def _finished(output: Path, simulation: Simulation) -> bool:
    """Whether the set is whole; InputError if it is another one."""
    if output.suffix != ".npz":
        if not (output / "manifest.json").exists():
            return False
        _claim(output, simulation)
        return all(path.exists() for path in _shard_paths(simulation, output))
    if not output.exists():
        return False
    try:
        found = _meta(output)
    except (InputError, KeyError) as error:
        raise InputError(f"{output}: exists and is not a light-curve set ({error})") from None
    if any(found.get(k) != v for k, v in simulation.describe().items() if k != "shard_size"):
        raise InputError(f"{output}: is a set of other arguments; give another --output")
    return True
