"""Training against the thesis' recipe in the same run, and against the limits of the device.

    python -m benchmarks.performance.training [--quick] [--turns N] [--rows R] [--seed 0]

The recipe: a torch DataLoader over rows of an .npz, float32, the network as it is written (eager),
AdamW without fusing, denormal numbers as they come. It gets our features, which are cheaper than
its own would be. Each runs in a process of its own and they take turns, so that a busy machine
slows both alike: in batches of the command's default and, on a CPU, of 128. Then, for ours alone:
fraction of a step by part, precision, threads, growth with the epochs of a curve; and the roofline:
operations and bytes of a curve, the rates of this device measured here, the fraction reached. All
of these are of the network without its residual-map encoder, for the recipe makes no refits. Last,
the network as it ships: its rate in batches of R, and the fraction of a step its refits take. Runs
unchanged on a GPU.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import save_record
from benchmarks.scaling import growth_exponent
from benchmarks.timing import resampled
from lensml.network import (
    PATCH_SIZE,
    CausalBlock,
    Network,
    NetworkConfig,
    bf16_supported,
    encode,
    find_device,
    observed_epochs,
    pack,
)
from lensml.paths import tune_allocator
from lensml.simulation import Simulation, Survey, draw_torch, load, observe, simulate
from lensml.training import (
    BatchPlan,
    Trainer,
    TrainingConfig,
    TrainingData,
    load_training_data,
    padded_length,
    training_loss,
)

LENGTHS = (375, 750, 1500, 3000)  # epochs a curve, for the growth
BARE = NetworkConfig(embedding_channels=0)  # as the recipe trains it: nothing is refitted
KINDS = {  # of operations in a profile, by words in their names
    "products": ("convolution", "addmm", "::mm", "::bmm"),
    "layer_norms": ("layer_norm",),
    "activations": ("gelu", "clamp_min", "relu", "threshold"),
    "copies": ("copy", "cat", "fill", "pad"),
}


def synchronize() -> None:
    """Wait for the device, where there is one to wait for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable, repeats: int = 1) -> float:
    """Wall time of `work`, per repeat [s]."""
    synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize()
    return (time.perf_counter() - started) / repeats


class Rows(Dataset):
    """Rows of a set as the thesis' scripts read them."""

    def __init__(self, path: Path) -> None:
        self.curves = load(path)

    def __len__(self) -> int:
        return len(self.curves)

    def __getitem__(self, i: int) -> tuple:
        c = self.curves
        return c.X[i].copy(), c.sigmas()[i].copy(), c.m_base[i], np.float32(c.y[i])


def eager_block(block: CausalBlock, x: torch.Tensor) -> torch.Tensor:
    """A block as its equation is written: three taps side by side, two products."""
    length, normed = x.shape[1], F.pad(block.norm(x), (0, 0, block.past, 0))
    taps = [normed[:, k * block.dilation : k * block.dilation + length] for k in range(3)]
    return x + block.mix(F.relu(block.conv(torch.cat(taps, dim=2))))


def recipe_steps(path: Path, rows: int) -> Iterator[None]:
    """The thesis' recipe, one step at a time, without end."""
    device = find_device()
    torch.manual_seed(0)
    network = Network(BARE).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=False)
    rows_of_set = Rows(path)
    times = np.tile(rows_of_set.curves.time, (rows, 1))
    with patch.object(CausalBlock, "forward", eager_block):
        while True:
            for X, sigma, m_base, y in DataLoader(rows_of_set, rows, shuffle=True, drop_last=True):
                arrays = X.numpy(), sigma.numpy(), times, m_base.numpy()
                observed = observed_epochs(*arrays, device)
                logits = network(encode(observed))
                loss = training_loss(logits, y.to(device), observed.valid)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                yield


def prepared(data: TrainingData, rows: int, network: NetworkConfig = BARE, **changes) -> Trainer:
    """Our training on data that lie on the device; nothing is written."""
    torch.set_flush_denormal(True)
    if find_device().type == "cpu":
        tune_allocator()
    config = TrainingConfig(batch_size=rows, learning_rate=1e-4, network=network, **changes)
    return Trainer(config, data, Path(), find_device())


