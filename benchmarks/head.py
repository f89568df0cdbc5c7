"""Time the output head with its loss, forward and backward: chunk by chunk, plain, and torch's chunked kernel.

usage: python benchmarks/head.py [--threads 1] [--repeats 7] [--json FILE]

First table: milliseconds, share of the matmul rate (three products of the head), peak memory, and how many times faster
the library's loss is than plain cross-entropy over all logits and than torch's `linear_cross_entropy`. Second table:
the plain product by its number of rows around 1,024, since an odd number multiplies slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from table import Table, add_options, begin, finish, take_turns

from crossover.model.loss import weighted_nll
from crossover.training.machine import keep_memory

# States, width, vocabulary.
SIZES = ((2048, 128, 1024), (2048, 256, 4096), (4096, 512, 8192), (1024, 256, 32_768), (2048, 256, 32_768))
ROWS = (1026, 1027, 1032, 1040)


def losses(states: int, width: int, vocabulary: int, precision: str) -> dict[str, Callable[[], object]]:
    """Make the calls of one size."""
    state_RD = torch.randn(states, width, requires_grad=True)
    head_PD = (0.02 * torch.randn(vocabulary, width)).requires_grad_()
    targets_R, weights_R = torch.randint(0, vocabulary, (states,)), torch.rand(states)

    def plain() -> torch.Tensor:
        return (F.cross_entropy(F.linear(state_RD, head_PD).float(), targets_R, reduction="none") * weights_R).sum()

    def torchs() -> torch.Tensor:
        nats = F.linear_cross_entropy(state_RD, head_PD, targets_R, reduction="none", options=chunks)  # type: ignore[attr-defined]
        return (nats.float() * weights_R).sum()

    def back(loss: Callable[[], torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            value = loss()
        value.backward()
        state_RD.grad = head_PD.grad = None

    calls: dict[str, Callable[[], object]] = {
        "chunks": lambda: back(lambda: weighted_nll(state_RD, head_PD, targets_R, weights_R, 1.0)),
        "plain": lambda: back(plain),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        chunks = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)  # type: ignore[attr-defined]
        calls["torch's chunks"] = lambda: back(torchs)
    return calls


def product(state_RD: torch.Tensor, embedding: torch.Tensor, rows: int) -> Callable[[], object]:
    """Make the plain product of a head of the first `rows` rows, forward and backward."""
    pull = torch.ones(len(state_RD), rows)

    def call() -> None:
        F.linear(state_RD, embedding[:rows]).backward(pull)
        state_RD.grad = embedding.grad = None

    return call


def main() -> None:
    """Measure all sizes, then all numbers of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=7)
    options = parser.parse_args()
    precision = begin(options)
    keep_memory()
    columns = {"ms": ",.1f", "of matmul": ".2f", "peak MiB": ",.0f", "x plain": ".2f", "x torch's": ".2f"}
    table = Table({"states, width, vocabulary": "", **columns}, first_width=26)
    for states, width, vocabulary in SIZES:
        turns = take_turns(losses(states, width, vocabulary, precision), options.repeats, precision=precision)
        share = turns.matmul_share("chunks", 6.0 * states * width * vocabulary)
        torchs = turns.ratio("torch's chunks", "chunks") if "torch's chunks" in turns.seconds else None
        row = (1e3 * turns.median("chunks"), share, turns.mebibytes["chunks"], turns.ratio("plain", "chunks"), torchs)
        table.add(f"{states:,}, {width}, {vocabulary:,}", *row)
    alignment = Table({"rows": "", "ms": ",.2f", "x 1,040 rows": ".3f"})
    state_RD, embedding = torch.randn(2048, 64, requires_grad=True), torch.randn(1088, 64, requires_grad=True)
    calls = {str(rows): product(state_RD, embedding, rows) for rows in ROWS}
    turns = take_turns(calls, 6 * options.repeats)
    for rows in calls:
        alignment.add(rows, 1e3 * turns.median(rows), turns.ratio(rows, "1040"))
    finish(options, table, alignment=alignment.rows)


if __name__ == "__main__":
    main()
