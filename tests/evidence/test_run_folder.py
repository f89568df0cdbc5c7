from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crossover.errors import RunError
from crossover.evidence import files
from crossover.evidence.files import room_on_disk
from crossover.evidence.record import read_run, read_status
from crossover.evidence.run import RunFolder
from crossover.folders import is_locked

RECIPE = {"name": "a", "seed": 0, "training": {"batch_tokens": 64}}


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_survive_and_strict_json_is_written(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", terminal=False).create(RECIPE) as folder:
        folder.step({"step": 1, "loss_nats": float("nan"), "grad_norm": np.float32(2.0), "skipped": True})
        folder.flush()
        assert rows(folder.path / "steps.jsonl") == [{"step": 1, "loss_nats": None, "grad_norm": 2.0, "skipped": True}]


def test_another_recipe_is_refused_with_every_difference_and_what_to_do(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").create(RECIPE).finish("finished")
    other = {"name": "b", "seed": 0, "training": {"batch_tokens": 128}}
    with pytest.raises(RunError, match=r"(?s)2 setting.*name: 'a' there, 'b' now.*batch_tokens: 64 .*--run-dir"):
        RunFolder(tmp_path / "run").create(other)
    assert not is_locked(tmp_path / "run")
    RunFolder(tmp_path / "run").create(RECIPE).finish("finished")


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        RunFolder(tmp_path).create(RECIPE)
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_write_in_one_folder(tmp_path: Path) -> None:
    holder = RunFolder(tmp_path / "run").create(RECIPE)
    code = (
        "import sys; from crossover.evidence.run import RunFolder; from crossover.errors import RunError\n"
        f"try: RunFolder({str(tmp_path / 'run')!r}).create({RECIPE!r})\n"
        "except RunError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"process {os.getpid()} is writing here" in said
    holder.finish("finished")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == ""


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4}', "\0\0\0\0"])
def test_cut_back_keeps_rows_up_to_the_checkpoint_and_drops_a_torn_tail(tmp_path: Path, tail: str) -> None:
    folder = RunFolder(tmp_path / "run").create(RECIPE)
    for step in (1, 2, 3):
        folder.step({"step": step})
        folder.evaluation({"step": step})
        folder.decision({"step": step})
    folder.finish("failed")
    with open(folder.path / "steps.jsonl", "a") as file:
        file.write(tail)
    again = RunFolder(tmp_path / "run").create(RECIPE)
    again.cut_back(2)
    again.step({"step": 3, "second": True})
    again.finish("finished")
    assert rows(folder.path / "steps.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3, "second": True}]
    assert rows(folder.path / "evals.jsonl") == rows(folder.path / "decisions.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_row_broken_in_the_middle_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create(RECIPE)
    (folder.path / "steps.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"steps\.jsonl, line 2"):
        folder.cut_back(3)
    assert "rubbish" in (folder.path / "steps.jsonl").read_text()
    folder.finish("failed")


def test_a_torn_line_is_not_continued_by_the_next_row(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create(RECIPE)
    folder.step({"step": 1})
    folder.finish("failed")
    with open(folder.path / "steps.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    again = RunFolder(tmp_path / "run").create(RECIPE)
    again.step({"step": 2})
    again.finish("finished")
    assert rows(folder.path / "steps.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_free(tmp_path: Path, number: int) -> None:
    with pytest.raises(RunError, match=r"disk is full.*checkpoints/"), room_on_disk(tmp_path):
        raise OSError(number, "no space")


def test_a_full_disk_is_told_by_the_recorder_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run").create(RECIPE)
    folder.ledger({"epochs": 1})

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        folder.ledger({"epochs": 2})
    monkeypatch.undo()
    assert json.loads((folder.path / "ledger.json").read_text()) == {"epochs": 1}
    assert not list(folder.path.glob(".*.tmp"))
    folder.finish("failed")


def test_a_resume_on_other_data_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create(RECIPE)
    folder.manifest({"data_hash": "one", "versions": {"torch": "1"}})
    with pytest.raises(RunError, match="data_hash was 'one' when this run began and is 'two' now"):
        folder.manifest({"data_hash": "two"})
    folder.manifest({"data_hash": "one", "versions": {"torch": "2"}})
    kept = json.loads((folder.path / "manifest.json").read_text())
    assert kept["versions"] == {"torch": "1"} and kept["resumed"][0]["versions"] == {"torch": "2"}
    folder.finish("finished")


def test_a_killed_run_reads_as_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "run"
    code = (
        "import os; from crossover.evidence.run import RunFolder\n"
        f"folder = RunFolder({str(path)!r}).create({RECIPE!r}); folder.evaluation({{'step': 1}}); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert json.loads((path / "status.json").read_text())["state"] == "running"
    assert read_run(path).status["state"] == "interrupted"
    assert read_run(path).evals == ({"step": 1},)


def test_leaving_the_block_by_an_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), RunFolder(tmp_path / "run").create(RECIPE):
        raise ValueError("no")
    assert read_run(tmp_path / "run").status == {
        "state": "failed", "why": "ValueError: no", "pid": os.getpid()
    }  # fmt: skip


def test_progress_is_one_parsable_line_per_interval_and_in_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run", interval_seconds=1000, terminal=False).create(RECIPE)
    row = {"step": 7, "loss_nats": 3.25, "mix": {"masked": 0.95, "autoregressive": 0.05}, "seconds_left": None}
    folder.progress(row)
    folder.progress({**row, "step": 8})
    folder.finish("finished")
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and (folder.path / "log.txt").read_text().splitlines() == out
    pairs = dict(part.split("=") for part in out[0].split(" "))
    assert pairs["step"] == "7" and pairs["mix"] == "masked:0.95,autoregressive:0.05"


def test_progress_on_a_terminal_is_drawn_and_logged(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", terminal=True).create(RECIPE)
    folder.progress({"step": 7, "loss_nats": 3.25, "budget_fraction": 0.5, "mix": {"[red]": 1.0}})
    folder.finish("finished")
    assert "step=7" in (folder.path / "log.txt").read_text()


def test_reading_names_what_is_missing_or_broken(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match="is no run folder"):
        read_run(tmp_path)
    path = make_run(tmp_path / "run")
    record = read_run(path)
    assert record.finished and record.scores["summary"]["headline"] == "ar" and len(record.evals) == 10
    (path / "ledger.json").write_text('{"flops": ')
    with pytest.raises(RunError, match=r"ledger\.json: is not JSON"):
        read_run(path)
    (path / "ledger.json").unlink()
    with pytest.raises(RunError, match=r"lacks ledger\.json"):
        read_run(path)


def test_the_room_never_imports_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, crossover.evidence as room\n"
        "for module in pkgutil.iter_modules(room.__path__):\n"
        "    importlib.import_module('crossover.evidence.' + module.name)\n"
        "bad = {'torch', 'transformers', 'matplotlib', 'scipy', 'crossover.training'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_killed_process_was_writing_goes_away_and_what_others_write_stays(tmp_path: Path) -> None:
    torn = [".status.json.4000001.tmp", ".steps.jsonl.17.tmp", "scores/.dev-ar.json.3.tmp", "sinks/.wandb.json.9.tmp"]
    others = [".report.json.17.tmp", ".note.tmp", "status.json.tmp", "scores/mine.json"]
    for folder in ("scores", "sinks"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    RunFolder(tmp_path / "run2").create(RECIPE).finish("failed", "for its recipe")
    (tmp_path / "run2" / "recipe.yaml").rename(tmp_path / "run" / "recipe.yaml")
    for name in (*torn, *others):
        (tmp_path / "run" / name).write_text("{")
    RunFolder(tmp_path / "run").create(RECIPE).finish("finished")
    assert not any((tmp_path / "run" / name).exists() for name in torn)
    assert all((tmp_path / "run" / name).exists() for name in others)


def test_a_run_that_ends_between_two_looks_is_not_called_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run").create(RECIPE)

    def ends_now(path: Path) -> bool:
        folder.finish("finished")
        return False

    monkeypatch.setattr("crossover.evidence.record.is_locked", ends_now)
    assert read_status(tmp_path / "run")["state"] == "finished"
