"""Good input is answered; bad input gets one line, exit code 2, and leaves no trace."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lensml.cli import main
from lensml.network import load_network
from lensml.simulation import Simulation, Survey, load, save, simulate

PHOT = "\n".join(f"{2457000 + k} {18 + 0.01 * (k % 5):.3f} 0.02 1 1" for k in range(40))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("main") / "set.npz"
    simulation = Simulation(preset="distinct", num_pairs=8, seed=99, survey=Survey(num_epochs=150))
    return simulate(path, simulation, workers=1, progress=False)


def run(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse's own refusal
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*"))


def assert_refused(capsys, folder, named, *arguments):
    """Exit 2, one line on standard error that names the culprit, nothing written."""
    before = files(folder)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out
    lines = err.strip().splitlines()
    assert len(lines) == 1 and named in lines[0], err
    assert "Traceback" not in err
    assert files(folder) == before


def test_simulate_writes_a_set(capsys, tmp_path):
    output = tmp_path / "a.npz"
    code, out, _ = run(capsys, "simulate", "--output", output, "--n_pspl", 2, "--n_binary", 2,
                       "--workers", 1, "--cadence", 0.3, "--error", 0.05, "--seed", 4)  # fmt: skip
    assert code == 0 and out.strip() == str(output)
    curves = load(output)
    assert len(curves) == 4 and curves.X.shape == (4, 1500)
    assert curves.meta["seed"] == 4 and curves.meta["survey"]["missing_fraction"] == 0.3
    np.testing.assert_allclose(curves.sigma, 0.05, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--n_pspl", 3, "--n_binary", 4], "--n_pspl 3"),
        (["--n_pspl", 0, "--n_binary", 0], "num_pairs"),
        (["--binary_params", "giant"], "giant"),
        (["--cadence", 1.5], "missing_fraction"),
        (["--error", -1], "sigma"),
        (["--error", "nan"], "sigma"),
        (["--blending", 0.5, 0.1], "blending"),
        (["--seed", -1], "seed"),
        (["--workers", 0], "--workers 0"),
        (["--shard_size", 0], "shard_size"),
        (["--n_pspl", "many"], "--n_pspl"),
        (["--color", "red"], "--color"),
    ],
)
def test_simulate_refuses(capsys, tmp_path, flags, named):
    assert_refused(capsys, tmp_path, named, "simulate", "--output", tmp_path / "x", *flags)


def test_simulate_refuses_another_set_in_its_place(capsys, small):
    assert_refused(capsys, small.parent, "set.npz", "simulate", "--output", small, "--n_pspl", 1,
                   "--n_binary", 1)  # fmt: skip


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_set_that_cannot_be_read_is_named(capsys, tmp_path, verb):
    (tmp_path / "text.npz").write_text("hello")
    output = "--output" if verb == "train" else "--output_dir"
    for name in ("text.npz", "nowhere.npz"):
        code, _, err = run(capsys, verb, "--data", tmp_path / name, output, tmp_path / "out")
        assert code == 2 and name in err and len(err.strip().splitlines()) == 1
        assert not (tmp_path / "out" / "model.safetensors").exists()
        assert not (tmp_path / "out" / "metrics.json").exists()


def test_train_then_evaluate_by_the_names_of_the_thesis(capsys, tmp_path, small):
    """`--output x.pt` makes the run folder x, and `--model x.pt` finds it."""
    code, out, _ = run(capsys, "train", "--data", small, "--output", tmp_path / "x.pt",
                       "--epochs", 1, "--batch_size", 8, "--experiment_name", "try")  # fmt: skip
    assert code == 0 and (tmp_path / "x" / "model.safetensors").exists()
    assert "steps in all are too few" in (tmp_path / "x" / "training.log").read_text()
    assert list((tmp_path / "x").glob("*.svg"))
    fresh = tmp_path / "fresh.npz"
    simulation = Simulation(preset="distinct", num_pairs=12, seed=5, survey=Survey(num_epochs=150))
    simulate(fresh, simulation, workers=1, progress=False)
    results = tmp_path / "results"
    code, out, _ = run(capsys, "evaluate", "--model", tmp_path / "x.pt", "--data", fresh,
                       "--output_dir", results)  # fmt: skip
    assert code == 0 and "ideal observer" in out and "precision" in out
    metrics = json.loads((results / "metrics.json").read_text())
    assert {"accuracy", "roc_auc", "average_precision", "confusion_matrix", "ece"} <= metrics.keys()
    with np.load(results / "predictions.npz") as predictions:
        assert predictions["p"].shape == (24, 7) and predictions["p"].dtype == np.float32
    # the events of training are refused under any name, with the command that makes fresh ones
    renamed = save(tmp_path / "innocent.npz", load(small))
    before = files(tmp_path)
    code, _, err = run(capsys, "evaluate", "--model", tmp_path / "x", "--data", renamed,
                       "--output_dir", tmp_path / "other")  # fmt: skip
    assert code == 2 and "lensml simulate" in err and len(err.strip().splitlines()) == 1
    assert "--n_binary 8 --cadence 0.2 --error 0.1 --output" in err and "num_epochs" in err
    assert files(tmp_path) == before


def test_train_does_not_overwrite_a_run(capsys, tmp_path, small):
    arguments = ["train", "--data", small, "--output", tmp_path / "x", "--epochs", 1]
    assert run(capsys, *arguments)[0] == 0
    assert_refused(capsys, tmp_path, "--resume", *arguments)


def test_evaluate_refuses_what_the_shipped_network_was_trained_on(capsys, tmp_path, small):
    trained = load_network()[1]["trained_on"][0]
    curves = load(small)
    meta = curves.meta | {"preset": trained["preset"], "seed": trained["seed"]}
    pair = np.repeat(np.arange(8) + trained["first"], 2)
    from dataclasses import replace

    seen = save(tmp_path / "new_name.npz", replace(curves, meta=meta, pair=pair))
    assert_refused(capsys, tmp_path, "lensml simulate", "evaluate", "--data", seen,
                   "--output_dir", tmp_path / "out")  # fmt: skip


def test_classify_answers_with_one_object(capsys, tmp_path):
    path = tmp_path / "phot.dat"
    path.write_text(PHOT)
    code, out, err = run(capsys, "classify", path, "--json", "--m_base", 18.0)
    answer = json.loads(out)
    assert code == 0 and err == (
        "phot: 40 usable epochs, 0 rows dropped; time, mag and error from columns 1, 2, 3; "
        "times as they are\n"
    )
    (dataset,) = answer["datasets"]
    assert (dataset["name"], dataset["n_epochs"], dataset["baseline"]) == ("phot", 40, 18.0)
    assert answer["n_epochs"] == 40 == len(answer["epochs"])
    assert answer["p_binary"] == answer["epochs"][-1]["p_binary"]
    assert [e["time"] for e in answer["epochs"]] == [2457000.0 + k for k in range(40)]


def test_classify_says_what_it_read_and_where_it_alerts(capsys, tmp_path):
    path = tmp_path / "phot.dat"
    path.write_text(PHOT + "\n2457041 18 -1 1 1")
    code, out, err = run(capsys, "classify", path, "--plot", tmp_path / "p.png")
    assert code == 0 and "1 rows dropped (1 error not positive)" in err
    heads = [line.split()[0] for line in out.splitlines()]
    assert heads[:5] == ["phot:", "read", "baseline", "alert", "highest"] and heads[-1] == "figure"
    assert "HJD 2457000.000 to 2457039.000" in out and (tmp_path / "p.png").stat().st_size > 10_000


def test_several_files_are_data_sets_of_one_event_and_events_with_each(capsys, tmp_path):
    paths = [tmp_path / "a.dat", tmp_path / "b.dat"]
    for path in paths:
        path.write_text(PHOT)
    for given in (paths, [tmp_path]):
        (answer,) = run(capsys, "classify", *given, "--json")[1].splitlines()
        answer, times = json.loads(answer), []
        assert [(d["name"], d["n_epochs"]) for d in answer["datasets"]] == [("a", 40), ("b", 40)]
        assert answer["n_epochs"] == 80 == len(answer["epochs"])
        times = [epoch["time"] for epoch in answer["epochs"]]
        assert times == sorted(times)
    assert_refused(capsys, tmp_path, "2 data sets", "classify", *paths, "--m_base", 18)
    command = ["classify", *paths, "--each"]
    answers = [json.loads(x) for x in run(capsys, *command, "--json")[1].splitlines()]
    assert [answer["file"] for answer in answers] == [str(path) for path in paths]
    assert_refused(capsys, tmp_path, "--m_base 18", *command, "--m_base", 18)


def test_a_figure_needs_a_name_of_a_figure(capsys, tmp_path):
    (tmp_path / "phot.dat").write_text(PHOT)
    path = tmp_path / "phot.dat"
    assert_refused(capsys, tmp_path, "--plot", "classify", path, "--plot", tmp_path / "p.dat")


@pytest.mark.parametrize(
    "text", ["", "hello world\n", "time,mag,mag_err\n1,nan,0.1\n2,18,0\n", "\x00\x01\x02", "1 2\n"]
)
def test_classify_refuses_what_is_no_light_curve(capsys, tmp_path, text):
    path = tmp_path / "curve.csv"
    path.write_text(text)
    assert_refused(capsys, tmp_path, "curve.csv", "classify", path)


@pytest.mark.parametrize("m_base", ["nan", "inf", "1e39", "99", "16"])
def test_classify_refuses_a_baseline_that_cannot_belong_to_the_data(capsys, tmp_path, m_base):
    path = tmp_path / "phot.dat"
    path.write_text(PHOT)
    assert_refused(capsys, tmp_path, "m_base", "classify", path, "--m_base", m_base)


def test_missing_files_and_models_are_named(capsys, tmp_path):
    (tmp_path / "phot.dat").write_text(PHOT)
    assert_refused(capsys, tmp_path, "gone.dat", "classify", tmp_path / "gone.dat")
    model = ["--model", tmp_path / "no_run"]
    assert_refused(capsys, tmp_path, "no_run", "classify", tmp_path / "phot.dat", *model)
    assert_refused(capsys, tmp_path, "no_run", "stream", *model)


def test_wrong_verbs_and_flags_are_refused(capsys, tmp_path):
    assert_refused(capsys, tmp_path, "sing", "sing")
    assert_refused(capsys, tmp_path, "--louder", "preflight", "--louder")
    assert_refused(capsys, tmp_path, "huge", "run", "02_baseline", "--size", "huge")


def test_every_flag_has_a_help_text_and_every_verb_an_example():
    from lensml import cli as module

    parser = module._parser()
    (verbs,) = (a for a in parser._actions if a.dest == "verb")
    for name, verb in verbs.choices.items():
        assert all(action.help for action in verb._actions), name
        assert f"lensml {name}" in verb.epilog
    assert "(default: 0.2)" in verbs.choices["simulate"].format_help()


def test_version_names_the_package_and_its_commit(capsys):
    import lensml

    code, out, _ = run(capsys, "--version")
    assert code == 0 and out.startswith(f"lensml {lensml.__version__}") and out.count("\n") == 1


def test_stream_answers_bad_lines_and_goes_on():
    good = {"event": "a", "time": 1.0, "mag": 18.0, "mag_err": 0.1, "m_base": 18.0}
    lines = [json.dumps(good), "rubbish", json.dumps(good), json.dumps(good | {"time": 2.0})]
    text = "\n".join(lines).encode() + b"\n\xff\xfe\n" + json.dumps(good | {"time": 3}).encode()
    done = subprocess.run(
        [sys.executable, "-m", "lensml", "stream"], input=text, capture_output=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2 and b"Traceback" not in done.stderr, done.stderr.decode()
    assert ["p_binary" in a for a in answers] == [True, False, False, True, False, True]
    assert len(done.stderr.splitlines()) == 3


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    from lensml import cli as module

    def interrupted(_):
        raise KeyboardInterrupt

    for verb, way in (("preflight", "nothing is kept"), ("train", "with --resume goes on")):
        monkeypatch.setitem(module.VERBS, verb, interrupted)
        more = ["--data", "a", "--output", "b"] if verb == "train" else []
        code, _, err = run(capsys, verb, *more)
        assert code == 130 and way in err and err.count("\n") == 1


def test_an_error_of_the_program_is_one_line_and_a_log(capsys, monkeypatch):
    from lensml import cli as module

    def fail(_):
        raise ZeroDivisionError("a\nb\x1b[31m")

    monkeypatch.setitem(module.VERBS, "preflight", fail)
    code, _, err = run(capsys, "preflight")
    assert code == 1 and err.count("\n") == 1 and "\x1b" not in err
    log = Path(err.strip().rsplit(" ", 1)[1])
    assert "Traceback" in log.read_text() and "ZeroDivisionError" in log.read_text()
    log.unlink()


@pytest.mark.parametrize(
    ("redirection", "code"), [(">&-", 2), ("> /dev/full", 2), ("| head -c 0", 141)]
)
def test_an_output_that_takes_nothing_is_one_line(tmp_path, redirection, code):
    (tmp_path / "phot.dat").write_text(PHOT)
    for verb in ("--version", f"classify {tmp_path}/phot.dat --json"):
        call = (
            f"sleep 0.2 | {sys.executable} -m lensml {verb} {redirection}; exit ${{PIPESTATUS[1]}}"
        )
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True)
        lines = [x for x in done.stderr.splitlines() if "usable epochs" not in x]
        assert done.returncode == code and len(lines) == 1, (verb, done)


OUTPUTS = {
    "simulate": ["--n_pspl", 2, "--n_binary", 2, "--workers", 1, "--output"],
    "train": ["--data", "SET", "--epochs", 1, "--output"],
    "evaluate": ["--data", "SET", "--output_dir"],
    "classify": ["PHOT", "--plot"],
    "stream": ["--state"],
    "init": [],
}


@pytest.mark.parametrize("place", ["file/below", "n" * 300, "/proc/no/where", ""])
@pytest.mark.parametrize("verb", OUTPUTS)
def test_an_output_that_cannot_be_written_is_named(capsys, tmp_path, small, verb, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "phot.dat").write_text(PHOT)
    if verb == "evaluate" and not place:
        pytest.skip("the working folder, which is meant")
    known = {"SET": small, "PHOT": tmp_path / "phot.dat"}
    flags = [known.get(x, x) for x in OUTPUTS[verb]]
    path = f"{tmp_path / place}.svg" if verb == "classify" else str(tmp_path / place) * bool(place)
    before = files(tmp_path)
    code, _, err = run(capsys, verb, *flags, path)
    lines = [x for x in err.splitlines() if "usable epochs" not in x]
    if verb == "classify" and not place:
        assert code == 0  # a figure of that name
    else:
        assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
        assert files(tmp_path) == before


HEAVY = "torch numpy scipy matplotlib VBMicrolensing sklearn IPython astropy tqdm".split()


def imported_by(*arguments) -> set[str]:
    """Modules that a fresh process has imported once a verb is done."""
    code = (
        "import contextlib, io, sys\nfrom lensml.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    main(sys.argv[1:])\nprint(*sys.modules)"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["classify", "--help"], ["book", "--help"]]
)
def test_help_waits_for_no_heavy_library(arguments):
    assert not imported_by(*arguments) & {*HEAVY}


def test_classify_imports_neither_ndimage_nor_a_plotting_library(tmp_path):
    path = tmp_path / "phot.dat"
    path.write_text(PHOT)
    found = imported_by("classify", path, "--m_base", 18.0)
    assert "torch" in found
    assert not found & {"scipy.ndimage", "matplotlib", "seaborn", "VBMicrolensing", "sklearn"}


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, "nan"])
@pytest.mark.parametrize("verb", ["classify", "stream", "evaluate"])
def test_a_prevalence_is_a_fraction(capsys, tmp_path, small, verb, value):
    path = tmp_path / "phot.dat"
    path.write_text(PHOT)
    more = {"classify": [path], "stream": []}
    more["evaluate"] = ["--data", small, "--output_dir", tmp_path / "out"]
    assert_refused(capsys, tmp_path, "--prevalence", verb, *more[verb], f"--prevalence={value}")


def test_an_unknown_survey_or_level_is_refused(capsys, tmp_path):
    path = tmp_path / "phot.dat"
    path.write_text(PHOT)
    assert_refused(capsys, tmp_path, "survey Mars", "classify", path, "--survey", "Mars")
    ledger = ["--ledger", tmp_path / "ledger"]
    assert_refused(capsys, tmp_path, "level 0.5", "stream", *ledger, "--level", 0.5)
