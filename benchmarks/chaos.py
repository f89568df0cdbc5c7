"""Inject faults into real runs, let each go on, and compare it with a run that nothing happened to.

usage: python benchmarks/chaos.py [--faults 120] [--minutes 15] [--seed 0] [--only WORD ...]
       [--without WORD ...] [--out FOLDER]

Each row of the table is a kind of fault; `injected/` says what each one does. A tiny run that uses everything a resume
has to restore (averages, dropout, a mix that moves, two modes that are scored) is started in a folder of its own. It
meets its fault; what a message tells its user to do is done; then the same command is given until the run is finished.

    faults      faults that took effect (a run may meet several; one that came too late is not counted)
    runs        runs that met one, and *continued* those that went on to their end, having said what they had to
    bytes lost  of rows and files that the undisturbed run has and this one has not
    wrong       runs with a row or file that is not, bit for bit, the undisturbed run's: steps, evaluations, signals,
                decisions, ledger, scores, newest checkpoint, best weights, exported model; the clock on the wall aside

It ends after so many faults or minutes, whichever comes first, and fails if one run did not continue, lost a byte or
differs. Processes begin by forking from one that has imported everything, so that a fault takes seconds; nothing else
is different. What was injected follows from the seed; at which instant a process died of a timed kill does not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from injected.kinds import Kind, kinds_here
from injected.scene import Scene, Stage
from injected.subject import Subject
from table import Table, load

COLUMNS = ("faults", "runs", "continued", "bytes lost", "wrong")


@dataclass
class Row:
    """What came of a kind of fault.

    Args:
        faults: Faults that took effect.
        runs: Runs that met them.
        continued: Runs that ended as they should.
        lost_bytes: Bytes that such runs lack.
        wrong: Runs that differ from the undisturbed one.
        problems: What was not as it should be, in words.
    """

    faults: int = 0
    runs: int = 0
    continued: int = 0
    lost_bytes: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def cells(self) -> tuple[int, ...]:
        """Give the row's numbers."""
        return self.faults, self.runs, self.continued, self.lost_bytes, self.wrong


def play(kind: Kind, scene: Scene, row: Row) -> None:
    """Inject one fault and count what came of it."""
    row.runs += 1
    try:
        row.faults += kind(scene)
        verdict = scene.end()
    except Exception as error:
        # Whatever it is, it is a fault that a run did not survive, or one of this script, and neither may pass.
        told = str(error) if isinstance(error, AssertionError) else traceback.format_exc(limit=4)
        row.problems.append(f"{scene.run.name}: {told}")
        return
    row.continued += 1
    row.lost_bytes += verdict.lost_bytes
    row.wrong += bool(verdict.wrong)
    row.problems += [f"{scene.run.name}: {line}" for line in verdict.wrong]


def order(names: Sequence[str], chance: random.Random) -> Iterator[str]:
    """Give kinds without end: each once in a shuffled order, then each again in another."""
    while True:
        yield from chance.sample(names, len(names))


def inject(stage: Stage, kinds: dict[str, Kind], options: argparse.Namespace) -> dict[str, Row]:
    """Inject faults until there are enough or the time is up."""
    chance, deadline = random.Random(options.seed), time.monotonic() + 60 * options.minutes
    rows = {name: Row() for name in kinds}
    for number, name in enumerate(order(list(kinds), chance)):
        faults, last = sum(row.faults for row in rows.values()), stage.subject.folder / f"run-{number:04d}"
        if faults >= options.faults or time.monotonic() > deadline:
            break
        problems = len(rows[name].problems)
        play(kinds[name], Scene(stage, last, random.Random(chance.randrange(2**32))), rows[name])
        for problem in rows[name].problems[problems:]:
            print(f"{name}, {problem}", flush=True)
        if len(rows[name].problems) == problems:
            for path in stage.subject.folder.glob(f"{last.name}*"):
                shutil.rmtree(path)
        if number % 10 == 9:
            print(f"... {number + 1} runs, {sum(row.faults for row in rows.values())} faults", flush=True)
    return rows


def total(rows: dict[str, Row]) -> Row:
    """Add the rows up."""
    summed: Counter[str] = Counter()
    for row in rows.values():
        summed.update({name: value for name, value in asdict(row).items() if name != "problems"})
    return Row(**summed)


def write(folder: Path, rows: dict[str, Row], left: dict[str, str], told: dict[str, Any]) -> None:
    """Write the table as Markdown, and everything as JSON."""
    from crossover.training.machine import facts

    folder.mkdir(parents=True, exist_ok=True)
    tree = {"benchmark": "chaos", **told, **facts(), "left_out": left}
    tree["rows"] = {name: asdict(row) for name, row in rows.items()}
    tree["total"] = {name: value for name, value in asdict(total(rows)).items() if name != "problems"}
    (folder / "chaos.json").write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    lines = [
        "| kind of fault | faults injected | runs | continued | bytes lost | wrong results |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in [*rows.items(), ("**all**", total(rows))]:
        lines.append(f"| {name} | " + " | ".join(f"{value:,}" for value in row.cells()) + " |")
    lines += [f"\nLeft out: {name} ({why})." for name, why in left.items()]
    (folder / "chaos.md").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Inject faults and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=120, help="end after so many faults (120)")
    parser.add_argument("--minutes", type=float, default=15, help="or after so many minutes (15)")
    parser.add_argument("--seed", type=int, default=0, help="what is injected follows from it (0)")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[""], help="only kinds with one of these words")
    parser.add_argument("--without", nargs="+", metavar="WORD", default=[], help="no kinds whose name has one of these")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write chaos.md and chaos.json there")
    options = parser.parse_args()
    kinds, left = kinds_here()
    kinds = {
        name: kind
        for name, kind in kinds.items()
        if any(word in name for word in options.only) and not any(word in name for word in options.without)
    }
    if not kinds:
        parser.error("no kind of fault has such a name")
    began = time.monotonic()
    print(f"seed {options.seed}; {load()}")
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    with Subject(folder) as subject:
        stage = Stage(subject)
        print(
            f"an undisturbed run takes {stage.seconds:.1f} s and changes its folder {stage.changes} times", flush=True
        )
        rows = inject(stage, kinds, options)
    spent = time.monotonic() - began
    table = Table({"kind of fault": "", **dict.fromkeys(COLUMNS, ",d")}, first_width=34)
    for name, row in [*rows.items(), ("all", total(rows))]:
        table.add(name, *row.cells())
    for name, why in left.items():
        print(f"left out: {name} ({why})")
    print(f"{spent / 60:.1f} minutes")
    if options.out:
        told = {"seed": options.seed, "minutes": round(spent / 60, 2), "load": load()}
        write(options.out, rows, left, told)
    if any(row.problems for row in rows.values()):
        raise SystemExit(f"what went wrong can be looked at in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
