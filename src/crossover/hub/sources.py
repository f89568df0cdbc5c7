"""Models from elsewhere, read: what backbone they ask for, their weights, their tokenizer with a mask."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from crossover.data.engine import engine_of, explained
from crossover.data.tokenizer import FACTS, Tokenizer
from crossover.errors import CheckpointError
from crossover.folders import sha256_of
from crossover.hub.foreign import Build, read_build
from crossover.hub.llama2c import read_llama2c, read_llama2c_tokenizer
from crossover.hub.names import find
from crossover.hub.weights import EMBEDDING, own_weights, read_weights, refuse_strange, weight_files
from crossover.model.backbone import make_config, wrap
from crossover.model.shapes import Shape, parameters
from crossover.parsing import parse_json, read_bounded
from crossover.records import Vocabulary

# What files hold beside weights that are trained.
_IDLE = ("rotary_emb.inv_freq",)
_LARGEST_TOKENIZER_BYTES = 1 << 28
# Which pieces begin and end a text.
_NAMES = "tokenizer_config.json"


@dataclass(frozen=True)
class Source:
    """A model from elsewhere.

    Args:
        build: What the backbone has to be.
        weights: Its weights, by published names or the backbone's own.
        tokenizer: Its tokenizer, with a mask.
        known: Ids that its own tokenizer has; rows from there on are new, or were never trained.
        sha256: Of all that was read.
    """

    build: Build
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    known: int
    sha256: str


def read_source(path: Path, tokenizer: Path | None) -> Source:
    """Read a model.

    Args:
        path: A Hugging Face folder, or a llama2.c file.
        tokenizer: Its tokenizer, where that does not lie beside the weights.

    Returns:
        What was read.

    Raises:
        CheckpointError: Something is missing, damaged, or asks for what the backbone cannot carry.
    """
    return _read_file(path, tokenizer) if path.is_file() else _read_folder(path, tokenizer)


def _read_file(path: Path, tokenizer: Path | None) -> Source:
    beside = sorted([*path.parent.glob("tok*.bin"), *path.parent.glob("tokenizer.json")])
    if tokenizer is None and len(beside) != 1:
        count = len(beside) or "no"
        raise CheckpointError(f"{path}: {count} tokenizers lie beside it; say which one it is: --tokenizer FILE")
    place = tokenizer or beside[0]
    model = read_llama2c(path)
    made, known = _read_tokenizer(place)
    config = model.inner.config
    # The backbone has a position more than the file, for BOS.
    positions = config.max_position_embeddings - 1
    build = Build(model.shape, config.rms_norm_eps, config.rope_parameters["rope_theta"], positions)
    _refuse_short(place, known, build.shape.vocabulary)
    weights = {name: value.detach() for name, value in model.inner.named_parameters()}
    return Source(build, weights, made, known, _digest([path, place]))


def _read_folder(folder: Path, tokenizer: Path | None) -> Source:
    build, place = read_build(folder), tokenizer or folder / "tokenizer.json"
    made, known = _read_tokenizer(place)
    _refuse_short(place, known, build.shape.vocabulary)
    weights = {name: value for name, value in read_weights(folder).items() if not name.endswith(_IDLE)}
    weights = own_weights(weights, build.shape.tied, folder)
    _require_fit(folder, build.shape, weights)
    beside = [path for name in (FACTS, _NAMES) if (path := place.parent / name).is_file()]
    return Source(build, weights, made, known, _digest([folder / "config.json", place, *beside, *weight_files(folder)]))


def _require_fit(folder: Path, shape: Shape, weights: Mapping[str, Tensor]) -> None:
    """Hold what config.json says against the weights, before anything of that size is made: both are a stranger's."""
    stated, embedding = (shape.vocabulary, shape.width), weights.get(EMBEDDING)
    if embedding is None or tuple(embedding.shape) != stated:
        raise CheckpointError(f"{folder}: its weights have no '{EMBEDDING}' of shape {stated}, as config.json says")
    held = sum(value.numel() for value in weights.values())
    if held < parameters(shape):
        raise CheckpointError(f"{folder}: holds {held:,} weights where config.json says {parameters(shape):,}")
    plain = Vocabulary(shape.vocabulary, shape.vocabulary, bos_id=0, eos_id=0, mask_id=0)
    with torch.device("meta"):
        inner = wrap(make_config(shape, plain, context=1), plain).inner
    named = dict(inner.named_parameters())
    for name, parameter in named.items():
        if find(weights, name, parameter.shape) is None:
            raise CheckpointError(f"{folder}: has no weight '{name}' of shape {tuple(parameter.shape)}")
    refuse_strange(weights, named, folder)


def _read_tokenizer(path: Path) -> tuple[Tokenizer, int]:
    """Read a tokenizer and declare what it lacks; returns it with the number of ids that it had."""
    if path.suffix == ".bin":
        engine, names = read_llama2c_tokenizer(path), {"bos": "<s>", "eos": "</s>"}
    elif (path.parent / FACTS).is_file():
        made = Tokenizer.load(path.parent)
        return made, made.vocabulary.mask_id + 1
    else:
        try:
            engine = engine_of(read_bounded(path, _LARGEST_TOKENIZER_BYTES).decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path}: cannot be read as a tokenizer.json: {error}") from None
        names = _special_names(path.parent, engine)
    ids = sorted(engine.get_vocab(with_added_tokens=True).values())
    if ids != list(range(len(ids))):
        # The library counts pieces, so a new one would get the id, and with it the row, of one that is there.
        wanted = f"the ids 0 to {len(ids) - 1:,}, each once"
        raise CheckpointError(
            f"{path}: its {len(ids):,} pieces do not have {wanted}, and a mask cannot come after them"
        )
    with explained(path):
        made = Tokenizer.with_specials(engine, **names)
    if made.vocabulary.bos_id == made.vocabulary.eos_id:
        which = f"'{engine.id_to_token(made.vocabulary.bos_id)}' would begin and end texts"
        raise CheckpointError(f"{path}: {which}; name eos_token in {path.parent / _NAMES}")
    return made, len(ids)


def _special_names(folder: Path, engine: tokenizers.Tokenizer) -> dict[str, str]:
    """Read which pieces the source begins and ends texts with; one piece cannot be both here, so it ends them."""
    path = folder / _NAMES
    try:
        tree: Any = parse_json(read_bounded(path, _LARGEST_TOKENIZER_BYTES)) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    found = {}
    for name in ("bos", "eos"):
        piece = tree.get(f"{name}_token") if isinstance(tree, dict) else None
        piece = piece.get("content") if isinstance(piece, dict) else piece
        # Half a surrogate pair is no text, and no piece.
        if not isinstance(piece, str) or any("\ud800" <= char <= "\udfff" for char in piece):
            continue
        if engine.token_to_id(piece) is not None:
            found[name] = piece
    if found.get("bos") == found.get("eos"):
        found.pop("bos", None)
    return found


def _refuse_short(place: Path, known: int, rows: int) -> None:
    if known > rows:
        raise CheckpointError(f"{place}: has {known:,} pieces, but the model's embedding has {rows:,} rows")


def _digest(paths: Sequence[Path]) -> str:
    """Hash the hashes of files, by their names."""
    lines = [f"{path.name} {sha256_of(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
