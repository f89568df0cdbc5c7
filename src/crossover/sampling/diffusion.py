"""Generation by unmasking: the rest of the window starts hidden and is revealed a few tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from crossover.errors import RecipeError
from crossover.model.backbone import Backbone
from crossover.records import Pattern
from crossover.sampling.picking import Picking


@dataclass(frozen=True)
class MaskedSampler:
    """Reveals hidden tokens in a chosen order, `tokens_per_pass` in each forward pass.

    With one token per pass the text is an exact draw from the model's procedure; with more it is an approximation.

    Args:
        context: T, the window that the model was trained on; what follows the wanted tokens stays hidden.
        picking: How a token is drawn.
        order: "random", "confidence" (most certain draws first) or "left_to_right".
        tokens_per_pass: Tokens revealed per forward pass.
    """

    context: int
    picking: Picking = field(default_factory=Picking)
    order: Literal["random", "confidence", "left_to_right"] = "random"
    tokens_per_pass: int = 1

    def __post_init__(self) -> None:
        if self.tokens_per_pass < 1:
            raise RecipeError(f"tokens_per_pass must be at least 1, not {self.tokens_per_pass}")

    @torch.inference_mode()
    def generate(self, model: Backbone, prompt: Sequence[int], n_tokens: int, seed: int) -> list[int]:
        """Continue a prompt.

        Args:
            model: The model.
            prompt: Token ids without BOS; may be empty.
            n_tokens: Tokens to draw.
            seed: The same seed gives the same text.

        Returns:
            The drawn ids up to and without the first end-of-document token.

        Raises:
            RecipeError: Prompt and wanted tokens do not fit into the window.
        """
        if len(prompt) + n_tokens > self.context:
            raise RecipeError(
                f"prompt ({len(prompt)} tokens) and {n_tokens} new ones exceed the model's window of {self.context}"
            )
        model.eval()
        generator = torch.Generator().manual_seed(seed)
        vocabulary, start = model.vocabulary, len(prompt)
        window = torch.full((1, self.context + 1), vocabulary.mask_id)
        window[0, 0] = vocabulary.bos_id
        window[0, 1 : start + 1] = torch.tensor(list(prompt), dtype=torch.long)
        positions = torch.arange(self.context + 1)[None].to(model.device)
        plan = model.plan(Pattern("full"), self.context + 1)
        hidden = list(range(start, start + n_tokens))
        while hidden:
            states = model.states(window.to(model.device), positions, plan)
            ids, certain = self.picking.draw(model.logits(states[0, hidden]).cpu(), generator)
            for index in self._choose(certain, generator):
                window[0, hidden[index] + 1] = ids[index]
            hidden = [place for place in hidden if window[0, place + 1] == vocabulary.mask_id]
        drawn = window[0, start + 1 : start + n_tokens + 1].tolist()
        return drawn[: drawn.index(vocabulary.eos_id)] if vocabulary.eos_id in drawn else drawn

    def _choose(self, certain_R: torch.Tensor, generator: torch.Generator) -> list[int]:
        count = min(self.tokens_per_pass, len(certain_R))
        if self.order == "left_to_right":
            return list(range(count))
        if self.order == "confidence":
            return certain_R.topk(count).indices.tolist()
        return torch.randperm(len(certain_R), generator=generator)[:count].tolist()
