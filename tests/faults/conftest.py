"""A tiny run as the subject of faults; the faults themselves are those of `benchmarks/chaos.py`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from injected.kinds import MOUNTS, kinds_here
from injected.scene import Scene, Stage
from injected.subject import Subject


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A subject whose undisturbed runs are made when they are first asked for."""
    with Subject(tmp_path_factory.mktemp("faults")) as subject:
        yield Stage(subject)


@pytest.fixture
def scene(stage: Stage, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Scene]:
    """Make the place of one fault."""

    def make(seed: int = 0, name: str = "run") -> Scene:
        return Scene(stage, tmp_path / name, random.Random(f"{request.node.name} {seed}"))

    return make


@pytest.fixture
def goes_on(scene: Callable[..., Scene]) -> Callable[..., int]:
    """Inject a fault, let the run go on, and hold it against the undisturbed one; gives the faults that took effect."""

    def play(kind: Callable[..., int], seed: int = 0, name: str = "run", **where: Any) -> int:
        made = scene(seed, name)
        hits = kind(made, **where)
        verdict = made.end()
        assert (verdict.lost_bytes, verdict.wrong) == (0, ()), (kind.__name__, where)
        return hits

    return play


@pytest.fixture
def possible() -> Callable[[str], None]:
    """Skip a kind that cannot be injected here."""
    left = kinds_here()[1]

    def check(name: str) -> None:
        if name in left:
            pytest.skip(left[name])

    assert all(name in left or name in kinds_here()[0] for name in MOUNTS)
    return check
