"""Runs as jobs of a cluster: what is asked of it for each, what happens in a job, and which jobs are alive."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from crossover.errors import RunError
from crossover.evidence.files import drop_torn_line, dumps, read_rows, room_on_disk
from crossover.evidence.record import read_status
from crossover.evidence.workers import Job, environment, start, tail

KINDS = ("slurm", "local")
# A job is told so long before its time is up; most of it is left to the run for saving.
NOTICE_SECONDS = 120
# A job goes on in a new turn of the queue so many times.
TURNS = 100
JOBS_FILE = "jobs.jsonl"


@dataclass(frozen=True)
class Cluster:
    """What each run asks of a cluster.

    Args:
        kind: "slurm", or "local" for jobs on this machine.
        minutes: Time limit of a job; a run that needs longer goes on in another turn of the queue.
        gpus_per_run: GPUs, each with a process of its own.
        cpus_per_run: CPU cores, shared by a run's processes.
        processes_per_run: Processes of a run; None means one for each GPU, and one where there are none.
        memory: Main memory such as "16GB", or None for the cluster's default.
        partition: The partition, or None.
        account: The account, or None.
        max_parallel: Most jobs of an array at the same time.
        setup: Shell lines that come first in a job, such as "module load cuda".
        options: Further options of sbatch by name, such as {"constraint": "a100"}.
    """

    kind: str = "slurm"
    minutes: int = 480
    gpus_per_run: int = 1
    cpus_per_run: int = 4
    processes_per_run: int | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None
    max_parallel: int = 16
    setup: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        """Processes of a run."""
        return self.processes_per_run or max(1, self.gpus_per_run)

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return max(1, self.cpus_per_run // self.processes)


def minutes_of(text: str) -> int:
    """Read a time limit as sbatch does.

    Args:
        text: Minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, or with :seconds.

    Returns:
        Minutes, rounded up.

    Raises:
        RunError: It is none of these, or no time at all.
    """
    found = re.fullmatch(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})", text.strip())
    if found is None:
        raise RunError(f"--time {text}: expected a time limit such as 8:00:00, 1-12 (days-hours) or 90 (minutes)")
    parts = [int(part) for part in found["rest"].split(":")]
    if found["days"] is not None or len(parts) == 3:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = (0, *parts, 0)[:3]
    total = (int(found["days"] or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    if total <= NOTICE_SECONDS:
        raise RunError(f"--time {text}: a job is told to save {NOTICE_SECONDS} s before its end; give it longer")
    return -(-total // 60)


@dataclass(frozen=True)
class ClusterRun:
    """What a job does: it trains one run, and hands on the wish that it stop.

    submitit writes this object down when a job is submitted and calls it on the cluster.

    Args:
        job: The run and its command.
        needs: Run folders that must be finished before it begins.
        started: The process, once there is one.
    """

    job: Job
    needs: tuple[Path, ...] = ()
    started: list[subprocess.Popen[bytes]] = field(default_factory=list, compare=False)

    def __call__(self) -> str:
        """Train the run to its end, unless it has ended before.

        Returns:
            How it stands.

        Raises:
            RunError: What it needs is not finished, or it ended before its budget was spent.
        """
        if read_status(self.job.folder)["state"] == "finished":
            return "finished before"
        if waits := [str(path) for path in self.needs if read_status(path)["state"] != "finished"]:
            raise RunError(
                f"{self.job.name}: needs {', '.join(waits)}, which is not finished; give the study's command again"
            )
        # A cancelled or evicted job hears SIGTERM and nothing else, so the run must hear it too.
        before = signal.signal(signal.SIGTERM, self._pass_on)
        process = self._start()
        try:
            while process.poll() is None:
                time.sleep(0.1)
        finally:
            self.ask_to_stop()
            signal.signal(signal.SIGTERM, before)
        status = read_status(self.job.folder)
        if status["state"] != "finished":
            why = f": {status['why']}" if status.get("why") else ""
            raise RunError(f"{self.job.name}: {status['state']}{why}; the end of {self.job.log}:\n{tail(self.job.log)}")
        return "finished"

    def checkpoint(self) -> Any:
        """Let the run save and stop, because the job's time is nearly up; what is returned goes back to the queue."""
        from submitit.core.utils import DelayedSubmission

        self.ask_to_stop()
        deadline = time.monotonic() + NOTICE_SECONDS - 15
        # We may stand inside `poll`, which holds a lock, so the system is asked and not the process object.
        while any(_is_alive(process.pid) for process in self.started) and time.monotonic() < deadline:
            time.sleep(0.1)
        return DelayedSubmission(ClusterRun(self.job, self.needs))

    def ask_to_stop(self) -> None:
        """Ask the run to save and stop, if it goes on."""
        for process in self.started:
            if process.returncode is None and _is_alive(process.pid):
                os.kill(process.pid, signal.SIGTERM)

    def _start(self) -> subprocess.Popen[bytes]:
        # Some clusters send submitit's signal to every process of a job. It is not meant for the run, and would end it.
        of_submitit = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            self.started.append(start(self.job, environment(self.job.threads, self.job.processes)))
        finally:
            signal.signal(signal.SIGUSR2, of_submitit)
        return self.started[-1]

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.ask_to_stop()


