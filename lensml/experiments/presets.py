"""One function per chapter: what is simulated, observed and trained, in three sizes.

Nothing is made here: a preset combines settings, `results.Chapter` simulates and trains.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lensml.paths import check_size
from lensml.simulation import Simulation, Survey
from lensml.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class AlertSizes:
    """How many events the parts of chapters 7 and 11 use."""

    num_refits: int  # pairs whose prefixes are refitted
    num_singles: int  # that measure an alert threshold
    num_contaminants: int  # of each kind, and single lenses under each noise


@dataclass(frozen=True)
class Experiment:
    """One chapter: test sets, surveys through which they are observed, fine-tuned networks."""

    size: str
    seed: int
    tests: Mapping[str, Simulation]
    surveys: Mapping[str, Survey] = field(default_factory=dict)  # of the same events
    fine_tuned: Mapping[str, tuple[Simulation, TrainingConfig]] = field(default_factory=dict)
    alerts: AlertSizes | None = None

    @property
    def num_bootstrap(self) -> int:
        """Resamples of pairs behind each interval."""
        return 50 if self.size == "smoke" else 400

    def _repr_html_(self) -> str:
        rows = {"size": self.size, "seed": self.seed}
        rows |= {f"test set {k}": _one_line(v) for k, v in self.tests.items()}
        rows |= {f"survey {k}": _survey_line(v) for k, v in self.surveys.items()}
        for name, (simulation, config) in self.fine_tuned.items():
            start = "from the shipped weights" if config.start_from else "from scratch"
            line = f"{_one_line(simulation)}; {config.epochs} epochs of it, {start}"
            rows[f"network for {name}"] = line
        rows["bootstrap"] = f"{self.num_bootstrap} resamplings of pairs"
        body = "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items())
        return f"<table>{body}</table>"


def _survey_line(survey: Survey) -> str:
    default = Survey().describe()
    changed = {k: v for k, v in survey.describe().items() if v != default[k]}
    shown = {"sigma": survey.sigma, "missing_fraction": survey.missing_fraction} | changed
    digits = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in shown.items()}
    return ", ".join(f"{k} = {v}" for k, v in digits.items())


def _one_line(simulation: Simulation) -> str:
    kind = "binaries and unrelated singles" if simulation.population else "matched pairs"
    return (
        f"{simulation.num_pairs} {kind} of {simulation.preset}, seed {simulation.seed}, "
        f"{_survey_line(simulation.survey)}"
    )


PAIRS = {"smoke": 48, "desk": 6000, "full": 50_000}  # in a test set
TRAINING_PAIRS = {"smoke": 48, "desk": 4000, "full": 500_000}  # for a fine-tuned network
# Plus the chapter's seed. Chapters share test events, so that a quantity has one value in the book;
# no training set meets them.
TEST_SEED, TRAINING_SEED = 7900, 9000


def _tests(preset: str, size: str, seed: int, **changes) -> Simulation:
    shared = {"num_pairs": PAIRS[check_size(size)], "seed": TEST_SEED + seed}
    return Simulation(preset=preset, **(shared | changes))


def _errors(*sigmas: float) -> dict[str, Survey]:
    return {f"{sigma:g} mag": Survey(sigma=sigma) for sigma in sigmas}


def _fine_tuned(preset: str, size: str, seed: int) -> tuple[Simulation, TrainingConfig]:
    """Training events of one set, and how: below `full` from the shipped weights, slowly."""
    pairs = TRAINING_PAIRS[check_size(size)]
    simulation = Simulation(preset=preset, num_pairs=pairs, seed=TRAINING_SEED + seed)
    config = TrainingConfig(epochs=50, batch_size=1024, hide_blending_fraction=0.0, seed=seed)
    if size == "full":
        return simulation, config
    slow = {"desk": (2, 128, 3e-4), "smoke": (1, 32, 1e-5)}[size]
    changes = dict(zip(("epochs", "batch_size", "learning_rate"), slow, strict=True))
    changes |= {"validation_fraction": 0.05, "start_from": "shipped"}
    return simulation, replace(config, **changes)


def simulated_events(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 1: the four sets, and whether anything but the anomaly separates the classes."""
    tests = {k: _tests(k, size, seed) for k in ("baseline", "distinct", "planetary", "stellar")}
    null_pairs = {"smoke": 40, "desk": 2000, "full": 2000}[size]
    tests["null"] = Simulation(preset="null", num_pairs=null_pairs, seed=seed)
    return Experiment(size, seed, tests)


