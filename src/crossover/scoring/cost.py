"""What training and scoring a recipe cost, in closed form, and how far apart evaluations lie so that they stay cheap.

Nothing here needs torch: a study asks before it starts its runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from crossover.data.shards import PreparedText
from crossover.errors import RecipeError
from crossover.model.shapes import Shape, forward_flops, shape_of, training_flops
from crossover.objectives.windows import Ints
from crossover.recipe import Recipe
from crossover.registry import component_of
from crossover.scoring.procedures import procedure_of
from crossover.scoring.windows import held_out

# Largest part of a run's FLOPs, training and evaluations together, that the evaluations may take. Scoring reaches fewer
# FLOPs per second than training where models and windows are small; being below a tenth keeps their time within one.
EVALUATION_SHARE = 0.09


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Args:
        training_flops: FLOPs of training; None where the budget is in minutes, which only the machine can convert.
        evaluation_flops: FLOPs of one evaluation, in all modes that are scored on the way.
        final_flops: FLOPs of the final scores.
        flops_per_token: FLOPs of training per data token under the cheapest of the run's objectives.
        batch_tokens: Data tokens of a step.
        train_tokens: Data tokens of an epoch.
    """

    training_flops: float | None
    evaluation_flops: float
    final_flops: float
    flops_per_token: float
    batch_tokens: int
    train_tokens: int

    @property
    def data_tokens(self) -> float | None:
        """The most data tokens that the run can see, or None where that is not known beforehand."""
        return None if self.training_flops is None else self.training_flops / self.flops_per_token + self.batch_tokens

    @property
    def interval_tokens(self) -> int:
        """Data tokens between evaluations by default: the fewest whole epochs that keep them within their share."""
        ratio = EVALUATION_SHARE / (1 - EVALUATION_SHARE)
        if self.training_flops is None or self.data_tokens is None:
            in_an_epoch = ratio * self.flops_per_token * self.train_tokens / self.evaluation_flops
            return self.train_tokens * max(1, math.ceil(1 / in_an_epoch))
        # One evaluation stands at the first step and one at the last; the others lie on the multiples between them.
        inside = max(1, int(ratio * self.training_flops / self.evaluation_flops) - 1)
        return self.train_tokens * (1 + int(self.data_tokens / (self.train_tokens * inside)))

    def evaluations_flops(self, every_tokens: int) -> float | None:
        """Count the FLOPs of all evaluations, the final scores apart.

        Args:
            every_tokens: Data tokens between them.

        Returns:
            FLOPs, or None where the budget is in minutes.
        """
        return None if self.data_tokens is None else (2 + self.data_tokens // every_tokens) * self.evaluation_flops

    def evaluation_share(self, every_tokens: int) -> float | None:
        """Give the part of a run's FLOPs that evaluations take, the final scores apart.

        Args:
            every_tokens: Data tokens between them.

        Returns:
            A number in (0, 1), or None where the budget is in minutes.
        """
        spent = self.evaluations_flops(every_tokens)
        return None if spent is None or self.training_flops is None else spent / (spent + self.training_flops)

    def total_flops(self, every_tokens: int) -> float:
        """Count the FLOPs of the whole run, to tell long runs from short ones of the same study.

        Args:
            every_tokens: Data tokens between evaluations.

        Returns:
            FLOPs; where the budget is in minutes, those of the final scores alone.
        """
        return (self.training_flops or 0.0) + (self.evaluations_flops(every_tokens) or 0.0) + self.final_flops


def cost_of(recipe: Recipe, text: PreparedText) -> Cost:
    """Count what a run costs.

    Args:
        recipe: Its recipe.
        text: Its prepared text.

    Returns:
        The cost; the same on every machine.

    Raises:
        RecipeError: The shape or a mode does not fit the recipe.
        DataError: There is too little text to score.
    """
    scoring, context, rows = recipe.scoring, recipe.data.context, text.vocabulary.predictable
    shape = shape_of(recipe.model, text.vocabulary.size)
    names = recipe.controller.objectives()
    try:
        workloads = [component_of("objective", name).workload(context) for name in names]
        modes = modes_of(names, context)
    except ValueError as error:
        raise RecipeError(f"controller: {error} (data.context)") from None
    price = min(training_flops(shape, work, head_rows=rows) for work in workloads) / context
    on_the_way = [name for name in modes if name != "l2r" or scoring.dev_positions]

    def flops(split: Literal["dev", "test"], windows: int, chosen: Sequence[str], draws: int, positions: int) -> float:
        lengths_W = held_out(text, split, context, windows).lengths_W
        return sum(score_flops(shape, rows, lengths_W, context, name, draws, positions) for name in chosen)

    final = (scoring.test_windows, modes, scoring.test_draws, scoring.test_positions)
    currency, amount = recipe.budget.currency, recipe.budget.amount
    return Cost(
        training_flops={"flops": amount, "tokens": amount * price}.get(currency),
        evaluation_flops=flops("dev", scoring.dev_windows, on_the_way, scoring.dev_draws, scoring.dev_positions),
        final_flops=flops("dev", *final) + flops("test", *final),
        flops_per_token=price,
        batch_tokens=recipe.training.batch_tokens,
        train_tokens=len(text.train_tokens(with_control=not recipe.controller.uses_control_text)),
    )


def score_flops(
    shape: Shape,
    head_rows: int,
    lengths_W: Ints,
    context: int,
    name: str,
    draws: int,
    positions: int,
    starts_W: Ints | None = None,
) -> float:
    """Count the FLOPs of scoring windows under a procedure.

    Args:
        shape: The backbone.
        head_rows: Vocabulary rows that the head computes.
        lengths_W: End of the scored tokens of each window.
        context: T.
        name: The procedure.
        draws: K for `nelbo`.
        positions: Positions per window for `l2r`.
        starts_W: First scored token of each window; zeros if left out.

    Returns:
        FLOPs.
    """
    procedure = procedure_of(name, draws=draws, positions=positions)
    count, work = procedure.work(np.asarray(lengths_W), context, starts_W)
    return count * forward_flops(shape, work, head_rows=head_rows)


def common_interval(costs: Iterable[Cost]) -> int:
    """Give the interval between evaluations that every one of several runs can afford, so that they share a grid.

    Args:
        costs: What the runs cost.

    Returns:
        Data tokens.
    """
    return max(cost.interval_tokens for cost in costs)


def modes_of(objectives: Sequence[str], context: int) -> tuple[str, ...]:
    """List the procedures that a model trained on these objectives can be scored by.

    Args:
        objectives: Canonical names, such as "autoregressive" and "block(16)".
        context: T.

    Returns:
        Names of procedures, each once.
    """
    return tuple(dict.fromkeys(mode for name in objectives for mode in component_of("objective", name).modes(context)))
