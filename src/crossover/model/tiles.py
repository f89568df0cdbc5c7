"""Attention in tiles on a CPU: neighbouring queries share their keys, and keys that nobody sees are never multiplied.

Suffixes: B batch, H heads, N inputs, D head width, G = B x H, Q queries of a tile, K keys of a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from crossover.records import Pattern

# Queries of a tile: few enough that a causal tile wastes few keys, enough that its products are worth their call.
TILE_QUERIES, TILE_QUERIES_FULL = 64, 256
# Probabilities of a layer are kept for the backward pass up to this size, and computed again above it.
KEEP_BYTES = 128 * 2**20
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tile:
    """Neighbouring queries and the keys that any of them may see.

    Args:
        start: First query.
        stop: One past the last query.
        keys: One or two ranges of keys, in order.
        bias: Additive mask [1 or B, Q, K'] of the last K' keys, 0 or minus infinity; every query sees all keys before
            them, or all keys if there is none.
    """

    start: int
    stop: int
    keys: Ranges
    bias: Tensor | None


def tiles_of(
    pattern: Pattern, inputs: int, allow: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> tuple[Tile, ...]:
    """Cut a pattern into tiles.

    Args:
        pattern: The pattern.
        inputs: Input positions N.
        allow: Says which of the queries [Q, 1] may see which of the keys [1, K]: booleans [1 or B, Q, K].
        dtype: Type of the bias.

    Returns:
        Tiles that together hold every query once and every pair that may see each other.
    """
    tiles = []
    for start, stop, keys in _ranges(pattern, inputs):
        query = torch.arange(start, stop)[:, None]
        key = torch.cat([torch.arange(*part) for part in keys])[None, :]
        allowed = allow(query, key)
        hidden = (~allowed).flatten(0, 1).any(0).nonzero()
        bias = additive(allowed[..., int(hidden[0]) :], dtype) if len(hidden) else None
        tiles.append(Tile(start, stop, keys, bias))
    return tuple(tiles)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Write a mask as what is added to scores: 0 where a query may look, minus infinity elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def _ranges(pattern: Pattern, inputs: int) -> Iterator[tuple[int, int, Ranges]]:
    """Name the queries and the key ranges of each tile."""
    if pattern.kind != "two_stream":
        yield from _one_stream(pattern, inputs)
        return
    size, clean = pattern.block, pattern.clean
    yield from _one_stream(Pattern(pattern.clean_kind, size), clean)
    together = max(1, TILE_QUERIES // (size + 1)) * (size + 1)
    for start in range(clean, inputs, together):
        stop = min(inputs, start + together)
        prefix = ((stop - clean) // (size + 1) - 1) * size
        yield start, stop, ((0, prefix), (start, stop)) if prefix else ((start, stop),)


def _one_stream(pattern: Pattern, inputs: int) -> Iterator[tuple[int, int, Ranges]]:
    width = TILE_QUERIES_FULL if pattern.kind == "full" else TILE_QUERIES
    for start in range(0, inputs, width):
        stop = min(inputs, start + width)
        reach = {"full": inputs, "causal": stop}.get(pattern.kind)
        if reach is None:
            reach = min(inputs, -(-stop // pattern.block) * pattern.block)
        yield start, stop, ((0, reach),)


class TiledAttention(torch.autograd.Function):
    """softmax(scale q k^T + bias) v, tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiles: tuple[Tile, ...], scale: float, dropout: float
    ) -> Tensor:
        """Attend.

        Args:
            ctx: autograd's context.
            query: [B, H, N, D].
            key: [B, H, N, D].
            value: [B, H, N, D].
            tiles: The pattern; queries outside all tiles get zeros.
            scale: Factor on the scores.
            dropout: Dropout of the probabilities.

        Returns:
            [B N, H D], contiguous and no view, so that what is compiled behind it meets one kind of tensor.
        """
        ctx.batch, ctx.tiles, ctx.scale = len(query), tiles, scale
        query_GND, key_GND, value_GND = (part.flatten(0, 1).contiguous() for part in (query, key, value))
        entries = sum((tile.stop - tile.start) * sum(stop - start for start, stop in tile.keys) for tile in tiles)
        # Scoring has no backward pass to keep anything for.
        keep = any(ctx.needs_input_grad) and entries * len(query_GND) * query.element_size() <= KEEP_BYTES
        out_BNHD = query.new_empty(tuple(query.shape[i] for i in (0, 2, 1, 3)))
        out_BHND = out_BNHD.transpose(1, 2)
        shares: list[Tensor] = []
        drops: list[Tensor] = []
        covered = 0
        with torch.autocast("cpu", enabled=False):
            for tile in tiles:
                out_BHND[:, :, covered : tile.start] = 0
                covered = tile.stop
                share_GQK = _probabilities(query_GND, key_GND, tile, scale)
                shares += [share_GQK] if keep else []
                if dropout > 0:
                    drops.append(torch.empty_like(share_GQK).bernoulli_(1 - dropout).div_(1 - dropout))
                    share_GQK = share_GQK * drops[-1]
                mixed_GQD = torch.bmm(share_GQK, _keys(value_GND, tile))
                out_BHND[:, :, tile.start : tile.stop] = mixed_GQD.unflatten(0, query.shape[:2])
        out_BHND[:, :, covered:] = 0
        ctx.save_for_backward(query_GND, key_GND, value_GND, *shares, *drops)
        ctx.kept = len(shares)
        return out_BNHD.flatten(2).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of query, key and value."""
        query_GND, key_GND, value_GND, *rest = ctx.saved_tensors
        shares, drops = rest[: ctx.kept], rest[ctx.kept :]
        heads = len(query_GND) // ctx.batch
        pull_GND = gradients[0].view(ctx.batch, -1, heads, query_GND.shape[2]).transpose(1, 2).flatten(0, 1)
        to_query, to_key, to_value = (torch.zeros_like(part) for part in (query_GND, key_GND, value_GND))
        with torch.autocast("cpu", enabled=False):
            for number, tile in enumerate(ctx.tiles):
                share_GQK = shares[number] if shares else _probabilities(query_GND, key_GND, tile, ctx.scale)
                pull_GQD = pull_GND[:, tile.start : tile.stop]
                _add(to_value, tile, share_GQK * drops[number] if drops else share_GQK, pull_GQD)
                to_share = torch.bmm(pull_GQD, _keys(value_GND, tile).transpose(1, 2))
                if drops:
                    to_share.mul_(drops[number])
                to_scores = _through_softmax(to_share, share_GQK).mul_(ctx.scale)
                to_query[:, tile.start : tile.stop] = torch.bmm(to_scores, _keys(key_GND, tile))
                _add(to_key, tile, to_scores, query_GND[:, tile.start : tile.stop])
        to_inputs = (part.unflatten(0, (ctx.batch, heads)) for part in (to_query, to_key, to_value))
        return *to_inputs, None, None, None


def _keys(part_GND: Tensor, tile: Tile) -> Tensor:
    ranges = [part_GND[:, start:stop] for start, stop in tile.keys]
    return ranges[0] if len(ranges) == 1 else torch.cat(ranges, dim=1)


def _probabilities(query_GND: Tensor, key_GND: Tensor, tile: Tile, scale: float) -> Tensor:
    query_GQD, key_GKD = query_GND[:, tile.start : tile.stop] * scale, _keys(key_GND, tile)
    scores_GQK = torch.bmm(query_GQD, key_GKD.transpose(1, 2))
    if tile.bias is not None:
        # One bias for all sequences, or one each.
        scores_GQK.unflatten(0, (len(tile.bias), -1))[..., -tile.bias.shape[-1] :] += tile.bias[:, None]
    # In place, since fresh memory costs more than the softmax of a tile.
    return torch.softmax(scores_GQK, dim=-1, out=scores_GQK)


def _through_softmax(to_share_GQK: Tensor, share_GQK: Tensor) -> Tensor:
    dtype = share_GQK.dtype
    return torch.ops.aten._softmax_backward_data.out(to_share_GQK, share_GQK, -1, dtype, grad_input=to_share_GQK)


def _add(to_GND: Tensor, tile: Tile, weights_GQK: Tensor, rows_GQD: Tensor) -> None:
    """Add weights^T rows to the tile's keys."""
    if len(tile.keys) == 1:
        part_GKD = to_GND[:, tile.keys[0][0] : tile.keys[0][1]]
        torch.baddbmm(part_GKD, weights_GQK.transpose(1, 2), rows_GQD, out=part_GKD)
        return
    added_GKD = torch.bmm(weights_GQK.transpose(1, 2), rows_GQD)
    offset = 0
    for start, stop in tile.keys:
        to_GND[:, start:stop] += added_GKD[:, offset : offset + stop - start]
        offset += stop - start
