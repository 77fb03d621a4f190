"""The graph makes what chapters look for: sets and networks by the same bits, once each."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml

from lensml.cli import main
from lensml.experiments import chapter_names, make_project, start
from lensml.paths import SIZES
from lensml.simulation import load, simulate

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
sys.path.insert(0, str(WORKFLOW))
import plan  # noqa: E402

needs_snakemake = pytest.mark.skipif(not find_spec("snakemake"), reason="Snakemake is missing")


def simulations(size: str) -> list:
    """Every set of the chapters' presets."""
    found = []
    for chapter in chapter_names():
        if experiment := start(chapter, size).experiment:
            found += [*experiment.tests.values(), *(s for s, _ in experiment.fine_tuned.values())]
    return found


@pytest.mark.parametrize("size", SIZES)
def test_flags_of_the_command_line_make_the_chapters_sets(size, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "lensml.simulation.simulate_shards", lambda path, made, *_, **__: asked.append(made)
    )
    wanted = simulations(size)
    for simulation in wanted:
        flags = ["--output", "set", *plan.simulate_flags(simulation), "--shards", "0:1"]
        assert main(["simulate", *flags]) == 0
    assert asked == wanted and len(wanted) >= 20


@pytest.mark.parametrize("size", SIZES)
def test_the_plan_names_every_set_and_network_of_the_chapters(size):
    made = plan.make_plan(size)
    assert list(made["chapters"]) == chapter_names()
    assert set(made["sets"]) == {plan.shown(plan.set_path(s)) for s in simulations(size)}
    used = {path for chapter in made["chapters"].values() for path in chapter["sets"]}
    used |= {run["set"] for run in made["runs"].values()}
    assert used == set(made["sets"]), "a set that no one reads"
    for run in made["runs"].values():
        assert run["test"] in made["chapters"][run["chapter"]]["sets"] and run["test"] != run["set"]
    assert len(made["runs"]) == 4


def test_a_survey_without_flags_is_refused():
    simulation = simulations("smoke")[0]
    survey = plan.Survey(night=0.3)
    with pytest.raises(plan.InputError, match="no flag of `simulate`"):
        plan.simulate_flags(plan.Simulation(preset=simulation.preset, survey=survey))


def test_resources_are_given_for_every_rule_and_size():
    asked = yaml.safe_load((WORKFLOW / "resources.yaml").read_text())
    text = (WORKFLOW / "Snakefile").read_text()
    rules = set(re.findall(r"^rule (\w+):", text, re.M)) - {"all", "finish"}
    for size in SIZES:
        assert set(asked[size]) == rules
        for row in asked[size].values():
            assert {"threads", "mem_mb", "runtime"} <= set(row) <= {*row, "gpu"}
    assert set(asked["chapters"]) <= set(chapter_names())


def test_the_cost_adds_up_over_parts_with_records():
    rows = plan.cost(plan.make_plan("full"))
    assert all(hours >= 0 for *_, hours in rows) and len(rows) > 12
    by_name = {part.split(",")[0]: hours for part, *_, hours in rows}
    record = start("02_baseline", "full").record["provenance"]
    assert by_name["02_baseline"] > 5 * record["wall_time_s"] / 3600  # 7 times the pairs


def snakemake(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Snakemake in a project, with this process' Python."""
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", *arguments]
    command += ["--config", f"python={sys.executable}"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("thesis") / "project")


@needs_snakemake
@pytest.mark.parametrize("size", ["smoke", "full"])
def test_the_graph_has_all_jobs_and_runs_none_twice(project, size):
    command = [sys.executable, "-m", "snakemake", "-s", "workflow/Snakefile", "-n", "--quiet"]
    command += ["rules", "--config", f"size={size}", "gpu=1", f"python={sys.executable}"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M))
    made = plan.make_plan(size)
    expected = {"preflight": 1, "book": 1, "all": 1, "chapter": len(made["chapters"])}
    expected |= {"train": 4, "evaluate": 4, "finish": len(made["sets"])}
    expected["shard"] = sum(row["shards"] for row in made["sets"].values())
    assert {name: int(jobs[name]) for name in expected} == expected
    assert expected["shard"] > 200 or size == "smoke"


@needs_snakemake
def test_a_set_made_by_the_graph_has_the_bits_of_one_process(project, tmp_path):
    path, simulation = "data/sets/null_matched_40_seed0", start("01_simulated_events", "smoke")
    done = snakemake(project, f"{path}/manifest.json", "--cores", "1")
    assert done.returncode == 0, done.stderr
    alone = simulate(tmp_path / "set", simulation.experiment.tests["null"], progress=False)
    made, wanted = load(project / path), load(alone)
    for name, values in wanted.per_row().items():
        np.testing.assert_array_equal(getattr(made, name), values, err_msg=name)
    assert json.loads((project / path / "manifest.json").read_text())["num_shards"] == 1
    again = snakemake(project, f"{path}/manifest.json", "--cores", "1")
    assert "Nothing to be done" in again.stdout + again.stderr
