"""What goes wrong around studies: locks that a disk does not give, two commands at once, queues that fall silent."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import tiny_runs
from crossover.cli import runs as runs_module
from crossover.errors import RunError
from crossover.evidence import dispatch as dispatch_module
from crossover.evidence.cluster import Cluster, ClusterRun, submit
from crossover.evidence.dispatch import dispatch_study
from crossover.evidence.files import read_rows
from crossover.evidence.lock import take_lock
from crossover.evidence.run import RunFolder
from crossover.evidence.study import run_study
from crossover.evidence.workers import Job
from evidence.fake_slurm import FakeSlurm
from evidence.test_cluster import CPU, EXAMPLES, change, dispatch, finish, until

GRID = {"model.residual_dropout": [0.0, 0.1]}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    pytest.importorskip("submitit")
    return FakeSlurm.install(tmp_path / "slurm", monkeypatch)


def test_a_disk_without_locks_is_named_and_not_a_writer_that_is_not_there(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunError, match=r"its disk gives no locks \(Operation not supported\).*Lustre: `flock`"):
        take_lock(tmp_path)


def test_a_writer_on_another_machine_is_told_with_its_machine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    held = take_lock(tmp_path)
    with pytest.raises(RunError, match=r"process \d+ is writing here"):
        take_lock(tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "login1")
    with pytest.raises(RunError, match=r"process \d+ on node7 is writing here"):
        take_lock(tmp_path)
    held.close()


def test_a_start_that_ended_is_forgotten_but_never_under_a_process_that_begins_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun = RunFolder(run).create({"name": "a"})
    # The other process has its lock, but had it not yet when this one looked.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossover.folders.is_locked", lambda folder: False)
        runs_module._give_way(run)
    assert (run / "recipe.yaml").exists() and (run / "status.json").exists()
    begun.finish("failed")
    runs_module._give_way(run)
    assert not (run / "recipe.yaml").exists()


def test_a_folder_that_was_just_being_made_is_taken(setting: Path, slurm: FakeSlurm) -> None:
    (setting / "out").mkdir()
    (setting / "out/.study.yaml.7.tmp").write_text("name: s\nar")
    dispatch(setting)
    assert slurm.submitted == [101] and (setting / "out/study.yaml").exists()


def test_settings_are_not_chosen_while_a_trial_is_still_to_come(setting: Path, slurm: FakeSlurm) -> None:
    """A trial that was taken off the cluster has not been tried, also for the command that waits."""
    change(setting, seeds=[0], tune={"trials": 2, "grid": GRID, "budget": {"flops": 5e8}})
    dispatch(setting)
    finish(setting, *(f"tune/{arm}/trial-{index}" for arm in ("ar", "masked") for index in (0, 1)))
    (setting / "out/tune/ar/trial-1/status.json").write_text('{"state": "interrupted", "why": ""}')
    slurm.end(*slurm.queue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch_module._Dispatch, "_given_up", lambda self, stage, job: stage == "tune")
        said: list[str] = []
        dispatch(setting, said=said)
    assert any("ar: its settings are chosen when all of its 2 trials have ended" in line for line in said)
    assert set(json.loads((setting / "out/tune/chosen.json").read_text())) == {"masked"}
    assert {row["run"] for row in read_rows(setting / "out/jobs.jsonl")} >= {"masked/seed-0"}
    dispatch(setting)
    assert read_rows(setting / "out/jobs.jsonl")[-1]["run"] == "tune/ar/trial-1"


def test_a_run_that_another_command_trains_is_left_to_it(setting: Path, slurm: FakeSlurm) -> None:
    change(setting, seeds=[0], tune={"trials": 2, "grid": GRID, "budget": {"flops": 5e8}})
    dispatch(setting)
    slurm.end(*slurm.queue)
    finish(setting, "tune/ar/trial-0", "tune/masked/trial-0", "tune/masked/trial-1")
    recipe = yaml.safe_load((setting / "out/recipes/tune-ar-trial-1.yaml").read_text())
    other = RunFolder(setting / "out/tune/ar/trial-1").create(recipe)
    said: list[str] = []
    assert dispatch(setting, said=said).exit_code == 0
    assert said[0] == "left to the process that trains it: tune/ar/trial-1"
    slurm.end(*slurm.queue)
    said.clear()
    # The other way round: on this machine, while a job of the cluster trains.
    result = run_study(setting / "s.yaml", folder=setting / "out", notify=said.append)
    assert said[0] == "left to the process that trains it: tune/ar/trial-1"
    assert result.exit_code == 1 and result.finished == ("masked/seed-0",)
    assert "s-ar-trial-1" not in (setting / "notes").read_text()
    other.finish("interrupted")


def test_who_waits_outlasts_a_queue_that_falls_silent(setting: Path, slurm: FakeSlurm, monkeypatch) -> None:
    change(setting, seeds=[0], arms={"ar": {"controller": "constant(autoregressive)"}})
    looks: list[float] = []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            (slurm.place / "down").touch()
        elif len(looks) == 4:
            (slurm.place / "down").unlink()
            finish(setting, "ar/seed-0")
            slurm.end(*slurm.queue)

    monkeypatch.setattr(dispatch_module, "time", SimpleNamespace(sleep=pause))
    said: list[str] = []
    ended = dispatch_study(setting / "s.yaml", cluster=CPU, folder=setting / "out", wait=True, notify=said.append)
    assert ended.exit_code == 0 and ended.finished == ("ar/seed-0",)
    assert len([line for line in said if "asked again every 30 s" in line]) == 1


def test_who_waits_does_not_wait_for_a_queue_for_ever(setting: Path, slurm: FakeSlurm, monkeypatch) -> None:
    monkeypatch.setattr(dispatch_module, "LOOKS", 2)
    silent = SimpleNamespace(sleep=lambda seconds: (slurm.place / "down").touch())
    monkeypatch.setattr(dispatch_module, "time", silent)
    with pytest.raises(RunError, match="Unable to contact"):
        dispatch_study(setting / "s.yaml", cluster=CPU, folder=setting / "out", wait=True, notify=lambda _: None)


def test_threads_that_a_folder_keeps_are_told(setting: Path, slurm: FakeSlurm) -> None:
    dispatch(setting)
    said: list[str] = []
    dispatch(setting, Cluster(gpus_per_run=0, cpus_per_run=8), said)
    assert "1 thread(s) for each process" in said[0] and "--cpus-per-run 1 is what a run can use" in said[0]


def test_what_a_user_makes_jobs_wait_for_is_kept(setting: Path, slurm: FakeSlurm) -> None:
    change(setting, budgets=[4e8])
    dispatch(setting, Cluster(gpus_per_run=0, cpus_per_run=1, options={"dependency": "afterok:7"}))
    assert slurm.asked(101)["dependency"] == "afterok:7"
    assert slurm.asked(102)["dependency"] == "afterok:7,afterany:101"


def test_names_with_spaces_and_signs_reach_the_job(tmp_path: Path, slurm: FakeSlurm) -> None:
    place = tmp_path / 'a study\'s "$folder"'
    place.mkdir()
    write = "import sys; sys.path.insert(0, sys.argv[1]); import synthetic as s; from pathlib import Path; "
    write += "s.write_run(Path(sys.argv[2]))"
    command = (sys.executable, "-c", write, str(Path(__file__).parent), str(place / "run"))
    made = ClusterRun(Job("run", command, place / "run", place / "log.txt", 1))
    submit(place, "a name", CPU, [made], [])
    assert slurm.start("101").wait(timeout=60) == 0
    assert json.loads((place / "run/status.json").read_text())["state"] == "finished"
    with pytest.raises(RunError, match=r"50%j: SLURM reads a % in a path"):
        submit(tmp_path / "50%j", "a name", CPU, [made], [])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--cluster", "pbs", "--list"], "--cluster pbs: expected slurm or local"),
        (["--slurm", "--cluster", "local"], "--cluster local: contradicts --slurm"),
        (["--slurm", "--sbatch", "gpus-per-node=2"], "--sbatch gpus-per-node: give --gpus-per-run for it"),
        (["--slurm", "--sbatch", "--cpus_per_task=2"], "--sbatch cpus_per_task: give --cpus-per-run for it"),
        (["--slurm", "--sbatch", "array=0-9"], "--sbatch array: is what a study sets by itself"),
    ],
)
def test_settings_that_contradict_are_refused(setting: Path, monkeypatch, capsys, options, told) -> None:
    assert tiny_runs.command(monkeypatch, "study", setting / "s.yaml", "--folder", setting / "out", *options) == 2
    assert told in capsys.readouterr().err and not (setting / "out").exists()


def test_the_example_queues_itself_again_while_text_is_prepared(tmp_path: Path, slurm: FakeSlurm, monkeypatch) -> None:
    programs = {
        "crossover": "echo prepare >> $place/notes\ntrap 'echo stopped >> $place/notes; exit 130' TERM\n"
        "touch $place/began\nwhile :; do sleep 0.05; done\n",
        "torchrun": "echo torchrun >> $place/notes\n",
        "scancel": '[ "$1" = --signal=TERM ] && kill -TERM $(cat $place/task)\n',
        "scontrol": 'if [ "$1" = show ]; then echo n1; else echo "$@" >> $place/notes; fi\n',
    }
    for name, text in programs.items():
        (slurm.place / "bin" / name).write_text(f"#!/usr/bin/env bash\nplace={slurm.place}\n{text}")
        (slurm.place / "bin" / name).chmod(0o755)
    given = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1"}
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    (script,) = [path for path in EXAMPLES if path.name == "train.sbatch"]
    job = subprocess.Popen(["bash", script, "my.yaml"], stdout=subprocess.DEVNULL)
    until(lambda: (slurm.place / "began").exists())
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=30) == 130
    assert (slurm.place / "notes").read_text().split("\n")[:-1] == ["prepare", "stopped", "requeue 7"]
