"""Tuning trials that are taken over as the run of their seed: the same recipe gives the same run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from crossover.evidence.files import room_on_disk, write_text
from crossover.evidence.record import read_recipe, read_status
from crossover.folders import appearing
from crossover.trees import differences, without_views


def adopt_trials(folder: Path, plan: Mapping[str, Mapping[str, Any]], notify: Callable[[str], None]) -> None:
    """Take over finished trials of a study as its runs, where their recipes differ in the name alone.

    Args:
        folder: The study's folder.
        plan: Resolved recipes by run, such as "masked/seed-0"; runs that have begun are left alone.
        notify: Where a line for each goes.

    Raises:
        RunError: A file of a trial is broken, or the disk is full.
    """
    for name, recipe in plan.items():
        if (folder / name).exists():
            continue
        for trial in sorted((folder / "tune" / name.split("/")[0]).glob("trial-*")):
            if read_status(trial)["state"] == "finished" and _same_but_name(read_recipe(trial), recipe):
                _copy(trial, folder / name, recipe)
                notify(f"{name}: is the run of {trial.relative_to(folder)}, which is not made again")
                break


def _same_but_name(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # Through YAML and back, so that tuples and lists do not count as a difference.
    again = {**yaml.safe_load(yaml.safe_dump(dict(other))), "name": one.get("name")}
    return not differences(without_views(one), without_views(again))


def _copy(source: Path, target: Path, recipe: Mapping[str, Any]) -> None:
    """Copy a finished run without its checkpoints, under another name; the copy appears whole or not at all."""
    left = shutil.ignore_patterns("checkpoints", ".lock", "kept")
    with room_on_disk(target), appearing(target) as temporary:
        shutil.copytree(source, temporary, ignore=left, dirs_exist_ok=True)
        write_text(temporary / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