def _is_alive(child: int) -> bool:
    """Say whether a child process goes on, without taking its exit code from whoever waits for it."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False


def submit(
    folder: Path, name: str, cluster: Cluster, runs: Sequence[ClusterRun], after: Sequence[str]
) -> dict[str, str]:
    """Submit runs as one array, and write down which job is which run's.

    Args:
        folder: The study's folder.
        name: What the queue calls them.
        cluster: What each asks for.
        runs: The runs; at least one.
        after: Jobs that must have ended before, however they ended.

    Returns:
        Job ids by run.

    Raises:
        RunError: submitit is not installed, or the cluster refuses.
    """
    submitit = _submitit()
    if cluster.kind == "slurm" and "%" in str(folder.absolute()):
        raise RunError(f"{folder.absolute()}: SLURM reads a % in a path as the job's number; name another folder")
    try:
        executor = submitit.AutoExecutor(
            folder / "logs" / "jobs" / "%j",
            cluster=cluster.kind,
            slurm_max_num_timeout=TURNS,
            local_max_num_timeout=TURNS,
        )
        executor.update_parameters(**_parameters(name, cluster, after))
        jobs = executor.submit_array(runs)
    except (RuntimeError, OSError) as error:
        raise RunError(f"{cluster.kind}: the jobs of {folder} cannot be submitted: {error}") from None
    found = {run.job.name: str(job.job_id) for run, job in zip(runs, jobs, strict=True)}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    path = folder / JOBS_FILE
    with room_on_disk(path):
        drop_torn_line(path)
        with open(path, "a", encoding="utf-8") as file:
            for run, job in found.items():
                file.write(dumps({"run": run, "job": job, "cluster": cluster.kind, "submitted": now}) + "\n")
    return found


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError:
        raise RunError("jobs of a cluster need submitit; install it with: pip install 'crossover-lm[slurm]'") from None
    return submitit


def _parameters(name: str, cluster: Cluster, after: Sequence[str]) -> dict[str, Any]:
    """Say to submitit what each job asks for."""
    given: dict[str, Any] = {"name": name, "timeout_min": cluster.minutes, "cpus_per_task": cluster.cpus_per_run}
    if cluster.gpus_per_run:
        given["gpus_per_node"] = cluster.gpus_per_run
    if cluster.kind == "local":
        return {**given, **({"local_setup": list(cluster.setup)} if cluster.setup else {})}
    further = dict(cluster.options)
    if after:
        # Not `afterok`, which one failed job of an array turns into never: the job looks for itself at what it needs.
        ours = f"afterany:{':'.join(after)}"
        further["dependency"] = f"{further['dependency']},{ours}" if "dependency" in further else ours
    stated = {"slurm_mem": cluster.memory, "slurm_partition": cluster.partition, "slurm_account": cluster.account}
    return {
        **given,
        **{key: value for key, value in stated.items() if value is not None},
        "slurm_array_parallelism": cluster.max_parallel,
        "slurm_signal_delay_s": NOTICE_SECONDS,
        # srun no longer takes this number over from its job.
        "slurm_srun_args": [f"--cpus-per-task={cluster.cpus_per_run}"],
        "slurm_additional_parameters": further,
        **({"slurm_setup": list(cluster.setup)} if cluster.setup else {}),
    }


def queued_jobs(folder: Path, kind: str) -> dict[str, str]:
    """Find which runs of a study wait or run as jobs now.

    Args:
        folder: The study's folder.
        kind: "slurm" or "local".

    Returns:
        Job ids by run.

    Raises:
        RunError: The cluster does not answer: what is queued already must not be submitted twice.
    """
    path = folder / JOBS_FILE
    rows = [row for row in read_rows(path) if row.get("cluster") == kind]
    jobs = [(str(row.get("run")), str(row.get("job"))) for row in rows]
    if not jobs:
        return {}
    alive = _in_queue() if kind == "slurm" else {job for _, job in jobs if _goes_on(folder, job)}
    return {run: job for run, job in jobs if job in alive}


def _in_queue() -> set[str]:
    # All jobs of this user: a question by id is an error once the last of them has ended.
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise RunError("squeue: no such program; give this command where jobs are submitted (a login node)") from None
    except subprocess.TimeoutExpired:
        raise RunError("squeue does not answer; without it, runs that are queued might be queued twice") from None
    if asked.returncode:
        raise RunError(f"squeue: {asked.stderr.strip()}; without it, runs that are queued might be queued twice")
    return set(asked.stdout.split())


def _goes_on(folder: Path, job: str) -> bool:
    """Say whether a job on this machine goes on; its number may have become another program's."""
    if (folder / "logs" / "jobs" / job / f"{job}_0_result.pkl").exists():
        return False
    try:
        state = Path(f"/proc/{job}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
        line = Path(f"/proc/{job}/cmdline").read_bytes()
    except OSError:
        return False
    # A process has no line in the instant in which it starts, and none once it has ended and nobody has asked how.
    return state not in "ZX" and (not line or b"submitit" in line)
