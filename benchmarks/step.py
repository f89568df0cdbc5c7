"""Time one optimizer step per objective and size, against the machine's matrix products and a plain loop.

usage: python benchmarks/step.py [--threads 1] [--repeats 7] [--sizes 250k,1m] [--compile]

Prints, for each, tokens/s, useful GFLOP/s, its share of the rate of a bfloat16 and of the compute precision's matrix
product (both measured in this process), and the ratio of tokens/s to the plain loop of benchmarks/reference.py at the
same precision, interleaved step by step. A ratio below 1 means that the plain loop is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from reference import PlainLoop

from crossover.data.loader import Loader
from crossover.model.backbone import build
from crossover.model.shapes import Shape, shape_of, training_flops
from crossover.recipe import ModelRecipe
from crossover.records import Vocabulary
from crossover.registry import component_of
from crossover.training.machine import compiler, fast_bfloat16, matmul_flops_per_second
from crossover.training.step import Stepper

SIZES = {"250k": (128, 16, 1024), "1m": (128, 16, 1024), "5m": (256, 8, 4096)}
OBJECTIVES = ("autoregressive", "masked", "block(16)")


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def make_stepper(shape: Shape, words: Vocabulary, text: np.ndarray, context: int, rows: int, compiled: bool) -> Stepper:
    """Build the library's own step, as a run would."""
    model = build(shape, words, context=context, seed=0).train()
    fast, _ = fast_bfloat16("cpu")
    return Stepper(
        model=model,
        forward=torch.compile(model, dynamic=False) if compiled else model,
        objectives={name: component_of("objective", name) for name in OBJECTIVES},
        loader=Loader(text, context=context, batch_tokens=rows * context, slice_tokens=rows * context, seed=0),
        vocabulary=words,
        optimizers=tuple(component_of("optimizer", "adamw").build(model.inner.named_parameters())),
        seed=0,
        micro_batch_slices=1,
        clip_norm=1.0,
        precision="bfloat16" if fast else "float32",
    )


def compare(size: str, repeats: int, compiled: bool, rates: dict[str, float]) -> None:
    """Print a row per objective of one size."""
    context, rows, pieces = SIZES[size]
    words = Vocabulary(pieces + 64, pieces + 16, pieces, pieces + 1, pieces + 16)
    shape = shape_of(ModelRecipe(preset=size), words.size)
    text = np.random.default_rng(0).integers(0, pieces, 200_000)
    stepper = make_stepper(shape, words, text, context, rows, compiled)
    plain = PlainLoop(shape, stepper.precision, compiled)
    window = torch.from_numpy(np.pad(stepper.loader.batch(0, 0), ((0, 0), (1, 0)), constant_values=words.bos_id))
    calls: dict[str, Callable[[], object]] = {
        "autoregressive": lambda: plain.autoregressive(window),
        "masked": lambda: plain.masked(window, words.mask_id),
        "block(16)": lambda: plain.block(window, words.mask_id, 16),
    }
    for name in OBJECTIVES:
        ours, theirs = [], []
        for step in range(repeats + 2):
            # Reading the loss is part of the plain loop's step, so it is part of ours here too.
            ours.append(seconds(lambda step=step, name=name: float(stepper.run(step, (name,), 1.0).loss)))
            theirs.append(seconds(calls[name]))
        report(size, name, stepper, shape, ours[2:], theirs[2:], rates)


def report(
    size: str,
    name: str,
    stepper: Stepper,
    shape: Shape,
    ours: list[float],
    theirs: list[float],
    rates: dict[str, float],
) -> None:
    """Print one row."""
    context, rows, _ = SIZES[size]
    work = stepper.objectives[name].workload(context)
    flops = rows * training_flops(shape, work, head_rows=stepper.vocabulary.predictable)
    mine, median = statistics.median(ours), statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    rate = flops / mine
    print(
        f"{size:>5} {name:<15} {rows * context / mine:>9,.0f} {rate / 1e9:>8.1f} "
        f"{rate / rates['bfloat16']:>10.2f} {rate / rates[stepper.precision]:>10.2f} {median:>11.2f}",
        flush=True,
    )


def main() -> None:
    """Measure all sizes and objectives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", default="250k,1m,5m")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fast, why = fast_bfloat16("cpu")
    rates = {precision: matmul_flops_per_second(precision, "cpu", seconds=0.5) for precision in ("float32", "bfloat16")}
    print(f"threads {options.threads}; compute in {'bfloat16' if fast else 'float32'}: {why}")
    print("matrix products: " + ", ".join(f"{name} {rate / 1e9:.1f} GFLOP/s" for name, rate in rates.items()))
    if options.compile and compiler() is None:
        print("no C++ compiler: eager")
    heads = ("tokens/s", "GFLOP/s", "of bf16", "of compute", "x plain")
    print(f"{'size':>5} {'objective':<15} {heads[0]:>9} {heads[1]:>8} {heads[2]:>10} {heads[3]:>10} {heads[4]:>11}")
    for size in options.sizes.split(","):
        compare(size, options.repeats, options.compile and compiler() is not None, rates)


if __name__ == "__main__":
    main()
