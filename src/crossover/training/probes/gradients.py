"""Gradients of a gear and of the held-out loss: their noise, what masks have of it, and how far they agree.

Suffixes: B sequences, T data tokens, U tokens of a text, M parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossover.model.sharding import ALONE, World, local
from crossover.objectives.block import Block
from crossover.objectives.windows import Objective
from crossover.registry import component_of
from crossover.streams import stream
from crossover.training.probes.bench import Bench, Now, draw_windows, undisturbed

Ints = NDArray[np.int64]
# M: enough for a covariance at each probe, few enough for a part to be worth a forward pass.
PARTS = 4
MOST_WINDOWS = 16
# What torch's `match_rms_adamw` scales Muon's updates to (Liu et al. 2025, arXiv 2502.16982, section 2.2).
MUON_RMS = 0.2
OBJECTIVE_OF_MODE = {"ar": "autoregressive", "nelbo": "masked", "l2r": "masked(suffix_share=1.0)"}


@dataclass(frozen=True)
class GradientProbe:
    """Gradients of a gear on M parts of training text, and of the target on control text.

    The model runs in evaluation mode: dropout's noise is no part of what is measured.

    Args:
        bench: What probes work with.
        gear: The objective whose gradients are looked at.
    """

    bench: Bench
    gear: str
    kind = "gradient"
    every_tokens = 0.0

    @property
    def windows(self) -> int:
        """Windows of a part: together about one step's, within reason."""
        loader = self.bench.loader
        return min(MOST_WINDOWS, max(1, loader.slices_per_step * loader.windows_per_slice // PARTS))

    @property
    def control_windows(self) -> int:
        """Windows of control text: as many as the gear has, or all."""
        return min(PARTS * self.windows, max(1, len(self.bench.control_U) // self.bench.context))

    @cached_property
    def has_masks(self) -> bool:
        """Whether the same text becomes different examples; two windows tell, by their inputs."""
        objective, windows = self.bench.objective(self.gear), np.zeros((2, self.bench.context), np.int64)
        first, second = (
            objective.corrupt(windows, stream(0, "probe look", draw), self.bench.vocabulary) for draw in range(2)
        )
        return not np.array_equal(first.inputs_BN, second.inputs_BN)

    def cost(self, now: Now) -> float:
        """Count the FLOPs of a row: the training price of every gradient in it."""
        parts = PARTS + (1 if self.has_masks else 0)
        control = self.control_windows * self.bench.price(self._target(now.losses)[1])
        return self.bench.context * (parts * self.windows * self.bench.flops_per_token[self.gear] + control)

    def measure(self, now: Now) -> dict[str, Any]:
        """Compute all gradients, no more than two besides the one in the making at a time."""
        step = now.step
        target, objective = self._target(now.losses)
        with undisturbed(self.bench.model):
            rng = stream(self.bench.stepper.seed, "probe control", step)
            tokens_BT = draw_windows(self.bench.control_U, self.control_windows, self.bench.context, rng)
            control = self._gradient(objective, tokens_BT, ("probe control masks", step))
            control_norm2 = self._precondition(control)
            measured = self._parts(step, control)
        return {
            "gear": self.gear,
            "target": target,
            "parts": PARTS,
            "part_tokens": self.windows * self.bench.context,
            **measured,
            "control_norm2": control_norm2,
            "pair_tokens": self.windows * self.bench.context,
            "flops_per_token": self.bench.flops_per_token[self.gear],
        }

    def _parts(self, step: int, control: Sequence[Tensor]) -> dict[str, Any]:
        seed, context, size = self.bench.stepper.seed, self.bench.context, self.windows
        rng = stream(seed, "probe windows", step)
        tokens_BT = draw_windows(self.bench.loader.tokens_U, PARTS * size, context, rng)
        objective = self.bench.objective(self.gear)
        norm2_M, along_M, half_distance2 = [], [], 0.0
        total: list[Tensor] = []
        for part in range(PARTS):
            mine_BT = tokens_BT[part * size : (part + 1) * size]
            gradient = self._gradient(objective, mine_BT, ("probe masks", step, part))
            norm2_M.append(self._inner(gradient, gradient))
            along_M.append(self._inner(control, gradient))
            if part:
                add(total, gradient, 1.0)
                continue
            total = gradient
            if self.has_masks:
                other = self._gradient(objective, mine_BT, ("probe masks", step, PARTS))
                add(other, total, -1.0)
                half_distance2 = 0.5 * self._inner(other, other)
        mean_norm2 = self._inner(total, total) / PARTS**2
        for value in total:
            value.div_(PARTS)
        return {
            "norm2_M": norm2_M,
            "mean_norm2": mean_norm2,
            # How long the optimizer would find this gradient: a step's length is its choice, not the loss's scale.
            "own_norm2": self._precondition(total),
            "along_M": along_M,
            "mask_half_distance2": half_distance2,
        }

    def _target(self, losses: Mapping[str, float]) -> tuple[str, Objective]:
        """Choose the mode whose loss is minimised, and the objective whose gradient is that of its loss."""
        modes = self.bench.modes
        known = [mode for mode in modes if mode in losses]
        mode = min(known, key=lambda name: losses[name]) if known else next(iter(modes))
        if mode == "nelbo" and modes[mode] != "nelbo":
            gear = next(
                gear
                for gear in reversed(self.bench.watching.gears)
                if modes[mode] in component_of("objective", gear).modes(self.bench.context)
            )
            block: Block = component_of("objective", gear)
            # The bound of its blocks alone, whatever else it trains on.
            return mode, Block(block.size, clean=block.clean)
        return mode, component_of("objective", OBJECTIVE_OF_MODE[mode])

    @cached_property
    def _parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.bench.model.parameters() if parameter.requires_grad]

    def _gradient(self, objective: Objective, tokens_BT: Ints, address: tuple[Any, ...]) -> list[Tensor]:
        """Compute the gradient of the mean loss per data token, slice by slice as a step does."""
        name, *counters = address
        slice_windows, world = self.bench.loader.windows_per_slice, self.bench.model.world
        starts = list(range(0, len(tokens_BT), slice_windows))
        for first in range(0, len(starts), world.size):
            together = starts[first : first + world.size]
            start = together[min(world.rank, len(together) - 1)]
            rng = stream(self.bench.stepper.seed, name, *counters, start)
            example = objective.corrupt(tokens_BT[start : start + slice_windows], rng, self.bench.vocabulary)
            # Processes for which there is no slice left keep the others company.
            counts = world.rank < len(together)
            (self.bench.eager_stepper.loss(example, float(tokens_BT.size)) * float(counts)).backward()
        found = []
        for parameter in self._parameters:
            found.append(local(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad))
            parameter.grad = None
        return found

    def _inner(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
        return inner(first, second, self.bench.model.world)

    def _precondition(self, gradient: Sequence[Tensor]) -> float:
        return precondition(gradient, self._parameters, self.bench.stepper.optimizers, self.bench.model.world)


def inner(first: Sequence[Tensor], second: Sequence[Tensor], world: World = ALONE) -> float:
    """Give the inner product of two gradients; each tensor's in float32, their sum in double precision.

    Args:
        first: A tensor per parameter, or this process's part of it.
        second: Another.
        world: The processes that hold the other parts.

    Returns:
        The product of the whole gradients.
    """
    products = [torch.dot(a.flatten(), b.flatten()) for a, b in zip(first, second, strict=True)]
    return float(world.add_up_parts(torch.stack(products).double().sum()))


@torch.no_grad()
def add(total: Sequence[Tensor], other: Sequence[Tensor], factor: float) -> None:
    """Add a multiple of a gradient to another, in place."""
    for mine, theirs in zip(total, other, strict=True):
        mine.add_(theirs, alpha=factor)


@torch.no_grad()
def precondition(
    gradient: Sequence[Tensor],
    parameters: Sequence[Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    world: World = ALONE,
) -> float:
    """Measure a gradient as the optimizer does, in place: g becomes P g, whose product with another is <g, .>_P.

    Under AdamW, P = 1 / (sqrt(v) + eps), v the bias-corrected second moment (arXiv 1711.05101, algorithm 2) as one
    more step with this very gradient would leave it: beta2 v + (1 - beta2) g^2. Without that step, coordinates that
    had no gradient for long - the mask's embedding while a run trains without masks - would outweigh all others by
    orders of magnitude, which no step of AdamW does. Under Muon, whose updates have the same root mean square whatever
    the gradient (MUON_RMS, chosen to match AdamW's), P = MUON_RMS / (rms(momentum) + eps) of the whole matrix. Without
    any state, before the first step, P = 1.

    Args:
        gradient: A tensor per parameter, or this process's part of it, overwritten.
        parameters: The parameters.
        optimizers: Those of the run.
        world: The processes that hold the other parts.

    Returns:
        <g, g>_P.
    """
    groups = {
        parameter: (optimizer.state, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    products = []
    for parameter, value in zip(parameters, gradient, strict=True):
        state, group = groups.get(parameter, ({}, {}))
        scaled = value / _scale(value, state.get(parameter, {}), group, world)
        products.append(torch.dot(scaled.flatten(), value.flatten()))
        value.copy_(scaled)
    return float(world.add_up_parts(torch.stack(products).double().sum()))


def _scale(value: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], world: World) -> Tensor | float:
    if "exp_avg_sq" in state and float(state["step"]) >= 1:
        decay = group["betas"][1]
        corrected = local(state["exp_avg_sq"]) / (1 - decay ** float(state["step"]))
        return (decay * corrected + (1 - decay) * value.square()).sqrt() + group["eps"]
    if "momentum_buffer" in state:
        momentum = state["momentum_buffer"]
        mean = world.add_up_parts(local(momentum).square().sum()) / momentum.numel()
        return (mean.sqrt() + group["eps"]) / MUON_RMS
    return 1.0
