"""Time what a step does before its matrix products: serving windows of text and each objective's corruption of them.

usage: python benchmarks/loader.py [--repeats 5] [--sizes 1m,5m] [--unique-tokens 10000000] [--threads 1] [--json FILE]

Prints, for a step of 8 windows of 256 tokens: `Loader.batch` (inside an epoch, and where it first has to draw an
epoch's order), each objective's `corrupt`, and both together for a step that is cut into 8 slices and joined again.
Each comes with the share of one whole optimizer step (eager, same objective) that it takes. The steps stand below,
with their share of the rate of a matrix product measured in each repeat. All take turns in one process.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from step import make_stepper
from table import Table, Turns, add_options, begin, finish, synthetic_vocabulary, take_turns

from crossover.data.loader import Loader
from crossover.model.shapes import shape_of, training_flops
from crossover.objectives.mixing import join
from crossover.records import Example, Vocabulary
from crossover.registry import component_of
from crossover.sections import ModelRecipe
from crossover.streams import stream

CONTEXT, WINDOWS, PIECES = 256, 8, 4096
STEP_TOKENS = CONTEXT * WINDOWS
# What is corrupted, and whose step it is compared with.
STEP_OF = {
    "autoregressive": "autoregressive",
    "masked": "masked",
    "masked(count=bernoulli)": "masked",
    "block(4)": "block(16)",
    "block(16)": "block(16)",
}
STEPS = tuple(dict.fromkeys(STEP_OF.values()))
Call = Callable[[], object]


def make_loader(tokens_U: np.ndarray, slices: int) -> Loader:
    """Build a loader whose steps have so many slices."""
    return Loader(tokens_U, context=CONTEXT, batch_tokens=STEP_TOKENS, slice_tokens=STEP_TOKENS // slices, seed=0)


def counting(call: Callable[[int], object]) -> Call:
    """Make a call that asks for another step each time."""
    steps = itertools.count()
    return lambda: call(next(steps))


def corruption(objective: Any, loader: Loader, words: Vocabulary) -> Call:
    """Make the call that corrupts the same windows with other random numbers each time."""
    window_BT = loader.batch(0, 0)
    return counting(lambda step: objective.corrupt(window_BT, stream(0, "mask", step, 0), words))


def whole_step(objective: Any, loader: Loader, words: Vocabulary) -> Call:
    """Make the call that serves, corrupts and joins all slices of a step."""

    def call(step: int) -> Example:
        parts = [
            objective.corrupt(loader.batch(step, index), stream(0, "mask", step, index), words)
            for index in range(loader.slices_per_step)
        ]
        return join(parts)

    return counting(call)


def make_calls(tokens_U: np.ndarray, words: Vocabulary) -> dict[str, Call]:
    """Name everything that comes before a step's matrix products."""
    loader, sliced = make_loader(tokens_U, 1), make_loader(tokens_U, WINDOWS)
    calls: dict[str, Call] = {
        "Loader.batch": counting(lambda step: loader.batch(step, 0)),
        "Loader.batch, first of an epoch": lambda: make_loader(tokens_U, 1).batch(0, 0),
    }
    for name in STEP_OF:
        calls[f"{name} corrupt"] = corruption(component_of("objective", name), loader, words)
    for name in STEPS:
        calls[f"{name} 8 slices, all"] = whole_step(component_of("objective", name), sliced, words)
    return calls


def report(turns: Turns, calls: dict[str, Call], sizes: list[str]) -> Table:
    """Print what comes before the steps."""
    heads = [f"of {size} step" for size in sizes]
    table = Table(
        {"before the products": "", "ms": ".3f", "tokens/s": ",.0f", **dict.fromkeys(heads, ".3%")}, first_width=32
    )
    for name in calls:
        step = STEP_OF.get(name.split(" ")[0], "autoregressive")
        parts = [turns.ratio(name, f"{size} {step}") for size in sizes]
        table.add(name, 1e3 * turns.median(name), STEP_TOKENS / turns.median(name), *parts)
    return table


def report_steps(turns: Turns, sizes: list[str], words: Vocabulary) -> Table:
    """Print the steps themselves."""
    table = Table(
        {"whole step": "", "ms": ",.1f", "tokens/s": ",.0f", "of matmul": ".2f", "peak MiB": ",.0f"}, first_width=32
    )
    for size in sizes:
        shape = shape_of(ModelRecipe(preset=size), words.size)
        for objective in STEPS:
            name = f"{size} {objective}"
            work = component_of("objective", objective).workload(CONTEXT)
            share = turns.matmul_share(name, WINDOWS * training_flops(shape, work, head_rows=words.predictable))
            spent = turns.median(name)
            table.add(name, 1e3 * spent, STEP_TOKENS / spent, share, turns.mebibytes[name])
    return table


def main() -> None:
    """Measure everything in turns and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5)
    parser.add_argument("--sizes", default="1m,5m", help="presets whose steps are the measure (1m,5m)")
    parser.add_argument("--unique-tokens", type=int, default=10_000_000, help="tokens of the text (10000000)")
    options = parser.parse_args()
    precision, sizes = begin(options), options.sizes.split(",")
    words = synthetic_vocabulary(PIECES)
    tokens_U = np.random.default_rng(0).integers(0, PIECES, options.unique_tokens, dtype=np.uint16)
    calls = make_calls(tokens_U, words)
    steps: dict[str, Call] = {}
    for size in sizes:
        shape = shape_of(ModelRecipe(preset=size), words.size)
        stepper = make_stepper(shape, words, make_loader(tokens_U, 1), STEPS, precision, compiled=False)
        for name in STEPS:
            # Reading the loss waits for the step.
            steps[f"{size} {name}"] = counting(
                lambda step, stepper=stepper, name=name: float(stepper.run(step, (name,), 1.0).loss)
            )
    turns = take_turns({**calls, **steps}, options.repeats, precision=precision)
    table = report(turns, calls, sizes)
    print()
    finish(options, table, steps=report_steps(turns, sizes, words).rows)


if __name__ == "__main__":
    main()
