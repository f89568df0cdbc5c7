"""Answers of one token behind the same context: one pass says what each of them is worth.

Suffixes: W windows, U contexts, R read states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from crossover.model.shapes import Workload
from crossover.objectives.windows import Ints
from crossover.records import Vocabulary
from crossover.scoring.grid import Rows
from crossover.scoring.procedures import Procedure
from crossover.scoring.windows import ScoringWindows


@dataclass(frozen=True, eq=False)
class Siblings:
    """A procedure for windows that score their last token alone, where several share what stands before it.

    The scored token is hidden from its own score in every procedure, so windows of one context ask the model the same.
    Their rows are made once, and each state is read once for every answer.

    Args:
        inner: The procedure; see `of_one_token`.
        contexts_W: Number of each window's context, ascending from 0, so that windows of one stand together.
    """

    inner: Procedure
    contexts_W: Ints

    @property
    def name(self) -> str:
        """Name on the card."""
        return self.inner.name

    @property
    def exact(self) -> bool:
        """As the procedure itself."""
        return self.inner.exact

    @property
    def _first_U(self) -> Ints:
        return np.flatnonzero(np.diff(self.contexts_W, prepend=-1))

    def rows(self, windows: ScoringWindows, vocabulary: Vocabulary) -> Iterator[Rows]:
        """Yield the rows of each context, read for every window of it."""
        first_U, count_U = self._first_U, np.bincount(self.contexts_W)
        asked = ScoringWindows(
            tokens_WT=windows.tokens_WT[first_U],
            lengths_W=windows.lengths_W[first_U],
            bytes_W=windows.bytes_W[first_U],
            documents_W=windows.documents_W[first_U],
            starts_W=windows.starts_W[first_U],
        )
        for part in self.inner.rows(asked, vocabulary):
            times_R = count_U[part.windows_R]
            state = np.repeat(np.arange(len(times_R)), times_R)
            # The states of one read follow each other: their place among these is the place of their window.
            place = np.arange(len(state)) - np.repeat(np.cumsum(times_R) - times_R, times_R)
            window = first_U[part.windows_R[state]] + place
            yield replace(
                part,
                reads_R=part.reads_R[state],
                targets_R=windows.tokens_WT[window, windows.lengths_W[window] - 1],
                weights_R=part.weights_R[state],
                windows_R=window,
            )

    def work(self, lengths_W: Ints, context: int, starts_W: Ints | None = None) -> tuple[int, Workload]:
        """Count the rows of the contexts; the head is applied for every window."""
        first_U = self._first_U
        rows, work = self.inner.work(lengths_W[first_U], context, None if starts_W is None else starts_W[first_U])
        return rows, replace(work, reads=work.reads * len(lengths_W) / len(first_U))


def of_one_token(procedure: Procedure) -> Procedure:
    """Simplify a procedure for windows that score one token.

    One hidden token is hidden in every draw, so that one draw is as good as all; and there is one order to uncover it.

    Args:
        procedure: The procedure.

    Returns:
        One that gives the same scores at the least cost.
    """
    simple: Any = procedure
    fewest = {"draws": 1, "policy": "left_to_right"}
    return replace(simple, **{key: value for key, value in fewest.items() if hasattr(procedure, key)})
