"""Time the output head, forward and backward, by its number of rows: an odd number multiplies slower.

usage: python benchmarks/head.py [--width 64] [--states 2048] [--repeats 41]

Prints milliseconds (median, one thread, float32) for heads around 1,024 rows, cut out of an embedding of 1,088, and the
ratio to the aligned head of 1,040. The rows take turns, so that a slow moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

ROWS = (1026, 1027, 1032, 1040)


def seconds(states: torch.Tensor, embedding: torch.Tensor, rows: int) -> float:
    """Time one forward and backward pass of a head of the first `rows` rows."""
    gradient = torch.ones(len(states), rows)
    start = time.perf_counter()
    F.linear(states, embedding[:rows]).backward(gradient)
    return time.perf_counter() - start


def main() -> None:
    """Measure all numbers of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--states", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=41)
    options = parser.parse_args()
    torch.set_num_threads(1)
    states = torch.randn(options.states, options.width, requires_grad=True)
    embedding = torch.randn(1088, options.width, requires_grad=True)
    taken: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for repeat in range(options.repeats + 3):
        for rows in ROWS:
            spent = seconds(states, embedding, rows)
            states.grad = embedding.grad = None
            if repeat >= 3:
                taken[rows].append(spent)
    aligned = taken[1040]
    for rows, spent in taken.items():
        ratio = statistics.median(one / other for one, other in zip(spent, aligned, strict=True))
        print(f"{rows} rows: {1e3 * statistics.median(spent):.2f} ms, {ratio:.3f} x 1,040 rows")


if __name__ == "__main__":
    main()
