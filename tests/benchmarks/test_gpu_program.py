"""The program for a quarter of an hour of a GPU: every line runs on a CPU."""

import json
import sys

import pytest

from benchmarks import gpu_program
from lensml.network import load_network

pytest.importorskip("triton")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_program", *map(str, arguments)])
    gpu_program.main()


def test_every_part_runs_on_a_cpu_and_a_second_call_goes_on(tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path, "--dry", "--workers", 1)
    kept = json.loads((tmp_path / "program.json").read_text())
    assert kept["dry"] and list(kept["parts"]) == [name for name, *_ in gpu_program.PARTS]
    for name, row in kept["parts"].items():
        assert not {"failed", "skipped"} & row.keys() and len(row) > 1, name
    assert kept["parts"]["inference"]["largest_difference_of_p_lensed"] < 1e-4
    assert kept["parts"]["epochs"]["made_by_kernels"]
    assert load_network(tmp_path / "run")[1]["state"] == kept["parts"]["training"]["state"]
    before = kept["parts"]["training"]["state"]
    run(monkeypatch, tmp_path, "--dry", "--workers", 1, "--only", "training")
    kept = json.loads((tmp_path / "program.json").read_text())
    after = kept["parts"]["training"]["state"]
    assert all(after[name] > before[name] > 0 for name in ("step", "seconds", "samples"))


def test_a_part_that_fails_costs_itself_alone(tmp_path, monkeypatch):
    def broken(program):
        raise ValueError("no such kernel")

    parts = (("one", broken, 1), ("two", lambda program: {"value": 1}, 1))
    monkeypatch.setattr(gpu_program, "PARTS", parts)
    with pytest.raises(SystemExit, match="failed: one"):
        run(monkeypatch, tmp_path, "--dry")
    kept = json.loads((tmp_path / "program.json").read_text())["parts"]
    assert kept["one"]["failed"] == "ValueError: no such kernel" and kept["two"]["value"] == 1


def test_without_a_gpu_it_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path)
    assert "no GPU here; --dry runs every line on a CPU" in capsys.readouterr().err
