"""A study folder, or a single run folder, read for its report; what is missing is told, not hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from crossover.errors import RunError
from crossover.evidence.branches import branches_of
from crossover.evidence.checked import is_number
from crossover.evidence.curves import Curve, curve, headline_mode, procedures_of
from crossover.evidence.definition import ARM_NAME
from crossover.evidence.files import read_json, read_rows
from crossover.evidence.ladder import ladders
from crossover.evidence.plots import ArmCurves, Handover
from crossover.evidence.record import RunRecord, read_run
from crossover.evidence.tune import read_chosen
from crossover.parsing import LARGEST_YAML_BYTES, parse_yaml, read_bounded

# Steps on each side of a change whose gradient norms are kept.
NEAR_STEPS = 48


@dataclass(frozen=True)
class View:
    """What a report tells of.

    Args:
        folder: The study's or the run's folder.
        name: Its name.
        vary: The key that the arms differ in.
        tunable: Keys that may differ besides.
        arms: The runs of each arm that have begun.
        missing: Runs that are not finished, and why.
        planned: How many runs there should be.
        tuning: What tuning chose, by arm.
        reproduce: Commands that make it again.
        branches: Finished runs of smaller budgets of each arm; none where the study has one budget.
        budgets: The smaller budgets.
        seeds: Seeds of a study's arms; empty for runs that no study planned.
    """

    folder: Path
    name: str
    vary: str
    tunable: tuple[str, ...]
    arms: Mapping[str, tuple[RunRecord, ...]]
    missing: Mapping[str, str]
    planned: int
    tuning: Mapping[str, Any]
    reproduce: tuple[str, ...]
    branches: Mapping[str, tuple[RunRecord, ...]] = field(default_factory=dict)
    budgets: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()

    @property
    def branch_names(self) -> frozenset[str]:
        """Names that runs of smaller budgets have in `missing`."""
        return frozenset(branch.name for branch in branches_of(tuple(self.arms), self.seeds, self.budgets))

    @property
    def runs(self) -> list[RunRecord]:
        """All runs of the study's own budget that have begun."""
        return [run for runs in self.arms.values() for run in runs]

    @cached_property
    def norms(self) -> dict[Path, dict[int, float]]:
        """Gradient norms around changes, by run folder and step; read once, as they stand in the longest file."""
        return {run.path: gradient_norms(run) for run in self.runs}


def read_view(folder: str | Path) -> View:
    """Read a study folder or a run folder.

    Args:
        folder: It.

    Returns:
        The view.

    Raises:
        RunError: It is neither, or a file in it is broken.
    """
    folder = Path(folder)
    if (folder / "study.yaml").exists():
        return _study_view(folder)
    run = read_run(folder)
    name = str(run.recipe.get("name", folder.name))
    return View(
        folder=folder,
        name=name,
        vary="controller",
        tunable=(),
        arms={name: (run,)},
        missing={} if run.finished else {name: _why(run)},
        planned=1,
        tuning={},
        reproduce=("crossover train recipe.yaml --run-dir again",),
    )


def run_folders(folder: Path) -> tuple[Path, ...]:
    """List where the runs that a report tells of lie, whether they have begun or not.

    Args:
        folder: A study's or a run's folder.

    Returns:
        Its runs and its decay branches; of a run's folder, itself.

    Raises:
        RunError: The study's file is broken.
    """
    if not (folder / "study.yaml").exists():
        return (folder,)
    written = _written(folder)
    branches = branches_of(written.arms, written.seeds, written.budgets)
    names = [f"{arm}/seed-{seed}" for arm in written.arms for seed in written.seeds]
    return tuple(folder / name for name in [*names, *(branch.name for branch in branches)])


