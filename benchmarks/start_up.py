"""Time how long a person waits: for help, for the doctor, and from the command to the end of the first training step.

usage: python benchmarks/start_up.py [--repeats 5] [--runs 1] [--recipe recipes/tiny.yaml] [--skip-runs] [--json FILE]

Each row starts a program. The first table holds the median of --repeats starts, in turns, after one start that does not
count: files are in memory then, which the first start after a boot does not find. The rows without `crossover` are what
it stands on. The second table holds runs of `crossover train` in fresh folders, in this order: without prepared text;
with it; compiled with an empty compile cache; and compiled with the cache that this left. A run is stopped when its
first step is recorded. It is one start unless --runs says more.

The program does not say when its first step ended, so a run's time is an upper end, taken from outside: from the
command to when the first row of `steps.jsonl` could be read. What is compiled is compiled before that step. Peak memory
is the largest of the program's and of those that it waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import Table, add_options, finish, load, maxrss_mebibytes

ROOT = Path(__file__).resolve().parents[1]
CROSSOVER = (sys.executable, "-m", "crossover")
PROGRAMS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import crossover.cli": (sys.executable, "-c", "import crossover.cli"),
    "crossover --help": (*CROSSOVER, "--help"),
    "crossover train --help": (*CROSSOVER, "train", "--help"),
    "import torch": (sys.executable, "-c", "import torch"),
    "import its Llama, too": (sys.executable, "-c", "import torch, transformers.models.llama.modeling_llama"),
    "crossover doctor": (*CROSSOVER, "doctor"),
}
TARGETS = {
    "crossover --help": 0.3,
    "crossover train --help": 0.3,
    "eager, no text yet": 60.0,
    "eager": 20.0,
    "compiled, cold": 60.0,
    "compiled, warm": 20.0,
}
# The row that others are compared with: what none of them can do without.
BARE = "python -c pass"
LONGEST_SECONDS = 600.0


@dataclass(frozen=True)
class Start:
    """What a started program needed.

    Args:
        seconds: From its start to the end of what was waited for.
        mebibytes: Its highest resident memory.
    """

    seconds: float
    mebibytes: float


def spawn(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program whose words go into a file."""
    with log.open("wb") as words:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env={**os.environ, **environment}, cwd=ROOT
        )


def wait(process: subprocess.Popen[bytes], log: Path, fine: Sequence[int]) -> float:
    """Wait for a program's end and give its peak memory in MiB; end with its words if it failed."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in fine:
        raise SystemExit(f"{process.args} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return maxrss_mebibytes(usage)


def start_program(command: Sequence[str], folder: Path) -> Start:
    """Run a program to its end."""
    log = folder / "log.txt"
    begin = time.perf_counter()
    process = spawn(command, log, {})
    memory = wait(process, log, (0,))
    return Start(time.perf_counter() - begin, memory)


def first_row(path: Path) -> dict[str, Any] | None:
    """Read the first row of steps once it is whole."""
    content = path.read_bytes() if path.exists() else b""
    return json.loads(content.splitlines()[0]) if b"\n" in content else None


def start_run(recipe: str, compiled: bool, cache: Path, folder: Path, threads: int) -> Start:
    """Start a run, wait for its first recorded step and stop it."""
    log, run = folder / "log.txt", folder / "run"
    command = [*CROSSOVER, "train", recipe, f"training.compile={'on' if compiled else 'off'}"]
    command += [f"training.threads={threads}", "--run-dir", str(run)]
    places = {"CROSSOVER_CACHE": str(cache / "text"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    begin = time.perf_counter()
    process = spawn(command, log, places)
    row = None
    while row is None and process.poll() is None and time.perf_counter() - begin < LONGEST_SECONDS:
        time.sleep(0.02)
        row = first_row(run / "steps.jsonl")
    seen = time.perf_counter() - begin
    if row is None:
        process.kill()
        raise SystemExit(f"{recipe}: no step was recorded in {seen:.0f} s:\n{log.read_text()[-2000:]}")
    process.send_signal(signal.SIGTERM)
    # A tiny run may have ended by itself in the meantime.
    memory = wait(process, log, (0, 130))
    return Start(seen, memory)


def measure_programs(repeats: int, table: Table) -> None:
    """Print a row per program, which take turns."""
    taken: dict[str, list[Start]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The longest program reads all the files that the others read, too.
        start_program(PROGRAMS["crossover doctor"], Path(folder))
        for _ in range(repeats):
            for name, command in PROGRAMS.items():
                taken[name].append(start_program(command, Path(folder)))
    for name, starts in taken.items():
        spent = statistics.median(start.seconds for start in starts)
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(starts, taken[BARE], strict=True))
        table.add(name, spent, TARGETS.get(name), verdict(name, spent), ratio, max(s.mebibytes for s in starts))


def verdict(name: str, spent: float) -> str | None:
    """Say whether a target was met, or None where there is none."""
    return ("yes" if spent < TARGETS[name] else "NO") if name in TARGETS else None


def measure_runs(options: argparse.Namespace, table: Table) -> None:
    """Print a row per way of starting a run."""
    ways = {"eager, no text yet": False, "eager": False, "compiled, cold": True, "compiled, warm": True}
    taken: dict[str, list[Start]] = {name: [] for name in ways}
    for _ in range(options.runs):
        # Every repeat begins with empty caches of text and of compiled code, and the rows fill them for one another.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            for name, compiled in ways.items():
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                    start = start_run(options.recipe, compiled, Path(cache), Path(folder), options.threads)
                    taken[name].append(start)
    for name, starts in taken.items():
        spent = statistics.median(start.seconds for start in starts)
        ratio = statistics.median(a.seconds / b.seconds for a, b in zip(starts, taken["eager"], strict=True))
        memory = max(start.mebibytes for start in starts)
        table.add(name, spent, TARGETS.get(name), verdict(name, spent), ratio, memory)


def main() -> None:
    """Measure programs, then runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repeats=5)
    parser.add_argument("--runs", type=int, default=1, help="how often each run is started (1)")
    parser.add_argument("--recipe", default="recipes/tiny.yaml", help="what is trained (recipes/tiny.yaml)")
    parser.add_argument("--skip-runs", action="store_true", help="time the programs only")
    options = parser.parse_args()
    print(f"seconds; median of {options.repeats} starts, of {options.runs} for runs; {load()}")
    columns = {"seconds": ".3f", "target": ".1f", "met": ""}
    programs = Table({"program": "", **columns, "x bare": ".1f", "peak MiB": ",.0f"})
    measure_programs(options.repeats, programs)
    columns.update({"x eager": ".2f", "peak MiB": ",.0f"})
    runs = Table({"to the end of step 1": "", **columns})
    if not options.skip_runs:
        print()
        measure_runs(options, runs)
    finish(options, programs, runs=runs.rows)


if __name__ == "__main__":
    main()
