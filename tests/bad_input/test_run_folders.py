"""What is in a run folder is never lost, and never taken for something else."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

import tiny_runs
from tiny_runs import SHORT, rows, snapshot, works


def test_a_start_that_was_killed_before_it_began_blocks_nothing(here, recipe, train):
    (here / "run").mkdir()
    (here / "run" / "recipe.yaml").write_text("name: another\n")
    (here / "run" / "status.json").write_text('{"state": "running", "why": "", "pid": 1}\n')
    recipe(**SHORT)
    works(train)


def test_folders_that_are_no_run_folders_are_left_alone(here, recipe, refused):
    recipe(**SHORT)
    (here / "run").write_text("a file")
    assert "run: is a file; name a folder for the run" in refused()
    (here / "run").unlink()
    (here / "run").mkdir()
    (here / "run" / "thesis.tex").write_text("years of work")
    assert "holds files but no recipe.yaml" in refused()
    assert [path.name for path in (here / "run").iterdir()] == ["thesis.tex"]
    assert "No such file" not in refused("--run-dir", "run/thesis.tex/deeper")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(interrupted, refused, train, damage):
    whole = snapshot(interrupted)
    newest = interrupted / "checkpoints" / "step-000000020"
    target = newest / "model.safetensors"
    content = bytearray(target.read_bytes())
    content[-5] ^= 4
    target.write_bytes(content[:-100] if damage == "truncated" else content)
    if damage == "missing":
        target.unlink()
    said = refused()
    assert "step-000000020" in said and "model.safetensors" in said
    assert "delete that folder to go on from step-000000010" in said
    after = snapshot(interrupted)
    changed = {name for name in whole if after.get(name) != whole[name]}
    assert changed <= {"checkpoints/step-000000020/model.safetensors", "manifest.json"}
    # The advice is good: the folder is deleted, and the same command goes on and finishes.
    shutil.rmtree(newest)
    works(train)
    assert [row["step"] for row in rows(interrupted)] == list(range(1, 41))


def test_a_run_of_another_recipe_is_refused(interrupted, recipe, refused, train):
    recipe(training__clip_norm=2.0)
    before = snapshot(interrupted)
    said = refused()
    assert "belongs to a run of another recipe" in said and "training.clip_norm: 1.0 there, 2.0 now" in said
    assert snapshot(interrupted) == before
    recipe()
    works(train)


def test_checkpoints_of_another_recipe_are_refused(here, interrupted, recipe, refused, train):
    recipe(model__width=48, training__ema_decay=0.9)
    shutil.copytree(interrupted / "checkpoints", here / "other" / "checkpoints")
    shutil.rmtree(interrupted)
    # First the recipe is made the folder's own, by a run that is then given the wrong checkpoints.
    works(train, "budget.tokens=512")
    shutil.rmtree(here / "run" / "checkpoints")
    (here / "run" / "scores" / "summary.json").unlink()
    (here / "other" / "checkpoints").rename(here / "run" / "checkpoints")
    said = refused("budget.tokens=512")
    assert "step-000000020: is a checkpoint of another recipe; use another --run-dir" in said


def test_other_text_under_the_same_name_is_found(here, place, monkeypatch, refused, train):
    monkeypatch.setenv("CROSSOVER_CACHE", str(here / "cache"))
    shutil.copy(place / "text.jsonl", here / "text.jsonl")
    tiny_runs.write_recipe(here / "recipe.yaml", here / "text.jsonl", **SHORT)
    works(train)
    (here / "run" / "scores" / "summary.json").unlink()
    lines = (here / "text.jsonl").read_text().splitlines()
    (here / "text.jsonl").write_text("\n".join(line.replace("alpha", "omega") for line in lines) + "\n")
    said = refused()
    assert "manifest.json: data_hash was" in said and "Restore the data" in said


def test_a_damaged_manifest_is_named(interrupted, refused):
    (interrupted / "manifest.json").write_text('{"data_hash": ')
    assert "manifest.json: is not JSON" in refused()


def test_a_second_writer_is_refused(here, interrupted, refused):
    held = "import sys; from crossover.evidence.lock import take_lock; from pathlib import Path\n"
    held += "lock = take_lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", held, str(interrupted)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        assert f"run: process {process.pid} is writing here" in refused()
    finally:
        process.communicate("")
