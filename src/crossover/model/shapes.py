"""Shapes of models: presets, and counts of parameters and FLOPs in closed form (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from crossover.errors import RecipeError, nearest
from crossover.records import Pattern
from crossover.sections import ModelRecipe


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the size of a backbone.

    Args:
        family: "llama", "qwen3" (qk-norm) or "qwen3_moe" (qk-norm, experts in place of the MLP).
        vocabulary: Rows of the embedding.
        width: Residual width.
        depth: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_width: Width of one head.
        mlp_width: Hidden width of the gated MLP; 0 where there are experts.
        tied: Whether the head shares the embedding.
        experts: Experts of a layer, each a gated MLP; 0 for a dense backbone.
        experts_per_token: How many of them a token goes through.
        expert_width: Hidden width of one.
    """

    family: str
    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    tied: bool
    experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0


SPARSE = "qwen3_moe"
# width, depth, heads, kv_heads, head_width, mlp_width, tied. The large ones follow published models' proportions.
PRESETS: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "250k": (64, 4, 1, 1, 64, 192, True),
    "1m": (128, 4, 2, 2, 64, 352, True),
    "5m": (256, 6, 4, 4, 64, 704, True),
    "25m": (512, 8, 8, 8, 64, 1408, True),
    "85m": (768, 12, 12, 12, 64, 2048, True),
    "300m": (1024, 24, 16, 8, 64, 2816, True),
    "1b": (2048, 16, 32, 8, 64, 8192, True),
    "1.7b": (2048, 28, 16, 8, 128, 6144, True),
    "sparse-1m": (128, 4, 2, 2, 64, 0, True),
    "8b-a1b": (2048, 20, 32, 4, 128, 0, False),
}
# experts, experts_per_token, expert_width. "sparse-1m" has as many active parameters as "1m" has, and three times as
# many in all; "8b-a1b" has the experts, heads and untied head of Qwen3-30B-A3B at a smaller depth and expert width.
PRESET_EXPERTS: dict[str, tuple[int, int, int]] = {"sparse-1m": (8, 2, 176), "8b-a1b": (128, 8, 512)}


@dataclass(frozen=True)
class Workload:
    """What one sequence asks of the model under one objective.

    Args:
        inputs: Input positions, all streams and copies counted.
        reads: States that the head reads (expected number).
        entries: Live attention entries (query-key pairs that may see each other).
        read_entries: Those of the queries that are read; None if they see as many keys as the mean query.
    """

    inputs: float
    reads: float
    entries: float
    read_entries: float | None = None


def shape_of(model: ModelRecipe, vocabulary: int) -> Shape:
    """Fill a recipe's model section from its preset.

    Args:
        model: The recipe's section.
        vocabulary: Rows of the embedding.

    Returns:
        The complete shape.

    Raises:
        RecipeError: The preset does not exist, the heads do not fit together, or a setting has no effect.
    """
    if model.preset not in PRESETS:
        raise RecipeError(f"model.preset: no preset called '{model.preset}'; {nearest(model.preset, PRESETS)}")
    experts, experts_per_token, expert_width = _experts_of(model)
    width, depth, heads, kv_heads, head_width, mlp_width, tied = PRESETS[model.preset]
    heads = model.heads or heads
    shape = Shape(
        family=model.family,
        vocabulary=vocabulary,
        width=model.width or width,
        depth=model.depth or depth,
        heads=heads,
        kv_heads=model.kv_heads or (heads if model.heads else kv_heads),
        head_width=model.head_width or head_width,
        mlp_width=0 if experts else model.mlp_width or mlp_width,
        tied=tied if model.tied is None else model.tied,
        experts=experts,
        experts_per_token=experts_per_token,
        expert_width=expert_width,
    )
    if shape.heads % shape.kv_heads:
        raise RecipeError(f"model.kv_heads: {shape.kv_heads} does not divide model.heads {shape.heads}")
    if shape.width % shape.heads:
        raise RecipeError(
            f"model.width: {shape.width} must be a multiple of model.heads {shape.heads}, as transformers asks; "
            f"try {max(1, round(shape.width / shape.heads)) * shape.heads}"
        )
    if shape.head_width % 2:
        raise RecipeError(f"model.head_width: {shape.head_width} must be even (rotary positions work on pairs)")
    return shape


def _experts_of(model: ModelRecipe) -> tuple[int, int, int]:
    """Fill the experts from the preset; refuse what only the other kind of backbone has."""
    given = {name: getattr(model, name) for name in ("experts", "experts_per_token", "expert_width")}
    if model.family != SPARSE:
        if model.preset in PRESET_EXPERTS:
            raise RecipeError(
                f"model.family: '{model.family}' has no experts, and preset '{model.preset}' is made of them; "
                f"set model.family to {SPARSE}, or choose a dense preset"
            )
        losses = {name: getattr(model, name) for name in ("balance_coefficient", "router_z_coefficient")}
        for name, value in {**given, **losses}.items():
            if value is not None:
                raise RecipeError(
                    f"model.{name}: {value:g} has no effect on family '{model.family}', which has no experts; "
                    f"leave it out, or set model.family to {SPARSE}"
                )
        return 0, 0, 0
    if model.mlp_width is not None:
        raise RecipeError(
            f"model.mlp_width: {model.mlp_width} has no effect on family '{SPARSE}'; set model.expert_width"
        )
    known = PRESET_EXPERTS.get(model.preset, (0, 0, 0))
    experts, per_token, width = (value or other for value, other in zip(given.values(), known, strict=True))
    if missing := [name for name, value in zip(given, (experts, per_token, width), strict=True) if not value]:
        raise RecipeError(
            f"model.{missing[0]}: preset '{model.preset}' has no experts; give {', '.join(missing)}, "
            f"or choose one of {', '.join(PRESET_EXPERTS)}"
        )
    if per_token >= experts:
        raise RecipeError(
            f"model.experts_per_token: {per_token} must be below model.experts {experts}, or there is nothing to choose"
        )
    if width % 8:
        raise RecipeError(
            f"model.expert_width: {width} must be a multiple of 8, or a GPU cannot multiply by all experts at once; "
            f"try {max(1, round(width / 8)) * 8}"
        )
    return experts, per_token, width


