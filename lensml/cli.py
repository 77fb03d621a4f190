"""Command line: `lensml VERB` = `python -m lensml VERB`. Each verb imports what it needs."""

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import lensml
from lensml.exits import BAD_INPUT, FAILED, OK, guarded, printable
from lensml.limits import MAX_EVENTS
from lensml.paths import (
    BUILD,
    ROOT,
    SIZES,
    InputError,
    atomic_path,
    check_installed,
    git_commit,
    only_writer,
)

SETS = ("baseline", "distinct", "planetary", "stellar", "null")
PREVALENCE_HELP = "fraction of binaries to expect, which shifts P; as in training"
SURVEY_HELP = "whose alert threshold, of those stored with the weights"
MODEL_HELP = "run folder of `train`; default: the weights that ship with lensml"
EVENT_HELP = "run folder of a network; default: the one that ships with lensml"


def fraction(text: str) -> float:
    """A fraction of binaries, from the command line."""
    if not 0 < float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} came, a number between 0 and 1 was expected")
    return float(text)


def _shards(text: str) -> range:
    """A range A:B of shards, from the command line."""
    first, colon, stop = text.partition(":")
    if not (colon and first.isdecimal() and stop.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text} came, A:B was expected, such as 0:10")
    return range(int(first), int(stop))


