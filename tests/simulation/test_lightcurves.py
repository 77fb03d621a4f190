"""The exchange format: what is written is read back, what is not a set is refused in one line."""

import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from sets import toy_set

from lensml.paths import InputError
from lensml.simulation.lightcurves import (
    FRACTIONS,
    PARAM_NAMES,
    LightCurves,
    dchi2_at_fractions,
    iterate,
    load,
    num_rows,
    partner_rows,
    reobserve,
    save,
    until_fraction,
)
from lensml.simulation.simulator import Simulation, simulate
from lensml.simulation.survey import Survey

DTYPES = {"X": np.float32, "y": np.int8, "time": np.float64, "sigma": np.float32,
          "m_base": np.float32, "pair": np.int64, "dchi2": np.float64, "params": np.float64,
          "magnification": np.float32, "dchi2_at": np.float64}  # fmt: skip
SURVEY = Survey(num_epochs=150)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dict:
    """The same 20 events as one file and as a folder of shards."""
    folder = tmp_path_factory.mktemp("sets")
    simulation = Simulation(preset="baseline", num_pairs=20, seed=3, survey=SURVEY, shard_size=8)
    return {
        "file": simulate(folder / "set.npz", simulation, workers=1, progress=False),
        "folder": simulate(folder / "set", simulation, workers=1, progress=False),
    }


def same(a: LightCurves, b: LightCurves) -> bool:
    values = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(LightCurves)]
    return all(
        x.tobytes() == y.tobytes() and x.dtype == y.dtype if isinstance(x, np.ndarray) else x == y
        for x, y in values
        if not isinstance(x, dict)
    )


def test_round_trip_keeps_every_bit(tmp_path):
    curves = toy_set(5)
    again = load(save(tmp_path / "toy.npz", curves))
    assert same(curves, again) and again.meta == curves.meta


def test_file_and_folder_hold_the_same_set(simulated):
    one, many = load(simulated["file"]), load(simulated["folder"])
    assert same(one, many)
    assert len(list(simulated["folder"].glob("part-*.npz"))) == 3
    assert num_rows(simulated["file"]) == num_rows(simulated["folder"]) == (40, 150)
    assert [len(part) for part in iterate(simulated["folder"])] == [16, 16, 8]
    assert one.events()[:2] == many.events()[:2] == ("baseline", 3)
    assert one.events()[2].tolist() == many.events()[2].tolist() == list(range(20))


