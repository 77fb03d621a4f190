"""Train several networks on the samples that workers make meanwhile: train_gpu.py SECONDS WORKERS.

All networks see the same batches. Samples stay on the device and are drawn again; each is seen
at most `REUSE` times by a network. A step is one CUDA graph per network.
"""

import glob
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from lensml.network import CLASSES, Network, NetworkConfig, two_class

SECONDS, WORKERS = float(sys.argv[1]), int(sys.argv[2])
QUICK = SECONDS < 200
BATCH = int(os.environ.get("BATCH", 4096))
CAPACITY = int(os.environ.get("CAPACITY", 15_000_000))
REUSE, WARM_UP, LEAST = 5, 300, int(os.environ.get("LEAST", 200_000))
OUT = Path(os.environ["OUT"])
WORK = Path(os.environ.get("WORK", "/dev/shm/samples"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CUDA = DEVICE.type == "cuda"
WIDE = NetworkConfig(
    channels=56, map_channels=(40, 64, 80, 96), embedding_channels=128, head_channels=(160, 80)
)
# name: configuration, seed, soft targets, batch as a fraction of BATCH, steps between steps
NETWORKS = {
    "plain_0": (NetworkConfig(), 0, True),
    "plain_1": (NetworkConfig(), 1, True),
    "hard_0": (NetworkConfig(), 0, False),
    "wide_0": (WIDE, 0, True),
}
if names := os.environ.get("NETWORKS"):
    NETWORKS = {k: NETWORKS[k] for k in names.split(",")}
RATE = {"plain_0": 3e-3, "plain_1": 3e-3, "hard_0": 3e-3, "wide_0": 2.5e-3}
begun = time.time()


def log(*words):
    text = f"{time.time() - begun:6.1f} s  " + " ".join(map(str, words))
    print(text, flush=True)
    with (OUT / "training.log").open("a") as file:
        file.write(text + "\n")


shutil.rmtree(WORK, ignore_errors=True)
(WORK / "train").mkdir(parents=True)
(WORK / "validation").mkdir()
produce = Path(__file__).with_name("produce.py")
made = (WORK / "made.log").open("w")
environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
environment["CUDA_VISIBLE_DEVICES"] = ""
workers = []
for w in range(WORKERS):
    command = f"{sys.executable} {produce} {w} {WORK}/validation v"
    if w >= 14 and not QUICK:
        command = "true"
    command = f"{command} && exec {sys.executable} {produce} {w} {WORK}/train"
    workers.append(
        subprocess.Popen(["bash", "-c", command], stdout=made, stderr=made, env=environment,
                         start_new_session=True)
    )  # fmt: skip

W = NetworkConfig().receptive_field
SHAPES = {
    "windows": ((W, 10), torch.float16), "held": ((), torch.uint8),
    "maps": ((6, 96), torch.float16), "summaries": ((24,), torch.float16),
    "targets": ((len(CLASSES),), torch.float32), "labels": ((), torch.uint8),
}  # fmt: skip
store = {k: torch.empty((CAPACITY, *s), dtype=d, device=DEVICE) for k, (s, d) in SHAPES.items()}
num, place, done = 0, 0, set()


def clean(x):
    return torch.nan_to_num(x, nan=0, posinf=30, neginf=-30) if x.is_floating_point() else x


def take_new(limit=None):
    """Load the files that came meanwhile."""
    global num, place
    for path in sorted(glob.glob(f"{WORK}/train/*.pt"))[:limit]:
        try:
            found = torch.load(path, weights_only=True)
        except Exception as error:
            log("left out", path, error)
            os.remove(path)
            continue
        m = len(found["held"])
        index = (place + torch.arange(m, device=DEVICE)) % CAPACITY
        for k in SHAPES:
            store[k][index] = clean(found[k].to(DEVICE))
        place, num = (place + m) % CAPACITY, min(CAPACITY, num + m)
        os.remove(path)


class Learner:
    """A network, its optimiser, and one step as a CUDA graph."""

    def __init__(self, name, config, seed, soft):
        torch.manual_seed(seed)
        self.name, self.soft = name, soft
        self.network = Network(config).to(DEVICE)
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        plain = [p for p in self.network.parameters() if p.dim() <= 1]
        self.rate = torch.tensor(RATE[name], device=DEVICE)
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        options = {"lr": self.rate, "weight_decay": 0.01, "betas": (0.9, 0.98)}
        self.optimizer = torch.optim.AdamW(groups, **options, fused=CUDA, capturable=CUDA)
        self.loss = torch.zeros((), device=DEVICE)
        self.index = INDEX
        self.graph = None

    def step(self):
        i = self.index
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = self.network(
                store["windows"][i].float(), store["held"][i].long(),
                store["maps"][i].float(), store["summaries"][i].float(),
            )  # fmt: skip
        logp = F.log_softmax(logits.float(), 1)
        if self.soft:
            loss = -(store["targets"][i] * logp).sum(1).mean()
        else:
            loss = F.nll_loss(logp, store["labels"][i].long())
        self.optimizer.zero_grad(set_to_none=self.graph is None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.loss += loss.detach()

    def capture(self):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.step()
        self.graph = graph

    def run(self):
        if self.graph is not None:
            self.graph.replay()
        else:
            self.step()

    def save(self):
        state = {k: v.detach().cpu() for k, v in self.network.state_dict().items()}
        torch.save(state, OUT / f".{self.name}.tmp")
        os.rename(OUT / f".{self.name}.tmp", OUT / f"{self.name}.pt")


INDEX = torch.zeros(BATCH, dtype=torch.long, device=DEVICE)
checked = None


def validation():
    """Validation samples, once all workers have made theirs."""
    global checked
    paths = sorted(glob.glob(f"{WORK}/validation/*.pt"))
    if checked is None and len(paths) >= min(WORKERS, 14) - 1:
        found = [torch.load(p, weights_only=True) for p in paths]
        checked = {
            k: clean(torch.cat([f[k] for f in found]).to(DEVICE)) for k in [*SHAPES, "final"]
        }
        log(len(checked["held"]), "samples for validation")
    return checked


@torch.no_grad()
def evaluate(learner):
    if (v := validation()) is None:
        return None
    parts = []
    for a in range(0, len(v["held"]), 8192):
        b = slice(a, a + 8192)
        parts.append(learner.network(
            v["windows"][b].float(), v["held"][b].long(), v["maps"][b].float(),
            v["summaries"][b].float(),
        ).float())  # fmt: skip
    logits, labels = torch.cat(parts), v["labels"].long()
    logp = F.log_softmax(logits, 1)
    hard = float(F.nll_loss(logp, labels))
    soft = float(-(v["targets"] * logp).sum(1).mean())
    two = labels < 3
    p = two_class(logits[two]).clamp(1e-6, 1 - 1e-6)
    binary = float(F.binary_cross_entropy(p, (labels[two] > 0).float()))
    return {"hard": hard, "soft": soft, "two_class": binary}


while num < LEAST and time.time() - begun < SECONDS * 0.4:
    take_new()
    time.sleep(0.5)
log(
    num,
    "samples at the start on",
    torch.cuda.get_device_name() if CUDA else "cpu",
    "torch",
    torch.__version__,
)
learners = [Learner(name, *options) for name, options in NETWORKS.items()]
for x in learners:
    log(x.name, x.network.num_parameters, "parameters")
INDEX.copy_(torch.randint(num, (BATCH,), device=DEVICE))
if CUDA:
    for x in learners:
        try:
            x.capture()
        except Exception as error:
            log("no graph for", x.name, repr(error)[:300])
            x.graph = None
            torch.cuda.synchronize()
    log("graphs captured")
generator = torch.Generator(device=DEVICE).manual_seed(7)
start, step, last_log, last_save, counted, history = time.time(), 0, time.time(), time.time(), 0, []
end = begun + SECONDS
while True:
    now = time.time()
    progress = (now - start) / (end - start)
    if progress >= 1:
        break
    factor = min(1, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    if step * BATCH > REUSE * num and progress < 0.9:
        take_new()
        time.sleep(0.05)
        continue
    INDEX.copy_(torch.randint(num, (BATCH,), device=DEVICE, generator=generator))
    for x in learners:
        x.rate.fill_(RATE[x.name] * factor)
        x.run()
    step += 1
    counted += 1
    if step % 40 == 0:
        if CUDA:
            torch.cuda.synchronize()
        take_new(4)
    if now - last_log > (20 if not QUICK else 5):
        losses = {x.name: round(float(x.loss) / counted, 4) for x in learners}
        for x in learners:
            x.loss.zero_()
        row = {"seconds": round(now - begun, 1), "step": step, "samples": num, "loss": losses}
        row["rate"] = round(counted * BATCH / (now - last_log))
        row["validation"] = {x.name: evaluate(x) for x in learners}
        history.append(row)
        log(json.dumps(row))
        last_log, counted = time.time(), 0
    if now - last_save > 60:
        for x in learners:
            x.save()
        (OUT / "history.json").write_text(json.dumps(history, indent=0))
        shutil.copy(WORK / "made.log", OUT / "made.log")
        last_save = time.time()
for x in learners:
    x.save()
    log("final", x.name, step, num, evaluate(x))
(OUT / "history.json").write_text(json.dumps(history, indent=0))
for p in workers:
    os.killpg(p.pid, 9)
shutil.copy(WORK / "made.log", OUT / "made.log")
