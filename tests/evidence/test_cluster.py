"""Studies as jobs of a cluster: a stand-in for SLURM on the path, and submitit itself."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import tiny_runs
from crossover.errors import RunError
from crossover.evidence import cluster as cluster_module
from crossover.evidence.cluster import NOTICE_SECONDS, Cluster, minutes_of
from crossover.evidence.dispatch import dispatch_study
from crossover.evidence.files import read_rows
from crossover.evidence.record import read_status
from crossover.evidence.study import StudyResult
from crossover.evidence.study_list import list_study
from crossover.folders import is_locked
from evidence.fake_slurm import FakeSlurm
from evidence.synthetic import write_run

pytest.importorskip("submitit")
CPU = Cluster(gpus_per_run=0, cpus_per_run=1)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm.install(tmp_path / "slurm", monkeypatch)


def change(setting: Path, **keys: object) -> None:
    study = yaml.safe_load((setting / "s.yaml").read_text())
    (setting / "s.yaml").write_text(yaml.safe_dump({**study, **keys}))


def dispatch(setting: Path, cluster: Cluster = CPU, said: list[str] | None = None) -> StudyResult:
    said = [] if said is None else said
    return dispatch_study(setting / "s.yaml", cluster=cluster, folder=setting / "out", notify=said.append)


def finish(setting: Path, *names: str, dropout: float = 0.0) -> None:
    """Leave the runs that their jobs would have left; a trial is better the nearer its dropout is to 0.2."""
    for name in names:
        recipe = yaml.safe_load((setting / "out/recipes" / f"{name.replace('/', '-')}.yaml").read_text())
        off = abs(recipe["model"]["residual_dropout"] - 0.2)
        write_run(setting / "out" / name, modes={"ar": lambda fraction, off=off: 3 - fraction + off})


def until(met: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def test_an_array_asks_for_what_was_asked_for(setting: Path, slurm: FakeSlurm) -> None:
    asked = Cluster(
        minutes=480, gpus_per_run=2, cpus_per_run=8, memory="16GB", partition="long", account="text", max_parallel=3,
        setup=("module load cuda",), options={"qos": "high"},
    )  # fmt: skip
    said: list[str] = []
    result = dispatch(setting, asked, said)
    assert result.exit_code == 0 and result.report is None and result.finished == ()
    assert slurm.submitted == [101] and slurm.queue == ["101_0", "101_1", "101_2", "101_3"]
    script = slurm.asked(101)
    assert script["array"] == "0-3%3" and script["time"] == "480" and script["job-name"] == "s-seeds"
    assert script["gpus-per-node"] == "2" and script["cpus-per-task"] == "8" and script["mem"] == "16GB"
    assert script["partition"] == "long" and script["account"] == "text" and script["qos"] == "high"
    assert script["signal"] == f"USR2@{NOTICE_SECONDS}" and "dependency" not in script
    assert "\nmodule load cuda\n" in slurm.script(101) and "--cpus-per-task=8" in slurm.script(101)
    assert said[-2:] == [
        "0 run(s) finished, 4 in the queue, 0 wait for them.",
        "The same command, given again later, submits what is missing by then, and at last writes the report.",
    ]
    # The recipe says how many threads each of the two processes computes with.
    recipe = yaml.safe_load((setting / "out/recipes/ar-seed-0.yaml").read_text())
    assert recipe["training"]["threads"] == 4


def test_what_is_queued_or_finished_is_not_submitted_again(setting: Path, slurm: FakeSlurm) -> None:
    dispatch(setting)
    jobs = {row["run"]: row["job"] for row in read_rows(setting / "out/jobs.jsonl")}
    assert set(jobs.values()) == set(slurm.queue) and len(jobs) == 4
    assert dispatch(setting).exit_code == 0 and slurm.submitted == [101]
    # One has finished, one has ended without a word, two go on.
    finish(setting, "masked/seed-0")
    slurm.end(jobs["masked/seed-0"], jobs["ar/seed-1"])
    said: list[str] = []
    dispatch(setting, said=said)
    assert slurm.submitted == [101, 102] and slurm.queue[2:] == ["102"]
    assert said[0] == "1 run(s) submitted as job 102: ar/seed-1"
    listed = list_study(setting / "s.yaml", folder=setting / "out", kind="slurm")
    assert listed[0] == "s: 4 run(s): 3 queued, 1 finished"
    assert "ar/seed-1: queued as job 102" in listed and "masked/seed-0: finished" in listed
    finish(setting, "ar/seed-0", "ar/seed-1", "masked/seed-1")
    slurm.end(*slurm.queue)
    result = dispatch(setting)
    assert slurm.submitted == [101, 102] and len(result.finished) == 4 and result.exit_code == 0
    assert result.report is not None and result.report.exists()


def test_branches_wait_for_the_array_of_their_trunks(setting: Path, slurm: FakeSlurm) -> None:
    change(setting, budgets=[4e8, 6e8])
    dispatch(setting)
    assert slurm.submitted == [101, 102]
    assert slurm.asked(101)["array"] == "0-3%4" and slurm.asked(102)["array"] == "0-7%8"
    assert slurm.asked(102)["dependency"] == "afterany:101" and slurm.asked(102)["job-name"] == "s-branches"
    # A trunk that has been made: its branch, which was cancelled, waits for none.
    finish(setting, *(f"{arm}/seed-{seed}" for arm in ("ar", "masked") for seed in (0, 1)))
    slurm.end(*slurm.queue)
    dispatch(setting)
    assert slurm.submitted == [101, 102, 103] and "dependency" not in slurm.asked(103)


def test_runs_wait_for_what_tuning_chooses(setting: Path, slurm: FakeSlurm) -> None:
    grid = {"model.residual_dropout": [0.0, 0.1, 0.2]}
    change(setting, seeds=[0], tune={"trials": 3, "grid": grid, "budget": {"flops": 5e8}})
    said: list[str] = []
    dispatch(setting, said=said)
    assert slurm.asked(101)["array"] == "0-5%6" and slurm.asked(101)["job-name"] == "s-tune"
    assert "0 run(s) finished, 6 in the queue, 2 wait for them." in said
    listed = list_study(setting / "s.yaml", folder=setting / "out", kind="slurm")
    assert "ar/seed-0: not begun, after tune/ar/trial-0 .. trial-2" in listed
    # A trial that failed (a rate too high, say) has been tried; it holds up nothing.
    finish(setting, *(f"tune/{arm}/trial-{index}" for arm in ("ar", "masked") for index in (1, 2)), "tune/ar/trial-0")
    write_run(setting / "out/tune/masked/trial-0", finished=False)
    dispatch(setting)
    assert slurm.submitted == [101], "trials are in the queue still"
    slurm.end(*slurm.queue)
    dispatch(setting)
    assert slurm.submitted == [101, 102] and slurm.asked(102)["array"] == "0-1%2"
    chosen = json.loads((setting / "out/tune/chosen.json").read_text())
    assert set(chosen) == {"ar", "masked"} and len(chosen["masked"]["trials"]) == 3


def test_a_queue_that_does_not_answer_gets_no_second_job(setting: Path, slurm: FakeSlurm) -> None:
    dispatch(setting)
    (slurm.place / "down").touch()
    with pytest.raises(RunError, match=r"squeue: .*Unable to contact.*queued twice"):
        dispatch(setting)
    assert slurm.submitted == [101]


def test_where_there_is_no_cluster_the_error_says_so(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RunError, match=r"cannot be submitted: .*srun"):
        dispatch(setting)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match=r"pip install 'crossover-lm\[slurm\]'"):
        dispatch(setting)


def test_a_job_saves_before_its_end_and_goes_on_in_another_turn(setting: Path, slurm: FakeSlurm) -> None:
    change(setting, seeds=[0], arms={"ar": {"controller": "constant(autoregressive)"}})
    dispatch(setting)
    run, hang = setting / "out/ar/seed-0", setting / "hang"
    hang.touch()
    job = slurm.start("101")
    until(lambda: (run / "progress.json").exists())
    subprocess.run(["kill", "-USR2", (slurm.place / "task").read_text().strip()], check=True)
    job.wait(timeout=60)
    assert read_status(run)["state"] == "interrupted" and not is_locked(run)
    assert (slurm.place / "scontrol").read_text() == "requeue 101\n"
    hang.unlink()
    assert slurm.start("101").wait(timeout=60) == 0
    assert read_status(run)["state"] == "finished"
    assert (setting / "notes").read_text().count("s-ar-seed-0") == 2
    # Another turn after the last one has nothing to do.
    assert slurm.start("101").wait(timeout=60) == 0
    assert (setting / "notes").read_text().count("s-ar-seed-0") == 2


def test_a_branch_whose_trunk_failed_says_what_it_lacks(setting: Path) -> None:
    job = cluster_module.Job("ar/budget-4/seed-0", ("false",), setting / "run", setting / "log.txt", 1)
    with pytest.raises(RunError, match=r"needs .*trunk, which is not finished"):
        cluster_module.ClusterRun(job, (setting / "trunk",))()
    assert not (setting / "log.txt").exists()


def test_a_cancelled_job_hands_on_the_signal_and_tells_how_the_run_ended(setting: Path) -> None:
    """The run answers SIGTERM by saving; submitit's own signal, sent to all of a job's processes, does not reach it."""
    script = (
        "import os, signal, sys, time, json\n"
        "assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(130)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(30)\n"
    )
    job = cluster_module.Job("run", (sys.executable, "-c", script), setting / "run", setting / "log.txt", 1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError, match=r"(?s)run: interrupted.*log.txt:\nsaved"):
        cluster_module.ClusterRun(job)()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_number_that_is_another_programs_by_now_is_no_job(setting: Path) -> None:
    pauses = [["sleep", "30"], ["bash", "-c", "read submitit"], ["true"]]
    others = [subprocess.Popen(pause, stdin=subprocess.PIPE) for pause in pauses]
    try:
        # The last has ended, and nobody has asked how.
        until(lambda: Path(f"/proc/{others[2].pid}/cmdline").read_bytes() == b"")
        rows = [{"run": str(i), "job": str(other.pid), "cluster": "local"} for i, other in enumerate(others)]
        (setting / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        until(lambda: set(cluster_module.queued_jobs(setting, "local")) == {"1"}, seconds=5)
    finally:
        for other in others:
            other.kill()
            other.communicate()


LOCAL = """
import sys
from crossover.evidence import study as s
from crossover.evidence.cluster import Cluster
from crossover.evidence.dispatch import dispatch_study
s.train_command = lambda r, f, *o, trust: (sys.executable, {train!r}, str(r), "-", str(f))
s.prepare_command = lambda r, trust: (sys.executable, "-c", "")
cluster = Cluster("local", gpus_per_run=0, cpus_per_run=1, minutes=10, max_parallel=2)
ended = dispatch_study({study!r}, cluster=cluster, folder={out!r}, wait=True, poll_seconds=0.1)
print(ended.finished, ended.exit_code)
sys.exit(ended.exit_code)
"""


def test_the_same_jobs_on_this_machine(setting: Path) -> None:
    """Trials, trunk and branch as real jobs of submitit: each stage begins when the one before it has ended."""
    arms = {"ar": {"controller": "constant(autoregressive)"}}
    tune = {"trials": 2, "grid": {"model.residual_dropout": [0.0, 0.2]}, "budget": {"flops": 5e8}}
    change(setting, seeds=[0], arms=arms, tune=tune, budgets=[4e8])
    code = LOCAL.format(train=str(setting / "train.py"), study=str(setting / "s.yaml"), out=str(setting / "out"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "('ar/seed-0', 'ar/budget-4e+08/seed-0') 0" in done.stdout
    started = [line.split()[0] for line in (setting / "notes").read_text().splitlines()]
    assert sorted(started[:2]) == ["s-ar-trial-0", "s-ar-trial-1"]
    assert started[2:] == ["s-ar-seed-0", "s-ar-seed-0-at-4e+08"]
    assert [row["cluster"] for row in read_rows(setting / "out/jobs.jsonl")] == ["local"] * 4


@given(st.integers(0, 6), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_time_limits_are_read_as_sbatch_reads_them(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    texts = {f"{days}-{hours}:{minutes:02}:{seconds:02}": total, f"{days}-{hours}:{minutes}": total - seconds}
    texts |= {f"{days}-{hours}": total - seconds - 60 * minutes, f"{minutes}:{seconds:02}": 60 * minutes + seconds}
    texts |= {f"{24 * days + hours}:{minutes}:{seconds}": total, f"{total // 60}": total // 60 * 60}
    for text, expected in texts.items():
        if expected <= NOTICE_SECONDS:
            with pytest.raises(RunError, match="give it longer"):
                minutes_of(text)
        else:
            assert 60 * (minutes_of(text) - 1) < expected <= 60 * minutes_of(text)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--time", "8:00:00"], "--time: has no effect without --slurm"),
        (["--gpus-per-run", "0"], "--gpus-per-run: has no effect without --slurm"),
        (["--wait"], "--wait: has no effect without --slurm"),
        (["--slurm", "--jobs", "3"], "--jobs: has no effect on a cluster"),
        (["--cluster", "pbs"], "--cluster pbs: expected slurm or local"),
        (["--cluster", "local", "--memory", "16GB"], "--memory: has no effect on jobs of this machine"),
        (["--slurm", "--time", "eight"], "--time eight: expected a time limit such as 8:00:00"),
        (["--slurm", "--sbatch", "qos"], "--sbatch qos: expected name=value"),
    ],
)
def test_settings_without_effect_are_refused(setting: Path, monkeypatch, capsys, options, told) -> None:
    assert tiny_runs.command(monkeypatch, "study", setting / "s.yaml", "--folder", setting / "out", *options) == 2
    assert told in capsys.readouterr().err and not (setting / "out").exists()


def test_the_list_says_what_starts_each_run_and_starts_none(setting: Path, monkeypatch, capsys) -> None:
    change(setting, budgets=[4e8])
    order = ("study", setting / "s.yaml", "--folder", setting / "out", "--list", "--processes-per-run", 2)
    assert tiny_runs.command(monkeypatch, *order) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "s: 8 run(s): 8 not begun" and not (setting / "out").exists()
    assert lines[1::2][0] == "ar/seed-0: not begun"
    assert "masked/budget-4e+08/seed-1: not begun, after masked/seed-1" in lines
    assert all("torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 3" in line for line in lines[2::2])
    assert (setting / "notes").read_text() == ""


EXAMPLES = sorted((Path(__file__).parents[2] / "examples/slurm").glob("*.s[bh]*"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


@pytest.mark.parametrize("asked", [False, True], ids=["ends", "stops"])
def test_the_example_goes_back_to_the_queue_when_its_time_is_up(
    tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    programs = {
        "crossover": 'echo "crossover $@" >> $place/notes\n',
        # Saves when it is asked to, as torchrun's workers do, and fails as torchrun does then.
        "torchrun": 'echo "torchrun $@" >> $place/notes\nif [ ! -e $place/hang ]; then exit 0; fi\n'
        "trap 'echo saved >> $place/notes; exit 1' TERM\ntouch $place/began\nwhile :; do sleep 0.05; done\n",
        "scancel": '[ "$1" = --signal=TERM ] && kill -TERM $(cat $place/task)\n',
        "scontrol": 'if [ "$1" = show ]; then echo n1; echo n2; else echo "$@" >> $place/notes; fi\n',
    }
    for name, text in programs.items():
        (slurm.place / "bin" / name).write_text(f"#!/usr/bin/env bash\nplace={slurm.place}\n{text}")
        (slurm.place / "bin" / name).chmod(0o755)
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
             "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}  # fmt: skip
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    if asked:
        (slurm.place / "hang").touch()
    (script,) = [path for path in EXAMPLES if path.name == "train.sbatch"]
    job = subprocess.Popen(["bash", script, "my.yaml", "name=x"], stdout=subprocess.DEVNULL)
    if asked:
        until(lambda: (slurm.place / "began").exists())
        job.send_signal(signal.SIGUSR1)
    assert (job.wait(timeout=30) != 0) == asked
    notes = (slurm.place / "notes").read_text().splitlines()
    assert notes[0] == "crossover prepare my.yaml name=x"
    assert "--nnodes=2 --nproc-per-node=8" in notes[1] and "--rdzv-endpoint=n1:20007 --max-restarts=3" in notes[1]
    assert notes[1].endswith("-m crossover train my.yaml name=x")
    assert notes[2:] == (["saved", "requeue 7"] if asked else [])
