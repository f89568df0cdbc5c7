"""Measure the peak memory of a masked step over a large vocabulary, against the field's way.

usage: python benchmarks/memory.py [--size 5m] [--pieces 32768] [--tokens 16384] [--objective masked] [--json FILE]

Each contender runs three steps in a process of its own. Prints the peak of resident memory, what of it is above the
process just before the first step (weights and libraries are there by then; gradients and optimizer states are not),
and the ratio of both to the field's (benchmarks/reference.py: eager, head on all states, full log-softmax).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from table import Table, finish

STEPS = 3


def measure(options: argparse.Namespace) -> None:
    """Take the steps of one contender in this process and print its resident memory before them and at its peak."""
    import torch
    from step import SIZES, contenders, make_bench
    from table import forget_peak_memory, peak_mebibytes

    from crossover.training.machine import fast_bfloat16

    torch.set_num_threads(options.threads)
    context, *_ = SIZES[options.size]
    SIZES[options.size] = (context, options.tokens // context, options.pieces)
    precision = "bfloat16" if fast_bfloat16("cpu")[0] else "float32"
    bench = make_bench(options.size, [options.objective], precision, compiled=False)
    rival = contenders(bench, ["field"])["field"] if options.contender == "field" else None
    example = bench.stepper.example(0, options.objective, (0,))
    forget_peak_memory()
    before = peak_mebibytes()
    for _ in range(STEPS):
        bench.step(options.objective) if rival is None else rival.step(example)
    print(before, peak_mebibytes())


def main() -> None:
    """Measure both contenders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="5m")
    parser.add_argument("--pieces", type=int, default=32_768)
    parser.add_argument("--tokens", type=int, default=16_384, help="B x T (16384)")
    parser.add_argument("--objective", default="masked")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--contender", choices=["crossover", "field"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        measure(options)
        return
    found = {}
    for name in ("crossover", "field"):
        command = [sys.executable, *sys.argv, "--contender", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{name}: ended with {done.returncode}; {done.stderr.strip()[-300:] or 'perhaps out of memory'}")
        found[name] = [float(word) for word in done.stdout.split()[-2:]]
    numbers = {"peak MiB": ",.0f", "of steps MiB": ",.0f", "x field peak": ".2f", "x field of steps": ".2f"}
    table = Table({"contender": "", **numbers})
    whole, steps = found["field"][1], found["field"][1] - found["field"][0]
    for name, (before, peak) in found.items():
        table.add(name, peak, peak - before, peak / whole, (peak - before) / steps)
    finish(options, table)


if __name__ == "__main__":
    main()
