"""Procedures: which inputs are shown and which states are read to score a window.

A procedure turns windows into rows; each row's weighted nats add up to its window's nats.
Suffixes: W windows, Q rows, T data tokens, N inputs, R read states.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RecipeError, nearest
from crossover.model.shapes import Workload, live_entries
from crossover.objectives.windows import Floats, Ints, Mask, documents_of, strata, with_bos
from crossover.records import Pattern, Vocabulary
from crossover.scoring.grid import Grid, Rows
from crossover.scoring.windows import ScoringWindows
from crossover.streams import stream

# Rows are grouped so that a forward pass has about this many inputs: more of them leave a CPU's caches, which
# `python benchmarks/scoring.py` shows. A row's score does not depend on its group.
INPUTS_PER_PASS = 4096


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

    def work(self, lengths_W: Ints, context: int, starts_W: Ints | None = None) -> tuple[int, Workload]:
        """Count what has to be computed, without making it.

        Args:
            lengths_W: End of the scored tokens of each window.
            context: T.
            starts_W: First scored token of each window; zeros if left out.

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
        for part in parts(len(windows), context):
            token = np.arange(context)
            scored = (token >= windows.starts_W[part, None]) & (token < windows.lengths_W[part, None])
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

    def work(self, lengths_W: Ints, context: int, starts_W: Ints | None = None) -> tuple[int, Workload]:
        """Count a row per window, all of whose scored tokens are read."""
        scored_W = lengths_W - (0 if starts_W is None else starts_W)
        entries = live_entries(Pattern("causal"), context)
        return len(lengths_W), Workload(context, float(scored_W.mean()), entries)


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
        grid = Grid(self.name, windows.tokens_WT.shape[1])
        window_Q, token_Q, weight_Q = self._choose(windows)
        for part in parts(len(window_Q), grid.inputs):
            window, token = window_Q[part], token_Q[part]
            tokens = windows.tokens_WT[window]
            shown = grid.show(tokens, np.arange(grid.context) >= token[:, None], vocabulary)
            row = np.arange(len(part))
            yield shown.rows(row, token, tokens[row, token], weight_Q[part], window)

    def work(self, lengths_W: Ints, context: int, starts_W: Ints | None = None) -> tuple[int, Workload]:
        """Count a row per scored position, which is all that is read of it."""
        scored_W = lengths_W - (0 if starts_W is None else starts_W)
        entries = live_entries(Pattern("full"), context + 1)
        return int(np.minimum(scored_W, self.positions).sum()), Workload(context + 1, 1, entries)

    def _choose(self, windows: ScoringWindows) -> tuple[Ints, Ints, NDArray[np.float64]]:
        window, token, weight = [], [], []
        for index, scored in enumerate(windows.scored_W):
            if scored <= self.positions:
                chosen, factor = np.arange(scored), 1.0
            else:
                rng = stream(0, "positions", windows.keys_W[index])
                chosen = np.sort(rng.choice(scored, self.positions, replace=False))
                factor = float(scored) / self.positions
            window.append(np.full(len(chosen), index))
            token.append(windows.starts_W[index] + chosen)
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
        grid = self._grid(windows.tokens_WT.shape[1])
        for part in parts(len(windows) * self.draws, grid.inputs):
            window = part // self.draws
            hidden, weights = self._hide(windows, window, part % self.draws, grid)
            row, token = np.nonzero(weights > 0)
            tokens = windows.tokens_WT[window]
            shown = grid.show(tokens, hidden, vocabulary)
            yield shown.rows(row, token, tokens[row, token], weights[row, token] / self.draws, window[row])

    def work(self, lengths_W: Ints, context: int, starts_W: Ints | None = None) -> tuple[int, Workload]:
        """Count K rows per window; of n scored tokens of a block, (n + 1) / 2 are hidden and read on average."""
        grid = self._grid(context)
        _, scored_WK = grid.scored(np.zeros_like(lengths_W) if starts_W is None else starts_W, lengths_W)
        reads_W = np.where(scored_WK > 0, (scored_WK + 1) / 2, 0.0).sum(axis=1)
        return len(lengths_W) * self.draws, grid.workload(float(reads_W.mean()))

    def _grid(self, context: int) -> Grid:
        return Grid(self.name, context, self.block, self.clean)

    def _hide(self, windows: ScoringWindows, window_Q: Ints, draw_Q: Ints, grid: Grid) -> tuple[Mask, Floats]:
        hidden = np.arange(grid.context) >= windows.lengths_W[window_Q, None]
        weights = np.zeros(hidden.shape)
        first_QK, scored_QK = grid.scored(windows.starts_W[window_Q], windows.lengths_W[window_Q])
        for row, block in zip(*np.nonzero(scored_QK), strict=True):
            # A block's place in the window is its address, whether or not a prompt reaches into it.
            key, draw, start = windows.keys_W[window_Q[row]], int(draw_Q[row]), int(block) * grid.size
            first, scored = first_QK[row, block], int(scored_QK[row, block])
            count = min(scored, int(np.ceil(_levels(self.draws, key, start)[draw] * scored)))
            masked = first + stream(0, "draw", key, start, draw).permutation(scored)[:count]
            hidden[row, masked], weights[row, masked] = True, scored / count
        return hidden, weights


@lru_cache(maxsize=1024)
def _levels(draws: int, key: int, start: int) -> NDArray[np.float64]:
    """Draw how much of a block each draw hides: one stream for all draws, so that they share the strata out."""
    return strata(draws, stream(0, "levels", key, start))


def parts(count: int, inputs: int) -> Iterator[Ints]:
    """Group rows into forward passes.

    Args:
        count: Number of rows.
        inputs: Inputs of a row.

    Yields:
        Indices of the rows of a pass.
    """
    size = max(1, INPUTS_PER_PASS // inputs)
    for start in range(0, count, size):
        yield np.arange(start, min(count, start + size))


def procedure_of(name: str, *, draws: int, positions: int) -> Procedure:
    """Make a procedure from its name.

    Args:
        name: "ar", "l2r", "nelbo", "nelbo(16)", "order(confidence)", "order(confidence, 2)" with 2 tokens a step,
            "block(16)" or "block(16, confidence)". The policies of an order are left_to_right, random, confidence and
            margin. A block model whose clean stream is causal takes "nelbo(16, causal)" and "block(16, causal)".
        draws: K for `nelbo`.
        positions: Positions per window for `l2r`.

    Returns:
        The procedure.

    Raises:
        RecipeError: There is no such procedure.
    """
    # Orders are built on what stands above.
    from crossover.scoring.unmasking import Unmasking

    written = re.sub(r"\s+", "", name).replace(",", ", ")
    plain: dict[str, Procedure] = {"ar": ChainRule(), "l2r": LeftToRight(positions), "nelbo": Bound(draws)}
    if written in plain:
        return plain[written]
    clean = "causal" if written.endswith(", causal)") else "block_causal"
    if found := re.fullmatch(r"nelbo\(([1-9]\d*)(, causal)?\)", written):
        return Bound(draws, int(found[1]), clean)
    if found := re.fullmatch(r"order\((\w+)(?:, ([1-9]\d*))?\)", written):
        return Unmasking(found[1], int(found[2] or 1))
    if found := re.fullmatch(r"block\(([1-9]\d*)(?:, (?!causal\))(\w+))?(, causal)?\)", written):
        return Unmasking(found[2] or "left_to_right", block=int(found[1]), clean=clean)
    forms = ("order(confidence)", "order(random, 2)", "block(16)", "block(16, margin)", "nelbo(16)", *plain)
    raise RecipeError(f"no procedure called '{name}'; {nearest(name, forms)}")
