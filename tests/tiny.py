"""Models, vocabularies and masks that are small enough to be checked by enumeration; shared by several test files."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from crossover.model.attention import Plan
from crossover.model.backbone import Backbone, build
from crossover.model.shapes import Shape
from crossover.records import Example, Pattern, Vocabulary


def vocabulary(predictable: int = 3, *, separate: bool = False, rarity: bool = False) -> Vocabulary:
    """Data ids below `predictable`, the last of them the end of a document; then BOS, then the mask."""
    ranks = np.linspace(0, 1, predictable + 4).astype(np.float32) if rarity else None
    return Vocabulary(
        size=predictable + 4,
        predictable=predictable,
        bos_id=predictable,
        eos_id=predictable - 1,
        mask_id=predictable + 1,
        rarity_V=ranks,
        separate_documents=separate,
    )


def shape(family: str = "llama", rows: int = 7, *, kv_heads: int = 1, tied: bool = True) -> Shape:
    mlp = {"experts": 5, "experts_per_token": 2, "expert_width": 16} if family == "qwen3_moe" else {}
    wide = 0 if mlp else 24
    return Shape(family, rows, 16, 2, heads=2, kv_heads=kv_heads, head_width=8, mlp_width=wide, tied=tied, **mlp)


def model(
    words: Vocabulary, context: int, family: str = "llama", *, kv_heads: int = 1, tied: bool = True, seed: int = 0
) -> Backbone:
    """A random model whose weights are large enough that what it sees changes what it says."""
    made = build(shape(family, words.size, kv_heads=kv_heads, tied=tied), words, context=context, seed=seed)
    with torch.no_grad():
        for name, parameter in made.inner.named_parameters():
            if parameter.dim() >= 2:
                parameter.mul_(20.0 if "embed" in name or "lm_head" in name else 10.0)
    return made.eval()


def allowed(pattern: Pattern, inputs: int, documents_N: np.ndarray | None = None) -> np.ndarray:
    """Write a pattern's mask out pair by pair, from the words of its definition and not from its code."""

    def group(index: int) -> tuple[str, int, int]:
        """Stream, block and position of an input."""
        if pattern.kind != "two_stream":
            return "clean", index // max(1, pattern.block), index
        if index < pattern.clean:
            return "clean", index // pattern.block, index
        block, inside = divmod(index - pattern.clean, pattern.block + 1)
        return "noisy", block, block * pattern.block + inside

    mask = np.zeros((inputs, inputs), bool)
    for query in range(inputs):
        stream, block, position = group(query)
        for key in range(inputs):
            key_stream, key_block, key_position = group(key)
            if pattern.kind == "full":
                seen = True
            elif stream == "noisy":
                before = key_stream == "clean" and key_position < block * pattern.block
                seen = before or (key_stream == "noisy" and key_block == block)
            elif pattern.kind == "causal" or (pattern.kind == "two_stream" and pattern.clean_kind == "causal"):
                seen = key_stream == "clean" and key_position <= position
            else:
                seen = key_stream == "clean" and key_block <= block
            mask[query, key] = seen
    if documents_N is not None:
        mask &= (documents_N[:, None] == documents_N[None, :]) | (documents_N[None, :] == -1)
    return mask


def dense_plan(mask_BNN: np.ndarray) -> Plan:
    """A plan that applies exactly this mask [N, N] or [B, N, N], whatever patterns there are."""
    seen = torch.from_numpy(np.ascontiguousarray(mask_BNN))
    seen = seen[None] if seen.dim() == 2 else seen
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill_(~seen, float("-inf"))[:, None]
    return Plan(Pattern("full"), "sdpa", bias=bias)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def plan_of(backbone: Backbone, example: Example) -> Plan:
    documents = None if example.documents_BN is None else tensor(example.documents_BN)
    return backbone.plan(example.pattern, example.inputs_BN.shape[1], documents)


def states(backbone: Backbone, example: Example) -> Tensor:
    """Every state of an example, [B * N, D]."""
    with torch.no_grad():
        found = backbone.states(tensor(example.inputs_BN), tensor(example.positions_BN), plan_of(backbone, example))
    return found.flatten(0, 1)


def reads(example: Example) -> np.ndarray:
    return np.arange(example.inputs_BN.size) if example.reads_R is None else example.reads_R


def nats(backbone: Backbone, example: Example) -> np.ndarray:
    """Nats of every read state's target."""
    with torch.no_grad():
        index = None if example.reads_R is None else tensor(example.reads_R)
        inputs, positions = tensor(example.inputs_BN), tensor(example.positions_BN)
        plan = plan_of(backbone, example)
        return backbone.nll(inputs, positions, plan, index, tensor(example.targets_R)).double().numpy()


def loss(backbone: Backbone, example: Example, data_tokens: float | None = None) -> Tensor:
    return backbone(
        tensor(example.inputs_BN),
        tensor(example.positions_BN),
        plan_of(backbone, example),
        None if example.reads_R is None else tensor(example.reads_R),
        tensor(example.targets_R),
        tensor(example.weights_R),
        float(example.data_tokens if data_tokens is None else data_tokens),
    )
