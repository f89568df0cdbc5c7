"""Where a vocabulary's ids lie: text pieces, special ones, unused ones, the mask, and the rows of padding above it."""

from __future__ import annotations

# BOS and EOS; the mask comes after all others.
SPECIALS = 2
# The mask's id is a multiple of this where it is declared here: a head of an unaligned number of rows multiplies 7 to
# 25% slower (benchmarks/head.py).
ALIGNED = 16
# Embedding rows in multiples of this keep matrix shapes friendly to hardware.
ROWS = 64


def mask_after(pieces: int) -> int:
    """Give the id that a mask gets: the first multiple of 16 that is free.

    Args:
        pieces: Ids that are taken, special ones included.

    Returns:
        The id; those between are unused.
    """
    return -(-pieces // ALIGNED) * ALIGNED


def rows_up_to(last: int) -> int:
    """Give the rows of an embedding, a multiple of 64.

    Args:
        last: The last id.

    Returns:
        The rows.
    """
    return -(-(last + 1) // ROWS) * ROWS
