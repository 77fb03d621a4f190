"""Recipe of the shipped network: training sets, surveys and settings."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lensml.paths import InputError, check_size
from lensml.simulation import Simulation, Survey, contaminant_training_set, save, simulate
from lensml.training.run import TrainingConfig, train


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Training sets and settings of a network."""

    sets: dict[str, Simulation]
    contaminants: dict[str, int]  # kind -> number of events; class 0
    training: TrainingConfig


# The thesis' grid with gaps; the same at coarser cadences with nights and a seasonal gap; and what
# real surveys add: photon noise with errors quoted too small, outliers, and a baseline known only
# from a finite number of epochs.
COARSE = dict(missing_fraction=(0.05, 0.4), keep_every=(1, 24), night=(0.3, 1.0))
REAL = dict(photon_noise=True, error_scale=(0.9, 1.8), outlier_fraction=0.01, baseline_error=0.2)
GENERAL_SURVEYS = (
    (0.60, Survey(sigma=(0.003, 0.2), missing_fraction=(0.05, 0.6))),
    (0.20, Survey(sigma=(0.003, 0.2), season_gap=(0.0, 40.0), **COARSE)),
    (0.20, Survey(sigma=(0.005, 0.2), **COARSE, **REAL)),
)


def shipped_recipe(size: str = "full", seed: int = 0, *, times: float = 1.0) -> TrainingRecipe:
    """Recipe of the network that ships with the package; `weights/training.log` has its cost.

    At `full` it starts from random weights, with a curriculum. At the smaller sizes it fine-tunes
    `weights/first_stage`, which was trained on as many events before (its log is beside it).
    `times` multiplies the number of events.
    """
    check_size(size)
    fraction = times * {"smoke": 0.002, "desk": 1.0, "full": 20.0}[size]
    counts = {"distinct": 5000, "baseline": 16000, "stellar": 10000, "planetary": 7000}
    sets = {
        name: Simulation(preset=name, num_pairs=int(n * fraction), seed=31416, shard_size=2000)
        for name, n in counts.items()
    }
    options = {"seed": 27183, "shard_size": 1000, "blending": (0.1, 1.0)}
    for name, n in {"baseline": 6000, "stellar": 3000, "distinct": 2000}.items():
        sets[f"{name}_blended"] = Simulation(preset=name, num_pairs=int(n * fraction), **options)
    kinds = {
        "finite_source": 500,
        "parallax": 500,
        "binary_source": 100,  # more of them hide wide binaries, whose curves have two bumps too
        "variable_baseline": 700,
    }
    training = TrainingConfig(
        epochs={"smoke": 1, "desk": 1, "full": 50}[size],
        batch_size={"smoke": 32, "desk": 128, "full": 1024}[size],
        validation_fraction=0.02 / max(1.0, times),
        surveys=GENERAL_SURVEYS,
        curriculum=0.4 if size == "full" else 0.0,
        start_from=None if size == "full" else "first_stage",
        seed=seed,
    )
    contaminants = {name: max(2, int(n * fraction)) for name, n in kinds.items()}
    return TrainingRecipe(sets=sets, contaminants=contaminants, training=training)


def recipe_sets(
    recipe: TrainingRecipe,
    data: Path,
    *,
    workers: int | None = None,
    only: Collection[str] | None = None,
) -> list[Path]:
    """Make the training sets under `data`, or find them there; resumes.

    `only` names some: several processes may make different ones at once.
    """
    known = [*recipe.sets, *recipe.contaminants]
    chosen = known if only is None else only
    for name in chosen:
        if name not in known:
            raise InputError(f"`only` names {name!r}, but one of {known} was expected")
    folders = [
        simulate(data / f"train_{name}_{simulation.num_pairs}", simulation, workers=workers)
        for name, simulation in recipe.sets.items()
        if name in chosen
    ]
    for kind, num in recipe.contaminants.items():
        path = data / f"train_impostor_{kind}_{num}.npz"
        if kind in chosen:
            folders.append(path)
            if not path.exists():
                save(path, contaminant_training_set(kind, num, 31416))
    return folders


def run_recipe(
    recipe: TrainingRecipe, data: Path, run: Path, *, workers: int | None = None
) -> Path:
    """Make the sets of a recipe under `data` and train it into `run`; both resume."""
    folders = recipe_sets(recipe, data, workers=workers)
    return train(folders, run, recipe.training, name="general", resume=True)
