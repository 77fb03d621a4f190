"""Every benchmark can be imported, has a record, and builds its networks."""

from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.studies.ablation import VARIANTS
from lensml.experiments import BENCHMARKS, PERFORMANCE, load_benchmark
from lensml.network import NetworkConfig

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(
    ".".join(p.relative_to(ROOT).with_suffix("").parts)
    for p in (ROOT / "benchmarks").rglob("*.py")
    if p.name != "__init__.py"
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_can_be_imported(name):
    module = import_module(name)
    assert module.__doc__ and not module.__doc__.startswith(" ")


@pytest.mark.parametrize("name", PERFORMANCE)
def test_every_performance_benchmark_has_a_committed_record(name):
    assert f"benchmarks.performance.{name}" in PROGRAMS
    assert load_benchmark(name, BENCHMARKS)["numbers"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_of_the_ablation_can_be_built(name):
    variant = VARIANTS[name]
    network = variant.build(NetworkConfig(**variant.changes))
    assert network.num_parameters > 10_000
