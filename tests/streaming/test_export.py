"""What leaves torch answers as the network does."""

import numpy as np
import pytest
import torch

from lensml.network import Network, NetworkConfig, save_network
from lensml.paths import InputError
from lensml.streaming.classifier import StreamingClassifier
from lensml.streaming.export import (
    SMALL,
    ExportedStep,
    example_inputs,
    export_step,
    exported_program,
    exported_step,
    main,
)
from lensml.streaming.step import Step


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    network = Network(NetworkConfig(channels=16, stem_channels=8, num_levels=2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
        network.project.weight.mul_(0.02)  # opinions of random weights would drown all else
    return network.eval()


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("rows", [2, 50])
def test_an_exported_graph_equals_the_step(network, depth, rows):
    inputs = example_inputs(network, depth, rows)
    with torch.no_grad():
        graph = exported_program(network, depth).module()
        got, expected = graph(*inputs[:3], inputs[3:]), Step(network)(*inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    run = tmp_path_factory.mktemp("run")
    save_network(run, network, {})
    export_step(network, run / "step")
    return run / "step"


@pytest.mark.parametrize("num", [1, 3, SMALL, SMALL + 8])
def test_a_stream_on_onnxruntime_gives_the_answers_of_torch(network, folder, num):
    generator = np.random.default_rng(num)
    streams = (
        StreamingClassifier(network),
        StreamingClassifier(network, step=ExportedStep(network, folder)),
    )
    names = [f"e{i}" for i in range(num)]
    for stream in streams:  # events of different ages, so that all depths meet in one call
        for i in range(num):
            for k in range(i % 9):
                stream.update(names[i], float(k), 17.9 + 0.01 * i, 0.02, 18.0)
    answers = []
    for k in range(40):
        mags = generator.normal(17.9, 0.1, num)
        p = [s.update_many(names, np.full(num, 10.0 + k), mags, np.full(num, 0.02))[0]
             for s in streams]  # fmt: skip
        np.testing.assert_allclose(p[0], p[1], rtol=0, atol=1e-5)
        answers.append(p[0])
    assert np.ptp(answers) > 0.01


def test_an_export_of_other_weights_is_refused(network, folder):
    assert exported_step(network, folder.parent) is not None
    with pytest.raises(InputError, match="other weights"):
        exported_step(Network(network.config), folder.parent)


def test_without_an_export_or_onnxruntime_the_stream_runs_on_torch(network, tmp_path, monkeypatch):
    assert exported_step(network, tmp_path) is None
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "step.json").write_text("{}")
    monkeypatch.setattr("lensml.streaming.export.find_spec", lambda name: None)
    assert exported_step(network, tmp_path) is None
    with pytest.raises(InputError, match=r"pip install 'lensml\[onnx\]'"):
        export_step(network, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_exporting_what_is_no_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
