"""Which documents are kept, to which split each belongs, and in which order training documents are taken."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossover.errors import DataError
from crossover.streams import digest

# Shape suffixes: D documents as they were read, K documents that are kept, S documents of a split.

_SPLITS = ("train", "dev", "test")


def distinct(high_D: NDArray[np.uint64], low_D: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Find the first occurrence of each text.

    Args:
        high_D: First halves of the texts' hashes.
        low_D: Second halves.

    Returns:
        Numbers [K] of the documents to keep, sorted by hash.
    """
    # Stable: of equal hashes the document that was read first comes first.
    order_D = np.lexsort((low_D, high_D))
    is_repeat_D = np.zeros(len(order_D), dtype=bool)
    is_repeat_D[1:] = True
    for half_D in (high_D, low_D):
        ordered_D = half_D[order_D]
        is_repeat_D[1:] &= ordered_D[1:] == ordered_D[:-1]
    return order_D[~is_repeat_D]


def places(high: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Give documents' places in [0, 1], functions of their texts alone, from the first halves of their hashes."""
    return high.astype(np.float64) * 2.0**-64


def check_shares(dev_share: float, test_share: float) -> None:
    """Refuse shares of held-out text that leave nothing to train on.

    Args:
        dev_share: Part of the documents for choosing.
        test_share: Part of the documents for the result.

    Raises:
        DataError: They do.
    """
    if dev_share + test_share >= 1:
        raise DataError(
            f"data.dev_share {dev_share:g} and data.test_share {test_share:g} leave nothing to train on; lower them"
        )


def assign(high_K: NDArray[np.uint64], *, dev_share: float, test_share: float) -> dict[str, NDArray[np.int64]]:
    """Split documents by the hash of their text, so that adding documents moves none (while no split is empty).

    Args:
        high_K: First halves of the hashes of distinct documents, sorted by hash.
        dev_share: Part of the documents for choosing.
        test_share: Part of the documents for the result.

    Returns:
        Places of the documents of "train", "dev" and "test" in the order given.

    Raises:
        DataError: There are too few documents, or nothing is left to train on.
    """
    check_shares(dev_share, test_share)
    if len(high_K) < 3:
        raise DataError(
            f"the corpus has {len(high_K)} distinct document(s), but train, dev and test need one each; "
            "give more text, or lower data.document_bytes so that plain text is cut into more documents"
        )
    ranges = {"test": (0.0, test_share), "dev": (test_share, test_share + dev_share)}
    # A place may round up to 1.
    ranges["train"] = (test_share + dev_share, 2.0)
    place_K = places(high_K)
    splits = {
        name: np.arange(*np.searchsorted(place_K, bounds, side="left"), dtype=np.int64)
        for name, bounds in ranges.items()
    }
    ranges["train"] = (test_share + dev_share, 1.0)
    for name, (low, high) in ranges.items():
        if not len(splits[name]) and high > low:
            _move_nearest(splits, name, np.maximum(np.maximum(low - place_K, place_K - high), 0.0))
    return {name: splits[name] for name in _SPLITS}


def _move_nearest(splits: dict[str, NDArray[np.int64]], name: str, distance_K: NDArray[np.float64]) -> None:
    """Fill an empty split from a split that can spare one; of two that are equally near, take the smaller hash."""
    spare = [other for other, members in splits.items() if len(members) > 1]
    nearest = {other: splits[other][np.argmin(distance_K[splits[other]])] for other in spare}
    # Documents are sorted by hash, so the smaller place has the smaller hash.
    other = min(spare, key=lambda split: (distance_K[nearest[split]], nearest[split]))
    splits[name] = nearest[other][None]
    splits[other] = splits[other][splits[other] != nearest[other]]


def training_order(seed: int, high_S: NDArray[np.uint64], low_S: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Shuffle training documents by a hash of their hash, so that what a budget admits is a fair sample.

    Args:
        seed: Seed of the order.
        high_S: First halves of their hashes.
        low_S: Second halves.

    Returns:
        Places [S] in the order in which they are taken.
    """
    keys_S2 = np.empty((len(high_S), 2), dtype=np.uint64)
    for place, (high, low) in enumerate(zip(high_S, low_S, strict=True)):
        keys_S2[place] = divmod(digest(seed, "documents", int(high) << 64 | int(low)), 1 << 64)
    return np.lexsort((keys_S2[:, 1], keys_S2[:, 0]))
