"""What a plan knows of a recipe's text: counted where it is prepared, else what the recipe declares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.data.layout import SPECIALS, mask_after, rows_up_to
from crossover.data.prepare import prepared_folder
from crossover.data.tokenizer import Tokenizer
from crossover.errors import DataError, RecipeError
from crossover.evidence.files import read_json
from crossover.recipe import Recipe


@dataclass(frozen=True)
class TextFacts:
    """How much text there is.

    Args:
        unique_tokens: Distinct training tokens U, the control part included.
        train_tokens: Those that the run trains on: an epoch.
        vocabulary: Rows of the embedding.
        predictable: Rows that the head computes.
        counted: Whether these are the counts of prepared text, or what the recipe declares.
        told: Where they come from, in words.
    """

    unique_tokens: int
    train_tokens: int
    vocabulary: int
    predictable: int
    counted: bool
    told: str


def text_facts(recipe: Recipe) -> TextFacts:
    """Find out how much text a recipe has, without preparing it.

    Args:
        recipe: The resolved recipe.

    Returns:
        The counts.

    Raises:
        RecipeError: The text is not prepared and the recipe does not say how much of it there is, or its tokenizer is
            of a kind whose size only preparation shows.
        DataError: The tokenizer's file cannot be read.
    """
    folder = _prepared(recipe)
    if folder is not None:
        return _counted(recipe, folder)
    unique = recipe.data.unique_tokens
    if unique is None:
        raise RecipeError(
            "data.unique_tokens: the text is not prepared and its size is not declared; add "
            "data.unique_tokens=1B (the tokens that you have), or run `crossover prepare` first"
        )
    size, predictable = _vocabulary(recipe.data.tokenizer)
    held = int(recipe.data.control_share * unique) if recipe.controller.uses_control_text else 0
    return TextFacts(unique, unique - held, size, predictable, False, "declared by data.unique_tokens; not prepared")


def _prepared(recipe: Recipe) -> Path | None:
    """Find the recipe's prepared text, or None where it is not there or its source is not."""
    try:
        folder = prepared_folder(recipe.data, seed=0)
    except DataError:
        return None
    return folder if (folder / "manifest.json").is_file() else None


def _counted(recipe: Recipe, folder: Path) -> TextFacts:
    manifest = read_json(folder / "manifest.json")
    words = Tokenizer.load(folder / "tokenizer").vocabulary
    unique = int(manifest["unique_tokens"])
    trained = int(manifest["control_offset"]) if recipe.controller.uses_control_text else unique
    return TextFacts(unique, trained, words.size, words.predictable, True, "counted in the prepared text")


def _vocabulary(tokenizer: Any) -> tuple[int, int]:
    """Give rows and predictable ids of a tokenizer that has not been trained yet."""
    name = type(tokenizer).component_name
    if name == "file":
        words = tokenizer.fit(()).vocabulary
        return words.size, words.predictable
    if name not in ("bpe", "bytes"):
        raise RecipeError(f"data.tokenizer: only preparation shows the size of '{name}'; run `crossover prepare` first")
    pieces = tokenizer.vocabulary if name == "bpe" else 256
    mask = mask_after(pieces + SPECIALS)
    return rows_up_to(mask), mask
