"""How many bytes of text a piece stands for, read from what a tokenizer.json says about decoding."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

_HEX_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"


def byte_symbols() -> list[str]:
    """Give the character that stands for each byte in byte-level BPE.

    Returns:
        256 characters: printable Latin-1 bytes stand for themselves, the others are moved above 255 in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def decoded_bytes(json_text: str, engine: tokenizers.Tokenizer, size: int, special_ids: set[int]) -> NDArray[np.int64]:
    """Count the bytes that each piece adds to decoded text.

    Args:
        json_text: The tokenizer.json.
        engine: The tokenizer it describes.
        size: Rows of the embedding, V.
        special_ids: Ids that stand for no text.

    Returns:
        Bytes [V].
    """
    tree = json.loads(json_text)
    added = {token["id"] for token in tree.get("added_tokens") or ()}
    byte_level = "ByteLevel" in _kinds(tree.get("decoder"))
    symbols = set(byte_symbols())
    counts_V = np.zeros(size, dtype=np.int64)
    for piece, number in engine.get_vocab(with_added_tokens=True).items():
        if number in special_ids:
            continue
        if number in added:
            counts_V[number] = len(piece.encode())
        elif byte_level:
            counts_V[number] = len(piece) if symbols.issuperset(piece) else len(piece.encode())
        elif _HEX_BYTE.fullmatch(piece):
            counts_V[number] = 1
        else:
            counts_V[number] = len(piece.replace(_SPACE, " ").encode())
    return counts_V


def bytes_problem(json_text: str) -> str | None:
    """Say why pieces do not add up to the bytes of any text; what depends on the text is found when it is prepared.

    Args:
        json_text: The tokenizer.json.

    Returns:
        The reason, or None where nothing speaks against it.
    """
    tree = json.loads(json_text)
    decoder_kinds = _kinds(tree.get("decoder"))
    steps = {"normalizer": _kinds(tree.get("normalizer")), "pre_tokenizer": _kinds(tree.get("pre_tokenizer"))}
    if "ByteLevel" not in decoder_kinds and not decoder_kinds & {"Metaspace", "ByteFallback"}:
        return f"it decodes by {', '.join(sorted(decoder_kinds)) or 'joining pieces with spaces'}, not by bytes"
    for step, kinds in steps.items():
        # Unicode's composed form leaves most text as it is, so each document decides.
        lossy = kinds - {"NFC", "Replace", "Metaspace", "ByteLevel", "Split", "Digits"}
        if lossy:
            return f"its {step} ({', '.join(sorted(lossy))}) may change the text"
    if "ByteLevel" not in decoder_kinds and (tree.get("model") or {}).get("byte_fallback") is not True:
        return "characters that it does not know become <unk>"
    if _adds_space(tree):
        return "it adds a space before the text"
    return None


def spaceless(step: dict[str, Any]) -> dict[str, Any]:
    """Give a step of a tokenizer.json without what puts a space before a text.

    Args:
        step: The step.

    Returns:
        The step, or one in its place.
    """
    if step.get("type") == "Prepend" and step.get("prepend") == _SPACE:
        return {"type": "Replace"}
    return {**step, "prepend_scheme": "never"} if step.get("prepend_scheme") in ("first", "always") else step


def _adds_space(tree: dict[str, Any]) -> bool:
    steps = [part for step in ("normalizer", "pre_tokenizer") for part in _parts(tree.get(step))]
    return any(
        step.get("add_prefix_space") is True or step.get("prepend_scheme") in ("first", "always") for step in steps
    )


def _parts(step: Any) -> list[dict[str, Any]]:
    """List a step of a tokenizer.json, or the steps of a sequence of them."""
    if not isinstance(step, dict):
        return []
    nested = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
    return [part for inner in nested for part in _parts(inner)] if nested else [step]


def _kinds(step: Any) -> set[str]:
    return {str(part.get("type")) for part in _parts(step)}
