"""Held-out text cut into disjoint scoring windows, chosen alike for every model.

Suffixes: W windows, T data tokens.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossover.data.shards import PreparedText
from crossover.errors import DataError
from crossover.streams import digest, stream


@dataclass(frozen=True)
class ScoringWindows:
    """Windows of held-out documents, each of one document.

    Tokens before a window's start are its prompt: every model sees them, and they are not scored. A window that scores
    nothing has 0 nats.

    Args:
        tokens_WT: Data tokens, end-of-document included; zeros after a document's end.
        lengths_W: End of the scored tokens of each window, its prompt counted.
        bytes_W: UTF-8 bytes of the scored tokens.
        documents_W: Index of the document that each window is part of.
        starts_W: First scored token of each window; zeros if left out.

    Raises:
        DataError: A prompt reaches behind its window's scored tokens, or these behind the window.
    """

    tokens_WT: NDArray[np.int64]
    lengths_W: NDArray[np.int64]
    bytes_W: NDArray[np.int64]
    documents_W: NDArray[np.int64]
    starts_W: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.starts_W) == 0:
            object.__setattr__(self, "starts_W", np.zeros(len(self.lengths_W), np.int64))
        context = self.tokens_WT.shape[1]
        fits_W = (self.starts_W >= 0) & (self.starts_W <= self.lengths_W) & (self.lengths_W <= context)
        if not fits_W.all():
            bad = int(np.flatnonzero(~fits_W)[0])
            raise DataError(
                f"window {bad}: scored from token {self.starts_W[bad]} to {self.lengths_W[bad]} of {context}; the "
                f"prompt and what is scored must fit into the window, so cut the prompt from the left"
            )

    def __len__(self) -> int:
        return len(self.lengths_W)

    @property
    def scored_W(self) -> NDArray[np.int64]:
        """Number of scored tokens of each window."""
        return self.lengths_W - self.starts_W

    @cached_property
    def keys_W(self) -> tuple[int, ...]:
        """Address of each window's random numbers: its text, so that no other window has a say in its score.

        The text is all of it, prompt and where it ends included. Windows of the same text are told apart by counting,
        so that their draws stay independent.
        """
        seen: Counter[str] = Counter()
        keys = []
        for tokens, start, length in zip(self.tokens_WT, self.starts_W, self.lengths_W, strict=True):
            text = hashlib.blake2b(tokens[:length].astype("<i8").tobytes(), digest_size=16).hexdigest()
            text += f"/{start}" if start else ""
            keys.append(digest(0, text, seen[text]))
            seen[text] += 1
        return tuple(keys)


def cut(
    documents: Sequence[NDArray[np.int64]],
    bytes_of: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    context: int,
    limit: int | None,
    split: str,
) -> ScoringWindows:
    """Cut documents into disjoint windows and choose some of them.

    The choice depends on the text, the context and the limit, never on a run's seed: all models that are compared
    are scored on the same windows.

    Args:
        documents: Tokens of each document, its end token included.
        bytes_of: Gives the UTF-8 bytes that each token of a document stands for (`Tokenizer.document_bytes`).
        context: T.
        limit: Largest number of windows, or None for all.
        split: Name of the text, for errors and for the choice.

    Returns:
        The windows, in order of the text.

    Raises:
        DataError: Fewer than two windows: no uncertainty could be given.
    """
    pieces = [(index, start) for index, document in enumerate(documents) for start in range(0, len(document), context)]
    if min(len(pieces), 2 if limit is None else limit) < 2:
        have = f"the {split} text has {len(pieces)} window(s) of {context} tokens"
        raise DataError(f"{have}, of which {limit or 'all'} are to be scored; at least 2 are needed for an uncertainty")
    if limit is not None and limit < len(pieces):
        chosen = np.sort(stream(0, f"windows-{split}", context).choice(len(pieces), limit, replace=False))
        pieces = [pieces[index] for index in chosen]
    tokens, lengths = np.zeros((len(pieces), context), np.int64), np.zeros(len(pieces), np.int64)
    sizes, last, bytes_of_last = np.zeros(len(pieces), np.int64), -1, np.zeros(0, np.int64)
    for row, (index, start) in enumerate(pieces):
        if index != last:
            # Of the whole document: what a piece stands for may depend on whether it is the first.
            last, bytes_of_last = index, bytes_of(documents[index])
        piece = documents[index][start : start + context]
        tokens[row, : len(piece)], lengths[row] = piece, len(piece)
        sizes[row] = bytes_of_last[start : start + context].sum()
    return ScoringWindows(
        tokens_WT=tokens,
        lengths_W=lengths,
        bytes_W=sizes,
        documents_W=np.array([index for index, _ in pieces]),
    )


def held_out(text: PreparedText, split: Literal["dev", "test"], context: int, limit: int) -> ScoringWindows:
    """Cut a prepared text's own held-out documents.

    Args:
        text: The prepared text.
        split: "dev" or "test".
        context: T.
        limit: Largest number of windows.

    Returns:
        The windows.

    Raises:
        DataError: There are fewer than two.
    """
    documents = [document.tokens for document in text.documents(split)]
    try:
        return cut(documents, text.tokenizer.document_bytes, context, limit, split)
    except DataError as error:
        raise DataError(f"data.{split}_share: {error}; raise it, give more text, or lower data.context") from None