@dataclass(frozen=True)
class _Written:
    """What a study's file says of its runs."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    budgets: tuple[float, ...]
    tunable: tuple[str, ...]
    name: str
    vary: str


def _written(folder: Path) -> _Written:
    path = folder / "study.yaml"
    try:
        definition = parse_yaml(read_bounded(path, LARGEST_YAML_BYTES).decode("utf-8"))
        arms, seeds = definition["arms"], definition["seeds"]
        budgets = tuple(float(amount) for amount in definition.get("budgets") or ())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path}: is not what a study leaves ({error}); restore it") from None
    if not isinstance(arms, Mapping):
        raise RunError(f"{path}: arms: expected `name: ...` lines, not {arms!r}; restore it")
    for arm in arms:
        # Runs are looked for in a folder of that name: a path would lead out of the study.
        if not ARM_NAME.fullmatch(str(arm)):
            raise RunError(f"{path}: arms: {arm!r} is no arm's name (letters, digits, _ . + -); restore it")
    if not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds):
        raise RunError(f"{path}: seeds: expected a list of whole numbers, not {seeds!r}; restore it")
    tunable = definition.get("tunable") or []
    if not isinstance(tunable, list) or any(not isinstance(key, str) for key in tunable):
        raise RunError(f"{path}: tunable: expected a list of dotted keys, not {tunable!r}; restore it")
    name, vary = str(definition.get("name", folder.name)), str(definition.get("vary", "controller"))
    return _Written(tuple(map(str, arms)), tuple(seeds), budgets, tuple(tunable), name, vary)


def _study_view(folder: Path) -> View:
    written = _written(folder)
    names, seeds, budgets = written.arms, written.seeds, written.budgets
    tuning = read_chosen(folder)
    arms: dict[str, tuple[RunRecord, ...]] = {}
    missing: dict[str, str] = {}
    for arm in names:
        trials = {"trials": len(tuning.get(arm, {}).get("trials", ()))}
        runs = []
        for seed in seeds:
            name = f"{arm}/seed-{seed}"
            if not (folder / name / "recipe.yaml").exists():
                missing[name] = "not begun"
                continue
            run = replace(read_run(folder / name), tuning=trials)
            runs.append(run)
            if not run.finished:
                missing[name] = _why(run)
        arms[arm] = tuple(runs)
    branches = _branches(folder, names, seeds, budgets, missing)
    return View(
        folder=folder,
        name=written.name,
        vary=written.vary,
        tunable=written.tunable,
        arms=arms,
        missing=missing,
        planned=len(names) * len(seeds) * (1 + len(budgets)),
        tuning=tuning,
        reproduce=_commands(folder),
        branches=branches,
        budgets=budgets,
        seeds=seeds,
    )


def _branches(
    folder: Path, arms: Sequence[str], seeds: Sequence[int], budgets: Sequence[float], missing: dict[str, str]
) -> dict[str, tuple[RunRecord, ...]]:
    """Read the runs of the smaller budgets that are finished; those that are not are told of."""
    found: dict[str, list[RunRecord]] = {arm: [] for arm in arms} if budgets else {}
    for branch in branches_of(arms, seeds, budgets):
        begun = (folder / branch.name / "recipe.yaml").exists()
        run = read_run(folder / branch.name) if begun else None
        if run is not None and run.finished:
            found[branch.arm].append(run)
        else:
            missing[branch.name] = "not begun" if run is None else _why(run)
    return {arm: tuple(runs) for arm, runs in found.items()}


def _commands(folder: Path) -> tuple[str, ...]:
    import shlex

    path = folder / "started.json"
    started = read_json(path) if path.exists() else {}
    given = started.get("overrides") or []
    words = [started.get("study"), *(given if isinstance(given, list) else [None])]
    # A command of several lines, or of what is no text, is none that a person could give again.
    if all(isinstance(word, str) and word.isprintable() for word in words) and words[0]:
        return (shlex.join(["crossover", "study", *words]),)
    return ("crossover train recipes/<arm>-seed-<n>.yaml --run-dir again/<arm>/seed-<n>   (for each run)",)


def _why(run: RunRecord) -> str:
    state, why = run.status.get("state", "?"), run.status.get("why")
    return f"{state}: {why}" if why else str(state)


def arm_curves(view: View) -> list[ArmCurves]:
    """Read the curves of every arm that has been measured, in the order of the study.

    Where every arm has been measured at several budgets, each seed of it, the curves are those of the decayed points;
    else they are what the runs measured on their way, at a learning rate that had not decayed yet.

    Args:
        view: The runs.

    Returns:
        Their curves.

    Raises:
        RunError: Documents changed between two evaluations.
    """
    found = _run_curves(view)
    decayed = {arm.arm: {mode: ladders(arm.arm, view.arms[arm.arm], view.branches.get(arm.arm, ()), mode)
                         for mode in arm.curves} for arm in found}  # fmt: skip
    if not view.budgets or not all(_is_whole(view, arm, decayed[arm.arm][arm.headline]) for arm in found):
        return found
    return [
        replace(arm, curves={mode: curves for mode, curves in decayed[arm.arm].items() if curves}, trunks=arm.curves)
        for arm in found
    ]


def _is_whole(view: View, arm: ArmCurves, decayed: Sequence[Curve]) -> bool:
    """Say whether each seed of an arm has a decayed point at every budget."""
    budgets, seeds = len(view.budgets) + 1, len(arm.curves[arm.headline])
    return [len(one.flops_E) for one in decayed] == [budgets] * seeds


def _run_curves(view: View) -> list[ArmCurves]:
    found = []
    for arm, runs in view.arms.items():
        measured = [run for run in runs if run.evals]
        modes = {
            mode: curves
            for mode in procedures_of(measured)
            if (curves := tuple(one for run in measured if (one := curve(arm, run, mode)) is not None))
        }
        if modes:
            try:
                headline = headline_mode(measured)[0]
            except RunError:
                headline = next(iter(modes))
            if headline not in modes:
                headline = next(iter(modes))
            found.append(ArmCurves(arm, headline, modes, tuple(handovers(run) for run in measured)))
    return found


def handovers(run: RunRecord) -> tuple[Handover, ...]:
    """Give FLOPs and epochs at which a run's mix changed, and on what evidence; the start is no change."""
    return tuple(
        (float(row["flops"]), float(row["epochs"]), " + ".join(evidence_of(row)))
        for row in turning_points(run.decisions)
        if row.get("before") and row["before"] != row.get("mix") and float(row.get("flops") or 0) > 0
    )


