"""What an evaluation harness asks for, continuations of contexts and whole texts, as scoring windows.

Suffixes: W windows, T data tokens.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from crossover.model.backbone import Backbone
from crossover.model.shapes import forward_flops
from crossover.scoring.likelihood import window_scores
from crossover.scoring.procedures import INPUTS_PER_PASS, Procedure
from crossover.scoring.siblings import Siblings, of_one_token
from crossover.scoring.windows import ScoringWindows
from crossover.streams import digest

Ids = Sequence[int]


@dataclass(frozen=True)
class Piece:
    """Tokens of one window, of which the last ones are scored.

    Args:
        tokens: Data tokens, BOS not among them; it stands before every window.
        start: First scored token.
        draws: Name under which its random numbers are drawn. Pieces of the same name share them, so that differences
            between them are less noisy than their scores; each score alone has the same law. Its own text if "".
    """

    tokens: tuple[int, ...]
    start: int
    draws: str = ""


@dataclass(frozen=True)
class Pieces:
    """The windows that one request becomes; their nats add up.

    Args:
        pieces: The windows; none for an empty continuation, whose probability is 1.
        cut_tokens: Tokens of the context that no window shows.
    """

    pieces: tuple[Piece, ...]
    cut_tokens: int = 0


@dataclass(frozen=True)
class Scored:
    """The score of a piece or of a request.

    Args:
        nats: Nats of all scored tokens.
        greedy: Whether each of them is the likeliest at its turn; None where that is not defined (a bound) or not
            known (`l2r` with sub-sampled positions).
    """

    nats: float
    greedy: bool | None


@dataclass(frozen=True)
class Spent:
    """What scoring cost.

    Args:
        passes: Forward passes of one window, NFE.
        flops: Useful FLOPs.
    """

    passes: int = 0
    flops: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.passes + other.passes, self.flops + other.flops)


@dataclass(frozen=True)
class PieceWindows(ScoringWindows):
    """Windows whose random numbers depend on their own text and on a seed, whatever stands beside them.

    Args:
        seed: Another seed gives other draws of masks, positions and orders.
        draws: Names under which each window's random numbers are drawn; see `Piece`.
    """

    seed: int = 0
    draws: tuple[str, ...] = ()

    @cached_property
    def keys_W(self) -> tuple[int, ...]:
        """Address of each window's random numbers; the same text has the same one in every batch."""
        windows = zip(self.tokens_WT, self.lengths_W, self.starts_W, self.draws, strict=True)
        return tuple(
            digest(self.seed, f"shared-{name}")
            if name
            else digest(self.seed, f"request-{_text_hash(tokens[:length])}", int(start))
            for tokens, length, start, name in windows
        )


def _text_hash(tokens: np.ndarray) -> str:
    return hashlib.blake2b(tokens.astype("<i8").tobytes(), digest_size=16).hexdigest()


def continuation_pieces(context: Ids, continuation: Ids, window: int, *, draws: str = "") -> Pieces:
    """Place a continuation behind its context.

    A context that is too long is cut from the left. A continuation that does not fit into a window by itself is cut
    into disjoint windows, the first of them full, and has no context.

    Args:
        context: Ids.
        continuation: Ids that are scored.
        window: T.
        draws: Name under which random numbers are drawn; see `Piece`.

    Returns:
        The windows.
    """
    if not continuation:
        return Pieces(())
    if len(continuation) > window:
        cut = text_pieces(continuation, window).pieces
        # Windows of one text must not share their numbers: their noise would add up.
        named = (replace(piece, draws=f"{draws}/{place}" if draws else "") for place, piece in enumerate(cut))
        return Pieces(tuple(named), len(context))
    room = window - len(continuation)
    shown = tuple(context[max(0, len(context) - room) :]) if room else ()
    return Pieces((Piece((*shown, *continuation), len(shown), draws),), len(context) - len(shown))


def text_pieces(tokens: Ids, window: int) -> Pieces:
    """Cut a text into disjoint windows, all of which are scored whole: BOS and T tokens, as for held-out text.

    Args:
        tokens: Ids of the text.
        window: T.

    Returns:
        The windows.
    """
    starts = range(0, len(tokens), window)
    return Pieces(tuple(Piece(tuple(tokens[start : start + window]), 0) for start in starts))


