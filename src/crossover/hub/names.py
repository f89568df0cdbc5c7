"""Weights by the names that published folders use, where they differ from the model's own: experts one by one.

Suffixes: E experts, O hidden width of an expert, D residual width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_FUSED = (".experts.gate_up_proj", ".experts.down_proj")


def published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every expert its own matrices, as Qwen3-MoE's published folders have them.

    transformers 5 reads these names and the fused ones; version 4 and servers such as vLLM know these alone.

    Args:
        weights: Weights by the model's own names: `experts.gate_up_proj` [E, 2 O, D], `experts.down_proj` [E, D, O].

    Returns:
        The same with `experts.0.gate_proj.weight` and so on in their place; all on the CPU.
    """
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        value = value.detach().cpu()
        if not name.endswith(_FUSED):
            out[name] = value.contiguous()
            continue
        base, _, kind = name.rpartition(".")
        for expert, part in enumerate(value.unbind()):
            halves = part.chunk(2) if kind == "gate_up_proj" else (part,)
            kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            # Cut out of one tensor they would share its memory, which a file of weights cannot say.
            out |= {f"{base}.{expert}.{own}.weight": half.clone() for own, half in zip(kinds, halves, strict=True)}
    return out


def find(weights: Mapping[str, Tensor], name: str, shape: torch.Size) -> Tensor | None:
    """Look up a weight of the model among weights by either kind of names.

    Args:
        weights: What a file holds.
        name: The model's own name.
        shape: The shape that it has to have.

    Returns:
        The weight, or None where it is missing or of another shape.
    """
    if name in weights:
        return weights[name] if weights[name].shape == shape else None
    if not name.endswith(_FUSED):
        return None
    base, _, kind = name.rpartition(".")
    kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    each = []
    for expert in range(shape[0]):
        parts = [weights.get(f"{base}.{expert}.{own}.weight") for own in kinds]
        there = [part for part in parts if part is not None and part.dim() == 2 and part.shape[1] == shape[2]]
        if len(there) < len(kinds):
            return None
        each.append(torch.cat(there))
    fused = torch.stack(each) if len({part.shape for part in each}) == 1 else None
    return fused if fused is not None and fused.shape == shape else None
