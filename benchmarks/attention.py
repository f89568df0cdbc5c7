"""Time attention alone, forward and backward, by pattern, shape and back end.

usage: python benchmarks/attention.py [--threads 1] [--repeats 7] [--json FILE]

Prints milliseconds of the tiles and how many times faster they are than torch's fused kernel (given the pattern as
`is_causal`, nothing, or a dense mask) and than scores written out under a dense mask; and which of tiles and fused
kernel the library chooses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from table import Table, add_options, begin, finish, take_turns

from crossover.model import attention
from crossover.model.attention import Plan
from crossover.records import Pattern
from crossover.training.machine import keep_memory

# Sequences, heads, tokens, head width.
SHAPES = ((16, 2, 128, 64), (8, 4, 256, 64), (8, 8, 512, 64), (2, 8, 1024, 64))
CPU = torch.device("cpu")


def cases(tokens: int) -> list[tuple[str, Pattern, int]]:
    """Name the patterns of a window of so many tokens, and their inputs."""
    named = [("causal", Pattern("causal"), tokens), ("full", Pattern("full"), tokens)]
    for size in (4, 16):
        clean = tokens - size
        pattern = Pattern("two_stream", size, clean, "block_causal")
        named.append((f"block({size})", pattern, clean + tokens // size * (size + 1)))
    return named


def written_out(parts: list[torch.Tensor], mask_NN: torch.Tensor) -> torch.Tensor:
    """Attend with all scores in memory."""
    query, key, value = parts
    scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).masked_fill(~mask_NN, float("-inf"))
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).flatten(2).flatten(0, 1)


def calls_of(
    shape: tuple[int, int, int, int], pattern: Pattern, inputs: int, dtype: torch.dtype
) -> dict[str, Callable]:
    """Make the three calls of one case."""
    batch, heads, _, width = shape
    parts = [torch.randn(batch, heads, inputs, width, dtype=dtype, requires_grad=True) for _ in range(3)]
    pull = torch.randn(batch * inputs, heads * width, dtype=dtype)
    mask_NN = attention.mask_NN(pattern, inputs)

    def through(plan: Plan) -> Callable[[], None]:
        return lambda: back(attention.mix(parts[0], parts[1], parts[2], plan, width**-0.5, 0.0))

    def back(mixed: torch.Tensor) -> None:
        mixed.backward(pull)
        for part in parts:
            part.grad = None

    plans = {name: attention.make_plan(pattern, inputs, CPU, torch.float32, name) for name in ("tiled", "sdpa")}
    return {
        **{name: through(plan) for name, plan in plans.items()},
        "written out": lambda: back(written_out(parts, mask_NN)),
    }


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=7)
    options = parser.parse_args()
    precision = begin(options)
    keep_memory()
    table = Table(
        {"B, H, T, D": "", "pattern": "", "tiles ms": ",.1f", "x fused": ".2f", "x written": ".2f", "chosen": ""}
    )
    for shape in SHAPES:
        for name, pattern, inputs in cases(shape[2]):
            turns = take_turns(calls_of(shape, pattern, inputs, getattr(torch, precision)), options.repeats)
            chosen = attention.choose_back_end(pattern, inputs, CPU, low_precision=precision == "bfloat16")
            ratios = (turns.ratio("sdpa", "tiled"), turns.ratio("written out", "tiled"))
            table.add(", ".join(map(str, shape)), name, 1e3 * turns.median("tiled"), *ratios, chosen)
    finish(options, table)


if __name__ == "__main__":
    main()
