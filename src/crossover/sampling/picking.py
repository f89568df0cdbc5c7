"""How a token is drawn from logits.

Suffixes: R rows (places to be drawn), P predictable ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossover.errors import RecipeError

# Numbers of float64 that are worked on at once: a window of a large vocabulary would fill the memory.
CELLS = 2**22


@dataclass(frozen=True)
class Picking:
    """Temperature and truncation of the distribution that tokens are drawn from.

    They are applied in this order, each to what the one before it left: temperature, top-k, top-p, min-p; then the
    probabilities are scaled to sum to one. At temperature 0 the likeliest token is taken and the rest has no say.

    Args:
        temperature: 0 takes the likeliest token (the first of equals).
        top_k: Keeps this many likeliest tokens, and those equal to the last of them; 0 keeps all.
        top_p: Keeps the smallest set of likeliest tokens whose probability reaches this (arXiv 1904.09751).
        min_p: Keeps tokens at least this part as likely as the likeliest (arXiv 2407.01082).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (math.isfinite(self.temperature) and self.temperature >= 0, "be finite and not negative"),
            "top_k": (self.top_k >= 0, "not be negative; 0 keeps all"),
            "top_p": (0 < self.top_p <= 1, "lie in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "lie in [0, 1]"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise RecipeError(f"{name} must {rule}; it is {getattr(self, name)}")

    def draw(self, logits_RP: Tensor, uniforms_R: Tensor) -> Tensor:
        """Draw a token per row by inverting its cumulative distribution.

        Args:
            logits_RP: Logits of the predictable ids; minus infinity bars an id.
            uniforms_R: A number in [0, 1) for each row: the only randomness.

        Returns:
            Ids [R].

        Raises:
            RecipeError: The logits are not finite.
        """
        if self.temperature == 0:
            require_finite(logits_RP)
            return logits_RP.argmax(-1)
        parts = in_parts(logits_RP)
        uniforms = uniforms_R.split([len(part_RP) for part_RP in parts])
        return torch.cat([self._draw(*pair) for pair in zip(parts, uniforms, strict=True)])

    def _draw(self, logits_RP: Tensor, uniforms_R: Tensor) -> Tensor:
        running_RP = self.probabilities(logits_RP).cumsum(-1)
        total_R1 = running_RP[:, -1:]
        # Rounding must not carry a draw past the last token that has any probability.
        below_R1 = torch.nextafter(total_R1, torch.zeros_like(total_R1))
        reached_R1 = torch.minimum(uniforms_R.to(running_RP)[:, None] * total_R1, below_R1)
        return torch.searchsorted(running_RP, reached_R1, right=True)[:, 0]

    def probabilities(self, logits_RP: Tensor) -> Tensor:
        """Compute the distribution that `draw` draws from, at a temperature above 0.

        Args:
            logits_RP: Logits of the predictable ids; minus infinity bars an id.

        Returns:
            [R, P], float64.

        Raises:
            RecipeError: The logits are not finite.
        """
        top_R1 = require_finite(logits_RP)
        # The largest is taken off first, so that a temperature near 0 cannot overflow.
        scaled_RP = (logits_RP.double() - top_R1.double()) / self.temperature
        if 0 < self.top_k < scaled_RP.shape[-1]:
            last_R1 = scaled_RP.topk(self.top_k, -1).values[:, -1:]
            scaled_RP = scaled_RP.masked_fill(scaled_RP < last_R1, float("-inf"))
        probabilities_RP = torch.softmax(scaled_RP, -1)
        if self.top_p < 1:
            ordered_RP, index_RP = torch.sort(probabilities_RP, dim=-1, descending=True, stable=True)
            # A token stays when the ones before it do not yet reach top_p, so at least one always stays.
            ordered_RP = ordered_RP * ((ordered_RP.cumsum(-1) - ordered_RP) < self.top_p)
            probabilities_RP = torch.zeros_like(probabilities_RP).scatter(-1, index_RP, ordered_RP)
        if self.min_p > 0:
            least_R1 = self.min_p * probabilities_RP.amax(-1, keepdim=True)
            probabilities_RP = probabilities_RP.masked_fill(probabilities_RP < least_R1, 0.0)
        return probabilities_RP / probabilities_RP.sum(-1, keepdim=True)


def in_parts(logits_RP: Tensor) -> tuple[Tensor, ...]:
    """Cut rows into parts that are worked on one after the other.

    Args:
        logits_RP: Logits, at least one row.

    Returns:
        Views of it, of no more than `CELLS` numbers or a single row.
    """
    return logits_RP.split(max(1, CELLS // max(1, logits_RP.shape[-1])))


def require_finite(logits_RP: Tensor) -> Tensor:
    """Refuse logits that say nothing.

    Args:
        logits_RP: Logits; minus infinity is allowed at some of the ids.

    Returns:
        The largest of each row [R, 1].

    Raises:
        RecipeError: A row has a NaN or an infinity, or bars all ids.
    """
    top_R1 = logits_RP.amax(-1, keepdim=True)
    if not torch.isfinite(top_R1).all():
        raise RecipeError("the model gives logits that are not finite; its weights are not usable")
    return top_R1
