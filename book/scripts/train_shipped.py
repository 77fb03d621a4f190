"""Train the network that ships, on a GPU if there is one; the other cores simulate meanwhile.

    python book/scripts/train_shipped.py RUN [--minutes 60] [--workers W] [--start_from RUN]

The shipped one is RUN after the commands in `lensml/weights/README.md`. One that was killed
goes on with the same command. Another `--seed` makes other events.
"""

import argparse
import json
import logging
from dataclasses import fields
from pathlib import Path

import torch

from lensml.training import EventTrainingConfig, Variant, train_events


def main() -> None:
    """Train, with a log beside the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--workers", type=int, help="processes; default: one a core, less one")
    parser.add_argument(
        "--variants", type=Path, help="JSON list of networks trained side by side (`Variant`)"
    )
    for field in fields(EventTrainingConfig):
        if field.name == "variants":
            continue
        kind = str if field.default is None else type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    settings = vars(parser.parse_args())
    if variants := settings.pop("variants"):
        settings["variants"] = tuple(Variant(**one) for one in json.loads(variants.read_text()))
    run, workers = settings.pop("run"), settings.pop("workers")
    run.mkdir(parents=True, exist_ok=True)
    layout = {"format": "%(asctime)s %(message)s", "filename": run / "training.log"}
    logging.basicConfig(level=logging.INFO, **layout)
    torch.set_num_threads(1)  # the other cores make samples
    print(train_events(run, EventTrainingConfig(**settings), workers))


if __name__ == "__main__":
    main()
