"""Targets laid out once for all tests."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import pytest

from fuzz.targets import TARGETS, Shooting


@pytest.fixture(scope="session")
def shooting(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Shooting]:
    """Give a target by its name, its folder laid out."""
    place = tmp_path_factory.mktemp("fuzz")
    made: dict[str, Shooting] = {}

    def give(name: str) -> Shooting:
        if name not in made:
            with contextlib.redirect_stdout(io.StringIO()):
                made[name] = Shooting(TARGETS[name], place / name.replace("/", "-"))
        return made[name]

    return give
