"""Job 1: an event's bits depend on (seed, set, index) alone, whatever happens around it."""

import json
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest

from lensml.lensing import BinaryLens, binary_magnification, point_lens_magnification
from lensml.paths import InputError
from lensml.simulation import simulator as simulation_module
from lensml.simulation.lightcurves import load
from lensml.simulation.simulator import BLOCK, Simulation, bounded_imap, simulate
from lensml.simulation.survey import Survey

SMALL = Survey(num_epochs=200)
MEMBERS = (
    "X",
    "y",
    "time",
    "sigma",
    "m_base",
    "pair",
    "dchi2",
    "params",
    "magnification",
    "dchi2_at",
)


def make(path, workers=1, **changes):
    simulation = replace(Simulation(num_pairs=36, seed=1, survey=SMALL, shard_size=36), **changes)
    return load(simulate(path, simulation, workers=workers, progress=False))


def assert_same_bits(a, b):
    for name in MEMBERS:
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make(tmp_path_factory.mktemp("reference") / "set.npz")


def test_a_script_without_a_guard_simulates_with_several_workers(tmp_path):
    """Its workers would otherwise run the script again, and again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import lensml as lm\n"
        "print('once')\n"
        "lm.simulate('set.npz', lm.Simulation(num_pairs=130), workers=2, progress=False)\n"
    )
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and run.stdout == "once\n", run.stderr[-2000:]
    assert len(load(tmp_path / "set.npz")) == 260


@pytest.mark.parametrize("shard_size", [1, 7, 16, 20])
def test_shard_size_does_not_change_a_bit(tmp_path, reference, shard_size):
    assert_same_bits(make(tmp_path / "set", shard_size=shard_size), reference)


def test_number_of_workers_does_not_change_a_bit(tmp_path, reference):
    assert_same_bits(make(tmp_path / "set", workers=2, shard_size=12), reference)


@pytest.mark.parametrize("shard_size", [13, 50, 90])
def test_bits_do_not_depend_on_the_blocks_that_are_fitted_together(tmp_path, shard_size):
    """90 events are two blocks; shards cut through them, workers share them."""
    assert BLOCK < 90
    long = dict(num_pairs=90, survey=replace(SMALL, num_epochs=333), preset="distinct")
    whole = make(tmp_path / "whole.npz", **long, shard_size=90)
    assert_same_bits(make(tmp_path / "set", workers=2, **long | {"shard_size": shard_size}), whole)
    alone = make(tmp_path / "alone.npz", **long | {"num_pairs": 65, "shard_size": 65})
    assert_same_bits(alone, whole.rows(slice(0, 130)))


@pytest.mark.parametrize("num_pairs", [1, 5, 17])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path, reference, num_pairs):
    part = make(tmp_path / "set.npz", num_pairs=num_pairs)
    assert_same_bits(part, reference.rows(slice(0, 2 * num_pairs)))


def test_blended_and_photon_limited_sets_keep_their_bits_too(tmp_path):
    options = dict(
        blending=(0.2, 1.0),
        survey=replace(SMALL, photon_noise=True),
        preset="distinct",
        num_pairs=20,
    )
    whole = make(tmp_path / "a.npz", **options)
    assert_same_bits(make(tmp_path / "b", shard_size=9, **options), whole)
    assert whole.sigma.shape == whole.X.shape
    f_s = whole.param("f_s")[1::2]
    assert 0.2 <= f_s.min() and f_s.max() <= 1 and np.ptp(f_s) > 0.3


def test_another_seed_or_set_gives_other_events(tmp_path, reference):
    for k, changes in enumerate(({"seed": 2}, {"preset": "planetary"})):
        other = make(tmp_path / f"{k}.npz", num_pairs=4, **changes)
        assert not np.isin(other.param("t0")[1::2], reference.param("t0")[1::2]).any()


def test_a_survey_does_not_change_the_events(tmp_path, reference):
    other = make(tmp_path / "set.npz", survey=replace(SMALL, sigma=0.01, missing_fraction=0.5))
    assert (other.magnification == reference.magnification).all()
    assert (other.params[1::2] == reference.params[1::2]).all()


def test_stored_parameters_make_the_stored_curves(reference):
    names = ("t0", "u0", "tE", "rho", "s", "q", "alpha")
    for row in (1, 21, 41):
        event = BinaryLens(**{k: reference.param(k)[row] for k in names})
        again = binary_magnification(event, reference.time).astype(np.float32)
        assert (again == reference.magnification[row]).all()
    t0, u0, tE = (reference.param(k)[::2, None] for k in ("t0", "u0", "tE"))
    twins = point_lens_magnification(np.hypot(u0, (reference.time - t0) / tE))
    np.testing.assert_allclose(reference.magnification[::2], twins, rtol=1e-6)


def test_population_singles_come_from_the_priors_and_have_no_twin(tmp_path, reference):
    curves = make(tmp_path / "set.npz", population=True)
    assert (curves.pair == -1).all() and np.isnan(curves.dchi2).all()
    assert np.isfinite(curves.param("rho")).all()
    assert np.isnan(curves.param("q")[::2]).all()
    assert (curves.params[1::2] == reference.params[1::2]).all()  # the same binaries
    rho, u0 = curves.param("rho")[::2], curves.param("u0")[::2]
    single = curves.magnification[::2].max(1)
    assert (single <= np.sqrt(1 + 4 / rho**2) * 1.0001).all()
    assert (single <= point_lens_magnification(np.abs(u0)) * (1 + rho**2 / u0**2)).all()


def test_null_pairs_differ_by_nothing_but_their_noise(tmp_path):
    """A companion without mass leaves a single lens; the rows of a pair are observed apart."""
    curves = make(tmp_path / "set.npz", preset="null", num_pairs=8, seed=3, survey=Survey())
    assert curves.dchi2.max() < 0.01
    assert (curves.param("q")[1::2] == 1e-8).all()
    residual = curves.X - curves.noise_free()
    both = np.isfinite(residual[0]) & np.isfinite(residual[1])
    assert not np.array_equal(np.isfinite(curves.X[0]), np.isfinite(curves.X[1]))
    assert abs(np.corrcoef(residual[0, both], residual[1, both])[0, 1]) < 0.15
    assert abs(np.nanstd(residual) - 0.1) < 0.005


def test_a_finished_set_is_left_alone(tmp_path):
    for name in ("set", "set.npz"):
        make(tmp_path / name, num_pairs=3)
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
        make(tmp_path / name, num_pairs=3)
        assert all(p.stat().st_mtime_ns == t for p, t in before.items())


@pytest.mark.parametrize(
    "changes",
    [{"seed": 9}, {"num_pairs": 4}, {"preset": "stellar"}, {"survey": replace(SMALL, sigma=0.2)},
     {"blending": (0.5, 1.0)}, {"population": True}],
)  # fmt: skip
@pytest.mark.parametrize("name", ["set", "set.npz"])
def test_other_arguments_on_an_existing_set_are_refused(tmp_path, changes, name):
    make(tmp_path / name, num_pairs=3)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="other arguments"):
        make(tmp_path / name, **({"num_pairs": 3} | changes))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_set_begun_by_an_older_recipe_is_not_finished_with_other_bits(tmp_path):
    sim = Simulation(num_pairs=2, seed=3, survey=Survey(num_epochs=50))
    folder = tmp_path / "set"
    folder.mkdir()
    older = {k: v for k, v in sim.describe().items() if k != "recipe"}
    (folder / "simulation.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match="recipe = None"):
        simulate(folder, sim, workers=1, progress=False)


def test_a_file_or_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    (tmp_path / "thesis.npz").write_text("mine")
    for name in ("notes", "thesis.npz"):
        with pytest.raises(InputError, match="not a light-curve set"):
            make(tmp_path / name, num_pairs=3)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "thesis.npz").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"num_pairs": 0}, "num_pairs"), ({"shard_size": 0}, "shard_size"), ({"seed": -1}, "seed"),
     ({"preset": "giant"}, "binary_params"), ({"blending": (0.0, 1.0)}, "blending"),
     ({"blending": (0.8, 0.2)}, "blending")],
)  # fmt: skip
def test_impossible_arguments_are_named(changes, named):
    with pytest.raises(InputError, match=f"`{named}`"):
        Simulation(**changes)


def test_meta_tells_how_the_set_was_made(tmp_path):
    make(tmp_path / "set", num_pairs=6, shard_size=4)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["num_shards"] == 2 and manifest["num_events"] == 6 and manifest["redrawn"] == 0
    assert manifest["preset"] == "baseline" and manifest["survey"]["num_epochs"] == 200


def test_a_curve_the_solver_fails_on_is_redrawn_and_counted(tmp_path, monkeypatch):
    from lensml.simulation import simulator as module

    calls = []

    def failing(event, times):
        calls.append(event)
        if len(calls) == 2:
            raise RuntimeError("no convergence")
        if len(calls) == 4:
            return np.full_like(times, np.nan)
        return binary_magnification(event, times)

    monkeypatch.setattr(module, "binary_magnification", failing)
    curves = make(tmp_path / "set.npz", num_pairs=3)
    assert curves.meta["redrawn"] == 2 and len(calls) == 5
    assert curves.y.tolist() == [0, 1] * 3 and np.isfinite(curves.magnification).all()


def test_workers_do_not_run_ahead_of_a_slow_disk(monkeypatch):
    made = []
    monkeypatch.setattr(simulation_module, "make_block", lambda task: made.append(task) or task)
    with ThreadPool(2) as pool, closing(bounded_imap(pool, range(100), ahead=5)) as blocks:
        assert [next(blocks) for _ in range(3)] == [0, 1, 2]
        time.sleep(0.5)
        assert 3 <= len(made) <= 8
        assert list(blocks) == list(range(3, 100))


def test_a_reader_that_fails_does_not_wait_for_the_rest(monkeypatch):
    monkeypatch.setattr(simulation_module, "make_block", lambda task: task)
    started = time.monotonic()
    with pytest.raises(OSError, match="disk full"), ThreadPool(2) as pool:
        with closing(bounded_imap(pool, range(10_000), ahead=5)) as blocks:
            next(blocks)
            raise OSError("disk full")
    assert time.monotonic() - started < 20  # it would wait for ever