def plan_of(run: Trainer, step: int) -> BatchPlan:
    """Pairs, seed and survey of the batch of a step."""
    pairs = np.random.default_rng(step).permutation(len(run.data.labels) // 2)
    pairs = torch.from_numpy(pairs[: run.sampler.pairs_per_batch])
    return BatchPlan(pairs.to(run.device, non_blocking=True), step, run.data.survey)


def one_step(run: Trainer, step: int) -> None:
    """What `Trainer.train_epoch` does once."""
    run.step(*run.sampler.batch(plan_of(run, step)))


def steps_together(run: Trainer, turn: int) -> None:
    """As many steps as `Trainer.train_epoch` makes refits for together: several on a GPU."""
    many = run.sampler.batches_at_once
    for batch in run.sampler.batches([plan_of(run, turn * many + k) for k in range(many)]):
        run.step(*batch)


def our_steps(path: Path, rows: int) -> Iterator[None]:
    """Ours, one step at a time, without end."""
    run, step = prepared(load_training_data([path], 0.05, find_device()), rows), 0
    while True:
        one_step(run, step)
        step += 1
        yield


def _serve(steps: Iterator[None], pipe) -> None:
    with suppress(EOFError):  # the other end was closed
        while True:
            number = pipe.recv()
            pipe.send(seconds_of(lambda: next(steps), number))


def _contestant(name: str, path: Path, rows: int, threads: int, pipe) -> None:
    torch.set_num_threads(threads)
    _serve({"recipe": recipe_steps, "ours": our_steps}[name](path, rows), pipe)


@contextmanager
def contestants(path: Path, rows: int) -> Iterator[dict]:
    """Both trainings, each in a process of its own; each answers a number of steps by its time."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, threads = {}, [], torch.get_num_threads()
    try:
        for name in ("recipe", "ours"):
            pipes[name], theirs = context.Pipe()
            given = (name, path, rows, threads, theirs)
            process = context.Process(target=_contestant, args=given)
            process.start()
            theirs.close()  # so that a failed process ends the pipe
            processes.append(process)
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join()


def race(path: Path, rows: int, turns: int, steps: int) -> dict:
    """Curves a second of both in batches of `rows`, and their ratio with its interval."""
    seconds = {"recipe": [], "ours": []}
    with contestants(path, rows) as pipes:
        for turn in range(turns + 1):
            for name, pipe in pipes.items():
                pipe.send(steps)
                seconds[name].append(pipe.recv())
            if turn == 0:  # first calls are slow
                seconds = {"recipe": [], "ours": []}
    recipe, ours = map(np.array, seconds.values())
    return {
        "over_recipe": resampled(lambda i: recipe[i].sum() / ours[i].sum(), turns),
        "recipe_curves_per_s": rows / float(np.median(recipe)),
        "curves_per_s": rows / float(np.median(ours)),
    }


def seconds_by_part(run: Trainer, repeats: int) -> tuple[dict[str, float], float]:
    """Seconds of each part of a step, medians; and the least of forward and backward together."""
    names = ("draw", "observe", "pack", "encode", "forward", "backward", "optimiser")
    survey, data, parts = run.data.survey, run.data, []
    pairs = run.sampler.pairs_per_batch
    rows = torch.arange(2 * pairs, device=run.device)
    for k in range(repeats + 1):
        clock = []

        def lap(clock: list = clock) -> None:
            synchronize()
            clock.append(time.perf_counter())

        lap()
        generator = torch.Generator(run.device).manual_seed(k)
        draws = draw_torch(pairs, len(data.time), generator, outliers=survey.outlier_fraction > 0)
        lap()
        seen = observe(data.clean[rows], draws, survey, data.time)
        lap()
        observed = pack(*seen, data.time, padded_length(seen[2], survey))
        lap()
        features = encode(observed)
        lap()
        with run.cast:
            logits = run.model(features)
        loss = training_loss(logits, data.labels[rows], observed.valid)
        lap()
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        lap()
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0, foreach=True)
        run.optimizer.step()
        lap()
        parts.append(np.diff(clock))
    parts = np.array(parts[1:])
    medians = dict(zip(names, np.median(parts, axis=0).tolist(), strict=True))
    return medians, float(parts[:, 4:6].sum(1).min())


def kinds(run: Trainer) -> dict[str, float]:
    """Fraction of a step's network by kind of operation, from a profile."""
    activity = ProfilerActivity.CUDA if run.device.type == "cuda" else ProfilerActivity.CPU
    batch = batch_of(run)
    run.gradients(*batch)
    with profile(activities=list({ProfilerActivity.CPU, activity})) as recorded:
        run.gradients(*batch)
        synchronize()
    device = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    found = dict.fromkeys([*KINDS, "others"], 0.0)
    for event in recorded.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a GPU's kernel, whose time the operation that launched it has already
        kind = next((k for k, words in KINDS.items() if any(w in event.key for w in words)), None)
        found[kind or "others"] += getattr(event, device)
    total = sum(found.values())
    return {f"share_{k}": v / total for k, v in found.items()}


def batch_of(run: Trainer) -> tuple:
    """One batch of a run, as its network gets it."""
    pairs = torch.arange(run.sampler.pairs_per_batch, device=run.device)
    return run.sampler.batch(BatchPlan(pairs, 0, run.data.survey))


def operations(config: NetworkConfig, length: int) -> int:
    """Multiplications and additions of the products of one pass forward over one curve."""
    stem, c = config.stem_channels, config.channels
    total = length * (config.num_features * stem + 2 * 4 * stem**2 + (stem + c) * c + c)
    tokens = length // PATCH_SIZE
    for level in range(config.num_levels):
        total += tokens * (PATCH_SIZE * stem if level == 0 else 2 * c) * c
        total += tokens * (config.encoder_blocks + config.decoder_blocks) * 4 * c**2
        total += tokens * c**2 * (level > 0)  # lifted to the finer level
        tokens //= 2
    return 2 * total


class Traffic(TorchDispatchMode):
    """Bytes that all operations read and write, as if none found them in a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            values = torch.utils._pytree.tree_leaves((args, kwargs, out))
            tensors = {id(t): t for t in values if isinstance(t, torch.Tensor)}
            self.bytes += sum(t.numel() * t.element_size() for t in tensors.values())
        return out


def counted(run: Trainer) -> dict[str, float]:
    """Operations and bytes of a curve, by formula and as counted."""
    batch = batch_of(run)
    rows, length = batch[2].shape
    with FlopCounterMode(display=False) as counter:
        run.gradients(*batch)
    with Traffic() as traffic:
        run.gradients(*batch)
    # No gradient is asked for the features: the first layer has a product less.
    first = 2 * length * run.config.network.num_features * run.config.network.stem_channels
    operations_here = 3 * operations(run.config.network, length) - first
    return {
        "padded_epochs": length,
        "gigaoperations_per_curve": operations_here / 1e9,
        "counted_over_formula": counter.get_total_flops() / rows / operations_here,
        "megabytes_per_curve": traffic.bytes / rows / 1e6,
    }


def ceilings(rows: int, length: int, rounds: int) -> dict[str, float]:
    """Rates of this device: products, square and of the network's shapes, and copies.

    The fastest of rounds through all of them: a busy moment should not lower one ceiling alone.
    """
    device, works = find_device(), {}
    tokens = rows * length // PATCH_SIZE
    shapes = {}
    for inner, outer, many in ((96, 32, 4), (32, 32, 4), (192, 64, 1), (64, 64, 1)):
        shapes[f"_{inner}x{outer}"] = (many * tokens, inner, outer)
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        size = 2048 if device.type == "cpu" else 8192
        if dtype == torch.bfloat16 and not bf16_supported(device):
            size = 256  # emulated, some hundred times slower
        for label, (m, k, n) in ({"": (size, size, size)} | shapes).items():
            x, w = (torch.randn(*s, device=device).to(dtype) for s in ((m, k), (k, n)))
            works[f"{name}_gigaops{label}"] = 2 * m * k * n, lambda x=x, w=w: x @ w
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    works["copy_gigabytes_per_s"] = 8 * len(source), lambda: target.copy_(source)
    least = dict.fromkeys(works, np.inf)
    for _ in range(rounds):
        for name, (_, work) in works.items():
            least[name] = min(least[name], seconds_of(work))
    return {name: amount / least[name] / 1e9 for name, (amount, _) in works.items()}


def growth(rows: int, repeats: int) -> dict[int, list[float]]:
    """Seconds of a step by the epochs of a curve."""
    runs, seconds, device = {}, {length: [] for length in LENGTHS}, find_device()
    for length in LENGTHS:
        survey, pairs = Survey(num_epochs=length), np.arange(rows // 2)
        data = TrainingData(
            labels=torch.tensor([0.0, 1.0], device=device).repeat(rows // 2),
            time=torch.from_numpy(survey.times).to(device),
            survey=survey,
            train_pairs=pairs,
            validation_pairs=pairs[:1],
            trained_on=[],
            validated_on=[],
            blended=torch.zeros(rows, dtype=torch.bool, device=device),
            clean=-torch.rand(rows, length, device=device),
        )
        runs[length] = prepared(data, rows)
        one_step(runs[length], 0)
    for k in range(repeats):
        for length, run in runs.items():
            seconds[length].append(seconds_of(lambda r=run, k=k: one_step(r, k)))
    return seconds


def variants(run: Trainer, plain: Trainer, repeats: int) -> dict[str, dict]:
    """bf16 over float32, and all threads over one, step against step."""
    threads, seconds = torch.get_num_threads(), {"base": [], "float32": [], "one": []}
    for k in range(repeats + 1):
        seconds["base"].append(seconds_of(lambda k=k: one_step(run, k)))
        seconds["float32"].append(seconds_of(lambda k=k: one_step(plain, k)))
        if run.device.type == "cpu":
            torch.set_num_threads(1)
            seconds["one"].append(seconds_of(lambda k=k: one_step(run, k)))
            torch.set_num_threads(threads)
    base, found = np.array(seconds["base"][1:]), {}
    for name, key in (("bf16_over_float32", "float32"), (f"{threads}_threads_over_1", "one")):
        if other := seconds[key][1:]:
            other = np.array(other)
            found[name] = resampled(lambda i, o=other: o[i].sum() / base[i].sum(), len(base))
    return found


def with_refits(run: Trainer, repeats: int) -> dict[str, float]:
    """Rate of the network as it ships, and the fraction of a step in which refits are made."""
    refits, whole, made = run.network.refits, [], []

    def timed(*args):
        found = []
        made.append(seconds_of(lambda: found.append(refits(*args))))
        return found[0]

    with patch.object(run.network, "refits", timed):
        for k in range(1 + repeats):
            whole.append(seconds_of(lambda k=k: steps_together(run, k)))
    whole, made = (np.array(x[1:]) / run.sampler.batches_at_once for x in (whole, made))
    return {
        "shipped_curves_per_s": 2 * run.sampler.pairs_per_batch / float(np.median(whole)),
        "refits_share": float(made.sum() / whole.sum()),
        "refits_ms": 1e3 * float(np.median(made)),
    }


def measure(args: argparse.Namespace) -> tuple[dict, dict]:
    """All numbers of the benchmark, and the seconds its growth comes from."""
    turns, repeats = (2, 3) if args.quick else (args.turns, 12)
    batch = max(args.rows, 256 if args.quick else TrainingConfig().batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        simulation = Simulation(preset="distinct", num_pairs=batch, seed=args.seed)
        path = simulate(Path(scratch) / "set.npz", simulation, progress=False)
        numbers = race(path, batch, turns, 1)
        if args.rows != batch:
            small = race(path, args.rows, turns, batch // args.rows)
            numbers |= {f"{name}_in_{args.rows}s": value for name, value in small.items()}
        data = load_training_data([path], 0.05, find_device())
    run = prepared(data, args.rows)
    parts, network_seconds = seconds_by_part(run, 2 * repeats)
    data_path = sum(parts[k] for k in ("draw", "observe", "pack", "encode"))
    numbers["data_share"] = data_path / sum(parts.values())
    numbers |= {f"{name}_ms": 1e3 * s for name, s in parts.items()}
    in_float32 = prepared(data, args.rows, mixed_precision=False)
    numbers |= variants(run, in_float32, repeats)
    seconds = growth(128 if args.quick else 512, max(2, repeats // 4))
    sizes = np.repeat(list(seconds), [len(s) for s in seconds.values()])
    numbers["growth_exponent"] = growth_exponent(sizes, np.concatenate(list(seconds.values())))
    numbers |= counted(run) | kinds(run)
    numbers |= ceilings(args.rows, numbers["padded_epochs"], 2 if args.quick else 10)
    # The fastest step beside the fastest ceilings.
    busy = numbers["share_products"]
    peak = numbers["bf16_gigaops" if bf16_supported(run.device) else "float32_gigaops"]
    reached = numbers["gigaoperations_per_curve"] * args.rows / network_seconds
    moved = numbers["megabytes_per_curve"] * args.rows / 1e3 / network_seconds
    numbers |= {
        "gigaops_reached": reached,
        "matrix_fraction": reached / peak,
        "matrix_fraction_of_products": reached / busy / peak,
        "gigabytes_per_s_moved": moved,
        "hours_per_million_x_50": 50e6 / numbers["curves_per_s"] / 3600,
    }
    shipped = prepared(data, args.rows, NetworkConfig())
    numbers |= with_refits(shipped, repeats)
    return numbers, {"epochs": seconds}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute; not kept")
    parser.add_argument("--turns", type=int, default=8)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--rows", type=int, default=512 if on_gpu else 128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    numbers, seconds = measure(args)
    targets = {"over_recipe": ">= 20" if on_gpu else ">= 3", "data_share": "< 0.05"}
    targets |= {"growth_exponent": "<= 1.05"}
    targets |= {name: ">= 3" for name in numbers if name.startswith("over_recipe_in")}
    targets |= {"matrix_fraction_of_products": ">= 0.35"} if on_gpu else {}
    kept = dict(quick=args.quick, rows=args.rows, seconds=seconds)
    kept["threads"] = torch.get_num_threads()
    save_record("training", numbers, targets, seed=args.seed, started=started, **kept)


if __name__ == "__main__":
    main()
