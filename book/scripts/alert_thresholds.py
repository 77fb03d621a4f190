"""Store season thresholds beside the shipped weights, by survey, each with its exact interval.

`python book/scripts/alert_thresholds.py` takes the default ones from chapter 11's committed record;
`... NAME=RECORD.json` sets those of one survey from another record with `policies`, and keeps the
rest. The verbs read them from the weights' folder, also where no record is installed. To be run
when a record has changed; a test compares the two.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensml.experiments import load_results
from lensml.network import weights_hash
from lensml.paths import WEIGHTS, InputError, atomic_path
from lensml.streaming import LEVELS

FILE = WEIGHTS / "alerts.json"


def thresholds_of(record: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Thresholds by level from `policies` (`evaluation.season_policy`) of a chapter's record."""
    found = (record or {}).get("numbers", {}).get("policies", {})
    policies = {f"{100 * level:g}_pct": name for level, name in LEVELS.items()}
    if missing := [key for key in policies if key not in found]:
        raise InputError(f"the record keeps no alert threshold for {missing}")
    return {
        name: {
            "threshold": found[key]["threshold"],
            "level": found[key]["rate"],
            "singles": found[key]["set_on"],
            "true_rate": found[key]["expected"],
        }
        for key, name in policies.items()
    }


def main() -> None:
    surveys = {"default": load_results("11_alerts_and_calibration")}
    for name, _, path in (argument.partition("=") for argument in sys.argv[1:]):
        surveys[name] = json.loads(Path(path).read_text())
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    known = kept.get("thresholds", {}) if kept.get("weights_sha256") == weights_hash() else {}
    known = {name: value for name, value in known.items() if isinstance(value, dict)}
    stored = {
        "meaning": "P(binary) that so many simulated single lenses pass at any time of a season; "
        "true_rate: exact 95 % interval of that fraction among others, from order statistics",
        "source": "policies in the committed record of chapter 11, or of the survey",
        "weights_sha256": weights_hash(),
        "thresholds": known | {name: thresholds_of(record) for name, record in surveys.items()},
    }
    with atomic_path(FILE) as temporary:
        temporary.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
