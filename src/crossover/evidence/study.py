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
from crossover.evidence.branches import branches_of, forget_fork
from crossover.evidence.definition import Study, read_study
from crossover.evidence.files import dumps, write_text
from crossover.evidence.grid import costs_of, dear_evaluations, longest_first, share_grid
from crossover.evidence.overview import Overview
from crossover.evidence.record import RunRecord, read_run, read_status
from crossover.evidence.runlist import STAGES, Planned, runs_of
from crossover.evidence.sinks.tee import require_sinks
from crossover.evidence.study_folder import folder_of, take_folder
from crossover.evidence.tune import choose, draw_trials, read_chosen, write_chosen
from crossover.evidence.workers import Job, cores, pack, run_jobs, share, tail, under_torchrun

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
    processes: int = 1,
    trust: bool = False,
    notify: Notify = print,
) -> StudyResult:
    """Run what is missing of a study, and write its report.

    Args:
        path: The study file.
        overrides: `study.key=value`, or `key=value` for the recipe of every arm.
        folder: Where it lives; None means `runs/<study name>`.
        jobs: Runs at the same time, each a process; None means what the file says. The cores are divided among
            them, and no more go at a time than there are cores for; a machine's GPUs are dealt to them.
        processes: Processes that train each run together, under torchrun.
        trust: Whether the recipe's `imports` may run, here and in the workers.
        notify: Where lines for people go.

    Returns:
        How it ended.

    Raises:
        RecipeError: The study file or an override cannot be used.
        RunError: The folder belongs to another study, or the data cannot be prepared.
    """
    study = read_study(path, overrides, trust=trust)
    jobs = jobs or study.jobs
    count = len(study.arms) * max(len(study.seeds), study.tune.trials if study.tune else 0)
    threads = max(1, share(jobs, count) // processes)
    runs = begin_study(study, path, overrides, folder, threads=threads, processes=processes, trust=trust, notify=notify)
    ended = all(_work(runs, stage, jobs) for stage in STAGES)
    if not ended:
        notify(f"Stopped. The same command goes on from here; what is done is kept in {runs.folder}.")
    finished, failed = runs.outcome()
    return StudyResult(runs.folder, finished, failed, not ended, report_of(runs.folder, notify))


def _work(runs: StudyRuns, stage: str, jobs: int) -> bool:
    """Run what is missing of a stage, so many at a time; False when stopped."""
    missing = runs.missing(stage, runs.may_begin)
    if missing is None:
        return False
    missing = runs.not_under_way(missing)
    if missing:
        workers, told = pack(jobs, len(missing), max(job.threads * job.processes for job in missing))
        runs.notify(told)
        with Overview(runs.folder, [run.name for run in runs.planned(stage)], runs.notify) as overview:
            fleet = run_jobs(missing, workers=workers, begins=runs.begins, watch=overview.watch, ended=overview.ended)
            if fleet.interrupted:
                return False
    runs.settle(stage)
    return True


def begin_study(
    study: Study,
    path: str | Path,
    overrides: Sequence[str],
    folder: str | Path | None,
    *,
    threads: int,
    processes: int,
    trust: bool,
    notify: Notify,
) -> StudyRuns:
    """Take the folder of a study, for whoever will start its runs.

    Args:
        study: The study.
        path: Its file.
        overrides: What was set besides.
        folder: Where it lives; None means `runs/<study name>`.
        threads: CPU threads of each process of a run, should the folder be new.
        processes: Processes of each run.
        trust: Whether the recipe's `imports` may run in the workers.
        notify: Where lines for people go.

    Returns:
        Its runs.

    Raises:
        RunError: The folder belongs to another study, or a sink's extra is missing.
    """
    require_sinks(study.sinks)
    where = folder_of(study, folder)
    threads = take_folder(study, where, threads)
    # For the report's "how to reproduce"; another spelling of the same study is not another study.
    write_text(where / "started.json", dumps({"study": str(path), "overrides": list(overrides)}) + "\n")
    return StudyRuns(study, where, threads, trust, notify, processes)


def train_command(recipe: Path, folder: Path, *options: str, trust: bool) -> tuple[str, ...]:
    """Give the command that trains one run."""
    trusted = ("--trust",) if trust else ()
    return (sys.executable, "-m", "crossover", "train", str(recipe), "--run-dir", str(folder), *options, *trusted)


def prepare_command(recipe: Path, *, trust: bool) -> tuple[str, ...]:
    """Give the command that prepares the data of a recipe."""
    return (sys.executable, "-m", "crossover", "prepare", str(recipe), *(("--trust",) if trust else ()))


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study in its folder, stage by stage, whoever starts them.

    Args:
        study: The study.
        folder: Its folder.
        threads: CPU threads of each process of a run.
        trust: Whether the recipe's `imports` may run in the workers.
        notify: Where lines for people go.
        processes: Processes of each run.
    """

    study: Study
    folder: Path
    threads: int
    trust: bool = False
    notify: Notify = print
    processes: int = 1

    def planned(self, stage: str) -> list[Planned]:
        """List a stage's runs whose settings are known; a trial of an arm whose settings are chosen is none."""
        chosen = read_chosen(self.folder)
        runs = runs_of(self.study, stage, chosen, self.threads)
        return [run for run in runs if run.recipe is not None and not (stage == "tune" and run.arm in chosen)]

    def state(self, name: str) -> str:
        """Say how a run stands: running, finished, failed or interrupted."""
        return str(read_status(self.folder / name)["state"])

    def may_begin(self, run: Planned) -> bool:
        """Say whether all that a run needs is finished; trials that failed hold nothing up once settings are chosen."""
        return run.stage != "branches" or all(self.state(name) == "finished" for name in run.needs)

    def missing(self, stage: str, may: Callable[[Planned], bool]) -> list[Job] | None:
        """Make ready what is missing of a stage: texts prepared, one grid, recipes written.

        Args:
            stage: One of `STAGES`.
            may: Whether a run is to be started now.

        Returns:
            A job for each run that is not finished, the longest first; None when a person stopped it.

        Raises:
            RunError: The data cannot be prepared.
        """
        runs = {run.name: run for run in self.planned(stage) if may(run)}
        plan = {name: run.recipe for name, run in runs.items() if run.recipe is not None}
        if all(self.state(name) == "finished" for name in plan):
            return []
        if not self._prepare(plan):
            return None
        # All runs of the phase have a say, the finished ones too: the curves of a study share their grid.
        phase = "tune" if stage == "tune" else "seeds"
        costs = costs_of(plan)
        share_grid(self.folder, phase, plan, costs)
        if told := dear_evaluations(plan, costs):
            self.notify(told)
        if stage == "seeds":
            # A run that keeps forks is made, also where a trial was the same: the trial kept none.
            adopt_trials(self.folder, {name: plan[name] for name in plan if not runs[name].keeps}, self.notify)
        order = [name for name in longest_first(plan, costs) if self.state(name) != "finished"]
        for name in order:
            self._write_recipe(name, plan[name])
        return [self.job(runs[name]) for name in order]

    def not_under_way(self, jobs: Sequence[Job]) -> list[Job]:
        """Leave out the runs that another command's process is training, and say which these are."""
        others = [job.name for job in jobs if self.state(job.name) == "running"]
        if others:
            self.notify(f"left to the process that trains it: {', '.join(others)}")
        return [job for job in jobs if job.name not in others]

    def begins(self, job: Job) -> bool:
        """Say whether a run is still to be started, now that its turn has come: another command may have done so."""
        return self.state(job.name) != "finished" and bool(self.not_under_way([job]))

    def settle(self, stage: str) -> None:
        """Do what the end of a stage asks for: choose what tuning found, forget forks whose branches are made."""
        if stage == "tune" and self.study.tune is not None:
            self._choose(draw_trials(self.study.tune))
        for run in self.planned(stage):
            if run.trunk and self.state(run.name) == "finished":
                forget_fork(self.folder / run.trunk, run.amount)

    def _choose(self, trials: Sequence[Mapping[str, Any]]) -> None:
        chosen = read_chosen(self.folder)
        for arm in [arm for arm in self.study.arms if arm not in chosen]:
            names = [f"tune/{arm}/trial-{index}" for index in range(len(trials))]
            # A trial that failed has been tried. One that was stopped, or goes on elsewhere, has not: every arm gets
            # the same number of trials.
            if still := [name for name in names if self.state(name) not in ("finished", "failed")]:
                self.notify(
                    f"{arm}: its settings are chosen when all of its {len(trials)} trials have ended; give the same "
                    f"command again for {', '.join(f'{name} ({self.state(name)})' for name in still)}"
                )
                continue
            records = [try_read(self.folder / name) for name in names]
            try:
                chosen[arm] = choose(arm, trials, records)
            except RunError as error:
                self.notify(str(error))
                continue
            write_chosen(self.folder, chosen)
            self.notify(_chosen_line(arm, chosen[arm]))

    def job(self, run: Planned) -> Job:
        """Say how a run is started."""
        options = [text for amount in run.keeps for text in ("--fork-for", repr(amount))]
        options += ["--branch-of", str(self.folder / run.trunk)] if run.trunk else []
        command = train_command(self._recipe(run.name), self.folder / run.name, *options, trust=self._trusts())
        # The recipe's number is what the run computes with; its environment must not say another one.
        threads = run.recipe["training"]["threads"] if run.recipe is not None else self.threads
        command = under_torchrun(command, self.processes)
        return Job(run.name, command, self.folder / run.name, self._log(run.name), threads, self.processes)

    def _trusts(self) -> bool:
        return self.trust and bool(self.study.base.get("imports"))

    def _prepare(self, plan: Mapping[str, Mapping[str, Any]]) -> bool:
        """Prepare each distinct text once, before workers could race for it."""
        texts = {json.dumps(recipe.get("data"), sort_keys=True, default=str): name for name, recipe in plan.items()}
        for index, name in enumerate(texts.values()):
            log = self.folder / "logs" / f"prepare-{index}.txt"
            command = prepare_command(self._write_recipe(f"prepare-{index}", plan[name]), trust=self._trusts())
            fleet = run_jobs([Job("prepare", command, self.folder, log, cores())], workers=1)
            if fleet.interrupted:
                return False
            if fleet.ended.get("prepare") != 0:
                raise RunError(f"the data cannot be prepared; the end of {log}:\n{tail(log)}")
        return True

    def _recipe(self, name: str) -> Path:
        return self.folder / "recipes" / f"{name.replace('/', '-')}.yaml"

    def _write_recipe(self, name: str, recipe: Mapping[str, Any]) -> Path:
        path = self._recipe(name)
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


def report_of(folder: Path, notify: Notify) -> Path | None:
    """Write the report; a report that fails does not take the runs with it."""
    from crossover.evidence.report import write_report

    try:
        return write_report(folder)
    except CrossoverError as error:
        notify(f"no report yet: {error}")
        return None
