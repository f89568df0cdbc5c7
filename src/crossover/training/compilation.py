"""torch.compile: what is compiled where, all of it before the first step, and a count of what came later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

from crossover.model.backbone import Backbone
from crossover.model.layers import compiled
from crossover.training.step import Stepper

# A graph may serve one side of a bound on its sizes only (such as 4,096 rows), so both ends of a range are run.
GRAPHS_AT_MOST = 64


@dataclass(frozen=True)
class WarmUp:
    """What it took to have every graph that a run will need.

    Args:
        graphs: Graphs compiled for it.
        seconds: Time that it took.
        total: Graphs that the process had compiled by its end.
    """

    graphs: int
    seconds: float
    total: int


def compile_model(model: Backbone) -> Callable[..., Any]:
    """Set a model up for compilation: the pieces of a layer on a CPU, the whole model on a GPU.

    On a CPU the matrix products are library calls either way, so the pieces lose nothing, compile several times faster
    and serve all patterns and lengths. On a GPU a graph per pattern lets attention and everything around it be one;
    where weights are spread over several, what brings a layer together stands between its pieces and the next one's.

    Args:
        model: The backbone; on a CPU, its pieces are replaced.

    Returns:
        What to call for the forward pass.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS_AT_MOST, torch._dynamo.config.recompile_limit)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)
    # Layers that are brought together and taken apart again around their pieces cannot stand in one graph.
    if (model.device.type == "cpu" or model.world.size > 1) and model.pieces is not None:
        model.pieces = compiled(model.pieces)
        return model
    return torch.compile(model, dynamic=False)


def graphs() -> int:
    """Count the graphs that this process has compiled."""
    return int(counters["stats"]["unique_graphs"])


def warm_up(stepper: Stepper) -> WarmUp:
    """Run every objective once at every size of micro-batch that needs a graph of its own, without changing weights.

    Args:
        stepper: The run's step.

    Returns:
        What it took.
    """
    before, start = graphs(), time.monotonic()
    largest = min(stepper.micro_batch_slices, stepper.loader.slices_per_step)
    # Pieces have dynamic sizes, the whole model has static ones.
    counts = sorted({1, largest}) if stepper.forward is stepper.model else range(1, largest + 1)
    for kind in stepper.objectives:
        for count in counts:
            stepper.loss(stepper.example(0, kind, tuple(range(count))), 1.0).backward()
    stepper.model.zero_grad(set_to_none=True)
    return WarmUp(graphs() - before, time.monotonic() - start, graphs())
