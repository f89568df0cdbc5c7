"""The run list of a study: every run it is made of, its recipe, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossover.evidence.branches import branches_of, is_horizon_free
from crossover.evidence.definition import Study
from crossover.evidence.tune import draw_trials
from crossover.sections import budget_label

# What tuning decides is part of the next stage's recipes, and a branch begins where its trunk left a fork.
STAGES = ("tune", "seeds", "branches")


@dataclass(frozen=True)
class Planned:
    """One run of a study.

    Args:
        name: Its place in the study's folder, such as "masked/seed-0".
        stage: "tune", "seeds" or "branches".
        arm: Its arm.
        needs: Runs that must be finished before it can begin.
        recipe: Its resolved recipe, or None as long as its arm is being tuned.
        keeps: Smaller budgets for which it keeps a fork.
        trunk: The run that it is a branch of, or "".
        amount: A branch's budget.
    """

    name: str
    stage: str
    arm: str
    needs: tuple[str, ...]
    recipe: dict[str, Any] | None
    keeps: tuple[float, ...] = ()
    trunk: str = ""
    amount: float = 0.0


def runs_of(study: Study, stage: str, chosen: Mapping[str, Any], threads: int) -> list[Planned]:
    """List the runs of one stage of a study; the same study gives the same list, whatever has been run of it.

    Args:
        study: The study.
        stage: One of `STAGES`.
        chosen: What tuning chose, by arm.
        threads: CPU threads of each process of a run.

    Returns:
        The runs. Their recipes leave the interval between evaluations open where the study does.
    """
    if stage == "tune":
        return _trials(study, threads)
    trunks = _trunks(study, chosen, threads)
    return trunks if stage == "seeds" else _branches(study, {run.name: run for run in trunks})


def _trials(study: Study, threads: int) -> list[Planned]:
    tune = study.tune
    if tune is None:
        return []
    found = []
    for arm in study.arms:
        for index, settings in enumerate(draw_trials(tune)):
            recipe = study.recipe(
                arm, tune.seed, chosen=settings, budget=tune.budget or study.budget, threads=threads,
                name=f"{study.name}-{arm}-trial-{index}",
            )  # fmt: skip
            found.append(Planned(f"tune/{arm}/trial-{index}", "tune", arm, (), recipe))
    return found


def _trunks(study: Study, chosen: Mapping[str, Any], threads: int) -> list[Planned]:
    found = []
    for arm in study.arms:
        needs = tuple(f"tune/{arm}/trial-{index}" for index in range(study.tune.trials if study.tune else 0))
        known = not needs or arm in chosen
        for seed in study.seeds:
            name = f"{arm}/seed-{seed}"
            recipe = study.recipe(
                arm, seed, chosen=chosen.get(arm, {}).get("chosen", {}), budget=study.budget, threads=threads,
                name=f"{study.name}-{arm}-seed-{seed}",
            )  # fmt: skip
            keeps = study.budgets if study.budgets and is_horizon_free(recipe, name) else ()
            found.append(Planned(name, "seeds", arm, needs, recipe if known else None, keeps))
    return found


def _branches(study: Study, trunks: Mapping[str, Planned]) -> list[Planned]:
    currency = next(iter(study.budget))
    found = []
    for branch in branches_of(list(study.arms), study.seeds, study.budgets):
        recipe = trunks[branch.trunk].recipe
        if recipe is not None:
            budget = {**recipe["budget"], currency: branch.amount}
            recipe = {**recipe, "name": f"{recipe['name']}-at-{budget_label(branch.amount)}", "budget": budget}
        needs = (branch.trunk,)
        found.append(Planned(branch.name, "branches", branch.arm, needs, recipe, (), branch.trunk, branch.amount))
    return found
