"""Say what a step's time goes to: matrix products, and a table of what takes the rest.

usage: python benchmarks/breakdown.py [--sizes 5m,25m] [--objective autoregressive] [--threads 1] [--steps 3] [--eager]

Profiles whole steps with torch's profiler, sorts every operator's own time into a few groups, and prints each group's
milliseconds a step and its share. The last line is the rate of the matrix products alone against that of a plain
product measured in this process: what is lost inside of them, because their shapes are what they are.
"""

from __future__ import annotations

import argparse

from step import make_bench
from table import Table, add_options, begin, finish, matmul_rate
from torch.profiler import ProfilerActivity, profile

from crossover.training.machine import compiler, keep_memory

GROUPS = {
    "products outside attention": ("aten::mm", "aten::addmm", "aten::linear"),
    "products of attention": ("aten::bmm", "aten::baddbmm", "aten::baddbmm_", "aten::addmm_", "scaled_dot_product"),
    "softmax and its gradient": ("softmax",),
    "norms, rotations, gates (compiled)": ("CompiledFxGraph",),
    "optimizer and clipping": ("adamw", "foreach", "linalg_vector_norm", "Optimizer"),
    "copies, fills, allocation": ("copy_", "fill_", "zero_", "empty", "cat", "clone", "index_select"),
}
OTHER = "other elementwise work and the interpreter"


def group_of(name: str) -> str:
    """Name the group of an operator."""
    for group, parts in GROUPS.items():
        if name in parts or any(part in name for part in parts if not part.startswith("aten::")):
            return group
    return OTHER


def main() -> None:
    """Profile all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=3)
    parser.add_argument("--sizes", default="5m")
    parser.add_argument("--objective", default="autoregressive")
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    precision = begin(options)
    keep_memory()
    table = Table({"group": "", "ms a step": ",.1f", "of the step": ".1%"}, first_width=46)
    for size in options.sizes.split(","):
        compiled = not options.eager and compiler() is not None
        bench = make_bench(size, [options.objective], precision, compiled=compiled)
        for _ in range(3):
            bench.step(options.objective)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(options.repeats):
                bench.step(options.objective)
        spent = dict.fromkeys([*GROUPS, OTHER], 0.0)
        for event in profiled.key_averages():
            spent[group_of(event.key)] += event.self_cpu_time_total / 1e3 / options.repeats
        whole = sum(spent.values())
        for group, taken in spent.items():
            table.add(f"{size} {group}", taken, taken / whole)
        table.add(f"{size} the step", whole, 1.0)
        products = spent["products outside attention"] + spent["products of attention"]
        rate = bench.flops(options.objective) / products * 1e3 / matmul_rate(precision)
        print(f"{size}: useful FLOPs at the products' own time alone would be {rate:.2f} of the matrix product's rate")
    finish(options, table)


if __name__ == "__main__":
    main()
