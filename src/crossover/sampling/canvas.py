"""Texts on their way: what is given, what is to be drawn, and when a text has ended.

Suffixes: R places to be drawn, P predictable ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from crossover.errors import RecipeError
from crossover.model.backbone import Backbone
from crossover.records import Vocabulary
from crossover.sampling.picking import Picking
from crossover.sampling.reading import Reading
from crossover.sampling.record import Ending, Generation, OnChange
from crossover.streams import stream


class Row:
    """One text while it is drawn.

    Args:
        number: The prompt's number; with the seed, the address of its random numbers.
        window: Ids without BOS, the mask's at places to be drawn; changed in place.
        seed: The seed.
        vocabulary: Special ids.
    """

    def __init__(self, number: int, window: list[int], seed: int, vocabulary: Vocabulary) -> None:
        self.number, self.window, self.vocabulary = number, window, vocabulary
        # Where the next document begins, the one before it has ended: neither of the two is text.
        self.ends = frozenset((vocabulary.eos_id, vocabulary.bos_id))
        self.holes = [place for place, token in enumerate(window) if token == vocabulary.mask_id]
        holes = set(self.holes)
        # Places from here on are all drawn: only there may a document end, or a stop string stand.
        self.open = 1 + max((place for place in range(len(window)) if place not in holes), default=-1)
        self.rng = stream(seed, "sample", number)
        self.ended: Ending = "length"
        self.end, self.last_piece = len(window), None
        self.passes, self.flops = 0, 0.0

    def hidden(self, start: int, stop: int, *, early: bool = True) -> list[int]:
        """List the places of a span that are still to be drawn.

        Args:
            start: First place.
            stop: One past the last place.
            early: Whether a document that has ended, with nothing hidden before its end, leaves nothing to be drawn.

        Returns:
            Places from left to right.
        """
        mask = self.vocabulary.mask_id
        left = [place for place in self.holes if start <= place < stop and self.window[place] == mask]
        if early and left and not self.ends.isdisjoint(self.window[self.open : left[0]]):
            return []
        return left

    def charge(self, flops: float, passes: int = 1) -> None:
        """Note what a forward pass computed for this text."""
        self.passes += passes
        self.flops += flops

    def close(self, upto: int, reading: Reading | None) -> bool:
        """Look whether the text ends within what has been drawn so far.

        Args:
            upto: One past the last drawn place.
            reading: How ids read.

        Returns:
            Whether it ended at an end of document or at a stop string.
        """
        end = next((place for place in range(self.open, upto) if self.window[place] in self.ends), None)
        if end is not None:
            self.end, self.ended = end, "document"
        upto = min(self.end, upto)
        found = reading.stop(self.window, self.open, upto) if reading and upto > self.open else None
        if found:
            (self.end, self.last_piece), self.ended = found, "stop"
        return self.ended != "length"

    def generation(self, reading: Reading | None, seconds: float) -> Generation:
        """Close the books."""
        kept = [place for place in self.holes if place < self.end]
        return Generation(
            number=self.number,
            window_ids=tuple(self.window[: self.end]),
            ids=tuple(self.window[place] for place in kept),
            pieces=tuple(self._pieces(kept, reading)) if reading else (),
            text=self._text(reading) if reading else "",
            ended=self.ended,
            passes=self.passes,
            flops=self.flops,
            seconds=seconds,
        )

    def _text(self, reading: Reading) -> str:
        if self.last_piece is None:
            return reading.decode(self.window[: self.end])
        # A stop string may end inside a token: the text ends with the piece, not with the last id.
        return reading.decode(self.window[: self.open]) + self.last_piece

    def _pieces(self, kept: list[int], reading: Reading) -> Iterator[str]:
        starts = [place for before, place in pairwise([-2, *kept]) if place != before + 1]
        ends = [place + 1 for place, after in pairwise([*kept, -2]) if after != place + 1]
        for start, end in zip(starts, ends, strict=True):
            whole = self.last_piece is None or start != self.open
            yield reading.piece(self.window, start, end) if whole else str(self.last_piece)
        if self.last_piece is not None and self.open not in starts:
            # The stop string came first: nothing of the piece is left.
            yield str(self.last_piece)


def lay(
    model: Backbone,
    prompts: Sequence[Sequence[int]],
    n_tokens: int | Sequence[int],
    seed: int,
    *,
    context: int,
    first: int = 0,
    holes: bool = True,
) -> list[Row]:
    """Set texts up: each prompt, then as many places to be drawn as are wanted.

    Args:
        model: The model.
        prompts: Ids of each, without BOS; empty begins a document; the mask's id marks a place to be drawn.
        n_tokens: Places to be drawn behind each prompt, for all or one number each.
        seed: The seed.
        context: T.
        first: Number of the first prompt.
        holes: Whether a prompt may have places to be drawn.

    Returns:
        A row per prompt.

    Raises:
        RecipeError: A text does not fit, or holds ids that are none, or fewer than no tokens are wanted.
    """
    words = model.vocabulary
    counts = [n_tokens] * len(prompts) if isinstance(n_tokens, int) else list(n_tokens)
    if len(counts) != len(prompts):
        raise RecipeError(f"{len(prompts)} prompts, but {len(counts)} numbers of tokens to draw")
    rows = []
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        ids = [int(token) for token in prompt]
        for place, token in enumerate(ids):
            if token == words.mask_id and not holes:
                raise RecipeError(
                    f"prompt {first + index} has a hole at place {place}; next-token sampling sees nothing behind a "
                    "hole: fill it with a masked or block sampler"
                )
            if token != words.mask_id and not 0 <= token < words.predictable:
                raise RecipeError(
                    f"prompt {first + index}: id {token} at place {place} is no token; ids run from 0 to "
                    f"{words.predictable - 1}. Is it from another tokenizer?"
                )
        if count < 0:
            raise RecipeError(f"prompt {first + index}: {count} tokens cannot be drawn; 0 fills its holes alone")
        if len(ids) + count > context:
            raise RecipeError(f"prompt ({len(ids)} tokens) and {count} new ones exceed the model's window of {context}")
        rows.append(Row(first + index, ids + [words.mask_id] * count, seed, words))
    return rows


@contextmanager
def evaluating(model: Backbone) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def permitted(rows: Sequence[tuple[Row, list[int]]], logits_RP: Tensor) -> Tensor:
    """Take what the model says: refuse what is no number, and bar ends of documents where text goes on behind a hole.

    Args:
        rows: Texts and their places.
        logits_RP: Logits of the places, in this order, as the model gives them.

    Returns:
        [R, P], minus infinity at what is barred.

    Raises:
        RecipeError: A logit is a NaN or an infinity.
    """
    asked = [(row, place) for row, places in rows for place in places]
    fine_R = torch.isfinite(torch.stack([logits_RP.amin(-1), logits_RP.amax(-1)])).all(0).tolist()
    if not all(fine_R):
        row, place = asked[fine_R.index(False)]
        raise RecipeError(
            f"prompt {row.number}, place {place}: the model gives logits that are not finite; its weights are not "
            "usable, take those of an earlier checkpoint"
        )
    barred = [place < row.open for row, place in asked]
    ends = sorted(end for end in rows[0][0].ends if end < logits_RP.shape[1]) if any(barred) else []
    if ends:
        logits_RP = logits_RP.clone()
        logits_RP[torch.tensor(barred).nonzero(), torch.tensor(ends)] = float("-inf")
    return logits_RP


def put(
    rows: Sequence[tuple[Row, list[int]]], logits_RP: Tensor, picking: Picking, on_change: OnChange | None = None
) -> None:
    """Draw a token at each place and write it down.

    Args:
        rows: Texts and their places.
        logits_RP: Logits of the places, in this order, as `permitted` leaves them.
        picking: How a token is drawn.
        on_change: Told of each text that changed.
    """
    if not len(logits_RP):
        return
    uniforms = [uniform for row, places in rows for uniform in row.rng.random(len(places)).tolist()]
    drawn = iter(picking.draw(logits_RP, torch.tensor(uniforms, dtype=torch.float64)).tolist())
    for row, places in rows:
        for place in places:
            row.window[place] = next(drawn)
        if on_change is not None:
            on_change(row.number, row.window)


def ranks(index_R: Sequence[int], places: Sequence[int]) -> list[int]:
    """Look places up by their ranks."""
    return [places[index] for index in np.sort(np.asarray(index_R, dtype=int)).tolist()]
