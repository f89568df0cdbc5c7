"""Time generation: next tokens, unmasking of the whole window, and blocks, with and without kept keys and values.

usage: python benchmarks/sampling.py [--case T,PROMPT,TOKENS ...] [--all] [--repeats 3] [--size 1m] [--batch 1]
                                     [--block 16] [--only WORDS] [--threads 1] [--json FILE]

Prints, for each case (a window of T tokens, a prompt, tokens to draw), drawn tokens per second, forward passes of a
text, milliseconds per pass, useful FLOPs of a text, the rate of all texts as a share of the rate of a matrix product at
float32 (measured in each repeat), the highest resident memory of the process while it ran, and the rate as a ratio to
next tokens with a cache, and to the same sampler with the prefix encoded again in each pass. The samplers of a case
take turns in one process, and a ratio is the median over turns; weights are fresh, and the vocabulary has no end of
document, so that every text has its full length.

The usual cases are 256,16,128 and 1024,768,256; the second says what a kept prefix saves. In windows of 512 tokens and
more, samplers that run much of the window for each single token are left out without --all: they take minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from table import Table, add_options, begin, finish, synthetic_vocabulary, take_turns

from crossover.model.backbone import build
from crossover.model.shapes import shape_of
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.policies import policy_of
from crossover.sections import ModelRecipe

PIECES = 4096
AGAIN = ", again"
LARGE_WINDOW = 512
Sampler = AutoregressiveSampler | MaskedSampler | BlockSampler


@dataclass(frozen=True)
class Case:
    """What is drawn.

    Args:
        context: T, data tokens of the window.
        prompt: Tokens of each prompt.
        tokens: Tokens to draw.
    """

    context: int
    prompt: int
    tokens: int


USUAL = (Case(256, 16, 128), Case(1024, 768, 256))


def case_of(text: str) -> Case:
    """Read a case from "T,PROMPT,TOKENS"."""
    return Case(*(int(part) for part in text.split(",")))


def make_samplers(block: int, *, slow: bool) -> dict[str, Sampler]:
    """Name the samplers that are timed; those that encode the prefix again are named after the others.

    Args:
        block: S.
        slow: Whether those that run much of a window for each single token are among them.
    """
    samplers: dict[str, Sampler] = {"ar": AutoregressiveSampler()}
    if slow:
        samplers["ar" + AGAIN] = AutoregressiveSampler(cached=False)
    for count in (1, 4, 16) if slow else (4, 16):
        samplers[f"masked, {count} a pass"] = MaskedSampler(policy=policy_of(f"first_hitting({count})"))
    samplers["masked, confidence(4)"] = MaskedSampler(policy=policy_of("confidence(4)"))
    for name in ("first_hitting", "confidence(4)"):
        for cached in (True, False) if slow or name != "first_hitting" else (True,):
            sampler = BlockSampler(block, policy=policy_of(name), cached=cached)
            samplers[f"block({block}), {name}{'' if cached else AGAIN}"] = sampler
    return samplers


def measure(case: Case, options: argparse.Namespace, table: Table) -> None:
    """Time the samplers of a case in turns, and add a row for each.

    Args:
        case: What is drawn.
        options: The command line's.
        table: Where the rows go.
    """
    words = synthetic_vocabulary(PIECES, ends=False)
    # A text ends where a next document would begin, too.
    words = replace(words, bos_id=words.mask_id + 1)
    model = build(shape_of(ModelRecipe(preset=options.size), words.size), words, context=case.context, seed=0)
    prompts = np.random.default_rng(0).integers(0, PIECES, (options.batch, case.prompt)).tolist()
    samplers = make_samplers(options.block, slow=options.all or case.context < LARGE_WINDOW)
    calls: dict[str, Callable[[], tuple]] = {
        name: lambda sampler=sampler: sampler.sample(model, prompts, case.tokens, 0)
        for name, sampler in samplers.items()
        if options.only in name
    }
    # What is drawn is alike in all turns; this first one warms up.
    made = {name: call()[0] for name, call in calls.items()}
    # Samplers compute in the precision of the weights.
    turns = take_turns(calls, options.repeats, precision="float32", warm_up=0)
    for name, text in made.items():
        spent = turns.median(name)
        table.add(
            name,
            case.context,
            len(text.ids),
            options.batch * case.tokens / spent,
            text.passes,
            1e3 * spent / text.passes,
            text.flops / 1e6,
            turns.matmul_share(name, options.batch * text.flops),
            turns.mebibytes[name],
            turns.ratio("ar", name) if "ar" in made else None,
            turns.ratio(name + AGAIN, name) if name + AGAIN in made else None,
        )


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=3)
    parser.add_argument("--case", type=case_of, action="append", metavar="T,PROMPT,TOKENS", help="what is drawn")
    parser.add_argument("--all", action="store_true", help="time slow samplers in large windows, too")
    parser.add_argument("--size", default="1m", help="preset (1m)")
    parser.add_argument("--batch", type=int, default=1, help="texts that are drawn together (1)")
    parser.add_argument("--block", type=int, default=16, help="tokens of a block (16)")
    parser.add_argument("--only", default="", help="time samplers with this in their names alone")
    options = parser.parse_args()
    begin(options)
    columns = {"sampler": "", "T": "d", "tokens": "d", "tokens/s": ",.0f", "passes": ",", "ms a pass": ".2f"}
    costs = {"MFLOPs": ",.0f", "of matmul": ".3f", "peak MiB": ",.0f", "x ar": ".2f", "x again": ".2f"}
    table = Table({**columns, **costs}, first_width=32)
    cases = options.case or USUAL
    for case in cases:
        measure(case, options, table)
    options.case = [f"{case.context},{case.prompt},{case.tokens}" for case in cases]
    finish(options, table)


if __name__ == "__main__":
    main()
