"""The text of the tiny runs, prepared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from crossover.recipe import Recipe, resolve


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of eighty short documents."""
    return tiny_runs.write_text(tmp_path_factory.mktemp("corpus") / "text.jsonl")


@pytest.fixture
def recipe_of(corpus: Path) -> Callable[..., Recipe]:
    """Resolve a tiny recipe with changes."""

    def make(**changes: Any) -> Recipe:
        return resolve(tiny_runs.tree(corpus, **changes))

    return make


@pytest.fixture(scope="session")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Any]:
    """Prepare a recipe's text in a cache of the test session's own."""
    from crossover.data.prepare import prepare

    cache = tmp_path_factory.mktemp("cache")

    def make(recipe: Recipe) -> Any:
        return prepare(recipe.data, seed=0, cache=cache)

    return make


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare every run the look at the machine's speed, by which it guesses how long it will take."""
    monkeypatch.setattr("crossover.training.build.matmul_flops_per_second", lambda *given, **options: 1e10)


@pytest.fixture
def trained(
    prepared: Callable[[Recipe], Any], recipe_of: Callable[..., Recipe], tmp_path: Path
) -> Callable[..., tiny_runs.Notes]:
    """Train a tiny recipe in this process, in a folder of the test's own; returns what was recorded."""
    from crossover.training.train import train

    def make(run: str = "run", recorded: Any = None, notes: tiny_runs.Notes | None = None, **changes: Any) -> Any:
        recipe = recipe_of(**changes)
        notes = notes or tiny_runs.Notes()
        train(recipe, prepared(recipe), tmp_path / run, notes, recorded)
        return notes

    return make


@pytest.fixture
def workshop(prepared: Callable[[Recipe], Any], recipe_of: Callable[..., Recipe]) -> Callable[..., Any]:
    """Build the parts of a tiny run."""
    from crossover.training.build import build_workshop

    def make(**changes: Any) -> Any:
        recipe = recipe_of(**changes)
        return build_workshop(recipe, prepared(recipe), None)

    return make
