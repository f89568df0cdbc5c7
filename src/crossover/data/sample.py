"""How much text a tokenizer is trained on, so that its trainer fits into memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# What the trainer of byte-level BPE holds of each distinct word, measured from above on words of 4 to 100 letters.
_WORD_BYTES, _LETTER_BYTES = 200, 100
TRAINER_BYTES = 1 << 29
# ASCII that stands between words, for an account that need not be exact.
_BETWEEN = bytes(code for code in range(128) if not chr(code).isalnum())
_SPACES = bytes.maketrans(_BETWEEN, b" " * len(_BETWEEN))


def bounded(texts: Iterable[str], trainer_bytes: int = TRAINER_BYTES) -> Iterator[str]:
    """Give texts until a trainer that keeps every distinct word would hold more than it may.

    Args:
        texts: Texts in an order that is a fair sample.
        trainer_bytes: What the trainer may hold.

    Yields:
        The texts from the first on; of a usual language some 200 to 500 megabytes of them.
    """
    seen: set[bytes] = set()
    held = 0
    for text in texts:
        yield text
        fresh = set(text.encode("utf-8", "surrogatepass").translate(_SPACES).split()).difference(seen)
        seen |= fresh
        held += _WORD_BYTES * len(fresh) + _LETTER_BYTES * sum(map(len, fresh))
        if held >= trainer_bytes:
            return
