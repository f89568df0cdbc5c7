"""A study: arms x seeds as processes, taken up where it was killed, told apart only by what it varies."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from crossover.errors import CrossoverError, RunError
from crossover.evidence.adoption import adopt_trials
from crossover.evidence.branches import Branch, branches_of, forget_fork, is_horizon_free
from crossover.evidence.definition import Study, read_study
from crossover.evidence.files import dumps, write_text
from crossover.evidence.grid import costs_of, dear_evaluations, longest_first, share_grid
from crossover.evidence.overview import Overview
from crossover.evidence.run import RunRecord, read_run, read_status
from crossover.evidence.sinks.tee import require_sinks
from crossover.evidence.tune import choose, draw_trials, read_chosen, write_chosen
from crossover.evidence.workers import Job, cores, pack, run_jobs, share, tail
from crossover.sections import budget_label
from crossover.trees import differences

Notify = Callable[[str], None]


@dataclass(frozen=True)
class StudyResult:
    """How a study ended.

    Args:
        folder: The study's folder.
        finished: Runs that are finished, such as "masked/seed-0".
        failed: The end of the log of each run that failed.
        interrupted: Whether a person (or a scheduler) stopped it.
        report: The report, or None where it could not be written.
    """

    folder: Path
    finished: tuple[str, ...]
    failed: Mapping[str, str]
    interrupted: bool
    report: Path | None

    @property
    def exit_code(self) -> int:
        """0 when every run is finished, 130 when it was stopped, 1 otherwise."""
        return 130 if self.interrupted else 1 if self.failed else 0


def run_study(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
    jobs: int | None = None,
    trust: bool = False,
    notify: Notify = print,
) -> StudyResult:
    """Run what is missing of a study, and write its report.

    Args:
        path: The study file.
        overrides: `study.key=value`, or `key=value` for the recipe of every arm.
        folder: Where it lives; None means `runs/<study name>`.
        jobs: Runs at the same time, each a process; None means what the file says. The cores are divided among
            them, and no more go at a time than there are cores for; on a machine with a GPU they share it.
        trust: Whether the recipe's `imports` may run, here and in the workers.
        notify: Where lines for people go.

    Returns:
        How it ended.

    Raises:
        RecipeError: The study file or an override cannot be used.
        RunError: The folder belongs to another study, or the data cannot be prepared.
    """
    study = read_study(path, overrides, trust=trust)
    require_sinks(study.sinks)
    jobs = jobs or study.jobs
    where = Path(folder) if folder is not None else Path("runs") / study.name
    runs = len(study.arms) * max(len(study.seeds), study.tune.trials if study.tune else 0)
    threads = take_folder(study, where, share(jobs, runs))
    # For the report's "how to reproduce"; another spelling of the same study is not another study.
    write_text(where / "started.json", dumps({"study": str(path), "overrides": list(overrides)}) + "\n")
    runner = _Runner(study, where, jobs, threads, trust, notify)
    ended = runner.tune() and runner.seeds() and runner.branches()
    if not ended:
        notify(f"Stopped. The same command goes on from here; what is done is kept in {where}.")
    finished, failed = runner.outcome()
    return StudyResult(where, finished, failed, not ended, _report(where, notify))


def take_folder(study: Study, folder: Path, threads: int) -> int:
    """Make the folder for a study, or take it up again if it was made for the same one or for fewer of its seeds.

    Args:
        study: The study.
        folder: Its folder.
        threads: CPU threads of each run, should the folder be new.

    Returns:
        CPU threads of each run: what the folder was made with, since they change rounding.

    Raises:
        RunError: The folder belongs to another study or holds something else.
    """
    path = folder / "study.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(before, dict) or not isinstance(before.get("threads"), int):
            raise RunError(f"{path}: is not what a study leaves; restore it, or name another folder")
        threads = before["threads"]
        # Through YAML and back, so that tuples and lists do not count as a difference.
        now = yaml.safe_load(yaml.safe_dump(study.definition(threads)))
        changed = differences(before, now)
        if list(changed) == ["seeds"] and set(before["seeds"]) < set(now["seeds"]):
            # More seeds of the same runs change none that exists.
            write_text(path, yaml.safe_dump(study.definition(threads), sort_keys=False, allow_unicode=True))
            changed = {}
        if changed:
            lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items())
            raise RunError(
                f"{folder}: belongs to another study; {len(changed)} setting(s) differ:\n{lines}\n"
                f"Name another folder (--folder), undo the change, or delete the folder if its runs are not needed"
            )
        return threads
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder}: holds files but no study.yaml, so it is no study's folder; name another folder")
    write_text(path, yaml.safe_dump(study.definition(threads), sort_keys=False, allow_unicode=True))
    return threads


def train_command(recipe: Path, folder: Path, *options: str, trust: bool) -> tuple[str, ...]:
    """Give the command that trains one run."""
    trusted = ("--trust",) if trust else ()
    return (sys.executable, "-m", "crossover", "train", str(recipe), "--run-dir", str(folder), *options, *trusted)


def prepare_command(recipe: Path, *, trust: bool) -> tuple[str, ...]:
    """Give the command that prepares the data of a recipe."""
    return (sys.executable, "-m", "crossover", "prepare", str(recipe), *(("--trust",) if trust else ()))


@dataclass
class _Runner:
    study: Study
    folder: Path
    jobs: int
    threads: int
    trust: bool
    notify: Notify

    def tune(self) -> bool:
        """Run the trials of every arm and choose; False when stopped."""
        tune = self.study.tune
        if tune is None:
            return True
        trials = draw_trials(tune)
        chosen = read_chosen(self.folder)
        budget = tune.budget or self.study.budget
        wanted = [arm for arm in self.study.arms if arm not in chosen]
        plan = {
            f"tune/{arm}/trial-{index}": self.study.recipe(
                arm, tune.seed, chosen=settings, budget=budget, threads=self.threads,
                name=f"{self.study.name}-{arm}-trial-{index}",
            )
            for arm in wanted
            for index, settings in enumerate(trials)
        }  # fmt: skip
        if not self._run("tune", plan):
            return False
        for arm in wanted:
            records = [try_read(self.folder / f"tune/{arm}/trial-{index}") for index in range(len(trials))]
            try:
                chosen[arm] = choose(arm, trials, records)
            except RunError as error:
                self.notify(str(error))
                continue
            write_chosen(self.folder, chosen)
            self.notify(_chosen_line(arm, chosen[arm]))
        return True

    def seeds(self) -> bool:
        """Run every arm with every seed; False when stopped."""
        plan = self.plan()
        forks = [text for amount in self.study.budgets for text in ("--fork-for", repr(amount))]
        free = self._horizon_free(plan)
        return self._run("seeds", plan, {name: forks for name in plan if free[name.split("/")[0]]})

    def branches(self) -> bool:
        """Run every arm with every seed at the smaller budgets too; False when stopped."""
        plan = self.plan()
        arms = [arm for arm in self.study.arms if self._arm_finished(arm)]
        found = branches_of(arms, self.study.seeds, self.study.budgets)
        shorter = {branch.name: self._shorter(plan[f"{branch.arm}/seed-{branch.seed}"], branch) for branch in found}
        begun = {branch.name: ["--branch-of", str(self.folder / branch.trunk)] for branch in found}
        if not self._run("seeds", shorter, begun):
            return False
        for branch in found:
            if self._finished(branch.name):
                forget_fork(self.folder / branch.trunk, branch.amount)
        return True

    def _horizon_free(self, plan: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
        first = f"/seed-{self.study.seeds[0]}"
        return {name.removesuffix(first): is_horizon_free(plan[name], name) for name in plan if name.endswith(first)}

    def _shorter(self, recipe: Mapping[str, Any], branch: Branch) -> dict[str, Any]:
        budget = {**recipe["budget"], next(iter(self.study.budget)): branch.amount}
        return {**recipe, "name": f"{recipe['name']}-at-{budget_label(branch.amount)}", "budget": budget}

    def plan(self) -> dict[str, dict[str, Any]]:
        """Resolve the recipe of every run whose settings are known (an arm that could not be tuned has none)."""
        chosen = read_chosen(self.folder)
        arms = [arm for arm in self.study.arms if self.study.tune is None or arm in chosen]
        return {
            f"{arm}/seed-{seed}": self.study.recipe(
                arm, seed, chosen=chosen.get(arm, {}).get("chosen", {}), budget=self.study.budget,
                threads=self.threads, name=f"{self.study.name}-{arm}-seed-{seed}",
            )
            for arm in arms
            for seed in self.study.seeds
        }  # fmt: skip

    def _run(
        self, phase: str, plan: Mapping[str, dict[str, Any]], options: Mapping[str, Sequence[str]] | None = None
    ) -> bool:
        """Run the runs of a plan that are not finished, each with its options; False when stopped."""
        if all(self._finished(name) for name in plan):
            return True
        trust = self.trust and bool(self.study.base.get("imports"))
        if not self._prepare(plan, trust):
            return False
        # All runs of the phase have a say, the finished ones too: the curves of a study share their grid.
        costs = costs_of(plan)
        share_grid(self.folder, phase, plan, costs)
        if told := dear_evaluations(plan, costs):
            self.notify(told)
        options = options or {}
        if phase == "seeds":
            # A run that keeps forks is made, also where a trial was the same: the trial kept none.
            adopt_trials(self.folder, {name: plan[name] for name in plan if not options.get(name)}, self.notify)
        todo = [name for name in plan if not self._finished(name)]
        if not todo:
            return True
        order = [name for name in longest_first(plan, costs) if name in todo]
        jobs = [self._job(name, plan[name], options.get(name, ()), trust) for name in order]
        workers, told = pack(self.jobs, len(jobs), max(job.threads for job in jobs))
        self.notify(told)
        with Overview(self.folder, list(plan), self.notify) as overview:
            fleet = run_jobs(jobs, workers=workers, watch=overview.watch, ended=overview.ended)
        return not fleet.interrupted

    def _arm_finished(self, arm: str) -> bool:
        return all(self._finished(f"{arm}/seed-{seed}") for seed in self.study.seeds)

    def _finished(self, name: str) -> bool:
        return read_status(self.folder / name)["state"] == "finished"

    def _job(self, name: str, recipe: Mapping[str, Any], options: Sequence[str], trust: bool) -> Job:
        command = train_command(self._write_recipe(name, recipe), self.folder / name, *options, trust=trust)
        # The recipe's number is what the run computes with; its environment must not say another one.
        return Job(name, command, self.folder / name, self._log(name), recipe["training"]["threads"])

    def _prepare(self, plan: Mapping[str, Mapping[str, Any]], trust: bool) -> bool:
        """Prepare each distinct text once, before workers could race for it."""
        texts = {json.dumps(recipe.get("data"), sort_keys=True, default=str): name for name, recipe in plan.items()}
        for index, name in enumerate(texts.values()):
            log = self.folder / "logs" / f"prepare-{index}.txt"
            command = prepare_command(self._write_recipe(f"prepare-{index}", plan[name]), trust=trust)
            fleet = run_jobs([Job("prepare", command, self.folder, log, cores())], workers=1)
            if fleet.interrupted:
                return False
            if fleet.ended.get("prepare") != 0:
                raise RunError(f"the data cannot be prepared; the end of {log}:\n{tail(log)}")
        return True

    def _write_recipe(self, name: str, recipe: Mapping[str, Any]) -> Path:
        path = self.folder / "recipes" / f"{name.replace('/', '-')}.yaml"
        write_text(path, yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
        return path

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name.replace('/', '-')}.txt"

    def outcome(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """List the runs that are finished, and the end of the log of those that are not."""
        study = self.study
        names = [f"{arm}/seed-{seed}" for arm in study.arms for seed in study.seeds]
        names += [branch.name for branch in branches_of(list(study.arms), study.seeds, study.budgets)]
        finished = tuple(name for name in names if read_status(self.folder / name)["state"] == "finished")
        return finished, {name: tail(self._log(name)) for name in names if name not in finished}


def try_read(folder: Path) -> RunRecord | None:
    """Read a run folder, or return None where there is no run yet."""
    return read_run(folder) if (folder / "recipe.yaml").exists() else None


def _chosen_line(arm: str, result: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value}" for key, value in result["chosen"].items())
    kind = "exact" if result["exact"] else "a bound"
    return (
        f"tuned {arm}: {settings} ({result['bits_per_byte']:.3f} bits per byte on dev by {result['procedure']}, {kind}"
        f"; {len(result['trials'])} trials, {result['flops']:.2e} FLOPs)"
    )


def _report(folder: Path, notify: Notify) -> Path | None:
    """Write the report; a report that fails does not take the runs with it."""
    from crossover.evidence.report import write_report

    try:
        return write_report(folder)
    except CrossoverError as error:
        notify(f"no report yet: {error}")
        return None
