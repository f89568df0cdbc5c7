"""How all runs of a study stand, with the command of each: what `crossover study X --list` prints."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossover.evidence.cluster import queued_jobs
from crossover.evidence.definition import read_study
from crossover.evidence.runlist import STAGES, Planned, runs_of
from crossover.evidence.study import StudyRuns
from crossover.evidence.study_folder import folder_of
from crossover.evidence.tune import read_chosen


def list_study(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
    processes: int = 1,
    trust: bool = False,
    kind: str | None = None,
) -> list[str]:
    """Say what runs a study is made of and how each stands; nothing is written and nothing started.

    Args:
        path: The study file.
        overrides: `study.key=value`, or `key=value` for the recipe of every arm.
        folder: Where it lives; None means `runs/<study name>`.
        processes: Processes of each run.
        trust: Whether the recipe's `imports` may run.
        kind: The cluster whose queue is asked, "slurm" or "local"; None asks none.

    Returns:
        A line on the whole, then two for each run: how it stands and what it waits for, and its command.

    Raises:
        RecipeError: The study file or an override cannot be used.
        RunError: The cluster does not answer.
    """
    study = read_study(path, overrides, trust=trust)
    runs = StudyRuns(study, folder_of(study, folder), 1, trust, processes=processes)
    chosen = read_chosen(runs.folder)
    listed = [run for stage in STAGES for run in runs_of(study, stage, chosen, 1)]
    queued = queued_jobs(runs.folder, kind) if kind else {}
    stands = {run.name: _stands(runs, run, chosen, queued) for run in listed}
    counts = Counter(stands[run.name].split(" as ")[0] for run in listed)
    lines = [f"{study.name}: {len(listed)} run(s): {', '.join(f'{count} {state}' for state, count in counts.items())}"]
    for run in listed:
        after = f", after {_several(run.needs)}" if run.needs else ""
        lines += [f"{run.name}: {stands[run.name]}{after}", f"  {shlex.join(runs.job(run).command)}"]
    return lines


def _stands(runs: StudyRuns, run: Planned, chosen: Mapping[str, Any], queued: Mapping[str, str]) -> str:
    state, begun = runs.state(run.name), (runs.folder / run.name).exists()
    if state in ("finished", "running"):
        return state
    if run.name in queued:
        return f"queued as job {queued[run.name]}"
    if run.stage == "tune" and run.arm in chosen:
        return "not needed"
    return state if begun else "not begun"


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} .. {names[-1].rsplit('/', 1)[1]}"
