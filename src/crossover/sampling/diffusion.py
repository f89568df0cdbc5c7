"""Generation by unmasking: the rest of the window starts hidden and is revealed a few tokens at a time.

Suffixes: Q rows of a pass, T data tokens, N = T + 1 inputs, R places, P predictable ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crossover.errors import RecipeError
from crossover.model.backbone import Backbone
from crossover.objectives.windows import documents_of
from crossover.records import Pattern
from crossover.sampling.canvas import Row
from crossover.sampling.picking import Picking
from crossover.sampling.policies import FirstHitting, Policy
from crossover.sampling.prices import Prices
from crossover.sampling.reading import Reading
from crossover.sampling.record import OnChange
from crossover.sampling.sampler import Sampler
from crossover.sampling.unmasking import Asks, unmask


@dataclass(frozen=True)
class MaskedSampler(Sampler):
    """Reveals hidden tokens of a window in an order that a policy chooses; what is given may stand anywhere.

    With one token per pass the text is an exact draw from the model's procedure; with more it is an approximation.
    What lies behind the wanted tokens stays hidden up to the window's end, as in training and scoring. Behind a hole
    that is followed by given text no document ends: its end is barred there.

    Args:
        picking: How a token is drawn.
        policy: Which hidden tokens are revealed in a pass.
        guidance: w of classifier-free guidance in LLaDA's unsupervised form (arXiv 2502.09992, appendix): logits are
            u + (1 + w) (c - u), where u are those with all given tokens hidden. 0 is off; otherwise each pass is two.
        context: T, the window that the model was trained on; None for the one that it has positions for.
    """

    picking: Picking = field(default_factory=Picking)
    policy: Policy = field(default_factory=FirstHitting)
    guidance: float = 0.0
    context: int | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.guidance) or self.guidance < 0:
            raise RecipeError(f"guidance must be a finite number that is not negative, not {self.guidance}")
        if self.context is not None and self.context < 1:
            raise RecipeError(f"a window has at least 1 token, not {self.context}")

    def window(self, model: Backbone) -> int:
        """Give the window that the model was trained on, if it is known, else all that there are positions for."""
        context = self.context or model.context
        if context > model.context:
            most = f"the {model.context} that the model has positions for"
            raise RecipeError(f"a window of {context} tokens is more than {most}")
        return context

    def draw(self, model: Backbone, rows: list[Row], reading: Reading | None, on_change: OnChange | None) -> None:
        """Unmask whole windows. See `Sampler.draw`."""
        if self.guidance and any(len(row.holes) == len(row.window) for row in rows):
            raise RecipeError("guidance needs a prompt: without one there is nothing to hide, and it has no effect")
        context, prices = self.window(model), Prices.of(model)

        def predict(asks: Asks) -> Tensor:
            return self._predict(model, asks, context, prices)

        unmask(rows, 0, context, self.policy, self.picking, predict, on_change)
        for row in rows:
            row.close(len(row.window), reading)

    def _predict(self, model: Backbone, asks: Asks, context: int, prices: Prices) -> Tensor:
        shown = [_window(row, context) for row, _ in asks]
        if self.guidance:
            shown += [_window(row, context, given=False) for row, _ in asks]
        for row, places in asks:
            passes = 2 if self.guidance else 1
            row.charge(passes * prices.window(context + 1, len(places)), passes)
        copies = [places for _, places in asks] * (2 if self.guidance else 1)
        reads = [number * (context + 1) + place for number, places in enumerate(copies) for place in places]
        inputs_QN = np.array(shown)
        device, documents = model.device, documents_of(inputs_QN, model.vocabulary)
        plan: Any = model.plan(
            Pattern("full"), context + 1, None if documents is None else torch.from_numpy(documents).to(device)
        )
        positions = torch.arange(context + 1, device=device)[None]
        states_RD = model.read_states(
            torch.from_numpy(inputs_QN).to(device), positions, plan, torch.tensor(reads, device=device)
        )
        logits_RP = model.logits(states_RD).cpu()
        if not self.guidance:
            return logits_RP
        given_RP, plain_RP = logits_RP.chunk(2)
        return plain_RP + (1 + self.guidance) * (given_RP - plain_RP)


def _window(row: Row, context: int, *, given: bool = True) -> list[int]:
    """Write BOS and the text out, hidden up to the window's end; without what is given, if asked for."""
    words, tokens = row.vocabulary, row.window
    if not given:
        tokens = [words.mask_id] * len(row.window)
        for place in row.holes:
            tokens[place] = row.window[place]
    return [words.bos_id, *tokens, *[words.mask_id] * (context - len(tokens))]
