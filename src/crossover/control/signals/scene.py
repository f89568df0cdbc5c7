"""What every signal is told, and what every signal is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crossover.records import Mix, Reading

State = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """What stands around a signal when it is read: facts of the run that are no measurements.

    Args:
        context: Data tokens of a window, T.
        unique_tokens: Distinct tokens of training text.
        gears: Objectives that a decision may ask for, by canonical name.
        flops_per_token: Useful training FLOPs of a data token under each objective.
        mix: The shares that hold now.
    """

    context: int
    unique_tokens: int
    gears: tuple[str, ...]
    flops_per_token: Mapping[str, float]
    mix: Mix


class Signal(Protocol):
    """Measured rows in, readings out: pure, without torch and without a clock."""

    @property
    def probes(self) -> tuple[str, ...]:
        """Kinds of rows that it needs ("loss", "gradient", "novelty", "clip"), so that nothing else is measured."""
        ...

    def update(self, state: State, record: Row) -> State:
        """Take in one row of signals.jsonl.

        Args:
            state: What the signal remembers, JSON values only; empty at the start.
            record: Any row; one that is not its own leaves the state as it is.

        Returns:
            The new state; the old one is not changed.
        """
        ...

    def readings(self, state: State, scene: Scene) -> Mapping[str, Reading]:
        """Say what the rows so far amount to.

        Args:
            state: The state after the last row.
            scene: The run around it.

        Returns:
            Readings by name; one that nothing is known of yet is left out or not `ready`.
        """
        ...
