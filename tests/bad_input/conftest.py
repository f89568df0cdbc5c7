"""A folder, a recipe and a command that is expected to be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from tiny_runs import read


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, and a cache that keeps what has been prepared of it."""
    folder = tmp_path_factory.mktemp("bad-input")
    tiny_runs.write_text(folder / "text.jsonl")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own."""
    monkeypatch.setenv("CROSSOVER_CACHE", str(place / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(here: Path, place: Path) -> Callable[..., Path]:
    """Write recipe.yaml."""

    def make(**changes: Any) -> Path:
        return tiny_runs.write_recipe(here / "recipe.yaml", place / "text.jsonl", **changes)

    return make


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give `crossover train recipe.yaml --run-dir run`; returns exit code, output and errors."""

    def give(*more: object) -> tuple[int, str, str]:
        code = tiny_runs.command(monkeypatch, "train", "recipe.yaml", "--run-dir", "run", *more)
        return code, *capsys.readouterr()

    return give


@pytest.fixture
def refused(train: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Give the command, which must be refused in one message; returns the message."""

    def give(*more: object) -> str:
        code, _, said = train(*more)
        assert code == 2, said
        assert said.startswith("error: ") and "Traceback" not in said
        assert len(said) < 1500
        return said

    return give


@pytest.fixture
def interrupted(here: Path, recipe: Callable[..., Path], train: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped before its 25th step, with checkpoints at steps 10 and 20."""
    from crossover.training.step import Stepper

    recipe()
    run = Stepper.run

    def stopping(self: Stepper, number: int, *arguments: Any, **options: Any) -> Any:
        if number == 24:
            raise KeyboardInterrupt
        return run(self, number, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "run", stopping)
        code, _, said = train()
    assert code == 130 and "the same command goes on" in said
    assert read(here / "run" / "status.json")["state"] == "interrupted"
    assert sorted(path.name for path in (here / "run" / "checkpoints").iterdir()) == [
        "step-000000010",
        "step-000000020",
    ]
    return here / "run"
