"""Four attention patterns as one predicate, and the back ends that compute it.

Suffixes: B batch, H heads, N inputs, Q queries, K keys, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crossover.records import Pattern

NAME = "crossover"
# Up to here a materialised score matrix beats torch's fused CPU kernel: always for two streams, whose halves it can
# treat apart, and in bfloat16 for the other patterns.
MATERIALISE_UP_TO = 512


def visible(pattern: Pattern, query: Tensor, key: Tensor) -> Tensor:
    """Say which query may see which key: the definition that every back end must equal.

    Two-stream inputs are `clean` positions 0..C-1, then for each block of S tokens a noisy copy of S + 1 inputs:
    the clean token before the block and the block itself. A noisy copy sees itself and the clean stream strictly
    before its first position. A block of the clean stream is S inputs from BOS on, those whose states predict the S
    tokens of a block: whole clean blocks lie before each noisy copy, so no state depends on where the window ends.

    Args:
        pattern: The pattern.
        query: Input indices of queries, any shape that broadcasts with `key`.
        key: Input indices of keys.

    Returns:
        Booleans of the broadcast shape.
    """
    if pattern.kind == "full":
        return (query >= 0) & (key >= 0)
    if pattern.kind == "causal":
        return key <= query
    size = pattern.block
    if pattern.kind == "block_causal":
        return key // size <= query // size
    clean = pattern.clean
    query_block, key_block = (query - clean) // (size + 1), (key - clean) // (size + 1)
    inside = Pattern(pattern.clean_kind, 0 if pattern.clean_kind == "causal" else size)
    both_clean = (query < clean) & (key < clean) & visible(inside, query, key)
    own = (query >= clean) & (key >= clean) & (query_block == key_block)
    prefix = (query >= clean) & (key < clean) & (key < query_block * size)
    return both_clean | own | prefix


@dataclass(frozen=True)
class Plan:
    """A pattern made ready for one input length, device and type; the same object serves all layers.

    Args:
        pattern: The pattern.
        back_end: "materialised", "sdpa" or "flex".
        bias: Additive mask [1 or B, 1, N, N], or of the clean half for a materialised two-stream; None for full.
        prefix_bias: Additive mask [1 or B, 1, Q, C] of noisy queries on clean keys (materialised two-stream).
        own_bias: Additive mask [B, 1, Q, S + 1] inside the noisy copies, when documents are kept apart.
        block_mask: FlexAttention's block mask.
    """

    pattern: Pattern
    back_end: str
    bias: Tensor | None = None
    prefix_bias: Tensor | None = None
    own_bias: Tensor | None = None
    block_mask: Any = None


def choose_back_end(
    pattern: Pattern, inputs: int, device: torch.device, *, low_precision: bool = False, dropout: float = 0.0
) -> str:
    """Choose the fastest back end that can compute the pattern here.

    Args:
        pattern: The pattern.
        inputs: Input positions N.
        device: Where the model is.
        low_precision: Whether attention is computed in bfloat16.
        dropout: Attention dropout; FlexAttention has none.

    Returns:
        "flex", "materialised" or "sdpa".
    """
    if device.type == "cuda":
        return "flex" if dropout == 0.0 else "sdpa"
    if pattern.kind == "two_stream":
        return "materialised" if inputs <= 4 * MATERIALISE_UP_TO else "sdpa"
    return "materialised" if low_precision and inputs <= MATERIALISE_UP_TO else "sdpa"


def mask_NN(pattern: Pattern, inputs: int, device: torch.device | str = "cpu") -> Tensor:
    """Write a pattern's predicate out as an N x N boolean mask (the reference for tests and dense back ends)."""
    index = torch.arange(inputs, device=device)
    return visible(pattern, index[:, None], index[None, :])


