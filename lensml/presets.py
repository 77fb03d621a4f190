"""One function per experiment: what is simulated, observed and trained, in three sizes."""

from dataclasses import dataclass
from pathlib import Path

from lensml.paths import InputError
from lensml.simulate import Simulation, simulate
from lensml.survey import Survey
from lensml.train import TrainingConfig, train

__all__ = ["SIZES", "GeneralNetwork", "check_size", "general", "make_general"]

SIZES = ("smoke", "desk", "full")


def check_size(size: str) -> str:
    """Reject a size that no preset knows."""
    if size not in SIZES:
        raise InputError(f"`size` is {size!r}, but one of {', '.join(SIZES)} was expected")
    return size


@dataclass(frozen=True, kw_only=True)
class GeneralNetwork:
    """Training sets and recipe of the one network for all cadences, gaps and errors."""

    sets: dict[str, Simulation]
    training: TrainingConfig


# The thesis' grid with gaps; the same thinned to coarser cadences with nights and a season's gap;
# and what real surveys add: photon-limited errors that are quoted too small, outliers, and a
# baseline known only from a finite number of epochs.
GENERAL_SURVEYS = (
    (0.60, Survey(sigma=(0.003, 0.2), missing_fraction=(0.05, 0.6))),
    (
        0.20,
        Survey(
            sigma=(0.003, 0.2),
            missing_fraction=(0.05, 0.4),
            keep_every=(1, 12),
            night=(0.3, 1.0),
            season_gap=(0.0, 40.0),
        ),
    ),
    (
        0.20,
        Survey(
            sigma=(0.005, 0.2),
            missing_fraction=(0.05, 0.4),
            keep_every=(1, 12),
            night=(0.3, 1.0),
            photon_noise=True,
            error_scale=(0.9, 1.8),
            outlier_fraction=0.01,
            baseline_error=0.2,
        ),
    ),
)


def general(size: str = "full") -> GeneralNetwork:
    """The network that ships with the package; `training.log` beside its weights has the cost."""
    check_size(size)
    share = {"smoke": 0.002, "desk": 1.0, "full": 20.0}[size]
    counts = {"distinct": 8000, "baseline": 14000, "stellar": 10000, "planetary": 6000}
    sets = {
        name: Simulation(preset=name, num_pairs=int(n * share), seed=31415, shard_size=2000)
        for name, n in counts.items()
    }
    for name, n in {"baseline": 5000, "distinct": 3000}.items():
        sets[f"{name}_blended"] = Simulation(
            preset=name,
            num_pairs=int(n * share),
            seed=27182,
            shard_size=1000,
            blending=(0.1, 1.0),
        )
    training = TrainingConfig(
        epochs={"smoke": 1, "desk": 5, "full": 50}[size],
        batch_size={"smoke": 32, "desk": 128, "full": 1024}[size],
        validation_fraction=0.03,
        surveys=GENERAL_SURVEYS,
    )
    return GeneralNetwork(sets=sets, training=training)


def make_general(size: str, data: Path, run: Path, *, workers: int | None = None) -> Path:
    """Simulate the sets of `general` under `data` and train it into `run`; both resume."""
    recipe = general(size)
    folders = [
        simulate(data / f"train_{name}", simulation, workers=workers)
        for name, simulation in recipe.sets.items()
    ]
    return train(folders, run, recipe.training, name=f"general-{size}", resume=True)
