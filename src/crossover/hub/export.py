"""A Hugging Face folder out of a model: weights, configuration and tokenizer that transformers loads as they are."""

from __future__ import annotations

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


def export(
    folder: Path, config: Any, weights: Mapping[str, Tensor], tokenizer: Tokenizer, facts: Mapping[str, Any]
) -> None:
    """Write a model folder that appears whole or not at all.

    Args:
        folder: Where to; a folder of that name is replaced.
        config: The transformers configuration.
        weights: Weights by transformers' names; a tied head may be left out.
        tokenizer: The tokenizer.
        facts: What a user of the folder has to know: mask id, modes, how state i relates to token i + 1.

    Raises:
        RunError: The folder cannot be written.
    """
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        tree = config.to_dict()
        tree.pop("_attn_implementation", None)
        architecture = {
            "llama": "LlamaForCausalLM",
            "qwen3": "Qwen3ForCausalLM",
            "qwen3_moe": "Qwen3MoeForCausalLM",
        }[config.model_type]
        tree.update(architectures=[architecture], attention_dropout=0.0, dtype="float32", crossover=dict(facts))
        (temporary / "config.json").write_text(json.dumps(tree, indent=2, sort_keys=True), "utf-8")
        kept = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        if config.tie_word_embeddings:
            kept.pop("lm_head.weight", None)
        save_file(kept, temporary / "model.safetensors", metadata={"format": "pt"})
        for name in ("config.json", "model.safetensors"):
            with (temporary / name).open("rb") as written:
                os.fsync(written.fileno())
        tokenizer.save(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
