"""Bad input ends in one clear message and exit code 2, and the corrected command works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_runs import SHORT, works


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
        ({"model__family": "gpt"}, "family", "model.family: Input should be 'llama', 'qwen3' or 'qwen3_moe'"),
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


def test_the_same_by_a_process(here, place, recipe):
    """The exit code and the one line, as a shell sees them."""
    recipe(data__source=str(here / "nowhere.jsonl"))
    command = [sys.executable, "-m", "crossover", "train", "recipe.yaml", "--run-dir", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere.jsonl" in done.stderr
    assert json.loads((here / "run" / "status.json").read_text())["state"] == "failed"
