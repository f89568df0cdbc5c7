"""llama2.c files (legacy format) in the backbone, and their tokenizers as tokenizer.json."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers
from torch import Tensor

from crossover.errors import CheckpointError
from crossover.hub.weights import put_weights
from crossover.model.backbone import Backbone, make_config, wrap
from crossover.model.shapes import Shape, parameters
from crossover.parsing import read_bounded
from crossover.records import Vocabulary

# Pieces are tried at every cut, which takes the square of their length; published ones have some dozens of bytes.
LARGEST_PIECE_BYTES = 1 << 10
_LARGEST_TOKENIZER_BYTES = 1 << 28


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
        if min(width, mlp, depth, heads, kv_heads, context, abs(vocabulary)) <= 0 or heads % kv_heads:
            raise ValueError("its header makes no sense")
        if width % (2 * heads):
            raise ValueError(f"its width {width} is not an even number for each of {heads} heads")
    except (OSError, struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a llama2.c model: {error}") from None
    # A negative vocabulary size marks a head of its own.
    shape = Shape("llama", abs(vocabulary), width, depth, heads, kv_heads, width // heads, mlp, vocabulary > 0)
    words = Vocabulary(shape.vocabulary, shape.vocabulary, bos_id=1, eos_id=2, mask_id=shape.vocabulary)
    expected = 28 + 4 * _llama2c_floats(shape, context)
    if len(raw) != expected:
        raise CheckpointError(f"{path}: has {len(raw)} bytes where its header asks for {expected}; is it truncated?")
    model = wrap(make_config(shape, words, context=context), words)
    put_weights(model, _llama2c_weights(np.frombuffer(raw, "<f4", offset=28), shape, context), path)
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


def read_llama2c_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read llama2.c's tokenizer file: SentencePiece's BPE with a piece for each byte.

    A pair is joined the sooner the better the score of what it makes. Pieces are kept with spaces; they become
    SentencePiece's "▁", of which one is put before every text.

    Args:
        path: A `.bin` file: int32, then for each piece float32 score, int32 length and bytes.

    Returns:
        The tokenizer, ids as in the file.

    Raises:
        CheckpointError: The file is missing, truncated or of another format.
    """
    try:
        scored = _scored_pieces(read_bounded(path, _LARGEST_TOKENIZER_BYTES))
    except (OSError, struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as a llama2.c tokenizer: {error}") from None
    specials = ["<unk>", "<s>", "</s>"]
    pieces = [*specials, *(piece.replace(" ", "▁") for _, piece in scored[len(specials) :])]
    ids = {piece: number for number, piece in enumerate(pieces)}
    if len(ids) < len(pieces) or not all(f"<0x{byte:02X}>" in ids for byte in range(256)):
        raise CheckpointError(f"{path}: is no llama2.c tokenizer: a piece stands twice, or a byte has none")
    joined = [piece for piece in pieces[len(specials) :] if not re.fullmatch("<0x[0-9A-F]{2}>", piece)]
    # Stable: of equal scores the lower id comes first.
    joined.sort(key=lambda piece: -scored[ids[piece]][0])
    halves = ((piece[:cut], piece[cut:]) for piece in joined for cut in range(1, len(piece)))
    merges = [pair for pair in halves if pair[0] in ids and pair[1] in ids]
    engine = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    engine.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    taken_off = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(taken_off)  # pyright: ignore[reportAttributeAccessIssue]
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return engine


def _scored_pieces(raw: bytes) -> list[tuple[float, str]]:
    found, place = [], 4
    while place < len(raw):
        score, length = struct.unpack_from("<fi", raw, place)
        place += 8
        if not 0 <= length <= min(LARGEST_PIECE_BYTES, len(raw) - place) or not np.isfinite(score):
            raise ValueError(f"a piece at byte {place} makes no sense")
        found.append((score, raw[place : place + length].decode("utf-8")))
        place += length
    if len(found) < 3 + 256:
        raise ValueError(f"it has {len(found)} pieces where there are 3 special ones and one for each of 256 bytes")
    return found
