"""A Hugging Face folder out of a model: weights, configuration and tokenizer that transformers loads as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from crossover.data.tokenizer import Tokenizer
from crossover.errors import RunError
from crossover.folders import appearing
from crossover.hub.names import published
from crossover.records import Vocabulary

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}


def export(
    folder: Path,
    config: Any,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    facts: Mapping[str, Any],
    pages: Mapping[str, str] | Callable[[Path], Mapping[str, str]] | None = None,
) -> None:
    """Write a model folder that appears whole or not at all.

    Args:
        folder: Where to; a folder of that name is replaced, and lost only once the new one is in its place.
        config: The transformers configuration.
        weights: Weights by transformers' names; a tied head may be left out.
        tokenizer: The tokenizer.
        facts: What a user of the folder has to know, see `facts_of`.
        pages: Texts that go beside them, by file name, or what makes them when all else is written.

    Raises:
        RunError: The folder cannot be written.
    """
    kept = published(weights)
    if config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    words = tokenizer.vocabulary
    try:
        with appearing(folder) as temporary:
            tree = _tree(config, facts, next(iter(kept.values())))
            _write_json(temporary / "config.json", tree)
            _write_json(temporary / "generation_config.json", _generation(words, config.vocab_size))
            save_file(kept, temporary / "model.safetensors", metadata={"format": "pt"})
            tokenizer.save(temporary)
            _begin_with_bos(temporary / "tokenizer.json", words.bos_id)
            if facts.get("masked") or facts.get("blocks"):
                (temporary / "custom_generate").mkdir()
                (temporary / "custom_generate" / "generate.py").write_text(_custom_generate(), "utf-8")
            for name, text in (pages(temporary) if callable(pages) else pages or {}).items():
                (temporary / name).write_text(text, "utf-8")
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def facts_of(
    modes: Sequence[str], best_mode: str, vocabulary: Vocabulary, context: int, objectives: Iterable[str]
) -> dict[str, Any]:
    """Say what is needed to run a model both ways: the section `crossover` of config.json.

    Args:
        modes: Procedures that it can be scored by.
        best_mode: The one that scored best on dev.
        vocabulary: The tokenizer's.
        context: Data tokens of the window that it was trained on, T.
        objectives: What it was trained on.

    Returns:
        A tree of JSON values.
    """
    blocks = [(found, mode) for mode in modes if (found := re.match(r"(?:nelbo|block)\((\d+)", mode))]
    return {
        "modes": list(modes),
        "best_mode": best_mode,
        "objectives": list(objectives),
        "state_i_predicts": "token i + 1",
        "shift": 1,
        "window": context,
        "mask_token_id": vocabulary.mask_id,
        "predictable": vocabulary.predictable,
        "documents_see_each_other": not vocabulary.separate_documents,
        "masked": any(mode.split("(")[0] in ("nelbo", "l2r", "order") for mode in modes if not _is_block(mode)),
        "blocks": [
            {"size": int(found[1]), "clean": "causal" if "causal" in mode else "block_causal"} for found, mode in blocks
        ],
    }


def _is_block(mode: str) -> bool:
    return re.match(r"(?:nelbo|block)\(\d", mode) is not None


def _tree(config: Any, facts: Mapping[str, Any], weight: Tensor) -> dict[str, Any]:
    tree = config.to_dict()
    for name in ("_attn_implementation", "_name_or_path"):
        # What it runs by here, and from which folder of this machine it was read.
        tree.pop(name, None)
    architecture = _ARCHITECTURES[config.model_type]
    return {
        **tree,
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "dtype": str(weight.dtype).removeprefix("torch."),
        # transformers before version 5, and what stands on it, reads the base here and else takes 10,000.
        "rope_theta": config.rope_parameters["rope_theta"],
        "crossover": {**facts},
    }


def _generation(words: Vocabulary, rows: int) -> dict[str, Any]:
    """Bar what is never predicted: the mask, whose row of a tied head is an input alone, and the padding above it."""
    ids = {"bos_token_id": words.bos_id, "eos_token_id": words.eos_id, "pad_token_id": words.eos_id}
    return {**ids, "suppress_tokens": list(range(words.predictable, rows))}


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2, sort_keys=True), "utf-8")


def _begin_with_bos(path: Path, bos_id: int) -> None:
    """Let other programs begin a text as every window of the training began; Crossover's own reader leaves it out."""
    bos = tokenizers.Tokenizer.from_file(str(path)).id_to_token(bos_id)
    # Written out, because the library's short form reads spaces, colons and dollars in a piece's name as its own.
    begin, first, again, second = (
        {kind: {"id": name, "type_id": number}}
        for number, names in enumerate("AB")
        for kind, name in (("SpecialToken", bos), ("Sequence", names))
    )
    tree = json.loads(path.read_text("utf-8"))
    tree["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, again, second],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }
    path.write_text(json.dumps(tree, ensure_ascii=False, separators=(",", ":")), "utf-8")


def _custom_generate() -> str:
    return (resources.files("crossover.hub") / "custom_generate.py").read_text("utf-8")
