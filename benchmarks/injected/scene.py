"""Where one fault happens: a run folder of its own, the undisturbed run beside it, chance, and small file systems."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from injected.subject import Subject, read
from injected.verdict import Verdict, compare

ROLLBACK = (5, 13)
REFERENCES: dict[str, dict[str, Any]] = {
    "whole": {},
    # One batch whose weights are not numbers, and so many in a row that the weights go back to a checkpoint.
    "nan": {"nan_steps": [7, 7]},
    "nans": {"nan_steps": list(ROLLBACK)},
}


@dataclass
class Stage:
    """A subject with what its runs are held against, each made when it is first asked for.

    Args:
        subject: The subject.
        made: Undisturbed runs by name.
        text: The prepared text, known once a run has been measured.
    """

    subject: Subject
    made: dict[str, Path] = field(default_factory=dict)
    text: Path = Path()

    def reference(self, name: str, *overrides: object) -> Path:
        """Give an undisturbed run."""
        if name not in self.made:
            self.made[name] = self.subject.folder / name
            self.subject.finish(self.made[name], *overrides, fault=REFERENCES.get(name))
        return self.made[name]

    @cached_property
    def measured(self) -> tuple[int, float]:
        """Changes of the file system that a run makes in its folder, and its seconds once its text is prepared."""
        self.reference("whole")
        run, count, began = self.subject.folder / "measured", self.subject.folder / "changes.txt", time.perf_counter()
        said = self.subject.finish(run, fault={"under": str(run), "count": str(count)})
        self.text = Path(re.findall(r"prepared text found: (\S+)", said)[0])
        return int(count.read_text()), time.perf_counter() - began

    @property
    def changes(self) -> int:
        """Changes of the file system that a run makes in its folder."""
        return self.measured[0]

    @property
    def seconds(self) -> float:
        """How long a run takes."""
        return self.measured[1]

    @cached_property
    def half(self) -> Path:
        """A run that was killed half-way, with two checkpoints."""
        run = self.subject.folder / "half"
        code = self.subject.train(run, fault={"under": str(run), "at": self.changes // 2, "do": "SIGKILL"}).wait()
        assert code == -9 and len(list((run / "checkpoints").glob("step-*"))) == 2
        return run


@dataclass
class Scene:
    """One fault.

    Args:
        stage: Whose.
        run: Its run folder, which does not exist yet.
        chance: Where and when.
        reference: The undisturbed run that this one must equal.
        fault: What accompanies the run to its end.
        cache: Prepared text of its own, or None for the stage's.
        overrides: Settings that the run and its reference have on top of the recipe.
    """

    stage: Stage
    run: Path
    chance: random.Random
    reference: str = "whole"
    fault: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    overrides: tuple[str, ...] = ()

    @property
    def subject(self) -> Subject:
        """The subject."""
        return self.stage.subject

    def how(self, **fault: Any) -> dict[str, Any]:
        """Say under which faults a command runs: the given one, and what accompanies the run."""
        return {"fault": {**self.fault, **fault}, "cache": self.cache}

    def from_half(self) -> Path:
        """Let the run be one that was killed half-way."""
        shutil.copytree(self.stage.half, self.run)
        return self.run

    def end(self) -> Verdict:
        """Give the same command until the run is finished, and compare it with the undisturbed one."""
        whole = self.stage.reference(self.reference, *self.overrides)
        self.subject.finish(self.run, *self.overrides, **self.how())
        return compare(self.run, whole)


def steps_kept(run: Path) -> list[int]:
    """List the steps of a run's checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def content(folder: Path) -> dict[str, bytes]:
    """Read every file of a run folder but those that each start writes anew."""
    anew = ("status.json", ".lock", "log.txt")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in anew]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def state_of(run: Path) -> str:
    """Say what a run says of itself."""
    return str(read(run / "status.json").get("state"))


def can_mount() -> bool:
    """Say whether file systems can be mounted here: it needs Linux, root and its capabilities."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """Mount something on a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
