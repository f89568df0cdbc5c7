"""Time a study of four small runs one at a time and two at a time.

usage: python benchmarks/study.py [--jobs 1,2] [--tokens 120000] [--repeats 5] [--json FILE]

Gives `crossover study` as a command, into a fresh folder each time, the numbers of jobs in turns: two arms (next-token,
masked) with two seeds, the model and text of recipes/quickstart.yaml, evaluations at the interval that the study
chooses. The text is prepared beforehand. Prints the wall time of the command, data tokens per second of all runs
together, and the ratio of the wall time to that of the first number of jobs in the same repeat; then, for each run, the
wall time of its training (evaluations within), the share of that which evaluations take, and what it needs besides
(start-up, final scores, the model folder). Medians over the repeats.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import yaml
from table import Table, add_options, finish, load, seconds

from crossover.evidence.files import read_json
from crossover.evidence.workers import cores

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
ARMS, SEEDS = ("autoregressive", "masked"), (0, 1)
COMMAND = (sys.executable, "-m", "crossover")


def write_study(folder: Path, tokens: int) -> Path:
    """Write the study's file; its recipe is the quickstart's, but for what is scored and when."""
    recipe = yaml.safe_load(RECIPE.read_text("utf-8"))
    del recipe["budget"]
    # A run this short is scored as coarsely as recipes/tiny.yaml is.
    recipe["scoring"] = {"dev_windows": 16, "dev_draws": 4, "dev_positions": 2}
    recipe["scoring"] |= {"test_windows": 32, "test_draws": 8, "test_positions": 4}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    study = {
        "name": "benchmark",
        "recipe": "recipe.yaml",
        "arms": {arm: {"controller": f"constant({arm})"} for arm in ARMS},
        "seeds": list(SEEDS),
        "budget": {"tokens": tokens},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), "utf-8")
    return path


def give(*arguments: object) -> None:
    """Give a crossover command, and stop with what it said if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


def run_facts(folder: Path) -> dict[str, tuple[float, float, float, float]]:
    """Read, of every run: data tokens, seconds of training, of evaluations, and besides."""
    facts = {}
    for arm in ARMS:
        for seed in SEEDS:
            run = folder / arm / f"seed-{seed}"
            ledger = read_json(run / "ledger.json")
            # The recipe is written when the run begins and the status when it ends.
            whole = (run / "status.json").stat().st_mtime - (run / "recipe.yaml").stat().st_mtime
            training = ledger["seconds"]
            facts[f"{arm} {seed}"] = (ledger["data_tokens"], training, ledger["evaluation_seconds"], whole - training)
    return facts


def main() -> None:
    """Measure all numbers of jobs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5, threads=False)
    parser.add_argument("--jobs", default="1,2", help="numbers of runs at the same time (1,2)")
    parser.add_argument("--tokens", type=int, default=120_000, help="data tokens of each run (120000)")
    options = parser.parse_args()
    print(f"{cores()} cores, divided among the runs; {load()}")
    jobs = [int(text) for text in options.jobs.split(",")]
    walls: dict[int, list[float]] = defaultdict(list)
    facts: dict[tuple[int, str], list[tuple[float, float, float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as place:
        study = write_study(Path(place), options.tokens)
        give("prepare", RECIPE)
        for repeat in range(options.repeats):
            for count in jobs:
                folder = Path(place) / f"{repeat}-{count}"
                walls[count].append(seconds(lambda c=count, f=folder: give("study", study, "--jobs", c, "--folder", f)))
                for name, row in run_facts(folder).items():
                    facts[count, name].append(row)
    report(options, jobs, walls, facts)


def report(
    options: argparse.Namespace,
    jobs: list[int],
    walls: dict[int, list[float]],
    facts: dict[tuple[int, str], list[tuple[float, float, float, float]]],
) -> None:
    """Print the commands, then their runs."""
    whole = Table({"command": "", "wall s": ".1f", "tokens/s": ",.0f", f"x --jobs {jobs[0]}": ".3f"})
    for count in jobs:
        tokens = sum(rows[0][0] for (of, _), rows in facts.items() if of == count)
        wall = statistics.median(walls[count])
        ratio = statistics.median(one / first for one, first in zip(walls[count], walls[jobs[0]], strict=True))
        whole.add(f"study --jobs {count}", wall, tokens / wall, ratio)
    print()
    each = Table({"run": "", "training s": ".1f", "evaluations": ".1%", "besides s": ".1f"})
    for (count, name), rows in facts.items():
        shares = [evaluations / training for _, training, evaluations, _ in rows]
        training, besides = (statistics.median(row[place] for row in rows) for place in (1, 3))
        each.add(f"--jobs {count}: {name}", training, statistics.median(shares), besides)
    finish(options, each, studies=whole.rows)


if __name__ == "__main__":
    main()