@lru_cache(maxsize=64)
def make_plan(pattern: Pattern, inputs: int, device: torch.device, dtype: torch.dtype, back_end: str) -> Plan:
    """Prepare a pattern without document borders; cached, so that a step only looks it up.

    Args:
        pattern: The pattern.
        inputs: Input positions N.
        device: Where the model is.
        dtype: Type of the scores.
        back_end: "materialised", "sdpa" or "flex".

    Returns:
        The plan.
    """
    if back_end == "flex":
        return Plan(pattern, back_end, block_mask=_flex_mask(pattern, inputs, device))
    if back_end == "sdpa" and pattern.kind == "causal":
        return Plan(pattern, back_end)  # the kernel knows this mask by itself
    # Masks are made outside inference mode and autograd, so that training and scoring can share them.
    with torch.inference_mode(False), torch.no_grad():
        if back_end == "sdpa" and pattern.kind == "two_stream":
            # Each noisy copy gets exactly its keys, so only the clean half has a mask.
            return Plan(pattern, back_end, bias=_clean_bias(pattern, device, dtype))
        return _dense_plan(pattern, mask_NN(pattern, inputs, device)[None, None], dtype, back_end)


def make_document_plan(pattern: Pattern, documents_BN: Tensor, dtype: torch.dtype, back_end: str) -> Plan:
    """Prepare a pattern whose inputs also see only their own document (and inputs of document -1).

    Args:
        pattern: The pattern.
        documents_BN: Document number of each input.
        dtype: Type of the scores.
        back_end: "materialised" or "sdpa"; "flex" builds a block mask per batch.

    Returns:
        The plan.
    """
    same = documents_BN[:, :, None] == documents_BN[:, None, :]
    same = (same | (documents_BN == -1)[:, None, :])[:, None]
    if back_end == "flex":
        return Plan(pattern, back_end, block_mask=_flex_mask(pattern, same.shape[-1], same.device, documents_BN))
    return _dense_plan(pattern, mask_NN(pattern, same.shape[-1], same.device)[None, None] & same, dtype, back_end)


