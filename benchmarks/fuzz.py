"""Give damaged files to everything that reads what a stranger may send, and count how it takes them.

usage: python benchmarks/fuzz.py [--cases 100000] [--minutes N] [--seed 0] [--targets recipe,corpus] [--out FOLDER]
       python benchmarks/fuzz.py --replay recipe:1234 [--seed 0]        one case again, with its traceback
       python benchmarks/fuzz.py --replay recipe:FILE                   a file that was saved
       python benchmarks/fuzz.py --atheris recipe [--minutes 1]         guided by coverage, where atheris is installed

A case is a valid file, damaged by a function of (seed, target, number) alone. Each target runs in a process of its
own with 1 GiB beside what it holds at its start; a case that takes more than 5 seconds is a hang, also inside a
library that hears no alarm. A correct read, or an error of the program's own that names the file, is well; anything
else is a defect: it is saved with the command that shows it again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
# Before this folder, whose own `fuzz` is this file.
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def instrumented() -> contextlib.AbstractContextManager[object]:
    """Have what is imported tell atheris where it goes, if atheris is asked for."""
    if "--atheris" not in sys.argv:
        return contextlib.nullcontext()
    try:
        import atheris  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit("atheris is not installed: pip install atheris") from None
    return atheris.instrument_imports(include=["crossover", "yaml", "csv", "json"])


with instrumented():
    from fuzz.mutations import mutate  # pyright: ignore[reportMissingImports]
    from fuzz.targets import SECONDS, TARGETS, Outcome, Shooting  # pyright: ignore[reportMissingImports]

MEMORY_BYTES = 1 << 30
# After this long inside a library the process is killed; twice the time of a case.
GRACE_SECONDS = 2 * SECONDS
SHOWN = 40


@dataclass
class Tally:
    """What became of a target's cases."""

    cases: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    defects: list[tuple[int, str, str]] = field(default_factory=list)

    def note(self, number: int, kind: str, told: str, seconds: float) -> None:
        """Count a case."""
        self.cases, self.seconds = self.cases + 1, self.seconds + seconds
        self.kinds[kind] += 1
        self.slowest = max(self.slowest, (seconds, number))
        if kind in ("traceback", "hang", "unnamed", "long", "crash"):
            self.defects.append((number, kind, told))


def case(shooting: Shooting, seed: int, number: int) -> bytes:
    """Make a case."""
    rng = Random(f"{seed} {shooting.target.name} {number}")
    return mutate(rng, rng.choice(shooting.contents), shooting.target.kind)


