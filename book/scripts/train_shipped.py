"""Make the weights that ship with the package: `python book/scripts/train_shipped.py`.

Simulates the sets of `presets.general` into data/, trains on them into runs/ (a killed run is taken
up again by the same command) and copies the best weights, in float16, into lensml/weights.
"""

import argparse
import shutil
from pathlib import Path

from lensml.checkpoint import MODEL, load_tensors, save_tensors
from lensml.paths import DATA, ROOT, SIZES, WEIGHTS, atomic_path
from lensml.presets import make_general

SHIPPED = ("config.json", "metrics.json", "history.csv", "training.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    run = ROOT / "runs" / f"general_{args.size}_seed{args.seed}"
    make_general(args.size, DATA, run, seed=args.seed, workers=args.workers)
    ship(run)


def ship(run: Path) -> None:
    """Copy a run's weights, rounded to float16, and its notes to where the package has its own."""
    for name in SHIPPED:
        with atomic_path(WEIGHTS / name) as temporary:
            shutil.copyfile(run / name, temporary)
    tensors, notes = load_tensors(run / MODEL)
    save_tensors(WEIGHTS / MODEL, {name: x.half() for name, x in tensors.items()}, notes)


if __name__ == "__main__":
    main()
