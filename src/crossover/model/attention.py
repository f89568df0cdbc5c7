"""Four attention patterns as one predicate, and the back ends that compute it.

Suffixes: B batch, H heads, N inputs, Q queries, K keys, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from crossover.model.tiles import Tile, TiledAttention, additive, tiles_of
from crossover.records import Pattern

NAME = "crossover"
# In bfloat16 torch's fused CPU kernel is slower than tiles up to here also where every query sees every key.
TILE_FULL_UP_TO = 512


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
        back_end: "tiled", "sdpa" or "flex".
        tiles: The pattern cut into tiles.
        bias: Additive mask [1 or B, 1, N, N] of "sdpa"; None for full, and for causal, which the kernel knows.
        block_mask: FlexAttention's block mask.
        first_read: No state before this input is read.
    """

    pattern: Pattern
    back_end: str
    tiles: tuple[Tile, ...] = ()
    bias: Tensor | None = None
    block_mask: Any = None
    first_read: int = 0

    @property
    def of_reads(self) -> Plan:
        """The plan for the last layer: the tiles of queries before the first one that is read are left out."""
        if not self.first_read:
            return self
        return replace(self, tiles=tuple(tile for tile in self.tiles if tile.stop > self.first_read))


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
        "flex", "tiled" or "sdpa".
    """
    if device.type != "cpu":
        return "flex" if dropout == 0.0 else "sdpa"
    if pattern.kind == "full" and not (low_precision and inputs <= TILE_FULL_UP_TO):
        return "sdpa"
    return "tiled"


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
        back_end: "tiled", "sdpa" or "flex".

    Returns:
        The plan.
    """
    if back_end == "flex":
        return Plan(pattern, back_end, block_mask=_flex_mask(pattern, inputs, device))
    if back_end == "sdpa" and pattern.kind in ("causal", "full"):
        return Plan(pattern, back_end)
    # Masks are made outside inference mode and autograd, so that training and scoring can share them.
    with torch.inference_mode(False), torch.no_grad():
        if back_end == "tiled":
            return Plan(pattern, back_end, tiles_of(pattern, inputs, lambda q, k: visible(pattern, q, k)[None], dtype))
        return Plan(pattern, back_end, bias=additive(mask_NN(pattern, inputs, device)[None, None], dtype))


def make_document_plan(pattern: Pattern, documents_BN: Tensor, dtype: torch.dtype, back_end: str) -> Plan:
    """Prepare a pattern whose inputs also see only their own document (and inputs of document -1).

    Args:
        pattern: The pattern.
        documents_BN: Document number of each input.
        dtype: Type of the scores.
        back_end: "tiled", "sdpa" or "flex", which builds a block mask per batch.

    Returns:
        The plan.
    """
    if back_end == "flex":
        inputs = documents_BN.shape[1]
        return Plan(pattern, back_end, block_mask=_flex_mask(pattern, inputs, documents_BN.device, documents_BN))

    def allow(query: Tensor, key: Tensor) -> Tensor:
        mine, theirs = documents_BN[:, query[:, 0], None], documents_BN[:, None, key[0]]
        return visible(pattern, query, key) & ((mine == theirs) | (theirs == -1))

    if back_end == "tiled":
        return Plan(pattern, back_end, tiles_of(pattern, documents_BN.shape[1], allow, dtype))
    index = torch.arange(documents_BN.shape[1], device=documents_BN.device)
    return Plan(pattern, back_end, bias=additive(allow(index[:, None], index[None, :])[:, None], dtype))


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed_MD = mix(query.to(value.dtype), key.to(value.dtype), value, plan, scale, dropout)
    return mixed_MD.view(query.shape[0], query.shape[2], query.shape[1], -1), None


def mix(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float, dropout: float) -> Tensor:
    """Attend under a plan.

    Args:
        query: [B, H, N, D].
        key: [B, H_kv, N, D], of the same type.
        value: [B, H_kv, N, D].
        plan: The pattern, made ready.
        scale: Factor on the scores.
        dropout: Dropout of the probabilities.

    Returns:
        [B N, H D].
    """
    if plan.back_end == "flex":
        return _flex(query, key, value, plan, scale).flatten(2).flatten(0, 1)
    if plan.back_end == "sdpa":
        return _fused(query, key, value, plan, dropout, scale).transpose(1, 2).flatten(2).flatten(0, 1)
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    mixed: Any = TiledAttention.apply(query, key, value, plan.tiles, scale, dropout)
    return mixed


def _fused(query: Tensor, key: Tensor, value: Tensor, plan: Plan, dropout: float, scale: float) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    bias = None if plan.bias is None else plan.bias.to(value.dtype)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias,
        dropout_p=dropout,
        is_causal=bias is None and plan.pattern.kind == "causal",
        scale=scale,
        enable_gqa=grouped,
    )


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
