"""The study's processes, with a stand-in for `train` that plants losses instead of training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from crossover.errors import RunError
from crossover.evidence import study as study_module
from crossover.evidence import workers
from crossover.evidence.record import read_run
from crossover.evidence.run import RunFolder
from crossover.evidence.study import run_study
from crossover.folders import is_locked


def started(setting: Path) -> list[str]:
    return [line.split()[0] for line in (setting / "notes").read_text().splitlines()]


def run(setting: Path, *overrides: str, said: list[str] | None = None) -> study_module.StudyResult:
    said = [] if said is None else said
    return run_study(setting / "s.yaml", overrides, folder=setting / "out", notify=said.append)


def test_a_study_runs_every_arm_and_seed_once_and_reports(setting: Path) -> None:
    result = run(setting)
    assert result.exit_code == 0 and set(result.finished) == {
        "ar/seed-0", "ar/seed-1", "masked/seed-0", "masked/seed-1"
    }  # fmt: skip
    assert sorted(started(setting)) == ["prepare", "s-ar-seed-0", "s-ar-seed-1", "s-masked-seed-0", "s-masked-seed-1"]
    assert result.report is not None and "masked" in result.report.read_text()
    # Two workers share the cores.
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"s-ar-seed-0 {share}\n" in (setting / "notes").read_text()
    assert read_run(setting / "out/ar/seed-0").recipe["training"]["threads"] == share
    assert run(setting).exit_code == 0
    assert len(started(setting)) == 5, "finished runs were started again"


def test_another_study_in_the_folder_is_refused_with_the_differences(setting: Path) -> None:
    run(setting)
    with pytest.raises(RunError, match=r"(?s)belongs to another study.*seeds: \[0, 1\] there, \[0\] now.*--folder"):
        run(setting, "study.seeds=[0]")
    # How many workers is no part of what is studied.
    assert run(setting, "study.jobs=1").exit_code == 0


def test_seeds_may_be_added_to_a_study(setting: Path) -> None:
    run(setting)
    result = run(setting, "study.seeds=[0, 1, 2]")
    assert result.exit_code == 0 and "masked/seed-2" in result.finished
    assert len([name for name in started(setting) if name.startswith("s-")]) == 6, "the others were not made again"
    with pytest.raises(RunError, match=r"seeds: \[0, 1, 2\] there, \[0, 1\] now"):
        run(setting)


def test_a_failed_run_is_told_with_its_log_and_does_not_stop_the_others(setting: Path) -> None:
    (setting / "fail").touch()
    said: list[str] = []
    result = run(setting, said=said)
    assert result.exit_code == 1 and set(result.failed) == {"masked/seed-0", "masked/seed-1"}
    assert all("planted failure" in tail for tail in result.failed.values())
    assert any("planted failure" in line and "masked/seed-0" in line for line in said)
    assert result.report is not None and "not begun" in result.report.read_text()
    (setting / "fail").unlink()
    assert run(setting).exit_code == 0
    assert started(setting).count("s-ar-seed-0") == 1 and started(setting).count("s-masked-seed-0") == 2


def test_data_that_cannot_be_prepared_is_told_before_any_run(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = (sys.executable, "-c", "import sys; sys.exit('no such corpus')")
    monkeypatch.setattr(study_module, "prepare_command", lambda recipe, trust: failing)
    with pytest.raises(RunError, match=r"(?s)cannot be prepared.*no such corpus"):
        run(setting)
    assert started(setting) == []


def test_an_interrupt_stops_the_children_and_the_same_command_goes_on(setting: Path) -> None:
    (setting / "hang").touch()
    code = (
        "import sys; from crossover.evidence import study as s\n"
        f"s.train_command = lambda r, f, trust: (sys.executable, {str(setting / 'train.py')!r}, str(r), '-', str(f))\n"
        "s.prepare_command = lambda r, trust: (sys.executable, '-c', '')\n"
        f"result = s.run_study({str(setting / 's.yaml')!r}, folder={str(setting / 'out')!r})\n"
        "sys.exit(result.exit_code)"
    )
    # As on a machine with two cores, whatever this one has, and in a terminal, also where ^C is ignored here.
    code = "from crossover.evidence import workers as w; w.cores = lambda: 2\n" + code
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    # Masked runs are scored in more modes: they take longest and start first.
    first = [setting / "out/masked/seed-0", setting / "out/masked/seed-1"]
    deadline = time.monotonic() + 60
    while not all((path / "progress.json").exists() for path in first) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "same command goes on" in out
    for path in first:
        assert not is_locked(path)
        assert json.loads((path / "status.json").read_text())["state"] == "interrupted"
    assert not (setting / "out/ar/seed-0").exists()
    (setting / "hang").unlink()
    assert run(setting).exit_code == 0


def test_tuning_gives_every_arm_the_same_trials_and_chooses_on_dev(setting: Path) -> None:
    tune = {"trials": 3, "seed": 7, "grid": {"model.residual_dropout": [0.0, 0.1, 0.2]}, "budget": {"flops": 5e8}}
    study = yaml.safe_load((setting / "s.yaml").read_text()) | {"tune": tune, "seeds": [0]}
    (setting / "s.yaml").write_text(yaml.safe_dump(study))
    result = run(setting)
    assert result.exit_code == 0
    chosen = json.loads((setting / "out/tune/chosen.json").read_text())
    tried = [[trial["settings"] for trial in chosen[arm]["trials"]] for arm in ("ar", "masked")]
    assert tried[0] == tried[1] and len(tried[0]) == 3
    for arm in ("ar", "masked"):
        assert chosen[arm]["chosen"] == {"model.residual_dropout": 0.2}
        assert chosen[arm]["procedure"] == "ar" and chosen[arm]["exact"] and chosen[arm]["flops"] == 3 * 1.01e9
        record = read_run(setting / f"out/{arm}/seed-0")
        assert record.recipe["model"]["residual_dropout"] == 0.2 and record.recipe["budget"]["flops"] == 1e9
        assert read_run(setting / f"out/tune/{arm}/trial-0").recipe["budget"]["flops"] == 5e8


def test_what_another_command_began_meanwhile_is_left_to_it(setting: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[RunFolder] = []

    def taken(job: workers.Job, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        # While the first run of this command begins, another command begins one whose turn here comes later.
        if job.name != "prepare" and not others:
            recipe = yaml.safe_load((setting / "out/recipes/masked-seed-1.yaml").read_text())
            others.append(RunFolder(setting / "out/masked/seed-1").create(recipe))
        return begin(job, env)

    begin = workers.start
    monkeypatch.setattr(workers, "start", taken)
    said: list[str] = []
    result = run(setting, "study.jobs=1", said=said)
    others[0].finish("interrupted")
    assert "left to the process that trains it: masked/seed-1" in said
    assert set(result.finished) == {"ar/seed-0", "ar/seed-1", "masked/seed-0"}
    assert "s-masked-seed-1" not in started(setting) and not any("error" in line for line in said)
    assert run(setting).exit_code == 0


@pytest.mark.parametrize(
    ("jobs", "runs", "cores", "threads"), [(2, 4, 2, 1), (1, 4, 2, 2), (3, 9, 8, 2), (8, 9, 2, 1), (4, 2, 8, 4)]
)
def test_the_cores_are_divided_among_the_runs(
    monkeypatch: pytest.MonkeyPatch, jobs: int, runs: int, cores: int, threads: int
) -> None:
    monkeypatch.setattr(workers, "cores", lambda: cores)
    assert workers.share(jobs, runs) == threads
    packed, told = workers.pack(jobs, runs, threads)
    assert packed * threads <= cores
    assert packed == min(jobs, runs, cores // threads)
    assert f"{runs} run(s), {packed} at a time, {threads} thread(s) each on {cores} core(s)" in told
    assert ("share a core" in told) == (min(jobs, runs) > packed)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[workers.Job]]]:
    """On a machine with two cores, note what would be started and how many at a time, and start nothing."""
    fleets: list[tuple[int, list[workers.Job]]] = []

    def note(jobs: list[workers.Job], **options: Any) -> workers.Fleet:
        if jobs[0].name != "prepare":
            fleets.append((options["workers"], jobs))
        return workers.Fleet([], ended={"prepare": 0})

    for module in (workers, study_module):
        monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(study_module, "run_jobs", note)
    return fleets


def recipe_of(job: workers.Job) -> dict[str, Any]:
    """Read the recipe that a job would be started with."""
    return yaml.safe_load(Path(job.command[2]).read_text())


@pytest.mark.parametrize(
    ("overrides", "at_a_time", "threads"),
    [
        (["study.jobs=2"], 2, 1),
        (["study.jobs=1"], 1, 2),
        (["study.jobs=8"], 2, 1),
        (["study.jobs=1", "training.threads=1"], 1, 1),
        (["study.jobs=2", "training.threads=2"], 1, 2),
    ],
)
def test_runs_are_packed_on_the_cores(setting: Path, planned, overrides, at_a_time, threads) -> None:
    said: list[str] = []
    run(setting, *overrides, said=said)
    workers_used, jobs = planned[0]
    assert workers_used == at_a_time and {job.threads for job in jobs} == {threads}
    # The recipe and the environment decide the same number.
    assert {recipe_of(job)["training"]["threads"] for job in jobs} == {threads}
    assert any(f"4 run(s), {at_a_time} at a time, {threads} thread(s) each on 2 core(s)" in line for line in said)


def test_the_environment_leaves_no_library_another_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    given = workers.environment(3)
    assert {name: value for name, value in given.items() if name.endswith(("NUM_THREADS", "COMPILE_THREADS"))} == {
        f"{name}_THREADS": "3" for name in ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "RAYON_NUM", "TORCHINDUCTOR_COMPILE")
    }


def test_a_folder_keeps_its_threads_and_runs_fewer_at_a_time(setting: Path, planned) -> None:
    """Threads change rounding, so a run that goes on computes with those it began with."""
    said: list[str] = []
    run(setting, "study.jobs=1")
    run(setting, "study.jobs=2", said=said)
    assert [(count, jobs[0].threads) for count, jobs in planned] == [(1, 2), (1, 2)]
    assert any("not 2 at a time: runs that share a core slow each other down" in line for line in said), said


def test_long_runs_start_first(setting: Path, planned) -> None:
    study = yaml.safe_load((setting / "s.yaml").read_text())
    # A block of two streams costs about twice as much per token as the others.
    study["arms"]["block"] = {"controller": "constant(block(8))"}
    (setting / "s.yaml").write_text(yaml.safe_dump({**study, "budget": {"tokens": 100_000}}))
    run(setting)
    # Of the other two, next-token training costs more: its head reads every state.
    names = [f"{arm}/seed-{seed}" for arm in ("block", "ar", "masked") for seed in (0, 1)]
    assert [job.name for job in planned[0][1]] == names


FINE = ("study.budget.flops=1e11", "scoring.dev_draws=40", "scoring.dev_windows=40")


def test_all_runs_are_evaluated_on_one_grid_that_all_can_afford(setting: Path, planned) -> None:
    run(setting, *FINE)
    every = {recipe_of(job)["scoring"]["every_tokens"] for job in planned[0][1]}
    grid = json.loads((setting / "out/grid.json").read_text())["seeds"]
    assert every == {grid}
    assert grid % 6000 == 0 and grid > 6000, "the masked arm cannot afford to be scored every epoch"
    # What was settled stays, or the runs of one study would lie on two grids.
    (setting / "out/grid.json").write_text('{"seeds": 54000}')
    run(setting, *FINE)
    assert {recipe_of(job)["scoring"]["every_tokens"] for job in planned[1][1]} == {54_000}


def test_evaluations_that_cost_too_much_are_told_and_done(setting: Path, planned) -> None:
    said: list[str] = []
    run(setting, *FINE, "scoring.every_tokens=1000", said=said)
    told = next(line for line in said if "evaluations every 1,000 tokens" in line)
    assert "of the FLOPs of masked/seed-0" in told and "less than a tenth" in told
    assert {recipe_of(job)["scoring"]["every_tokens"] for job in planned[0][1]} == {1000}
    assert not (setting / "out/grid.json").exists()
