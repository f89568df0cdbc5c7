"""Procedures: which inputs are shown and which states are read to score a window.

A procedure turns windows into rows; each row's weighted nats add up to its window's nats.
Suffixes: W windows, Q rows, T data tokens, N inputs, R read states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RecipeError, nearest
from crossover.model.shapes import Workload, live_entries
from crossover.objectives.block import lay_out
from crossover.objectives.windows import documents_of, strata, with_bos
from crossover.records import Pattern, Vocabulary
from crossover.scoring.windows import ScoringWindows
from crossover.streams import stream

Ints = NDArray[np.int64]
# Rows are grouped so that a forward pass has about this many inputs: more of them leave a CPU's caches, which
# `python benchmarks/scoring.py` shows. A row's score does not depend on its group.
INPUTS_PER_PASS = 4096


@dataclass(frozen=True)
class Rows:
    """A forward pass worth of rows.

    Args:
        inputs_QN: Token ids.
        positions_N: Rotary position of each input.
        pattern: Who sees whom.
        documents_QN: Document number of each input, or None.
        reads_R: Flat indices of the states that are read.
        targets_R: Tokens that they should predict.
        weights_R: Factor on each state's nats.
        windows_R: Window that each read state's nats belong to.
    """

    inputs_QN: Ints
    positions_N: Ints
    pattern: Pattern
    documents_QN: Ints | None
    reads_R: Ints
    targets_R: Ints
    weights_R: NDArray[np.float64]
    windows_R: Ints


class Procedure(Protocol):
    """A declared way of scoring."""

    @property
    def name(self) -> str:
        """Name on the card."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the expected score is the likelihood of the procedure itself (True) or a bound on one (False)."""
        ...

    def rows(self, windows: ScoringWindows, vocabulary: Vocabulary) -> Iterator[Rows]:
        """Yield everything that has to be computed."""
        ...

    def work(self, lengths_W: Ints, context: int) -> tuple[int, Workload]:
        """Count what has to be computed, without making it.

        Args:
            lengths_W: Scored tokens of each window.
            context: T.

        Returns:
            The number of rows, and what a row asks of the model on average.
        """
        ...


@dataclass(frozen=True)
class ChainRule:
    """`ar`: causal attention, every token from the tokens before it, exact."""

    name = "ar"
    exact = True

    def rows(self, windows: ScoringWindows, vocabulary: Vocabulary) -> Iterator[Rows]:
        """Yield each window once."""
        context = windows.tokens_WT.shape[1]
        whole = with_bos(windows.tokens_WT, vocabulary)
        documents = documents_of(whole, vocabulary)
        for part in _parts(len(windows), context):
            scored = np.arange(context) < windows.lengths_W[part, None]
            row, token = np.nonzero(scored)
            yield Rows(
                inputs_QN=whole[part, :-1],
                positions_N=np.arange(context),
                pattern=Pattern("causal"),
                documents_QN=None if documents is None else documents[part, :-1],
                reads_R=row * context + token,
                targets_R=windows.tokens_WT[part][row, token],
                weights_R=np.ones(len(row)),
                windows_R=part[row],
            )

    def work(self, lengths_W: Ints, context: int) -> tuple[int, Workload]:
        """Count a row per window, all of whose tokens are read."""
        entries = live_entries(Pattern("causal"), context)
        return len(lengths_W), Workload(context, float(lengths_W.mean()), entries)


