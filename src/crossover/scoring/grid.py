"""How a window is cut into blocks that are uncovered one after the other, and how it is shown to a model.

Suffixes: W windows, K blocks, Q rows, T data tokens, N inputs, R read states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossover.errors import RecipeError
from crossover.model.shapes import Workload, live_entries
from crossover.objectives.block import lay_out
from crossover.objectives.windows import Floats, Ints, Mask, documents_of, with_bos
from crossover.records import Pattern, Vocabulary

# Told the probabilities of the two likeliest tokens at each read state, says which of the tokens are uncovered now.
Choice = Callable[[Floats, Floats], Mask]


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
        choose: Where the model itself says which states count, the rule; it must be asked before the next rows are
            taken. None where all states count.
    """

    inputs_QN: Ints
    positions_N: Ints
    pattern: Pattern
    documents_QN: Ints | None
    reads_R: Ints
    targets_R: Ints
    weights_R: Floats
    windows_R: Ints
    choose: Choice | None = None


@dataclass(frozen=True)
class Shown:
    """Windows as a model sees them.

    Args:
        inputs_QN: Token ids.
        positions_N: Rotary position of each input.
        pattern: Who sees whom.
        documents_QN: Document number of each input, or None.
        read_T: Input whose state predicts each data token.
    """

    inputs_QN: Ints
    positions_N: Ints
    pattern: Pattern
    documents_QN: Ints | None
    read_T: Ints

    def rows(
        self,
        row_R: Ints,
        token_R: Ints,
        targets_R: Ints,
        weights_R: Floats,
        windows_R: Ints,
        choose: Choice | None = None,
    ) -> Rows:
        """Say what is read of them.

        Args:
            row_R: Row of each read state.
            token_R: Data token that it predicts.
            targets_R: The token's id.
            weights_R: Factor on its nats.
            windows_R: Window that its nats belong to.
            choose: Rule that says which states count.

        Returns:
            The rows.
        """
        return Rows(
            self.inputs_QN,
            self.positions_N,
            self.pattern,
            self.documents_QN,
            row_R * self.inputs_QN.shape[1] + self.read_T[token_R],
            targets_R,
            weights_R,
            windows_R,
            choose,
        )


@dataclass(frozen=True)
class Grid:
    """A window cut into blocks; each is uncovered by itself, with all blocks before it in the clear.

    With one block there is one stream and full attention. With several, a clean stream stands beside a noisy copy of
    each block, as in training (BD3-LM, arXiv 2503.09573), so that all blocks of a window are computed at once.

    Args:
        name: The procedure's name, for errors.
        context: T.
        block: S, data tokens in a block; 0 for the whole window.
        clean: How the clean stream sees itself, "block_causal" or "causal".

    Raises:
        RecipeError: The blocks do not fill the window.
    """

    name: str
    context: int
    block: int = 0
    clean: str = "block_causal"

    def __post_init__(self) -> None:
        if self.context % self.size or self.block == 1:
            must = f"a block must be longer than 1 and divide the window of {self.context} tokens"
            raise RecipeError(f"'{self.name}': {must}")

    @property
    def size(self) -> int:
        """Data tokens in a block."""
        return self.block or self.context

    @property
    def inputs(self) -> int:
        """Inputs of a row, N."""
        if self.size == self.context:
            return self.context + 1
        return self.context - self.size + self.context // self.size * (self.size + 1)

    @property
    def pattern(self) -> Pattern:
        """Who sees whom in a row."""
        if self.size == self.context:
            return Pattern("full")
        return Pattern("two_stream", self.size, self.context - self.size, self.clean)

    def scored(self, starts_W: Ints, lengths_W: Ints) -> tuple[Ints, Ints]:
        """Find the scored tokens of each block.

        Args:
            starts_W: First scored token of each window.
            lengths_W: End of its scored tokens.

        Returns:
            First scored token [W, K] of each block, and how many there are [W, K].
        """
        first_K = np.arange(0, self.context, self.size)
        first = np.maximum(first_K, starts_W[:, None])
        return first, np.maximum(np.minimum(first_K + self.size, lengths_W[:, None]) - first, 0)

    def show(self, tokens_QT: Ints, hidden_QT: Mask, vocabulary: Vocabulary) -> Shown:
        """Show windows with some tokens hidden.

        Args:
            tokens_QT: Data tokens.
            hidden_QT: True where a mask stands for the token.
            vocabulary: Special ids.

        Returns:
            What the model sees.

        Raises:
            RecipeError: The model has no mask.
        """
        if vocabulary.mask_id >= vocabulary.size:
            raise RecipeError(f"'{self.name}' hides tokens, and this model has no mask token; score it with 'ar'")
        if self.size == self.context:
            whole = with_bos(tokens_QT, vocabulary)
            shown = np.where(np.pad(hidden_QT, ((0, 0), (1, 0))), vocabulary.mask_id, whole)
            places = np.arange(self.context + 1)
            return Shown(shown, places, self.pattern, documents_of(shown, vocabulary), places[:-1])
        layout = lay_out(tokens_QT, hidden_QT, self.size, self.context - self.size, vocabulary)
        return Shown(layout.inputs_BN, layout.positions_N, self.pattern, layout.documents_BN, layout.read_T)

    def workload(self, reads: float) -> Workload:
        """Say what a row asks of the model.

        Args:
            reads: States that are read of a row, on average.

        Returns:
            The workload.
        """
        return Workload(self.inputs, reads, live_entries(self.pattern, self.inputs))
