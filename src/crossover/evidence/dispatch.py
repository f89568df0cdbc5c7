"""A study on a cluster: what is missing is submitted, stage by stage, as arrays of jobs.

The files are the truth: every look asks which runs are finished and which are in the queue, and submits the rest. So
the same command may be given at any time. Branches wait in the queue for the array of their trunks. What tuning chose
is only known when the trials have ended, so the command is given again then, or stays and looks (`wait`). No job
submits others: many clusters forbid that, and where a command was forgotten nothing is lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crossover.errors import RunError
from crossover.evidence.cluster import Cluster, ClusterRun, queued_jobs, submit
from crossover.evidence.definition import read_study
from crossover.evidence.lock import take_lock
from crossover.evidence.runlist import Planned
from crossover.evidence.study import Notify, StudyResult, StudyRuns, begin_study, report_of
from crossover.evidence.workers import Job

POLL_SECONDS = 30.0
# While it waits, a queue that does not answer is asked again so many times in a row: controllers are restarted.
LOOKS = 60


def dispatch_study(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    cluster: Cluster,
    folder: str | Path | None = None,
    wait: bool = False,
    trust: bool = False,
    notify: Notify = print,
    poll_seconds: float = POLL_SECONDS,
) -> StudyResult:
    """Submit what is missing of a study; where nothing is, write its report.

    Args:
        path: The study file.
        overrides: `study.key=value`, or `key=value` for the recipe of every arm.
        cluster: What each run asks of the cluster.
        folder: Where it lives, on a disk that the cluster shares; None means `runs/<study name>`.
        wait: Whether to stay, and submit what becomes possible, until nothing is in the queue.
        trust: Whether the recipe's `imports` may run, here and in the jobs.
        notify: Where lines for people go.
        poll_seconds: Time between two looks.

    Returns:
        How it stands; runs that are in the queue count as neither finished nor failed.

    Raises:
        RecipeError: The study file or an override cannot be used.
        RunError: The folder belongs to another study, the data cannot be prepared, or the cluster refuses.
    """
    study = read_study(path, overrides, trust=trust)
    runs = begin_study(
        study, path, overrides, folder, threads=cluster.threads, processes=cluster.processes, trust=trust, notify=notify
    )
    if runs.threads != cluster.threads:
        notify(
            f"{runs.folder} was made with {runs.threads} thread(s) for each process and keeps them, instead of "
            f"{cluster.threads}: --cpus-per-run {runs.threads * cluster.processes} is what a run can use"
        )
    look = _Dispatch(runs, cluster)
    queued = look.advance()
    while queued and wait:
        if set(_patiently(runs, cluster.kind, poll_seconds)) != set(queued):
            queued = look.advance()
        else:
            time.sleep(poll_seconds)
    finished, open_ones = runs.outcome()
    if queued:
        notify("The same command, given again later, submits what is missing by then, and at last writes the report.")
        return StudyResult(runs.folder, finished, {}, False, None)
    return StudyResult(runs.folder, finished, open_ones, False, report_of(runs.folder, notify))


def _patiently(runs: StudyRuns, kind: str, poll_seconds: float) -> dict[str, str]:
    """Ask which runs are in the queue; one that does not answer for a while is no reason to leave."""
    for look in range(LOOKS):
        try:
            return queued_jobs(runs.folder, kind)
        except RunError as error:
            if not look:
                runs.notify(f"{error}; asked again every {poll_seconds:g} s")
            time.sleep(poll_seconds)
    return queued_jobs(runs.folder, kind)


@dataclass
class _Dispatch:
    """Looks at how a study stands and submits what can be.

    Args:
        runs: The study's runs.
        cluster: What each asks for.
        tried: Runs submitted by this command; one that ended unfinished is not submitted by it again.
        held: Runs that cannot be submitted yet.
    """

    runs: StudyRuns
    cluster: Cluster
    tried: set[str] = field(default_factory=set)
    held: int = 0

    def advance(self) -> dict[str, str]:
        """Submit what is missing and can begin, now or after what is in the queue.

        Returns:
            The jobs in the queue, by run.
        """
        with _alone(self.runs.folder):
            queued, self.held = queued_jobs(self.runs.folder, self.cluster.kind), 0
            if self._stage("tune", queued):
                study = self.runs.study
                self.held += len(study.arms) * len(study.seeds) * (1 + len(study.budgets))
            else:
                self.runs.settle("tune")
                self._stage("seeds", queued)
                self._stage("branches", queued)
                self.runs.settle("branches")
        if queued:
            finished = len(self.runs.outcome()[0])
            self.runs.notify(f"{finished} run(s) finished, {len(queued)} in the queue, {self.held} wait for them.")
        return queued

    def _stage(self, stage: str, queued: dict[str, str]) -> bool:
        """Submit what is missing of a stage, and add it to the queue; say whether any of the stage is still to come."""
        coming = {run.name: run for run in self.runs.planned(stage) if self._can_come(run, queued)}
        jobs = self.runs.missing(stage, lambda run: run.name in coming)
        if jobs is None:
            raise KeyboardInterrupt
        todo = [job for job in jobs if job.name not in queued and not self._given_up(stage, job)]
        todo = self.runs.not_under_way(todo)
        # Jobs on this machine begin at once, so their number is limited here.
        room = self.cluster.max_parallel - len(queued) if self.cluster.kind == "local" else len(todo)
        todo, later = todo[: max(0, room)], todo[max(0, room) :]
        missing_trunks = [run for run in self.runs.planned(stage) if run.name not in coming]
        self.held += len(later) + len(missing_trunks)
        if todo:
            self._submit(stage, todo, coming, queued)
        return bool(later) or any(name in queued for name in coming)

    def _submit(self, stage: str, todo: Sequence[Job], planned: Mapping[str, Planned], queued: dict[str, str]) -> None:
        needs = {job.name: planned[job.name].needs if stage == "branches" else () for job in todo}
        # The job of a whole array is the part before its "_".
        after = sorted({queued[need].split("_")[0] for names in needs.values() for need in names if need in queued})
        folder = self.runs.folder
        made = [ClusterRun(job, tuple(folder / need for need in needs[job.name])) for job in todo]
        found = submit(folder, f"{self.runs.study.name}-{stage}", self.cluster, made, after)
        queued |= found
        self.tried |= set(found)
        numbers = ", ".join(dict.fromkeys(job.split("_")[0] for job in found.values()))
        then = f", after {', '.join(after)}" if after else ""
        self.runs.notify(f"{len(found)} run(s) submitted as job {numbers}{then}: {', '.join(found)}")

    def _can_come(self, run: Planned, queued: Mapping[str, str]) -> bool:
        """Say whether a run can be submitted: a branch may wait for a job that the cluster can be told to wait for."""
        if run.stage != "branches" or self.runs.may_begin(run):
            return True
        return self.cluster.kind == "slurm" and all(need in queued for need in run.needs)

    def _given_up(self, stage: str, job: Job) -> bool:
        """Say whether a run is left as it is: a trial that failed has been tried, and others end once per command."""
        return job.name in self.tried or (stage == "tune" and self.runs.state(job.name) == "failed")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Look and submit while no other command does."""
    with take_lock(folder):
        yield
