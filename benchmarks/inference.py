"""How fast the network answers: whole curves in batches, and one event epoch by epoch.

    python benchmarks/inference.py [--rows 1000] [--model RUN] [--json OUT]

Every epoch of every curve is called in either mode. For the stream: the time of one update of one
event (median, 99th percentile) and the size of what is remembered of it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lensml.checkpoint import load_network
from lensml.dataset import load
from lensml.paths import atomic_path
from lensml.results import provenance
from lensml.simulate import Simulation, simulate
from lensml.speed import BENCHMARKS, batch_speed, state_bytes, stream_seconds


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path, default=BENCHMARKS / "inference.json")
    args = parser.parse_args()
    started = time.time()
    network = load_network(args.model)[0]
    with tempfile.TemporaryDirectory() as scratch:
        sim = Simulation(num_pairs=max(1, args.rows // 2), seed=77)
        curves = load(simulate(Path(scratch) / "set.npz", sim))
    numbers = {"rows": len(curves), "threads": torch.get_num_threads()}
    numbers |= batch_speed(network.to("cuda") if torch.cuda.is_available() else network, curves)
    network = network.to("cpu")
    seen = np.isfinite(curves.X[1])
    columns = curves.time[seen], curves.X[1, seen], curves.sigmas()[1, seen]
    torch.set_num_threads(1)
    seconds, stream = stream_seconds(network, *columns, float(curves.m_base[1]))
    later = seconds[20:]
    numbers |= {
        "stream_median_ms": 1e3 * float(np.median(later)),
        "stream_p99_ms": 1e3 * float(np.quantile(later, 0.99)),
        "updates_per_s": float(1 / later.mean()),
        "state_kb": state_bytes(stream) / 1024,
        "parameters": network.num_parameters,
    }
    for name, value in numbers.items():
        print(f"{name:18} {value:,.4g}")
    record = {"numbers": numbers, "provenance": provenance(size="desk", seed=77, started=started)}
    with atomic_path(args.json) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    print(args.json)


if __name__ == "__main__":
    main()
