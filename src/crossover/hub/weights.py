"""Weights out of files and into a model: safetensors alone, every name and shape looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crossover.errors import CheckpointError
from crossover.hub.names import find
from crossover.model.backbone import Backbone
from crossover.parsing import parse_json, read_bounded

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LARGEST_INDEX_BYTES = 1 << 26
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@torch.no_grad()
def put_weights(model: Backbone, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a model.

    Args:
        model: The model.
        weights: Weights by its own names, or by those of published folders.
        where: What errors name.

    Raises:
        CheckpointError: A weight is missing, of another shape, or one that the model has no place for.
    """
    weights, named = own_weights(weights, model.shape.tied, where), dict(model.inner.named_parameters())
    found: dict[str, Tensor] = {}
    for name, parameter in named.items():
        value = find(weights, name, parameter.shape)
        if value is None:
            raise CheckpointError(f"{where}: model.safetensors has no '{name}' of shape {tuple(parameter.shape)}")
        found[name] = value
    refuse_strange(weights, named, where)
    for name, value in found.items():
        named[name].copy_(value)


def own_weights(weights: Mapping[str, Tensor], tied: bool, where: Path) -> dict[str, Tensor]:
    """Leave out a tied head, which is the embedding once more.

    Args:
        weights: Weights by name.
        tied: Whether the head is the embedding.
        where: What errors name.

    Returns:
        The others.

    Raises:
        CheckpointError: A head that is called tied is another one, or a weight is no floating-point number.
    """
    for name, value in weights.items():
        if value.dtype not in _FLOATS:
            kind, known = str(value.dtype), ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
            raise CheckpointError(
                f"{where}: '{name}' is of type {kind.removeprefix('torch.')}, as of quantized weights; {known} are read"
            )
    kept = dict(weights)
    head, embedding = kept.pop(HEAD, None) if tied else None, kept.get(EMBEDDING)
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise CheckpointError(
            f"{where}: config.json ties the head to the embedding, but '{HEAD}' is not '{EMBEDDING}', and transformers "
            "would use both; set tie_word_embeddings to false in config.json"
        )
    return kept


def refuse_strange(weights: Mapping[str, Tensor], named: Mapping[str, Tensor], where: Path) -> None:
    """Refuse weights that a model would leave out; without them it would say something else.

    Args:
        weights: All weights of a file; each of the model's is among them.
        named: The model's own.
        where: What errors name.

    Raises:
        CheckpointError: There are more than the model's.
    """
    # Experts have other names in files than in the model, so they are counted.
    strange = [name for name in weights if name not in named and ".mlp.experts." not in name]
    held, wanted = (sum(value.numel() for value in each.values()) for each in (weights, named))
    if strange or held > wanted:
        said = ", ".join(sorted(strange)[:3]) or "experts beyond those of config.json"
        raise CheckpointError(f"{where}: holds weights that the backbone has no place for: {said}")


def weight_files(folder: Path) -> list[Path]:
    """List the files of a folder's weights: one, or those that an index names.

    Args:
        folder: A Hugging Face folder.

    Returns:
        Paths, sorted by name.

    Raises:
        CheckpointError: There are none in safetensors, or the index leads out of the folder.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        why = (
            f"; {pickled} is a pickle, which can run code and is never read: convert it to safetensors"
            if pickled
            else ""
        )
        raise CheckpointError(f"{folder}: holds no {SINGLE}{why}")
    try:
        names = set(parse_json(read_bounded(folder / INDEX, _LARGEST_INDEX_BYTES))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX}: cannot be read: {error!r}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{folder / INDEX}: names {name!r}, which is no .safetensors file of this folder")
    return [folder / name for name in sorted(names)]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a Hugging Face folder.

    Args:
        folder: The folder.

    Returns:
        Weights by name.

    Raises:
        CheckpointError: A file is missing or damaged, or there is none in safetensors.
    """
    weights: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            weights |= load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None
    return weights
