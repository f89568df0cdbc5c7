"""Bad input ends in one clear message and exit code 2; what was there stays whole, and the corrected command works."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from tiny_runs import read, rows

# One step, scored coarsely: enough to see that a command works.
SHORT = {"budget": {"tokens": 512}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, and a cache that keeps what has been prepared of it."""
    folder = tmp_path_factory.mktemp("bad-input")
    tiny_runs.write_text(folder / "text.jsonl")
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own."""
    monkeypatch.setenv("CROSSOVER_CACHE", str(place / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(here: Path, place: Path) -> Callable[..., Path]:
    """Write recipe.yaml."""

    def make(**changes: Any) -> Path:
        return tiny_runs.write_recipe(here / "recipe.yaml", place / "text.jsonl", **changes)

    return make


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Give `crossover train recipe.yaml --run-dir run`; returns exit code, output and errors."""

    def give(*more: object) -> tuple[int, str, str]:
        code = tiny_runs.command(monkeypatch, "train", "recipe.yaml", "--run-dir", "run", *more)
        return code, *capsys.readouterr()

    return give


@pytest.fixture
def refused(train: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Give the command, which must be refused in one message; returns the message."""

    def give(*more: object) -> str:
        code, _, said = train(*more)
        assert code == 2, said
        assert said.startswith("error: ") and "Traceback" not in said
        assert len(said) < 1500
        return said

    return give


def leftovers(folder: Path) -> list[str]:
    """Files that a write in the middle of which something failed would leave."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]


def works(train: Callable[..., tuple[int, str, str]], *more: object) -> None:
    code, out, said = train(*more)
    assert code == 0, said
    assert "finished" in out and said == ""
    assert read(Path("run/status.json"))["state"] == "finished" and Path("run/model/config.json").exists()
    assert leftovers(Path("run")) == []


def test_a_missing_recipe(here, refused):
    assert "recipe.yaml: cannot be read: No such file" in refused()
    assert list(here.iterdir()) == []


def line_of(path: Path, text: str) -> int:
    """Number of the line that holds a text."""
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("changes", "where", "expected"),
    [
        ({"data__sourcee": "x"}, "sourcee", "data.sourcee: no such setting; did you mean 'source'?"),
        ({"trainin": {"batch_tokens": 3}}, "trainin:", "trainin: no such setting; did you mean 'training'?"),
        ({"training__batch_tokens": "many"}, "batch_tokens", "training.batch_tokens: Input should be a valid integer"),
        ({"data__context": -5}, "context", "data.context: Input should be greater than 0"),
        ({"model__family": "gpt"}, "family", "model.family: Input should be 'llama' or 'qwen3'"),
        ({"budget": {"tokens": 1000, "flops": 1e9}}, "budget", "give exactly one of tokens, flops, minutes"),
        ({"budget": {}}, "budget", "none given"),
        ({"training__optimizer": "adamm"}, "optimizer", "no optimizer called 'adamm'; did you mean 'adamw'?"),
        ({"controller": "constant(maskd)"}, "controller", "did you mean 'masked'?"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_its_line(here, recipe, refused, changes, where, expected):
    path = recipe(**changes)
    said = refused()
    assert f"recipe.yaml, line {line_of(path, where)}: " in said
    assert expected in said
    assert sorted(item.name for item in here.iterdir()) == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"data: [1, 2\nmodel: 3\n", "recipe.yaml, line 2: is not YAML"),
        (b"seed: 1\nseed: 2\n", "recipe.yaml, line 2: is not YAML: 'seed' is given twice"),
        (b"name: \xff\xfe\n", "recipe.yaml: is not UTF-8 text (byte 6)"),
        (b"- a\n- b\n", "recipe.yaml: expected `key: value` lines, not a list"),
        (b"extends: nowhere.yaml\n", "nowhere.yaml: cannot be read: No such file"),
    ],
)
def test_a_file_that_is_no_recipe(here, refused, content, expected):
    (here / "recipe.yaml").write_bytes(content)
    assert expected in refused()
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.batch_tokens", "expected key=value"),
        ("training.batch_token=4", "did you mean 'batch_tokens'?"),
        ("budget={tokens: 1, minutes: 1}", "tokens and minutes given"),
        ("training.batch_tokens=100", "no multiple of data.context 32; try 96"),
        ("name=../elsewhere", "name: String should match pattern"),
    ],
)
def test_a_setting_on_the_command_line_that_cannot_be(here, recipe, refused, override, expected):
    recipe()
    assert expected in refused(override)
    assert not (here / "run").exists()


UNUSABLE_TEXT = {
    "missing": (None, "my.txt: no such file or folder"),
    "empty": (b"", "my.txt: holds no text"),
    "blank": (b" \n\n\t\n" * 50, "my.txt: holds no text"),
    "not UTF-8": (b"caf\xe9 " * 500, "my.txt, byte 3: is not UTF-8 text; convert it first"),
    "too little": (b"one short sentence. " * 9, "documents"),
}


