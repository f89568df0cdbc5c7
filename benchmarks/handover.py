"""Check that handovers cost nothing: one compiled run through autoregressive, block(4), block(16) and masked.

usage: python benchmarks/handover.py [--size 1m] [--threads 1] [--epochs 0.4] [--json FILE]

Runs `block_growth` as a run would, everything compiled before the first step, and prints, for each phase, the steps,
the median milliseconds of its first 8 steps and of the rest, their ratio, and the graphs compiled in it. The targets:
no graph after the first step, and a ratio within 5%. The first step of a phase is in neither median but has a column.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from table import Table, begin, finish

from crossover.data.prepare import prepare
from crossover.evidence.files import read_json
from crossover.evidence.run import RunFolder
from crossover.recipe import load, to_tree
from crossover.training import train as loop
from crossover.training.compilation import graphs
from crossover.training.step import Stepper

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
EARLY = 8


@contextmanager
def watched(rows: list[tuple[str, float, int]]) -> Iterator[None]:
    """Note the kind, seconds and graphs of each step; the loss is read, so that the step is over."""
    take = Stepper.run

    def step(self: Stepper, number: int, kinds: tuple[str, ...], factor: float) -> Any:
        before, start = graphs(), time.perf_counter()
        result = take(self, number, kinds, factor)
        float(result.loss)
        rows.append((kinds[0], time.perf_counter() - start, graphs() - before))
        return result

    with mock.patch.object(Stepper, "run", step), mock.patch.object(loop, "finish", lambda *arguments: None):
        yield


def main() -> None:
    """Train the run and print its phases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=1.0, help="epochs of each size (1)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    begin(options)
    given = [f"model.preset={options.size}", "training.compile=on", f"training.threads={options.threads}"]
    given += [f"controller=block_growth({options.epochs})", "data.context=128"]
    recipe = load(RECIPE, given)
    text = prepare(recipe.data, seed=0)
    tokens = int(4 * options.epochs * len(text.train_tokens(with_control=True)) / 0.7) + 1
    recipe = load(RECIPE, [*given, f"budget={{tokens: {tokens}}}"])
    rows: list[tuple[str, float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with RunFolder(run, terminal=False).create(to_tree(recipe)) as recorder, watched(rows):
            loop.train(recipe, text, run, recorder, None, notify=print)
        counted = read_json(run / "ledger.json")["graphs"]
    numbers = {"steps": ",.0f", "first ms": ",.1f", "early ms": ",.1f", "rest ms": ",.1f", "early / rest": ".3f"}
    table = Table({"phase": "", **numbers, "graphs": ".0f"})
    for kind, phase in itertools.groupby(rows, key=lambda row: row[0]):
        steps = list(phase)
        spent = [1e3 * row[1] for row in steps]
        early, rest = statistics.median(spent[1 : 1 + EARLY]), statistics.median(spent[1 + EARLY :])
        table.add(kind, len(steps), spent[0], early, rest, early / rest, sum(row[2] for row in steps))
    print(f"the run's own count: {counted['before_first_step']} graphs before the first step, {counted['later']} later")
    finish(options, table, graphs=counted)


if __name__ == "__main__":
    main()
