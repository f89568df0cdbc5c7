"""What a sink is, what it is told, and how a missing package is told of."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crossover.errors import RunError


@dataclass(frozen=True)
class Place:
    """What a sink is told when a run begins or goes on.

    Args:
        folder: A folder of the run in which the sink may make files.
        run: The run's name.
        recipe: The resolved recipe as a plain mapping.
        facts: The manifest.
        memory: What the view of an earlier start of this run wanted to be remembered; empty at the first.
    """

    folder: Path
    run: str
    recipe: Mapping[str, Any]
    facts: Mapping[str, Any]
    memory: Mapping[str, Any] = field(default_factory=dict)


class View(Protocol):
    """A sink that is open for one run."""

    @property
    def where(self) -> str:
        """Say where a person looks at it."""
        ...

    @property
    def lag_seconds(self) -> float:
        """Say how long after `flush` something told may still be lost if the process is killed."""
        ...

    @property
    def memory(self) -> Mapping[str, Any]:
        """Give what the next start of this run must know, as JSON values."""
        ...

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Show numbers of a step, by names such as `train/loss_nats`."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Show a sentence of a step."""
        ...

    def cut_back(self, step: int) -> None:
        """Learn that what was shown after a step is void, and that the steps after it come again."""
        ...

    def flush(self) -> None:
        """Make what was told so far durable, as far as the tool allows."""
        ...

    def close(self, failed: bool) -> None:
        """End it; a run that failed or was stopped may go on later."""
        ...


class Sink(Protocol):
    """A component `@register("sink", name)`: its fields are its settings."""

    @property
    def identity(self) -> str:
        """Name the place that the view is in; a sink that moves to another one is told everything again."""
        ...

    def require(self) -> None:
        """Refuse a run that this sink could not show, before anything is written.

        Raises:
            RunError: Its package is not installed, or what it needs from its user is missing.
        """
        ...

    def open(self, place: Place) -> View:
        """Begin a view, or take up the one that `place.memory` tells of."""
        ...


def load_package(package: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        package: Its name; a sub-module may be named.
        extra: The extra of `crossover-lm` that installs it.

    Returns:
        The module.

    Raises:
        RunError: It is not installed, or cannot be imported.
    """
    top = package.split(".")[0]
    try:
        importlib.import_module(top)
        return importlib.import_module(package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            why = f"needs the package {top}, which is not installed"
        else:
            why = f"the package {top} is installed but cannot be imported ({error})"
        raise RunError(f"sinks: {extra}: {why}; pip install 'crossover-lm[{extra}]', or take it out of sinks") from None
