"""The thesis as a graph: sets, networks and chapters of one size, as JSON or with what they cost.

    python workflow/plan.py full          # JSON, which the Snakefile reads
    python workflow/plan.py full --cost   # an estimate, from committed benchmarks and records

Sets and networks are those of the chapters' presets, under the names by which chapters find them.
"""

import argparse
import json
import sys
from pathlib import Path

from lensml.experiments import (
    benchmarks_by_device,
    chapter_fingerprint,
    chapter_names,
    load_results,
    run_path,
    set_path,
    start,
)
from lensml.paths import ROOT, SIZES, InputError
from lensml.simulation import Simulation, Survey


def simulate_flags(simulation: Simulation) -> list[str]:
    """The flags of `lensml simulate` that make this set; InputError for a survey without flags."""
    survey = simulation.survey
    if survey != Survey(missing_fraction=survey.missing_fraction, sigma=survey.sigma):
        raise InputError(f"{simulation.preset}: no flag of `simulate` gives {survey}")
    pairs = str(simulation.num_pairs)
    flags = ["--binary_params", simulation.preset, "--n_pspl", pairs, "--n_binary", pairs]
    flags += ["--seed", str(simulation.seed), "--shard_size", str(simulation.shard_size)]
    flags += ["--cadence", str(survey.missing_fraction), "--error", str(survey.sigma)]
    if simulation.blending:
        flags += ["--blending", *map(str, simulation.blending)]
    return flags + ["--population"] * simulation.population


def shown(path: Path) -> str:
    """A path as the graph names it: inside the project without the project's folder."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def make_plan(size: str, seed: int = 0) -> dict[str, dict]:
    """Sets and runs by their folder, chapters by their name, each with what it is made from."""
    sets, runs, chapters = {}, {}, {}

    def add(simulation: Simulation) -> str:
        path = shown(set_path(simulation))
        sets[path] = {
            "flags": simulate_flags(simulation),
            "shards": len(simulation.shards()),
            "pairs": simulation.num_pairs,
        }
        return path

    for chapter in chapter_names():
        experiment = start(chapter, size, seed).experiment
        made = {"sets": [], "runs": [], "key": chapter_fingerprint(chapter, size, {})}
        if experiment:
            of = {name: add(simulation) for name, simulation in experiment.tests.items()}
            made["sets"] = sorted(set(of.values()))
            for name, (simulation, config) in experiment.fine_tuned.items():
                run = shown(run_path(simulation, config))
                made["runs"].append(run)
                test = of.get(name, of.get("matched"))
                runs[run] = {"chapter": chapter, "name": name, "set": add(simulation)}
                runs[run] |= {"test": test, "passes": config.epochs}
        chapters[chapter] = made
    return {"sets": sets, "runs": runs, "chapters": chapters}


def cost(plan: dict[str, dict]) -> list[tuple[str, str, str, float]]:
    """Rows of part, amount, rate and hours on the device whose record is named.

    A part is left out on devices without a record of it. Of a chapter: the committed wall time at
    desk, times how many more rows are tested.
    """
    rows, pairs = [], sum(made["pairs"] for made in plan["sets"].values())
    trained = sum(
        2 * plan["sets"][run["set"]]["pairs"] * run["passes"] for run in plan["runs"].values()
    )
    for device, record in benchmarks_by_device("simulation").items():
        rate = record["numbers"]["core_hours_per_million"]
        amount = f"{pairs:,} pairs"
        hours = 2 * pairs * rate / 1e6 / record["provenance"]["cores"]
        rows.append((f"simulation, {device}", amount, f"{rate:.2f} core-h a million events", hours))
    for device, record in benchmarks_by_device("training").items():
        rate = record["numbers"]["curves_per_s"]
        passes = f"{trained:,} curve passes"
        rows.append((f"training, {device}", passes, f"{rate:,.0f} a second", trained / rate / 3600))
    desk = make_plan("desk")
    for chapter in plan["chapters"]:
        record = load_results(chapter)
        if record is None:
            continue
        of = [sum(p["sets"][s]["pairs"] for s in p["chapters"][chapter]["sets"])
              for p in (plan, desk)]  # fmt: skip
        factor = of[0] / of[1] if of[1] else 1.0
        p = record["provenance"]
        hours = p["wall_time_s"] / 3600 * factor
        rate = f"{p['wall_time_s']:,.0f} s at {p['size']} x {factor:.1f}"
        rows.append((f"{chapter}, {p['device']}", f"{of[0]:,} pairs", rate, hours))
    return rows


def main() -> int:
    """Print the plan, or what it costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true", help="print an estimate instead")
    args = parser.parse_args()
    try:
        plan = make_plan(args.size, args.seed)
    except InputError as error:
        print(f"plan.py: {error}", file=sys.stderr)
        return 2
    if args.cost:
        rows = cost(plan)
        for part, amount, rate, hours in rows:
            print(f"{part:44} {amount:>24} {rate:>34} {hours:9.2f} h")
        print(f"{'in all, if one follows the other':44} {'':24} {'':34} "
              f"{sum(row[-1] for row in rows):9.2f} h")  # fmt: skip
    else:
        print(json.dumps(plan, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
