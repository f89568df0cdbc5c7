"""Arms to compare, from whatever holds them: a study folder, run folders, a folder of runs, or CSV files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossover.errors import RunError
from crossover.evidence.compare import is_autoregressive
from crossover.evidence.curves import Curve
from crossover.evidence.files import dumps
from crossover.evidence.match import controller_name
from crossover.evidence.published import PublishedCurve, level_curve, patterns, plain_curve, read_table
from crossover.evidence.record import RunRecord, read_run
from crossover.evidence.view import View, arm_curves, read_view
from crossover.trees import flatten, without_views

# How next-token arms are called in tables.
PLAIN_NAME = re.compile(r"(ar|ntp|autoregressive|next[ _-]?token)([ _.-].*)?", re.IGNORECASE)
# Runs of a folder may lie this deep, such as folder/arm/seed-0.
DEEPEST = 3


@dataclass(frozen=True)
class Setting:
    """Arms that were trained on one text, ready to be compared.

    Args:
        name: Where they come from.
        arms: Curves of each arm, one per seed, seeds ascending.
        plain: Arms that are next-token training.
        unit: What the losses are in.
        epoch_unit: "epochs", or "tokens" where a table has no epochs.
        documents: Held-out documents that can be resampled; 0 where a table takes part.
        with_errors: Arms whose tables state standard errors.
        notes: What a reader should know.
        conditions: What each arm was trained with, by dotted key; nothing of arms that stand in tables.
    """

    name: str
    arms: Mapping[str, tuple[Curve, ...]]
    plain: tuple[str, ...]
    unit: str
    epoch_unit: str
    documents: int
    with_errors: tuple[str, ...]
    notes: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Source:
    name: str
    runs: Mapping[str, tuple[Curve, ...]]
    tables: tuple[PublishedCurve, ...]
    plain: tuple[str, ...]
    notes: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys([*self.runs, *(table.arm for table in self.tables)]))


def read_settings(sources: Sequence[str | Path]) -> tuple[Setting, ...]:
    """Read the arms of all sources.

    A source of several arms is a setting of its own. Sources of one arm each, and runs that are named one by one,
    make one setting together.

    Args:
        sources: Study folders, run folders, folders of runs, CSV files.

    Returns:
        Settings, each of two arms or more.

    Raises:
        RunError: A source cannot be used, or an arm has nothing to be compared with.
    """
    paths = list(dict.fromkeys(Path(source) for source in sources))
    runs = [path for path in paths if (path / "recipe.yaml").exists() and not (path / "study.yaml").exists()]
    read = [_read(path) for path in paths if path not in runs]
    settings = [_setting(source) for source in read if len(source.arms) > 1]
    single = [source for source in read if len(source.arms) == 1]
    if runs:
        together = Path(os.path.commonpath([path.absolute().parent for path in runs]))
        single.append(_of_view(view_of_runs(together, [path.absolute() for path in runs]), ", ".join(map(str, runs))))
    if single:
        joined = _joined(single)
        if len(joined.arms) < 2:
            raise RunError(
                f"{joined.name}: holds one arm, '{joined.arms[0]}'; a crossing takes two, name the other too"
            )
        settings.append(_setting(joined))
    return tuple(settings)


def _read(path: Path) -> _Source:
    if path.is_file():
        tables = read_table(path)
        ignored = tables[0].ignored
        notes = [f"{path.name}: columns that are not read: {', '.join(ignored)}"] if ignored else []
        names = dict.fromkeys(table.arm for table in tables)
        return _Source(str(path), {}, tables, tuple(filter(PLAIN_NAME.fullmatch, names)), tuple(notes))
    if not path.is_dir():
        raise RunError(f"{path}: no such file or folder; expected a study, a run, a folder of runs or a CSV file")
    if (path / "study.yaml").exists():
        return _of_view(read_view(path), str(path))
    paths, studies = _runs_below(path)
    if studies:
        raise RunError(f"{path}: holds studies, not runs; name the ones to read, such as {studies[0]}")
    if not paths:
        raise RunError(f"{path}: holds no run (a folder with recipe.yaml), is no study and no CSV file")
    return _of_view(view_of_runs(path, paths), str(path))


def _of_view(view: View, name: str) -> _Source:
    found = arm_curves(view)
    if not found:
        raise RunError(f"{name}: nothing has been measured in it yet; let the runs go on")
    curves = {arm.arm: tuple(sorted(arm.curves[arm.headline], key=lambda one: one.seed)) for arm in found}
    plain = [arm for arm, runs in view.arms.items() if runs and is_autoregressive(runs[0].recipe) and arm in curves]
    notes = [] if not view.budgets else [_decayed_note(view, all(arm.trunks for arm in found))]
    branches = view.branch_names
    trunks = {run: why for run, why in view.missing.items() if run not in branches}
    notes += [f"{run}: {why}; its curve ends early" for run, why in trunks.items() if why != "not begun"]
    notes += [f"{arm} is read by {one[0].procedure}, an upper bound of its loss: it may cross earlier than shown"
              for arm, one in curves.items() if not one[0].exact]  # fmt: skip
    conditions = {arm: _conditions(runs[0]) for arm, runs in view.arms.items() if runs and arm in curves}
    return _Source(name, curves, (), tuple(plain), tuple(notes), conditions)


def _conditions(run: RunRecord) -> dict[str, Any]:
    """Give what a run was trained with: its recipe but for name, seed and what is merely shown, and its text."""
    recipe = {key: value for key, value in without_views(run.recipe).items() if key not in ("name", "seed")}
    told = ("train_tokens", "tokenizer_hash", "parameters")
    return {**flatten(recipe), **{key: run.manifest[key] for key in told if key in run.manifest}}


def _decayed_note(view: View, is_decayed: bool) -> str:
    if is_decayed:
        return f"points are the ends of runs of {len(view.budgets) + 1} budgets, their learning rates decayed"
    return "not every arm has its decayed points yet: points are those on the way, at a learning rate not yet decayed"


def view_of_runs(folder: Path, paths: Sequence[Path]) -> View:
    """Group runs into arms: those whose recipes differ in nothing but seed and name."""
    groups: dict[str, list[RunRecord]] = {}
    for path in paths:
        run = read_run(path)
        groups.setdefault(dumps({**run.recipe, "seed": None, "name": None}), []).append(run)
    arms: dict[str, tuple[RunRecord, ...]] = {}
    for runs in groups.values():
        seeds = [run.recipe.get("seed", 0) for run in runs]
        if len(set(seeds)) < len(seeds):
            same = ", ".join(str(run.path) for run in runs)
            raise RunError(f"{folder}: runs of one recipe have one seed too ({same}); leave one of them out")
        arms[_arm_name(folder, runs, arms)] = tuple(runs)
    missing = {str(run.path.relative_to(folder)): str(run.status.get("state", "?"))
               for runs in arms.values() for run in runs if not run.finished}  # fmt: skip
    return View(folder, folder.name, "controller", (), arms, missing, len(paths), {}, ())


def _runs_below(folder: Path, depth: int = 1) -> tuple[list[Path], list[Path]]:
    runs, studies = [], []
    for path in sorted(item for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")):
        if (path / "study.yaml").exists():
            studies.append(path)
        elif (path / "recipe.yaml").exists():
            runs.append(path)
        elif depth < DEEPEST:
            deeper = _runs_below(path, depth + 1)
            runs, studies = runs + deeper[0], studies + deeper[1]
    return runs, studies


def _arm_name(folder: Path, runs: Sequence[RunRecord], taken: Mapping[str, Any]) -> str:
    """Name an arm by its runs' paths without their seeds, else by its controller; never twice the same."""
    places = [run.path.relative_to(folder).as_posix() for run in runs]
    ending = r"[-_./]*(seed)?[-_.]?\d+$" if len(places) > 1 else r"[-_./]*seed[-_.]?\d+$"
    names = {re.sub(ending, "", place) for place in places}
    name = (names.pop() if len(names) == 1 else "") or controller_name(runs[0].recipe)
    return name if name not in taken else f"{name} ({places[0]})"


