"""Semi-autoregressive generation: blocks from left to right, unmasking inside a block, an exact cache of the prefix.

Suffixes: G texts that go on together, N new inputs, K inputs so far, S tokens of a block, R places, P predictable ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from crossover.errors import RecipeError
from crossover.model.backbone import Backbone
from crossover.objectives.windows import documents_of
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.cached import CachedBody
from crossover.sampling.canvas import Row
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import FirstHitting, Policy
from crossover.sampling.prices import Prices
from crossover.sampling.reading import Reading
from crossover.sampling.record import OnChange
from crossover.sampling.sampler import Sampler
from crossover.sampling.unmasking import Asks, unmask


@dataclass(frozen=True)
class BlockSampler(Sampler):
    """Draws blocks of S tokens from left to right (BD3-LM, arXiv 2503.09573), unmasking inside each.

    Blocks lie on the grid of the window, as in training: a prompt that ends inside a block is given in its first part.
    A noisy block is run as S + 1 inputs, the clean token before it first; it sees itself and the keys and values of
    the clean stream strictly before that token. Each clean block is encoded once, in the pass in which the next noisy
    block is first run, and its keys and values are appended to what is kept; those of noisy inputs are cut off again.
    The last block's tokens behind the wanted ones stay hidden. Given text behind a hole is seen from the hole's own
    block alone. S = 1 is next-token sampling and S = T is masked sampling, by dispatch, as in training.

    Args:
        size: S, tokens in a block; divides the window.
        picking: How a token is drawn.
        policy: Which hidden tokens of a block are revealed in a pass; steps count for each block.
        clean: How the clean stream sees itself, "block_causal" or "causal", as the model was trained.
        cached: Whether the prefix is kept; False encodes it again in each pass.
    """

    size: int
    picking: Picking = field(default_factory=Picking)
    policy: Policy = field(default_factory=FirstHitting)
    clean: str = "block_causal"
    cached: bool = True

    def __post_init__(self) -> None:
        if self.size < 1 or self.clean not in ("block_causal", "causal"):
            raise RecipeError(
                f"a block has at least 1 token and a clean stream is block_causal or causal, not {self.size}, "
                f"'{self.clean}'"
            )

    @property
    def fills_holes(self) -> bool:
        """Blocks of one token are next-token sampling, which sees nothing behind a hole."""
        return self.size > 1

    def window(self, model: Backbone) -> int:
        """Give the model's window, which blocks must divide."""
        context = model.context
        if context % self.size:
            sizes = ", ".join(str(size) for size in range(1, context + 1) if context % size == 0)
            raise RecipeError(f"block size {self.size} does not divide the window of {context} tokens; use {sizes}")
        return context

    def draw(self, model: Backbone, rows: list[Row], reading: Reading | None, on_change: OnChange | None) -> None:
        """Draw texts that stand at the same block together. See `Sampler.draw`."""
        if self.size == 1:
            AutoregressiveSampler(self.picking, self.cached).draw(model, rows, reading, on_change)
            return
        if self.size == model.context:
            MaskedSampler(self.picking, self.policy).draw(model, rows, reading, on_change)
            return
        groups: dict[int, list[Row]] = {}
        for row in rows:
            if row.holes:
                groups.setdefault(row.holes[0] // self.size, []).append(row)
        for number, group in groups.items():
            self._draw(_Stream(model, self, group, number * self.size), reading, on_change)

    def _draw(self, stream: _Stream, reading: Reading | None, on_change: OnChange | None) -> None:
        while stream.rows:
            stop = stream.start + self.size
            unmask(stream.rows, stream.start, stop, self.policy, self.picking, stream.predict, on_change)
            stream.go_on(
                [
                    index
                    for index, row in enumerate(stream.rows)
                    if not row.close(min(stop, len(row.window)), reading) and row.holes[-1] >= stop
                ]
            )


class _Stream:
    """Texts that stand at the same block, and the keys and values of what lies before it."""

    def __init__(self, model: Backbone, sampler: BlockSampler, rows: list[Row], start: int) -> None:
        self.rows, self.start = rows, start
        self._model, self._sampler = model, sampler
        self._body, self._prices = CachedBody(model), Prices.of(model)
        # Clean inputs of each text that have been paid for.
        self._paid = {row.number: 0 for row in rows}

    def go_on(self, keep: list[int]) -> None:
        """Move on to the next block with those of the texts that have not ended."""
        if 0 < len(keep) < len(self.rows):
            self._body.select(keep)
        self.rows = [self.rows[index] for index in keep]
        self.start += self._sampler.size

    def predict(self, asks: Asks) -> Tensor:
        """Run the noisy blocks of all texts, behind clean blocks that have not been encoded yet."""
        model, size, start = self._model, self._sampler.size, self.start
        if not self._sampler.cached:
            self._body, self._paid = CachedBody(model), dict.fromkeys(self._paid, 0)
        kept = len(self._body)
        words, stop = model.vocabulary, start + size
        windows = [row.window[:stop] + [words.mask_id] * (stop - len(row.window)) for row in self.rows]
        whole_GK = np.array([[words.bos_id, *window] for window in windows])
        seen = self._seen(kept, documents_of(whole_GK, words))
        new, index = stop + 1 - kept, {row.number: number for number, row in enumerate(self.rows)}
        # The state of input i predicts token i, counted without BOS.
        reads = [index[row.number] * new + place - kept for row, places in asks for place in places]
        states_RD = self._body.run(
            torch.from_numpy(whole_GK[:, kept:]), torch.arange(kept, stop + 1)[None], seen, torch.tensor(reads)
        )
        self._body.drop(size + 1)
        for row, places in asks:
            paid, clean = self._paid[row.number], Pattern(self._sampler.clean, size)
            row.charge(self._prices.block(clean, start - paid, paid, size + 1, len(places)))
            self._paid[row.number] = start
        return model.logits(states_RD).cpu()

    def _seen(self, kept: int, documents_GK: np.ndarray | None) -> Tensor | None:
        """Say which new input sees which: clean ones their own stream, noisy ones all that is there."""
        start, size = self.start, self._sampler.size
        if kept == start and documents_GK is None:
            return None
        query, key = torch.arange(kept, start + size + 1)[:, None], torch.arange(start + size + 1)
        clean = key <= query if self._sampler.clean == "causal" else key // size <= query // size
        seen = ((query >= start) | (clean & (key < start)))[None]
        if documents_GK is None:
            return seen
        numbers = torch.from_numpy(documents_GK)
        return seen & (numbers[:, kept:, None] == numbers[:, None, :])
