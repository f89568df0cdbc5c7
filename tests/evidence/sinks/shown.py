"""A sink that keeps what it is shown, and one that breaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crossover.evidence.sinks.view import Place
from crossover.registry import register


@dataclass
class Shown:
    """What a service would show: numbers and sentences by step; some of it may not have left the process yet."""

    place: Place | None = None
    kept: list[tuple[int, Any]] = field(default_factory=list)
    fresh: list[tuple[int, Any]] = field(default_factory=list)
    calls: int = 0
    fails_at: int = -1
    error: type[BaseException] = RuntimeError
    closed: list[bool] = field(default_factory=list)
    lag_seconds: float = 0.0
    where = "in the test"
    memory: Mapping[str, Any] = field(default_factory=lambda: {"id": 7})

    def _called(self) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise self.error("no more\nof this")

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._called()
        self.fresh.append((step, dict(values)))

    def text(self, step: int, name: str, text: str) -> None:
        self._called()
        self.fresh.append((step, {name: text}))

    def cut_back(self, step: int) -> None:
        self._called()
        self.kept = [row for row in [*self.kept, *self.fresh] if row[0] <= step]
        self.fresh = []

    def flush(self) -> None:
        self._called()
        if self.lag_seconds == 0:
            self.kept, self.fresh = [*self.kept, *self.fresh], []

    def close(self, failed: bool) -> None:
        self.kept, self.fresh = [*self.kept, *self.fresh], []
        self.closed.append(failed)

    def series(self, name: str) -> list[tuple[int, Any]]:
        """The points of one curve."""
        return [(step, values[name]) for step, values in [*self.kept, *self.fresh] if name in values]


# What the sinks of a recipe open, by the name in the recipe.
OPENED: dict[str, Shown] = {}


@register("sink", "shown_of_test")
@dataclass(frozen=True)
class ShownOfTest:
    """Opens what a test has put under its label."""

    label: str = "it"
    missing: str = ""

    @property
    def identity(self) -> str:
        return self.label

    def require(self) -> None:
        if self.missing:
            raise AssertionError(self.missing)

    def open(self, place: Place) -> Shown:
        view = OPENED.setdefault(self.label, Shown())
        view._called()
        view.place = place
        return view
