"""Exact likelihoods of texts that are uncovered a few tokens at a time, in an order that a policy chooses.

Suffixes: W windows, K blocks, Q rows, T data tokens, R read states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crossover.errors import RecipeError, RunError, nearest
from crossover.model.shapes import Workload
from crossover.objectives.windows import Floats, Ints, Mask
from crossover.records import Vocabulary
from crossover.scoring.grid import Grid, Rows
from crossover.scoring.procedures import ChainRule, parts
from crossover.scoring.windows import ScoringWindows
from crossover.streams import stream

FIXED, LED = ("left_to_right", "random"), ("confidence", "margin")
# Scores that differ by less than this part of the largest probability count as equal. It is far above what the grouping
# of rows does to float32 and far below what makes a choice better.
TIE = 1e-5


@dataclass(frozen=True)
class Unmasking:
    """`order(policy, k)` and `block(S, policy)`: the likelihood of a text under the sampler that uncovers it so.

    All scored tokens of a block are hidden at first. At each step the model gives every hidden place a distribution;
    the policy chooses k places from these distributions alone, never from the text; the true tokens there are scored,
    then shown: -log p = sum over steps of -log p(token | uncovered ones) (DUEL, arXiv 2603.01367). With k > 1 the
    tokens of a step are independent given the rest, as they are for the sampler. The places to be filled are given, and
    the probabilities of all texts that fill them sum to one; tokens behind them stay hidden, as in `l2r`.

    `confidence` takes the largest top probability (LLaDA, arXiv 2502.09992), `margin` the largest difference of the two
    top probabilities (Kim et al., arXiv 2502.06768); near-equal places go from left to right. `random` draws one order
    per window from the window's key, alike for all models: given the order the score is exact, and its mean over orders
    is the mean of `nelbo` (k = 1).

    With blocks (BD3-LM, arXiv 2503.09573) each is conditioned on the true blocks before it. All blocks of a window go
    on together, so that S passes do. Blocks of one token are the chain rule, as they are for training.

    Args:
        policy: "left_to_right", "random", "confidence" or "margin".
        tokens_per_step: k, tokens uncovered per step and block.
        block: S, data tokens in a block; 0 for the whole window.
        clean: How the clean stream of a block model sees itself, "block_causal" or "causal".
    """

    policy: str
    tokens_per_step: int = 1
    block: int = 0
    clean: str = "block_causal"
    exact = True

    def __post_init__(self) -> None:
        if self.policy not in FIXED + LED:
            raise RecipeError(f"'{self.name}': no policy called '{self.policy}'; {nearest(self.policy, FIXED + LED)}")
        if self.tokens_per_step < 1:
            raise RecipeError(f"'{self.name}': at least 1 token is uncovered per step")

    @property
    def name(self) -> str:
        """Name on the card."""
        if not self.block:
            return f"order({self.policy}{f', {self.tokens_per_step}' if self.tokens_per_step > 1 else ''})"
        policy = f", {self.policy}" if self.policy != "left_to_right" else ""
        return f"block({self.block}{policy}{', causal' if self.clean == 'causal' else ''})"

    @property
    def asks_the_model(self) -> bool:
        """Whether the order depends on the model, so that a step's rows are known after the step before only."""
        return self.policy in LED and self.block != 1

    def rows(self, windows: ScoringWindows, vocabulary: Vocabulary) -> Iterator[Rows]:
        """Yield a row per window and step."""
        if self.block == 1:
            yield from ChainRule().rows(windows, vocabulary)
            return
        grid = self._grid(windows.tokens_WT.shape[1])
        steps_W = self._steps(grid.scored(windows.starts_W, windows.lengths_W)[1])
        if not self.asks_the_model:
            yield from self._fixed(windows, vocabulary, grid, steps_W)
            return
        # Windows of as many steps stand together: a pass stays full until its windows end.
        order_W = np.argsort(-steps_W, kind="stable")
        for part in parts(int((steps_W > 0).sum()), grid.inputs):
            yield from self._led(windows, vocabulary, grid, order_W[part])

    def work(self, lengths_W: Ints, context: int, starts_W: Ints | None = None) -> tuple[int, Workload]:
        """Count a row per window and step; where the model leads, all hidden scored tokens are read at each step."""
        if self.block == 1:
            return ChainRule().work(lengths_W, context, starts_W)
        grid, each = self._grid(context), self.tokens_per_step
        _, scored_WK = grid.scored(np.zeros_like(lengths_W) if starts_W is None else starts_W, lengths_W)
        steps_WK = -(-scored_WK // each)
        # Of n tokens, n - k s are hidden at step s = 0, 1, ...
        led = scored_WK * steps_WK - each * (steps_WK * (steps_WK - 1) // 2)
        reads = float((led if self.asks_the_model else scored_WK).sum())
        rows = int(self._steps(scored_WK).sum())
        return rows, grid.workload(reads / max(rows, 1))

    def _grid(self, context: int) -> Grid:
        return Grid(self.name, context, self.block, self.clean)

    def _steps(self, scored_WK: Ints) -> Ints:
        return (-(-scored_WK // self.tokens_per_step)).max(axis=1)

    def _fixed(self, windows: ScoringWindows, vocabulary: Vocabulary, grid: Grid, steps_W: Ints) -> Iterator[Rows]:
        turn_WT = self._turns(windows, grid)
        window_Q = np.repeat(np.arange(len(windows)), steps_W)
        step_Q = np.arange(len(window_Q)) - np.repeat(np.cumsum(steps_W) - steps_W, steps_W)
        for part in parts(len(window_Q), grid.inputs):
            window, step = window_Q[part], step_Q[part, None]
            tokens, turn = windows.tokens_WT[window], turn_WT[window]
            row, token = np.nonzero(turn == step)
            shown = grid.show(tokens, turn >= step, vocabulary)
            yield shown.rows(row, token, tokens[row, token], np.ones(len(row)), window[row])

    def _turns(self, windows: ScoringWindows, grid: Grid) -> Ints:
        # The step at which each token is uncovered: before the first one for a prompt, never behind the end.
        turn = np.where(np.arange(grid.context) < windows.lengths_W[:, None], -1, grid.context)
        first_WK, scored_WK = grid.scored(windows.starts_W, windows.lengths_W)
        for window, block in zip(*np.nonzero(scored_WK), strict=True):
            first, scored = first_WK[window, block], int(scored_WK[window, block])
            order = np.arange(scored)
            if self.policy == "random":
                order = stream(0, "unmasking", windows.keys_W[window], int(block) * grid.size).permutation(scored)
            turn[window, first + order] = np.arange(scored) // self.tokens_per_step
        return turn

    def _led(self, windows: ScoringWindows, vocabulary: Vocabulary, grid: Grid, window_Q: Ints) -> Iterator[Rows]:
        place_T = np.arange(grid.context)
        after = place_T >= windows.lengths_W[window_Q, None]
        waiting = (place_T >= windows.starts_W[window_Q, None]) & ~after
        while waiting.any():
            live = waiting.any(axis=1)
            window_Q, after, waiting = window_Q[live], after[live], waiting[live]
            row, token = np.nonzero(waiting)
            turn = _Turn(self.policy, self.tokens_per_step, row * grid.context + token // grid.size)
            tokens = windows.tokens_WT[window_Q]
            shown = grid.show(tokens, waiting | after, vocabulary)
            yield shown.rows(row, token, tokens[row, token], np.ones(len(row)), window_Q[row], turn.choose)
            waiting[row, token] &= ~turn.taken()


class _Turn:
    """One step of a pass: asked by whoever runs the model, answered to the procedure that waits for it."""

    def __init__(self, policy: str, count: int, group_R: Ints) -> None:
        self._policy, self._count, self._group_R = policy, count, group_R
        self._chosen_R: Mask | None = None

    def choose(self, first_R: Floats, second_R: Floats) -> Mask:
        """Say which places are uncovered now; see `choose`."""
        self._chosen_R = choose(self._policy, self._count, self._group_R, first_R, second_R)
        return self._chosen_R

    def taken(self) -> Mask:
        """Give the answer, which the next rows depend on."""
        if self._chosen_R is None:
            raise RunError(f"order '{self._policy}': the model leads, so its rows cannot be made before they are run")
        return self._chosen_R


def choose(policy: str, count: int, group_R: Ints, first_R: Floats, second_R: Floats) -> Mask:
    """Choose places by what the model says about them.

    Args:
        policy: "confidence" or "margin".
        count: Places to choose in each group, or all if it has fewer.
        group_R: Group (a window's block) of each hidden place, ascending; its places stand from left to right.
        first_R: Probability of the likeliest token at each place.
        second_R: Probability of the second.

    Returns:
        True [R] at the chosen places; among scores that are equal but for `TIE`, the leftmost.
    """
    # A model without finite scores is reported with its window, later; here it only must not stop the steps.
    score_R = np.nan_to_num(first_R - second_R if policy == "margin" else first_R)
    chosen_R = np.zeros(len(group_R), bool)
    starts = np.flatnonzero(np.diff(group_R, prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(group_R)), strict=True):
        open_, slack = score_R[start:end].copy(), TIE * float(np.nan_to_num(first_R[start:end]).max())
        for _ in range(min(count, end - start)):
            place = int(np.argmax(open_ >= open_.max() - slack))
            open_[place] = -np.inf
            chosen_R[start + place] = True
    return chosen_R
