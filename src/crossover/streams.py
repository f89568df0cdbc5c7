"""Named random streams: every random number is a function of (seed, name, counters) and of nothing else."""

from __future__ import annotations

import hashlib

import numpy as np


def digest(seed: int, name: str, *counters: int) -> int:
    """Hash a stream's address to 128 bits.

    Args:
        seed: The recipe's seed.
        name: The stream's name, such as "mask" or "order".
        counters: Where in the run the stream is read: step, global slice index, epoch and the like.

    Returns:
        A non-negative integer below 2**128, alike on every machine.
    """
    address = f"{seed}/{name}/" + "/".join(str(counter) for counter in counters)
    return int.from_bytes(hashlib.blake2b(address.encode(), digest_size=16).digest(), "little")


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Open the random stream at an address.

    Args:
        seed: The recipe's seed.
        name: The stream's name.
        counters: Where in the run the stream is read.

    Returns:
        A generator whose numbers depend on the address alone (Philox, counter based).
    """
    return np.random.Generator(np.random.Philox(key=digest(seed, name, *counters)))


def torch_seed(seed: int, name: str, *counters: int) -> int:
    """Give the 63-bit seed of an address, for generators that take an integer."""
    return digest(seed, name, *counters) & (2**63 - 1)