def _joined(sources: Sequence[_Source]) -> _Source:
    """Put sources of one arm each together; seeds of one arm may lie in several of them."""
    runs: dict[str, tuple[Curve, ...]] = {}
    for source in sources:
        for arm, curves in source.runs.items():
            runs[arm] = (*runs.get(arm, ()), *curves)
    return _Source(
        ", ".join(source.name for source in sources),
        runs,
        tuple(table for source in sources for table in source.tables),
        tuple(dict.fromkeys(arm for source in sources for arm in source.plain)),
        tuple(dict.fromkeys(note for source in sources for note in source.notes)),
        {arm: held for source in sources for arm, held in source.conditions.items()},
    )


def _setting(source: _Source) -> Setting:
    _refuse_twins(source)
    if not source.tables:
        documents = len(next(iter(source.runs.values()))[0].bytes_D)
        return Setting(
            source.name, source.runs, source.plain, "bits per byte", "epochs", documents, (), source.notes,
            source.conditions,
        )  # fmt: skip
    tables, notes = source.tables, list(source.notes)
    in_bits = all("bits_per_byte" in table.columns for table in tables)
    by_epoch = all("epochs" in table.columns for table in tables)
    lacking = [name for name, there in (("bits_per_byte", in_bits), ("epochs", by_epoch)) if not there]
    if source.runs and lacking:
        raise RunError(f"{source.name}: runs and tables meet in bits per byte and in epochs; add {', '.join(lacking)}")
    if source.runs:
        notes.append("whether runs and tables were measured on one held-out text cannot be checked")
    if not in_bits:
        notes.append("losses are nats per token: they compare only where the arms share one tokenizer")
    return Setting(
        source.name,
        _level_curves(source, in_bits, by_epoch),
        source.plain,
        "bits per byte" if in_bits else "nats per token",
        "epochs" if by_epoch else "tokens",
        0,
        tuple(dict.fromkeys(table.arm for table in tables if "standard_error" in table.columns)),
        tuple(notes),
    )


def _refuse_twins(source: _Source) -> None:
    seen: dict[tuple[str, int], str] = {}
    curves = [(one.arm, one.seed, "a run folder") for group in source.runs.values() for one in group]
    curves += [(table.arm, table.seed, str(table.path)) for table in source.tables]
    for arm, seed, place in curves:
        if (arm, seed) in seen:
            first = seen[arm, seed]
            raise RunError(
                f"arm '{arm}', seed {seed} is in {first} and in {place}; rename one, or give it another seed"
            )
        seen[arm, seed] = place


def _level_curves(source: _Source, in_bits: bool, by_epoch: bool) -> dict[str, tuple[Curve, ...]]:
    """Put runs and tables on one footing: a loss per evaluation, and a standard error where one is stated."""
    shift = dict(zip(source.arms, patterns(len(source.arms)), strict=True))
    made: dict[str, list[Curve]] = {arm: [] for arm in source.arms}
    for arm, curves in source.runs.items():
        for one in curves:
            made[arm].append(level_curve(one, one.bits_E, 0 * one.bits_E, shift[arm]))
    for table in source.tables:
        levels_E, errors_E = table.levels(in_bits)
        made[table.arm].append(level_curve(plain_curve(table, by_epoch), levels_E, errors_E, shift[table.arm]))
    return {arm: tuple(sorted(curves, key=lambda one: one.seed)) for arm, curves in made.items()}
