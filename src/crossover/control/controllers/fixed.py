"""Controllers that follow a plan written beforehand: the baselines of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crossover.control.controllers.watching import names_of
from crossover.records import Decision, Mix, Progress, Reading, Watching
from crossover.registry import MixField, register

State = Mapping[str, Any]


class Controller(Protocol):
    """Readings in, a decision out: pure, without torch and without a clock."""

    @property
    def uses_control_text(self) -> bool:
        """Whether it needs held-out control text; every other arm trains on that text."""
        ...

    @property
    def watching(self) -> Watching | None:
        """What it wants to be told, or None: a plan needs no probes."""
        ...

    @property
    def first_change_epochs(self) -> float:
        """Epoch before which the mix cannot change by plan; 0 when there is none, or no plan."""
        ...

    @property
    def horizon_free(self) -> bool:
        """Whether it decides the same however long the run will be: then a shorter run is the beginning of a longer.

        Such a controller must not ask for weights to be kept and gone back to: they are no part of that beginning.
        """
        ...

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        ...

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Decide the mix.

        Args:
            state: What the controller remembers, JSON values only; empty at the start.
            readings: Signals by name.
            progress: Where the run stands.

        Returns:
            The new state and the decision.
        """
        ...


@register("controller", "constant")
@dataclass(frozen=True)
class Constant:
    """One mix from start to end.

    Args:
        mix: The mix.
    """

    mix: MixField
    uses_control_text = False
    watching = None
    first_change_epochs = 0.0
    horizon_free = True

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        return tuple(name for name, _ in self.mix.shares)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Keep the mix."""
        return state, Decision(self.mix, f"the recipe asks for {self.mix.describe()} throughout")


@register("controller", "switch")
@dataclass(frozen=True)
class Switch:
    """One mix up to an epoch, another after it.

    Args:
        at_epochs: Times that the text has been seen when the mix changes.
        before: The mix up to there.
        after: The mix from there on.
    """

    at_epochs: float
    before: MixField
    after: MixField
    uses_control_text = False
    watching = None
    horizon_free = True

    def __post_init__(self) -> None:
        if self.at_epochs <= 0:
            raise ValueError(f"at_epochs must be above 0, not {self.at_epochs}; for one mix use constant")

    @property
    def first_change_epochs(self) -> float:
        """Epoch of the switch."""
        return self.at_epochs

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        return names_of(self.before, self.after)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Change the mix once the text has been seen often enough."""
        seen = f"the text has been seen {progress.epochs:.2f} times"
        if progress.epochs < self.at_epochs:
            return state, Decision(self.before, f"{seen}; {self.before.describe()} until {self.at_epochs:g} epochs")
        return state, Decision(
            self.after, f"{seen}, the recipe's {self.at_epochs:g}: shifting to {self.after.describe()}"
        )


@register("controller", "ramp")
@dataclass(frozen=True)
class Ramp:
    """One mix, then shares that move linearly, then another mix.

    Args:
        from_epochs: Where the shares begin to move.
        to_epochs: Where they arrive.
        before: The mix up to the ramp.
        after: The mix after it.
    """

    from_epochs: float
    to_epochs: float
    before: MixField
    after: MixField
    uses_control_text = False
    watching = None
    horizon_free = True

    def __post_init__(self) -> None:
        if not 0 <= self.from_epochs < self.to_epochs:
            raise ValueError(f"0 <= from_epochs < to_epochs must hold, not {self.from_epochs}, {self.to_epochs}")

    @property
    def first_change_epochs(self) -> float:
        """Epoch where the ramp begins."""
        return self.from_epochs

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        return names_of(self.before, self.after)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Move the shares in proportion to the way through the ramp."""
        way = (progress.epochs - self.from_epochs) / (self.to_epochs - self.from_epochs)
        mix = self.before.blend(self.after, min(1.0, max(0.0, way)))
        if way <= 0:
            phase = f"before the ramp at {self.from_epochs:g} epochs"
        elif way < 1:
            phase = f"{100 * way:.0f}% through the ramp of {self.from_epochs:g} to {self.to_epochs:g} epochs"
        else:
            phase = f"after the ramp, which ended at {self.to_epochs:g} epochs"
        details = {"phase": "ramp", "way": way} if 0 < way < 1 else {}
        seen = f"the text has been seen {progress.epochs:.2f} times"
        return state, Decision(mix, f"{seen}, {phase}: {mix.describe()}", details)


@register("controller", "block_growth")
@dataclass(frozen=True)
class BlockGrowth:
    """Block diffusion whose blocks grow in fixed steps, from next-token training to the whole window.

    Args:
        every_epochs: How long each size but the last is trained.
        sizes: Block sizes in order; 1 is `autoregressive` and 0 the whole window, `masked`.
    """

    every_epochs: float
    sizes: tuple[int, ...] = (1, 4, 16, 0)
    uses_control_text = False
    watching = None
    horizon_free = True

    def __post_init__(self) -> None:
        if self.every_epochs <= 0:
            raise ValueError(f"every_epochs must be above 0, not {self.every_epochs}")
        if len(self.sizes) < 2 or len(set(self.sizes)) < len(self.sizes) or min(self.sizes) < 0:
            raise ValueError(f"sizes must be two or more different sizes, 0 for the whole window, not {self.sizes}")

    @property
    def first_change_epochs(self) -> float:
        """Epoch of the last step: a budget that ends before it would never train the last size."""
        return self.every_epochs * (len(self.sizes) - 1)

    def objectives(self) -> tuple[str, ...]:
        """Name every objective that a decision may ask for."""
        return tuple({0: "masked", 1: "autoregressive"}.get(size, f"block({size})") for size in self.sizes)

    def decide(self, state: State, readings: Mapping[str, Reading], progress: Progress) -> tuple[State, Decision]:
        """Take the size of the present stretch of epochs."""
        stage = min(len(self.sizes) - 1, int(progress.epochs / self.every_epochs + 1e-9))
        mix = Mix(((self.objectives()[stage], 1.0),))
        reason = f"the text has been seen {progress.epochs:.2f} times, {self.every_epochs:g} per size: {mix.describe()}"
        return state, Decision(mix, reason)
