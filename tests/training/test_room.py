"""A recipe that asks for terabytes is refused before anything of its size is made; one that fits is not."""

from __future__ import annotations

import pytest

from crossover.errors import RecipeError
from crossover.model.shapes import shape_of
from crossover.recipe import resolve
from crossover.training.room import GIB, machine_bytes, require_room

SIXTEEN = 16 * GIB


def ask(processes: int = 1, **model: object) -> None:
    training = model.pop("training", {})
    recipe = resolve({"model": model, "training": training, "data": {"context": 32}})
    require_room(recipe, shape_of(recipe.model, 4096), processes, memory=lambda: SIXTEEN)


def test_what_fits_is_let_through():
    ask()
    ask(preset="300m")
    assert machine_bytes() > GIB


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"width": 10**6, "heads": 10_000, "head_width": 100}, "model: "),
        ({"depth": 10**9}, "model: "),
        ({"mlp_width": 10**12}, "model: "),
        ({"training": {"batch_tokens": 32 * 10**12}}, "mix.slice_tokens x mix.micro_batch_slices: "),
    ],
)
def test_what_no_machine_holds_is_refused_by_name(settings, named):
    with pytest.raises(RecipeError, match=named) as refused:
        ask(**settings)
    assert "this machine has 16 GiB" in str(refused.value)


def test_processes_share_the_weights_out():
    with pytest.raises(RecipeError, match="weights"):
        ask(preset="8b-a1b", family="qwen3_moe")
    ask(processes=64, preset="8b-a1b", family="qwen3_moe")
