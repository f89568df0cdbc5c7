"""Configurations from elsewhere: what the backbone can carry becomes its shape, the rest is refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, Qwen3Config, Qwen3MoeConfig

from crossover.errors import CheckpointError
from crossover.model.shapes import SPARSE, Shape
from crossover.parsing import parse_json, read_bounded

_FAMILIES = {"llama": LlamaConfig, "qwen3": Qwen3Config, SPARSE: Qwen3MoeConfig}
MOST_LAYERS = 4096
_LARGEST_CONFIG_BYTES = 1 << 24
# A hub name, with a branch, tag or commit behind @.
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_WANTED = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]


@dataclass(frozen=True)
class Build:
    """What a configuration asks of the backbone.

    Args:
        shape: Its size; the vocabulary is the rows of the embedding.
        norm_eps: Epsilon of the norms.
        rope_theta: Base of the rotary positions.
        positions: How many there are.
    """

    shape: Shape
    norm_eps: float
    rope_theta: float
    positions: int

    def section(self) -> dict[str, Any]:
        """Write it as a recipe's section `model`."""
        shape = self.shape
        tree: dict[str, Any] = {"family": shape.family, "width": shape.width, "depth": shape.depth}
        tree |= {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_width": shape.head_width}
        if shape.experts:
            tree |= {"experts": shape.experts, "experts_per_token": shape.experts_per_token}
            tree |= {"expert_width": shape.expert_width}
        else:
            tree |= {"mlp_width": shape.mlp_width}
        return {**tree, "tied": shape.tied, "rope_theta": self.rope_theta, "norm_eps": self.norm_eps}


def read_build(folder: Path) -> Build:
    """Read config.json.

    Args:
        folder: A Hugging Face folder.

    Returns:
        What it asks for.

    Raises:
        CheckpointError: There is none, or it asks for something that the backbone cannot carry.
    """
    path = folder / "config.json"
    try:
        tree = parse_json(read_bounded(path, _LARGEST_CONFIG_BYTES))
        kind = str(tree.get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    layers = tree.get("num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        # transformers writes down what kind each layer is, so their number is looked at first.
        raise CheckpointError(f"{path}: num_hidden_layers {layers!r}: expected a number up to {MOST_LAYERS:,}")
    if "auto_map" in tree:
        raise CheckpointError(f"{path}: asks for code of its own (auto_map), which is never run; it is not adopted")
    if kind not in _FAMILIES:
        raise CheckpointError(f"{path}: model_type '{kind}' is not supported; {', '.join(_FAMILIES)} are")
    try:
        config = _FAMILIES[kind].from_dict(tree)
        problems = list(_problems(tree, config))
        build = None if problems else _build(config)
    except Exception as error:  # transformers checks by whatever it likes to raise
        raise CheckpointError(f"{path}: is no {kind} configuration: {str(error)[:500]}") from None
    if build is None:
        raise CheckpointError(f"{path}: cannot be carried by the backbone: {'; '.join(problems)}")
    return build


def _problems(tree: Mapping[str, Any], config: Any) -> Iterator[str]:
    """Say what of a configuration would be lost."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind != "default" or "rope_theta" not in rope:
        yield f"rotary positions of type '{kind}' (rope_scaling)"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield f"partial_rotary_factor {rope['partial_rotary_factor']:g}"
    windows = [kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"]
    if windows or getattr(config, "use_sliding_window", False):
        yield "sliding-window attention (use_sliding_window)"
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            yield f"{name}: its projections have biases"
    if getattr(config, "is_causal", None) is False:
        yield "is_causal false: it sees both ways, and is no next-token model"
    if config.hidden_act != "silu":
        yield f"hidden_act '{config.hidden_act}' (silu alone)"
    if tree.get("quantization_config"):
        yield "quantization_config: its weights are quantized"
    if config.model_type == SPARSE:
        if config.decoder_sparse_step != 1 or config.mlp_only_layers:
            yield "layers without experts among those with them (decoder_sparse_step, mlp_only_layers)"
        if config.norm_topk_prob != (config.num_experts_per_tok > 1):
            yield f"norm_topk_prob {config.norm_topk_prob} with {config.num_experts_per_tok} expert(s) per token"


def _build(config: Any) -> Build:
    sparse = config.model_type == SPARSE
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(
        family=config.model_type,
        vocabulary=config.vocab_size,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_width=head,
        mlp_width=0 if sparse else config.intermediate_size,
        tied=bool(config.tie_word_embeddings),
        experts=config.num_experts if sparse else 0,
        experts_per_token=config.num_experts_per_tok if sparse else 0,
        expert_width=config.moe_intermediate_size if sparse else 0,
    )
    if min(shape.vocabulary, shape.width, shape.depth, shape.heads, shape.kv_heads, head) < 1 or (
        min(shape.mlp_width, shape.experts, shape.experts_per_token, shape.expert_width) < 0
    ):
        raise ValueError("a size is below 1")
    rope = float(config.rope_parameters["rope_theta"])
    return Build(shape, float(config.rms_norm_eps), rope, int(config.max_position_embeddings))


def locate(source: str) -> tuple[Path, str]:
    """Find a model by its path, or fetch it from the hub by its name.

    Args:
        source: A folder, a file, or a name such as `org/name` or `org/name@revision`.

    Returns:
        Where it lies, and what it is called: the last part of its path, or its name and commit.

    Raises:
        CheckpointError: There is nothing of that name here, and it cannot be fetched.
    """
    path = Path(source).expanduser()
    if path.exists():
        # The last part of a path: folders of one machine say nothing elsewhere, and the hash says which file it was.
        return path, path.resolve().name
    named = _NAME.fullmatch(source)
    if named is None:
        raise CheckpointError(f"{source}: no such file or folder; expected one, or a hub name such as org/name")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(named[1], revision=named[2], allow_patterns=_WANTED)
    except Exception as error:  # the library and what it stands on raise of every kind
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{source}: no such file or folder, and it cannot be fetched from the hub: {type(error).__name__}: {why}"
        ) from None
    # The hub's cache keeps each commit in a folder of its name.
    return Path(found), f"{named[1]}@{Path(found).name}"
