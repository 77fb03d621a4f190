"""Make the weights that ship with the package: `python book/scripts/train_shipped.py`.

Simulates the sets of `presets.general` into data/, trains them into runs/general (a killed run is
taken up again by the same command) and copies the best weights into lensml/weights.
"""

import argparse
import shutil

from lensml.paths import DATA, ROOT, SIZES, WEIGHTS, atomic_path
from lensml.presets import make_general

SHIPPED = ("model.safetensors", "config.json", "metrics.json", "history.csv", "training.log")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="desk")
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    run = make_general(args.size, DATA, ROOT / "runs" / "general", workers=args.workers)
    wanted = {name: run / name for name in SHIPPED}
    wanted["rise_training.log"] = run / "rise" / "training.log"  # the first stage
    for name, source in wanted.items():
        with atomic_path(WEIGHTS / name) as temporary:
            shutil.copyfile(source, temporary)


if __name__ == "__main__":
    main()
