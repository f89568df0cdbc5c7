"""Closed forms of FLOPs against torch's own counter on the meta device: small models, every objective.

What is compared: all matrix products of forward and backward, and attention. The counter sees kernels and not what of
their work is useful, so two things are put on the same footing before the comparison, both exactly. Attention is run
with the full pattern, and the closed form is given as many entries: that its own entries are those of the pattern is
shown in `test_counts.py`, pair by pair. And the last layer projects queries of all states, and attends with them, where
the closed form counts the read ones: the difference is added to it. The rest has to agree as it stands, with the reads
and inputs that the objective states for a window.

Experts run as transformers' `batched_mm`, which alone has static shapes (the others look at values, of which the meta
device has none) and multiplies the same rows with the same weights.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from crossover.model import shapes
from crossover.model.attention import Plan
from crossover.model.backbone import build
from crossover.model.routing import RouterLosses
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.records import Pattern
from crossover.sections import ModelRecipe
from crossover.streams import stream

T, WINDOWS = 64, 16
MODELS = {
    "llama": ModelRecipe(preset="250k"),
    "qwen3": ModelRecipe(preset="1m", family="qwen3", kv_heads=1),
    "qwen3_moe": ModelRecipe(preset="sparse-1m", family="qwen3_moe", kv_heads=1),
}
OBJECTIVES = {
    "autoregressive": Autoregressive(),
    "autoregressive, two passes": Autoregressive(input_mask_rate=0.3, masked_input_weight=0.4),
    "masked": Masked(),
    "block(16)": Block(16),
    "block(16), causal, next-token loss": Block(16, clean="causal", autoregressive_weight=0.5),
}


def counted(model, example) -> tuple[int, int]:
    """Forward and training FLOPs of an example as torch counts them, on the meta device, attention in full."""

    def empty(array, kind=torch.long) -> torch.Tensor:
        return torch.zeros(array.shape, dtype=kind, device="meta")

    arguments = (
        empty(example.inputs_BN),
        empty(example.positions_BN[:1]),
        Plan(Pattern("full"), "sdpa"),
        None if example.reads_R is None else empty(example.reads_R),
        empty(example.targets_R),
        empty(example.weights_R, torch.float32),
        float(example.data_tokens),
    )
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model.eval()(*arguments)
    with FlopCounterMode(display=False) as training:
        # With the routers' auxiliary losses, which have no products.
        model.train()(*arguments).backward()
    return forward.get_total_flops(), training.get_total_flops()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", MODELS)
def test_flops_of_every_objective_are_those_that_torch_counts(name, objective) -> None:
    words = tiny.vocabulary(1000)
    shape = shapes.shape_of(MODELS[name], words.size)
    with torch.device("meta"):
        model = build(shape, words, context=T, seed=0, router_losses=RouterLosses() if shape.experts else None)
    if shape.experts:
        model.inner.set_experts_implementation("batched_mm")
    tokens = stream(0, "text").integers(0, 1000, (WINDOWS, T))
    example = OBJECTIVES[objective].corrupt(tokens, stream(0, "mask"), words)
    inputs, work = example.inputs_BN.shape[1], OBJECTIVES[objective].workload(T)
    rows = len(example.inputs_BN) / WINDOWS
    entries = rows * inputs**2
    full = replace(work, entries=entries, read_entries=entries)
    unread = 2 * shape.width * shape.heads * shape.head_width * (work.inputs - work.reads)
    forward, training = counted(model, example)
    wanted = shapes.forward_flops(shape, full, head_rows=words.predictable) + unread
    assert forward == wanted * WINDOWS
    assert training == 3 * wanted * WINDOWS
