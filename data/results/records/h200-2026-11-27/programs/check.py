"""Verify each kernel against plain torch in higher precision, then time each beside the plain code.

    python check.py PART [PART ...] --out FOLDER --seconds S       on a machine with a GPU
    TRITON_INTERPRET=1 python check.py PART ... --out FOLDER --dry  without one, in small

Parts are the names of functions below: environment, block_, head_, expert, training_refits,
exact_refits, network, steps, timing_blocks, timing_head, timing_refits, timing_steps. Each part is guarded: a failure costs its own rows. What passed is named in FOLDER as
`passed_<name>`, which is what the training program reads.
"""

import argparse
import copy
import json
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("parts", nargs="+")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--seconds", type=float, default=200.0)
parser.add_argument("--dry", action="store_true")
args = parser.parse_args()
started = time.time()

import torch  # noqa: E402

from fused import block, graph, head, pictures, refits, switches, synthetic  # noqa: E402
from lensml import model  # noqa: E402
from lensml import unexplained as un  # noqa: E402
from lensml.batches import Batches  # noqa: E402
from lensml.checkpoint import load_network  # noqa: E402
from lensml.features import compact, encode  # noqa: E402
from lensml.general import GENERAL_SURVEYS, general  # noqa: E402
from lensml.loop import Run, _loss  # noqa: E402
from lensml.model import CausalBlock, Expert, Network, delayed  # noqa: E402
from lensml.refit import schedule  # noqa: E402
from lensml.survey import draw_torch, observe  # noqa: E402

DEV = torch.device("cpu" if args.dry else "cuda")
KIND = torch.float32 if args.dry else torch.bfloat16
rows: dict = {}
args.out.mkdir(parents=True, exist_ok=True)
switches.install()
if args.dry:
    model._train_by_convolution = lambda x: False
    switches.DEVICES = ("cuda", "cpu")
    torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # the references are float32 and float64
RECIPE = general("desk", times=4).training
RECIPE = replace(RECIPE, epochs=8, batch_size=8 if args.dry else 1024)
if args.dry:  # Triton's interpreter has no bf16
    RECIPE = replace(RECIPE, mixed_precision=False)


def sync() -> None:
    if DEV.type == "cuda":
        torch.cuda.synchronize()