def _clean_bias(pattern: Pattern, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    if pattern.clean_kind == "causal":
        return None
    return _bias(mask_NN(Pattern("block_causal", pattern.block), pattern.clean, device)[None, None], dtype)


def _dense_plan(pattern: Pattern, allowed: Tensor, dtype: torch.dtype, back_end: str) -> Plan:
    if pattern.kind != "two_stream":
        open_to_all = pattern.kind == "full" and bool(allowed.all())
        return Plan(pattern, back_end, bias=None if open_to_all else _bias(allowed, dtype))
    clean, width = pattern.clean, pattern.block + 1
    noisy = allowed[..., clean:, clean:]
    blocks = noisy.shape[-1] // width
    grid = noisy.unflatten(-1, (blocks, width)).unflatten(-3, (blocks, width))
    own = grid.diagonal(dim1=-4, dim2=-2).permute(0, 1, 4, 2, 3).flatten(2, 3)
    keep_own = back_end == "sdpa" or not bool(own.all())
    return Plan(
        pattern,
        back_end,
        bias=_bias(allowed[..., :clean, :clean], dtype),
        prefix_bias=_bias(allowed[..., clean:, :clean], dtype),
        own_bias=_bias(own, dtype) if keep_own else None,
    )


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def _flex_mask(pattern: Pattern, inputs: int, device: torch.device, documents_BN: Tensor | None = None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def predicate(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = visible(pattern, query, key)
        if documents_BN is None:
            return seen
        mine, theirs = documents_BN[batch, query], documents_BN[batch, key]
        return seen & ((mine == theirs) | (theirs == -1))

    batch = None if documents_BN is None else documents_BN.shape[0]
    return create_block_mask(predicate, batch, None, inputs, inputs, device=str(device))


def install() -> None:
    """Register the attention and its mask under one name with transformers (a name without a mask gets none)."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    plan: Plan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention in transformers' calling convention.

    Args:
        module: The attention layer.
        query: [B, H, N, D].
        key: [B, H_kv, N, D].
        value: [B, H_kv, N, D].
        attention_mask: Used only without a plan, when transformers itself drives the model.
        scaling: Factor on the scores.
        dropout: Dropout of the probabilities; 0 outside training.
        plan: The pattern, made ready.
        kwargs: What transformers passes on.

    Returns:
        [B, N, H, D] and None for the weights.
    """
    if plan is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plan.back_end == "flex":
        return _flex(query, key, value, plan, scale), None
    if plan.back_end == "sdpa":
        compute = _block_by_block if plan.pattern.kind == "two_stream" else _fused
        return compute(query, key, value, plan, dropout, scale).transpose(1, 2), None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    compute = _two_streams if plan.pattern.kind == "two_stream" else _materialised
    return compute(query * scale, key, value, plan, dropout).transpose(1, 2), None


def _fused(query: Tensor, key: Tensor, value: Tensor, plan: Plan, dropout: float, scale: float) -> Tensor:
    # Without a bias the kernel knows the mask by itself: causal (also of a clean stream) or full.
    causal = plan.bias is None and plan.pattern.kind != "full"
    return _sdpa(query, key, value, plan.bias, dropout, scale, causal=causal)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    scale: float,
    *,
    causal: bool = False,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    bias = None if bias is None else bias.to(value.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
    )


def _block_by_block(query: Tensor, key: Tensor, value: Tensor, plan: Plan, dropout: float, scale: float) -> Tensor:
    """Attend over two long streams: the clean one, then each noisy copy on exactly the keys that it may see."""
    clean, width = plan.pattern.clean, plan.pattern.block + 1
    parts = [_fused(query[:, :, :clean], key[:, :, :clean], value[:, :, :clean], plan, dropout, scale)]
    for number, start in enumerate(range(clean, query.shape[2], width)):
        prefix, own = slice(0, number * plan.pattern.block), slice(start, start + width)
        keys = torch.cat([key[:, :, prefix], key[:, :, own]], dim=2)
        values = torch.cat([value[:, :, prefix], value[:, :, own]], dim=2)
        bias = None
        if plan.own_bias is not None and plan.prefix_bias is not None:
            rows = slice(start - clean, start - clean + width)
            bias = torch.cat([plan.prefix_bias[:, :, rows, prefix], plan.own_bias[:, :, rows]], dim=-1)
        parts.append(_sdpa(query[:, :, own], keys, values, bias, dropout, scale))
    return torch.cat(parts, dim=2)


@lru_cache(maxsize=1)
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _flex(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # Uncompiled, FlexAttention writes out all scores; inside a compiled step it is fused with it.
    call = _compiled_flex() if query.is_cuda and not torch.compiler.is_compiling() else flex_attention
    grouped = query.shape[1] != key.shape[1]
    return call(query, key, value, block_mask=plan.block_mask, scale=scale, enable_gqa=grouped).transpose(1, 2)


def _probabilities(scores: Tensor, dropout: float) -> Tensor:
    probabilities = torch.softmax(scores, dim=-1)
    return F.dropout(probabilities, p=dropout, training=True) if dropout > 0 else probabilities


def _materialised(query: Tensor, key: Tensor, value: Tensor, plan: Plan, dropout: float) -> Tensor:
    scores = query @ key.transpose(-1, -2)
    if plan.bias is not None:
        scores = scores + plan.bias.to(scores.dtype)
    return _probabilities(scores, dropout) @ value


def _two_streams(query: Tensor, key: Tensor, value: Tensor, plan: Plan, dropout: float) -> Tensor:
    """Attend in two calls: clean on clean; noisy on its own copy and the clean prefix, in one softmax."""
    clean, width = plan.pattern.clean, plan.pattern.block + 1
    clean_key, clean_value = key[:, :, :clean], value[:, :, :clean]
    settled = _materialised(query[:, :, :clean], clean_key, clean_value, plan, dropout)
    noisy_query, noisy_key, noisy_value = (part[:, :, clean:].unflatten(2, (-1, width)) for part in (query, key, value))
    on_prefix = query[:, :, clean:] @ clean_key.transpose(-1, -2)
    assert plan.prefix_bias is not None
    on_prefix = on_prefix + plan.prefix_bias.to(on_prefix.dtype)
    on_self = (noisy_query @ noisy_key.transpose(-1, -2)).flatten(2, 3)
    if plan.own_bias is not None:
        on_self = on_self + plan.own_bias.to(on_self.dtype)
    probabilities = _probabilities(torch.cat([on_prefix, on_self], dim=-1), dropout)
    from_prefix = probabilities[..., :clean] @ clean_value
    from_self = (probabilities[..., clean:].unflatten(2, (-1, width)) @ noisy_value).flatten(2, 3)
    return torch.cat([settled, from_prefix + from_self], dim=2)
