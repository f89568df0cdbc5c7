"""Everything that a stranger may send, each as a file and the reader that is given it.

The property of each: a correct read, or a `CrossoverError` that names the file; within a time, within a memory, and
never another exception.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from crossover.errors import CrossoverError
from fuzz import places, seeds, tables
from fuzz.mutations import MUTATIONS

# A message is read by a person; the longest that a defect-free reader gives lists a few settings.
LONGEST_MESSAGE = 6000
SECONDS = 5.0


class Hang(BaseException):
    """A read that took longer than it may."""


@dataclass(frozen=True)
class Target:
    """A reader and what it is given.

    Args:
        name: Its name.
        kind: How its files are damaged, a key of `mutations.MUTATIONS`.
        begin: Lays out a folder around the file and says where the file goes, and which valid contents it may have.
        read: Reads the folder, as the program would.
        share: Cases that it gets, relative to the others.
    """

    name: str
    kind: str
    begin: Callable[[Path], tuple[Path, list[bytes]]]
    read: Callable[[Path], object]
    share: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a reader took a file.

    Args:
        kind: "read", the class of the error that refused it, or what is wrong: "traceback", "hang", "unnamed", "long".
        told: The message, or the exception.
        seconds: How long it took.
    """

    kind: str
    told: str
    seconds: float

    @property
    def defect(self) -> bool:
        """Whether this must not happen."""
        return self.kind in ("traceback", "hang", "unnamed", "long")


class Shooting:
    """A target with its folder laid out, ready to be given files.

    Args:
        target: The target.
        folder: A folder of its own.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.target, self.folder = target, folder
        self.path, self.contents = target.begin(folder)

    def give(self, data: bytes, seconds: float = SECONDS) -> Outcome:
        """Give the reader a file.

        Args:
            data: The file's content.
            seconds: Longest time.

        Returns:
            How it was taken.
        """
        self.path.write_bytes(data)
        begun = time.perf_counter()
        try:
            with alarm(seconds):
                self.target.read(self.folder)
            kind, told = "read", ""
        except CrossoverError as error:
            kind, told = type(error).__name__, str(error)
            if len(told) > LONGEST_MESSAGE:
                kind = "long"
            elif self.path.name not in told and str(self.folder) not in told:
                kind = "unnamed"
        except Hang:
            kind, told = "hang", f"more than {seconds:g} s"
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Also panics of Rust libraries, which are no `Exception`.
            kind, told = "traceback", f"{type(error).__name__}: {str(error)[:300]} ({_where(error)})"
        return Outcome(kind, told, time.perf_counter() - begun)


def _where(error: BaseException) -> str:
    """Say the last line of the program's own that an exception came through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "crossover" in name and "/tests/" not in name:
            place = f"{Path(name).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `Hang` when the block takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _in_run(name: str, kind: str, share: float = 1.0) -> Target:
    return Target(f"run/{name}", kind, lambda folder: places.of_run(folder, name), places.read_run, share)


def _corpus(suffix: str) -> Target:
    kind, contents = seeds.CORPORA[suffix]
    file = f"text{suffix}"
    return Target(f"corpus {suffix}", kind, lambda folder: (folder / file, contents()), places.read_corpus, 2.0)


def _all() -> Iterator[Target]:
    yield Target("recipe", "yaml", places.of_recipe, places.read_recipe, 3.0)
    yield Target("override", "text", places.of_override, places.read_override, 2.0)
    yield Target("study", "yaml", places.of_study, places.read_study, 0.7)
    for name in ("manifest.json", "status.json", "ledger.json", "progress.json", "scores/summary.json"):
        yield _in_run(name, "json")
    yield _in_run("recipe.yaml", "yaml")
    for name in ("evals.jsonl", "decisions.jsonl", "steps.jsonl"):
        yield _in_run(name, "rows")
    for name in ("manifest.json", "signals.jsonl", "decisions.jsonl"):
        kind = "json" if name.endswith(".json") else "rows"
        yield Target(f"replay/{name}", kind, lambda folder, name=name: places.of_replay(folder, name),
                     places.read_replay, 0.4)  # fmt: skip
    yield Target("study.yaml", "yaml", places.of_study_folder, places.read_study_folder, 0.5)
    for name, kind in (("state.json", "json"), ("checksums.json", "json"), ("model.safetensors", "safetensors")):
        yield Target(f"checkpoint/{name}", kind, lambda folder, name=name: places.of_checkpoint(folder, name),
                     places.read_checkpoint, 2.0)  # fmt: skip
    for name, kind in places.PREPARED.items():
        yield Target(f"shards/{name}", kind, lambda folder, name=name: places.of_shards(folder, name),
                     places.read_shards, 0.7)  # fmt: skip
    for suffix in seeds.CORPORA:
        yield _corpus(suffix)
    yield Target("tokenizer.json", "json", places.of_tokenizer, places.read_tokenizer, 2.0)
    for name, kind in places.MODEL.items():
        yield Target(f"model/{name}", kind, lambda folder, name=name: places.of_model(folder, name),
                     places.read_model, 0.3)  # fmt: skip
    for name, kind in places.SOURCE.items():
        yield Target(f"adopt/{name}", kind, lambda folder, name=name: places.of_source(folder, name),
                     places.read_source, 0.5)  # fmt: skip
    yield Target("llama2.c", "bytes", places.of_llama2c, places.read_llama2c, 1.0)
    yield Target("curves.csv", "csv", tables.of_curves, tables.read_curves, 2.0)
    yield Target("points.csv", "csv", tables.of_points, tables.read_points, 2.0)
    yield Target("laws.json", "json", tables.of_laws, tables.read_laws, 2.0)
    yield Target("calibration.json", "json", tables.of_calibration, tables.read_calibration, 2.0)
    yield Target("score card", "json", tables.of_card, tables.read_card, 1.0)
    yield Target("task scores", "json", tables.of_tasks, tables.read_tasks, 1.0)
    yield Target("task set .jsonl.gz", "compressed rows", tables.of_task_set, tables.read_task_set, 2.0)
    yield Target("prompts.jsonl", "rows", tables.of_prompts, tables.read_prompts, 2.0)


TARGETS: dict[str, Target] = {target.name: target for target in _all()}
assert all(target.kind in MUTATIONS for target in TARGETS.values())
