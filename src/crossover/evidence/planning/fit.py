"""What of a recipe fits into the memory of a machine: on how many GPUs, with which micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossover.evidence.planning.machines import Machine
from crossover.evidence.planning.memory import Demand, Parts
from crossover.evidence.planning.spending import workloads_of
from crossover.evidence.planning.text import TextFacts
from crossover.model.shapes import Shape
from crossover.recipe import Recipe
from crossover.registry import component_of

# Numbers of GPUs that the memory is also told for.
COUNTS = (1, 2, 4, 8, 16, 32, 64)
# Gradients that a probe holds, and a step that is looked at, there one more for each objective.
BETWEEN_STEPS, WITHIN_A_STEP = 2, 2


@dataclass(frozen=True)
class Fit:
    """What fits into the machine's memory.

    Args:
        gpus: GPUs planned with.
        stated: Whether that number was asked for; else it is the smallest that fits and shares the slices of a step.
        windows: Windows of a micro-batch, which a GPU's share of a step's slices may cut short.
        parts: Memory of one of those GPUs, by part, in bytes.
        fits: Whether it has room, the margin left free.
        most_windows: The largest micro-batch that has, in windows.
        most_windows_other: The same with activation checkpointing the other way round.
        fewest_gpus: The smallest number of GPUs that has room; None where none of up to 1,024 has.
        bytes_by_gpus: Memory of one GPU, in bytes, for some numbers of GPUs.
        shared: Whether the slices of a step can be shared out alike.
    """

    gpus: int
    stated: bool
    windows: int
    parts: Parts
    fits: bool
    most_windows: int
    most_windows_other: int
    fewest_gpus: int | None
    bytes_by_gpus: dict[int, float]
    shared: bool


def demand_of(recipe: Recipe, shape: Shape, text: TextFacts) -> Demand:
    """Collect what a recipe's memory depends on.

    Args:
        recipe: The recipe.
        shape: Its backbone.
        text: Its text.

    Returns:
        The demand.
    """
    training = recipe.training
    return Demand(
        shape=shape,
        predictable=text.predictable,
        optimizer=type(training.optimizer).component_name,
        averaged=training.ema_decay is not None,
        checkpointed=training.activation_checkpointing,
        workloads=tuple(workloads_of(recipe).values()),
        noisy=recipe.model.parameter_noise > 0,
        probe_gradients=probe_gradients(recipe),
    )


def probe_gradients(recipe: Recipe) -> int:
    """Count the gradients that a recipe's probes hold at a time beside the step's own.

    A gradient probe holds two between steps (`training.probes.gradients`). A step that is looked at holds the sum so
    far, a micro-batch's own part, and a sum for each objective (`training.spread`); steps with dropout or noise on the
    weights are not looked at, nor are those with one micro-batch of an objective.

    Args:
        recipe: The recipe.

    Returns:
        The number; 0 where no signal reads gradients.
    """
    watching, model = recipe.controller.watching, recipe.model
    signals = watching.signals if watching is not None else ()
    if not any("gradient" in component_of("signal", name).probes for name in signals):
        return 0
    disturbed = model.residual_dropout or model.attention_dropout or model.parameter_noise
    if disturbed or slices_of(recipe) <= recipe.mix.micro_batch_slices:
        return BETWEEN_STEPS
    return WITHIN_A_STEP + len(recipe.controller.objectives())


def slices_of(recipe: Recipe) -> int:
    """Count the slices of a step, which is what GPUs share out."""
    return recipe.training.batch_tokens // (recipe.mix.slice_tokens or recipe.training.batch_tokens)


def fit_of(recipe: Recipe, demand: Demand, machine: Machine) -> Fit:
    """Find out what fits on a machine.

    Args:
        recipe: The recipe.
        demand: What its memory depends on.
        machine: The machine.

    Returns:
        What fits.
    """
    slices, memory = slices_of(recipe), machine.memory_gib

    def windows(gpus: int) -> int:
        # A GPU runs no more slices together than it has of a step.
        together = min(recipe.mix.micro_batch_slices, max(1, slices // gpus))
        return recipe.training.batch_tokens // slices * together // recipe.data.context

    fewest = demand.fewest_gpus(_counts(), windows, memory)
    gpus = machine.gpus
    if gpus is None:
        # Of the numbers that share a step's slices alike, the smallest that fits, else the largest.
        alike = [count for count in range(1, slices + 1) if slices % count == 0]
        gpus = demand.fewest_gpus(alike, windows, memory) or alike[-1]
    other = replace(demand, checkpointed=not demand.checkpointed)
    return Fit(
        gpus=gpus,
        stated=machine.gpus is not None,
        windows=windows(gpus),
        parts=demand.on(gpus, windows(gpus)),
        fits=demand.fits(gpus, windows(gpus), memory),
        most_windows=demand.most_windows(gpus, memory),
        most_windows_other=other.most_windows(gpus, memory),
        fewest_gpus=fewest,
        bytes_by_gpus={count: demand.on(count, windows(count)).total for count in sorted({*COUNTS, gpus})},
        shared=slices % gpus == 0,
    )


def _counts() -> Sequence[int]:
    """List the numbers of GPUs that are tried: up to a machine of eight one by one, then whole machines."""
    return [*range(1, 8), *range(8, 1025, 8)]
