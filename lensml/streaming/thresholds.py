"""Alert thresholds by survey that ship with a network: `alerts.json` of its run folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lensml import network
from lensml.paths import InputError, check_keys, read_json

FILE = "alerts.json"  # of a run folder
LEVELS = {0.01: "1pct", 0.001: "0_1pct"}  # fraction of single lenses -> name in that file
ALERT = {"threshold": (int, float), "singles?": (int, type(None))}
ALERT |= {"true_rate?": (dict, type(None))}


@dataclass(frozen=True, kw_only=True)
class AlertThreshold:
    """P(binary) above which an event alerts, and how well its rate of false alarms is known."""

    value: float
    level: float  # fraction of simulated single lenses that ever pass it in a season
    survey: str  # of these single lenses
    singles: int | None = None  # on so many of which it was set
    true_rate: Mapping[str, float] | None = None  # exact 95 % interval (beta) on others

    def text(self) -> str:
        """What it is, in half a sentence."""
        rate, level = self.true_rate, f"{100 * self.level:g} %"
        known = f", set on {self.singles:,} of them" if self.singles else ""
        known += (
            f", true rate {100 * rate['low']:.2f} to {100 * rate['high']:.2f} %" if rate else ""
        )
        text = f"P = {self.value:.3f}, which {level} of simulated single lenses pass"
        return f"{text} at any time of their season (survey {self.survey}{known})"


def find_threshold(
    run: Path | None, survey: str = "default", level: float = 0.01
) -> AlertThreshold | None:
    """The threshold stored with a network (None = the shipped one); None if it stores none."""
    path = network.run_folder(run) / FILE
    if not path.exists():
        return None
    stored = read_json(path, {"thresholds": dict})["thresholds"]
    if not any(isinstance(value, dict) for value in stored.values()):  # before there were surveys
        stored = {"default": {name: {"threshold": value} for name, value in stored.items()}}
    by_survey = {name: check_keys(value, {}, path) for name, value in stored.items()}
    found = by_survey.get(survey, {}).get(LEVELS.get(level))
    if found is None:
        known = "; ".join(f"{k} at {', '.join(v)}" for k, v in stored.items())
        raise InputError(f"no threshold of survey {survey} at level {level:g}; known are {known}")
    check_keys(found, ALERT, path)
    if not 0 <= found["threshold"] <= 1:
        raise InputError(f"{path}: a threshold of {found['threshold']}; 0 to 1 was expected")
    if rate := found.get("true_rate"):
        check_keys(rate, {"low": (int, float), "high": (int, float)}, path)
    more = {key: found.get(key) for key in ("singles", "true_rate")}
    return AlertThreshold(value=found["threshold"], level=level, survey=survey, **more)
