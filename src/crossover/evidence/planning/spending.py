"""What a recipe's budget buys: FLOPs of a token, tokens, epochs, steps, and the mixes that its controller plans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossover.control.asking import DECISIONS_PER_EPOCH
from crossover.errors import RecipeError
from crossover.evidence.planning.text import TextFacts
from crossover.model.shapes import Shape, Workload, active_parameters, training_flops
from crossover.recipe import Recipe
from crossover.records import Mix, Progress
from crossover.registry import component_of

# Next-token training, masked, and a block of this many tokens are always priced beside what the recipe uses.
BLOCK = 16
# A long run is folded in at most so many stretches.
MOST_STRETCHES = 2000


@dataclass(frozen=True)
class Phase:
    """A stretch of the run under one mix.

    Args:
        from_epochs: Where it begins.
        to_epochs: Where it ends.
        mix: Shares of the objectives.
        reason: Why, as the controller says it.
    """

    from_epochs: float
    to_epochs: float
    mix: Mapping[str, float]
    reason: str


@dataclass(frozen=True)
class Spending:
    """What the budget buys.

    Args:
        currency: What the recipe states the budget in.
        amount: How much of it.
        budget_flops: The same in FLOPs, minutes converted; None where it is in tokens.
        flops_per_token: Useful training FLOPs of a data token by objective: the recipe's, and those to compare with.
        own_flops_per_token: Under the recipe's mix, averaged over the run.
        tokens: Data tokens, repeats counted.
        epochs: Times that the text is seen.
        steps: Optimizer steps.
        flops: Useful training FLOPs, probes included.
        probe_flops: Those of probes: all that the controller allows, which is about what it spends.
        flops_6nd: Training by 6 x parameters (active ones) x tokens.
        exposures: Epochs of each objective.
        phases: The mixes in turn, as far as they are planned.
        unplanned: Why the mixes may come out otherwise; empty where they follow a plan.
    """

    currency: str
    amount: float
    budget_flops: float | None
    flops_per_token: Mapping[str, float]
    own_flops_per_token: float
    tokens: float
    epochs: float
    steps: int
    flops: float
    probe_flops: float
    flops_6nd: float
    exposures: Mapping[str, float]
    phases: tuple[Phase, ...]
    unplanned: str

    def tokens_under(self, objective: str) -> float:
        """Give the data tokens that the same budget buys under one objective alone."""
        return self.tokens if self.budget_flops is None else self.budget_flops / self.flops_per_token[objective]

    @property
    def wanted_tokens(self) -> float:
        """Data tokens that the budget buys under the recipe's mix, before the last step is made whole."""
        return self.amount if self.budget_flops is None else self.budget_flops * self.tokens / self.flops


def workloads_of(recipe: Recipe, *, compared: bool = False) -> dict[str, Workload]:
    """Say what a window asks of the model under each objective of a recipe.

    Args:
        recipe: The resolved recipe.
        compared: Add what a plan compares with: next-token, masked and block training.

    Returns:
        Workloads by objective.

    Raises:
        RecipeError: An objective does not fit the context.
    """
    context, names = recipe.data.context, list(recipe.controller.objectives())
    if compared:
        block, watching = math.gcd(BLOCK, context), recipe.controller.watching
        blocks = [f"block({block})"] if 1 < block < context else []
        # Controllers are told the prices of what they look at, too.
        names = ["autoregressive", "masked", *blocks, *names, *(watching.gears if watching else ())]
    try:
        return {name: component_of("objective", name).workload(context) for name in dict.fromkeys(names)}
    except ValueError as error:
        raise RecipeError(f"controller: {error} (data.context)") from None


def prices_of(recipe: Recipe, shape: Shape, predictable: int) -> dict[str, float]:
    """Give the useful training FLOPs of a data token under each objective, those to compare with first.

    Args:
        recipe: The resolved recipe.
        shape: Its backbone.
        predictable: Vocabulary rows that the head computes.

    Returns:
        FLOPs by objective, as `model.shapes.training_flops` counts them.

    Raises:
        RecipeError: An objective does not fit the context.
    """
    context = recipe.data.context
    return {
        name: training_flops(shape, work, head_rows=predictable) / context
        for name, work in workloads_of(recipe, compared=True).items()
    }