@dataclass(frozen=True)
class LeftToRight:
    """`l2r`: full attention, the suffix masked to the window's full T, one forward pass per scored position.

    Exact likelihood of unmasking from left to right; positions are an unbiased sub-sample, the same for all models.

    Args:
        positions: Scored positions per window; windows that are no longer than this are scored whole.
    """

    positions: int
    name = "l2r"
    exact = True

    def rows(self, windows: ScoringWindows, vocabulary: Vocabulary) -> Iterator[Rows]:
        """Yield a row per scored position."""
        context = windows.tokens_WT.shape[1]
        window_Q, token_Q, weight_Q = self._choose(windows)
        for part in _parts(len(window_Q), context + 1):
            window, token = window_Q[part], token_Q[part]
            hidden = np.arange(context) >= token[:, None]
            whole = with_bos(windows.tokens_WT[window], vocabulary)
            shown = np.where(np.pad(hidden, ((0, 0), (1, 0))), vocabulary.mask_id, whole)
            yield Rows(
                inputs_QN=shown,
                positions_N=np.arange(context + 1),
                pattern=Pattern("full"),
                documents_QN=documents_of(shown, vocabulary),
                reads_R=np.arange(len(part)) * (context + 1) + token,
                targets_R=windows.tokens_WT[window, token],
                weights_R=weight_Q[part],
                windows_R=window,
            )

    def work(self, lengths_W: Ints, context: int) -> tuple[int, Workload]:
        """Count a row per scored position, which is all that is read of it."""
        entries = live_entries(Pattern("full"), context + 1)
        return int(np.minimum(lengths_W, self.positions).sum()), Workload(context + 1, 1, entries)

    def _choose(self, windows: ScoringWindows) -> tuple[Ints, Ints, NDArray[np.float64]]:
        window, token, weight = [], [], []
        for index, length in enumerate(windows.lengths_W):
            if length <= self.positions:
                chosen, factor = np.arange(length), 1.0
            else:
                rng = stream(0, "positions", windows.keys_W[index])
                chosen = np.sort(rng.choice(length, self.positions, replace=False))
                factor = float(length) / self.positions
            window.append(np.full(len(chosen), index))
            token.append(chosen)
            weight.append(np.full(len(chosen), factor))
        return np.concatenate(window), np.concatenate(token), np.concatenate(weight)