def bound_memory(more_bytes: int) -> None:
    """Bound this process's memory to so much more than it holds."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def shoot(name: str, seed: int, numbers: range, place: Path, shared: mmap.mmap, pipe: int, until: float) -> None:
    """Give a target its cases, in a process of its own; every outcome is a line to the pipe."""
    warnings.simplefilter("error")
    with os.fdopen(pipe, "w", encoding="utf-8", buffering=1) as out:
        shooting = Shooting(TARGETS[name], place)
        # Everything that a reader imports late is imported before memory is bounded.
        for content in shooting.contents:
            outcome = shooting.give(content, seconds=60.0)
            if outcome.defect:
                out.write(json.dumps([-1, "traceback", f"a valid file: {outcome.told}", 0.0]) + "\n")
        bound_memory(MEMORY_BYTES)
        for number in numbers:
            if time.monotonic() > until:
                break
            shared[:16] = struct.pack("<qd", number, time.monotonic())
            found = shooting.give(case(shooting, seed, number))
            told = found.told if found.defect else ""
            out.write(json.dumps([number, found.kind, told, round(found.seconds, 6)]) + "\n")
        shared[:16] = struct.pack("<qd", -2, time.monotonic())


def run_target(name: str, seed: int, cases: int, place: Path, until: float) -> Tally:
    """Give a target its cases; a process that dies or hangs is a defect, and the next one goes on after it."""
    tally, first = Tally(), 0
    while first < cases and time.monotonic() < until:
        shared = mmap.mmap(-1, 16)
        shared[:16] = struct.pack("<qd", -1, time.monotonic())
        with tempfile.TemporaryFile() as log:
            child = os.fork()
            if child == 0:
                try:
                    shoot(name, seed, range(first, cases), place, shared, os.dup(log.fileno()), until)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(9)
            status, hung = wait(child, shared)
            log.seek(0)
            for line in log.read().decode("utf-8", "replace").splitlines():
                if line.endswith("]"):
                    tally.note(*json.loads(line))
        number, _ = struct.unpack("<qd", shared[:16])
        if number == -2 or (number == -1 and status == 0):
            break
        why = f"more than {GRACE_SECONDS:g} s inside a library" if hung else f"the process died (status {status})"
        tally.note(number, "hang" if hung else "crash", why, GRACE_SECONDS if hung else 0.0)
        if number < 0:
            break
        first = number + 1
    return tally


def wait(child: int, shared: mmap.mmap) -> tuple[int, bool]:
    """Wait for a process; kill it when a case of it takes too long."""
    hung = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, hung
        number, since = struct.unpack("<qd", shared[:16])
        if number >= 0 and time.monotonic() - since > GRACE_SECONDS and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)


def shares(names: list[str], cases: int) -> dict[str, int]:
    """Share cases out over targets."""
    total = sum(TARGETS[name].share for name in names)
    return {name: -int(-cases * TARGETS[name].share // total) for name in names}


def show(tallies: dict[str, Tally]) -> None:
    """Print the table."""
    width = max(map(len, tallies)) + 2
    print(f"{'target':<{width}}{'cases':>8}{'read':>8}{'refused':>9}{'defects':>9}{'ms/case':>9}{'slowest ms':>12}")
    for name, tally in tallies.items():
        read, defects = tally.kinds["read"], len(tally.defects)
        mean = 1000 * tally.seconds / max(1, tally.cases)
        print(
            f"{name:<{width}}{tally.cases:>8,}{read:>8,}{tally.cases - read - defects:>9,}{defects:>9,}"
            f"{mean:>9.2f}{1000 * tally.slowest[0]:>12.1f}"
        )
    kinds: Counter[str] = sum((tally.kinds for tally in tallies.values()), Counter())
    slowest, name = max((tally.slowest, name) for name, tally in tallies.items())
    print(f"\n{sum(tally.cases for tally in tallies.values()):,} cases: "
          + ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common()))  # fmt: skip
    print(f"slowest: {slowest[0]:.3f} s, --replay {name!r}:{slowest[1]}")
    broken = sum(kinds[kind] for kind in ("traceback", "crash", "unnamed", "long"))
    print(f"tracebacks {kinds['traceback']}, crashes {kinds['crash']}, hangs {kinds['hang']}, "
          f"unclear messages {broken - kinds['traceback'] - kinds['crash']}")  # fmt: skip


def save(tallies: dict[str, Tally], seed: int, out: Path) -> int:
    """Save what is broken, one case for each way of breaking; say how to see it again."""
    count = 0
    for name, tally in tallies.items():
        seen: set[str] = set()
        count += len(tally.defects)
        for number, kind, told in tally.defects:
            way = f"{kind} {told[told.rfind('(') :]}" if kind == "traceback" else kind
            if way in seen or len(seen) >= SHOWN:
                continue
            seen.add(way)
            print(f"\n{name} {number}: {kind}: {told}")
            if number >= 0:
                with tempfile.TemporaryDirectory() as place:
                    content = case(Shooting(TARGETS[name], Path(place, "place")), seed, number)
                out.mkdir(parents=True, exist_ok=True)
                file = out / f"{name.replace('/', '-').replace(' ', '-')}-{seed}-{number}"
                file.write_bytes(content)
                print(f"  python benchmarks/fuzz.py --replay '{name}:{file}'")
    return count


def replay(asked: str, seed: int) -> Outcome:
    """Show one case again."""
    name, _, which = asked.rpartition(":")
    with tempfile.TemporaryDirectory() as place:
        shooting = Shooting(TARGETS[name], Path(place))
        content = case(shooting, seed, int(which)) if which.isdecimal() else Path(which).read_bytes()
        print(f"{len(content):,} bytes: {content[:600]!r}")
        outcome = shooting.give(content, seconds=60.0)
        print(f"{outcome.kind} after {outcome.seconds:.3f} s: {outcome.told}")
        if outcome.kind == "traceback":
            shooting.target.read(shooting.folder)
    return outcome


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default="", help="parts of names, by commas")
    parser.add_argument("--out", type=Path, default=Path("fuzz-defects"))
    parser.add_argument("--replay", metavar="TARGET:CASE")
    parser.add_argument("--atheris", metavar="TARGET")
    asked = parser.parse_args()
    if asked.replay:
        raise SystemExit(replay(asked.replay, asked.seed).defect)
    if asked.atheris:
        guided(asked.atheris, asked.minutes)
        return
    parts = asked.targets.split(",")
    names = [name for name in TARGETS if any(part in name for part in parts)]
    until = time.monotonic() + 60 * asked.minutes
    tallies: dict[str, Tally] = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        for number, (name, cases) in enumerate(shares(names, asked.cases).items()):
            tallies[name] = run_target(name, asked.seed, cases, Path(place, str(number)), until)
    show(tallies)
    print(f"{time.monotonic() - begun:.0f} s")
    raise SystemExit(save(tallies, asked.seed, asked.out) > 0)


def guided(name: str, minutes: float) -> None:
    """Let atheris look for inputs that reach new code."""
    import atheris  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("error")
    place = tempfile.mkdtemp()
    with instrumented():
        shooting = Shooting(TARGETS[name], Path(place, "place"))
        shooting.give(shooting.contents[0], seconds=60.0)
    corpus = Path(place, "corpus")
    corpus.mkdir()
    for number, content in enumerate(shooting.contents):
        (corpus / str(number)).write_bytes(content)

    def one(data: bytes) -> None:
        outcome = shooting.give(data)
        if outcome.defect:
            raise AssertionError(f"{outcome.kind}: {outcome.told}")

    def damaged(data: bytes, size: int, seed: int) -> bytes:
        return mutate(Random(seed), data, shooting.target.kind)[:size]

    limits = [f"-max_total_time={int(60 * minutes)}", "-max_len=65536", "-rss_limit_mb=8000", "-timeout=20"]
    atheris.Setup([sys.argv[0], str(corpus), *limits], one, custom_mutator=damaged)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
