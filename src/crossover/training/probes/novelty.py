"""In which contexts each token of the text was a target already: realised ordering coverage.

A context is one of K = 16 buckets: 4 bins of the share of hidden tokens in the target's block, times whether its left
neighbour is visible, times whether its right one is.

Suffixes: U tokens of the text, I sampled instances of them, V vocabulary, K buckets, B windows, G blocks of a window,
S tokens of a block, T data tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossover.data.loader import Loader
from crossover.errors import CheckpointError
from crossover.records import Example

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
BUCKETS = 16
# Two bytes each.
MOST_INSTANCES = 10_000_000
# Exponent of a type's frequency in its total weight: 1 counts tokens, 0 counts types.
TAU = 0.5
# One token hidden of a block of one, left neighbour visible, right neighbour not.
AUTOREGRESSIVE = 4 * 3 + 2
_CHUNK = 1 << 24


def contexts(example: Example, mask_id: int) -> Iterator[tuple[Mask | None, Ints | int]]:
    """Find the targets of an example and their buckets, whatever objective made it.

    A causal example that reads every state predicts every token from the left, whatever inputs it hides, whatever
    order it takes and however often. In the other patterns the hidden tokens are the targets.

    Args:
        example: A micro-batch.
        mask_id: What stands for a hidden token.

    Yields:
        Which tokens are targets [B, T] (None for all) and the bucket of each [B, T] (or of all).
    """
    pattern, reads_R = example.pattern, example.reads_R
    if reads_R is None:
        yield None, AUTOREGRESSIVE
        return
    if pattern.kind != "two_stream":
        yield _hidden(example.inputs_BN[:, None, 1:] == mask_id, looks_ahead=pattern.kind == "full")
        return
    clean_R = reads_R % example.inputs_BN.shape[1] < pattern.clean
    # Reads of weight 0 only keep shapes static.
    if (clean_R & (example.weights_R > 0)).any():
        yield None, AUTOREGRESSIVE
    noisy_BN = example.inputs_BN[:, pattern.clean :]
    copies_BGN = noisy_BN.reshape(len(noisy_BN), -1, pattern.block + 1)
    yield _hidden(copies_BGN[:, :, 1:] == mask_id, looks_ahead=True)


def _hidden(hidden_BGS: Mask, *, looks_ahead: bool) -> tuple[Mask, Ints]:
    size = hidden_BGS.shape[2]
    rate_BG = np.minimum(3, 4 * np.count_nonzero(hidden_BGS, axis=2) // size)
    bucket_BGS = np.repeat(4 * rate_BG[:, :, None] + 2, size, axis=2)
    bucket_BGS[:, :, 1:] -= 2 * hidden_BGS[:, :, :-1]
    if looks_ahead:
        bucket_BGS[:, :, :-1] += ~hidden_BGS[:, :, 1:]
    return hidden_BGS.reshape(len(hidden_BGS), -1), bucket_BGS.reshape(len(hidden_BGS), -1)


class Novelty:
    """A bitset of contexts per token instance, and how many exposures were new.

    An instance of type v weighs n_v^(TAU - 1), n_v being the type's count in the training text, so that a type weighs
    n_v^TAU. Of long texts every stride-th instance is kept.

    Args:
        loader: The training text.
        vocabulary_size: Rows of the embedding.
    """

    def __init__(self, loader: Loader, vocabulary_size: int) -> None:
        self.loader = loader
        tokens_U = loader.tokens_U
        self.stride = -(-len(tokens_U) // MOST_INSTANCES)
        count_V = np.zeros(vocabulary_size, np.int64)
        for start in range(0, len(tokens_U), _CHUNK):
            count_V += np.bincount(tokens_U[start : start + _CHUNK], minlength=vocabulary_size)
        self.weight_V = np.maximum(count_V, 1) ** (TAU - 1.0)
        sampled = tokens_U[:: self.stride]
        self.total = float(self.weight_V @ np.bincount(sampled, minlength=vocabulary_size))
        self.bits_I = np.zeros(len(sampled), np.uint16)
        # Of mean 1, so that a weighted number of exposures is about their number.
        self.weight_V = self.weight_V * (len(sampled) / self.total)
        self.total = float(len(sampled))
        self.seen_K = np.zeros(BUCKETS)
        # Weighted numbers of new exposures and of all of them since the last row.
        self.since = np.zeros(2)

    def mark(self, index_BT: Ints, example: Example | None, mask_id: int) -> None:
        """Note the exposures of a micro-batch.

        Args:
            index_BT: Places of its tokens in the text.
            example: What it was turned into, or None for next-token prediction, whose targets are all tokens.
            mask_id: What stands for a hidden token.
        """
        everything: list[tuple[Mask | None, Ints | int]] = [(None, AUTOREGRESSIVE)]
        for target_BT, bucket in everything if example is None else contexts(example, mask_id):
            index, buckets = index_BT.ravel(), bucket
            if target_BT is not None and isinstance(bucket, np.ndarray):
                chosen = np.flatnonzero(target_BT)
                index, buckets = index[chosen], bucket.ravel()[chosen]
            if self.stride > 1:
                kept = np.flatnonzero(index % self.stride == 0)
                index, buckets = index[kept], buckets[kept] if isinstance(buckets, np.ndarray) else buckets
            self._count(index, buckets)

    def row(self) -> dict[str, Any]:
        """Give the row of everything up to now and begin the next one."""
        new, exposures = self.since.tolist()
        self.since = np.zeros(2)
        seen_K = (self.seen_K / self.total).tolist()
        return {"probe": "novelty", "seen_K": seen_K, "new": new, "exposures": exposures, "flops": 0}

    def tensors(self) -> dict[str, Tensor]:
        """Give everything that a checkpoint needs; bitsets as pairs of bytes, low byte first."""
        bits = np.ascontiguousarray(self.bits_I.astype("<u2")).view(np.uint8).reshape(-1, 2)
        arrays = {"bits": bits, "seen": self.seen_K, "since": self.since}
        return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a checkpoint's bitsets and counts.

        Raises:
            CheckpointError: They are of another text.
        """
        bits = tensors["bits"].cpu().numpy()
        if bits.shape != (len(self.bits_I), 2):
            raise CheckpointError(
                f"the checkpoint knows {len(bits)} tokens of text, not {len(self.bits_I)}; start anew"
            )
        self.bits_I = np.ascontiguousarray(bits).view("<u2").ravel().astype(np.uint16)
        self.seen_K, self.since = (tensors[name].cpu().numpy().copy() for name in ("seen", "since"))

    def _count(self, index: Ints, buckets: Ints | int) -> None:
        weights = self.weight_V[self.loader.tokens_U[index]]
        self.since[1] += weights.sum()
        slots = index // self.stride if self.stride > 1 else index
        bits = np.left_shift(np.uint16(1), buckets, dtype=np.uint16, casting="unsafe")
        new = np.flatnonzero(self.bits_I[slots] & bits == 0)
        if not len(new):
            return
        each = np.broadcast_to(buckets, index.shape)
        # An instance can come twice at the border of two epochs; it is new once.
        _, first = np.unique(slots[new] * BUCKETS + each[new], return_index=True)
        new = new[first]
        np.bitwise_or.at(self.bits_I, slots[new], np.broadcast_to(bits, index.shape)[new])
        self.seen_K += np.bincount(each[new], weights=weights[new], minlength=BUCKETS)
        self.since[0] += weights[new].sum()
