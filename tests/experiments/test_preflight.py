"""What the machine has and lacks is said before a long run begins."""

from lensml.__main__ import main
from lensml.experiments import preflight


def test_facts_name_the_hardware_and_every_needed_package():
    report = preflight.preflight()
    for name in ("python", "device", "cores", "memory [GB]", "free disk [GB]", "torch backend"):
        assert report["facts"][name]
    assert {"torch", "VBMicrolensing"} <= report["facts"].keys()


def test_a_missing_package_ends_with_exit_code_1_and_the_way_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(preflight, "NEEDED", ("torch", "no-such-package"))
    assert main(["preflight"]) == 1
    assert "no-such-package: pip install no-such-package" in capsys.readouterr().err


def test_with_everything_there_it_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(preflight, "NEEDED", ("torch",))
    monkeypatch.setattr(preflight, "NEEDED_FOR_THE_BOOK", ())
    assert main(["preflight"]) == 0
    out = capsys.readouterr()
    assert "device" in out.out and not out.err


def test_little_disk_and_few_cores_are_said_to_be_slow(monkeypatch):
    monkeypatch.setattr(preflight.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(preflight, "FULL_SET_GB", 1e9)
    slow = " ".join(preflight.preflight()["slow"])
    assert "2 cores" in slow and "GB of disk" in slow
