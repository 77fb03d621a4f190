"""Command line: `lensml VERB` = `python -m lensml VERB`. Each verb imports what it needs."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from lensml.paths import SIZES, InputError, atomic_path

OK, FAILED, BAD_INPUT = 0, 1, 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lensml", description="Single or binary lens, live.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verbs.add_parser("preflight", help="hardware, versions, disk, memory; what will be slow")

    simulate = verbs.add_parser("simulate", help="make a light-curve set")
    simulate.add_argument("--output", type=Path, required=True, metavar="FILE.npz|FOLDER")
    simulate.add_argument("--n_pspl", type=int, default=100_000)
    simulate.add_argument("--n_binary", type=int, default=100_000)
    simulate.add_argument("--binary_params", default="baseline", metavar="SET")
    simulate.add_argument("--cadence", type=float, default=0.2, help="fraction of epochs missing")
    simulate.add_argument("--error", type=float, default=0.1, help="1-sigma error [mag]")
    simulate.add_argument("--blending", type=float, nargs=2, metavar=("LO", "HI"))
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--workers", type=int, help="processes; default one per core")
    simulate.add_argument("--shard_size", type=int, default=10_000, help="events a shard")
    simulate.add_argument("--population", action="store_true", help="singles from the priors")

    train = verbs.add_parser("train", help="train a network on a set")
    train.add_argument("--data", type=Path, nargs="+", required=True, metavar="SET")
    train.add_argument("--output", type=Path, required=True, metavar="RUN")
    train.add_argument("--epochs", type=int, default=50)
    train.add_argument("--batch_size", type=int, default=512)
    train.add_argument("--experiment_name", default="")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--resume", action="store_true")

    evaluate = verbs.add_parser("evaluate", help="measure a network on a set it has not seen")
    evaluate.add_argument("--model", type=Path, metavar="RUN")
    evaluate.add_argument("--data", type=Path, required=True, metavar="SET")
    evaluate.add_argument("--output_dir", type=Path, required=True, metavar="DIR")
    evaluate.add_argument("--early_detection", action="store_true")

    classify = verbs.add_parser("classify", help="P(binary) along one light curve")
    classify.add_argument("lightcurve", type=Path)
    classify.add_argument("--m_base", type=float, help="baseline magnitude, if it is known")
    classify.add_argument("--model", type=Path, metavar="RUN")
    classify.add_argument("--json", action="store_true")

    stream = verbs.add_parser("stream", help="JSON lines in and out, one epoch a line")
    stream.add_argument("--model", type=Path, metavar="RUN")
    stream.add_argument("--state", type=Path, metavar="FILE")

    run = verbs.add_parser("run", help="run one chapter, or all")
    run.add_argument("chapter")
    run.add_argument("--size", default="smoke", choices=SIZES)
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("N", "V"))
    run.add_argument("--workers", type=int, default=0)

    book = verbs.add_parser("book", help="run all chapters and build the book")
    book.add_argument("--size", default="smoke", choices=SIZES)
    book.add_argument("--workers", type=int, default=0)
    book.add_argument("--no-run", action="store_true", help="use the chapters' last copies")
    book.add_argument("--pdf", action="store_true", help="make a PDF in place of the pages")
    book.add_argument(
        "--quote", action="store_true", help="only renew the numbers quoted in prose and README"
    )
    return parser


def _preflight(_: argparse.Namespace) -> int:
    from lensml.experiments import preflight

    report = preflight()
    for name, value in report["facts"].items():
        print(f"{name:16} {value}")
    for line in report["slow"]:
        print(f"slow: {line}")
    for line in report["missing"]:
        print(f"missing: {line}", file=sys.stderr)
    return FAILED if report["missing"] else OK


def _simulate(args: argparse.Namespace) -> None:
    from lensml.simulation import Simulation, Survey, simulate

    if args.n_pspl != args.n_binary:
        raise InputError(
            f"--n_pspl {args.n_pspl} and --n_binary {args.n_binary} differ, but every binary "
            "stands beside one single lens; give the same number for both"
        )
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least 1 was expected")
    simulation = Simulation(
        preset=args.binary_params,
        num_pairs=args.n_binary,
        seed=args.seed,
        survey=Survey(missing_fraction=args.cadence, sigma=args.error),
        blending=tuple(args.blending) if args.blending else None,
        population=args.population,
        shard_size=args.shard_size,
    )
    print(simulate(args.output, simulation, workers=args.workers))


def _train(args: argparse.Namespace) -> None:
    import numpy as np

    from lensml.plotting import history
    from lensml.training import TrainingConfig, train

    config = TrainingConfig(epochs=args.epochs, batch_size=args.batch_size, seed=args.seed)
    run = train(args.data, args.output, config, name=args.experiment_name, resume=args.resume)
    if os.environ.get("RANK", "0") == "0":  # under torchrun, the process that wrote the run
        table = np.genfromtxt(run / "history.csv", delimiter=",", names=True, ndmin=1)
        columns = {name: table[name] for name in table.dtype.names}
        with atomic_path(run / "training_history.svg") as temporary:
            history(columns).savefig(temporary)
    print(run)


def _evaluate(args: argparse.Namespace) -> None:
    from lensml.experiments import evaluate

    metrics = evaluate(args.data, args.output_dir, args.model, early_detection=args.early_detection)
    for name in ("accuracy", "roc_auc", "average_precision", "ece"):
        print(f"{name:18} {metrics[name]:.4f}")
    print(args.output_dir)


def _classify(args: argparse.Namespace) -> None:
    from lensml.network import classify, load_network
    from lensml.photometry import read_photometry

    photometry = read_photometry(args.lightcurve)
    if photometry.dropped:
        print(photometry.summary(), file=sys.stderr)
    network = load_network(args.model)[0]
    p = classify(photometry.time, photometry.mag, photometry.mag_err, args.m_base, network)
    pairs = zip(photometry.time.tolist(), p.tolist(), strict=True)
    answer = {
        "file": str(args.lightcurve),
        "n_epochs": len(p),
        "p_binary": float(p[-1]),
        "epochs": [{"time": t, "p_binary": value} for t, value in pairs],
    }
    if args.json:
        print(json.dumps(answer))
        return
    strongest = int(p.argmax())
    print(f"{args.lightcurve.name}: {len(p)} epochs, P(binary) = {p[-1]:.3f} at the last")
    print(f"largest {p[strongest]:.3f} at {photometry.time[strongest]:.5f}")


def _stream(args: argparse.Namespace) -> int:
    from lensml.network import load_network
    from lensml.streaming import StreamingClassifier, serve

    stream = StreamingClassifier(load_network(args.model)[0])
    if args.state and args.state.exists():
        stream.restore(args.state)
    return serve(stream, sys.stdin, sys.stdout, sys.stderr, args.state)


def _run(args: argparse.Namespace) -> None:
    from lensml.experiments import run

    run(args.chapter, args.size, dict(args.parameter), args.workers)


def _book(args: argparse.Namespace) -> None:
    from lensml.experiments import make_book, quote_everywhere

    if args.quote:
        print(f"numbers renewed in: {', '.join(quote_everywhere()) or 'no file'}")
    else:
        make_book(args.size, args.workers, run=not args.no_run, pdf=args.pdf)


VERBS = {
    "preflight": _preflight,
    "simulate": _simulate,
    "train": _train,
    "evaluate": _evaluate,
    "classify": _classify,
    "stream": _stream,
    "run": _run,
    "book": _book,
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; bad input is one line on standard error and exit code 2."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return VERBS[args.verb](args) or OK  # most verbs return nothing
    except InputError as error:
        print(f"lensml {args.verb}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"lensml {args.verb}: interrupted; the same command resumes", file=sys.stderr)
        return 130
