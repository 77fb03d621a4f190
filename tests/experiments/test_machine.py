"""What the machine has and lacks is reported before a long run begins."""

import time

from lensml.cli import main
from lensml.experiments import machine


def test_a_result_names_code_seeds_machine_and_time():
    origin = machine.provenance(size="desk", seed=[0, 1], started=time.time() - 5)
    assert origin["seeds"] == [0, 1] and origin["wall_time_s"] >= 5 and origin["size"] == "desk"
    assert {"commit", "modified", "device", "date", "python"} <= set(origin)
    assert {"lensml", "torch", "numpy", "VBMicrolensing"} <= set(origin["versions"])


def test_facts_name_the_hardware_and_every_needed_package():
    report = machine.preflight()
    for name in ("python", "device", "cores", "memory [GB]", "free disk [GB]", "torch backend"):
        assert report["facts"][name]
    assert {"torch", "VBMicrolensing"} <= report["facts"].keys()


def test_a_missing_package_ends_with_exit_code_1_and_the_way_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(machine, "NEEDED", ("torch", "no-such-package"))
    assert main(["preflight"]) == 1
    assert "no-such-package: pip install no-such-package" in capsys.readouterr().err


def test_with_everything_there_it_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(machine, "NEEDED", ("torch",))
    monkeypatch.setattr(machine, "OF_NOTEBOOKS", ("no-such-package",))
    assert main(["preflight"]) == 0
    out = capsys.readouterr()
    assert "device" in out.out and not out.err
    assert "no-such-package  none; of lensml[notebooks]" in out.out


def test_little_disk_and_few_cores_are_reported_as_slow(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(machine, "FULL_SET_GB", 1e9)
    slow = " ".join(machine.preflight()["slow"])
    assert "2 cores" in slow and "GB of disk" in slow


def test_events_seen_twice_count_once_and_seeds_stay_apart():
    ranges = [
        {"preset": "baseline", "seed": 1, "first": 0, "stop": 10},
        {"preset": "baseline", "seed": 1, "first": 5, "stop": 15},
        {"preset": "baseline", "seed": 2, "first": 0, "stop": 3},
        {"preset": "contaminant_binary_source", "seed": 1, "first": 0, "stop": 4},
    ]
    assert machine.events_by_set(ranges) == {"baseline": {1: 15, 2: 3}, "binary source": {1: 4}}


def test_without_a_gpu_full_is_for_a_gpu_node(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "`full` wants a GPU node" in " ".join(machine.preflight()["slow"])


def test_a_job_that_needs_a_gpu_fails_without_one(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert main(["preflight", "--gpu"]) == 1
    assert "missing: a GPU: torch" in capsys.readouterr().err


def test_memory_is_that_of_the_job(monkeypatch):
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    whole = machine.memory_limit()
    assert whole > 1e8
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "50")
    assert machine.memory_limit() == 50 * 2**20
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node's
    assert machine.memory_limit() == whole