@pytest.mark.parametrize("kind", UNUSABLE_TEXT)
def test_text_that_cannot_be_used_blocks_nothing(here, place, recipe, refused, train, monkeypatch, kind):
    content, expected = UNUSABLE_TEXT[kind]
    monkeypatch.setenv("CROSSOVER_CACHE", str(here / "cache"))
    recipe(**SHORT, data__source="my.txt")
    if content is not None:
        (here / "my.txt").write_bytes(content)
    said = refused()
    assert expected in said and "--run-dir" not in said
    assert [path for path in (here / "cache").rglob("*") if path.is_file()] == []
    # The recipe is corrected, and the same command works.
    recipe(**SHORT)
    works(train)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"controller": "constant(block(7))"}, "block size 7 does not divide the context 32"),
        ({"model__heads": 3}, "model.width: 32 must be a multiple of model.heads 3"),
        ({"model__preset": "huge"}, "no preset called 'huge'"),
        (
            {"data__unique_tokens": 10**9},
            "data.unique_tokens: 1,000,000,000 asked for, but the training documents have",
        ),
        (
            {"data__context": 512, "mix": {}, "data__test_share": 0.0001},
            "data.test_share: the test text has 1 window(s)",
        ),
    ],
)
def test_settings_that_do_not_fit_the_text_or_each_other_block_nothing(recipe, refused, train, changes, expected):
    recipe(**SHORT, **changes)
    assert expected in refused()
    recipe(**SHORT)
    works(train)


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


@pytest.fixture
def interrupted(here: Path, recipe: Callable[..., Path], train: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped before its 25th step, with checkpoints at steps 10 and 20."""
    from crossover.training.step import Stepper

    recipe()
    run = Stepper.run

    def stopping(self: Stepper, number: int, *arguments: Any) -> Any:
        if number == 24:
            raise KeyboardInterrupt
        return run(self, number, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "run", stopping)
        code, _, said = train()
    assert code == 130 and "the same command goes on" in said
    assert read(here / "run" / "status.json")["state"] == "interrupted"
    assert sorted(path.name for path in (here / "run" / "checkpoints").iterdir()) == [
        "step-000000010",
        "step-000000020",
    ]
    return here / "run"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its status and its log."""
    paths = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in ("status.json", ".lock", "log.txt")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


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


class FullDisk:
    """A disk that is full from the n-th write to be made durable on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.patch = after, monkeypatch.context()
        self.fsync = os.fsync

    def __enter__(self) -> None:
        self.patch.__enter__().setattr(os, "fsync", self.refuse)

    def __exit__(self, *what: Any) -> None:
        self.patch.__exit__(*what)

    def refuse(self, number: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync(number)


def test_a_full_disk_loses_nothing(here, recipe, refused, train, monkeypatch):
    recipe(budget={"tokens": 10_240}, training__checkpoint_every_tokens=2000)
    works(train)
    whole = here / "whole"
    (here / "run").rename(whole)
    refusals = 0
    # From the first write of the run folder, over records and checkpoints, to the model folder at the end.
    for after in itertools.chain((0, 1), itertools.count(3, 6)):
        with FullDisk(monkeypatch, after):
            code, _, said = train()
        if code == 0:
            break
        refusals += 1
        assert code == 2 and said.startswith("error: ") and "Traceback" not in said
        assert "the disk is full" in said or "No space left" in said
        assert "free some space" in said or "Free space" in said
        assert leftovers(here / "run") == []
    assert refusals > 5
    works(train)
    assert (here / "run/model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    for one, two in zip(rows(here / "run"), rows(whole), strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_disk_that_is_full_while_text_is_prepared(here, recipe, refused, train, monkeypatch):
    monkeypatch.setenv("CROSSOVER_CACHE", str(here / "cache"))
    recipe(**SHORT)
    for after in (4, 8):
        with FullDisk(monkeypatch, after):
            said = refused()
        assert "No space left on device" in said and "CROSSOVER_CACHE" in said
        assert list((here / "cache").iterdir()) == []
    works(train)


def test_a_disk_that_is_really_full(here, recipe, refused, train):
    recipe()
    with tiny_runs.mounted(here / "run", "size=900k"):
        said = refused()
        assert "step-" in said or "the disk is full" in said or "cannot be written" in said
        kept = sorted((here / "run" / "checkpoints").iterdir())
        assert kept and all((path / "checksums.json").exists() for path in kept)
        subprocess.run(["mount", "-o", "remount,size=16m", str(here / "run")], check=True)
        works(train)
        assert [row["step"] for row in rows(here / "run")] == list(range(1, 41))


def test_a_folder_that_cannot_be_written(here, recipe, refused, train):
    recipe(**SHORT)
    with tiny_runs.mounted(here / "sealed", "ro,size=1m"):
        assert "sealed/run: Read-only file system; make it writable or name another folder" in refused(
            "--run-dir", "sealed/run"
        )
        said = refused("--run-dir", "sealed")
        assert "sealed" in said and "Read-only file system" in said
    works(train)


def test_a_cache_that_cannot_be_written(here, recipe, refused, train, monkeypatch):
    recipe(**SHORT, data__unique_tokens=5000)
    (here / "file").write_text("")
    with monkeypatch.context() as patched:
        patched.setenv("CROSSOVER_CACHE", str(here / "file" / "cache"))
        said = refused()
    assert "cannot be written" in said and "set CROSSOVER_CACHE" in said
    works(train)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_what_the_machine_refuses_is_no_traceback(here, recipe, refused, train, monkeypatch, error):
    recipe(**SHORT)

    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(error, os.strerror(error), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        said = refused()
    assert "run: " in said and (os.strerror(error) in said or "the disk is full" in said)
    works(train)


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


def test_the_same_by_a_process(here, place, recipe):
    """The exit code and the one line, as a shell sees them."""
    recipe(data__source=str(here / "nowhere.jsonl"))
    command = [sys.executable, "-m", "crossover", "train", "recipe.yaml", "--run-dir", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere.jsonl" in done.stderr
    assert json.loads((here / "run" / "status.json").read_text())["state"] == "failed"
