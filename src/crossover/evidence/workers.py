"""Runs as processes: so many at a time, stopped cleanly, one failure no reason to stop the others."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from crossover.evidence.files import room_on_disk
from crossover.stopping import SAME_SECONDS

PATIENCE_SECONDS = 60.0
# Workers of a run that have died are started again so many times; each time they go on from their last checkpoint.
RESTARTS = 3


@dataclass(frozen=True)
class Job:
    """One run to start.

    Args:
        name: What the overview calls it, such as "masked/seed-0".
        command: Program and arguments.
        folder: The run folder, which the process makes.
        log: Its output goes to the end of this file.
        threads: CPU threads that each of its processes computes with.
        processes: Processes that train it together.
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    log: Path
    threads: int
    processes: int = 1


@dataclass
class Fleet:
    """Which jobs wait, run and have ended; the overview reads it.

    Args:
        waiting: Jobs not yet started.
        running: Processes by job name.
        ended: Exit codes by job name.
        interrupted: Whether a person (or a scheduler) has stopped it.
    """

    waiting: list[Job]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    interrupted: bool = False


def cores() -> int:
    """Count the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(jobs: int, runs: int) -> int:
    """Divide the cores among the runs that go at the same time.

    Args:
        jobs: Runs that should go at the same time.
        runs: Runs that there are.

    Returns:
        CPU threads of each run.
    """
    return max(1, cores() // min(jobs, runs))


def pack(jobs: int, runs: int, threads: int) -> tuple[int, str]:
    """Decide how many runs go at the same time, so that together they use no more threads than there are cores.

    Args:
        jobs: Runs that should go at the same time.
        runs: Runs that there are.
        threads: CPU threads of each.

    Returns:
        How many will, and a sentence that says so, with the reason where that is less than was asked for.
    """
    room = max(1, cores() // threads)
    workers = min(jobs, runs, room)
    told = f"{runs} run(s), {workers} at a time, {threads} thread(s) each on {cores()} core(s)"
    if threads > cores():
        return workers, f"{told}; they were given more threads than there are cores here, which makes them slow"
    if min(jobs, runs) > room:
        return workers, f"{told}; not {jobs} at a time: runs that share a core slow each other down and end no sooner"
    return workers, told


def environment(threads: int, processes: int = 1, devices: str | None = None) -> dict[str, str]:
    """Give a worker its share of the cores (and GPUs), so that N workers do not fight over them.

    Args:
        threads: CPU threads of each of its processes.
        processes: Its processes.
        devices: The GPUs that it may use, as CUDA_VISIBLE_DEVICES says it; None leaves all.

    Returns:
        This process's environment with what the worker's must say.
    """
    # The last one is torch's compiler, which else starts a process per core for every run.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS",
             "TORCHINDUCTOR_COMPILE_THREADS")  # fmt: skip
    given = {**os.environ, **dict.fromkeys(names, str(threads)), "TOKENIZERS_PARALLELISM": "false"}
    if devices is not None:
        given["CUDA_VISIBLE_DEVICES"] = devices
    if processes > 1:
        # Without the first, restarted workers read the addresses of dead ones and hang. The second is how long torchrun
        # waits for its workers to save when it is asked to stop.
        given |= {
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{PATIENCE_SECONDS:.0f}",
        }
    return given


def under_torchrun(command: tuple[str, ...], processes: int) -> tuple[str, ...]:
    """Let several processes on one machine run a Python command together.

    Args:
        command: The interpreter and its arguments.
        processes: How many processes; one needs no launcher.

    Returns:
        The command to start.
    """
    if processes == 1:
        return command
    python, *rest = command
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return (python, *launcher, "--max-restarts", str(RESTARTS), *rest)


def gpus() -> tuple[str, ...]:
    """List the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; empty on a machine without one."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip())
    if shutil.which("nvidia-smi") is None:
        return ()
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(index) for index in range(len(found)))


def deal_gpus(devices: Sequence[str], workers: int, processes: int) -> list[str | None]:
    """Deal a machine's GPUs to the runs that go at the same time; where there are too few, runs share them.

    Args:
        devices: GPUs as CUDA_VISIBLE_DEVICES names them.
        workers: Runs at the same time.
        processes: Processes of each run, one GPU for each.

    Returns:
        CUDA_VISIBLE_DEVICES for each place; None where there is nothing to choose.
    """
    if len(devices) < 2:
        return [None] * workers
    taken = min(processes, len(devices))
    return [",".join(devices[(place * taken + i) % len(devices)] for i in range(taken)) for place in range(workers)]


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    begins: Callable[[Job], bool] = lambda job: True,
    watch: Callable[[Fleet], None] = lambda fleet: None,
    ended: Callable[[Job, int], None] = lambda job, code: None,
    poll_seconds: float = 0.2,
) -> Fleet:
    """Run jobs as processes, so many at a time.

    Args:
        jobs: What to run, in this order.
        workers: How many at a time.
        begins: Asked when a job's turn has come; one that need not begin any more is left out.
        watch: Called at each poll, to show how it goes.
        ended: Called when a job has ended, with its exit code.
        poll_seconds: Time between two looks.

    Returns:
        The fleet at its end; when it was interrupted, jobs may still be waiting.
    """
    fleet, by_name = Fleet(list(jobs)), {job.name: job for job in jobs}
    dealt = deal_gpus(gpus(), workers, max((job.processes for job in jobs), default=1))
    places: dict[str, int] = {}
    with _stoppable(fleet):
        try:
            while (fleet.waiting or fleet.running) and not fleet.interrupted:
                while fleet.waiting and len(fleet.running) < workers:
                    job = fleet.waiting.pop(0)
                    if not begins(job):
                        continue
                    places[job.name] = min(set(range(workers)) - {places[name] for name in fleet.running})
                    env = environment(job.threads, job.processes, dealt[places[job.name]])
                    fleet.running[job.name] = start(job, env)
                for name in [name for name, process in fleet.running.items() if process.poll() is not None]:
                    fleet.ended[name] = fleet.running.pop(name).returncode
                    ended(by_name[name], fleet.ended[name])
                watch(fleet)
                if fleet.running:
                    time.sleep(poll_seconds)
        finally:
            # Also after an error in here: no run is left behind without its study.
            _stop_all(fleet)
    return fleet


def start(job: Job, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a job; its output goes to its log, and a terminal's ^C reaches it only through us."""
    with room_on_disk(job.log):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )


@contextmanager
def _stoppable(fleet: Fleet) -> Iterator[None]:
    """Let ^C and a scheduler's signals set a flag instead of tearing the loop apart."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_at = 0.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if not fleet.interrupted:
            fleet.interrupted, asked_at = True, now
        elif now - asked_at >= SAME_SECONDS:
            for process in fleet.running.values():
                process.kill()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    # What ignores ^C, such as a script's background job, goes on ignoring it.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_all(fleet: Fleet) -> None:
    """Ask every process to save and stop, and insist only after a minute (or a second ^C)."""
    for process in fleet.running.values():
        # Not SIGINT: a script's background job ignores it, and so do the processes that it starts.
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_SECONDS
    for name, process in list(fleet.running.items()):
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
        fleet.ended[name] = process.wait()
    fleet.running.clear()


def tail(path: Path, lines: int = 15) -> str:
    """Read the last lines of a log."""
    if not path.exists():
        return "(no log)"
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 200 * lines))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
