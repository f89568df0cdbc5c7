"""What keeps a router's choices spread out, and what they were: two auxiliary losses and a count.

Suffixes: L layers with experts, M states, B sequences (rows of inputs), N inputs, R read states, E experts, K choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossover.model.shapes import SPARSE
from crossover.model.sharding import ALONE, World
from crossover.sections import ModelRecipe

# Muennighoff et al., OLMoE (arXiv 2409.02060), section 4.1.
BALANCE, ROUTER_Z = 0.01, 0.001
# A layer's router logits [M, E] and the experts that were chosen [M, K].
Routed = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RouterLosses:
    """Factors on the auxiliary losses.

    Args:
        balance: On the load-balancing loss.
        router_z: On the router z-loss.
    """

    balance: float = BALANCE
    router_z: float = ROUTER_Z


def losses_of(model: ModelRecipe) -> RouterLosses | None:
    """Read the factors from a recipe's section: those of OLMoE where it leaves them out, None without experts."""
    if model.family != SPARSE:
        return None
    return RouterLosses(
        BALANCE if model.balance_coefficient is None else model.balance_coefficient,
        ROUTER_Z if model.router_z_coefficient is None else model.router_z_coefficient,
    )


@dataclass(frozen=True)
class Reads:
    """Which states went through the last layer.

    Args:
        sequences: B.
        inputs: N.
        index_R: Flat indices of the states that are read, or None for all.
        weights_R: Their loss weights; what weighs 0 is padding and does not count.
    """

    sequences: int
    inputs: int
    index_R: Tensor | None
    weights_R: Tensor


def balance_and_z(
    logits_ME: Tensor, chosen_MK: Tensor, reads: Reads, *, last: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a layer's auxiliary losses: of each sequence alone, then the mean over sequences.

    The load-balancing loss of a sequence is E / K sum_e f_e p_e (Fedus et al., arXiv 2101.03961, equations 4 to 6, with
    K choices and over a sequence as in DeepSeek-V3, arXiv 2412.19437, equations 17 to 20): f_e is the number of choices
    of e per state, p_e its mean probability; 1 if all experts are used alike. The z-loss is the mean of
    (log sum_e exp z_e)^2 (Zoph et al., arXiv 2202.08906, equation 5). Neither knows of any other sequence, so they do
    not depend on how a step is cut into micro-batches or spread over ranks.

    Args:
        logits_ME: The router's logits.
        chosen_MK: The experts that it chose.
        reads: Where the states stand.
        last: Whether this is the last layer, through which only states that are read go.

    Returns:
        Load-balancing loss and z-loss, scalars, and how often each expert was chosen, [E].
    """
    logits_ME = logits_ME.float()
    experts, choices = logits_ME.shape[1], chosen_MK.shape[1]
    share_ME = torch.softmax(logits_ME, dim=1)
    chosen_ME = torch.zeros_like(share_ME).scatter_(1, chosen_MK, 1.0)
    square_M1 = torch.logsumexp(logits_ME, dim=1, keepdim=True).square()
    facts = torch.cat([share_ME, chosen_ME, square_M1, torch.ones_like(square_M1)], dim=1)
    sums = _by_sequence(facts, reads, last)
    share_BE, chosen_BE, square_B1, count_B1 = sums.split([experts, experts, 1, 1], dim=1)
    count_B1 = count_B1.clamp(min=1)  # a sequence of which nothing is read
    balance_B = experts / choices * (chosen_BE / count_B1 * share_BE / count_B1).sum(1)
    return balance_B.mean(), (square_B1 / count_B1).mean(), chosen_BE.detach().sum(0)


def _by_sequence(facts_MX: Tensor, reads: Reads, last: bool) -> Tensor:
    if last and reads.index_R is not None:
        # Every place of a window is written once, but for padding, which adds zeros: no sum depends on an order.
        counted_R1 = (reads.weights_R > 0).to(facts_MX.dtype)[:, None]
        placed = facts_MX.new_zeros(reads.sequences * reads.inputs, facts_MX.shape[1])
        facts_MX = placed.index_add(0, reads.index_R, facts_MX * counted_R1)
    return facts_MX.unflatten(0, (reads.sequences, reads.inputs)).sum(1)


class Routing(nn.Module):
    """Adds the auxiliary losses to the gradient, and remembers what routers did since it was last asked.

    Args:
        losses: Factors on the losses.
        layers: L.
        experts: E.
    """

    usage_LE: Tensor
    losses_2: Tensor

    def __init__(self, losses: RouterLosses, layers: int, experts: int) -> None:
        super().__init__()
        self.losses = losses
        # On the device and in no checkpoint: a step adds to them without a look at a value.
        self.register_buffer("usage_LE", torch.zeros(layers, experts), persistent=False)
        self.register_buffer("losses_2", torch.zeros(2), persistent=False)

    def forward(self, loss: Tensor, routed: Sequence[Routed], reads: Reads, share: float) -> Tensor:
        """Give a loss the gradient of the auxiliary losses; its value stays, so that nats stay nats.

        Args:
            loss: A micro-batch's part of the step's loss.
            routed: What each layer's router did.
            reads: Where the states stand.
            share: Part of the step's data tokens that the micro-batch stands for.

        Returns:
            The same value.
        """
        found = [balance_and_z(*layer, reads, last=layer is routed[-1]) for layer in routed]
        losses_2 = torch.stack([torch.stack(part).mean() for part in list(zip(*found, strict=True))[:2]]) * share
        if share:  # a pass that stands for nothing keeps other processes company
            with torch.no_grad():
                self.usage_LE += torch.stack([usage_E for _, _, usage_E in found])
                self.losses_2 += losses_2
        extra = self.losses.balance * losses_2[0] + self.losses.router_z * losses_2[1]
        return loss + (extra - extra.detach())

    @torch.no_grad()
    def take(self, world: World = ALONE) -> Tensor:
        """Sum up what was remembered, still on the device, and forget it.

        Args:
            world: Processes whose routers worked on parts of the same step.

        Returns:
            [5]: least and most choices that an expert got in any layer, 1 if all were used alike; mean entropy of the
            choices over ln E; the two losses.
        """
        world.add_up(self.usage_LE)
        world.add_up(self.losses_2)
        share_LE = self.usage_LE / self.usage_LE.sum(1, keepdim=True).clamp(min=1)
        experts = share_LE.shape[1]
        entropy = torch.special.entr(share_LE).sum(1).mean() / math.log(experts)
        taken = torch.stack([share_LE.min() * experts, share_LE.max() * experts, entropy, *self.losses_2])
        self.forget()
        return taken

    def forget(self) -> None:
        """Forget what was remembered, such as what passes before a step left."""
        self.usage_LE.zero_()
        self.losses_2.zero_()


def routing_row(taken_5: Tensor | None) -> dict[str, Any]:
    """Write what routers did as entries of a log row: the only look at the values.

    Args:
        taken_5: What `Routing.take` gave, or None without experts.

    Returns:
        `expert_usage`, `balance_loss` and `router_z_loss`, or nothing.
    """
    if taken_5 is None:
        return {}
    least, most, entropy, balance, router_z = taken_5.tolist()
    usage = {"least": least, "most": most, "entropy": entropy}
    return {"expert_usage": usage, "balance_loss": balance, "router_z_loss": router_z}
