"""Contexts and continuations as text: how they are cut into tokens, and which belong to one document."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Ids = Sequence[int]


def moved_space(context: str, continuation: str) -> tuple[str, str]:
    """Move white space at a context's end to its continuation, as lm-evaluation-harness does; an empty one stays empty.

    Args:
        context: What stands before; it keeps its last visible character.
        continuation: What is scored.

    Returns:
        Context and continuation; together they are the same text.
    """
    kept = context.rstrip() if continuation else context
    return kept, context[len(kept) :] + continuation


@dataclass(frozen=True)
class Encoded:
    """A context and its continuation as ids.

    Args:
        context: Ids of the context.
        continuation: Ids that are scored.
        aligned: Whether the border between the two is one between tokens. If not, a token spans it, and the scored
            tokens are not exactly the continuation's text.
    """

    context: list[int]
    continuation: list[int]
    aligned: bool


def encode_pair(encode: Callable[[str], Ids], context: str, continuation: str) -> Encoded:
    """Encode a context and its continuation by the rule of lm-evaluation-harness.

    The whole text is encoded, and the continuation's tokens are those behind as many as the context alone has. Where a
    piece of the tokenizer spans the border, so that nothing would be left, the last token counts as continuation.

    Args:
        encode: Turns text into ids without special ones.
        context: What stands before; may be empty.
        continuation: What is scored; may be empty.

    Returns:
        Ids of the context and of the continuation.
    """
    context, continuation = moved_space(context, continuation)
    whole = [int(number) for number in encode(context + continuation)]
    if not continuation:
        return Encoded(whole, [], True)
    alone = [int(number) for number in encode(context)] if context else []
    border = max(0, min(len(alone), len(whole) - 1))
    return Encoded(whole[:border], whole[border:], whole[:border] == alone)


def shared_draws(requests: Sequence[Any]) -> list[str]:
    """Name the random numbers of each request, so that the choices of one document share theirs.

    The name is made of the texts of all of the document's requests, not of its number: neither the order of documents
    nor how many there are has a say in a score.

    Args:
        requests: lm-evaluation-harness's; those of one document have the same `task_name` and `doc_id`.

    Returns:
        A name for each; "" for one that has no siblings, or whose document is not known.
    """
    documents: defaultdict[Any, set[str]] = defaultdict(set)
    for request in requests:
        documents[request.task_name, request.doc_id].add(repr(tuple(request.args)))
    names = {
        document: hashlib.blake2b("\n".join(sorted(texts)).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        for document, texts in documents.items()
        if len(texts) > 1 and document[1] is not None
    }
    return [names.get((request.task_name, request.doc_id), "") for request in requests]


def scored_bytes(context: str, continuation: str) -> int:
    """Count the UTF-8 bytes of exactly the text whose nats a continuation's score holds.

    Args:
        context: What stands before.
        continuation: What was asked for; white space that was moved to it counts.

    Returns:
        Bytes.
    """
    return len(moved_space(context, continuation)[1].encode("utf-8", "surrogatepass"))