@dataclass(frozen=True)
class Bound:
    """`nelbo`: a bound, averaged over draws of how many tokens of each block are masked and which.

    For each block, l is uniform on 1..n (n its scored tokens), stratified over the draws in random order; exactly l
    tokens are hidden and weigh n / l. Tokens after the document's end are always hidden, so that nothing tells the
    model where it ends.

    Args:
        draws: K, draws per window.
        block: S, data tokens in a block; 0 for the whole window (masked diffusion).
        clean: How the clean stream of a block model sees itself, "block_causal" or "causal".
    """

    draws: int
    block: int = 0
    clean: str = "block_causal"
    exact = False

    @property
    def name(self) -> str:
        """Name on the card."""
        if not self.block:
            return "nelbo"
        return f"nelbo({self.block}, causal)" if self.clean == "causal" else f"nelbo({self.block})"

    def rows(self, windows: ScoringWindows, vocabulary: Vocabulary) -> Iterator[Rows]:
        """Yield K rows per window."""
        context = windows.tokens_WT.shape[1]
        size = self._size(context)
        for part in _parts(len(windows) * self.draws, self._inputs(context)):
            window = part // self.draws
            hidden, weights = self._hide(windows, window, part % self.draws, size)
            row, token = np.nonzero(weights > 0)
            tokens = windows.tokens_WT[window]
            shown = self._show(tokens, hidden, size, vocabulary)
            yield Rows(
                **shown["rows"],
                reads_R=row * shown["inputs"] + shown["read_T"][token],
                targets_R=tokens[row, token],
                weights_R=weights[row, token] / self.draws,
                windows_R=window[row],
            )

    def work(self, lengths_W: Ints, context: int) -> tuple[int, Workload]:
        """Count K rows per window; of n scored tokens of a block, (n + 1) / 2 are hidden and read on average."""
        size, inputs = self._size(context), self._inputs(context)
        blocks, rest = np.divmod(lengths_W, size)
        reads = blocks * (size + 1) / 2 + np.where(rest > 0, (rest + 1) / 2, 0.0)
        work = Workload(inputs, float(reads.mean()), live_entries(self._pattern(context), inputs))
        return len(lengths_W) * self.draws, work

    def _size(self, context: int) -> int:
        size = self.block or context
        if context % size or size == 1:
            raise RecipeError(f"'{self.name}': a block must be longer than 1 and divide the window of {context} tokens")
        return size

    def _inputs(self, context: int) -> int:
        size = self._size(context)
        return context + 1 if size == context else context - size + context // size * (size + 1)

    def _pattern(self, context: int) -> Pattern:
        size = self._size(context)
        return Pattern("full") if size == context else Pattern("two_stream", size, context - size, self.clean)

    def _hide(self, windows: ScoringWindows, window_Q: Ints, draw_Q: Ints, size: int) -> tuple[np.ndarray, np.ndarray]:
        context = windows.tokens_WT.shape[1]
        hidden, weights = np.ones((len(window_Q), context), bool), np.zeros((len(window_Q), context))
        for row, (window, draw) in enumerate(zip(window_Q, draw_Q, strict=True)):
            length, key = int(windows.lengths_W[window]), windows.keys_W[window]
            for start in range(0, length, size):
                scored = min(size, length - start)
                count = min(scored, int(np.ceil(_levels(self.draws, key, start)[draw] * scored)))
                masked = stream(0, "draw", key, start, int(draw)).permutation(scored)[:count]
                hidden[row, start : start + scored] = False
                hidden[row, start + masked] = True
                weights[row, start + masked] = scored / count
        return hidden, weights

    def _show(self, tokens_QT: Ints, hidden_QT: np.ndarray, size: int, vocabulary: Vocabulary) -> dict[str, Any]:
        context = tokens_QT.shape[1]
        if size == context:
            whole = with_bos(tokens_QT, vocabulary)
            shown = np.where(np.pad(hidden_QT, ((0, 0), (1, 0))), vocabulary.mask_id, whole)
            rows = {
                "inputs_QN": shown,
                "positions_N": np.arange(context + 1),
                "pattern": self._pattern(context),
                "documents_QN": documents_of(shown, vocabulary),
            }
            return {"rows": rows, "inputs": context + 1, "read_T": np.arange(context)}
        layout = lay_out(tokens_QT, hidden_QT, size, context - size, vocabulary)
        rows = {
            "inputs_QN": layout.inputs_BN,
            "positions_N": layout.positions_N,
            "pattern": self._pattern(context),
            "documents_QN": layout.documents_BN,
        }
        return {"rows": rows, "inputs": layout.inputs_BN.shape[1], "read_T": layout.read_T}


@lru_cache(maxsize=1024)
def _levels(draws: int, key: int, start: int) -> NDArray[np.float64]:
    """Draw how much of a block each draw hides: one stream for all draws, so that they share the strata out."""
    return strata(draws, stream(0, "levels", key, start))


def _parts(count: int, inputs: int) -> Iterator[Ints]:
    size = max(1, INPUTS_PER_PASS // inputs)
    for start in range(0, count, size):
        yield np.arange(start, min(count, start + size))


def procedure_of(name: str, *, draws: int, positions: int) -> Procedure:
    """Make a procedure from its name.

    Args:
        name: "ar", "l2r", "nelbo" or "nelbo(16)".
        draws: K for `nelbo`.
        positions: Positions per window for `l2r`.

    Returns:
        The procedure.

    Raises:
        RecipeError: There is no such procedure.
    """
    name = name.replace(",causal", ", causal")
    if name == "ar":
        return ChainRule()
    if name == "l2r":
        return LeftToRight(positions)
    if name == "nelbo":
        return Bound(draws)
    block = re.fullmatch(r"nelbo\((\d+)(, causal)?\)", name)
    if block:
        return Bound(draws, int(block[1]), "causal" if block[2] else "block_causal")
    raise RecipeError(f"no procedure called '{name}'; {nearest(name, ('ar', 'l2r', 'nelbo', 'nelbo(16)'))}")
