"""The lowest loss that a family's law gives for a compute, at the best size and the best number of tokens.

Shape suffixes: K draws, P constants, G grid points of compute, N grid points of size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.scaling.bootstrap import CONFIDENCE
from crossover.evidence.scaling.fit import FittedLaw
from crossover.evidence.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, Floats, inputs, log_loss

# Sizes tried around the optimal size for one epoch, by this factor down and up, so many a decade.
SIZES_DOWN, SIZES_UP, SIZES_A_DECADE = 1e-3, 1e5, 7
# A law that turns up is best stopped between two computes asked for, so more are tried: so many a decade, from
# this share of one epoch on.
STEPS_A_DECADE, FIRST_SHARE = 12, 0.1
# Losses are evaluated in batches of about this many numbers.
BATCH = 300_000


@dataclass(frozen=True)
class Frontier:
    """A family's compute-optimal losses on one text.

    Args:
        family: Name of the family.
        unique_tokens: U.
        flops_G: Compute, 6 N D.
        loss_nats_G: Lowest loss within that compute.
        low_G: Lower ends of its 95% interval.
        high_G: Upper ends.
        parameters_G: The size that reaches it.
        tokens_G: The tokens it takes, at most flops / (6 N); fewer where more would overfit.
        inside_G: Whether that size, text and number of tokens lie within the fitted data.
    """

    family: str
    unique_tokens: float
    flops_G: Floats
    loss_nats_G: Floats
    low_G: Floats
    high_G: Floats
    parameters_G: Floats
    tokens_G: Floats
    inside_G: NDArray[np.bool_]


def frontier(law: FittedLaw, unique_tokens: float, flops_G: Floats) -> Frontier:
    """Give the compute-optimal frontier of a family on a text.

    m(C) = min L(N, D, U) over all N and D with 6 N D <= C: the best checkpoint of the best size, as a person who may
    choose both would have it. Size and tokens are free, so far compute may ask for sizes that no point has; see
    `inside_G`.

    Args:
        law: The fitted law.
        unique_tokens: U.
        flops_G: Compute, rising.

    Returns:
        The frontier.
    """
    asked_G = np.asarray(flops_G, float)
    flops_G = _finer(law, unique_tokens, asked_G)
    theta_KP = np.concatenate([law.constants.theta()[None], law.draws_KP])
    sizes_N = sizes(law, unique_tokens)
    loss_KG = np.exp(frontier_log_losses(theta_KP, unique_tokens, flops_G, sizes_N))
    low_G, high_G = np.quantile(loss_KG[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    at_G = _best_sizes(law, unique_tokens, flops_G, sizes_N)
    tokens_G = flops_G / (FLOPS_PER_PARAMETER_TOKEN * at_G)
    # More compute than is best to use leaves size and tokens where they were.
    alone_G = law.constants.loss_nats(at_G, unique_tokens, tokens_G)
    kept_G = np.maximum.accumulate(np.where(alone_G <= np.minimum.accumulate(alone_G), np.arange(len(flops_G)), 0))
    shown_G = np.searchsorted(flops_G, asked_G)
    at_G, tokens_G = at_G[kept_G][shown_G], tokens_G[kept_G][shown_G]
    inside_G = np.array([not law.data.beyond(n, unique_tokens, d) for n, d in zip(at_G, tokens_G, strict=True)])
    loss_G, low_G, high_G = loss_KG[0, shown_G], low_G[shown_G], high_G[shown_G]
    low_G, high_G = np.minimum(low_G, loss_G), np.maximum(high_G, loss_G)
    return Frontier(law.family, unique_tokens, asked_G, loss_G, low_G, high_G, at_G, tokens_G, inside_G)


def _finer(law: FittedLaw, unique_tokens: float, flops_G: Floats) -> Floats:
    """Add computes between those asked for, and down to a small part of an epoch."""
    one_epoch = FLOPS_PER_PARAMETER_TOKEN * law.constants.optimal_parameters(unique_tokens) * unique_tokens
    low, high = np.log10(min(FIRST_SHARE * one_epoch, flops_G.min())), np.log10(flops_G.max())
    return np.union1d(flops_G, np.logspace(low, high, int((high - low) * STEPS_A_DECADE) + 2)[:-1])


def sizes(law: FittedLaw, unique_tokens: float) -> Floats:
    """Give the sizes that a frontier on a text is searched over."""
    middle = law.constants.optimal_parameters(unique_tokens)
    low = np.log10(min(middle * SIZES_DOWN, law.data.parameters[0]))
    high = np.log10(max(middle * SIZES_UP, law.data.parameters[1]))
    return np.logspace(low, high, int((high - low) * SIZES_A_DECADE) + 2)


def frontier_log_losses(theta_KP: Floats, unique_tokens: float, flops_G: Floats, sizes_N: Floats) -> Floats:
    """Give ln m(C) for each set of constants.

    Args:
        theta_KP: Constants as `Constants.theta` gives them.
        unique_tokens: U.
        flops_G: Compute, rising.
        sizes_N: Sizes, evenly spaced in the logarithm; the minimum is interpolated by a parabola.

    Returns:
        ln of the lowest loss within each compute, shape (K, G).
    """
    grid_GN = inputs(sizes_N[None, :], unique_tokens, flops_G[:, None] / (FLOPS_PER_PARAMETER_TOKEN * sizes_N))
    cells = len(flops_G) * len(sizes_N)
    rows = max(1, BATCH // cells)
    found = []
    for first in range(0, len(theta_KP), rows):
        some_KP = theta_KP[first : first + rows]
        found.append(_lowest(log_loss(some_KP, grid_GN).reshape(len(some_KP), len(flops_G), len(sizes_N)))[0])
    # Compute need not be spent: the best checkpoint within it counts.
    return np.minimum.accumulate(np.concatenate(found), axis=1)


def _best_sizes(law: FittedLaw, unique_tokens: float, flops_G: Floats, sizes_N: Floats) -> Floats:
    tokens_GN = flops_G[:, None] / (FLOPS_PER_PARAMETER_TOKEN * sizes_N)
    place_G = _lowest(np.log(law.constants.loss_nats(sizes_N[None, :], unique_tokens, tokens_GN))[None])[1][0]
    return np.exp(np.interp(place_G, np.arange(len(sizes_N)), np.log(sizes_N)))


def _lowest(values_KGN: Floats) -> tuple[Floats, Floats]:
    """Find the minimum along the last axis by a parabola through its three lowest neighbours; its value and place."""
    at_KG = np.clip(values_KGN.argmin(2), 1, values_KGN.shape[2] - 2)
    left, middle, right = (
        np.take_along_axis(values_KGN, (at_KG + shift)[:, :, None], 2)[:, :, 0] for shift in (-1, 0, 1)
    )
    bend_KG = left - 2 * middle + right
    shift_KG = np.where(bend_KG > 0, 0.5 * (left - right) / np.where(bend_KG > 0, bend_KG, 1.0), 0.0)
    shift_KG = np.clip(shift_KG, -1.0, 1.0)
    value_KG = middle + 0.5 * shift_KG * (right - left) + 0.5 * shift_KG**2 * bend_KG
    return value_KG, at_KG + shift_KG
