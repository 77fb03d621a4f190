"""Evaluation end to end on small sets, with a network of random weights."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sets import toy_set

from lensml.evaluation import ideal_log_ratio, roc_auc
from lensml.experiments import (
    assess,
    classical,
    evaluate,
    final_probability,
    format_number,
    headline,
    predictions,
    report_text,
)
from lensml.experiments.evaluation_run import code_digest, predict_in_parts
from lensml.network import (
    Network,
    NetworkConfig,
    predict,
    predict_at_fractions,
    save_network,
)
from lensml.paths import InputError
from lensml.simulation import FRACTIONS, save

KEYS = ("0.1", "0.25", "0.33", "0.5", "0.67", "0.83", "1.0")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Network(NetworkConfig(channels=16))
    torch.nn.init.normal_(network.head[-1].weight, std=0.5)
    return network.eval()


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    seen = {
        "trained_on": [{"preset": "toy", "seed": 1, "first": 0, "stop": 10}],
        "validated_on": [{"preset": "toy", "seed": 1, "first": 10, "stop": 12}],
    }
    save_network(folder, network, seen)
    return folder


@pytest.fixture(scope="module")
def curves():
    return toy_set(30, seed=2)


@pytest.fixture(scope="module")
def evaluated(run, curves, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    save(folder / "set.npz", curves)
    result = evaluate(
        folder / "set.npz", folder / "eval", run, early_detection=True, num_bootstrap=50
    )
    return folder / "eval", result


def test_calls_are_those_of_the_network_in_the_order_of_the_set(evaluated, network, curves):
    with np.load(evaluated[0] / "predictions.npz", allow_pickle=False) as file:
        got = {name: file[name] for name in file.files}
    expected = predict(network, curves).p
    np.testing.assert_allclose(got["p"], expected, atol=1e-6)
    assert got["p"].dtype == np.float32
    for name in ("y", "pair", "dchi2"):
        np.testing.assert_array_equal(got[name], getattr(curves, name))


def test_file_holds_what_was_returned_and_no_nan(evaluated):
    folder, result = evaluated
    assert json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail) == result
    assert len(list(folder.glob("*.svg"))) >= 6
    assert not list(folder.glob(".*")), "nothing half-written is left"


def test_headline_numbers_are_those_of_the_last_call(evaluated, curves):
    folder, result = evaluated
    p = np.load(folder / "predictions.npz")["p"]
    assert result["roc_auc"] == pytest.approx(roc_auc(curves.y, p[:, -1]))
    assert result["accuracy"] == pytest.approx(np.mean((p[:, -1] > 0.5) == curves.y))
    assert np.sum(result["confusion_matrix"]) == 60
    assert tuple(result["early_detection"]) == KEYS
    for k, row in enumerate(result["early_detection"].values()):
        assert row["roc_auc"]["value"] == pytest.approx(roc_auc(curves.y, p[:, k]))
        assert row["roc_auc"]["low"] <= row["roc_auc"]["high"]


def test_ideal_observer_stands_beside_every_number(evaluated, curves):
    result, ratio = evaluated[1], ideal_log_ratio(curves, FRACTIONS)
    observer = result["ideal_observer"]
    assert observer["kind"] == "realised" and observer["exact"]
    for key in ("accuracy", "roc_auc", "average_precision", "confusion_matrix", "ece"):
        assert observer[key] is not None and result[key] is not None
    assert observer["roc_auc"] == pytest.approx(roc_auc(curves.y, ratio[:, -1]))
    for k, row in enumerate(result["early_detection"].values()):
        assert row["ideal"]["roc_auc"] == pytest.approx(roc_auc(curves.y, ratio[:, k]))
        assert row["refit_limited"]["pairs"] == 30
    assert result["bound_excess"]["roc_auc"]["z"] < 3
    assert len(result["recall_by_dchi2"]["recall_at_1pct"]) == 8


def test_alerts_are_counted_when_asked_for(evaluated):
    alerts = evaluated[1]["alerts"]
    assert alerts["false_alarms"]["of"] == alerts["detected"]["of"] == 30  # both halves in turn
    assert alerts["detected_with_onset"]["of"] > 0


def test_provenance_names_the_weights_but_no_folder(evaluated):
    folder, result = evaluated
    assert len(result["provenance"]["weights_sha256"]) == 64
    assert result["provenance"]["data"] == "set.npz"
    assert str(folder.parent) not in json.dumps(result)


def test_set_from_elsewhere_needs_no_pairs_and_no_truth(run, curves, tmp_path):
    bare = replace(
        curves,
        magnification=None,
        pair=np.full(60, -1),
        dchi2=np.full(60, np.nan),
        params=np.full((60, 8), np.nan),
        meta={},
    )
    save(tmp_path / "set.npz", bare)
    result = evaluate(tmp_path / "set.npz", tmp_path, run, early_detection=True, num_bootstrap=20)
    assert result["ideal_observer"]["roc_auc"] is None and result["bound_excess"] is None
    assert result["recall_by_dchi2"] is None and result["roc_auc"] is not None
    assert len(list(tmp_path.glob("*.svg"))) >= 4


def test_refusal_names_the_way_out_and_writes_nothing(run, tmp_path):
    save(tmp_path / "renamed.npz", toy_set(5, seed=1, sigma=0.01))
    with pytest.raises(InputError, match=r"trained on; .*lensml simulate .*--seed 2 .*--n_pspl 5"):
        evaluate(tmp_path / "renamed.npz", tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


def test_fresh_events_are_asked_for_at_the_cadence_error_and_blending_of_the_set(run, tmp_path):
    survey = {"missing_fraction": 0.05, "sigma": 0.02, "night": 0.4}
    curves = toy_set(5, seed=1)
    meta = curves.meta | {"survey": survey, "blending": [0.1, 1.0], "population": True}
    save(tmp_path / "seen.npz", replace(curves, meta=meta))
    with pytest.raises(InputError) as caught:
        evaluate(tmp_path / "seen.npz", tmp_path / "out", run)
    line = str(caught.value)
    flags = "--n_binary 5 --cadence 0.05 --error 0.02 --blending 0.1 1.0 --population --output"
    assert flags in line and "no flag sets night" in line and "\n" not in line


def test_the_printed_report_has_both_classes_and_the_ideal_beside_the_network(evaluated):
    lines = report_text(evaluated[1]).splitlines()
    by_class = {line.split()[0]: line.split() for line in lines[:3]}
    for name, row in evaluated[1]["classification_report"].items():
        scores = (row[k] for k in ("precision", "recall", "f1"))
        shown = ["-" if score is None else f"{score:.3f}" for score in scores]
        assert by_class[name][1:] == [*shown, str(row["support"])]
    (auc,) = (line for line in lines if line.startswith("ROC AUC"))
    assert format_number(evaluated[1]["intervals"]["roc_auc"]) in auc
    assert format_number(evaluated[1]["ideal_observer"]["intervals"]["roc_auc"]) in auc


def test_one_class_cannot_be_scored(run, curves, tmp_path):
    save(tmp_path / "set.npz", curves.rows(curves.y == 1))
    with pytest.raises(InputError, match="0 single lenses .* and 30 binaries"):
        evaluate(tmp_path / "set.npz", tmp_path / "out", run)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    scores = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lensml.paths.DATA", scores)
        return assess(toy_set(num_pairs=30), num_bootstrap=20, seed=1)


def test_an_assessment_scores_each_row_at_the_end_of_its_window(scored):
    assert scored.p.shape == scored.curves.y.shape == scored.ideal.shape
    assert scored.report["roc_auc"] == pytest.approx(roc_auc(scored.curves.y, scored.p))


def test_the_headline_holds_intervals_and_the_ideal_beside_them(scored):
    numbers = headline(scored.report)
    for name in ("balanced_accuracy", "roc_auc"):
        assert numbers[name]["low"] <= numbers[name]["value"] <= numbers[name]["high"]
        assert numbers["ideal"][name]["value"] >= numbers[name]["value"]


def test_predictions_are_kept_until_a_curve_or_a_wish_changes(monkeypatch, tmp_path):
    calls = []

    def counted(network, curves, **options):
        calls.append(options)
        return predict(network, curves, **options)

    monkeypatch.setattr("lensml.paths.DATA", tmp_path)
    monkeypatch.setattr("lensml.network.predict", counted)
    curves = toy_set(num_pairs=4)
    first = predictions(curves, season_rows=3)
    again = predictions(curves, season_rows=2)
    assert len(calls) == 1 and again.season.shape == (2, curves.X.shape[1])
    assert np.array_equal(first.p, again.p) and np.array_equal(first.p, again.p)
    predictions(curves, season_rows=5)  # more than was kept
    changed = replace(curves, X=curves.X + np.float32(1e-3))
    assert not np.array_equal(predictions(changed).p, first.p)
    assert len(calls) == 3


def test_a_killed_evaluation_of_a_large_set_goes_on_from_its_parts(
    run, curves, evaluated, monkeypatch, tmp_path
):
    done = []

    def killed_at_the_third(network, rows, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(rows))
        return predict(network, rows, **options)

    save(tmp_path / "set.npz", curves)
    options = {"early_detection": True, "num_bootstrap": 50}
    monkeypatch.setattr("lensml.experiments.evaluation_run.PART", 25)
    monkeypatch.setattr("lensml.network.predict", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "set.npz", tmp_path / "eval", run, **options)
    parts = sorted((tmp_path / "eval" / ".parts").iterdir())
    assert done == [25, 25] and len(parts) == 2
    monkeypatch.setattr("lensml.network.predict", predict)
    result = evaluate(tmp_path / "set.npz", tmp_path / "eval", run, **options)
    assert result == evaluated[1] and not (tmp_path / "eval" / ".parts").exists()


def test_parts_of_a_set_are_its_predictions(network, curves, monkeypatch, tmp_path):
    monkeypatch.setattr("lensml.experiments.evaluation_run.PART", 25)
    whole = predict(network, curves, season_rows=30)
    for _ in range(2):  # made, then read
        parts = predict_in_parts(network, curves, tmp_path, "cpu", 30)
        for name, values in asdict(whole).items():
            np.testing.assert_array_equal(getattr(parts, name), values, err_msg=name)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_end_alone_is_that_of_all_epochs_and_kept(monkeypatch, tmp_path):
    calls = []

    def counted(network, curves, **options):
        calls.append(len(curves))
        return predict_at_fractions(network, curves, **options)

    monkeypatch.setattr("lensml.paths.DATA", tmp_path)
    monkeypatch.setattr("lensml.network.predict_at_fractions", counted)
    curves = toy_set(num_pairs=4)
    end = final_probability(curves)
    assert np.array_equal(final_probability(curves), end) and calls == [8]
    whole = predictions(curves).p[:, -1]
    np.testing.assert_allclose(end, whole, atol=1e-5)
    assert np.array_equal(final_probability(curves), whole)  # of what is kept, the whole


def test_classical_scores_are_kept_until_the_events_or_their_training_change(monkeypatch, tmp_path):
    calls = []

    def counted(searched, learned):
        calls.append(len(learned.curves))
        return {"single-lens refit": searched.refits.score[:, -1]}

    monkeypatch.setattr("lensml.paths.DATA", tmp_path)
    monkeypatch.setattr("lensml.evaluation.classical_scores", counted)
    curves, training, others = toy_set(3, seed=2), toy_set(2, seed=4), toy_set(2, seed=5)
    first = classical(curves, training)
    assert np.array_equal(classical(curves, training)["single-lens refit"], *first.values())
    assert calls == [4]
    classical(curves, others)
    assert len(classical(training, curves)["single-lens refit"]) == 4
    assert calls == [4, 4, 6]


def test_the_digest_of_the_code_ignores_docstrings_and_sees_every_other_change(
    monkeypatch, tmp_path
):
    for room in ("network", "lensing"):
        (tmp_path / room).mkdir()
    source = tmp_path / "network" / "model.py"
    monkeypatch.setattr("lensml.experiments.evaluation_run.PACKAGE", tmp_path)
    digests = []
    for text in ("def f(x):\n    return x\n", 'def f(x):\n    """Words."""\n    return x  # so\n',
                 "def f(x):\n    return x + 0\n"):  # fmt: skip
        source.write_text(text)
        digests.append(code_digest())
    assert digests[0] == digests[1] != digests[2]
