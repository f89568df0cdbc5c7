"""The tokenizer library behind a guard: what it raises, or claims in ids, ends in one error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from crossover.errors import DataError

# An embedding has a row for every id below the last; published vocabularies end far below this.
MOST_IDS = 1 << 22


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of which file the errors of a tokenizer are.

    Args:
        path: The tokenizer.json.

    Raises:
        DataError: The file is no tokenizer, or one that cannot be used.
    """
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is no Hugging Face tokenizer.json: {error}") from None


def engine_of(json_text: str) -> tokenizers.Tokenizer:
    """Make a tokenizer of its description.

    Args:
        json_text: A tokenizer.json.

    Returns:
        The library's tokenizer.

    Raises:
        DataError: It is no description of one, or its ids leave gaps that no embedding should have rows for.
    """
    try:
        engine = tokenizers.Tokenizer.from_str(json_text)
        ids = engine.get_vocab(with_added_tokens=True).values()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and its panics are not even that
        raise DataError(f"is no Hugging Face tokenizer.json: {str(error)[:500]}") from None
    if max(ids, default=0) >= MOST_IDS:
        raise DataError(f"has the id {max(ids):,}; {MOST_IDS:,} is beyond any vocabulary")
    return engine


def encoded(engine: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    """Turn texts into ids.

    Args:
        engine: The tokenizer.
        texts: Any texts.

    Returns:
        Ids of each, without special pieces.

    Raises:
        DataError: The tokenizer has no piece for something in them, and none for what it does not know.
    """
    try:
        return [found.ids for found in engine.encode_batch_fast(texts, add_special_tokens=False)]
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"this tokenizer cannot encode a text: {str(error)[:200]}") from None
