"""Runs of several processes on one machine: their command, their environment, and which GPUs they get."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.evidence import workers


def test_one_process_needs_no_launcher() -> None:
    command = ("python", "-m", "crossover", "train", "r.yaml")
    assert workers.under_torchrun(command, 1) == command
    assert workers.under_torchrun(command, 4) == (
        "python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "--max-restarts", "3",
        "-m", "crossover", "train", "r.yaml",
    )  # fmt: skip


def test_what_only_several_processes_need_is_not_said_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" not in workers.environment(2)
    assert workers.environment(2)["CUDA_VISIBLE_DEVICES"] == "5"
    several = workers.environment(2, 4, "0,1,2,3")
    assert several["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1" and several["OMP_NUM_THREADS"] == "2"
    assert several["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@given(st.integers(0, 8), st.integers(1, 6), st.integers(1, 4))
def test_gpus_are_dealt_without_overlap_as_long_as_there_are_enough(count: int, places: int, processes: int) -> None:
    devices = [f"GPU-{index}" for index in range(count)]
    dealt = workers.deal_gpus(devices, places, processes)
    assert len(dealt) == places
    if count < 2:
        assert dealt == [None] * places
        return
    taken = [text.split(",") for text in dealt if text]
    assert all(len(set(names)) == len(names) == min(processes, count) for names in taken)
    if places * processes <= count:
        assert len({name for names in taken for name in names}) == places * processes


def test_runs_at_the_same_time_get_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,6,7")
    note = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(0.3)"
    jobs = [
        workers.Job(name, (sys.executable, "-c", note), tmp_path, tmp_path / name, 1, processes=2) for name in "abc"
    ]
    workers.run_jobs(jobs, workers=2, poll_seconds=0.01)
    told = {name: (tmp_path / name).read_text().strip() for name in "abc"}
    # The third begins where one of the first two has ended.
    assert {told["a"], told["b"]} == {"2,3", "6,7"} and told["c"] in ("2,3", "6,7")


SAVES = """
import signal, sys, time
from pathlib import Path
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
Path(sys.argv[1]).touch()
while not asked:
    time.sleep(0.01)
time.sleep(0.2)
Path(sys.argv[2]).touch()
"""
FLEET = """
import signal, sys
from pathlib import Path
from crossover.evidence.workers import Job, run_jobs
# As in a terminal or in a script's background, wherever these tests themselves run.
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[2] == "background" else signal.default_int_handler)
here = Path(sys.argv[1])
command = (sys.executable, *(str(here / name) for name in ("saves.py", "began", "saved")))
job = Job("run", command, here, here / "log", 1)
print(run_jobs([job], workers=1).interrupted)
"""


@pytest.mark.parametrize(
    ("how", "signals"),
    [
        ("terminal", [signal.SIGINT]),
        ("terminal", [signal.SIGTERM, signal.SIGTERM]),
        ("terminal", [signal.SIGUSR1]),
        ("background", [signal.SIGINT, signal.SIGTERM]),
    ],
    ids=["^C", "delivered twice", "a warning of SLURM", "in the background of a script"],
)
def test_runs_save_when_their_study_is_asked_to_stop(tmp_path: Path, how: str, signals: list[signal.Signals]) -> None:
    (tmp_path / "saves.py").write_text(SAVES)
    command = [sys.executable, "-c", FLEET, str(tmp_path), how]
    study = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in signals:
        study.send_signal(number)
        time.sleep(0.05)
    assert study.communicate(timeout=30)[0] == "True\n" and (tmp_path / "saved").exists()


DIES_ONCE = """
import os, signal, sys, time
import torch, torch.distributed as dist
again, rank, notes = os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"], sys.argv[1]
dist.init_process_group("gloo")
if again == "0":
    dist.barrier()
    if rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
total = torch.ones(1)
dist.all_reduce(total)
if rank == "0":
    open(notes, "w").write(f"{again} {total.item():g}")
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
while not asked:
    time.sleep(0.05)
open(f"{notes}-{rank}", "w").write("saved")
sys.exit(130)
"""


@pytest.mark.slow
def test_a_run_of_two_processes_outlives_one_of_them_and_saves_when_stopped(tmp_path: Path) -> None:
    script, notes = tmp_path / "run.py", tmp_path / "notes"
    script.write_text(DIES_ONCE)
    command = workers.under_torchrun((sys.executable, str(script), str(notes)), 2)
    job = workers.Job("run", command, tmp_path, tmp_path / "log.txt", 1, 2)
    process = workers.start(job, workers.environment(1, 2))
    try:
        for _ in range(600):
            if notes.exists() and notes.read_text():
                break
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        assert notes.read_text() == "1 2", workers.tail(job.log)
        process.terminate()
        process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert [(tmp_path / f"notes-{rank}").read_text() for rank in (0, 1)] == ["saved", "saved"]
