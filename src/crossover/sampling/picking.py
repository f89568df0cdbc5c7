"""How a token is drawn from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossover.errors import RecipeError


@dataclass(frozen=True)
class Picking:
    """Temperature and truncation of the distribution that tokens are drawn from.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: Keeps the smallest set of tokens whose probability reaches this.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError(
                f"temperature must not be negative and top_p must lie in (0, 1], not {self.temperature}, {self.top_p}"
            )

    def draw(self, logits_RP: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a token per row.

        Args:
            logits_RP: Logits of the predictable ids.
            generator: Random numbers.

        Returns:
            Ids [R] and the probability that the model (untruncated) gives them [R].

        Raises:
            RecipeError: The logits are not finite.
        """
        if not torch.isfinite(logits_RP).all():
            raise RecipeError("the model gives logits that are not finite; its weights are not usable")
        plain = torch.softmax(logits_RP, -1)
        if self.temperature == 0:
            ids = logits_RP.argmax(-1)
        else:
            probabilities = self._truncate(torch.softmax(logits_RP / self.temperature, -1))
            ids = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        return ids, plain.gather(-1, ids[:, None])[:, 0]

    def _truncate(self, probabilities_RP: Tensor) -> Tensor:
        if self.top_p == 1:
            return probabilities_RP
        ordered, index = probabilities_RP.sort(-1, descending=True)
        # A token stays when the ones before it do not yet reach top_p, so at least one always stays.
        ordered = ordered * ((ordered.cumsum(-1) - ordered) < self.top_p)
        return torch.zeros_like(probabilities_RP).scatter(-1, index, ordered)
