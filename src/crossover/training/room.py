"""Whether a recipe can fit into this machine at all: asked before anything of its size is made."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from crossover.errors import RecipeError
from crossover.model.shapes import Shape, parameters
from crossover.recipe import Recipe

GIB = 2**30
# A float32 weight and its gradient; what the optimizer keeps comes on top.
_BYTES_PER_WEIGHT = 8
# An id of a step's windows, as the loader serves them.
_BYTES_PER_ID = 8


def machine_bytes() -> int:
    """Count the memory of this machine and of its GPUs, in bytes."""
    held = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return held + sum(torch.cuda.get_device_properties(gpu).total_memory for gpu in gpus)


def require_room(
    recipe: Recipe, shape: Shape, processes: int = 1, *, memory: Callable[[], int] = machine_bytes
) -> None:
    """Refuse a recipe whose weights or windows alone are larger than the machine; a system would kill the run for them.

    It says nothing of what a run needs besides, which `crossover plan` reckons: it is there for a slip of the unit, and
    for recipes of strangers.

    Args:
        recipe: The resolved recipe.
        shape: Its backbone.
        processes: Processes that share the weights out, on this machine or on others.
        memory: Gives the machine's bytes.

    Raises:
        RecipeError: It cannot fit; the message names the settings.
    """
    training, there = recipe.training, memory()
    weights = parameters(shape) * _BYTES_PER_WEIGHT / processes
    together = training.batch_tokens // (recipe.mix.slice_tokens or training.batch_tokens)
    micro_tokens = training.batch_tokens // together * min(recipe.mix.micro_batch_slices, together)
    # Of each layer of a micro-batch, the backward pass needs the inputs at least, half of a float32 each.
    states = micro_tokens * shape.width * shape.depth * 2
    needs = {
        f"model: {parameters(shape):,} weights and their gradients": weights,
        f"mix.slice_tokens x mix.micro_batch_slices: {micro_tokens:,} tokens that run together": states / processes,
        f"training.batch_tokens: the {training.batch_tokens:,} tokens of a step": training.batch_tokens * _BYTES_PER_ID,
    }
    for what, size in needs.items():
        if size > there:
            raise RecipeError(
                f"{what} take {size / GIB:,.0f} GiB, and this machine has {there / GIB:,.0f} GiB in all; lower it "
                "(`crossover plan` says what fits)"
            )
