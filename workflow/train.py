"""Train a chapter's network, as the chapter itself would: made once, resumed after a kill.

python workflow/train.py 02_baseline baseline --size full     # several nodes: by torchrun
"""

import argparse
import sys

from lensml.experiments import start
from lensml.paths import SIZES, InputError


def main() -> int:
    """Train, or refuse in one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapter", help="its file stem")
    parser.add_argument("name", help="the network's, in the chapter's preset")
    parser.add_argument("--size", choices=SIZES, default="smoke")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        print(start(args.chapter, args.size, args.seed).fine_tuned(args.name))
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
