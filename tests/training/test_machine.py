"""What a run chooses of its machine, and what it says about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_runs
from crossover.sections import TrainingRecipe
from crossover.training import machine


def a_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str) -> None:
    """A PATH with one compiler on it, or none."""
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    if name:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_without_a_compiler_a_run_is_eager_and_says_so(monkeypatch, tmp_path, wanted):
    a_compiler(monkeypatch, tmp_path, "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert machine.compiler() is None
    choices = machine.decide(TrainingRecipe(compile=wanted), expected_seconds=1e6)
    assert not choices.compile
    assert "no C++ compiler" in choices.reason and "g++" in choices.reason and "CXX" in choices.reason


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_a_compiler_is_used_when_the_run_repays_it(monkeypatch, tmp_path, name):
    a_compiler(monkeypatch, tmp_path, name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    long, short = (
        machine.decide(TrainingRecipe(), expected_seconds=machine.COMPILE_FROM_SECONDS * factor) for factor in (2, 0.5)
    )
    assert long.compile and "repays" in long.reason
    assert not short.compile and "would not repay" in short.reason
    assert machine.decide(TrainingRecipe(compile="on"), expected_seconds=0).compile
    assert not machine.decide(TrainingRecipe(compile="off"), expected_seconds=1e6).compile


def test_cxx_names_the_compiler(monkeypatch, tmp_path):
    a_compiler(monkeypatch, tmp_path, "g++")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert machine.compiler() is None
    (tmp_path / "my-compiler").write_text("#!/bin/sh\n")
    (tmp_path / "my-compiler").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "my-compiler"))
    assert machine.compiler() == str(tmp_path / "my-compiler")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_taken(precision):
    choices = machine.decide(TrainingRecipe(precision=precision, threads=3), expected_seconds=0)
    assert choices.precision == precision and choices.threads == 3
    assert f"{precision}: asked for" in choices.reason


def test_precision_follows_the_machine(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for amx, avx, expected in ((True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")):
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda answer=amx: answer)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda answer=avx: answer)
        assert machine.decide(TrainingRecipe(), expected_seconds=0).precision == expected


def test_choices_come_back_from_a_manifest():
    choices = machine.decide(TrainingRecipe(), expected_seconds=0)
    assert machine.from_row({**machine.as_row(choices), "attention": {"causal": "sdpa"}}) == choices


def test_the_choices_of_a_run_hold_when_it_goes_on(prepared, recipe_of):
    from crossover.training.build import build_workshop, manifest_of

    recipe = recipe_of(training__precision="auto")
    first = build_workshop(recipe, prepared(recipe), None)
    recorded = manifest_of(first, {})
    other = "float32" if first.choices.precision == "bfloat16" else "bfloat16"
    recorded["choices"] = {**recorded["choices"], "precision": other}
    again = build_workshop(recipe, prepared(recipe), recorded)
    assert again.choices.precision == again.stepper.precision == again.evaluator.precision == other


def test_a_rate_is_a_positive_number():
    assert machine.matmul_flops_per_second("float32", "cpu", size=64, seconds=0.01) > 1e6


def test_a_run_without_a_compiler_works(tmp_path):
    """The whole command, with nothing on PATH, asking for compilation."""
    source = tiny_runs.write_text(tmp_path / "text.jsonl")
    changes = {"budget": {"tokens": 2048}, "training__compile": "on"}
    recipe = tiny_runs.write_recipe(tmp_path / "recipe.yaml", source, **changes)
    (tmp_path / "bin").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "CXX"}
    environment |= {"PATH": str(tmp_path / "bin"), "CROSSOVER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "crossover", "train", str(recipe), "--run-dir", str(tmp_path / "run")],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    choices = tiny_runs.read(tmp_path / "run" / "manifest.json")["choices"]
    assert choices["compile"] is False and "no C++ compiler" in choices["reason"]
    assert tiny_runs.read(tmp_path / "run" / "status.json")["state"] == "finished"
