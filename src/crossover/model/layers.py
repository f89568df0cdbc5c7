"""transformers' decoder layers, driven in two pieces around the attention.

Cut there, one compiled piece serves every layer, pattern and length, and the last layer can leave out states that
nobody reads. The pieces call the layer's own submodules, so weights, names and arithmetic are transformers'.

Suffixes: B batch, H heads, N inputs, D width, M states in a row (of any batch), E head width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer, Qwen3MoeSparseMoeBlock

from crossover.model import attention
from crossover.model.routing import Routed
from crossover.model.sharding import within


def enter(layer: Any, states_MD: Tensor, cos_BNE: Tensor, signed_sin_BNE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what a layer attends with.

    Args:
        layer: A Llama, Qwen3 or Qwen3-MoE decoder layer.
        states_MD: The residual stream, M = B N.
        cos_BNE: Cosines of the rotary angles, [1 or B, N, E].
        signed_sin_BNE: Their sines, the first half negated.

    Returns:
        Queries [B, H, N, E], keys and values [B, H_kv, N, E].
    """
    attend = layer.self_attn
    normed = layer.input_layernorm(states_MD).unflatten(0, (-1, cos_BNE.shape[1]))
    query, key, value = (
        project(normed).unflatten(-1, (-1, attend.head_dim))
        for project in (attend.q_proj, attend.k_proj, attend.v_proj)
    )
    if hasattr(attend, "q_norm"):
        query, key = attend.q_norm(query), attend.k_norm(key)
    query, key = (_rotate(part, cos_BNE, signed_sin_BNE) for part in (query, key))
    query, key, value = (part.to(value.dtype).transpose(1, 2).contiguous() for part in (query, key, value))
    return query, key, value


def _rotate(part_BNHE: Tensor, cos_BNE: Tensor, signed_sin_BNE: Tensor) -> Tensor:
    """Turn pairs of components by the angle of their position: transformers' rotary embedding to the last bit.

    Its own form cuts out halves and joins them, which a compiler turns into a test for each element; to swap the halves
    of a two-row array is plain index arithmetic.
    """
    pairs = part_BNHE.unflatten(-1, (2, -1))
    cos, sin = (part[:, :, None].unflatten(-1, (2, -1)) for part in (cos_BNE, signed_sin_BNE))
    return (pairs * cos + pairs.flip(-2) * sin).flatten(-2)


def _signed(sin_BNE: Tensor) -> Tensor:
    """Give the first half of the sines the minus that the first component of a pair turns with."""
    half = sin_BNE.shape[-1] // 2
    return torch.cat([-sin_BNE[..., :half], sin_BNE[..., half:]], dim=-1)


def leave(layer: Any, mixed_MD: Tensor, states_MD: Tensor) -> Tensor:
    """Finish a layer from what its attention gave.

    Args:
        layer: A Llama, Qwen3 or Qwen3-MoE decoder layer.
        mixed_MD: Attention's output of each state, heads side by side.
        states_MD: The residual stream before the layer.

    Returns:
        [M, D], the residual stream after it.
    """
    return leave_routed(layer, mixed_MD, states_MD)[0]


def leave_routed(layer: Any, mixed_MD: Tensor, states_MD: Tensor) -> tuple[Tensor, Routed | None]:
    """Finish a layer, and say what its router did.

    Args:
        layer: A Llama, Qwen3 or Qwen3-MoE decoder layer.
        mixed_MD: Attention's output of each state, heads side by side.
        states_MD: The residual stream before the layer.

    Returns:
        [M, D], the residual stream after it, and router logits and choices, or None for a dense layer.
    """
    states_MD = states_MD + layer.self_attn.o_proj(mixed_MD)
    normed_MD = layer.post_attention_layernorm(states_MD)
    if not isinstance(layer.mlp, Qwen3MoeSparseMoeBlock):
        return states_MD + layer.mlp(normed_MD), None
    # Rounded logits would send tokens elsewhere: a router computes in full precision (arXiv 2101.03961, section 2.4).
    with exact(normed_MD.device.type):
        logits_ME, weights_MK, chosen_MK = layer.mlp.gate(normed_MD)
    return states_MD + layer.mlp.experts(normed_MD, chosen_MK, weights_MK), (logits_ME, chosen_MK)


