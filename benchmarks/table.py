"""What the benchmarks share: calls that take turns, peak memory, the rate of matrix products, an aligned table.

usage: from table import Table, add_options, ...     (it stands beside the scripts; run alone it does nothing)

Nothing here imports torch before it is asked for something of torch's: `start_up.py` starts programs, and on Linux the
peak memory of a program that was started includes what its parent held at that moment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 2
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(call: Callable[[], object]) -> float:
    """Time one call.

    Args:
        call: What is timed.

    Returns:
        Seconds.
    """
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def forget_peak_memory() -> bool:
    """Start the process's peak of resident memory anew.

    Returns:
        Whether the system can do that; where it cannot, a peak is the highest since the process began.
    """
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_mebibytes() -> float:
    """Read the process's peak of resident memory.

    Returns:
        MiB: Linux's VmHWM, elsewhere the resource module's `ru_maxrss`.
    """
    if STATUS.exists():
        line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            return int(line.split()[1]) / 1024
    return maxrss_mebibytes(resource.getrusage(resource.RUSAGE_SELF))


def maxrss_mebibytes(usage: resource.struct_rusage) -> float:
    """Read the peak of resident memory out of a process's accounts; macOS counts bytes there, Linux KiB."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass(frozen=True)
class Turns:
    """What calls needed that took turns, warm-up left out.

    Args:
        seconds: Seconds of each repeat, by name of the call.
        mebibytes: Highest resident memory while each call ran, by name.
        matmul_rates: FLOP/s of a matrix product measured in each repeat, beside the calls; empty if not asked for.
    """

    seconds: Mapping[str, list[float]]
    mebibytes: Mapping[str, float]
    matmul_rates: list[float]

    def median(self, name: str) -> float:
        """Give the median seconds of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Give the median, over repeats, of one call's seconds over another's in the same repeat."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True))

    def matmul_share(self, name: str, flops: float) -> float:
        """Give the median, over repeats, of a call's FLOP/s over the matrix product's in the same repeat.

        Args:
            name: The call.
            flops: Its useful FLOPs.
        """
        pairs = zip(self.seconds[name], self.matmul_rates, strict=True)
        return statistics.median(flops / spent / rate for spent, rate in pairs)


def take_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, precision: str | None = None, warm_up: int = WARM_UP
) -> Turns:
    """Time calls one after the other, again and again, so that a slow moment of the machine meets all of them.

    Args:
        calls: What is timed, by name.
        repeats: How many repeats count.
        precision: Compute precision in which a matrix product is timed beside the calls, or None for none.
        warm_up: Repeats before those, which do not count.

    Returns:
        What they needed.
    """
    spent: dict[str, list[float]] = {name: [] for name in calls}
    peaks, rates = dict.fromkeys(calls, 0.0), []
    for repeat in range(warm_up + repeats):
        rate = matmul_rate(precision, 0.05) if precision else 0.0
        for name, call in calls.items():
            forget_peak_memory()
            taken = seconds(call)
            if repeat >= warm_up:
                spent[name].append(taken)
                peaks[name] = max(peaks[name], peak_mebibytes())
        if repeat >= warm_up and precision:
            rates.append(rate)
    return Turns(spent, peaks, rates)


def matmul_rate(precision: str, measure_seconds: float = 0.5) -> float:
    """Measure what a matrix product reaches on this CPU now.

    Args:
        precision: "float32" or "bfloat16".
        measure_seconds: How long to measure.

    Returns:
        FLOP/s with torch's present number of threads.
    """
    from crossover.training.machine import matmul_flops_per_second

    return matmul_flops_per_second(precision, "cpu", seconds=measure_seconds)


class Table:
    """Prints rows as they come, in aligned columns, and keeps them.

    Args:
        columns: How each column's numbers are written, such as ",.1f", by its head; "" for text. The first column is
            aligned to the left.
        first_width: Characters of the first column.
    """

    def __init__(self, columns: Mapping[str, str], *, first_width: int = 24) -> None:
        self.columns = dict(columns)
        self.first_width = first_width
        self.rows: list[dict[str, Any]] = []

    def add(self, *values: float | str | None) -> None:
        """Print and keep a row.

        Args:
            values: A value per column, in order; None is printed as "-".
        """
        row = dict(zip(self.columns, values, strict=True))
        if not self.rows:
            print(self._line(self.columns))
        self.rows.append(row)
        print(
            self._line("-" if row[name] is None else format(row[name], form) for name, form in self._forms(row)),
            flush=True,
        )

    def _forms(self, row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        return ((name, "" if isinstance(row[name], str) else form) for name, form in self.columns.items())

    def _line(self, cells: Any) -> str:
        first, *others = cells
        widths = [max(10, len(name)) for name in list(self.columns)[1:]]
        padded = (f"{cell:>{width}}" for cell, width in zip(others, widths, strict=True))
        return "  ".join([f"{first:<{self.first_width}}", *padded]).rstrip()


def add_options(parser: argparse.ArgumentParser, *, repeats: int, threads: bool = True) -> None:
    """Add the options that all of these benchmarks have.

    Args:
        parser: The benchmark's own.
        repeats: The usual number of repeats.
        threads: Whether torch's threads matter to it.
    """
    parser.add_argument("--repeats", type=int, default=repeats, help=f"repeats that count ({repeats})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows with the machine's facts, too")
    if threads:
        parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")


def begin(options: argparse.Namespace) -> str:
    """Set the threads, choose the compute precision as a run does, and print what the machine is like.

    Args:
        options: Those of `add_options`.

    Returns:
        "float32" or "bfloat16".
    """
    import torch

    from crossover.training.machine import fast_bfloat16

    torch.set_num_threads(options.threads)
    fast, why = fast_bfloat16("cpu")
    precision = "bfloat16" if fast else "float32"
    print(f"threads {options.threads}; compute in {precision}: {why}")
    print(f"matrix products in {precision}: {matmul_rate(precision) / 1e9:.1f} GFLOP/s; {load()}")
    return precision


def load() -> str:
    """Say how busy the machine is, for a reader who must judge the figures."""
    return f"load average of the last minute before the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def finish(options: argparse.Namespace, table: Table, **extra: Any) -> None:
    """Write the rows as JSON if that was asked for.

    Args:
        options: Those of `add_options`.
        table: The rows.
        extra: What else the file should hold.
    """
    if options.json is None:
        return
    from crossover.training.machine import facts

    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    tree = {"benchmark": Path(sys.argv[0]).stem, "options": given, **extra, **facts(), "rows": table.rows}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")


def synthetic_vocabulary(pieces: int, *, ends: bool = True) -> Any:
    """Make a vocabulary with aligned special ids, as the tokenizers here do.

    Args:
        pieces: Text pieces.
        ends: Whether a model may draw the end of a document; if not, every sample has its full length.

    Returns:
        A `crossover.records.Vocabulary`.
    """
    from crossover.records import Vocabulary

    mask = pieces + 16
    return Vocabulary(pieces + 64, mask, pieces, pieces + 1 if ends else mask, mask)
