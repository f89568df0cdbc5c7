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
from crossover.evidence.record import read_recipe
from crossover.evidence.run import STREAMS
from crossover.folders import damaged, read_sums, steps_in, synchronise
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded
from crossover.recipe import resolve
from crossover.sections import budget_label
from crossover.trees import VIEWS, differences

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
        trunk: The run of the study's own budget: its beginning is shared where the plan does not depend on the horizon.
    """

    name: str
    arm: str
    seed: int
    amount: float
    trunk: str


def branches_of(arms: Sequence[str], seeds: Sequence[int], amounts: Sequence[float]) -> tuple[Branch, ...]:
    """List the runs of the smaller budgets of a study.

    Args:
        arms: Arms.
        seeds: Seeds.
        amounts: The smaller budgets.

    Returns:
        One branch for each arm, seed and budget.
    """
    return tuple(
        Branch(branch_name(arm, seed, amount), arm, seed, amount, f"{arm}/seed-{seed}")
        for arm in arms
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

    Where there is none to use, the run is made from the start, with what the trunk had chosen on this machine: whether
    a run is compiled depends on its length too, and would be a difference between branches.

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
    recipe, longer = read_recipe(folder), read_json(trunk / "manifest.json")
    if not longer.get("choices") or not longer.get("budget"):
        raise RunError(f"{trunk / 'manifest.json'}: does not say what the run chose; train {trunk} first")
    currency, amount = _budget_of_branch(folder, trunk, recipe, longer)
    place = trunk / "forks" / budget_label(amount)
    kept = {step: path for step, path in steps_in(place).items() if _is_usable(path)}
    begins: dict[str, Any] = {"step": 0, "data_tokens": 0, "flops": 0.0, "flops_6nd": 0.0}
    manifest = {"choices": longer["choices"]}
    if kept and is_horizon_free(recipe, str(folder / "recipe.yaml")):
        step, fork = kept.popitem()
        _copy(trunk, folder, fork, place / "best")
        _rescale(folder / "signals.jsonl", amount / float(longer["budget"]["amount"]))
        clock = next(row for row in read_rows(trunk / "steps.jsonl") if row.get("step") == step)
        begins, manifest = {key: clock[key] for key in begins}, {**longer, "resumed": []}
    stated = {currency: amount}
    manifest |= {"branch": begins, "budget": {"currency": currency, "amount": amount, "stated": plain(stated)}}
    # Last: a folder without it has not begun, and is begun again.
    write_text(folder / "manifest.json", dumps(manifest, indent=2) + "\n")
    if not begins["step"]:
        return f"{folder}: is made from the start; {trunk} has no fork for {amount:g} {currency} that it could begin at"
    return f"{folder}: begins at step {begins['step']} of {trunk}"


def _budget_of_branch(
    folder: Path, trunk: Path, recipe: Mapping[str, Any], longer: Mapping[str, Any]
) -> tuple[str, float]:
    """Refuse a branch that is not the beginning of its trunk; give its currency and amount."""
    changed = [key for key in differences(read_recipe(trunk), recipe) if key.split(".")[0] not in (*OF_LENGTH, *VIEWS)]
    if changed:
        raise RunError(f"{folder}: is no branch of {trunk}: {', '.join(changed)} differ; only the budget may")
    if recipe["scoring"]["every_tokens"] is None:
        raise RunError(
            f"{folder}: scoring.every_tokens is open, so each budget would choose its own; set it, in {trunk} too"
        )
    (currency, amount), *_ = ((key, value) for key, value in recipe["budget"].items() if value is not None)
    of_trunk = longer["budget"]
    if currency not in of_trunk["stated"] or currency != of_trunk["currency"] or float(amount) >= of_trunk["amount"]:
        whole = f"{of_trunk['amount']:g} {of_trunk['currency']}"
        raise RunError(f"{folder}: {amount:g} {currency} is no smaller budget than {trunk}'s {whole}")
    return currency, float(amount)


def _is_usable(fork: Path) -> bool:
    """Say whether a fork is whole, and of a run that was never rescued from bad steps, which depends on its length."""
    try:
        state = parse_json(read_bounded(fork / "state.json", LARGEST_JSON_BYTES), strict=False)
        whole = not damaged(fork, [*read_sums(fork), "state.json"])
        return whole and not state["bad_steps"] and not state["state"]["rollbacks"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
        for path in [item for part in ("best", "checkpoints") for item in (folder / part).rglob("*") if item.is_file()]:
            # The manifest says that all of this is there, so it must be.
            synchronise(path)


def forget_fork(trunk: Path, amount: float) -> None:
    """Remove a fork whose branch is finished: it is as large as a checkpoint.

    Args:
        trunk: The run folder that kept it.
        amount: The branch's budget.
    """
    place = trunk / "forks" / budget_label(amount)
    if place.is_dir():
        # Aside first: half a fork must not look like one.
        aside = place.with_name(f".{place.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


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
