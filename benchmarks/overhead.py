"""Time what a run spends on writing about itself: log rows, ledger and progress, against the whole of its training.

usage: python benchmarks/overhead.py [--sizes 250k,1m] [--tokens 160000] [--repeats 5] [--threads 1] [--json FILE]

Trains the beginning of recipes/quickstart.yaml into real run folders, the sizes in turns, with evaluations and
checkpoints as far apart as in the whole of it, and times every call of the recorder and of the bookkeeping around it
(the loop's clock, and the flush that reads the losses) where it happens. The whole is the time of training without
evaluations and checkpoints, which are listed beside it. Prints medians over the repeats; all of the writing together
should not pass 1%. On a GPU the flush also waits for the steps before it, so that its line says little there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from table import Table, add_options, begin, finish

from crossover.data.prepare import prepare
from crossover.evidence.files import read_json
from crossover.evidence.run import RunFolder
from crossover.recipe import load, to_tree
from crossover.training import checkpoint
from crossover.training import train as loop

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
# Calls of the recorder, and functions of the loop that are there only for what is written.
RECORDER = ("step", "evaluation", "decision", "signal", "ledger", "progress", "flush")
LOOP = ("clock", "_flush", "_show", "_ledger")
CHECKPOINT_TOKENS = 80_000
ALL, BESIDE = "all of the writing", ("evaluations", "checkpoints")


class Spent:
    """Adds up seconds and calls by name; a timed call inside another one counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside: list[float] = []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return call(*arguments, **options)
            finally:
                taken = time.perf_counter() - start
                self.seconds[name] += taken - self._inside.pop()
                self.calls[name] += 1
                if self._inside:
                    self._inside[-1] += taken

        return wrapped


@contextmanager
def watched(spent: Spent, recorder: RunFolder) -> Iterator[None]:
    """Time the recorder, the loop's bookkeeping, evaluations and checkpoints."""
    places: list[tuple[Any, str, str]] = [(recorder, name, f"recorder.{name}") for name in RECORDER]
    places += [(loop, name, name) for name in LOOP]
    places += [(loop, "_evaluate", "evaluations"), (checkpoint, "save", "checkpoints")]
    with ExitStack() as stack:
        for owner, name, label in places:
            stack.enter_context(mock.patch.object(owner, name, spent.timed(label, getattr(owner, name))))
        # The final scores are no part of training.
        stack.enter_context(mock.patch.object(loop, "finish", lambda *arguments: None))
        yield


def train_once(size: str, options: argparse.Namespace, folder: Path) -> tuple[Spent, float, int]:
    """Train a run; returns what was timed, the seconds of training alone, and its steps."""
    given = [f"model.preset={size}", f"budget={{tokens: {options.tokens}}}", f"training.threads={options.threads}"]
    # A twentieth of the recipe's budget, whatever is trained of it here.
    recipe, spent = load(RECIPE, [*given, f"training.checkpoint_every_tokens={CHECKPOINT_TOKENS}"]), Spent()
    text = prepare(recipe.data, seed=0)
    with RunFolder(folder, terminal=False).create(to_tree(recipe)) as recorder, watched(spent, recorder):
        loop.train(recipe, text, folder, recorder, None)
    whole = read_json(folder / "ledger.json")["seconds"] - sum(spent.seconds[name] for name in BESIDE)
    return spent, whole, spent.calls["recorder.step"]


def report(size: str, runs: list[tuple[Spent, float, int]], table: Table) -> None:
    """Print a row for each part of one size."""
    names = [f"recorder.{name}" for name in RECORDER] + list(LOOP)
    for name in [*names, ALL, *BESIDE]:
        parts = names if name == ALL else [name]
        seconds = [sum(spent.seconds[part] for part in parts) for spent, _, _ in runs]
        calls = None if name == ALL else statistics.median(spent.calls[name] for spent, _, _ in runs)
        share = statistics.median(one / whole for one, (_, whole, _) in zip(seconds, runs, strict=True))
        each = [1e6 * one / steps for one, (_, _, steps) in zip(seconds, runs, strict=True)]
        table.add(f"{size} {name}", calls, statistics.median(each), share)


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5)
    parser.add_argument("--sizes", default="250k,1m", help="presets (250k,1m)")
    parser.add_argument("--tokens", type=int, default=160_000, help="data tokens of each run (160000)")
    options = parser.parse_args()
    begin(options)
    runs: dict[str, list[tuple[Spent, float, int]]] = {size: [] for size in options.sizes.split(",")}
    for repeat in range(options.repeats + 1):
        for size, done in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                done.append(train_once(size, options, Path(folder) / "run"))
            if repeat == 0:
                done.clear()
    table = Table({"part": "", "calls": ",.0f", "us a step": ",.1f", "of training": ".3%"}, first_width=26)
    for size, done in runs.items():
        report(size, done, table)
    finish(options, table)


if __name__ == "__main__":
    main()
