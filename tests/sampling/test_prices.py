"""Passes are counted as they are run, and FLOPs are those that torch counts."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import tiny
from crossover.model.backbone import build
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.policies import policy_of
from crossover.sampling.prices import Prices
from crossover.sampling.record import Generation, flops_text

T = 64
SAMPLERS = {
    "ar": AutoregressiveSampler(),
    "ar, uncached": AutoregressiveSampler(cached=False),
    "masked": MaskedSampler(),
    "masked, 4 a pass": MaskedSampler(policy=policy_of("left_to_right(4)")),
    "masked, ancestral": MaskedSampler(policy=policy_of("ancestral(10)")),
    "masked, confidence": MaskedSampler(policy=policy_of("confidence(4)")),
    "masked, guided": MaskedSampler(guidance=1.0),
    "block": BlockSampler(16),
    "block, confidence": BlockSampler(16, policy=policy_of("confidence(4)")),
    "block, causal": BlockSampler(16, clean="causal"),
    "block, uncached": BlockSampler(16, cached=False),
}


def model_of(family: str = "llama"):
    words = tiny.vocabulary(500)
    object.__setattr__(words, "eos_id", 502)  # no document ends
    shape = replace(
        tiny.shape(family, words.size, kv_heads=2), width=64, depth=8, heads=4, head_width=16, mlp_width=176
    )
    return build(shape, words, context=T, seed=0).eval(), shape


def fused(query, key, value, *args, out_val=None, attn_mask=None, **kwargs) -> float:
    """The CPU's fused attention, which torch's counter does not know; of a mask, pairs that see each other count."""
    flops = sdpa_flop_count(query.shape, key.shape, value.shape)
    return flops if attn_mask is None else flops * float(torch.isfinite(attn_mask).float().mean())


def counted(call) -> float:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    object.__setattr__(fused, "_get_raw", True)
    with FlopCounterMode(display=False, custom_mapping={kernel: fused}) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "family"), [*((name, "llama") for name in SAMPLERS), ("ar", "qwen3"), ("block", "qwen3")]
)
def test_flops_are_those_that_torch_counts(name, family) -> None:
    """Within 4%: queries of the last layer are projected, and attend, where nobody reads their states too."""
    model, shape = model_of(family)
    assert Prices.of(model).shape == shape
    made = []
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8]]
    found = counted(lambda: made.extend(SAMPLERS[name].sample(model, prompts, 24, seed=0)))
    assert made[0].flops == pytest.approx(found, rel=0.04)
    assert made[0].flops <= found


@pytest.mark.parametrize("name", SAMPLERS)
def test_passes_are_counted_as_they_are_run(name) -> None:
    model, _ = model_of()
    with mock.patch.object(model, "logits", wraps=model.logits) as head:
        made = SAMPLERS[name].sample(model, [[1, 2, 3]], 40, seed=0)[0]
    # A guided pass is two rows of one call.
    assert made.passes == head.call_count * (2 if "guided" in name else 1)
    expected = {
        "ar": 40,
        "ar, uncached": 40,
        "masked": 40,
        "masked, 4 a pass": 10,
        "masked, confidence": 10,
        "masked, guided": 80,
        "block": 40,
        # Blocks of 16 hold 13, 16 and 11 of the tokens.
        "block, confidence": 4 + 4 + 3,
        "block, causal": 40,
        "block, uncached": 40,
    }
    assert made.passes == expected.get(name, made.passes)
    assert name != "masked, ancestral" or made.passes <= 10


def test_the_cache_saves_what_it_should() -> None:
    model, _ = model_of()
    flops = {name: SAMPLERS[name].sample(model, [[1] * 20], 40, seed=0)[0].flops for name in SAMPLERS}
    assert flops["ar"] < flops["ar, uncached"] / 10
    assert flops["block"] < flops["block, uncached"] / 2
    assert flops["ar"] < flops["block"] < flops["masked"]


def test_a_record_says_what_it_cost() -> None:
    made = Generation(0, (1, 2, 3), (2, 3), ("b",), "ab", "length", 2, 3.14e9, 0.5)
    assert made.tokens_per_second == 4
    assert made.describe() == "2 tokens, 2 forward passes, 3.14 GFLOPs, 4 tokens/s"
    assert [flops_text(value) for value in (0, 999, 1e3, 2.5e7, 1e13)] == [
        "0 FLOPs",
        "999 FLOPs",
        "1 kFLOPs",
        "25 MFLOPs",
        "10 TFLOPs",
    ]