class _Parser(argparse.ArgumentParser):
    """Shows defaults and examples in its help; refuses a wrong flag in one line."""

    def __init__(self, **settings) -> None:
        super().__init__(formatter_class=_Help, **settings)

    def error(self, message: str) -> NoReturn:
        way = f"`{self.prog} --help` shows what it takes"
        self.exit(BAD_INPUT, f"{self.prog}: {printable(message)}; {way}\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, False, "", [])
        return super()._get_help_string(action) if shown else action.help


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_) -> NoReturn:
        commit = git_commit()
        where = "" if commit == "unknown" else f" (commit {commit[:12]})"
        shown = f"lensml {lensml.__version__}{where}"
        parser.exit(guarded("--version", lambda: print(shown)))


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _, shell: str, *__) -> NoReturn:
        try:
            check_installed("completion", "shtab")
        except InputError as error:
            parser.exit(BAD_INPUT, f"lensml --print-completion: {error}\n")
        import shtab

        verbs = next(action.choices for action in parser._actions if action.dest == "verb")
        for action in (x for verb in verbs.values() for x in verb._actions if x.type is Path):
            action.complete = shtab.FILE
        print(shtab.complete(parser, shell))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lensml", description="Single or binary lens, while the event unfolds.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print version and commit")
    parser.add_argument("--print-completion", action=_Completion, choices=("bash", "zsh", "tcsh"),
        help="print what a shell needs to complete verbs and flags")  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, what: str, *examples: str):
        shown = "example:\n" + "\n".join(f"  lensml {name} {x}" for x in examples)
        return verbs.add_parser(name, help=what, description=what, epilog=shown).add_argument

    add = verb("preflight", "hardware, versions, disk, memory; what will be slow", "")
    add("--gpu", action="store_true", help="fail where no GPU can be used")

    add = verb(
        "simulate",
        "make a light-curve set: binaries, each beside its single lens",
        "--output test.npz --n_pspl 500 --n_binary 500 --binary_params distinct --seed 7",
    )
    add("--output", type=Path, required=True, metavar="FILE.npz|FOLDER", help="where; a folder "
        "holds shards, for sets larger than memory")  # fmt: skip
    add("--n_pspl", type=int, default=100_000, help="single lenses; as many as binaries")
    add("--n_binary", type=int, default=100_000, help="binaries")
    add("--binary_params", default="baseline", metavar="SET", choices=SETS,
        help=f"ranges of the binaries' parameters, one of {', '.join(SETS)}")  # fmt: skip
    add("--cadence", type=float, default=0.2, help="fraction of epochs missing")
    add("--error", type=float, default=0.1, help="1-sigma error [mag]")
    add("--blending", type=float, nargs=2, metavar=("LO", "HI"), help="range of f_s, the fraction "
        "of the baseline flux that is lensed; default: all of it")  # fmt: skip
    add("--seed", type=int, default=0, help="of all that is drawn")
    add("--workers", type=int, help="processes; default: one a core")
    add("--shard_size", type=int, default=10_000, help="events a shard")
    add("--population", action="store_true", help="single lenses from the priors, not twins")
    add("--shards", type=_shards, metavar="A:B", help="make only these, counted from 0, B not "
        "among them; other processes may make others")  # fmt: skip
    add("--finish", action="store_true", help="complete a set whose shards are all made")

    add = verb(
        "train",
        "train a network on one or several sets",
        "--data train_baseline --output runs/mine --epochs 10",
    )
    add("--data", type=Path, nargs="+", required=True, metavar="SET", help="of `simulate`")
    add("--output", type=Path, required=True, metavar="RUN", help="run folder")
    add("--epochs", type=int, default=50, help="passes over the sets")
    add("--batch_size", type=int, default=512, help="curves a step")
    add("--learning_rate", type=float, default=1e-3, help="highest, after the warm-up")
    add("--start_from", metavar="RUN", help="run folder whose weights come first, or `shipped`; "
        "default: random weights")  # fmt: skip
    add("--experiment_name", default="", help="label, kept with the run")
    add("--seed", type=int, default=0, help="of weights, batches and noise")
    add("--resume", action="store_true", help="take up a run that was interrupted")

    add = verb(
        "evaluate",
        "measure a network on a set it has not seen",
        "--data test.npz --output_dir results --early_detection",
    )
    add("--model", type=Path, metavar="RUN", help=MODEL_HELP)
    add("--data", type=Path, required=True, metavar="SET", help="of `simulate`")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="for metrics.json, "
        "predictions.npz and figures")  # fmt: skip
    add("--prevalence", type=fraction, default=0.5, metavar="X", help=PREVALENCE_HELP)
    add("--early_detection", action="store_true", help="also refit prefixes and count alerts")

    add = verb(
        "classify",
        "P(binary) along light curves: baseline, first alert, highest and last P",
        "phot.dat --plot phot.png",
        "site1.csv site2.csv --json",
        "phot.txt --columns time=2,mag=3,err=4,dataset=filter",
    )
    add("lightcurve", type=Path, nargs="+", metavar="FILE|FOLDER", help="a table with a header, or "
        "of OGLE, MOA or KMTNet, plain or packed; several are data sets of one event")  # fmt: skip
    add("--each", action="store_true", help="each file is an event of its own")
    add("--columns", metavar="ROLE=NAME,...", help="where to look: time=..,mag=..,err=.. or "
        "flux=..,flux_err=.., perhaps dataset=.., names or numbers from 1")  # fmt: skip
    add("--m_base", type=float, help="baseline magnitude of the one data set; default: fitted to "
        "its epochs so far")  # fmt: skip
    add("--plot", type=Path, metavar="FILE", help="draw data, fit, residuals and P: .png or .svg; "
        "of several events, a folder")  # fmt: skip
    add("--model", type=Path, metavar="RUN", help=EVENT_HELP)
    add("--prevalence", type=fraction, default=0.5, metavar="X", help=PREVALENCE_HELP)
    add("--survey", default="default", metavar="NAME", help=SURVEY_HELP)
    add("--json", action="store_true", help="one object an event, with P at every epoch")

    add = verb(
        "stream",
        "P(binary) as epochs arrive: JSON lines in and out, one epoch a line",
        "--state night.state < epochs.ndjson",
    )
    add("--model", type=Path, metavar="RUN", help=EVENT_HELP)
    add("--state", type=Path, metavar="FILE", help="keep the state there and go on from it")
    add("--ledger", type=Path, metavar="FILE", help="append alerts, their outcomes and the rate of "
        "false alarms so far, one JSON line each")  # fmt: skip
    add("--level", type=float, default=0.01, metavar="X", help="fraction of simulated single "
        "lenses that alert, which chooses the threshold: 0.01 or 0.001")  # fmt: skip
    add("--survey", default="default", metavar="NAME", help=SURVEY_HELP)
    add("--prevalence", type=fraction, default=0.5, metavar="X", help=PREVALENCE_HELP)
    add("--max_events", type=int, default=MAX_EVENTS, help="in memory, 50 kB each; beyond, the one "
        "seen least recently goes to FILE.events beside --state, else to a file that ends with the "
        "process, and comes back with its next epoch")  # fmt: skip
    add("--kafka", metavar="SERVERS", help="read alerts of ZTF, Rubin or Fink there: "
        "host:port,.. or a file of librdkafka settings")  # fmt: skip
    add("--topics", nargs="+", metavar="TOPIC", help="with alerts; TOPIC:0,1 if other processes "
        "read the other partitions, keyed by event")  # fmt: skip
    add("--answers", metavar="TOPIC", help="for answers, keyed by event")
    add("--schema", type=Path, metavar="FILE", help="Avro schema of alerts that come without one")
    add("--until_end", action="store_true", help="stop where the topics end")

    add = verb("init", "make a project: chapters, book and results to work on", "thesis")
    add("folder", type=Path, help="new, or empty")

    add = verb("run", "run one chapter, or all", "02 --size smoke", "all --size desk --workers 2")
    add("chapter", help="its number or name, or `all`")
    add("--size", default="smoke", choices=SIZES, help="how many events: " + ", ".join(SIZES))
    add("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="a parameter of the chapter; can be repeated")  # fmt: skip
    add("--workers", type=int, default=0, help="chapters at a time; 0: two")

    add = verb("book", "run all chapters and build the book", "--size smoke")
    add("--size", default="smoke", choices=SIZES, help="how many events: " + ", ".join(SIZES))
    add("--workers", type=int, default=0, help="chapters at a time; 0: two")
    add("--no-run", action="store_true", help="use the chapters' last copies")
    add("--pdf", action="store_true", help="make a PDF in place of the pages")
    add("--quote", action="store_true", help="only renew the numbers quoted in prose and README")
    return parser


def _preflight(args: argparse.Namespace) -> int:
    from lensml.experiments import preflight

    report = preflight(gpu=args.gpu)
    for name, value in report["facts"].items():
        print(f"{name:16} {value}")
    for line in report["slow"]:
        print(f"slow: {line}")
    for line in report["missing"]:
        print(f"missing: {line}", file=sys.stderr)
    return FAILED if report["missing"] else OK


def _simulate(args: argparse.Namespace) -> None:
    from lensml.simulation import Simulation, Survey, finish_shards, simulate, simulate_shards

    if args.n_pspl != args.n_binary:
        raise InputError(
            f"--n_pspl {args.n_pspl} and --n_binary {args.n_binary} differ, but every binary "
            "stands beside one single lens; give the same number for both"
        )
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least 1 was expected")
    settings = {name: getattr(args, name) for name in ("seed", "population", "shard_size")}
    settings["survey"] = Survey(missing_fraction=args.cadence, sigma=args.error)
    settings["blending"] = tuple(args.blending) if args.blending else None
    simulation = Simulation(preset=args.binary_params, num_pairs=args.n_binary, **settings)
    if args.finish:
        print(finish_shards(args.output, simulation))
    elif args.shards:
        print(simulate_shards(args.output, simulation, args.shards, workers=args.workers))
    else:
        print(simulate(args.output, simulation, workers=args.workers))


def _train(args: argparse.Namespace) -> None:
    import numpy as np

    from lensml.experiments import write_svg
    from lensml.plotting import history
    from lensml.training import TrainingConfig, train

    names = ("epochs", "batch_size", "learning_rate", "start_from", "seed")
    config = TrainingConfig(**{name: getattr(args, name) for name in names})
    run = train(args.data, args.output, config, name=args.experiment_name, resume=args.resume)
    if os.environ.get("RANK", "0") == "0":  # under torchrun, the process that wrote the run
        table = np.genfromtxt(run / "history.csv", delimiter=",", names=True, ndmin=1)
        columns = {name: table[name] for name in table.dtype.names}
        write_svg(history(columns), run / "training_history.svg")
    print(run)


def _evaluate(args: argparse.Namespace) -> None:
    from lensml.experiments import evaluate, report_text

    options = {"early_detection": args.early_detection, "prevalence": args.prevalence}
    metrics = evaluate(args.data, args.output_dir, args.model, **options)
    print(report_text(metrics))
    print(f"written to {args.output_dir}")


def _classify(args: argparse.Namespace) -> None:
    from lensml import network, plotting
    from lensml.photometry import light_curve_files
    from lensml.streaming import classify_file

    options = {"prevalence": args.prevalence, "survey": args.survey}
    events = [args.lightcurve]
    if args.each:
        events = [[file] for path in args.lightcurve for file in light_curve_files(path)]
    if (several := len(events) > 1) and args.m_base is not None:
        raise InputError(f"--m_base {args.m_base:g} is of one event, but {len(events)} files came")
    if args.plot and not several and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {args.plot}: a name that ends in .png or .svg was expected")
    for paths in events:
        found = classify_file(paths, args.m_base, args.model, args.columns, **options)
        print(found.event.summary(), file=sys.stderr)
        sys.stdout.writelines(found.json() if args.json else [found.text(), "\n"])
        if args.plot and not found.fits:
            raise InputError(f"--plot: {paths[0]} has too few epochs for a fit, {len(found.p)}")
        if args.plot:
            threshold = found.overall["threshold"]
            if threshold:  # on the scale of what is drawn
                threshold = float(network.prior_shift(threshold, args.prevalence))
            figure = plotting.real_event(
                *found.aligned(), found.magnitude, found.p, title=found.event.name,
                threshold=threshold, datasets=[e["dataset"] for e in found.answer["epochs"]],
            )  # fmt: skip
            name = args.plot / f"{found.event.name}_p_binary.png" if several else args.plot
            with atomic_path(name) as temporary:
                figure.savefig(temporary, dpi=200)
            print(f"  figure    {name}", file=sys.stderr if args.json else sys.stdout)


def _stream(args: argparse.Namespace) -> int:
    if args.kafka and not (args.topics and args.answers and args.state):
        raise InputError("--kafka needs --topics, --answers and --state, which keeps the offsets")
    if not args.kafka and (args.topics or args.answers or args.schema or args.until_end):
        raise InputError("--topics, --answers, --schema and --until_end need --kafka")
    if args.max_events < 1:
        raise InputError(f"--max_events {args.max_events}: at least 1 was expected")
    with only_writer(args.state) if args.state else nullcontext():
        return _served(args)


def _served(args: argparse.Namespace) -> int:
    from lensml import streaming
    from lensml.network import load_network
    from lensml.streaming import Ledger, StreamingClassifier, find_threshold, serve

    options = {"max_events": args.max_events, "store": args.state and Path(f"{args.state}.events")}
    stream = StreamingClassifier(load_network(args.model)[0], **options)
    if args.state and args.state.exists():
        stream.restore(args.state)
    ledger = None
    if args.ledger:
        if not (threshold := find_threshold(args.model, args.survey, args.level)):
            raise InputError(f"--ledger {args.ledger}: {args.model} has no stored alert threshold")
        ledger = Ledger(args.ledger, threshold)
        print(f"lensml stream: alerts above {threshold.text()}", file=sys.stderr)
    if args.kafka:
        broker = streaming.Broker(args.kafka, args.topics, args.answers, args.schema)
        rest = sys.stderr, args.state, ledger, args.prevalence, args.until_end
        return streaming.serve_alerts(stream, broker, *rest)
    files = sys.stdin, sys.stdout, sys.stderr
    return serve(stream, *files, args.state, ledger, args.prevalence)


def _init(args: argparse.Namespace) -> None:
    from lensml.experiments import make_project

    print(f"a project is at {make_project(args.folder)}; go there for `lensml run` and `book`")


def _run(args: argparse.Namespace) -> None:
    from lensml.experiments import find_chapter, run

    run(args.chapter, args.size, dict(args.parameter), args.workers)
    name = "*" if args.chapter == "all" else find_chapter(args.chapter)
    root = BUILD / "custom" if args.parameter else ROOT
    numbers = root / ("_build/results" if args.size == "smoke" else "data/results")
    print(f"notebook  {BUILD / 'notebooks' / name}.ipynb\nlog       {BUILD / 'logs' / name}.log")
    if name == "*" or (numbers / args.size / f"{name}.json").exists():
        print(f"numbers   {numbers / args.size / name}.json")


def _book(args: argparse.Namespace) -> None:
    from lensml.experiments import book_code, make_book

    if args.quote:
        renewed = book_code("quotes").quote_everywhere()
        print(f"numbers renewed in: {', '.join(renewed) or 'no file'}")
    else:
        make_book(args.size, args.workers, run=not args.no_run, pdf=args.pdf)


_FUNCTIONS = (*(_preflight, _simulate, _train, _evaluate, _classify, _stream, _init, _run, _book),)
VERBS = {function.__name__[1:]: function for function in _FUNCTIONS}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; bad input is one line on standard error and exit code 2."""
    args = _parser().parse_args(arguments)
    return guarded(args.verb, lambda: VERBS[args.verb](args))
