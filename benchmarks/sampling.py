"""Time generation: next tokens with a key-value cache, and unmasking with one or more tokens per forward pass.

usage: python benchmarks/sampling.py [--repeats 5] [--size 1m] [--context 256] [--tokens 128] [--threads 1]
                                     [--json FILE]

Prints drawn tokens per second, forward passes (counted, not derived), milliseconds per pass, useful FLOPs as a share of
the rate of a matrix product at float32 (measured in each repeat), the highest resident memory of the process while it
ran, and the rate as a ratio to next tokens with a cache. All take turns in one process; weights are fresh, one text is
drawn at a time, and the vocabulary has no end of document, so that every text has its full length.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import numpy as np
from table import Table, add_options, begin, finish, synthetic_vocabulary, take_turns

from crossover.model.backbone import Backbone, build
from crossover.model.shapes import Shape, Workload, forward_flops, live_entries, shape_of
from crossover.recipe import ModelRecipe
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.diffusion import MaskedSampler

PIECES, PROMPT = 4096, 16
CACHED = "ar, cached"
Sampler = AutoregressiveSampler | MaskedSampler


def make_samplers(context: int) -> dict[str, Sampler]:
    """Name the samplers that are timed."""
    samplers: dict[str, Sampler] = {CACHED: AutoregressiveSampler()}
    for count in (1, 4, 16):
        samplers[f"masked, {count} a pass"] = MaskedSampler(context, tokens_per_pass=count)
    samplers["masked, 4, confidence"] = MaskedSampler(context, order="confidence", tokens_per_pass=4)
    return samplers


def count_passes(model: Backbone, call: Callable[[], object]) -> int:
    """Count the forward passes of a call; each ends in the head."""
    with mock.patch.object(model, "logits", wraps=model.logits) as head:
        call()
    return head.call_count


def flops_of(sampler: Sampler, shape: Shape, head_rows: int, tokens: int) -> float:
    """Count the useful FLOPs of drawing so many tokens."""
    if isinstance(sampler, AutoregressiveSampler):
        # The prompt in one pass, then one input a pass that sees all inputs before it and itself.
        entries = live_entries(Pattern("causal"), PROMPT + tokens)
        return forward_flops(shape, Workload(PROMPT + tokens, tokens, entries), head_rows=head_rows)
    inputs, flops = sampler.context + 1, 0.0
    for hidden in range(tokens, 0, -sampler.tokens_per_pass):
        # Every hidden token is drawn in every pass, and some are kept.
        work = Workload(inputs, hidden, live_entries(Pattern("full"), inputs))
        flops += forward_flops(shape, work, head_rows=head_rows)
    return flops


def main() -> None:
    """Measure all samplers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5)
    parser.add_argument("--size", default="1m", help="preset (1m)")
    parser.add_argument("--context", type=int, default=256, help="data tokens of the window (256)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to draw (128)")
    options = parser.parse_args()
    begin(options)
    words = synthetic_vocabulary(PIECES, ends=False)
    shape = shape_of(ModelRecipe(preset=options.size), words.size)
    model = build(shape, words, context=options.context, seed=0)
    prompt = np.random.default_rng(0).integers(0, PIECES, PROMPT - 1).tolist()
    samplers = make_samplers(options.context)
    calls: dict[str, Callable[[], object]] = {
        name: lambda sampler=sampler: sampler.generate(model, prompt, options.tokens, 0)
        for name, sampler in samplers.items()
    }
    passes = {name: count_passes(model, call) for name, call in calls.items()}
    # Samplers compute in the precision of the weights.
    turns = take_turns(calls, options.repeats, precision="float32", warm_up=1)
    columns = {"sampler": "", "tokens/s": ",.0f", "passes": ",", "ms a pass": ".2f", "of matmul": ".3f"}
    table = Table({**columns, "peak MiB": ",.0f", "x cached": ".2f"})
    for name, sampler in samplers.items():
        spent = turns.median(name)
        share = turns.matmul_share(name, flops_of(sampler, shape, words.predictable, options.tokens))
        rate = turns.ratio(CACHED, name)
        table.add(
            name, options.tokens / spent, passes[name], 1e3 * spent / passes[name], share, turns.mebibytes[name], rate
        )
    finish(options, table)


if __name__ == "__main__":
    main()
