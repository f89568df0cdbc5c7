"""The experts of a layer: every token goes through the few that its router chose for it.

Suffixes: M states, K choices of a state, S = M K rows, E experts, D width, O outputs of a product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "crossover"


def install() -> None:
    """Register the computation under a name with transformers, as the attention is."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, mix_experts)


def mix_experts(module: Any, states_MD: Tensor, chosen_MK: Tensor, weights_MK: Tensor) -> Tensor:
    """Send states through their experts and add up what comes back, in transformers' calling convention.

    No expert has a limited capacity, so what a state gets never depends on another state. transformers' own loops wait
    for the device (`eager`), compute in float32 under autocast (`grouped_mm`) or copy the weights for every token
    (`batched_mm`).

    Args:
        module: The layer's experts: `gate_up_proj` [E, 2 O, D] and `down_proj` [E, D, O].
        states_MD: What the router saw.
        chosen_MK: Experts of each state.
        weights_MK: What each of them counts.

    Returns:
        [M, D], of the states' type.
    """
    device, choices = states_MD.device.type, chosen_MK.shape[1]
    low = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    compute = torch.get_autocast_dtype(device) if low else module.down_proj.dtype
    expert_S, order_S = chosen_MK.flatten().sort(stable=True)
    numbers_E = torch.arange(module.num_experts, device=states_MD.device)
    ends_E = torch.searchsorted(expert_S, numbers_E, right=True, out_int32=True)
    # Read by a permutation of the choices, not by `order_S // choices`: the gradient of an index that holds a state
    # several times is added up in whatever order a CPU's threads come in.
    rows_SD = states_MD[:, None].expand(-1, choices, -1).flatten(0, 1)[order_S].to(compute)
    gate_SO, up_SO = _by_expert(rows_SD, module.gate_up_proj.to(compute), ends_E).chunk(2, dim=-1)
    mixed_SD = _by_expert(module.act_fn(gate_SO) * up_SO, module.down_proj.to(compute), ends_E)
    place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    each_MKD = mixed_SD[place_S].unflatten(0, (-1, choices)).to(states_MD.dtype)
    return (each_MKD * weights_MK.to(states_MD.dtype)[..., None]).sum(1)


def _by_expert(rows_SD: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply rows that stand sorted by their expert, of which expert e has those before `ends_E[e]`: [S, O]."""
    if rows_SD.device.type == "cpu":
        return _one_by_one(rows_SD, weight_EOD, ends_E)  # type: ignore[call-arg]
    return F.grouped_mm(rows_SD, weight_EOD.transpose(1, 2), offs=ends_E)


# How many rows an expert has is a value, which no graph can hold; on a CPU to look at it waits for nothing.
@torch.compiler.disable
def _one_by_one(rows_SD: Tensor, weight_EOD: Tensor, ends_E: Tensor) -> Tensor:
    counts = torch.diff(ends_E, prepend=ends_E.new_zeros(1)).tolist()
    parts = zip(rows_SD.split(counts), weight_EOD.unbind(), strict=True)
    return torch.cat([F.linear(part, weight_OD) for part, weight_OD in parts])