def bench(work, number: int = 15) -> float:
    """Median milliseconds of `work`, by device events after warming up."""
    for _ in range(1 if args.dry else 3):
        work()
    sync()
    times = []
    for _ in range(1 if args.dry else number):
        if DEV.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            begun = time.time()
            work()
            times.append(1e3 * (time.time() - begun))
    return sorted(times)[len(times) // 2]


def part(name: str, need: float = 3.0):
    """Run a function now, if its part is wanted; keep what it returns."""

    def run(function):
        kind = function.__name__
        if kind not in args.parts:
            return
        begun = time.time()
        if args.seconds - (begun - started) < need:
            rows[name] = "skipped: no time left"
        else:
            try:
                rows[name] = function()
            except Exception as error:  # each row may fail in its own way
                rows[name] = f"FAILED {type(error).__name__}: {str(error)[:300]}"
                traceback.print_exc()
        text = json.dumps(rows[name])
        print(f"[{time.time() - started:6.1f} s] {name} ({time.time() - begun:.1f} s): {text}", flush=True)
        for file in (args.out / f"rows_{'_'.join(args.parts)}.json",):
            temporary = file.with_suffix(".tmp")
            temporary.write_text(json.dumps(rows, indent=1))
            temporary.rename(file)

    return run


def passed(*names: str) -> None:
    for name in names:
        (args.out / f"passed_{name}").touch()


def rel(a, b) -> float:
    b = b.double()
    return float(((a.double() - b).norm() / b.norm().clamp_min(1e-30)).detach())


def short(x) -> str:
    return f"{float(x):.2e}"


@part("machine")
def environment():
    if args.dry:
        return {"torch": torch.__version__}
    import subprocess

    import triton

    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    a, b = (torch.randn(8192, 8192, device=DEV, dtype=torch.bfloat16) for _ in range(2))
    ms = bench(lambda: a @ b, 10)
    x = torch.randn(2**28, device=DEV)
    y = torch.empty_like(x)
    copy_ms = bench(lambda: y.copy_(x), 10)
    return {
        "device": driver, "torch": torch.__version__, "triton": triton.__version__,
        "bf16_tflops": round(2 * 8192**3 / ms / 1e9, 1),
        "copy_terabytes_per_s": round(8 * x.numel() / copy_ms / 1e9, 2),
    }  # fmt: skip


def random_block(C, d):
    b = CausalBlock(C, d).to(DEV)
    for p in b.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    torch.nn.init.normal_(b.norm.weight, 1, 0.2)
    return b


@part("block: relative errors of y, dx and the worst parameter, against float64; again the same bits")
def block_(number=3):
    found, worst = {}, 0.0
    shapes = ((32, 1, 70), (32, 2, 45), (64, 1, 3)) if args.dry else (
        (32, 1, 1469), (32, 2, 1472), (64, 1, 368), (64, 1, 5))  # fmt: skip
    for C, d, n in shapes:
        for kind in {KIND} if n in (1469, 5) else {torch.float32, KIND}:
            b = random_block(C, d)
            x, dy = torch.randn(number, n, C, device=DEV), torch.randn(number, n, C, device=DEV)
            ref = copy.deepcopy(b).double()
            xr = x.to(kind).double().requires_grad_()
            yr = switches.PLAIN["block"](ref, xr)
            yr.backward(dy.to(kind).double())
            bits = []
            for _ in range(2):
                b.zero_grad()
                xt = x.to(kind).clone().requires_grad_()
                y = block.forward(b, xt)
                y.backward(dy.to(kind))
                bits.append([y.detach(), xt.grad, *(p.grad.clone() for p in b.parameters())])
            same = all(torch.equal(u, v) for u, v in zip(*bits, strict=True))
            pairs = zip(b.parameters(), ref.parameters(), strict=True)
            e = [rel(y, yr), rel(xt.grad, xr.grad), max(rel(p.grad, q.grad) for p, q in pairs)]
            found[f"{C} channels, dilation {d}, {n} tokens, {kind}"] = [*map(short, e), same]
            assert max(e) < (1e-4 if kind == torch.float32 else 2e-2), (C, d, n, kind, e)
            assert same, (C, d, n, kind)
    passed("block")
    return found


@part("head: relative errors of logits, dx, dtokens, dopinions and the worst parameter, against float64")
def head_():
    found = {}
    for L, J in ((150, 3), (64, 5)) if args.dry else ((1472, 37), (1469, 24)):
        for kind in {torch.float32, KIND}:
            S, C, B = 32, 64, 3
            h = copy.deepcopy(Network().head).to(DEV)
            for p in h.parameters():
                torch.nn.init.normal_(p, 0, 0.2)
            starts = torch.randperm(L - 9, device=DEV)[:J].sort().values + 7
            force = torch.searchsorted(starts, torch.arange(L, device=DEV), right=True)
            starts = torch.cat([starts, starts.new_tensor([L])])
            given = [torch.randn(B, n, c, device=DEV) for n, c in ((L, S), (L // 4, C), (J, C))]
            do = torch.randn(B, L, device=DEV)
            hd = copy.deepcopy(h).double()
            xr, tr, sr = (v.to(kind).double().requires_grad_() for v in given)
            wide = hd[1](hd[0](torch.cat([xr, delayed(tr, 4, L)], 2)))
            said = torch.nn.functional.pad(sr, (0, 0, 1, 0))
            wide = wide + said.gather(1, force[None, :, None].expand(B, -1, C))
            ref = hd[3](hd[2](wide)).squeeze(2)
            ref.backward(do.double())
            xk, tk, sk = (v.to(kind).requires_grad_() for v in given)
            out = head.forward(h, xk, tk, sk, force.int(), starts.int())
            out.backward(do)
            of = ((xk, xr), (tk, tr), (sk, sr))
            pairs = zip(h.parameters(), hd.parameters(), strict=True)
            e = [rel(out, ref), *(rel(a.grad, b.grad) for a, b in of)]
            e.append(max(rel(p.grad, q.grad) for p, q in pairs))
            found[f"{L} epochs, {J} refits, {kind}"] = [*map(short, e)]
            assert max(e) < (1e-4 if kind == torch.float32 else 2e-2), (L, kind, e)
    passed("head")
    return found


@part("expert as rows: relative errors of opinions and the worst gradient, against float64; the same of the plain code")
def expert():
    n = 70 if args.dry else 3000
    e = Expert(64).to(DEV)
    images, scalars = torch.randn(n, 10, 96, device=DEV), torch.randn(n, 19, device=DEV)
    g = torch.randn(n, 64, device=DEV)
    ref = copy.deepcopy(e).double()
    switches.use()
    y64 = ref(images.double(), scalars.double())
    y64.backward(g.double())
    found = {}
    for name in ((), ("expert",)):
        for bf16 in (False, True):
            if args.dry and bf16:
                continue
            switches.use(*name)
            e.zero_grad()
            cast = torch.autocast("cuda", torch.bfloat16) if bf16 else nullcontext()
            held, switches._trained = switches._trained, lambda x: True
            with cast:
                y = e(images, scalars)
            switches._trained = held
            y.backward(g.to(y.dtype))
            pairs = zip(e.parameters(), ref.parameters(), strict=True)
            found[f"{'rows' if name else 'plain'}, {'bf16' if bf16 else 'float32'}"] = [
                rel(y, y64), max(rel(p.grad, q.grad) for p, q in pairs),
            ]  # fmt: skip
    for kind in ("float32", "bf16"):
        if f"rows, {kind}" in found:
            ours, plain = found[f"rows, {kind}"], found[f"plain, {kind}"]
            assert all(a < 1.5 * b + 1e-5 for a, b in zip(ours, plain, strict=True)), found
    passed("expert")
    return {k: [*map(short, v)] for k, v in found.items()}


def seen_by(survey, number: int, seed: int, longest: int | None = None):
    """Curves of a survey as a batch sees them, and of which the blend is open."""
    data = synthetic.resident(number, DEV, seed)
    g = torch.Generator(DEV).manual_seed(seed)
    draws = draw_torch(number, data.num_epochs, g, outliers=survey.outlier_fraction > 0)
    seen = observe(data.clean, draws, survey, data.time)
    length = longest or -(-int(seen[2].sum(1).max()) // 16) * 16
    return compact(*seen, data.time, length), data.blended | (torch.arange(2 * number, device=DEV) % 3 == 0)


def deviations(a, b, observed, counts):
    """|a - b| of residuals, pictures and scalars where they mean something."""
    alive = observed.valid.sum(1)[:, None] >= torch.tensor(counts, device=DEV)
    places = {"residuals": observed.valid, "images": alive, "scalars": alive}
    return {
        k: (getattr(a, k).double() - getattr(b, k).double())[m].abs().flatten(1).amax(1)
        for k, m in places.items()
    }


def quantiles(x) -> list[float]:
    x = x[torch.randperm(len(x), device=x.device)[: 10**6]].double()
    q = torch.quantile(x, torch.tensor([0.5, 0.9, 0.99, 0.999], dtype=x.dtype, device=x.device))
    return q.tolist()


@part("refits of training (float32): worst deviation within an epoch or refit, quantiles .5 .9 .99 .999: kernels - exact, plain - exact")
def training_refits():
    found, good = {}, True
    names = ("dense", "coarse", "photon noise, outliers, baseline open")
    for name, (_, survey) in zip(names, GENERAL_SURVEYS, strict=True):
        if args.dry:
            survey = replace(survey, keep_every=(12, 24))
        observed, blended = seen_by(survey, 2 if args.dry else 256, 11)
        counts = switches.quick_counts(schedule(observed.valid.shape[1]), 12345)
        quick = observed._replace(times=(observed.times - observed.times[:, :1]).float())
        exact = un._refit_curves(observed, counts, blended)
        plain = un._refit_curves(quick, counts, blended)
        ours = switches.fused_refits(quick, counts, blended)
        again = switches.fused_refits(quick, counts, blended)
        same = all(torch.equal(u, v) for u, v in zip(ours, again, strict=True))
        assert all(torch.isfinite(x).all() for x in ours[:3])
        assert (ours.in_force == exact.in_force)[observed.valid].all()
        a, b = deviations(ours, exact, observed, counts), deviations(plain, exact, observed, counts)
        found[name] = {
            k: [[short(v) for v in quantiles(x[k])] for x in (a, b)] for k in a
        } | {"same bits again": same}  # fmt: skip
        for k in a:
            u, v = quantiles(a[k]), quantiles(b[k])
            good &= u[0] < 1.5 * v[0] + 1e-4 and u[1] < 1.5 * v[1] + 1e-3 and u[2] < 2 * v[2] + 1e-2
        good &= same or args.dry
    assert good, json.dumps(found)
    passed("refits")
    return found


@part("exact refits (float64, all of the schedule): worst deviation within an epoch or refit, quantiles; P(binary) of the shipped weights")
def exact_refits():
    found, good = {}, True
    network = load_network(None, DEV)[0].eval()
    names = ("dense", "photon noise, outliers, baseline open")
    for name, (_, survey) in zip(names, (GENERAL_SURVEYS[0], GENERAL_SURVEYS[2]), strict=True):
        if args.dry:
            survey = replace(survey, keep_every=(12, 24))
        observed, blended = seen_by(survey, 2 if args.dry else 192, 13)
        if name == "dense":  # the length of a curve need not be a multiple of anything
            observed = type(observed)(*(x[:, : x.shape[1] - 3] for x in observed))
        counts = schedule(observed.valid.shape[1])
        switches.use()
        plain = switches.refit_curves(observed, None, blended)
        switches.use("exact")
        ours = switches.refit_curves(observed, None, blended)
        d = deviations(ours, plain, observed, counts)
        features = encode(observed)
        with torch.no_grad():
            p = [torch.sigmoid(network(features, r)) for r in (plain, ours)]
        last = (observed.valid.sum(1) - 1).clamp_min(0)[:, None]
        off = (p[0] - p[1]).abs()
        found[name] = {k: [short(v) for v in quantiles(x)] for k, x in d.items()} | {
            "P at all epochs": [short(v) for v in quantiles(off[observed.valid])],
            "P at the last epoch, largest": short(off.gather(1, last).max()),
            "share of curves whose last P moves by more than 1e-4": short(
                (off.gather(1, last) > 1e-4).float().mean()
            ),
        }
        good &= quantiles(off[observed.valid])[2] < 1e-4
        good &= float((off.gather(1, last) > 1e-3).float().mean()) < 0.01
    assert good, json.dumps(found)
    passed("exact")
    return found


def prepared(kind, number: int, seed: int = 5, **more):
    """A training run of the shipped recipe on curves made here."""
    data = synthetic.resident(number, DEV, seed, held=16 if args.dry else 256)
    config = replace(RECIPE, seed=seed)
    return kind(config, data, Path(), DEV, **more)


def one_group(run: Batches, many: int, first: int = 0):
    """Batches of the recipe's surveys, refits made together."""
    import numpy as np

    chooser = np.random.default_rng(first)
    order = torch.from_numpy(chooser.permutation(run.data.train_pairs)).to(DEV)
    run.network.train()
    steps = max(1, len(order) // run.pairs_per_batch)
    return [run.wanted(0, k % steps, order, chooser) for k in range(first, first + many)]


def ready() -> set[str]:
    return {n for n in switches.ALL if (args.out / f"passed_{n}").exists()}


@part("network: loss and relative error of its gradient in bf16 against float32, by switch", 10)
def network():
    run = prepared(Run, 64 if args.dry else 1200)
    switches.use()
    found = {}
    batch = run.batches(one_group(run, 1))[0]
    rows_ = 4 if args.dry else 256
    (f, y, v), r = (x[:rows_] for x in batch[:3]), batch[3].rows(slice(0, rows_))

    def gradient(cast):
        run.network.zero_grad()
        with cast:
            loss = _loss(run.network(f, r), y, v)
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in run.network.parameters()])

    exact = gradient(nullcontext())
    cast = torch.autocast("cuda", torch.bfloat16) if not args.dry else nullcontext()
    good = {}
    names = [("block",), ("expert",), ("head",), ("block", "expert", "head")]
    names = [(), *(n for n in names if set(n) <= ready())]
    for name in names:
        switches.use(*name)
        loss, g = gradient(cast)
        again = gradient(cast)[1]
        e = rel(g, exact[1])
        found[" + ".join(name) or "plain"] = [
            f"loss {loss:.6f} (float32 {exact[0]:.6f})", short(e), f"same bits again: {torch.equal(g, again)}",
        ]  # fmt: skip
        good[name] = e
    for name, e in good.items():
        if name and e > 1.3 * good[()] + 1e-5:
            for one in name:
                (args.out / f"passed_{one}").unlink(missing_ok=True)
            found[" + ".join(name)].append("REFUSED")
    return found


@part("steps: loss of each of some steps of the recipe from the same weights, by switch", 20)
def steps():
    number = 2 if args.dry else 32
    kernels = tuple(n for n in ("block", "expert", "head") if n in ready())
    variants = [("plain", (), Run, {}), ("plain again", (), Run, {})]
    if "refits" in ready():
        variants.append(("fused refits", ("refits",), Run, {}))
    everything = (*kernels, *(("refits",) if "refits" in ready() else ()))
    variants.append((" + ".join(everything), everything, Run, {}))
    if not args.dry:
        variants += [
            ("eager capturable", everything, graph.GraphRun, {"captured": False}),
            ("graphs", everything, graph.GraphRun, {}),
        ]
    curves = {}
    found = {}
    for name, use, kind, more in variants:
        switches.use(*use)
        run = prepared(kind, 64 if args.dry else 8448, **more)
        run.batches_at_once = min(run.batches_at_once, 16)
        losses = []
        sync()
        begun = time.time()
        try:
            with torch.cuda.stream(torch.cuda.Stream()) if not args.dry else nullcontext():
                for first in range(0, number, 16):
                    wanted = one_group(run, min(16, number), first)
                    for batch in run.batches(wanted):
                        losses.append(run.step(*batch).clone())
                sync()
        except Exception as error:
            traceback.print_exc()
            found[name] = f"FAILED {type(error).__name__}: {str(error)[:200]}"
            if kind is Run:
                break
            continue
        curves[name] = torch.stack(losses).cpu()
        away = (curves[name] - curves["plain"]).abs()
        late = slice(-8, None)
        found[name] = {
            "mean loss of the last 8": round(float(curves[name][late].mean()), 5),
            "largest |loss - plain|": short(away.max()), "mean": short(away.mean()),
            "seconds, compilation included": round(time.time() - begun, 1),
        }  # fmt: skip
        del run
    if "graphs" in curves:
        same = (curves["graphs"] - curves["eager capturable"]).abs().max()
        found["graphs against eager, largest"] = short(same)
        if same < 2e-3:
            passed("graphs")
    name = " + ".join(everything)
    if name in curves:
        away = float((curves[name] - curves["plain"]).abs().mean())
        found["accepted"] = away < 4e-3
        if away < 4e-3:
            passed("together")
    (args.out / "losses.json").write_text(json.dumps({k: v.tolist() for k, v in curves.items()}))
    return found


B, L, J = (4, 128, 3) if args.dry else (1024, 1472, 36)


@part("time of a block, forward and backward [ms]: plain, kernels, floor by bytes at 3.0 TB/s", 5)
def timing_blocks():
    found = {}
    for C, n in ((32, L), (64, L // 4), (64, L // 16), (64, L // 64)):
        b = random_block(C, 1)
        x = torch.randn(B, n, C, device=DEV, dtype=KIND, requires_grad=True)
        g = torch.randn_like(x)

        def plain(b=b, x=x, g=g):
            with torch.autocast("cuda", torch.bfloat16, enabled=DEV.type == "cuda"):
                y = switches.PLAIN["block"](b, x)
            y.backward(g.to(y.dtype))

        def ours(b=b, x=x, g=g):
            block.forward(b, x).backward(g)

        floor = 7 * 2 * B * n * C / 3.0e12 * 1e3
        found[f"{B} x {n} x {C}"] = [round(bench(plain), 3), round(bench(ours), 3), round(floor, 3)]
    return found


@part("time of the head and of the expert, forward and backward [ms]: plain, kernels, floor by bytes", 5)
def timing_head():
    net = Network().to(DEV)
    x = torch.randn(B, L, 32, device=DEV, dtype=KIND, requires_grad=True)
    t = torch.randn(B, L // 4, 64, device=DEV, dtype=KIND, requires_grad=True)
    s = torch.randn(B, J, 64, device=DEV, dtype=KIND, requires_grad=True)
    starts = torch.linspace(7, L, J + 1, device=DEV).long()
    force = torch.searchsorted(starts[:-1], torch.arange(L, device=DEV), right=True)
    do = torch.randn(B, L, device=DEV) / L
    index = force[None, :, None].expand(B, -1, 64)

    def plain():
        with torch.autocast("cuda", torch.bfloat16, enabled=DEV.type == "cuda"):
            h = net.head
            wide = h[1](h[0](torch.cat([x, delayed(t, 4, L)], 2)))
            said = torch.nn.functional.pad(s, (0, 0, 1, 0))
            out = h[3](h[2](wide + said.gather(1, index))).squeeze(2)
        out.backward(do.to(out.dtype))

    def ours():
        head.forward(net.head, x, t, s, force.int(), starts.int()).backward(do)

    found = {}
    size = 2 * (3 * x.numel() + 3 * t.numel() + 3 * s.numel()) + 4 * 2 * do.numel()
    found["head"] = [round(bench(plain), 3), round(bench(ours), 3), round(size / 3.0e9, 3)]
    images = torch.randn(B * J, 10, 96, device=DEV)
    scalars = torch.randn(B * J, 19, device=DEV)
    g = torch.randn(B * J, 64, device=DEV) / (B * J)

    def expert_(name):
        def work():
            with torch.autocast("cuda", torch.bfloat16, enabled=DEV.type == "cuda"):
                y = net.expert(images, scalars)
            y.backward(g.to(y.dtype))

        switches.use(*name)
        return bench(work)

    size = 4 * 2 * images.numel()
    found["expert"] = [round(expert_(n), 3) for n in ((), ("expert",))] + [round(size / 3.0e9, 3)]
    return found


@part("time of the refits of a group of 16 batches of training [ms]", 10)
def timing_refits():
    found = {}
    run = prepared(Run, 64 if args.dry else 8448)
    wanted = one_group(run, 2 if args.dry else 16)
    seen = [run.seen(*one) for one in wanted]
    length = max(run.padded_length(s[2], one[2]) for s, one in zip(seen, wanted, strict=True))
    each = [compact(*s, run.data.time, length) for s in seen]
    observed = type(each[0])(*(torch.cat(c) for c in zip(*each, strict=True)))
    told = torch.cat([run.blended(*one) for one in wanted])
    found["curves, padded length, mean epochs, share with open blend"] = [
        len(observed.valid), length, round(float(observed.valid.sum(1).float().mean()), 1),
        round(float(told.float().mean()), 3),
    ]  # fmt: skip
    del seen, each
    quick = 12345
    counts = switches.quick_counts(schedule(length), quick)
    found["refits"] = len(counts)
    switches.use("refits")
    found["refits, kernels, all"] = round(bench(lambda: switches.refit_curves(observed, quick, told), 5), 2)
    switches.use()
    sync()
    begun = time.time()
    switches.refit_curves(observed, quick, told)
    sync()
    found["refits, plain, all (once)"] = round(1e3 * (time.time() - begun), 1)
    q = observed._replace(times=(observed.times - observed.times[:, :1]).float())
    times, bright = q.times.contiguous(), q.brightening.contiguous()
    root = (q.valid / q.sigma.clamp_min(1e-3)).contiguous()
    own, c = q.valid.sum(1).int(), torch.tensor(counts, device=DEV, dtype=torch.int32)
    given = times, bright, root, own, c
    for warps, BL, BB in ((1, 64, 32), (1, 128, 32), (2, 128, 64)):
        found[f"  fits, float32, {warps} warps, tiles of {BL} and {BB}"] = round(
            bench(lambda w=warps, a=BL, b=BB: refits.fits(*given, told, BL=a, BB=b, warps=w), 5), 2
        )
    theta, cov = refits.fits(*given, told)
    found["  pictures"] = round(bench(lambda: pictures.described(*given, told, theta, cov), 5), 2)
    found["  residuals"] = round(bench(lambda: pictures.residuals(*given, theta, cov), 5), 2)
    found["encode, plain"] = round(bench(lambda: encode(observed), 5), 2)
    part_ = slice(0, 4 if args.dry else 4096)
    some = type(observed)(*(x[part_] for x in observed))
    switches.use("exact")
    found["exact refits of 4,096 curves, kernels"] = round(
        bench(lambda: switches.refit_curves(some, None, told[part_]), 3), 2
    )
    return found


@part("time of a step of 1,024 curves [ms], the data made before: by switch", 10)
def timing_steps():
    found = {}
    kernels = tuple(n for n in ("block", "expert", "head") if n in ready())
    variants = [((), Run), *(((n,), Run) for n in kernels), (kernels, Run), (kernels, graph.GraphRun)]
    batch = None
    for use, kind in variants:
        if kind is graph.GraphRun and args.dry:
            continue
        switches.use(*use, *({"refits"} & ready()))
        run = prepared(kind, 64 if args.dry else 1200)
        if batch is None:
            batch = run.batches(one_group(run, 1))[0]
        name = (" + ".join(use) or "plain") + (", graph" if kind is graph.GraphRun else "")
        with torch.cuda.stream(torch.cuda.Stream()) if not args.dry else nullcontext():
            ms = bench(lambda: run.step(*batch), 10)
            begun = time.perf_counter()
            for _ in range(1 if args.dry else 5):
                run.step(*batch)
            calls = (time.perf_counter() - begun) / (1 if args.dry else 5) * 1e3
            sync()
        found[name] = {
            "ms": round(ms, 2), "curves/s": round(len(batch[1]) / ms * 1e3),
            "ms until all calls were made": round(calls, 2), "refits": batch[3].images.shape[1],
        }  # fmt: skip
        del run
    return found


print(json.dumps(rows, indent=1)[-8000:])
