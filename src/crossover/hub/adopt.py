"""Models from elsewhere: a run's own folder, and llama2.c files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from crossover.data.tokenizer import Tokenizer
from crossover.errors import CheckpointError
from crossover.model.backbone import Backbone, make_config, wrap
from crossover.model.shapes import Shape, parameters
from crossover.records import Vocabulary


def open_model(folder: Path) -> tuple[Backbone, Tokenizer, dict[str, Any]]:
    """Open a model folder that a run left.

    Args:
        folder: `model/` of a run, or a copy of it.

    Returns:
        The model, its tokenizer, and what the folder says about itself.

    Raises:
        CheckpointError: The folder is missing, incomplete or not one of ours.
    """
    try:
        tree = json.loads((folder / "config.json").read_text("utf-8"))
        facts = dict(tree["crossover"])
        tokenizer = Tokenizer.load(folder)
        model = wrap(AutoConfig.from_pretrained(folder), tokenizer.vocabulary)
        _load(model, load_file(folder / "model.safetensors"), folder)
    except KeyError:
        raise CheckpointError(f"{folder}: config.json has no 'crossover' section; it was not left by a run") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be opened as a model: {error}") from None
    return model.eval(), tokenizer, facts


@torch.no_grad()
def _load(model: Backbone, weights: dict[str, Tensor], folder: Path) -> None:
    for name, parameter in model.inner.named_parameters():
        if name not in weights or weights[name].shape != parameter.shape:
            raise CheckpointError(f"{folder}: model.safetensors has no '{name}' of shape {tuple(parameter.shape)}")
        parameter.copy_(weights[name])


def read_llama2c(path: Path) -> Backbone:
    """Read a llama2.c file (legacy format) into the backbone.

    Its rotary positions turn interleaved pairs; transformers turns halves, so the rows of the query and key
    projections are reordered, which changes nothing else.

    Args:
        path: A `.bin` file: seven int32 and float32 arrays.

    Returns:
        The model; it has no mask token, so all ids are predictable.

    Raises:
        CheckpointError: The file is missing, truncated or of another format.
    """
    try:
        raw = path.read_bytes()
        width, mlp, depth, heads, kv_heads, vocabulary, context = struct.unpack("7i", raw[:28])
        if min(width, mlp, depth, heads, kv_heads, context, abs(vocabulary)) <= 0 or width % heads or heads % kv_heads:
            raise ValueError("its header makes no sense")
    except (OSError, struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a llama2.c model: {error}") from None
    # A negative vocabulary size marks a head of its own.
    shape = Shape("llama", abs(vocabulary), width, depth, heads, kv_heads, width // heads, mlp, vocabulary > 0)
    words = Vocabulary(shape.vocabulary, shape.vocabulary, bos_id=1, eos_id=2, mask_id=shape.vocabulary)
    expected = 28 + 4 * _llama2c_floats(shape, context)
    if len(raw) != expected:
        raise CheckpointError(f"{path}: has {len(raw)} bytes where its header asks for {expected}; is it truncated?")
    model = wrap(make_config(shape, words, context=context), words)
    _load(model, _llama2c_weights(np.frombuffer(raw, "<f4", offset=28), shape, context), path)
    return model.eval()


def _llama2c_floats(shape: Shape, context: int) -> int:
    return parameters(shape) + context * shape.head_width


def _llama2c_weights(values: np.ndarray, shape: Shape, context: int) -> dict[str, Tensor]:
    head = shape.head_width
    q_width, kv_width = shape.heads * head, shape.kv_heads * head
    layout = [
        ("input_layernorm", (shape.width,)),
        ("self_attn.q_proj", (q_width, shape.width)),
        ("self_attn.k_proj", (kv_width, shape.width)),
        ("self_attn.v_proj", (kv_width, shape.width)),
        ("self_attn.o_proj", (shape.width, q_width)),
        ("post_attention_layernorm", (shape.width,)),
        ("mlp.gate_proj", (shape.mlp_width, shape.width)),
        ("mlp.down_proj", (shape.width, shape.mlp_width)),
        ("mlp.up_proj", (shape.mlp_width, shape.width)),
    ]
    place = 0

    def take(*size: int) -> Tensor:
        nonlocal place
        count = int(np.prod(size))
        place += count
        return torch.from_numpy(values[place - count : place].reshape(size).copy())

    weights = {"model.embed_tokens.weight": take(shape.vocabulary, shape.width)}
    for name, size in layout:
        for layer, part in enumerate(take(shape.depth, *size)):
            turned = _halves(part, head) if name.endswith(("q_proj", "k_proj")) else part
            weights[f"model.layers.{layer}.{name}.weight"] = turned
    weights["model.norm.weight"] = take(shape.width)
    take(2, context, head // 2)  # two tables of rotary angles that nothing needs
    if not shape.tied:
        weights["lm_head.weight"] = take(shape.vocabulary, shape.width)
    return weights


def _halves(rows: Tensor, head: int) -> Tensor:
    """Reorder interleaved pairs (0, 1), (2, 3), ... of each head into two halves."""
    paired = rows.unflatten(0, (-1, head // 2, 2))
    return paired.transpose(1, 2).flatten(0, 2)
