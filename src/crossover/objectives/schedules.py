"""Noise schedules: how many tokens are masked at time t, and what a masked token's loss weighs.

alpha(t) is the probability that a token is still visible at t in [0, 1]; weight(t) = -alpha'(t) / (1 - alpha(t))
turns the masked cross-entropy into the bound of Sahoo et al. 2024 (arXiv 2406.07524, eq. 10). A schedule that pairs
another weight with its alpha, or does not reach alpha(1) = 0, trains but bounds nothing: `is_bound` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossover.registry import register

Times = NDArray[np.float64]


class Schedule(Protocol):
    """How noise depends on time."""

    @property
    def is_bound(self) -> bool:
        """Whether the weighted loss is a bound on the negative log-likelihood."""
        ...

    def alpha(self, t: Times) -> Times:
        """Probability that a token is visible at time t."""
        ...

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        ...


@register("noise", "linear")
@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t, weight 1/t: the standard of masked diffusion."""

    is_bound = True

    def alpha(self, t: Times) -> Times:
        """Probability that a token is visible at time t."""
        return 1 - t

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        return 1 / t


@register("noise", "cosine")
@dataclass(frozen=True)
class Cosine:
    """alpha = 1 - cos(pi (1 - t) / 2): more time at low noise."""

    is_bound = True

    def alpha(self, t: Times) -> Times:
        """Probability that a token is visible at time t."""
        return 1 - np.cos(0.5 * math.pi * (1 - t))

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        return 0.5 * math.pi * np.tan(0.5 * math.pi * (1 - t))


@register("noise", "log_linear")
@dataclass(frozen=True)
class LogLinear:
    """alpha = 1 - (1 - eps) t, whose total noise -log(alpha) grows like -log(1 - t); weight 1/t.

    Args:
        eps: Visible share at t = 1; the bound is exact only at 0.
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps must lie in [0, 1), not {self.eps}")

    @property
    def is_bound(self) -> bool:
        """Whether every token is hidden at t = 1."""
        return self.eps == 0

    def alpha(self, t: Times) -> Times:
        """Probability that a token is visible at time t."""
        return 1 - (1 - self.eps) * t

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        return 1 / t


@register("noise", "polynomial")
@dataclass(frozen=True)
class Polynomial:
    """alpha = 1 - t^power, weight power / t.

    Args:
        power: Above 1 spends more time at low noise.
    """

    power: float = 2.0
    is_bound = True

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"power must be positive, not {self.power}")

    def alpha(self, t: Times) -> Times:
        """Probability that a token is visible at time t."""
        return 1 - t**self.power

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        return self.power / t


@register("noise", "clipped")
@dataclass(frozen=True)
class Clipped:
    """Mask rates drawn from [beta, omega], weight 1/rate (Arriola et al. 2025, arXiv 2503.09573, section 5.3).

    Training only: rates outside the window are never seen and nothing corrects for that.

    Args:
        beta: Lowest mask rate.
        omega: Highest mask rate.
    """

    beta: float = 0.3
    omega: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.beta < self.omega <= 1:
            raise ValueError(f"beta and omega must satisfy 0 <= beta < omega <= 1, not {self.beta}, {self.omega}")

    @property
    def is_bound(self) -> bool:
        """Whether the window is all of [0, 1]."""
        return (self.beta, self.omega) == (0, 1)

    def alpha(self, t: Times) -> Times:
        """Probability that a token is visible at time t."""
        return 1 - (self.beta + (self.omega - self.beta) * t)

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        return 1 / (1 - self.alpha(t))


@register("noise", "frequency")
@dataclass(frozen=True)
class FrequencyInformed:
    """Linear noise whose tokens are masked the more often, the rarer they are (after arXiv 2509.05056).

    The mask rate of a token is its rarity (rank-normalised) to a power, rescaled so that the window's mean rate
    stays 1 - alpha(t). Training only.

    Args:
        power: 0 ignores rarity.
    """

    power: float = 0.02
    is_bound = False

    def alpha(self, t: Times) -> Times:
        """Mean probability that a token is visible at time t."""
        return 1 - t

    def weight(self, t: Times) -> Times:
        """Loss weight of a masked token at time t."""
        return 1 / t

    def rates_BT(self, t_B: Times, rarity_BT: NDArray[np.float32]) -> Times:
        """Give each token its own mask rate.

        Args:
            t_B: Time of each window.
            rarity_BT: Rank-normalised rarity of each token in [0, 1].

        Returns:
            Mask rates in [0, 1] whose mean over each window is 1 - alpha(t).
        """
        # A floor keeps the very commonest token (rarity 0) maskable.
        raw = np.maximum(rarity_BT.astype(np.float64), 1e-3) ** self.power
        mean = 1 - self.alpha(t_B)[:, None]
        rates = raw / raw.mean(1, keepdims=True) * mean
        # What exceeds 1 is given to the others by shrinking the distance to 1 instead of the rate.
        over = rates.max(1, keepdims=True) > 1
        complement = 1 - (raw.max(1, keepdims=True) - raw) / np.maximum(
            (raw.max(1, keepdims=True) - raw).mean(1, keepdims=True), 1e-12
        ) * (1 - mean)
        return np.where(over, np.clip(complement, 0, 1), rates)
