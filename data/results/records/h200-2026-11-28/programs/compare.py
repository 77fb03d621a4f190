"""Losses of event networks on the same fresh samples, paired by block.

    python data/results/records/h200-2026-11-28/programs/compare.py OUT.json SEED BLOCKS RUN ...

Samples of BLOCKS blocks of SEED, 8 of a curve observed once. The first RUN is the reference of the
differences, whose errors are over blocks.
"""

import json
import sys
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lensml.network import load_event_network
from lensml.training.event_samples import Samples, make_samples


@torch.no_grad()
def logits_of(run: str, rows: Samples, chunk: int = 4096) -> torch.Tensor:
    """Logits (S, 5) in float32."""
    network, _ = load_event_network(run)
    parts = [slice(k, k + chunk) for k in range(0, len(rows.held), chunk)]
    return torch.cat([network(*(x[p].float() for x in rows[:4]), rows.held[p]) for p in parts])


def main() -> None:
    """Make the samples, compare, write."""
    output, seed, blocks, *runs = sys.argv[1:]
    with get_context("spawn").Pool() as pool:
        make = partial(make_samples, int(seed), per_curve=8, times=1)
        found = list(pool.imap(make, range(int(blocks))))
    rows = Samples(*(torch.from_numpy(np.concatenate(c)) for c in zip(*found, strict=True)))
    sizes = torch.tensor([len(one.held) for one in found])
    labels, table, reference = rows.labels.long(), [], None
    for run in runs:
        logp = F.log_softmax(logits_of(run, rows), dim=1)
        hard = F.nll_loss(logp, labels, reduction="none")
        each = torch.stack([part.mean() for part in hard.split(sizes.tolist())])
        reference = each if reference is None else reference
        less = each - reference
        row = {
            "run": Path(run).name,
            "loss": float(hard.mean()),
            "soft_loss": float(-(rows.targets * logp).sum(1).mean()),
            "minus_first": float(less.mean()),
            "error": float(less.std() / len(less) ** 0.5),
        }
        print(row)
        table.append(row)
    text = {"seed": int(seed), "blocks": int(blocks), "samples": len(labels), "runs": table}
    Path(output).write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
