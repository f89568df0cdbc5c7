"""What the runs of a study cost: the grid that their evaluations share, and which of them should start first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossover.evidence.files import dumps, read_json, write_text
from crossover.recipe import resolve
from crossover.scoring.cost import Cost, common_interval, cost_of

# An interval that a recipe states is kept, but a study says so when evaluations take more than this part of the FLOPs.
TELL_FROM = 0.1


def costs_of(plan: Mapping[str, Mapping[str, Any]]) -> dict[str, Cost]:
    """Count what every run of a plan costs; their text has been prepared.

    Args:
        plan: Resolved recipes by run.

    Returns:
        Costs by run.
    """
    from crossover.data.prepare import prepare

    known: dict[str, Cost] = {}
    texts: dict[str, Any] = {}
    costs = {}
    for name, tree in plan.items():
        recipe = resolve(tree, origin=name)
        data = json.dumps(tree["data"], sort_keys=True)
        key = json.dumps({**tree, "name": "", "seed": 0}, sort_keys=True)
        if data not in texts:
            texts[data] = prepare(recipe.data, seed=0)
        if key not in known:
            known[key] = cost_of(recipe, texts[data])
        costs[name] = known[key]
    return costs


def share_grid(folder: Path, phase: str, plan: Mapping[str, dict[str, Any]], costs: Mapping[str, Cost]) -> None:
    """Give all runs that leave it open the same interval between evaluations, which each of them can afford.

    It is written down, so that runs that are added later lie on the same grid.

    Args:
        folder: The study's folder.
        phase: "tune" or "seeds".
        plan: Resolved recipes by run; `scoring.every_tokens` is filled in, in place.
        costs: Costs by run.
    """
    path = folder / "grid.json"
    grid = read_json(path) if path.exists() else {}
    left_open = [name for name, tree in plan.items() if tree["scoring"]["every_tokens"] is None]
    if not left_open:
        return
    if phase not in grid:
        grid[phase] = common_interval(costs[name] for name in left_open)
        write_text(path, dumps(grid) + "\n")
    for name in left_open:
        plan[name]["scoring"]["every_tokens"] = grid[phase]


def dear_evaluations(plan: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Cost]) -> str:
    """Say in a sentence which run spends too much on evaluations, or nothing where none does.

    Args:
        plan: Resolved recipes by run, the interval filled in.
        costs: Costs by run.

    Returns:
        The sentence, or "".
    """
    every = {name: int(tree["scoring"]["every_tokens"]) for name, tree in plan.items()}
    shares = {name: costs[name].evaluation_share(every[name]) or 0.0 for name in plan}
    worst = max(shares, key=lambda name: shares[name])
    better = common_interval(costs.values())
    if shares[worst] <= TELL_FROM or better <= every[worst]:
        return ""
    return (
        f"evaluations every {every[worst]:,} tokens take about {shares[worst]:.0%} of the FLOPs of {worst}; "
        f"without scoring.every_tokens they would come every {better:,} tokens and take less than a tenth of the time"
    )


def longest_first(plan: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Cost]) -> list[str]:
    """Put the runs that cost most first, so that no long one is left to the end; equal ones keep their order.

    Args:
        plan: Resolved recipes by run, the interval filled in.
        costs: Costs by run.

    Returns:
        Names of runs.
    """
    return sorted(plan, key=lambda name: -costs[name].total_flops(int(plan[name]["scoring"]["every_tokens"])))