def test_a_large_set_lies_in_files_of_this_process_alone(simulated, monkeypatch, tmp_path):
    whole = load(simulated["folder"])
    monkeypatch.setattr("lensml.simulation.lightcurves.IN_MEMORY", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mapped = load(simulated["folder"])
    assert isinstance(mapped.X, np.memmap) and same(mapped, whole) and not list(tmp_path.iterdir())
    assert mapped.meta == whole.meta


def test_members_have_the_types_and_shapes_of_the_format(simulated):
    with np.load(simulated["file"], allow_pickle=False) as file:
        assert {k: file[k].dtype.type for k in DTYPES} == DTYPES
        assert tuple(file["param_names"]) == PARAM_NAMES
        meta = json.loads(str(file["meta"]))
        n, T = file["X"].shape
        assert file["params"].shape == (n, 8) and file["dchi2_at"].shape == (n, 7)
        assert file["time"].shape == (T,) and file["sigma"].shape == (n,)
    for key in ("preset", "seed", "survey", "versions", "commit", "redrawn"):
        assert key in meta
    assert set(meta["versions"]) >= {"VBMicrolensing"}


def test_rows_alternate_twin_and_binary_of_one_event(simulated):
    curves = load(simulated["file"])
    assert curves.y.tolist() == [0, 1] * 20
    assert curves.pair.tolist() == np.repeat(np.arange(20), 2).tolist()
    assert np.isnan(curves.param("s")[::2]).all() and np.isfinite(curves.params[1::2]).all()
    for name in ("dchi2", "m_base", "sigma"):
        assert (getattr(curves, name)[::2] == getattr(curves, name)[1::2]).all()


def test_dchi2_is_that_of_the_binarys_observed_epochs(simulated):
    curves = load(simulated["file"])
    clean, seen = curves.noise_free(), np.isfinite(curves.X[1::2])
    terms = ((clean[1::2] - clean[::2]) / curves.sigma[1::2, None]) ** 2 * seen
    np.testing.assert_allclose(curves.dchi2[1::2], terms.sum(1), rtol=1e-3, atol=1e-6)
    for k, fraction in enumerate(FRACTIONS):
        until = terms[:, curves.time <= -100 + fraction * 200].sum(1)
        np.testing.assert_allclose(curves.dchi2_at[1::2, k], until, rtol=1e-3, atol=1e-6)
    assert (curves.dchi2_at[:, -1] == curves.dchi2).all()


def test_dchi2_until_sums_what_was_seen():
    clean = np.zeros((2, 11))
    clean[1] = 0.1
    seen = np.ones((2, 11), bool)
    seen[1, 5] = False
    time = np.linspace(0, 10, 11)
    until = dchi2_at_fractions(clean, seen, np.full((2, 11), 0.1), time)[0]
    expected = [(time <= f * 10).sum() - (f * 10 >= 5) for f in FRACTIONS]
    np.testing.assert_allclose(until, expected)


def test_clean_curves_are_those_around_which_the_noise_scatters(simulated):
    curves = load(simulated["file"])
    pull = (curves.X - curves.noise_free()) / curves.sigmas()
    pull = pull[np.isfinite(pull)]
    assert abs(pull.mean()) < 0.1 and abs(pull.std() - 1) < 0.05


def test_rows_choose_from_every_member():
    curves = toy_set(6)
    chosen = curves.rows(curves.y == 1)
    assert len(chosen) == 6 and chosen.X.shape == (6, 120) and chosen.time.shape == (120,)
    assert (chosen.params == curves.params[curves.y == 1]).all()
    assert chosen.times().shape == chosen.sigmas().shape == chosen.X.shape


def test_reobserving_keeps_the_events_and_draws_new_noise(simulated):
    curves = load(simulated["file"])
    survey = Survey(num_epochs=150, sigma=0.01, missing_fraction=0.5)
    again = reobserve(curves, survey, 7)
    assert (again.magnification == curves.magnification).all()
    assert (again.params[1::2] == curves.params[1::2]).all()
    np.testing.assert_allclose(again.sigma, 0.01, rtol=1e-6)
    assert abs(np.isnan(again.X).mean() - 0.5) < 0.03
    clean, seen = again.noise_free(), np.isfinite(again.X[1::2])
    terms = ((clean[1::2] - clean[::2]) / 0.01) ** 2 * seen
    np.testing.assert_allclose(again.dchi2[1::2], terms.sum(1), rtol=1e-3, atol=1e-6)
    assert same(again, reobserve(curves, survey, 7))
    other = reobserve(curves, survey, 8)
    assert (np.isnan(other.X) != np.isnan(again.X)).any()


def test_reobserved_event_does_not_depend_on_the_rest_of_the_set(simulated):
    curves = load(simulated["file"])
    whole = reobserve(curves, SURVEY, 7)
    part = reobserve(curves.rows(slice(10, 20)), SURVEY, 7)
    assert same(whole.rows(slice(10, 20)), part)


def test_noise_and_photometry_alone_are_enough():
    """A set from elsewhere has neither magnifications nor marks on prefixes."""
    curves = replace(toy_set(4), magnification=None)
    with pytest.raises(InputError, match="no `magnification`"):
        curves.noise_free()
    assert len(curves.rows(slice(0, 2))) == 2


@pytest.mark.parametrize("member", ["X", "y", "sigma", "params"])
def test_a_missing_member_is_named(tmp_path, simulated, member):
    with np.load(simulated["file"]) as file:
        members = {k: file[k] for k in file.files if k != member}
    np.savez(tmp_path / "part.npz", **members)
    with pytest.raises(InputError, match=f"members {member} are missing"):
        load(tmp_path / "part.npz")


@pytest.mark.parametrize(
    ("member", "value"),
    [("time", np.zeros(7)), ("sigma", np.zeros(7, np.float32)), ("y", np.zeros(3, np.int8)),
     ("params", np.zeros((40, 5))), ("X", np.zeros(40, np.float32)), ("X", np.float32(1))],
)  # fmt: skip
def test_members_that_do_not_fit_each_other_are_refused(tmp_path, simulated, member, value):
    with np.load(simulated["file"]) as file:
        members = {k: file[k] for k in file.files} | {member: value}
    np.savez(tmp_path / "odd.npz", **members)
    with pytest.raises(InputError, match=rf"odd\.npz.*{member}"):
        load(tmp_path / "odd.npz")


def test_loading_an_untrusted_set_runs_no_code(tmp_path):
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "evil.npz", X=objects, y=objects, time=objects, sigma=objects,
             m_base=objects, pair=objects, dchi2=objects, params=objects)  # fmt: skip
    with pytest.raises(InputError, match="not a readable"):
        load(tmp_path / "evil.npz")


def test_files_that_are_no_sets_are_refused(tmp_path, simulated):
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    torn = simulated["file"].read_bytes()
    (tmp_path / "torn.npz").write_bytes(torn[: len(torn) // 2])
    (tmp_path / "folder").mkdir()
    for name in ("text.npz", "empty.npz", "torn.npz", "folder", "nowhere.npz"):
        for read in (load, num_rows):
            with pytest.raises(InputError, match=re.escape(name)):
                read(tmp_path / name)


def test_an_unfinished_folder_says_how_to_finish_it(tmp_path, simulated):
    import shutil

    shutil.copytree(simulated["folder"], tmp_path / "set")
    (tmp_path / "set" / "part-00001.npz").unlink()
    with pytest.raises(InputError, match="2 of 3 shards.*same `lensml simulate` command"):
        load(tmp_path / "set")


def test_a_set_is_blended_if_it_says_so_or_does_not_say_that_it_is_not(simulated):
    plain = load(simulated["file"])
    assert not plain.blended
    assert replace(plain, meta=plain.meta | {"blending": [0.1, 1.0]}).blended
    silent = {k: v for k, v in plain.meta.items() if k != "blending"}
    assert not replace(plain, meta=silent).blended
    unknown = plain.params.copy()
    unknown[:, PARAM_NAMES.index("f_s")] = np.nan
    assert replace(plain, meta=silent, params=unknown).blended


def test_two_events_under_one_pair_are_refused():
    curves = toy_set(4)
    with pytest.raises(ValueError, match="two different events"):
        partner_rows(replace(curves, pair=np.where(curves.pair == 2, 1, curves.pair)))


def test_the_last_epoch_belongs_to_the_whole_window():
    times = np.array([0.1, 0.3, 0.7])  # 0.1 + (0.7 - 0.1) rounds to less than 0.7
    assert until_fraction(times, 1.0).all()
    assert until_fraction(times, 0.5).tolist() == [True, True, False]