def layer_matrix_parameters(shape: Shape) -> int:
    """Count the weights of one layer that take part in matrix products, those of all experts included."""
    return _active_matrix_parameters(shape) + _idle_parameters(shape)


def _active_matrix_parameters(shape: Shape) -> int:
    """Count those that one token meets: of the experts, the ones that it is sent to."""
    queries = 2 * shape.width * shape.heads * shape.head_width
    router = shape.width * shape.experts
    mlp = shape.mlp_width + shape.experts_per_token * shape.expert_width
    return queries + _key_value_parameters(shape) + router + 3 * shape.width * mlp


def _idle_parameters(shape: Shape) -> int:
    """Count the weights of the experts of one layer that a token is not sent to."""
    return 3 * shape.width * (shape.experts - shape.experts_per_token) * shape.expert_width


def _key_value_parameters(shape: Shape) -> int:
    return 2 * shape.width * shape.kv_heads * shape.head_width


def parameters(shape: Shape) -> int:
    """Count all parameters, a tied head once.

    Args:
        shape: The backbone.

    Returns:
        The number that `sum(p.numel() for p in model.parameters())` gives.
    """
    norms = 2 * shape.width + (2 * shape.head_width if shape.family in ("qwen3", SPARSE) else 0)
    embeddings = shape.vocabulary * shape.width * (1 if shape.tied else 2)
    return shape.depth * (layer_matrix_parameters(shape) + norms) + shape.width + embeddings


def active_parameters(shape: Shape) -> int:
    """Count the parameters that one token meets: all but those of the experts that it is not sent to.

    Args:
        shape: The backbone.

    Returns:
        The N of 6 N D; `parameters(shape)` for a dense backbone.
    """
    return parameters(shape) - shape.depth * _idle_parameters(shape)


def body_parameters(shape: Shape) -> int:
    """Count the parameters outside the embedding and the head."""
    return parameters(replace(shape, vocabulary=0))


def forward_flops(shape: Shape, work: Workload, *, head_rows: int | None = None) -> float:
    """Count the useful FLOPs of one forward pass over one sequence.

    A multiply and an add are two FLOPs; matrix products only; attention counts live entries only. The head counts only
    states that are read, and so does the last layer, whose other states are needed as keys and values alone. Of
    experts, the router and those that a token is sent to count.

    Args:
        shape: The backbone.
        work: What the objective asks for.
        head_rows: Vocabulary rows that the head computes, all by default.

    Returns:
        FLOPs.
    """
    attended = work.entries * work.reads / work.inputs if work.read_entries is None else work.read_entries
    each, key_value = _active_matrix_parameters(shape), _key_value_parameters(shape)
    attention = 4 * shape.heads * shape.head_width
    layers = (shape.depth - 1) * (2 * each * work.inputs + attention * work.entries)
    last = 2 * key_value * work.inputs + 2 * (each - key_value) * work.reads + attention * attended
    head = 2 * shape.width * (shape.vocabulary if head_rows is None else head_rows) * work.reads
    return layers + last + head


def training_flops(shape: Shape, work: Workload, *, head_rows: int | None = None) -> float:
    """Count the useful FLOPs of forward and backward over one sequence: three times the forward pass."""
    return 3 * forward_flops(shape, work, head_rows=head_rows)


def live_entries(pattern: Pattern, inputs: int) -> int:
    """Count the query-key pairs of a pattern that may see each other, in closed form.

    Args:
        pattern: The pattern, without document borders.
        inputs: Input positions N (both streams).

    Returns:
        The number of true entries of the N x N mask.
    """
    if pattern.kind == "full":
        return inputs * inputs
    if pattern.kind == "causal":
        return inputs * (inputs + 1) // 2
    block = pattern.block
    if pattern.kind == "block_causal":
        return _block_causal_entries(inputs, block)
    clean = pattern.clean
    blocks = (inputs - clean) // (block + 1)
    own = blocks * (block + 1) ** 2
    prefix = (block + 1) * block * blocks * (blocks - 1) // 2
    causal = pattern.clean_kind == "causal"
    return own + prefix + (clean * (clean + 1) // 2 if causal else _block_causal_entries(clean, block))


def _block_causal_entries(inputs: int, block: int) -> int:
    # A query sees every key up to the end of its block; the last block may be cut short.
    whole, rest = divmod(inputs, block)
    return block * block * whole * (whole + 1) // 2 + rest * inputs
