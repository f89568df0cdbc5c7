"""What objectives share: windows with BOS, strata in random order, exact mask counts, documents.

Suffixes: B windows, T data tokens, N inputs, K masked groups (windows or blocks), S tokens of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossover.model.shapes import Workload
from crossover.records import Example, Vocabulary

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Objective(Protocol):
    """A batch transform: everything that distinguishes one way of training from another."""

    def corrupt(self, tokens_BT: Ints, rng: np.random.Generator, vocabulary: Vocabulary) -> Example:
        """Turn windows of text into an example for the one model and the one loss.

        Args:
            tokens_BT: Data tokens, without BOS.
            rng: The stream of this (seed, step, global slice).
            vocabulary: Special ids and frequencies.

        Returns:
            The example; its loss is nats per data token when divided by the step's data tokens.
        """
        ...

    def workload(self, context: int) -> Workload:
        """Say what one window of `context` tokens asks of the model, in expectation."""
        ...

    def modes(self, context: int) -> tuple[str, ...]:
        """Name the scoring procedures that a model trained so supports, the preferred one first."""
        ...


@dataclass(frozen=True)
class Masks:
    """Which tokens of each group are hidden, and what a hidden token's loss weighs.

    Args:
        hidden_KS: True where the token is hidden.
        weights_K: Loss weight of the hidden tokens of each group.
        reads: Upper end of the number of hidden tokens, the same for every draw of this size.
    """

    hidden_KS: Mask
    weights_K: Floats
    reads: int


def with_bos(tokens_BT: Ints, vocabulary: Vocabulary) -> Ints:
    """Put BOS before every window: [B, T + 1], so that position i holds data token i."""
    return np.concatenate([np.full((len(tokens_BT), 1), vocabulary.bos_id, np.int64), tokens_BT], axis=1)


def documents_of(window_BN: Ints, vocabulary: Vocabulary) -> Ints | None:
    """Number the document that each input's state predicts a token of, or None where borders do not count.

    The end of a document counts to the next one, whose first token its state predicts, as BOS counts to the first.

    Args:
        window_BN: BOS and tokens as the model sees them: a hidden end of document must not show as a border.
        vocabulary: Says whether borders count.

    Returns:
        The numbers [B, N], or None.
    """
    return np.cumsum(window_BN == vocabulary.eos_id, axis=1) if vocabulary.separate_documents else None


def strata(count: int, rng: np.random.Generator) -> Floats:
    """Draw one point in each of `count` equal parts of (0, 1], in random order.

    The order is permuted, so that no part of a window or batch is tied to a noise level; each point alone is
    uniform on (0, 1].
    """
    return (rng.permutation(count) + 1 - rng.random(count)) / count


def exact_masks(groups: int, size: int, rng: np.random.Generator) -> Masks:
    """Hide exactly l tokens of each group, l uniform on 1..S, with weight S / l.

    Groups go in pairs, l with S + 1 - l, so that a batch of an even number of groups always hides
    groups * (S + 1) / 2 tokens: static shapes without bias, because each l alone stays uniform.

    Args:
        groups: K windows or blocks.
        size: S tokens in each.
        rng: Random numbers.

    Returns:
        The masks.
    """
    pairs = groups // 2
    first = np.minimum(np.ceil(strata(max(pairs, 1), rng) * size).astype(np.int64), size)[:pairs]
    counts = np.concatenate([first, size + 1 - first, rng.integers(1, size + 1, groups % 2)])
    counts_K = counts[rng.permutation(groups)]
    order_KS = rng.random((groups, size)).argsort(1).argsort(1)
    reads = pairs * (size + 1) + (groups % 2) * size
    return Masks(order_KS < counts_K[:, None], size / counts_K, reads)


def pad_reads(example: Example, reads: int) -> Example:
    """Lengthen the reads of an example to a static number, with weight 0.

    Args:
        example: The example; its first read is repeated.
        reads: The number wanted, at least as many as there are.

    Returns:
        The example with `reads` reads.
    """
    short = reads - len(example.targets_R)
    if short <= 0 or example.reads_R is None:
        return example
    return replace(
        example,
        reads_R=np.concatenate([example.reads_R, np.zeros(short, np.int64)]),
        targets_R=np.concatenate([example.targets_R, np.zeros(short, np.int64)]),
        weights_R=np.concatenate([example.weights_R, np.zeros(short, np.float32)]),
    )
