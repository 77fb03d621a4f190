"""Classify real events that others have classified before, by a frozen protocol.

    python -m benchmarks.studies.real_events FOLDER [--model RUN] [--threshold P1 P01]
        [--figures DIR] [--quick] [--list FILE] [--freeze]

FOLDER holds light curves and a `catalogue.csv` with at least the columns file, event, class, t0,
tE and label_quality; `observatory` says whose threshold an event has. The files, with their
checksums, are frozen in `files.json` beside this script; `--freeze` writes it anew from the
catalogue. All data sets of an event are classified together, over two time spans (`protocol`
defines them). The thresholds are those at which 1 % and 0.1 % of simulated single lenses alert:
given, for all events, or those of the run's `alerts.json`, by survey. Numbers are kept under
data/results/benchmarks, with the checksum of the weights; with --quick they go to _build.
`--figures` draws every failure, which shows photometry: the folder has to lie outside of the
repository. A minute on one core, two more with figures. Causes of failures were noted by eye, in
`causes.json`.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.record import save_record
from benchmarks.studies.real_events import outcomes, protocol
from benchmarks.studies.real_events.protocol import CataloguedEvent, Summary
from benchmarks.studies.sky import stored_threshold
from lensml import plotting
from lensml.experiments import format_number
from lensml.network import Network, load_network, weights_hash
from lensml.paths import ROOT, InputError
from lensml.streaming import LEVELS, classify_event

HERE = Path(__file__).parent
LIST, CAUSES = HERE / "files.json", HERE / "causes.json"
NAMES = tuple(LEVELS.values())  # of the thresholds


def print_report(found: Sequence[Summary], skipped: Mapping[str, int]) -> None:
    """Alerts by time span, class and quality; and every published binary."""
    heads = "".join(f"{'alerts ' + name + ', of':>20}" for name in NAMES)
    print(f"{'span':8}{'class':8}{'quality':8}{'factor':>7}{heads}{'set aside':>11}")
    for row in outcomes.summary_table(found, NAMES):
        head = f"{row['span']:8}{row['class']:8}{row['label_quality']:8}{row['median_factor']:7.2f}"
        counts = "".join(f"{a['hits']:15d}/{a['of']:<4d}" for a in row["alerts"].values())
        print(f"{head}{counts}{row['set_aside']:11d}")
    print(f"\nfewer than {protocol.MIN_EPOCHS} epochs: {skipped or 'none'}")
    print("\nPublished binaries; first alerts in (t - t0) / tE, highest and last P, last class")
    for row in outcomes.published_events(found, NAMES):
        alerts = "".join(f"{format_number(phase):>12}" for phase in row["first"].values())
        head = f"{row['event']:20}{row['span']:8}{row['data_sets']:3d}{row['epochs']:7d}"
        numbers = f"{row['highest']:9.3f}{row['end']:7.3f}"
        print(f"{head}{alerts}{numbers}  {row['called']:14}{row['threshold_of']}")


def draw(
    folder: Path, target: CataloguedEvent, span: str, network: Network, threshold: float
) -> Figure:
    """One event on one scale: its data sets, single-lens fit, P(binary) and first alert."""
    event = protocol.select_span(protocol.read_target(folder, target), span, target.t0)
    found = classify_event(event, network)
    _, u0, tE = found.shape
    title = f"{target.name} ({target.label}-{target.quality}, {span}): tE {tE:.1f} d, u0 {u0:.3f}"
    names = [epoch["dataset"] for epoch in found.answer["epochs"]]
    data = *found.aligned(), found.magnitude, found.p
    return plotting.real_event(*data, threshold=threshold, title=title, datasets=names)


def draw_failures(
    folder: Path,
    events: Sequence[CataloguedEvent],
    network: Network,
    failed: Sequence[Mapping],
    thresholds: Mapping[str, Mapping[str, float]],
    to: Path,
) -> None:
    """One PNG a failure, of the first time span that failed, at the first threshold."""
    to.mkdir(parents=True, exist_ok=True)
    known = {(e.name, e.label, e.quality): e for e in events}
    for row in tqdm(failed, unit="figure", disable=None):
        target = known[row["event"], row["class"], row["label_quality"]]
        span = next(span for span, wrong in row["failed"].items() if wrong)
        threshold = thresholds[target.survey][NAMES[0]]
        figure = draw(folder, target, span, network, threshold)
        name = f"{row['class']}-{row['label_quality']}_{row['event']}.png"
        figure.savefig(to / name, dpi=90)


def main(arguments: Sequence[str] | None = None) -> int:
    """Freeze, or classify, print and keep; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="light curves and their catalogue.csv")
    parser.add_argument("--model", type=Path, help="run folder of the network")
    parser.add_argument(
        "--threshold", type=float, nargs=len(NAMES), metavar="P", help="at 1 %% and 0.1 %%"
    )
    parser.add_argument("--list", type=Path, default=LIST, help="the frozen list of files")
    parser.add_argument("--freeze", action="store_true", help="write the list, classify nothing")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="figures of failures")
    parser.add_argument("--quick", action="store_true", help="keep the numbers in _build only")
    args = parser.parse_args(arguments)
    started = time.time()
    try:
        if args.freeze:
            print(f"{len(protocol.freeze(args.folder, args.list))} files in {args.list}")
            return 0
        if args.figures and args.figures.resolve().is_relative_to(ROOT):
            raise InputError(
                f"--figures {args.figures} is in the repository; surveys' photometry stays out"
            )
        network, _ = load_network(args.model)
        events = protocol.events_of(protocol.read_frozen(args.list))
        thresholds = {
            survey: dict(zip(NAMES, args.threshold, strict=True))
            if args.threshold
            else {name: stored_threshold(args.model, survey, x) for x, name in LEVELS.items()}
            for survey in sorted({event.survey for event in events})
        }
        progress = partial(tqdm, unit="event", disable=None)
        found, skipped = protocol.classify_all(args.folder, events, network, thresholds, progress)
        causes = json.loads(CAUSES.read_text()) if CAUSES.exists() else {}
        failed = outcomes.failures(found, NAMES[0], causes)
        if args.figures:
            draw_failures(args.folder, events, network, failed, thresholds, args.figures)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print_report(found, skipped)
    print()
    numbers = {
        f"threshold_{survey}_{name}": value
        for survey, levels in thresholds.items()
        for name, value in levels.items()
    }
    save_record(
        "real_events",
        numbers | outcomes.headline(found, NAMES),
        seed=0,
        started=started,
        quick=args.quick,
        weights=weights_hash(args.model),
        list_sha256=hashlib.sha256(args.list.read_bytes()).hexdigest(),
        too_few_epochs=skipped,
        table=outcomes.summary_table(found, NAMES),
        published=outcomes.published_events(found, NAMES),
        failures=failed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
