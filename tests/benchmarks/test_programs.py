"""Every benchmark can be imported, has a record, and builds its networks."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.studies.ablation import VARIANTS, seen_by
from lensml.experiments import BENCHMARKS, PERFORMANCE, load_benchmark
from lensml.network import Network, NetworkConfig
from lensml.training import Samples, make_samples

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
def test_every_variant_of_the_ablation_sees_zeros_where_it_should(name):
    samples = make_samples(3, 0, per_curve=1, times=1)
    rows = Samples(*(torch.from_numpy(x[:20]) for x in samples))
    variant = VARIANTS[name]
    found = seen_by(variant, rows)
    for field in ("windows", "maps", "summaries", "states"):
        assert getattr(rows, field).any()  # what was given stays as it was
        assert getattr(found, field).any() == (field not in variant.without)
    if variant.without_free:
        assert not found.maps[:, 5:10].any() and found.maps[:, :5].any()
    shape = NetworkConfig(**variant.shape)
    assert Network(shape)(*(x.float() for x in found[:4]), found.held).shape == (20, 5)
