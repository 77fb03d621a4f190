"""Train on on a CPU: train_cpu.py START OUT END_EPOCH_SECONDS LEARNING_RATE QUEUE."""

import sys, glob, time, math, os, json
import torch, torch.nn.functional as F
from lensml.network.model import Network, two_class

start, out, end, lr0, queue = (
    sys.argv[1],
    sys.argv[2],
    float(sys.argv[3]),
    float(sys.argv[4]),
    sys.argv[5],
)
torch.set_num_threads(1)
torch.set_flush_denormal(True)
g = torch.Generator().manual_seed(0)
CAP = 2_500_000
B = 512
VISITS = 1.1
SH = {
    "windows": ((63, 10), torch.float16),
    "held": ((), torch.uint8),
    "maps": ((6, 96), torch.float16),
    "summaries": ((24,), torch.float16),
    "targets": ((5,), torch.float32),
    "labels": ((), torch.uint8),
}
buf = {k: torch.empty((CAP, *s), dtype=d) for k, (s, d) in SH.items()}
n = place = total = 0
cl = lambda x: torch.nan_to_num(x, nan=0, posinf=30, neginf=-30) if x.is_floating_point() else x


def take():
    global n, place, total
    for f in sorted(glob.glob(queue + "/train/*.pt"), key=os.path.getmtime):
        try:
            d = torch.load(f, weights_only=True)
        except Exception as e:
            print("skip", f, e)
            os.remove(f)
            continue
        m = len(d["held"])
        idx = (place + torch.arange(m)) % CAP
        for k in SH:
            buf[k][idx] = cl(d[k])
        place = (place + m) % CAP
        n = min(CAP, n + m)
        total += m
        os.remove(f)


vs = [torch.load(f, weights_only=True) for f in sorted(glob.glob(queue + "/val/*.pt"))]
va = {k: cl(torch.cat([v[k] for v in vs])) for k in SH}


def run(net, d, i):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net(
            d["windows"][i].float(),
            d["held"][i].long(),
            d["maps"][i].float(),
            d["summaries"][i].float(),
        ).float()


def evaluate():
    with torch.no_grad():
        L = torch.cat([run(net, va, slice(k, k + 2048)) for k in range(0, len(va["held"]), 2048)])
    lp = F.log_softmax(L, 1)
    y = va["labels"].long()
    m = y < 3
    p = two_class(L[m]).clamp(1e-6, 1 - 1e-6)
    ex = va["summaries"][:, 21].float() > 1.5
    b = F.binary_cross_entropy(p, (y[m] > 0).float(), reduction="none")
    e = ex[m]
    return {
        "hard": round(float(F.nll_loss(lp, y)), 4),
        "exact": round(float(b[e].mean()), 4),
        "other": round(float(b[~e].mean()), 4),
    }


net = Network()
net.load_state_dict(torch.load(start)) if start != "none" else None
opt = torch.optim.AdamW(
    [
        {"params": [p for p in net.parameters() if p.dim() > 1]},
        {"params": [p for p in net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ],
    lr=lr0,
    weight_decay=0.01,
    betas=(0.9, 0.98),
    fused=True,
)
t0 = time.time()
k = 0
ema = None
print("validation", len(va["held"]), "start", evaluate(), flush=True)
hist = []
last = time.time()
while True:
    if k % 20 == 0:
        take()
    prog = (time.time() - t0) / (end - t0)
    if prog >= 1:
        break
    if n < 100000 or k * B > VISITS * total:
        time.sleep(2)
        take()
        continue
    for gr in opt.param_groups:
        gr["lr"] = (
            lr0 * min(1, (k + 1) / 100) * (0.5 * (1 + math.cos(math.pi * prog)) * 0.99 + 0.01)
        )
    i = torch.randint(n, (B,), generator=g)
    L = run(net, buf, i)
    loss = -(buf["targets"][i] * F.log_softmax(L, 1)).sum(1).mean()
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
    opt.step()
    k += 1
    ema = loss.item() if ema is None else 0.99 * ema + 0.01 * loss.item()
    if time.time() - last > 120:
        last = time.time()
        row = {
            "seconds": round(last - t0),
            "step": k,
            "samples": total,
            "loss": round(ema, 4),
            "validation": evaluate(),
        }
        hist.append(row)
        print(json.dumps(row), flush=True)
        torch.save(net.state_dict(), out + ".tmp")
        os.rename(out + ".tmp", out)
        json.dump(hist, open(out + ".json", "w"))
print("final", k, total, evaluate())
torch.save(net.state_dict(), out + ".tmp")
os.rename(out + ".tmp", out)
json.dump(hist, open(out + ".json", "w"))