def exact(device: str) -> AbstractContextManager[Any]:
    """Compute without autocast, on devices that have it."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def can_drive(inner: PreTrainedModel) -> bool:
    """Say whether every layer is of a kind that the pieces know; others run as transformers runs them."""
    body: Any = inner.model
    known = (LlamaDecoderLayer, Qwen3DecoderLayer, Qwen3MoeDecoderLayer)
    return all(isinstance(layer, known) for layer in body.layers)


@dataclass(frozen=True)
class Pieces:
    """The two pieces, compiled or not.

    Args:
        enter: `enter`.
        leave: `leave_routed`.
        checkpointed: Whether the layers keep their inputs alone and compute the rest again in the backward pass.
    """

    enter: Callable[..., tuple[Tensor, Tensor, Tensor]] = enter
    leave: Callable[..., tuple[Tensor, Routed | None]] = leave_routed
    checkpointed: bool = False

    def run(
        self, inner: Any, inputs_BN: Tensor, positions_BN: Tensor, plan: Any, reads_R: Tensor | None
    ) -> tuple[Tensor, tuple[Routed, ...]]:
        """Run the body.

        Args:
            inner: A transformers model that `can_drive`.
            inputs_BN: Token ids.
            positions_BN: Rotary positions, [1 or B, N].
            plan: The pattern, made ready.
            reads_R: Flat indices of the states that are read, or None for all.

        Returns:
            [R, D] final states that are read, [B N, D] if all are, and what the router of each layer with experts did.
        """
        body = inner.model
        states_MD = body.embed_tokens(inputs_BN.flatten())
        cos_BNE, sin_BNE = body.rotary_emb(states_MD, positions_BN)
        signed_sin_BNE = _signed(sin_BNE)

        def through(layer: Any, stream_MD: Tensor) -> tuple[Tensor, Routed | None]:
            query, key, value = self.enter(layer, stream_MD, cos_BNE, signed_sin_BNE)
            return self.leave(layer, _attend(layer.self_attn, query, key, value, plan), stream_MD)

        def to_reads(layer: Any, stream_MD: Tensor, reads_R: Tensor) -> tuple[Tensor, Routed | None]:
            query, key, value = self.enter(layer, stream_MD, cos_BNE, signed_sin_BNE)
            mixed_MD = _attend(layer.self_attn, query, key, value, plan.of_reads)
            # Nobody looks at the other states again: their output projection and MLP are left out.
            rest = mixed_MD.index_select(0, reads_R), stream_MD.index_select(0, reads_R)
            return self.leave(layer, *rest)

        *others, last = body.layers[: inner.config.num_hidden_layers]
        routed = []
        for layer in others:
            if self.checkpointed and torch.is_grad_enabled():
                states_MD, by_router = checkpoint(within, layer, through, states_MD, use_reentrant=False)
            else:
                states_MD, by_router = within(layer, through, states_MD)
            routed.append(by_router)
        if reads_R is None:
            states_MD, by_router = within(last, through, states_MD)
        else:
            states_MD, by_router = within(last, to_reads, states_MD, reads_R)
        routed.append(by_router)
        return body.norm(states_MD), tuple(item for item in routed if item is not None)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, plan: attention.Plan) -> Tensor:
    dropout = module.attention_dropout if module.training else 0.0
    return attention.mix(query, key, value, plan, module.scaling, dropout)


def compiled(pieces: Pieces) -> Pieces:
    """Compile both pieces, once for all layers, patterns and lengths."""
    return replace(pieces, enter=torch.compile(enter, dynamic=True), leave=torch.compile(leave_routed, dynamic=True))
