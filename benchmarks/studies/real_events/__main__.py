"""What the network says about real light curves that others have classified, by a frozen protocol.

    python benchmarks/real_events.py FOLDER [--model RUN] [--threshold P1 P01] [--figures DIR]
                                     [--quick] [--list FILE] [--freeze]

FOLDER holds light curves and a `catalogue.csv` with at least the columns file, event, class, t0,
tE and label_quality. Which files are called, and their sums, is frozen in `real_events.json` beside
this script; `--freeze` writes it anew from the catalogue. Every curve is called in two views, with
quoted and with rescaled errors (`lensml.protocol` says what these are). The thresholds are those at
which 1 % and 0.1 % of simulated single lenses alert in a season: given, or read from the committed
result of chapter 07. Numbers are kept under data/results/benchmarks, with the sum of the weights;
with --quick they go to _build. `--figures` writes a picture of every failure, which shows
photometry: it has to lie outside of the repository. Half a minute on one core; a minute more with
figures. Causes of failures were noted by eye, in `real_causes.json`.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from lensml import experiments, plotting
from lensml.experiments import Call, Case, format_number, keep_benchmark, load_results
from lensml.network import load_network, weights_hash
from lensml.paths import ROOT, InputError
from lensml.photometry import Photometry, pspl_fit_observed, read_photometry, rescaled_errors

HERE = Path(__file__).parent
LIST, CAUSES = HERE / "real_events.json", HERE / "real_causes.json"


def print_report(calls: Sequence[Call], skipped: Mapping[str, int], marks: Mapping) -> None:
    """Alerts by view, arm, class and quality; and every published binary of the season view."""
    heads = "".join(f"{'alerts ' + m + ', files / events':>32}" for m in marks)
    print(f"{'view':8}{'errors':10}{'class':8}{'quality':8}{'factor':>7}{heads}")
    for r in experiments.summary_table(calls, marks):
        head = f"{r['view']:8}{r['arm']:10}{r['class']:8}{r['label_quality']:8}"
        counts = "".join(
            f"{shares['files']['value'] * r['files']:16.0f}/{r['files']:<4d}"
            f"{shares['events']['value'] * r['events']:6.0f}/{r['events']:<4d}"
            for shares in r["alerts"].values()
        )
        print(f"{head}{r['median_factor']:7.2f}{counts}")
    print(f"\nfewer than {experiments.FEWEST_EPOCHS} epochs: {skipped or 'none'}")
    print("\nPublished binaries, season view; alerts in (t - t0) / tE")
    for c in calls:
        if (c.label, c.quality, c.view) == ("binary", "A", "season"):
            alerts = "".join(f"{format_number(phase):>14}" for phase in c.phase.values())
            numbers = f"{c.num_epochs:7d}{c.factor:6.2f}{c.final:7.3f}{c.highest:7.3f}"
            print(f"{c.file.removesuffix('.csv.gz'):44}{c.arm:10}{numbers}{alerts}")


def picture(folder: Path, case: Case, network, mark: float) -> Figure:
    """Season of one file with the single-lens fit, P(binary) for both arms, and first alerts."""
    whole = read_photometry(folder / case.file)
    rescaled = rescaled_errors(whole.time, whole.mag, whole.mag_err)
    part, p = experiments.classify_case(whole, case, "season", whole.mag_err, network)
    _, p_rescaled = experiments.classify_case(whole, case, "season", rescaled, network)
    time_, mag, error = (x[part] for x in (whole.time, whole.mag, whole.mag_err))
    before = slice(max(0, part.start - 200), part.stop)  # a baseline for the fit
    fit = pspl_fit_observed(
        Photometry(case.file, whole.time[before], whole.mag[before], whole.mag_err[before])
    )
    title = f"{case.file.removesuffix('.csv.gz')} ({case.label}-{case.quality}): "
    title += f"tE {fit.tE:.1f} d, u0 {fit.u0:.3f}, chi2/dof {fit.chi2_per_dof:.2f}"
    zero = np.floor(time_[0])
    model = fit.magnitude(time_)
    figure = plotting.real_event(time_ - zero, mag, error, model, p, threshold=mark, title=title)
    figure.axes[2].step(time_ - zero, p_rescaled, where="post", color="0.3", lw=0.8)
    for calls, colour in ((p, "C3"), (p_rescaled, "0.3")):
        for axes in figure.axes if (above := np.flatnonzero(calls > mark)).size else ():
            axes.axvline(time_[above[0]] - zero, color=colour, lw=0.8, ls=":")
    return figure


def draw_failures(folder: Path, cases, network, failed: list[dict], mark: float, to: Path) -> None:
    """One PNG a failure; InputError if that were inside of the repository."""
    if to.resolve().is_relative_to(ROOT):
        raise InputError(f"--figures {to} is in the repository; surveys' photometry stays out")
    to.mkdir(parents=True, exist_ok=True)
    by_file = {case.file: case for case in cases}
    for row in tqdm(failed, unit="figure", disable=None):
        figure = picture(folder, by_file[row["file"]], network, mark)
        name = row["file"].replace("/", "_").removesuffix(".csv.gz")
        figure.savefig(to / f"{row['class']}-{row['label_quality']}_{name}.png", dpi=90)


def main() -> int:
    """Freeze, or call, print and keep; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="light curves and their catalogue.csv")
    parser.add_argument("--model", type=Path, help="run folder; the shipped weights by default")
    parser.add_argument("--threshold", type=float, nargs="+", metavar="P", help="at 1 %%, 0.1 %%")
    parser.add_argument("--list", type=Path, default=LIST, help="the frozen list of files")
    parser.add_argument("--freeze", action="store_true", help="write the list, call nothing")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="pictures of failures")
    parser.add_argument("--quick", action="store_true", help="keep the numbers in _build only")
    args = parser.parse_args()
    started = time.time()
    try:
        if args.freeze:
            print(f"{len(experiments.freeze(args.folder, args.list))} files in {args.list}")
            return 0
        given = dict(zip(experiments.MARKS, args.threshold or (), strict=False))
        marks = given or experiments.season_thresholds(load_results("07_early_detection"))
        network, _ = load_network(args.model)
        cases, rescaling = experiments.read_frozen(args.list)
        progress = partial(tqdm, unit="curve", disable=None)
        calls, skipped = experiments.classify_all(
            args.folder, cases, network, marks, rescaling, progress
        )
        causes = json.loads(CAUSES.read_text()) if CAUSES.exists() else {}
        first = next(iter(marks))
        failed = experiments.failures(calls, first, causes)
        if args.figures:
            draw_failures(args.folder, cases, network, failed, marks[first], args.figures)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print_report(calls, skipped, marks)
    print()
    numbers = {f"threshold_{mark}": value for mark, value in marks.items()}
    numbers |= experiments.headline(calls, tuple(marks))
    keep_benchmark(
        "real_events",
        numbers,
        seed=0,
        started=started,
        quick=args.quick,
        weights=weights_hash(args.model),
        list_sha256=hashlib.sha256(args.list.read_bytes()).hexdigest(),
        too_few_epochs=skipped,
        table=experiments.summary_table(calls, marks),
        published=experiments.published_events(calls, marks),
        failures=failed,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
