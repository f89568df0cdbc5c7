"""Scoring a model folder from the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crossover import __version__
from crossover.data.prepare import PreparedText, prepare
from crossover.errors import DataError
from crossover.hub.adopt import open_model
from crossover.recipe import resolve
from crossover.records import ScoreCard
from crossover.registry import component_of
from crossover.scoring.likelihood import score
from crossover.scoring.procedures import procedure_of
from crossover.scoring.windows import cut


@dataclass(frozen=True)
class Scored:
    """A number as it is printed and kept.

    Args:
        card: The number with its card.
        split: "dev" or "test" of the run, or "text" for other text.
        trained: Whether the model was trained for this mode.
    """

    card: ScoreCard
    split: str
    trained: bool

    @property
    def name(self) -> str:
        """What its file is called, such as `test-ar`."""
        return f"{self.split}-{self.card.procedure}"

    def row(self) -> dict[str, Any]:
        """Give the card as JSON values, as a run keeps them."""
        return {**asdict(self.card), "perplexity": self.card.perplexity, "split": self.split, "headline": False}

    def line(self) -> str:
        """Write the number and its card as a person would."""
        card, kind = self.card, "exact" if self.card.exact else "bound"
        kind += "" if self.trained else ", a mode that this model was not trained for"
        text = f"{card.documents} documents of {card.conditions['text']}"
        return (
            f"{card.procedure} ({kind}): {card.bits_per_byte:.4f} +- {card.standard_error_bits:.4f} bits per byte, "
            f"{card.loss_nats:.4f} +- {card.standard_error_nats:.4f} nats per token, perplexity {card.perplexity:.2f} "
            f"({card.tokens:,} tokens, {card.text_bytes:,} bytes, {text})\n"
            f"  card: {', '.join(f'{key}={value}' for key, value in card.conditions.items())}"
        )


def score_folder(
    folder: Path,
    source: str | Mapping[str, Any] | None,
    *,
    split: str,
    procedures: Sequence[str],
    windows: int,
    draws: int,
    positions: int,
    data_hash: str | None = None,
) -> Iterator[Scored]:
    """Score a model folder.

    Args:
        folder: A model folder that a run left.
        source: A text's path, or the run's recipe when its own dev or test text is scored.
        split: "dev" or "test" of the run, else ignored.
        procedures: Names of procedures, or "all" that the model has.
        windows: Windows to score.
        draws: Mask draws per window for a bound.
        positions: Positions per window for `l2r`.
        data_hash: Hash of the run's text as its manifest has it; None checks the tokenizer alone.

    Yields:
        The number with its card, for each procedure.

    Raises:
        DataError: There is no text to score, or it is not the run's own where it should be.
    """
    for name in procedures:
        if name != "all":
            # A mistyped name should not wait for the weights and the text.
            procedure_of(name, draws=draws, positions=positions)
    model, tokenizer, facts = open_model(folder)
    documents, name = _documents(folder, tokenizer, source, split, data_hash)
    context = model.context
    held_out = cut(documents, tokenizer.document_bytes, context, windows, name)
    modes = [mode for name in procedures for mode in (facts["modes"] if name == "all" else [name])]
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    text_hash = hashlib.sha256(b"".join(item.astype("<i8").tobytes() for item in documents)).hexdigest()
    stated = {"text": name, "text_sha256": text_hash, "weights_sha256": weights, "tokenizer_hash": tokenizer.hash}
    stated["crossover"] = __version__
    for mode in modes:
        chosen = procedure_of(mode, draws=draws, positions=positions)
        card = score(model, held_out, chosen, conditions=stated)
        yield Scored(card, split if isinstance(source, Mapping) else "text", _is_trained(mode, facts["modes"]))


def _documents(
    folder: Path, tokenizer: Any, source: str | Mapping[str, Any] | None, split: str, data_hash: str | None
) -> tuple[list[Any], str]:
    """Give the ids of each document to score, and what the text is called."""
    if isinstance(source, Mapping):
        text = prepare(resolve(source).data, seed=0)
        if text.tokenizer.hash != tokenizer.hash or data_hash not in (None, text.data_hash):
            raise DataError(_changed(text, data_hash))
        return [item.tokens for item in text.documents(split)], split  # type: ignore[arg-type]
    if source is None:
        raise DataError(f"{folder}: the run's own text is not known here; give --text a file or folder")
    texts = [document.text for document in component_of("corpus", source).documents(1_000_000)]
    documents = [_with_end(tokenizer, item) for item in texts]
    for ids, item in zip(documents, texts, strict=True):
        # Refuses a text that the tokenizer changes, before anything is said about its bytes.
        tokenizer.document_bytes(ids, item)
    return documents, source


def _changed(text: PreparedText, data_hash: str | None) -> str:
    hashes = "" if data_hash is None else f" (data hash {text.data_hash[:16]}, the run's {data_hash[:16]})"
    return (
        f"data.source: {text.manifest['source']['description']} is not what this run was trained on{hashes}: it was "
        "edited, or is another version. Bring the old text back, or score another: `crossover eval RUN text=FILE`"
    )


def _is_trained(procedure: str, modes: Sequence[str]) -> bool:
    """Say whether a model learned what a procedure asks: masks in any order, or those within its blocks."""
    word, _, rest = procedure.partition("(")
    if word == "block":
        size = rest.rstrip(")").split(",")[0]
        return any(mode.startswith("nelbo(") and mode[6:].rstrip(")").split(",")[0] == size for mode in modes)
    return procedure in modes or (word in ("order", "l2r", "nelbo") and "nelbo" in modes and not rest[:1].isdigit())


def _with_end(tokenizer: Any, text: str) -> Any:
    return np.append(tokenizer.encode(text), tokenizer.vocabulary.eos_id)
