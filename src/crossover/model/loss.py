"""The one loss: a weighted negative log-likelihood over the states that are read.

Suffixes: R read states, D width, P predictable vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# From this many predictable ids on, the chunked head is used where torch has one: it never keeps [R, P] in memory.
CHUNKED_FROM = 8192


def nll_R(states_RD: Tensor, head_PD: Tensor, targets_R: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each target in nats.

    The head holds the rows of predictable ids only, so the mask token has no probability by construction.

    Args:
        states_RD: States that predict.
        head_PD: Output embedding of the predictable ids.
        targets_R: Ids below P.

    Returns:
        [R] float32, nats.
    """
    if _chunked(states_RD, head_PD):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)  # type: ignore[attr-defined]
        return F.linear_cross_entropy(  # type: ignore[attr-defined]
            states_RD, head_PD, targets_R, reduction="none", options=options
        ).float()
    return F.cross_entropy(F.linear(states_RD, head_PD).float(), targets_R, reduction="none")


def weighted_nll(
    states_RD: Tensor, head_PD: Tensor, targets_R: Tensor, weights_R: Tensor, data_tokens: float
) -> Tensor:
    """Compute the loss of every objective: sum of weight x nats, per data token.

    Args:
        states_RD: States that predict.
        head_PD: Output embedding of the predictable ids.
        targets_R: Ids below P.
        weights_R: Loss weight of each read state.
        data_tokens: Data tokens of the whole global step, never the masked count.

    Returns:
        Scalar, nats per data token; the parts of a step's micro-batches add up to the step's loss.
    """
    return (nll_R(states_RD, head_PD, targets_R) * weights_R).sum() / data_tokens


def _chunked(states_RD: Tensor, head_PD: Tensor) -> bool:
    if head_PD.shape[0] < CHUNKED_FROM or not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return False
    # In float32 the chunked head is slower than the plain one (measured), and compiled graphs would break at it.
    return torch.is_autocast_enabled(states_RD.device.type) and not torch.compiler.is_compiling()
