"""Optimizers and learning-rate schedules as components; torch is imported when one is built."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import pydantic

from crossover.registry import register
from crossover.sections import Count

if TYPE_CHECKING:
    import torch

Rate = Annotated[float, pydantic.Field(gt=0)]
Decay = Annotated[float, pydantic.Field(ge=0)]
Momentum = Annotated[float, pydantic.Field(ge=0, lt=1)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]


class OptimizerRecipe(Protocol):
    """Builds the optimizers of a run."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        ...

    def build(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[torch.optim.Optimizer]:
        """Build optimizers whose groups carry `peak`, the learning rate at factor 1."""
        ...


@register("optimizer", "adamw")
@dataclass(frozen=True)
class AdamW:
    """torch's fused AdamW; weight decay acts on matrices, not on norms.

    Args:
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay per unit of learning rate.
        beta1: Decay of the mean gradient.
        beta2: Decay of the squared gradient.
        eps: Term in the denominator.
    """

    learning_rate: Rate = 2e-3
    weight_decay: Decay = 0.1
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    eps: Rate = 1e-8

    def build(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[torch.optim.Optimizer]:
        """Build the one optimizer.

        Args:
            named: Parameters by name.

        Returns:
            One AdamW with a group that decays and one that does not.
        """
        parameters = [parameter for _, parameter in named]
        groups = [
            {"params": [item for item in parameters if item.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [item for item in parameters if item.ndim < 2], "weight_decay": 0.0},
        ]
        return [_adamw(groups, self.learning_rate, (self.beta1, self.beta2), self.eps)]


@register("optimizer", "muon")
@dataclass(frozen=True)
class Muon:
    """torch's Muon for the matrices of the layers, AdamW for embeddings, head, norms and the weights of experts.

    Args:
        learning_rate: Peak learning rate of both (Muon's is scaled to AdamW's update size).
        weight_decay: Decoupled weight decay of all matrices.
        momentum: Muon's momentum.
        beta1: AdamW's decay of the mean gradient.
        beta2: AdamW's decay of the squared gradient.
        eps: AdamW's term in the denominator.
    """

    learning_rate: Rate = 2e-3
    weight_decay: Decay = 0.1
    momentum: Momentum = 0.95
    beta1: Momentum = 0.9
    beta2: Momentum = 0.95
    eps: Rate = 1e-8

    def build(self, named: Iterable[tuple[str, torch.nn.Parameter]]) -> list[torch.optim.Optimizer]:
        """Build both optimizers.

        Args:
            named: Parameters by name.

        Returns:
            Muon, then AdamW.
        """
        import torch

        inside, outside, flat = [], [], []
        for name, parameter in named:
            # The weights of all experts of a layer are one tensor of three dimensions, which Muon does not take.
            muons = parameter.ndim == 2 and ".layers." in name
            (inside if muons else outside if parameter.ndim >= 2 else flat).append(parameter)
        muon = torch.optim.Muon(
            inside,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        for group in muon.param_groups:
            group["peak"] = self.learning_rate
        groups = [{"params": outside, "weight_decay": self.weight_decay}, {"params": flat, "weight_decay": 0.0}]
        return [muon, _adamw(groups, self.learning_rate, (self.beta1, self.beta2), self.eps)]


def _adamw(groups: list[dict[str, Any]], rate: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    import torch

    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True)
    for group in optimizer.param_groups:
        group["peak"] = rate
    return optimizer


class LearningRate(Protocol):
    """Factor on the peak learning rate."""

    @property
    def decay_from(self) -> float:
        """Fraction of the budget from which the mix is frozen."""
        ...

    @property
    def horizon_free(self) -> bool:
        """Whether the factor before `decay_from` is the same whatever the budget."""
        ...

    def factor(self, data_tokens: int, fraction: float) -> float:
        """Give the factor after `data_tokens` tokens and a `fraction` of the budget."""
        ...


@register("learning_rate", "wsd")
@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up in tokens, a plateau, and a linear decay over the last part of the budget.

    Args:
        warmup_tokens: Data tokens of the warm-up.
        decay_fraction: Part of the budget over which the rate decays; the mix is frozen there.
        final: Factor at the end.
    """

    warmup_tokens: Count = 100_000
    decay_fraction: Fraction = 0.3
    final: Fraction = 0.0
    horizon_free = True

    @property
    def decay_from(self) -> float:
        """Fraction of the budget from which the mix is frozen."""
        return 1 - self.decay_fraction

    def factor(self, data_tokens: int, fraction: float) -> float:
        """Give the factor after `data_tokens` tokens and a `fraction` of the budget, in the budget's currency."""
        rise = min(1.0, data_tokens / self.warmup_tokens) if self.warmup_tokens else 1.0
        way = (fraction - self.decay_from) / self.decay_fraction if self.decay_fraction else 0.0
        return rise * (1 - (1 - self.final) * min(1.0, max(0.0, way)))


@register("learning_rate", "cosine")
@dataclass(frozen=True)
class Cosine:
    """Linear warm-up in tokens under a half cosine over the whole budget.

    Args:
        warmup_tokens: Data tokens of the warm-up.
        final: Factor at the end.
    """

    warmup_tokens: Count = 100_000
    final: Fraction = 0.1
    horizon_free = False

    @property
    def decay_from(self) -> float:
        """The mix is never frozen: the whole run decays."""
        return 1.0

    def factor(self, data_tokens: int, fraction: float) -> float:
        """Give the factor after `data_tokens` tokens and a `fraction` of the budget."""
        rise = min(1.0, data_tokens / self.warmup_tokens) if self.warmup_tokens else 1.0
        return rise * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, fraction))))
