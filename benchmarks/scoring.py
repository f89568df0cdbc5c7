"""Time each scoring procedure by the number of inputs in a forward pass, against the machine's matrix products.

usage: python benchmarks/scoring.py [--repeats 5] [--size 1m] [--context 256] [--inputs 512,2048,8192]
                                    [--draws 4] [--positions 4] [--threads 1] [--json FILE]

Prints, for `ar`, `l2r`, `nelbo` and `nelbo(16)`: tokens of scored windows per second (with all draws and positions that
their scores need), inputs per second, useful FLOPs as a share of the rate of a matrix product at the compute precision
(measured in each repeat), the share of the time in which rows are made rather than computed, the highest resident
memory of the process while it ran, and the time as a ratio to the usual number of inputs. All take turns in one
process; the text is random, the weights are fresh.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import numpy as np
from table import Table, Turns, add_options, begin, finish, synthetic_vocabulary, take_turns

from crossover.model.backbone import Backbone, build
from crossover.model.shapes import Shape, Workload, forward_flops, live_entries, shape_of
from crossover.scoring import procedures
from crossover.scoring.likelihood import score
from crossover.scoring.procedures import Procedure, Rows, procedure_of
from crossover.scoring.windows import ScoringWindows
from crossover.sections import ModelRecipe

NAMES = ("ar", "l2r", "nelbo", "nelbo(16)")
PIECES = 4096


@dataclass(frozen=True)
class Case:
    """One procedure at one number of inputs a pass.

    Args:
        procedure: How windows are scored.
        windows: What is scored: so much that the largest pass is full.
        inputs: Inputs of a forward pass, about.
    """

    procedure: Procedure
    windows: ScoringWindows
    inputs: int

    def rows(self, model: Backbone) -> Iterator[Rows]:
        """Yield what has to be computed, in passes of this size."""
        with mock.patch.object(procedures, "INPUTS_PER_PASS", self.inputs):
            yield from self.procedure.rows(self.windows, model.vocabulary)


def make_windows(count: int, context: int) -> ScoringWindows:
    """Make full windows of random text, each a document of its own."""
    return ScoringWindows(
        tokens_WT=np.random.default_rng(0).integers(0, PIECES, (count, context)),
        lengths_W=np.full(count, context),
        bytes_W=np.full(count, 3 * context),
        documents_W=np.arange(count),
    )


def make_cases(options: argparse.Namespace, sizes: list[int]) -> dict[str, Case]:
    """Name all procedures at all sizes."""
    cases = {}
    for name in NAMES:
        procedure = procedure_of(name, draws=options.draws, positions=options.positions)
        copies = {"ar": 1, "l2r": options.positions, "nelbo": options.draws}.get(name, 2 * options.draws)
        windows = make_windows(max(1, max(sizes) // options.context // copies), options.context)
        cases.update({f"{name} {inputs}": Case(procedure, windows, inputs) for inputs in sizes})
    return cases


def work_of(case: Case, model: Backbone, shape: Shape) -> tuple[int, float, int]:
    """Count the inputs, the useful FLOPs and the passes of a case."""
    inputs, flops, passes = 0, 0.0, 0
    for rows in case.rows(model):
        count, each = rows.inputs_QN.shape
        work = Workload(each, len(rows.reads_R) / count, live_entries(rows.pattern, each))
        inputs, passes = inputs + count * each, passes + 1
        flops += count * forward_flops(shape, work, head_rows=model.vocabulary.predictable)
    return inputs, flops, passes


def exhaust(rows: Iterator[Rows]) -> None:
    """Make rows and forget them."""
    for _ in rows:
        pass


def report(cases: dict[str, Case], turns: Turns, model: Backbone, shape: Shape, usual: int) -> Table:
    """Print a row per case."""
    heads = {"tokens/s": ",.0f", "inputs/s": ",.0f", "of matmul": ".2f", "making rows": ".1%", "peak MiB": ",.0f"}
    table = Table({"procedure, inputs": "", "passes": ",", **heads, f"x {usual}": ".3f"})
    for name, case in cases.items():
        inputs, flops, passes = work_of(case, model, shape)
        spent, same = turns.median(name), f"{name.rsplit(' ', 1)[0]} {usual}"
        table.add(
            name,
            passes,
            case.windows.lengths_W.sum() / spent,
            inputs / spent,
            turns.matmul_share(name, flops),
            turns.ratio(f"{name} rows", name),
            turns.mebibytes[name],
            turns.ratio(name, same) if same in cases else None,
        )
    return table


def main() -> None:
    """Measure all procedures at all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5)
    parser.add_argument("--size", default="1m", help="preset (1m)")
    parser.add_argument("--context", type=int, default=256, help="data tokens of a window (256)")
    parser.add_argument("--inputs", default="512,2048,8192", help="inputs of a pass, beside the usual (512,2048,8192)")
    parser.add_argument("--draws", type=int, default=4, help="draws per window of a bound (4)")
    parser.add_argument("--positions", type=int, default=4, help="positions per window of l2r (4)")
    options = parser.parse_args()
    precision, usual = begin(options), procedures.INPUTS_PER_PASS
    sizes = sorted({usual, *map(int, options.inputs.split(","))})
    words = synthetic_vocabulary(PIECES)
    shape = shape_of(ModelRecipe(preset=options.size), words.size)
    model = build(shape, words, context=options.context, seed=0)
    cases = make_cases(options, sizes)
    calls: dict[str, Callable[[], object]] = {}
    for name, case in cases.items():
        calls[name] = lambda case=case: score(
            model, case.windows, case.procedure, precision=precision, rows=case.rows(model)
        )
        calls[f"{name} rows"] = lambda case=case: exhaust(case.rows(model))
    turns = take_turns(calls, options.repeats, precision=precision, warm_up=1)
    finish(options, report(cases, turns, model, shape, usual), usual_inputs=usual)


if __name__ == "__main__":
    main()