def score_pieces(
    model: Backbone,
    pieces: Sequence[Piece],
    procedure: Procedure,
    *,
    seed: int = 0,
    precision: str = "float32",
    done: Callable[[int], object] = lambda count: None,
) -> tuple[list[Scored], Spent]:
    """Score pieces, each by its own text alone.

    Args:
        model: The model.
        pieces: What is scored; equal ones are computed once.
        procedure: How.
        seed: Seed of the procedure's random numbers.
        precision: "float32" or "bfloat16" compute.
        done: Told how many pieces of different text have been scored since it was last called.

    Returns:
        A score per piece, and what they cost.
    """
    if not _draws(procedure):
        pieces = [replace(piece, draws="") for piece in pieces]
    different = list(dict.fromkeys(pieces))
    context, shape, rows = model.context, model.shape, model.vocabulary.predictable
    scores: dict[Piece, Scored] = {}
    spent = Spent()
    for chosen, width, how in _batches(different, procedure, context):
        windows = _windows(chosen, width, seed)
        nats_W, greedy_W = window_scores(model, windows, how, precision=precision)
        for index, piece in enumerate(chosen):
            scores[piece] = Scored(float(nats_W[index]), None if greedy_W is None else bool(greedy_W[index]))
        count, work = how.work(windows.lengths_W, width, windows.starts_W)
        spent += Spent(count, count * forward_flops(shape, work, head_rows=rows))
        done(len(chosen))
    return [scores[piece] for piece in pieces], spent


def _draws(procedure: Procedure) -> bool:
    return not procedure.exact or hasattr(procedure, "positions") or getattr(procedure, "policy", "") == "random"


def _windows(pieces: Sequence[Piece], width: int, seed: int) -> PieceWindows:
    tokens_WT = np.zeros((len(pieces), width), np.int64)
    for row, piece in enumerate(pieces):
        tokens_WT[row, : len(piece.tokens)] = piece.tokens
    return PieceWindows(
        tokens_WT=tokens_WT,
        lengths_W=np.array([len(piece.tokens) for piece in pieces]),
        # Bytes are those of the request's text, which is known exactly; see `pairs.scored_bytes`.
        bytes_W=np.zeros(len(pieces), np.int64),
        documents_W=np.arange(len(pieces)),
        starts_W=np.array([piece.start for piece in pieces]),
        seed=seed,
        draws=tuple(piece.draws for piece in pieces),
    )


def _batches(
    pieces: Sequence[Piece], procedure: Procedure, context: int
) -> Iterator[tuple[list[Piece], int, Procedure]]:
    # Pieces of like length stand together, so that a window that may be narrow is no wider than it must be.
    kinds: defaultdict[tuple[bool, bool], defaultdict[Any, list[Piece]]] = defaultdict(lambda: defaultdict(list))
    for piece in pieces:
        scored = len(piece.tokens) - piece.start
        # What is known of a piece must not depend on its neighbours: those with sub-sampled positions stand apart.
        kind = kinds[scored == 1, scored > getattr(procedure, "positions", scored)]
        kind[piece.tokens[:-1] if scored == 1 else piece].append(piece)
    for (single, _), asked in kinds.items():
        groups = sorted(asked.values(), key=lambda group: -len(group[0].tokens))
        start = 0
        while start < len(groups):
            width = window_width(procedure, len(groups[start][0].tokens), context)
            part = groups[start : start + max(1, INPUTS_PER_PASS // width)]
            numbers = np.repeat(np.arange(len(part)), [len(group) for group in part])
            how = Siblings(of_one_token(procedure), numbers) if single else procedure
            yield [piece for group in part for piece in group], width, how
            start += len(part)


def window_width(procedure: Procedure, longest: int, context: int) -> int:
    """Say how wide a window has to be so that its score is that of the model's full window.

    Tokens behind the last scored one are never seen under `ar`, nor are later blocks by earlier ones. Under full
    attention they are, as masks, and how many there are matters to the model.

    Args:
        procedure: How windows are scored.
        longest: Tokens of the longest of them.
        context: T of the model.

    Returns:
        T of the windows.
    """
    block = 1 if procedure.name == "ar" else int(getattr(procedure, "block", 0))
    return min(context, -(-longest // block) * block) if block else context
