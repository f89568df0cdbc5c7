"""Scoring a model folder from the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossover import __version__
from crossover.data.prepare import prepare
from crossover.errors import DataError
from crossover.hub.adopt import open_model
from crossover.recipe import resolve
from crossover.records import ScoreCard
from crossover.registry import component_of
from crossover.scoring.likelihood import score
from crossover.scoring.procedures import procedure_of
from crossover.scoring.windows import cut


def score_folder(
    folder: Path,
    source: str | Mapping[str, Any] | None,
    *,
    split: str,
    procedure: str,
    windows: int,
    draws: int,
    positions: int,
) -> Iterator[str]:
    """Score a model folder.

    Args:
        folder: A model folder that a run left.
        source: A text's path, or the run's recipe when its own dev or test text is scored.
        split: "dev" or "test" of the run, else ignored.
        procedure: A procedure's name, or "all" that the model has.
        windows: Windows to score.
        draws: Mask draws per window for a bound.
        positions: Positions per window for `l2r`.

    Yields:
        The number, its uncertainty and its card for each procedure.

    Raises:
        DataError: There is no text to score, or it is not the model's own where it should be.
    """
    if procedure != "all":
        # A mistyped name should not wait for torch and the text.
        procedure_of(procedure, draws=draws, positions=positions)
    model, tokenizer, facts = open_model(folder)
    if isinstance(source, Mapping):
        text = prepare(resolve(source).data, seed=0)
        if text.tokenizer.hash != tokenizer.hash:
            raise DataError(f"{folder}: its tokenizer is not the one of its run's text; has the text been changed?")
        documents, name = [item.tokens for item in text.documents(split)], split  # type: ignore[arg-type]
    elif source is None:
        raise DataError(f"{folder}: the run's own text is not known here; give --text a file or folder")
    else:
        name = source
        texts = [document.text for document in component_of("corpus", source).documents(1_000_000)]
        documents = [_with_end(tokenizer, item) for item in texts]
        for ids, item in zip(documents, texts, strict=True):
            # Refuses a text that the tokenizer changes, before anything is said about its bytes.
            tokenizer.document_bytes(ids, item)
    context = int(model.inner.config.max_position_embeddings) - 1
    held_out = cut(documents, tokenizer.document_bytes, context, windows, name)
    modes = facts["modes"] if procedure == "all" else [procedure]
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    text_hash = hashlib.sha256(b"".join(item.astype("<i8").tobytes() for item in documents)).hexdigest()
    stated = {"text": name, "text_sha256": text_hash, "weights_sha256": weights, "tokenizer_hash": tokenizer.hash}
    stated["crossover"] = __version__
    for mode in modes:
        chosen = procedure_of(mode, draws=draws, positions=positions)
        card = score(model, held_out, chosen, conditions=stated)
        yield _line(card, trained=mode in facts["modes"])


def _line(card: ScoreCard, *, trained: bool) -> str:
    kind = "exact" if card.exact else "bound"
    kind += "" if trained else ", a mode that this model was not trained for"
    text = f"{card.documents} documents of {card.conditions['text']}"
    return (
        f"{card.procedure} ({kind}): {card.bits_per_byte:.4f} +- {card.standard_error_bits:.4f} bits per byte, "
        f"{card.loss_nats:.4f} +- {card.standard_error_nats:.4f} nats per token, perplexity {card.perplexity:.2f} "
        f"({card.tokens:,} tokens, {card.text_bytes:,} bytes, {text})\n"
        f"  card: {', '.join(f'{key}={value}' for key, value in card.conditions.items())}"
    )


def _with_end(tokenizer: Any, text: str) -> Any:
    return np.append(tokenizer.encode(text), tokenizer.vocabulary.eos_id)
