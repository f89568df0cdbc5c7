"""Where a tokenizer's structure allows to encode text faster, or in less memory, with the same ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.data.piece_bytes import byte_symbols

Ids = list[NDArray[np.int64]]
Encode = Callable[[list[str]], Ids]

# The library holds some 150 bytes for each byte of a text while it is encoded.
LONG_TEXT = 1 << 18
# GPT-2's expression never takes a letter, the space behind it and the letter behind that into one word.
_BETWEEN_WORDS = re.compile("(?<=[A-Za-z]) (?=[A-Za-z])")


def _is_byte_level(tree: Mapping[str, Any], *, splits_words: bool) -> bool:
    """Say whether a tokenizer.json is plain byte-level BPE as it is built here."""
    model, begin = tree.get("model") or {}, tree.get("pre_tokenizer") or {}
    return (
        tree.get("normalizer") is None
        and model.get("type") == "BPE"
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and begin.get("type") == "ByteLevel"
        and begin.get("add_prefix_space") is False
        and begin.get("use_regex") is splits_words
        # Pieces that are found before words are split could reach over a space.
        and all(piece.get("special") is True for piece in tree.get("added_tokens") or ())
    )


def is_raw_bytes(tree: Mapping[str, Any]) -> bool:
    """Say whether id b is byte b, and nothing is ever merged."""
    if not _is_byte_level(tree, splits_words=False) or tree["model"].get("merges"):
        return False
    vocabulary = tree["model"].get("vocab") or {}
    return all(vocabulary.get(symbol) == byte for byte, symbol in enumerate(byte_symbols()))


def is_divisible(tree: Mapping[str, Any]) -> bool:
    """Say whether a text may be cut between two plain words without changing an id."""
    return _is_byte_level(tree, splits_words=True)


def divided(text: str, size: int = LONG_TEXT) -> Iterator[str]:
    """Cut a long text between words of plain letters.

    Args:
        text: The text.
        size: Characters of a piece, at least; the end of the text is in the last one.

    Yields:
        The pieces; together they are the text. A text without such words stays whole.
    """
    start = 0
    while len(text) - start > size and (found := _BETWEEN_WORDS.search(text, start + size)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def way_of(tree: Mapping[str, Any]) -> Callable[[list[str], Encode], Ids]:
    """Choose how texts are encoded.

    Args:
        tree: A tokenizer.json.

    Returns:
        A function of texts and of the library's own encoding, which gives what the latter gives for those texts.
    """
    if is_raw_bytes(tree):
        return lambda texts, encode: [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]
    return _in_pieces if is_divisible(tree) else lambda texts, encode: encode(texts)


def _in_pieces(texts: list[str], encode: Encode) -> Ids:
    if all(len(text) <= LONG_TEXT for text in texts):
        return encode(texts)
    return [np.concatenate([encode([part])[0] for part in divided(text)]) for text in texts]
