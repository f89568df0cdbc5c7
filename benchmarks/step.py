"""Time one optimizer step per objective and size, against matrix products, a plain loop and the field's way.

usage: python benchmarks/step.py [--threads 1] [--repeats 7] [--sizes 5m,25m] [--pieces 32768] [--against ...] [--eager]

Prints, for each objective, milliseconds, tokens/s, the share of the rate that a matrix product reaches in the same
process, peak memory, and two ratios to the autoregressive step: of the time, and of the analytic FLOPs. Then, for each
contender of benchmarks/reference.py that was asked for, how many times the tokens/s this is of the contender's
(above 1: this is faster). All of them take turns, step by step, in one process, so the library's setting that freed
memory is kept for the next step serves them all; with --usual-memory contenders run under the C library's own settings.

contenders: plain (transformers' model, autoregressive only), compiled (the same through torch.compile), autocast
(compiled, in bfloat16), field (eager, dense mask, head on all states, full log-softmax; masked and block only),
field32 (the same in float32, whatever the library computes in).
"""

from __future__ import annotations

import argparse
import ctypes
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from reference import FieldStyle, PlainLoop
from table import Table, add_options, begin, finish, synthetic_vocabulary, take_turns

from crossover.data.loader import Loader
from crossover.model.backbone import build
from crossover.model.shapes import Shape, shape_of, training_flops
from crossover.records import Vocabulary
from crossover.registry import component_of
from crossover.sections import ModelRecipe
from crossover.training import machine
from crossover.training.compilation import compile_model
from crossover.training.machine import compiler, keep_memory
from crossover.training.step import Stepper

# Context, sequences and pieces of each preset.
SIZES = {"250k": (128, 16, 1024), "1m": (128, 16, 1024), "5m": (256, 8, 4096), "25m": (512, 8, 8192)}
OBJECTIVES = "autoregressive,masked,block(16)"


@dataclass(frozen=True)
class Bench:
    """One size, ready to be timed.

    Args:
        size: Preset.
        shape: Its shape.
        words: Its vocabulary.
        stepper: The library's step.
    """

    size: str
    shape: Shape
    words: Vocabulary
    stepper: Stepper

    def step(self, name: str) -> float:
        """Take a step and read its loss, as the contenders do."""
        return float(self.stepper.run(0, (name,), 1.0).loss)

    def flops(self, name: str) -> float:
        """Count the useful FLOPs of a step."""
        loader = self.stepper.loader
        work = self.stepper.objectives[name].workload(loader.context)
        return loader.windows_per_slice * training_flops(self.shape, work, head_rows=self.words.predictable)


def make_stepper(
    shape: Shape, words: Vocabulary, loader: Loader, objectives: Iterable[str], precision: str, *, compiled: bool
) -> Stepper:
    """Build the library's own step, as a run would.

    Args:
        shape: The model's shape.
        words: Its vocabulary.
        loader: Its text.
        objectives: Names of the objectives.
        precision: "float32" or "bfloat16".
        compiled: Whether the pieces of the layers are compiled.

    Returns:
        The step.
    """
    model = build(shape, words, context=loader.context, seed=0).train()
    return Stepper(
        model=model,
        forward=compile_model(model) if compiled else model,
        objectives={name: component_of("objective", name) for name in objectives},
        loader=loader,
        vocabulary=words,
        optimizers=tuple(component_of("optimizer", "adamw").build(model.inner.named_parameters())),
        seed=0,
        micro_batch_slices=1,
        clip_norm=1.0,
        precision=precision,
    )


def make_bench(size: str, objectives: list[str], precision: str, *, compiled: bool, pieces: int | None = None) -> Bench:
    """Make one size ready to be timed.

    Args:
        size: Preset.
        objectives: Names of the objectives.
        precision: "float32" or "bfloat16".
        compiled: Whether the pieces of the layers are compiled.
        pieces: Text pieces of the vocabulary, the size's own by default.

    Returns:
        The bench.
    """
    context, rows, usual = SIZES[size]
    words = synthetic_vocabulary(pieces or usual)
    shape = shape_of(ModelRecipe(preset=size), words.size)
    text = np.random.default_rng(0).integers(0, words.predictable - 16, 200_000)
    loader = Loader(text, context=context, batch_tokens=rows * context, slice_tokens=rows * context, seed=0)
    stepper = make_stepper(shape, words, loader, objectives, precision, compiled=compiled)
    return Bench(size, shape, words, stepper)


