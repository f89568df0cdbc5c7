"""What goes wrong inside a process, and exactly when: installed in a run before it begins.

A fault is a mapping of plain values, so that it can be told to another process:

    {"under": FOLDER, "at": 7, "do": "SIGKILL"}    before the 7th change of the file system in FOLDER, from 1
    {"under": FOLDER, "at": 7, "do": "ENOSPC"}     from then on every file that is opened for writing is refused
    {"under": FOLDER, "count": FILE}               changes of the file system in FOLDER are counted into FILE
    {"file_bytes": 100000}                         no file grows beyond that, as under `ulimit -f`
    {"clock": 3}                                   the clocks jump, drawn from this seed
    {"nan_steps": [4, 9]}                          weights of the loss are not numbers in steps 4 to 9, from 0
    {"slow_steps": [4, 9], "seconds": 5}           these steps take their time

Changes are openings for writing, renamings, removals, new folders and fsync: between two of them a process leaves
nothing behind that differs for its successor but the length of a file, which kills at random instants vary. The lines
that show where a run stands are not counted.
"""

from __future__ import annotations

import atexit
import errno
import functools
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
# A full or sealed disk refuses these; removing still works on it.
REFUSED = ("open", "os.mkdir", "os.fsync")
# How often a run shows where it stands depends on the time, and the number of its changes must not.
UNCOUNTED = ("progress.json", "log.txt")
YEARS = 3.15e7


def install(fault: Mapping[str, Any]) -> None:
    """Make a fault happen in this process."""
    if "under" in fault:
        _watch(fault)
    if "file_bytes" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_bytes"], resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if "clock" in fault:
        _jump(random.Random(fault["clock"]))
    if "nan_steps" in fault:
        _spoil(range(fault["nan_steps"][0], fault["nan_steps"][1] + 1))
    if "slow_steps" in fault:
        _slow(range(fault["slow_steps"][0], fault["slow_steps"][1] + 1), fault["seconds"])


class Watcher:
    """Counts the changes in a folder and acts when one is due."""

    def __init__(self, fault: Mapping[str, Any]) -> None:
        self.folder = os.path.realpath(fault["under"])
        self.at, self.do = int(fault.get("at", 0)), str(fault.get("do", ""))
        self.seen = 0
        self.busy = False

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """Look at an audit event of the interpreter; the event has not happened yet."""
        writes = event == "open" and isinstance(given[2], int) and given[2] & WRITING
        if not self.busy and (writes or event in CHANGES):
            self.change(event, given[0])

    def change(self, event: str, what: Any) -> None:
        """Count a change, and act if it is the one, or if the disk stays as it is."""
        self.busy = True
        try:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.path.abspath(os.fsdecode(what))
            inside = os.path.realpath(os.path.dirname(path)).startswith(self.folder) or path == self.folder
        except (OSError, TypeError):
            inside = False
        finally:
            self.busy = False
        if not inside or any(name in path for name in UNCOUNTED):
            return
        self.seen += 1
        if self.seen == self.at and self.do.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.do))
        elif self.at and self.seen >= self.at and self.do.startswith("E") and event in REFUSED:
            code = getattr(errno, self.do)
            raise OSError(code, os.strerror(code), path)


def _watch(fault: Mapping[str, Any]) -> None:
    watcher, fsync = Watcher(fault), os.fsync
    sys.addaudithook(watcher.hear)

    def watched(file: Any) -> None:
        watcher.change("os.fsync", file if isinstance(file, int) else file.fileno())
        fsync(file)

    os.fsync = watched
    if "count" in fault:
        # The count is final here, so that this file is not in it.
        atexit.register(lambda: Path(fault["count"]).write_text(str(watcher.seen)))


def _jump(chance: random.Random) -> None:
    """Wall clocks leap either way by years; the monotonic one leaps ahead, as after a suspended machine's sleep."""
    lead = {"ns": 0.0}

    def wall(read: Callable[[], Any], unit: float) -> Any:
        return read() + type(read())(chance.uniform(-YEARS, YEARS) * unit)

    def monotonic(read: Callable[[], Any], unit: float) -> Any:
        lead["ns"] += chance.choice((0.0, 0.0, 0.0, 1e9, 3.6e12))
        return read() + type(read())(lead["ns"] * unit)

    for name, shifted, unit in (
        ("time", wall, 1.0), ("time_ns", wall, 1e9), ("monotonic", monotonic, 1e-9), ("monotonic_ns", monotonic, 1.0),
        ("perf_counter", monotonic, 1e-9), ("perf_counter_ns", monotonic, 1.0),
    ):  # fmt: skip
        setattr(time, name, functools.partial(shifted, getattr(time, name), unit))


def _spoil(steps: range) -> None:
    """Make the text of some steps poisonous: the weights of their loss are not numbers."""
    import dataclasses

    from crossover.training.step import Stepper

    example = Stepper.example

    def spoilt(self: Stepper, step: int, kind: str, slices: tuple[int, ...]) -> Any:
        made = example(self, step, kind, slices)
        return dataclasses.replace(made, weights_R=made.weights_R * float("nan")) if step in steps else made

    Stepper.example = spoilt


def _slow(steps: range, seconds: float) -> None:
    from crossover.training.step import Stepper

    example = Stepper.example

    def slowed(self: Stepper, step: int, kind: str, slices: tuple[int, ...]) -> Any:
        if step in steps and 0 in slices:
            time.sleep(seconds)
        return example(self, step, kind, slices)

    Stepper.example = slowed