def spending_of(recipe: Recipe, text: TextFacts, shape: Shape, *, flops_per_second: float) -> Spending:
    """Follow a recipe's controller through its budget, without training.

    Args:
        recipe: The resolved recipe.
        text: Its text.
        shape: Its backbone.
        flops_per_second: Useful FLOPs per second of the machine; converts a budget in minutes.

    Returns:
        What the budget buys. A controller that reads signals is followed as if they said nothing.

    Raises:
        RecipeError: An objective does not fit the context.
    """
    prices = prices_of(recipe, shape, text.predictable)
    budget = recipe.budget
    in_tokens = budget.currency == "tokens"
    amount = budget.amount * 60 * flops_per_second if budget.currency == "minutes" else budget.amount
    fold = _Fold(recipe, text, prices, amount, in_tokens)
    fold.run()
    unplanned = "it reads signals, so it may move otherwise" if recipe.controller.watching is not None else ""
    return Spending(
        currency=budget.currency,
        amount=budget.amount,
        budget_flops=None if in_tokens else amount,
        flops_per_token=prices,
        own_flops_per_token=fold.flops / (1 + fold.probes) / fold.tokens,
        tokens=fold.tokens,
        epochs=fold.tokens / text.train_tokens,
        steps=round(fold.tokens / recipe.training.batch_tokens),
        flops=fold.flops,
        probe_flops=fold.flops * fold.probes / (1 + fold.probes),
        flops_6nd=6.0 * active_parameters(shape) * fold.tokens,
        exposures={name: count / text.train_tokens for name, count in fold.exposures.items()},
        phases=tuple(fold.phases),
        unplanned=unplanned,
    )


class _Fold:
    """A run without training: the controller is asked, tokens and FLOPs are charged, until the budget is spent."""

    def __init__(
        self, recipe: Recipe, text: TextFacts, prices: Mapping[str, float], amount: float, in_tokens: bool
    ) -> None:
        self.recipe, self.text, self.prices, self.amount, self.in_tokens = recipe, text, prices, amount, in_tokens
        self.tokens, self.flops = 0, 0.0
        self.exposures: dict[str, float] = {}
        self.phases: list[Phase] = []
        self.mix: Mix | None = None
        self.memory: Mapping[str, Any] = {}
        watching = recipe.controller.watching
        # Probes have a credit of this share of the training FLOPs, and they use it up.
        self.probes = watching.share if watching is not None and watching.signals else 0.0

    def run(self) -> None:
        """Spend the budget, in whole steps, one at least."""
        batch, unique = self.recipe.training.batch_tokens, self.text.train_tokens
        most = self._tokens(min(self.prices[name] for name in self.recipe.controller.objectives()))
        stretch = max(batch, unique // DECISIONS_PER_EPOCH, most / MOST_STRETCHES)
        while self._fraction() < 1:
            mix, reason = self._ask()
            price = sum(share * self.prices[name] for name, share in mix.shares) * (1 + self.probes)
            # Up to the next place where the controller is asked, but not beyond the end.
            left = self._tokens(price) * (1 - self._fraction())
            steps = max(1, math.ceil(min(stretch, left) / batch - 1e-9))
            self._charge(mix, reason, steps * batch, price)

    def _ask(self) -> tuple[Mix, str]:
        frozen = self._fraction() >= self.recipe.training.learning_rate.decay_from
        if self.mix is not None and frozen:
            return self.mix, self.phases[-1].reason
        self.memory, decision = self.recipe.controller.decide(self.memory, {}, self._progress())
        self.mix = decision.mix
        return decision.mix, decision.reason

    def _charge(self, mix: Mix, reason: str, tokens: int, price: float) -> None:
        before = self.tokens / self.text.train_tokens
        self.tokens += tokens
        self.flops += tokens * price
        for name, share in mix.shares:
            self.exposures[name] = self.exposures.get(name, 0.0) + share * tokens
        after = self.tokens / self.text.train_tokens
        if self.phases and self.phases[-1].mix == dict(mix.shares):
            last = self.phases.pop()
            before, reason = last.from_epochs, last.reason
        self.phases.append(Phase(before, after, dict(mix.shares), reason))

    def _tokens(self, price: float) -> float:
        return self.amount if self.in_tokens else self.amount / price

    def _fraction(self) -> float:
        return (self.tokens if self.in_tokens else self.flops) / self.amount

    def _progress(self) -> Progress:
        recipe, training = self.recipe, self.recipe.training
        own = {name: self.prices[name] for name in recipe.controller.objectives()}
        price = sum(share * self.prices[name] for name, share in self.mix.shares) if self.mix else max(own.values())
        return Progress(
            data_tokens=self.tokens,
            unique_tokens=self.text.train_tokens,
            budget_fraction=self._fraction(),
            planned_epochs=self._tokens(price) / self.text.train_tokens,
            exposures={name: round(count) for name, count in self.exposures.items()},
            step=self.tokens // training.batch_tokens,
            budget_flops=None if self.in_tokens else self.amount,
            changeable_fraction=training.learning_rate.decay_from,
            warmup_tokens=training.learning_rate.warmup_tokens,
            batch_tokens=training.batch_tokens,
            context=recipe.data.context,
            residual_dropout=recipe.model.residual_dropout,
            seed=recipe.seed,
            flops_per_token=self.prices,
        )
