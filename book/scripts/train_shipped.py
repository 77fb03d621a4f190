"""Make the weights that ship with the package: `python book/scripts/train_shipped.py`.

Simulates the sets of `lensml.training.recipes` into data/ and trains on them into runs/; the same
command resumes a killed run. Copies the best weights, in float16, into lensml/weights.

The shipped weights were trained on a GPU, on four times the events and for eight epochs:
`python book/scripts/train_shipped.py --times 4 --epochs 8 --batch_size 1024`.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from lensml.network import MODEL, load_tensors, save_tensors
from lensml.paths import DATA, ROOT, SIZES, WEIGHTS, atomic_path
from lensml.training import recipe_sets, run_recipe, shipped_recipe

SHIPPED = ("config.json", "metrics.json", "history.csv", "training.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--times", type=float, default=1.0, help="so many times the events of SIZE")
    parser.add_argument("--epochs", type=int, help="instead of those of SIZE")
    parser.add_argument("--batch_size", type=int, help="instead of that of SIZE")
    parser.add_argument("--data", type=Path, default=DATA, help="where the sets are made or found")
    parser.add_argument("--run", type=Path, help="run folder; what is trained there is not shipped")
    parser.add_argument("--only", nargs="*", help="make these sets alone, and train nothing")
    args = parser.parse_args()
    recipe = shipped_recipe(args.size, args.seed, times=args.times)
    changes = {
        k: getattr(args, k) for k in ("epochs", "batch_size") if getattr(args, k) is not None
    }
    recipe = replace(recipe, training=replace(recipe.training, **changes))
    if args.only is not None:
        recipe_sets(recipe, args.data, workers=args.workers, only=args.only)
        return
    size = args.size + "".join(
        f"_{k}{value:g}" for k, value in {"x": args.times, **changes}.items() if value != 1
    )
    run = args.run or ROOT / "runs" / f"general_{size}_seed{args.seed}"
    run_recipe(recipe, args.data, run, workers=args.workers)
    if args.run is None:
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
