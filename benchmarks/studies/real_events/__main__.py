"""Classify real light curves that others have classified before, by a frozen protocol.

    python -m benchmarks.studies.real_events FOLDER [--model RUN] [--threshold P1 P01]
        [--figures DIR] [--quick] [--list FILE] [--freeze]

FOLDER holds light curves and a `catalogue.csv` with at least the columns file, event, class, t0,
tE and label_quality. The files, with their checksums, are frozen in `files.json` beside this
script; `--freeze` writes it anew from the catalogue. Every curve is classified over two time spans
and under two error models (`protocol` defines them). The thresholds are those at which 1 % and
0.1 % of simulated single lenses alert in a season: given, or read from the committed result of
chapter 07. Numbers are kept under data/results/benchmarks, with the checksum of the weights; with
--quick they go to _build. `--figures` draws every failure, which shows photometry: the folder has
to lie outside of the repository. Half a minute on one core; a minute more with figures. Causes of
failures were noted by eye, in `causes.json`.
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
from benchmarks.studies.real_events.protocol import Classification, Target
from benchmarks.studies.real_events.rescale import rescaled_errors
from lensml import plotting
from lensml.experiments import format_number
from lensml.lensing import fit_pspl_free_baseline
from lensml.network import load_network, weights_hash
from lensml.paths import ROOT, InputError
from lensml.photometry import Photometry, baseline_magnitude, read_photometry
from lensml.streaming import LEVELS, find_threshold

HERE = Path(__file__).parent
LIST, CAUSES = HERE / "files.json", HERE / "causes.json"


def print_report(
    found: Sequence[Classification], skipped: Mapping[str, int], thresholds: Sequence[str]
) -> None:
    """Alerts by time span, error model, class and quality; and every published binary."""
    heads = "".join(f"{'alerts ' + name + ', files / events':>32}" for name in thresholds)
    print(f"{'span':8}{'errors':10}{'class':8}{'quality':8}{'factor':>7}{heads}")
    for r in outcomes.summary_table(found, thresholds):
        head = f"{r['view']:8}{r['arm']:10}{r['class']:8}{r['label_quality']:8}"
        counts = "".join(
            f"{fractions['files']['value'] * r['files']:16.0f}/{r['files']:<4d}"
            f"{fractions['events']['value'] * r['events']:6.0f}/{r['events']:<4d}"
            for fractions in r["alerts"].values()
        )
        print(f"{head}{r['median_factor']:7.2f}{counts}")
    print(f"\nfewer than {protocol.MIN_EPOCHS} epochs: {skipped or 'none'}")
    print("\nPublished binaries in their season; alerts in (t - t0) / tE")
    for c in found:
        if (c.label, c.quality, c.span) == ("binary", "A", "season"):
            alerts = "".join(f"{format_number(phase):>14}" for phase in c.phase.values())
            numbers = f"{c.num_epochs:7d}{c.factor:6.2f}{c.final:7.3f}{c.highest:7.3f}"
            print(f"{c.file.removesuffix('.csv.gz'):44}{c.errors:10}{numbers}{alerts}")


def draw(folder: Path, target: Target, network, threshold: float) -> Figure:
    """Season of one file: single-lens fit, P(binary) under both error models, first alerts."""
    whole = read_photometry(folder / target.file)
    rescaled = rescaled_errors(whole.time, whole.mag, whole.mag_err)
    part, p = protocol.classify_target(whole, target, "season", whole.mag_err, network)
    _, p_rescaled = protocol.classify_target(whole, target, "season", rescaled, network)
    time_, mag, error = (x[part] for x in (whole.time, whole.mag, whole.mag_err))
    before = slice(max(0, part.start - 200), part.stop)  # a baseline for the fit
    curve = Photometry(target.file, whole.time[before], whole.mag[before], whole.mag_err[before])
    fit = fit_pspl_free_baseline(curve.time, curve.mag, curve.mag_err, baseline_magnitude(curve))
    title = f"{target.file.removesuffix('.csv.gz')} ({target.label}-{target.quality}): "
    title += f"tE {fit.tE:.1f} d, u0 {fit.u0:.3f}, chi2/dof {fit.chi2_per_dof:.2f}"
    both = {"quoted errors": p, "rescaled errors": p_rescaled}
    return plotting.real_event(
        time_, mag, error, fit.magnitude, both, threshold=threshold, title=title
    )


def draw_failures(folder: Path, targets, network, failed: list[dict], threshold, to: Path) -> None:
    """One PNG a failure; InputError if that were inside of the repository."""
    if to.resolve().is_relative_to(ROOT):
        raise InputError(f"--figures {to} is in the repository; surveys' photometry stays out")
    to.mkdir(parents=True, exist_ok=True)
    by_file = {target.file: target for target in targets}
    for row in tqdm(failed, unit="figure", disable=None):
        figure = draw(folder, by_file[row["file"]], network, threshold)
        name = row["file"].replace("/", "_").removesuffix(".csv.gz")
        figure.savefig(to / f"{row['class']}-{row['label_quality']}_{name}.png", dpi=90)


def main() -> int:
    """Freeze, or classify, print and keep; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="light curves and their catalogue.csv")
    parser.add_argument("--model", type=Path, help="run folder; the shipped weights by default")
    parser.add_argument("--threshold", type=float, nargs="+", metavar="P", help="at 1 %%, 0.1 %%")
    parser.add_argument("--list", type=Path, default=LIST, help="the frozen list of files")
    parser.add_argument("--freeze", action="store_true", help="write the list, classify nothing")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="figures of failures")
    parser.add_argument("--quick", action="store_true", help="keep the numbers in _build only")
    args = parser.parse_args()
    started = time.time()
    try:
        if args.freeze:
            print(f"{len(protocol.freeze(args.folder, args.list))} files in {args.list}")
            return 0
        given = dict(zip(outcomes.THRESHOLDS, args.threshold or (), strict=False))
        shipped = {name: find_threshold(None, level=x).value for x, name in LEVELS.items()}
        thresholds = given or shipped
        network, _ = load_network(args.model)
        targets, rescaling = protocol.read_frozen(args.list)
        progress = partial(tqdm, unit="curve", disable=None)
        found, skipped = protocol.classify_all(
            args.folder, targets, network, thresholds, rescaling, progress
        )
        causes = json.loads(CAUSES.read_text()) if CAUSES.exists() else {}
        first = next(iter(thresholds))
        failed = outcomes.failures(found, first, causes)
        if args.figures:
            draw_failures(args.folder, targets, network, failed, thresholds[first], args.figures)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print_report(found, skipped, tuple(thresholds))
    print()
    numbers = {f"threshold_{name}": value for name, value in thresholds.items()}
    numbers |= outcomes.headline(found, tuple(thresholds))
    save_record(
        "real_events",
        numbers,
        seed=0,
        started=started,
        quick=args.quick,
        weights=weights_hash(args.model),
        list_sha256=hashlib.sha256(args.list.read_bytes()).hexdigest(),
        too_few_epochs=skipped,
        table=outcomes.summary_table(found, tuple(thresholds)),
        published=outcomes.published_events(found, tuple(thresholds)),
        failures=failed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