def contenders(bench: Bench, names: list[str]) -> dict[str, PlainLoop]:
    """Build those that were asked for."""
    shape, precision = bench.shape, bench.stepper.precision
    makers: dict[str, Callable[[], PlainLoop]] = {
        "plain": lambda: PlainLoop(shape, precision),
        "compiled": lambda: PlainLoop(shape, precision, compiled=True),
        "autocast": lambda: PlainLoop(shape, "bfloat16", compiled=True),
        "field": lambda: FieldStyle(shape, precision, predictable=bench.words.predictable),
        "field32": lambda: FieldStyle(shape, "float32", predictable=bench.words.predictable),
    }
    return {name: makers[name]() for name in names}


def with_usual_memory(call: Callable[[], object]) -> Callable[[], object]:
    """Run a call under the thresholds that glibc arrives at by itself in a process that frees large blocks."""
    tune = ctypes.CDLL(None).mallopt

    def wrapped() -> None:
        tune(machine.M_TRIM_THRESHOLD, 2 * machine.LARGEST_MMAP_THRESHOLD)
        tune(machine.M_TOP_PAD, 0)
        call()
        machine.keep_memory()

    return wrapped


def same_loss(bench: Bench, other: FieldStyle, name: str) -> float:
    """Say how far the library's loss and the field's are apart with the same weights on the same example."""
    other.model.load_state_dict(bench.stepper.model.inner.state_dict())
    example = bench.stepper.example(0, name, (0,))
    exact = replace(bench.stepper, precision="float32")
    with torch.no_grad():
        theirs = replace(other, precision="float32")
        theirs.model = other.model
        return abs(float(exact.loss(example, float(example.data_tokens))) - float(theirs.loss(example)))


def measure(bench: Bench, objectives: list[str], against: list[str], options: argparse.Namespace, table: Table) -> None:
    """Time all objectives and contenders of a size and print them."""
    rivals = contenders(bench, against)
    calls: dict[str, Callable[[], object]] = {}
    for name in objectives:
        calls[name] = lambda name=name: bench.step(name)
        example = bench.stepper.example(0, name, (0,))
        for rival, loop in rivals.items():
            if rival.startswith("field") == (name != "autoregressive"):
                call = functools.partial(loop.step, example)
                calls[f"{name} {rival}"] = with_usual_memory(call) if options.usual_memory else call
        if "field" in rivals and name != "autoregressive":
            apart = same_loss(bench, rivals["field"], name)  # type: ignore[arg-type]
            print(f"{bench.size} {name}: the loss and the field's differ by {apart:.1e} (float32, same weights)")
    turns = take_turns(calls, options.repeats, precision=bench.stepper.precision)
    tokens = bench.stepper.loader.windows_per_slice * bench.stepper.loader.context
    first = objectives[0]
    for name in objectives:
        table.add(
            f"{bench.size} {name}",
            1e3 * turns.median(name),
            tokens / turns.median(name),
            turns.matmul_share(name, bench.flops(name)),
            turns.mebibytes[name],
            turns.ratio(name, first),
            bench.flops(name) / bench.flops(first),
            *(turns.ratio(f"{name} {rival}", name) if f"{name} {rival}" in calls else None for rival in against),
        )


def main() -> None:
    """Measure all sizes and objectives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=7)
    parser.add_argument("--sizes", default="5m")
    parser.add_argument("--objectives", default=OBJECTIVES, help="the first is what the ratios are to")
    parser.add_argument("--pieces", type=int, help="text pieces of the vocabulary instead of the size's own")
    parser.add_argument("--against", default="plain,compiled,field", help="contenders, see above")
    parser.add_argument("--eager", action="store_true", help="compile nothing of the library's (contenders as named)")
    parser.add_argument("--usual-memory", action="store_true", help="contenders under the C library's own settings")
    options = parser.parse_args()
    precision = begin(options)
    compiled = not options.eager and compiler() is not None
    keep_memory()
    print("eager" if not compiled else "pieces of the layers compiled")
    against = [name for name in options.against.split(",") if name]
    numbers = {"ms": ",.1f", "tokens/s": ",.0f", "of matmul": ".2f", "peak MiB": ",.0f"}
    ratios = {"x AR time": ".2f", "x AR FLOPs": ".2f", **{f"x {name}": ".2f" for name in against}}
    table = Table({"step": "", **numbers, **ratios})
    objectives = options.objectives.split(",")
    for size in options.sizes.split(","):
        bench = make_bench(size, objectives, precision, compiled=compiled, pieces=options.pieces)
        measure(bench, objectives, against, options, table)
    finish(options, table, compiled=compiled)


if __name__ == "__main__":
    main()
