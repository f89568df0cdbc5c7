"""Tiles hold every query once and every pair that may see each other, whatever their width."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from crossover.model import attention, tiles
from crossover.records import Pattern

CPU = torch.device("cpu")


@st.composite
def patterns(draw):
    block, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    clean, kind = block * (blocks - 1) + draw(st.integers(0, 4)), draw(st.sampled_from(["block_causal", "causal"]))
    length = draw(st.integers(1, 30))
    return draw(
        st.sampled_from(
            [
                (Pattern("causal"), length),
                (Pattern("full"), length),
                (Pattern("block_causal", block), length),
                (Pattern("two_stream", block, clean, kind), clean + blocks * (block + 1)),
            ]
        )
    )


@given(patterns(), st.integers(1, 9), st.booleans())
def test_tiles_are_the_pattern(case, width: int, documents: bool) -> None:
    pattern, inputs = case
    numbers = torch.from_numpy(np.arange(inputs) // 4)[None] if documents else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE_QUERIES", width)
        patch.setattr(tiles, "TILE_QUERIES_FULL", width)
        attention.make_plan.cache_clear()
        if numbers is None:
            plan = attention.make_plan(pattern, inputs, CPU, torch.float32, "tiled")
        else:
            plan = attention.make_document_plan(pattern, numbers, torch.float32, "tiled")
    attention.make_plan.cache_clear()
    seen, covered = np.zeros((inputs, inputs), bool), np.zeros(inputs, int)
    for tile in plan.tiles:
        keys = np.concatenate([np.arange(*part) for part in tile.keys])
        allowed = np.ones((tile.stop - tile.start, len(keys)), bool)
        if tile.bias is not None:
            allowed[:, -tile.bias.shape[-1] :] = tile.bias[0].numpy() == 0
        seen[tile.start : tile.stop, keys] = allowed
        covered[tile.start : tile.stop] += 1
    assert (covered == 1).all()
    assert np.array_equal(seen, tiny.allowed(pattern, inputs, None if numbers is None else numbers[0].numpy()))


@pytest.mark.parametrize("keep_bytes", [0, 2**30], ids=["computed again", "kept"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_is_that_of_the_plain_computation(monkeypatch, keep_bytes, dropout) -> None:
    monkeypatch.setattr(tiles, "TILE_QUERIES", 3)
    monkeypatch.setattr(tiles, "KEEP_BYTES", keep_bytes)
    pattern = Pattern("two_stream", 2, 4, "block_causal")
    cut = tiles.tiles_of(pattern, 13, lambda q, k: attention.visible(pattern, q, k)[None], torch.float64)
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 2, 13, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(query, key, value):
        torch.manual_seed(7)
        return tiles.TiledAttention.apply(query, key, value, cut, 0.5, dropout)

    # Finite differences, so that forward and backward are held against each other with the same units dropped.
    assert torch.autograd.gradcheck(attend, parts)


def test_queries_that_nobody_reads_are_left_out_with_their_gradient() -> None:
    pattern = Pattern("two_stream", 4, 64, "block_causal")
    inputs = 64 + 17 * 5
    plan = attention.make_plan(pattern, inputs, CPU, torch.float32, "tiled")
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, inputs, 4, generator=generator, requires_grad=True) for _ in range(3))
    whole = attention.mix(query, key, value, plan, 0.5, 0.0)
    part = attention.mix(query, key, value, replace(plan, first_read=64).of_reads, 0.5, 0.0)
    assert torch.equal(part[64:], whole[64:]) and not bool(part[:64].any())
    part[64:].sum().backward()
    assert not bool(query.grad[:, :, :64].any()) and bool(key.grad[:, :, :60].any())
