"""What `crossover eval` was asked: settings of scores, with the defaults that text and tasks have."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.errors import RecipeError


@dataclass(frozen=True)
class Asked:
    """Settings of scores, of a finished model or of checkpoints.

    Args:
        text: "dev" or "test" of the run, or a path; None where it was not said.
        tasks: Names of tasks, or None.
        procedures: Names of procedures; None for all on text and the best at tasks.
        windows: Windows of text; None for 256.
        draws: Mask draws for a bound; None for 32 a window of text, 128 a request of a task.
        positions: Positions for `l2r`; None for 16 a window of text, 64 a request of a task.
        evals: Folder with the tasks' data, or None.
        limit: First items of each task, or None for all.
        fewshot: Examples per question, or None for the task's own number.
        seed: Seed of a task's draws, orders and texts.
    """

    text: str | None
    tasks: Sequence[str] | None
    procedures: Sequence[str] | None
    windows: int | None
    draws: int | None
    positions: int | None
    evals: Path | None
    limit: int | None
    fewshot: int | None
    seed: int

    @property
    def of_text(self) -> dict[str, int]:
        """Settings of `crossover.scoring.command.score_folder`."""
        return {"windows": self.windows or 256, "draws": self.draws or 32, "positions": self.positions or 16}

    @property
    def of_tasks(self) -> dict[str, Any]:
        """Settings of `crossover.scoring.tasks.evaluate.evaluate`."""
        sizes = {"seed": self.seed, "draws": self.draws or 128, "positions": self.positions or 64}
        return {**self._tasks_alone, **sizes}

    @property
    def text_procedures(self) -> Sequence[str]:
        """Procedures that text is scored with."""
        return self.procedures or ["all"]

    @property
    def task_procedures(self) -> Sequence[str]:
        """Procedures that tasks are answered with."""
        return self.procedures or ["best"]

    @property
    def _tasks_alone(self) -> dict[str, Any]:
        return {"evals": self.evals, "limit": self.limit, "fewshot": self.fewshot}

    def refuse_stray(self) -> None:
        """Refuse settings that nothing reads.

        Raises:
            RecipeError: A setting of tasks was given, and no task; or one of text, and tasks.
        """
        if self.tasks is not None:
            of_text = {"text": self.text, "windows": self.windows}
            for name in (name for name, value in of_text.items() if value is not None):
                raise RecipeError(f"{name} means nothing to tasks; leave it out, or score text by a command of its own")
            return
        # 0 is the seed where none was given.
        stray = [name for name, value in {**self._tasks_alone, "seed": self.seed or None}.items() if value is not None]
        if stray:
            raise RecipeError(f"{stray[0]} means something for tasks only; add tasks=hellaswag")


def run_text(run: Path, trust: bool) -> tuple[Mapping[str, Any], str | None]:
    """Read what says which held-out text is a run's own, and let its recipe's `imports` run where that is allowed.

    Args:
        run: The run folder.
        trust: Whether they may.

    Returns:
        The recipe, and the hash that the prepared text must have (None where none was recorded).

    Raises:
        RunError: It is no run folder, or a file in it is broken.
        RecipeError: The recipe has `imports` that may not run.
    """
    from crossover.evidence.record import read_run
    from crossover.registry import trust_imports

    record = read_run(run)
    trust_imports(record.recipe.get("imports") or (), trust=trust, origin=str(run / "recipe.yaml"))
    return record.recipe, record.manifest.get("data_hash")


def notify(message: str) -> None:
    """Say on the error stream what is being done, so that scores alone stand on the other."""
    print(message, file=sys.stderr, flush=True)
