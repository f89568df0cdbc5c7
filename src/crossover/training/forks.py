"""Forks: checkpoints that a run keeps where shorter runs of the same recipe leave it.

A run whose mix and learning rate do not depend on its length is, up to the decay of its learning rate, the beginning
of every longer run. So a run of a smaller budget need not be made from the start: it takes the longer run up at a fork,
the last place where both are the same, and only the decay is left to do.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from crossover.errors import RecipeError
from crossover.folders import step_folder
from crossover.sections import BudgetRecipe, budget_label
from crossover.training import checkpoint
from crossover.training.running import Run, snapshot
from crossover.training.state import Budget, State

# A fork may lie so many steps before the decay: the next step must not pass its beginning.
STEPS_BEFORE = 2


def check(budget: BudgetRecipe, wanted: Sequence[float]) -> None:
    """Refuse forks that no run could begin at.

    Args:
        budget: The recipe's budget.
        wanted: Smaller budgets.

    Raises:
        RecipeError: The budget is in minutes, or one of them is not between 0 and it.
    """
    if wanted and budget.currency == "minutes":
        raise RecipeError("--fork-for: minutes are converted run by run; give budget in flops or tokens")
    for amount in wanted:
        if not 0 < amount < budget.amount:
            raise RecipeError(
                f"--fork-for {amount:g}: expected a budget between 0 and the recipe's "
                f"{budget.amount:g} {budget.currency}"
            )


def due(run: Run, budgets: Sequence[float]) -> list[float]:
    """List the budgets whose fork should be kept before the next step.

    Args:
        run: The run.
        budgets: Smaller budgets, in the currency of the run's own.

    Returns:
        Those whose decay is about to begin and that have no fork yet.
    """
    near = [amount for amount in budgets if _before_decay(run, amount)]
    missing = [amount for amount in near if not checkpoint.existing(run.folder / "forks" / budget_label(amount))]
    # A shared disk may show the others what was there a while ago.
    return run.world.agree(missing) if near else []


def keep(run: Run, budgets: Sequence[float]) -> None:
    """Keep a fork for each of some budgets: a checkpoint, and the best weights so far.

    Args:
        run: The run; what it recorded has been flushed.
        budgets: Budgets from `due`.

    Raises:
        RunError: Writing failed.
    """
    for amount in budgets:
        place = run.folder / "forks" / budget_label(amount)
        if run.world.leads:
            shutil.rmtree(place, ignore_errors=True)
        best = run.folder / "best"
        if best.is_dir() and run.world.leads:
            # Through the same writer, so that a full disk is told alike.
            for mode in sorted(path for path in best.iterdir() if path.is_dir() and not path.name.startswith(".")):
                tensors, tree = checkpoint.load(mode, ["model"])
                checkpoint.write_folder(place / "best" / mode.name, tensors, tree)
        # Last: a fork is there when its checkpoint is.
        run.saver.save(step_folder(place, run.state.step), *snapshot(run), lambda: None)
        # Whether there is a fork is asked before the next step already.
        run.saver.wait()
        run.world.wait()


def _before_decay(run: Run, amount: float) -> bool:
    """Say whether a run of this budget would soon, but not yet, decay its learning rate."""
    workshop, state = run.workshop, run.state
    decay_from = workshop.recipe.training.learning_rate.decay_from
    shorter = Budget(workshop.budget.currency, amount, {})
    fraction = shorter.fraction(state)
    # At the very beginning there is nothing to save.
    return state.step > 0 and fraction < decay_from <= fraction + _reach(run, state) / amount


def _reach(run: Run, state: State) -> float:
    """Give what the next steps and their probes may spend at most, in the budget's currency."""
    workshop = run.workshop
    tokens = float(STEPS_BEFORE * workshop.recipe.training.batch_tokens)
    if workshop.budget.currency == "tokens":
        return tokens
    watching = workshop.recipe.controller.watching
    probes = watching.share * state.flops if watching is not None else 0.0
    return tokens * max(workshop.flops_per_token.values()) + probes
