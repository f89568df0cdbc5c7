"""What `eval` was asked: one set of defaults, and one look for settings without effect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crossover.cli.asked import Asked
from crossover.errors import RecipeError

NOTHING = Asked(None, None, None, None, None, None, None, None, None, 0)


def test_text_and_tasks_have_defaults_of_their_own() -> None:
    assert NOTHING.of_text == {"windows": 256, "draws": 32, "positions": 16}
    alone = {"evals": None, "limit": None, "fewshot": None, "seed": 0}
    assert NOTHING.of_tasks == {**alone, "draws": 128, "positions": 64}
    assert (list(NOTHING.text_procedures), list(NOTHING.task_procedures)) == (["all"], ["best"])


def test_what_was_said_holds_for_both() -> None:
    said = replace(NOTHING, draws=3, positions=5, procedures=["ar"])
    assert said.of_text["draws"] == said.of_tasks["draws"] == 3
    assert said.of_text["positions"] == said.of_tasks["positions"] == 5
    assert said.text_procedures == said.task_procedures == ["ar"]


@pytest.mark.parametrize(("name", "value"), [("limit", 3), ("fewshot", 0), ("seed", 1)])
def test_a_setting_of_tasks_without_tasks_is_refused(name: str, value: int) -> None:
    said = replace(NOTHING, **{name: value})
    with pytest.raises(RecipeError, match=f"^{name} means something for tasks only"):
        said.refuse_stray()
    replace(said, tasks=["hellaswag"]).refuse_stray()
    NOTHING.refuse_stray()


@pytest.mark.parametrize(("name", "value"), [("text", "dev"), ("windows", 9)])
def test_a_setting_of_text_with_tasks_is_refused(name: str, value: object) -> None:
    said = replace(NOTHING, **{name: value})
    said.refuse_stray()
    with pytest.raises(RecipeError, match=f"^{name} means nothing to tasks"):
        replace(said, tasks=["hellaswag"]).refuse_stray()
