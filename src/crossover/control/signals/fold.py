"""Several signals as one: every row goes to each of them, and their readings lie side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crossover.control.signals.scene import Row, Scene, Signal, State
from crossover.records import Reading
from crossover.registry import component_of


@dataclass(frozen=True)
class Fold:
    """Folds the rows of signals.jsonl into the states of several signals.

    Args:
        signals: The signals, no two of one name.
    """

    signals: tuple[Signal, ...]

    def __post_init__(self) -> None:
        names = [_name(signal) for signal in self.signals]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"signals: {', '.join(twice)} named more than once; name each signal once")

    @property
    def probes(self) -> tuple[str, ...]:
        """Kinds of rows that any of the signals needs, each once."""
        return tuple(dict.fromkeys(probe for signal in self.signals for probe in signal.probes))

    def update(self, state: State, record: Row) -> State:
        """Show one row to every signal.

        Args:
            state: State of each signal by its name; empty at the start.
            record: A row of signals.jsonl.

        Returns:
            The new states; JSON values only.
        """
        return {_name(signal): signal.update(state.get(_name(signal), {}), record) for signal in self.signals}

    def readings(self, state: State, scene: Scene) -> dict[str, Reading]:
        """Collect what the signals say.

        Args:
            state: State of each signal by its name; empty before the first row.
            scene: The run around them.

        Returns:
            Readings by name, in the order of the signals.

        Raises:
            ValueError: Two signals give a reading of one name.
        """
        found: dict[str, Reading] = {}
        for signal in self.signals:
            mine = signal.readings(state.get(_name(signal), {}), scene)
            twice = sorted(found.keys() & mine.keys())
            if twice:
                raise ValueError(f"signal '{_name(signal)}' gives {', '.join(twice)}, which another signal gives too")
            found.update(mine)
        return found


def fold_of(names: Sequence[str]) -> Fold:
    """Make the fold of some registered signals.

    Args:
        names: Names of signals, or calls such as `curvature(evaluations=6)`.

    Returns:
        The fold.

    Raises:
        RecipeError: A signal does not exist or a setting of it is wrong.
        ValueError: A signal is named twice.
    """
    return Fold(tuple(component_of("signal", name) for name in names))


def _name(signal: Signal) -> str:
    return str(getattr(type(signal), "component_name", type(signal).__name__))
