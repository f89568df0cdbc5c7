"""The one loss: a weighted negative log-likelihood over the states that are read.

Suffixes: R read states, C states of a chunk, D width, P predictable vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits of a chunk stay near this size: on a CPU small enough that fresh memory costs little, on a GPU large enough to
# fill it; everywhere so large that adding up the head's gradient chunk by chunk costs little beside the products.
CHUNK_LOGITS, CHUNK_LOGITS_GPU = 2**22, 2**27
FEWEST_STATES = 256


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
    if torch.is_grad_enabled() and (states_RD.requires_grad or head_PD.requires_grad):
        return F.cross_entropy(F.linear(states_RD, head_PD).float(), targets_R, reduction="none")
    # Without a gradient only a chunk's logits need to exist at a time.
    parts = [
        F.cross_entropy(F.linear(states_RD[rows], head_PD).float(), targets_R[rows], reduction="none")
        for rows in _chunks(states_RD, head_PD)
    ]
    return torch.cat(parts) if parts else states_RD.new_zeros(0, dtype=torch.float32)


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
    if torch.is_grad_enabled():
        loss: Any = ChunkedLoss.apply(states_RD, head_PD, targets_R, weights_R / data_tokens)
        return loss
    return (nll_R(states_RD, head_PD, targets_R) * weights_R).sum() / data_tokens


def _chunks(states_RD: Tensor, head_PD: Tensor) -> Iterator[slice]:
    logits = CHUNK_LOGITS if states_RD.device.type == "cpu" else CHUNK_LOGITS_GPU
    width = max(FEWEST_STATES, logits // head_PD.shape[0])
    for start in range(0, states_RD.shape[0], width):
        yield slice(start, start + width)


class ChunkedLoss(torch.autograd.Function):
    """sum of weight x (logsumexp(z) - z_target) with z = states head^T, chunk by chunk.

    The loss is linear in the nats, so its gradient, weight x (softmax(z) - onehot(target)), is known as soon as a
    chunk's logits are: both products of the backward pass are done then, and no logits are kept or computed again.
    """

    @staticmethod
    def forward(ctx: Any, states_RD: Tensor, head_PD: Tensor, targets_R: Tensor, weights_R: Tensor) -> Tensor:
        """Compute the loss and, on the way, its gradients.

        Args:
            ctx: autograd's context.
            states_RD: States that predict.
            head_PD: Output embedding of the predictable ids.
            targets_R: Ids below P.
            weights_R: Weight of each state's nats.

        Returns:
            Scalar, float32.
        """
        compute = _compute_type(states_RD)
        to_states, to_head = torch.empty_like(states_RD), torch.zeros_like(head_PD)
        loss = states_RD.new_zeros((), dtype=torch.float32)
        rows_RD, head = states_RD.to(compute), head_PD.to(compute)
        for rows in _chunks(states_RD, head_PD):
            nats_C, pull_CP = _nats_and_pull(rows_RD[rows] @ head.t(), targets_R[rows], weights_R[rows])
            loss += torch.dot(nats_C, weights_R[rows])
            pull_CP = pull_CP.to(compute)
            to_states[rows] = pull_CP @ head
            if compute == to_head.dtype:
                torch.addmm(to_head, pull_CP.t(), rows_RD[rows], out=to_head)
            else:
                to_head += pull_CP.t() @ rows_RD[rows]
        ctx.save_for_backward(to_states, to_head)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass left."""
        to_states, to_head = ctx.saved_tensors
        # Not in place: a graph that is kept may be gone through again.
        return to_states * gradients[0], to_head * gradients[0], None, None


def _compute_type(states_RD: Tensor) -> torch.dtype:
    device = states_RD.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states_RD.dtype


def _nats_and_pull(logits_CP: Tensor, targets_C: Tensor, weights_C: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits into nats of the targets and the loss's gradient, in the logits' own memory if they are float32."""
    logits_CP = logits_CP.float()
    at_C1 = targets_C[:, None]
    target_C = logits_CP.gather(1, at_C1)[:, 0]
    top_C = logits_CP.amax(dim=1)
    share_CP = torch.softmax(logits_CP, dim=1, out=logits_CP)
    # log-sum-exp from the largest probability, which is at least 1 / P: no second pass of exponentials.
    nats_C = top_C - share_CP.amax(dim=1).log() - target_C
    pull_CP = share_CP.mul_(weights_C[:, None])
    pull_CP.scatter_add_(1, at_C1, -weights_C[:, None])
    return nats_C, pull_CP
