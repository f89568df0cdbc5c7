"""The mix of a run: which slice of a step is of which objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossover.records import Example, Mix


@dataclass(frozen=True)
class Dealer:
    """Deals objectives to slices by error diffusion, so that shares are met within one slice at any time.

    The rule is Tijdeman's for the chairman assignment problem (Discrete Mathematics 32, 1980): with k objectives no
    count is ever further than 1 - 1 / (2 k - 2) from its share. Taking the greatest debt does not hold that for many
    objectives; for two it is the same.

    Args:
        debts: What each objective is owed, in slices; positive means that it is behind its share.
    """

    debts: Mapping[str, float]

    def deal(self, mix: Mix, slices: int) -> tuple[Dealer, tuple[str, ...]]:
        """Name the objectives of the next slices.

        Args:
            mix: The shares that hold for them.
            slices: How many slices.

        Returns:
            The dealer afterwards, and a name per slice in order.
        """
        # An objective that left the mix takes its debt with it.
        debts = {name: self.debts.get(name, 0.0) for name, _ in mix.shares}
        dealt = []
        for _ in range(slices):
            for name, share in mix.shares:
                debts[name] += share
            chosen = _due(debts, mix)
            debts[chosen] -= 1.0
            dealt.append(chosen)
        return Dealer(debts), tuple(dealt)


def _due(debts: Mapping[str, float], mix: Mix) -> str:
    """Choose, among the objectives that may have a slice already, the one that must have it soonest."""
    shares = {name: share for name, share in mix.shares if share > 0}
    margin = 1 / (2 * max(1, len(shares) - 1))
    # Rounding keeps the choice the same whatever the order of additions was.
    early = [name for name in shares if round(debts[name] - margin, 9) >= 0]
    if not early:
        return max(shares, key=lambda name: (round(debts[name], 9), shares[name]))
    return min(early, key=lambda name: (round((1 - margin - debts[name]) / shares[name], 9), -shares[name]))


def micro_batches(kinds: Sequence[str], slices_each: int | Mapping[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """Group a step's slices into micro-batches of one objective.

    Args:
        kinds: Objective of each slice.
        slices_each: Largest number of slices in a micro-batch, for all objectives or for each.

    Returns:
        The objective and the slice indices of each micro-batch; every slice stands in exactly one.
    """
    groups: list[tuple[str, tuple[int, ...]]] = []
    for kind in dict.fromkeys(kinds):
        mine = [index for index, name in enumerate(kinds) if name == kind]
        each = slices_each if isinstance(slices_each, int) else slices_each[kind]
        groups += [(kind, tuple(mine[start : start + each])) for start in range(0, len(mine), each)]
    return groups


def join(examples: Sequence[Example]) -> Example:
    """Lay examples of one objective below one another.

    Args:
        examples: Alike in pattern and number of inputs.

    Returns:
        One example; the sum of its weighted losses is the sum of theirs.
    """
    first = examples[0]
    if len(examples) == 1:
        return first
    rows = np.cumsum([0] + [example.inputs_BN.size for example in examples[:-1]])
    reads = [
        None if example.reads_R is None else example.reads_R + start
        for example, start in zip(examples, rows, strict=True)
    ]
    documents = [example.documents_BN for example in examples if example.documents_BN is not None]
    return replace(
        first,
        inputs_BN=np.concatenate([example.inputs_BN for example in examples]),
        positions_BN=np.concatenate([example.positions_BN for example in examples]),
        reads_R=None if first.reads_R is None else np.concatenate([part for part in reads if part is not None]),
        targets_R=np.concatenate([example.targets_R for example in examples]),
        weights_R=np.concatenate([example.weights_R for example in examples]),
        data_tokens=sum(example.data_tokens for example in examples),
        documents_BN=np.concatenate(documents) if documents else None,
    )
