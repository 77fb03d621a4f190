"""Store season thresholds beside the shipped weights: `python book/scripts/alert_thresholds.py`.

`lensml classify` reads them from there, also where the package is installed without the records of
the chapters. To be run when the record of chapter 11 has changed; a test compares the two.
"""

import json

from lensml.experiments import season_thresholds
from lensml.network import weights_hash
from lensml.paths import WEIGHTS, atomic_path


def main() -> None:
    stored = {
        "meaning": "P(binary) that so many simulated single lenses pass at any time of a season",
        "source": "season_thresholds() of lensml.experiments: the committed record of chapter 11",
        "weights_sha256": weights_hash(),
        "thresholds": season_thresholds(),
    }
    with atomic_path(WEIGHTS / "alerts.json") as temporary:
        temporary.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
