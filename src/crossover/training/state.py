"""Everything about a run that is not a tensor: the clock, the ledger, and what the controller remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from typing import Any

from crossover.errors import CheckpointError
from crossover.recipe import Recipe
from crossover.records import Mix, Progress


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` steps.

    Args:
        step: Optimizer steps taken.
        data_tokens: Tokens of text seen, repeats counted.
        flops: Useful training FLOPs spent.
        flops_6nd: The same by 6 x parameters x data tokens.
        exposures: Data tokens that each objective received.
        flops_by_objective: Useful FLOPs of each objective.
        evaluation_flops: Useful FLOPs spent on scoring; not part of the budget, which is for training.
        evaluation_seconds: Wall-clock seconds of that scoring.
        seconds: Wall-clock seconds, summed over resumptions.
        debts: What the dealer owes each objective, in slices.
        mix: The mix in force.
        controller: What the controller remembers.
        best: Step and bits per byte of the best dev evaluation of each procedure.
        next_evaluation: Data tokens at which the next evaluation is due.
        next_checkpoint: Data tokens at which the next checkpoint is due.
        next_decision: Data tokens at which the controller is asked next.
        skipped: Steps whose loss or gradient was not finite.
        rollbacks: Times that a run of such steps sent the weights back.
        probe_flops: Useful FLOPs spent on probes; part of `flops`, since the budget pays for them.
        probe_seconds: Wall-clock seconds of probes and of noting what was seen.
        probe_turn: Where the round of probes stands.
        signals: What each signal remembers.
        rewarm: Data tokens at which the learning rate began to rise again, and over how many it does.
        residual_dropout: The rate that the controller has set, or None for the recipe's.
        retreats: Times that a shift was taken back.
    """

    step: int = 0
    data_tokens: int = 0
    flops: float = 0.0
    flops_6nd: float = 0.0
    exposures: Mapping[str, int] = field(default_factory=dict)
    flops_by_objective: Mapping[str, float] = field(default_factory=dict)
    evaluation_flops: float = 0.0
    evaluation_seconds: float = 0.0
    seconds: float = 0.0
    debts: Mapping[str, float] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=dict)
    controller: Mapping[str, Any] = field(default_factory=dict)
    best: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    next_evaluation: int = 0
    next_checkpoint: int = 0
    next_decision: int = 0
    skipped: int = 0
    rollbacks: int = 0
    probe_flops: float = 0.0
    probe_seconds: float = 0.0
    probe_turn: Mapping[str, Any] = field(default_factory=dict)
    signals: Mapping[str, Any] = field(default_factory=dict)
    rewarm: tuple[int, int] = (0, 0)
    residual_dropout: float | None = None
    retreats: int = 0

    def to_tree(self) -> dict[str, Any]:
        """Write the state as a plain mapping of JSON values."""
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> State:
        """Read a state back.

        Raises:
            CheckpointError: It was written by a version of the program that keeps other things.
        """
        known = {item.name for item in fields(cls)}
        if not isinstance(tree, Mapping):
            raise CheckpointError("the checkpoint says nothing of where its run stood; delete it")
        if set(tree) != known:
            odd = ", ".join(sorted(set(tree) ^ known))
            raise CheckpointError(f"the checkpoint is of another version of crossover ({odd}); use that version")
        wrong = next((item.name for item in fields(cls) if not _is_of_kind(tree[item.name], item)), None)
        if wrong is not None:
            raise CheckpointError(f"the checkpoint's {wrong} is of another kind than is written there; delete it")
        return cls(**{**tree, "rewarm": tuple(tree["rewarm"])})

    def spent(self, counts: Mapping[str, int], flops: Mapping[str, float], flops_6nd: float) -> State:
        """Charge one step.

        Args:
            counts: Data tokens of each objective in the step.
            flops: Useful FLOPs of each objective in the step.
            flops_6nd: The step's FLOPs by the 6ND rule.

        Returns:
            The state after it.
        """
        return replace(
            self,
            step=self.step + 1,
            data_tokens=self.data_tokens + sum(counts.values()),
            flops=self.flops + sum(flops.values()),
            flops_6nd=self.flops_6nd + flops_6nd,
            exposures=_add(self.exposures, counts),
            flops_by_objective=_add(self.flops_by_objective, flops),
        )

    @property
    def present_mix(self) -> Mix:
        """The mix in force."""
        return Mix(tuple(self.mix.items()))


def _is_of_kind(value: Any, item: Field[Any]) -> bool:
    """Say whether a value is of the kind that its field begins with."""
    if item.name in ("mix", "exposures", "flops_by_objective", "debts"):
        return isinstance(value, Mapping) and all(type(each) in (int, float) for each in value.values())
    begins = item.default if item.default is not MISSING else {}
    if begins is None:
        return value is None or type(value) in (int, float)
    kinds = {int: (int,), float: (int, float), tuple: (list, tuple)}
    return type(value) in kinds.get(type(begins), (dict,))


def _add(total: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {name: total.get(name, 0) + more.get(name, 0) for name in dict.fromkeys([*total, *more])}


@dataclass(frozen=True)
class Budget:
    """What a run may spend, in one currency, after minutes have been converted.

    Args:
        currency: "tokens" or "flops".
        amount: How much.
        stated: What the recipe said.
    """

    currency: str
    amount: float
    stated: Mapping[str, float]

    def fraction(self, state: State) -> float:
        """Give the part of the budget that is spent."""
        return (state.data_tokens if self.currency == "tokens" else state.flops) / self.amount

    def tokens(self, flops_per_token: float) -> float:
        """Convert the budget to data tokens at a price per token."""
        return self.amount if self.currency == "tokens" else self.amount / flops_per_token


def progress_of(
    state: State,
    recipe: Recipe,
    budget: Budget,
    unique_tokens: int,
    flops_per_token: float,
    prices: Mapping[str, float],
) -> Progress:
    """Say where a run stands, for its controller.

    Args:
        state: The run's state.
        recipe: Its recipe.
        budget: Its budget.
        unique_tokens: Distinct tokens of its training text.
        flops_per_token: Price of a data token under the present mix.
        prices: Price of a data token under each objective.

    Returns:
        The progress record.
    """
    training = recipe.training
    return Progress(
        data_tokens=state.data_tokens,
        unique_tokens=unique_tokens,
        budget_fraction=budget.fraction(state),
        planned_epochs=budget.tokens(flops_per_token) / unique_tokens,
        exposures=dict(state.exposures),
        step=state.step,
        budget_flops=budget.amount if budget.currency == "flops" else None,
        changeable_fraction=training.learning_rate.decay_from,
        warmup_tokens=training.learning_rate.warmup_tokens,
        batch_tokens=training.batch_tokens,
        context=recipe.data.context,
        residual_dropout=recipe.model.residual_dropout,
        seed=recipe.seed,
        flops_per_token=prices,
    )
