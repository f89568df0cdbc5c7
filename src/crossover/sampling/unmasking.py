"""The loop that all unmasking shares: ask the policy, run the model, draw, until nothing is hidden.

Suffixes: R places, P predictable ids.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from crossover.sampling.canvas import Row, permitted, put, ranks
from crossover.sampling.picking import Picking, in_parts
from crossover.sampling.policies import Policy, Told, Turn
from crossover.sampling.record import OnChange

Asks = Sequence[tuple[Row, list[int]]]
Predict = Callable[[Asks], Tensor]
# A difference of logits from which on the exponential is nothing in float64.
IMPOSSIBLE = -1e6


def unmask(
    rows: Sequence[Row],
    start: int,
    stop: int,
    policy: Policy,
    picking: Picking,
    predict: Predict,
    on_change: OnChange | None,
) -> None:
    """Reveal all that is hidden between two places.

    Args:
        rows: The texts; each has its turns alone, whatever the others do.
        start: First place.
        stop: One past the last place.
        policy: Which places are revealed in a pass.
        picking: How a token is drawn.
        predict: Runs the model for texts and places, and gives the logits [R, P] there.
        on_change: Told of each text that changed.
    """
    step = 0
    while True:
        asks = []
        for row in rows:
            hidden = row.hidden(start, stop, early=not policy.remasks)
            if hidden or not policy.over(step):
                asks.append((row, hidden))
        if not asks:
            return
        _advance(asks, start, stop, step, policy, picking, predict, on_change)
        step += 1


def _advance(
    asks: Asks,
    start: int,
    stop: int,
    step: int,
    policy: Policy,
    picking: Picking,
    predict: Predict,
    on_change: OnChange | None,
) -> None:
    told: list[Told | None] = [None] * len(asks)
    logits_RP = None
    if policy.looks:
        logits_RP = permitted(asks, predict(asks))
        told = list(_tell(logits_RP, [len(hidden) for _, hidden in asks]))
    chosen, again = [], []
    for (row, hidden), what in zip(asks, told, strict=True):
        drawn = _drawn(row, start, stop, hidden) if policy.remasks else []
        move = policy.choose(Turn(len(hidden), len(drawn), step, row.rng, what))
        chosen.append((row, ranks(move.reveal, hidden)))
        again.extend((row, place) for place in ranks(move.hide, drawn))
    if logits_RP is None:
        chosen = [(row, places) for row, places in chosen if places]
        logits_RP = permitted(chosen, predict(chosen)) if chosen else torch.empty(0, 1)
    else:
        index = _index(asks, chosen)
        logits_RP = logits_RP[torch.tensor(index, device=logits_RP.device)]
    # What is hidden again was still to be seen by those that are revealed now.
    for row, place in again:
        row.window[place] = row.vocabulary.mask_id
    put(chosen, logits_RP, picking, on_change)


def _drawn(row: Row, start: int, stop: int, hidden: Sequence[int]) -> list[int]:
    out = set(hidden)
    return [place for place in row.holes if start <= place < stop and place not in out]


def _index(asks: Asks, chosen: Asks) -> list[int]:
    index, offset = [], 0
    for (_, hidden), (_, places) in zip(asks, chosen, strict=True):
        rank = {place: offset + number for number, place in enumerate(hidden)}
        index.extend(rank[place] for place in places)
        offset += len(hidden)
    return index


def _tell(logits_RP: Tensor, counts: Sequence[int]) -> list[Told]:
    parts = torch.cat([_facts(part_RP) for part_RP in in_parts(logits_RP)]).cpu().split(list(counts))
    return [Told(*part_R3.T.contiguous().numpy()) for part_R3 in parts]


def _facts(logits_RP: Tensor) -> Tensor:
    """Compute the two largest probabilities, and the entropy in nats, of each place, [R, 3]."""
    # The two likeliest are found among float32, which is faster.
    top_R2 = logits_RP.topk(min(2, logits_RP.shape[-1]), -1).values.double()
    below_RP = logits_RP.double() - top_R2[:, :1]
    parts_RP = below_RP.exp()
    sum_R1 = parts_RP.sum(-1, keepdim=True)
    # An impossible token has no part in the entropy, and 0 times minus infinity would be no number.
    mean_R1 = parts_RP.mul_(below_RP.clamp_(min=IMPOSSIBLE)).sum(-1, keepdim=True) / sum_R1
    chances_R2 = (top_R2 - top_R2[:, :1]).exp() / sum_R1
    # Of one token alone there is no second.
    return torch.cat([F.pad(chances_R2, (0, 2 - chances_R2.shape[1])), sum_R1.log() - mean_R1], -1)