def turning_points(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave the steps of a handover out: its beginning and its end tell all of it.

    Args:
        rows: Rows of decisions.jsonl.

    Returns:
        The rows that a person wants to see.
    """
    kept, moving = [], False
    for row in rows:
        details = row.get("details") or {}
        on_the_way = details.get("phase") == "ramp" and details.get("way", 1.0) < 1
        if not (on_the_way and moving):
            kept.append(row)
        moving = on_the_way or "to" in details
    return kept


def changes(run: RunRecord) -> list[Mapping[str, Any]]:
    """Give the turning points of a run without its start, which is no change of anything."""
    return [row for row in turning_points(run.decisions) if row.get("before")]


def evidence_of(row: Mapping[str, Any]) -> list[str]:
    """List the kinds of evidence that a decision was taken on; a plan has none."""
    kinds = (row.get("details") or {}).get("evidence")
    return [str(kind) for kind in kinds] if isinstance(kinds, Sequence) and not isinstance(kinds, str) else []


def change_steps(run: RunRecord) -> list[int]:
    """Give the steps that a run's changes take effect in."""
    return [row["step"] for row in changes(run) if isinstance(row.get("step"), int)]


def gradient_norms(run: RunRecord) -> dict[int, float]:
    """Read the gradient norms around the changes of a run.

    Args:
        run: The run; without a change its steps.jsonl is left alone.

    Returns:
        The norm before clipping, by step, of the steps near a change that recorded one.

    Raises:
        RunError: steps.jsonl is broken.
    """
    near = {start + at for start in change_steps(run) for at in range(-NEAR_STEPS, NEAR_STEPS + 1)}
    return {
        row["step"]: float(row["grad_norm"])
        for row in (read_rows(run.path / "steps.jsonl") if near else ())
        if is_number(row.get("grad_norm")) and isinstance(row.get("step"), int) and row["step"] in near
    }
