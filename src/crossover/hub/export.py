"""A Hugging Face folder out of a model: weights, configuration and tokenizer that transformers loads as they are."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from crossover.data.tokenizer import Tokenizer
from crossover.errors import RunError

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


def export(
    folder: Path, config: Any, weights: Mapping[str, Tensor], tokenizer: Tokenizer, facts: Mapping[str, Any]
) -> None:
    """Write a model folder that appears whole or not at all.

    Args:
        folder: Where to; a folder of that name is replaced, and lost only once the new one is in its place.
        config: The transformers configuration.
        weights: Weights by transformers' names; a tied head may be left out.
        tokenizer: The tokenizer.
        facts: What a user of the folder has to know: mask id, modes, how state i relates to token i + 1.

    Raises:
        RunError: The folder cannot be written.
    """
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        _mend(folder)
        temporary.mkdir(parents=True)
        (temporary / "config.json").write_text(json.dumps(_tree(config, facts), indent=2, sort_keys=True), "utf-8")
        kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        if config.tie_word_embeddings:
            kept.pop("lm_head.weight", None)
        save_file(kept, temporary / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(temporary)
        for path in [*temporary.iterdir(), temporary]:
            _synchronise(path)
        _replace(folder, temporary)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
    finally:
        # Also when it was interrupted; after a rename there is nothing left to remove.
        shutil.rmtree(temporary, ignore_errors=True)


def _tree(config: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    tree = config.to_dict()
    tree.pop("_attn_implementation", None)
    architecture = _ARCHITECTURES[config.model_type]
    return {
        **tree,
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "dtype": "float32",
        "crossover": {**facts},
    }


def _replace(folder: Path, temporary: Path) -> None:
    """Put a finished folder in the place of another, which stays under some name until the new one is there."""
    aside = folder.parent / f".{folder.name}.{os.getpid()}.old"
    replaced = folder.exists()
    if replaced:
        # Rename cannot replace a folder that holds files; the old one steps aside first.
        folder.rename(aside)
    try:
        temporary.rename(folder)
    except OSError:
        if replaced:
            aside.rename(folder)
        raise
    _synchronise(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _mend(folder: Path) -> None:
    """Clear up after processes that died while they wrote this folder: an old one that stepped aside comes back."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        number, _, kind = path.name.removeprefix(f".{folder.name}.").partition(".")
        if kind not in ("tmp", "old") or not number.isdecimal() or _is_another_at_work(int(number)):
            continue
        if kind == "old" and not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_another_at_work(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # of another user
    except (OSError, OverflowError):
        return False
    return True


def _synchronise(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