def baseline(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 2: the whole range of binaries at the default survey, matched and not matched."""
    few = {"population": True, "num_pairs": min(PAIRS[check_size(size)], 2000)}
    tests = {
        "matched": _tests("baseline", size, seed),
        "population": _tests("baseline", size, seed, **few),
        "blended": _tests("baseline", size, seed, blending=(0.1, 1.0)),
        "training": _tests("baseline", size, seed + 50),  # of classical searches, as chapter 12
    }
    fine_tuned = {"baseline": _fine_tuned("baseline", size, seed)}
    return Experiment(size, seed, tests, fine_tuned=fine_tuned)


def distinct(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 3: binaries whose source crosses a caustic."""
    tests = {"matched": _tests("distinct", size, seed)}
    fine_tuned = {"distinct": _fine_tuned("distinct", size, seed)}
    return Experiment(size, seed, tests, fine_tuned=fine_tuned)


def cadence(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 4: the same events at six cadences."""
    surveys = {f"{int(100 * f)} % missing": Survey(missing_fraction=f) for f in (0.05, 0.2, 0.4)}
    surveys["nights of 8 h"] = Survey(missing_fraction=0.05, night=1 / 3)
    surveys["one epoch a day"] = Survey(missing_fraction=0.05, keep_every=(7, 7))
    surveys["one epoch in three days"] = Survey(missing_fraction=0.05, keep_every=(22, 22))
    tests = {"matched": _tests("baseline", size, seed)}
    return Experiment(size, seed, tests, surveys)


def photometric_error(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 5: the same events at four photometric errors."""
    tests = {"matched": _tests("baseline", size, seed)}
    return Experiment(size, seed, tests, _errors(0.01, 0.05, 0.1, 0.2))


def planetary_stellar(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 6: planetary and stellar companions at two photometric errors."""
    tests = {k: _tests(k, size, seed) for k in ("planetary", "stellar")}
    fine_tuned = {k: _fine_tuned(k, size, seed) for k in tests}
    return Experiment(size, seed, tests, _errors(0.01, 0.1), fine_tuned)


def _alert_sizes(size: str) -> AlertSizes:
    return AlertSizes(
        num_refits={"smoke": 8, "desk": 1000, "full": 5000}[check_size(size)],
        num_singles={"smoke": 48, "desk": 6000, "full": 50_000}[size],
        num_contaminants={"smoke": 24, "desk": 1000, "full": 20_000}[size],
    )


def early_detection(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 7: P(binary) along the event, and first alerts of four observers."""
    tests = {name: _tests(name, size, seed) for name in ("distinct", "baseline")}
    return Experiment(size, seed, tests, alerts=_alert_sizes(size))


def alerts_and_calibration(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 11: calibration, and season thresholds of `population`, measured on `singles`."""
    alerts = _alert_sizes(size)
    fresh = {"population": True, "num_pairs": alerts.num_singles}
    tests = {
        "distinct": _tests("distinct", size, seed),
        "baseline": _tests("baseline", size, seed),
        "population": _tests("baseline", size, seed, population=True),
        "singles": _tests("baseline", size, seed + 300, **fresh),
    }
    return Experiment(size, seed, tests, alerts=alerts)


def physical_limits(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 8: which binaries are undetectable, at three photometric errors."""
    tests = {k: _tests(k, size, seed) for k in ("baseline", "stellar", "planetary")}
    return Experiment(size, seed, tests, _errors(0.01, 0.05, 0.1))


def classical_searches(size: str = "full", seed: int = 0) -> Experiment:
    """Chapter 12: network and classical searches; gradient boosting learns from `training`."""
    pairs = min(PAIRS[check_size(size)], 10_000)  # intervals on recalls are a per cent wide
    seeds = {"baseline": seed, "training": seed + 50}
    tests = {k: _tests("baseline", size, v, num_pairs=pairs) for k, v in seeds.items()}
    return Experiment(size, seed, tests, _errors(0.1, 0.01))
