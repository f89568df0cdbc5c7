"""Next-token generation with transformers' key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from crossover.errors import RecipeError
from crossover.model.backbone import Backbone
from crossover.sampling.picking import Picking


@dataclass(frozen=True)
class AutoregressiveSampler:
    """Draws one token after the other, each from the tokens before it.

    Args:
        picking: How a token is drawn.
    """

    picking: Picking = field(default_factory=Picking)

    @torch.inference_mode()
    def generate(self, model: Backbone, prompt: Sequence[int], n_tokens: int, seed: int) -> list[int]:
        """Continue a prompt.

        Args:
            model: The model.
            prompt: Token ids without BOS; may be empty.
            n_tokens: Most tokens to draw.
            seed: The same seed gives the same text.

        Returns:
            The drawn ids, up to and without the end-of-document token.

        Raises:
            RecipeError: Prompt and wanted tokens do not fit into the window.
        """
        context = int(model.inner.config.max_position_embeddings) - 1
        if len(prompt) + n_tokens > context:
            raise RecipeError(
                f"prompt ({len(prompt)} tokens) and {n_tokens} new ones exceed the model's window of {context}"
            )
        model.eval()
        generator = torch.Generator().manual_seed(seed)
        cache: Any = None
        inputs = torch.tensor([[model.vocabulary.bos_id, *prompt]])
        drawn: list[int] = []
        body: Any = model.inner.model
        for _ in range(n_tokens):
            # Without a plan transformers drives its own causal mask, cache included.
            out = body(input_ids=inputs.to(model.device), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits = model.logits(out.last_hidden_state[:, -1]).cpu()
            token = int(self.picking.draw(logits, generator)[0])
            if token == model.vocabulary.eos_id:
                break
            drawn.append(token)
            inputs = torch.tensor([[token]])
        return drawn
