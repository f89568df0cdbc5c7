"""How much the gradients of one step's micro-batches differ, seen on the way.

A step that is looked at holds the gradient three times more, and once more for each further objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from crossover.model.sharding import ALONE, World, local

# Parts that a step's slices of one objective are cut into, at most: enough for a variance.
MOST_PARTS = 8


def part_slices(slices: int, together: int) -> int:
    """Say how many slices a part has.

    Args:
        slices: Slices of an objective in a step.
        together: Slices that run together in one process.

    Returns:
        The number; it does not depend on how many processes there are, so that what is measured does not either.
    """
    return max(together, -(-slices // MOST_PARTS))


@dataclass
class Spread:
    """Takes the gradients of micro-batches apart while they add up.

    A micro-batch leaves its part of the step's gradient, scaled by its share of the step's tokens. The difference that
    it makes to `.grad`, divided by that share, is the gradient of its own mean loss.

    Args:
        model: Holds the gradients.
        kinds: Objective of each slice of the step.
        world: The processes that hold the other parts of the gradients.
    """

    model: nn.Module
    kinds: Sequence[str]
    world: World = ALONE
    before: dict[str, Tensor] = field(default_factory=dict)
    norms2: dict[str, list[Tensor]] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    sums: dict[str, list[Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def note(self, kind: str, slices: int) -> None:
        """Look at the gradient after a micro-batch's backward pass.

        Args:
            kind: Its objective.
            slices: Slices that it had.
        """
        own = []
        for name, parameter in self.model.named_parameters():
            # A parameter that no micro-batch has reached yet has a gradient of 0.
            now = local(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            old = self.before.get(name)
            own.append((now.clone() if old is None else now - old) * (len(self.kinds) / slices))
            self.before[name] = now.clone()
        self.norms2.setdefault(kind, []).append(self._norm2(own))
        self.sizes.setdefault(kind, []).append(slices)
        known = self.sums.get(kind)
        self.sums[kind] = own if known is None else [old + new for old, new in zip(known, own, strict=True)]

    def parts(self) -> dict[str, tuple[int, Tensor]]:
        """Give the squared norms of each objective's micro-batches, then that of their mean, still on the device.

        Returns:
            Slices of a micro-batch and norms [M + 1] by objective; objectives with one micro-batch, or with
            micro-batches of unequal size, are left out.
        """
        found = {}
        for kind, norms2 in self.norms2.items():
            if len(norms2) > 1 and len(set(self.sizes[kind])) == 1:
                mean = self._norm2(self.sums[kind]) / len(norms2) ** 2
                found[kind] = self.sizes[kind][0], torch.stack([*norms2, mean])
        return found

    def _norm2(self, tensors: Sequence[Tensor]) -> Tensor:
        mine = torch.stack([tensor.square().sum() for tensor in tensors]).sum()
        return self.world.add_up_parts(mine)
