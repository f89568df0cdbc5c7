"""A finished run, and commands as a person gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_runs


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, a recipe, a cache, and a finished run of both kinds of objective."""
    folder = tmp_path_factory.mktemp("cli")
    source = tiny_runs.write_text(folder / "text.jsonl")
    mix = {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}
    recipe = tiny_runs.write_recipe(folder / "recipe.yaml", source, controller=mix, budget={"tokens": 8192})
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CROSSOVER_CACHE", str(folder / "cache"))
        assert tiny_runs.command(patched, "train", recipe, "--run-dir", folder / "run") == 0
    return folder


@pytest.fixture
def crossover(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Give a command in this process; returns exit code, output and errors."""
    monkeypatch.setenv("CROSSOVER_CACHE", str(place / "cache"))
    monkeypatch.chdir(place)

    def give(*arguments: object) -> tuple[int, str, str]:
        code = tiny_runs.command(monkeypatch, *arguments)
        return code, *capsys.readouterr()

    return give


@pytest.fixture
def refused(crossover: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Give a command that must be refused in one message; returns the message."""

    def give(*arguments: object) -> str:
        code, out, said = crossover(*arguments)
        assert (code, out) == (2, ""), (code, out, said)
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    return give
