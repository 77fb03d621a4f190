"""The recipe of the network that ships: what is in it, and that it is the one that was used."""

import json
from dataclasses import asdict, replace

import pytest

from lensml.network import load_network
from lensml.paths import InputError
from lensml.training.recipes import GENERAL_SURVEYS, recipe_sets, shipped_recipe


def test_more_events_keep_the_mixture():
    once, four = shipped_recipe("desk"), shipped_recipe("desk", times=4)
    for name, simulation in once.sets.items():
        assert four.sets[name] == replace(simulation, num_pairs=4 * simulation.num_pairs)
    assert {k: 4 * n for k, n in once.contaminants.items()} == four.contaminants
    assert once.training.validation_fraction == 4 * four.training.validation_fraction


def test_sets_can_be_made_one_by_one_and_are_reused(tmp_path):
    recipe = shipped_recipe("smoke")
    made = recipe_sets(recipe, tmp_path, workers=1, only=["planetary", "binary_source"])
    assert [p.name for p in made] == ["train_planetary_14", "train_impostor_binary_source_2.npz"]
    assert sorted(tmp_path.iterdir()) == sorted(made)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")}
    assert recipe_sets(recipe, tmp_path, workers=1, only=["planetary", "binary_source"]) == made
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.npz")} == before


def test_an_unknown_size_is_refused():
    with pytest.raises(InputError, match="size"):
        shipped_recipe("large")


def test_an_unknown_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="names 'planets', but one of"):
        recipe_sets(shipped_recipe("smoke"), tmp_path, only=["planets"])


def test_the_shipped_weights_were_made_by_this_recipe():
    recipe, config = shipped_recipe("desk", times=4), load_network()[1]
    given = replace(recipe.training, epochs=8, batch_size=1024)
    assert given.describe().items() <= config["training"].items()
    assert config["training"]["surveys"] == json.loads(
        json.dumps([(w, asdict(s)) for w, s in GENERAL_SURVEYS])
    )
    kinds = [f"train_impostor_{kind}_{num}.npz" for kind, num in recipe.contaminants.items()]
    assert config["data"] == [*(f"train_{name}" for name in recipe.sets), *kinds]
    last = {(r["preset"], r["seed"]): r["stop"] for r in config["validated_on"]}
    for simulation in recipe.sets.values():
        assert last[simulation.preset, simulation.seed] == simulation.num_pairs
