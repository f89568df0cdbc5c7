"""Decay branches: what a recipe reaches at several budgets, for little more than the price of the largest.

While the learning rate is constant, a curve hides what a user would get who stopped there: the decay is still to come.
So each budget of a grid has a run of its own. It begins where the run of the largest budget, the trunk, kept a fork for
it, and makes only the decay. What it leaves is, bit for bit, what training it from the start would have left. An arm
whose controller or learning rate depends on the length of the run has no such fork and runs once per budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.errors import RunError
from crossover.evidence.files import dumps, plain, read_json, read_rows, room_on_disk, write_text
from crossover.evidence.run import STREAMS, read_recipe
from crossover.recipe import resolve
from crossover.sections import budget_label
from crossover.trees import differences

# What may differ between a branch and its trunk.
OF_LENGTH = ("name", "budget")


@dataclass(frozen=True)
class Branch:
    """A run of a smaller budget.

    Args:
        name: Its place in the study, such as "masked/budget-2e+11/seed-0".
        arm: Its arm.
        seed: Its seed.
        amount: Its budget.
        trunk: The run whose beginning it shares, or None where it has to be made from the start.
    """

    name: str
    arm: str
    seed: int
    amount: float
    trunk: str | None


def branches_of(arms: Mapping[str, bool], seeds: Sequence[int], amounts: Sequence[float]) -> tuple[Branch, ...]:
    """List the runs of the smaller budgets of a study.

    Args:
        arms: Whether each arm does the same however long its run will be.
        seeds: Seeds.
        amounts: The smaller budgets.

    Returns:
        One branch for each arm, seed and budget.
    """
    return tuple(
        Branch(branch_name(arm, seed, amount), arm, seed, amount, f"{arm}/seed-{seed}" if is_free else None)
        for arm, is_free in arms.items()
        for amount in amounts
        for seed in seeds
    )


def branch_name(arm: str, seed: int, amount: float) -> str:
    """Give the place of a branch in its study's folder."""
    return f"{arm}/budget-{budget_label(amount)}/seed-{seed}"


def is_horizon_free(recipe: Mapping[str, Any], origin: str) -> bool:
    """Say whether a shorter run of a recipe is the beginning of a longer one, up to the decay of its learning rate.

    Args:
        recipe: A resolved recipe as a plain mapping.
        origin: What errors name.

    Returns:
        Whether neither controller nor learning rate looks at the length of the run.
    """
    found = resolve(recipe, origin=origin)
    # A component from elsewhere that does not say is taken to depend on it.
    return all(getattr(part, "horizon_free", False) for part in (found.controller, found.training.learning_rate))


def begin_branch(folder: Path, trunk: Path) -> str:
    """Put a trunk's fork into a new run folder, so that training goes on from it.

    Args:
        folder: The branch's run folder; it has its recipe and nothing else yet. One that has begun is left alone.
        trunk: The run folder of the larger budget.

    Returns:
        A sentence that says what the run begins with.

    Raises:
        RunError: The two recipes differ in more than their length, or a file of the trunk is broken.
    """
    if (folder / "manifest.json").exists():
        return f"{folder}: goes on"
    recipe, source = read_recipe(folder), read_recipe(trunk)
    changed = [key for key in differences(source, recipe) if key.split(".")[0] not in OF_LENGTH]
    if changed:
        raise RunError(f"{folder}: is no branch of {trunk}: {', '.join(changed)} differ; only the budget may")
    budget = {key: value for key, value in recipe["budget"].items() if value is not None}
    (currency, amount), *_ = budget.items()
    place = trunk / "forks" / budget_label(float(amount))
    kept = sorted(path for path in place.glob("step-*") if path.is_dir())
    if not kept or currency == "minutes":
        return f"{trunk} kept no fork for {amount:g} {currency}: {folder} is made from the start"
    step = int(kept[-1].name.removeprefix("step-"))
    longer = read_json(trunk / "manifest.json")
    _copy(trunk, folder, kept[-1], place / "best")
    _rescale(folder / "signals.jsonl", float(amount) / float(longer["budget"]["amount"]))
    clock = next((row for row in read_rows(trunk / "steps.jsonl") if row.get("step") == step), {})
    begins = {key: clock.get(key) for key in ("step", "data_tokens", "flops", "flops_6nd")}
    manifest = {**longer, "resumed": [], "branch": begins}
    manifest["budget"] = {"currency": currency, "amount": float(amount), "stated": plain(budget)}
    # Last: a folder without it has not begun, and is begun again.
    write_text(folder / "manifest.json", dumps(manifest, indent=2) + "\n")
    return f"{folder}: begins at step {step} of {trunk}"


def _copy(trunk: Path, folder: Path, fork: Path, best: Path) -> None:
    with room_on_disk(folder):
        for stream in STREAMS:
            # Rows after the fork are cut off when the run goes on from its checkpoint.
            if (trunk / f"{stream}.jsonl").exists():
                shutil.copy2(trunk / f"{stream}.jsonl", folder / f"{stream}.jsonl")
        for source, target in ((best, folder / "best"), (fork, folder / "checkpoints" / fork.name)):
            shutil.rmtree(target, ignore_errors=True)
            if source.is_dir():
                shutil.copytree(source, target)


def _rescale(path: Path, part: float) -> None:
    """Say of each time that the controller was asked how much of the shorter budget was spent, not of the longer."""
    if not path.exists():
        return
    rows = [
        {**row, "budget_fraction": row["budget_fraction"] / part, "planned_epochs": row["planned_epochs"] * part}
        if row.get("asked")
        else row
        for row in read_rows(path)
    ]
    write_text(path, "".join(f"{dumps(row)}\n" for row in rows))
