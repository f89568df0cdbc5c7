"""The kept checkpoints of a run, scored: what is kept, that it is not done twice, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

import tiny_runs
from scoring_harness import shelf
from tiny_runs import read

SIZES = ("windows=4", "draws=2", "positions=2")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that kept its checkpoints, and evaluation sets of a few items."""
    folder = tmp_path_factory.mktemp("tracking")
    source = tiny_runs.write_text(folder / "text.jsonl")
    recipe = tiny_runs.write_recipe(
        folder / "recipe.yaml", source, budget={"tokens": 8192},
        training__checkpoint_every_tokens=2048, training__keep_checkpoints=50,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CROSSOVER_CACHE", str(folder / "cache"))
        assert tiny_runs.command(patched, "train", recipe, "--run-dir", folder / "run") == 0
    shelf.fill(folder / "evals")
    return folder


@pytest.fixture
def give(tracked, monkeypatch, capsys):
    monkeypatch.setenv("CROSSOVER_CACHE", str(tracked / "cache"))
    monkeypatch.chdir(tracked)

    def command(*arguments):
        code = tiny_runs.command(monkeypatch, *arguments)
        return code, *capsys.readouterr()

    return command


def table(run: Path) -> list[dict[str, str]]:
    with (run / "scores" / "tracking" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_checkpoint_gets_a_row_and_none_is_scored_twice(give, tracked):
    code, out, said = give("eval", "run", "checkpoints=all", *SIZES)
    assert (code, said) == (0, "") and out.count("bits per byte") == 5
    rows = table(tracked / "run")
    assert [int(row["data_tokens"]) for row in rows] == [512, 2048, 4096, 6144, 8192]
    assert all(float(row["dev-ar bits_per_byte standard error"]) > 0 for row in rows)
    losses = [float(row["dev-ar bits_per_byte"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert json.loads((tracked / "run/scores/tracking/table.json").read_text())[0]["step"] == int(rows[0]["step"])
    again = give("eval", "run", "checkpoints=all", *SIZES)[1]
    assert "bits per byte" not in again and again.count("are there already") == 5
    # Other settings are other numbers.
    assert give("eval", "run", "checkpoints=all", "windows=5")[1].count("bits per byte") == 5


def test_the_last_checkpoint_scores_what_its_model_scores(give, tracked):
    assert give("eval", "run", "checkpoints=16", *SIZES)[0] == 0
    out = give("eval", "run", "text=dev", *SIZES)[1]
    kept = read(tracked / "run/scores/tracking/step-000000016/dev-ar.json")
    assert kept["clock"]["data_tokens"] == 8192 and kept["clock"]["epochs"] == pytest.approx(8192 / 6000)
    assert f"{kept['measures']['bits_per_byte'][0]:.4f} +- " in out


def test_tasks_are_tracked_item_by_item(give, tracked):
    asked = ("checkpoints=8,16", "tasks=blimp_causative", "evals=evals", "procedure=ar")
    code, out, said = give("eval", "run", *asked)
    assert code == 0, said
    assert out.count("blimp_causative, ar: acc ") == 2
    rows = [row for row in table(tracked / "run") if row["blimp_causative-ar acc"]]
    assert [row["step"] for row in rows] == ["8", "16"]
    assert all(
        0 <= float(row["blimp_causative-ar acc"]) <= 1 and float(row["blimp_causative-ar bits_per_byte"]) > 0
        for row in rows
    )
    assert all(row["blimp_causative-ar acc standard error"] for row in rows)
    kept = read(tracked / "run/scores/tracking/step-000000008/blimp_causative-ar.json")["record"]
    assert {len(part["acc"]) for part in kept["answers"].values()} == {2}
    assert "blimp_causative, ar" not in give("eval", "run", *asked)[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "checkpoints=7"), "kept no checkpoint of step 7; there are those of 1, 4, 8, 12, 16"),
        (("run", "checkpoints=some"), "expected `all` or steps such as 100,200"),
        (("run", "checkpoints=all", "text=text.jsonl"), "text=dev or text=test"),
        (("run", "checkpoints=all", "out=elsewhere"), "out has no effect with checkpoints"),
        (("run/model", "checkpoints=all"), "is no run folder"),
        (("run", "checkpoints=all", "limit=3"), "limit means something for tasks only"),
    ],
)
def test_what_cannot_be_tracked_is_refused(give, arguments, expected):
    code, out, said = give("eval", *arguments)
    assert (code, out) == (2, "") and expected in said


def test_an_altered_checkpoint_is_named(give, tracked):
    shutil.copytree(tracked / "run", tracked / "altered")
    path = tracked / "altered/checkpoints/step-000000008/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(tracked / "altered/scores/tracking", ignore_errors=True)
    code, _, said = give("eval", "altered", "checkpoints=8", *SIZES)
    assert code == 2 and "step-000000008: model.safetensors is not what was written" in said


def test_a_copy_beside_the_checkpoints_is_none(give, tracked):
    shutil.copytree(tracked / "run", tracked / "copied")
    shutil.copytree(tracked / "copied/checkpoints/step-000000008", tracked / "copied/checkpoints/step-000000008 (copy)")
    code, out, said = give("eval", "copied", "checkpoints=8", *SIZES)
    assert (code, said) == (0, "") and "step 8" in out


def test_a_checkpoint_with_other_weights_is_scored_anew(give, tracked):
    shutil.copytree(tracked / "run", tracked / "anew", symlinks=True)
    shutil.rmtree(tracked / "anew/scores/tracking", ignore_errors=True)
    asked = ("eval", "anew", "checkpoints=8", *SIZES)
    assert give(*asked)[1].count("bits per byte") == 1 and "bits per byte" not in give(*asked)[1]
    place = tracked / "anew/checkpoints"
    for name in ("model.safetensors", "checksums.json"):
        shutil.copyfile(place / "step-000000012" / name, place / "step-000000008" / name)
    assert give(*asked)[1].count("bits per byte") == 1
    kept = read(tracked / "anew/scores/tracking/step-000000008/dev-ar.json")
    sums = read(place / "step-000000012/checksums.json")
    assert (
        kept["asked"]["weights_sha256"] == kept["record"]["conditions"]["weights_sha256"] == sums["model.safetensors"]
    )


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is scored by its averaged weights, and whose tokenizer knows no text."""
    folder = tmp_path_factory.mktemp("averaged")
    source = tiny_runs.write_text(folder / "text.jsonl")
    recipe = tiny_runs.write_recipe(
        folder / "recipe.yaml", source, budget={"tokens": 4096}, data__tokenizer="bytes",
        training__checkpoint_every_tokens=2048, training__keep_checkpoints=50,
        training__ema_decay=0.9, scoring__weights="ema",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CROSSOVER_CACHE", str(folder / "cache"))
        assert tiny_runs.command(patched, "train", recipe, "--run-dir", folder / "run") == 0
    return folder


@pytest.fixture
def give_averaged(averaged, monkeypatch, capsys):
    monkeypatch.setenv("CROSSOVER_CACHE", str(averaged / "cache"))
    monkeypatch.chdir(averaged)

    def command(*arguments):
        code = tiny_runs.command(monkeypatch, *arguments)
        return code, *capsys.readouterr()

    return command


def test_averaged_weights_are_scored_where_the_run_is_scored_by_them(give_averaged, averaged):
    code, _, said = give_averaged("eval", "run", "checkpoints=8", *SIZES)
    assert (code, said) == (0, "")
    kept = read(averaged / "run/scores/tracking/step-000000008/dev-ar.json")
    sums = read(averaged / "run/checkpoints/step-000000008/checksums.json")
    assert kept["record"]["conditions"]["weights_sha256"] == sums["ema.safetensors"] != sums["model.safetensors"]
    assert kept["asked"]["weights"] == "ema" and kept["asked"]["weights_sha256"] == sums["ema.safetensors"]
    assert kept["asked"]["data_hash"] == read(averaged / "run/manifest.json")["data_hash"]


@pytest.mark.parametrize("asked", [("checkpoints=4",), ("text=dev",), ("text=test",)], ids=str)
def test_a_text_that_was_edited_since_is_no_text_of_the_run(give_averaged, averaged, asked):
    """With a tokenizer of bytes, its hash says nothing of the text."""
    text = averaged / "text.jsonl"
    before = text.read_text("utf-8")
    rows = before.splitlines()
    new = [json.dumps({"text": f"a document of another version {number} " * 30}) for number in range(40)]
    text.write_text("\n".join([*rows[: len(rows) * 3 // 4], *new]), "utf-8")
    try:
        code, out, said = give_averaged("eval", "run", *asked, *SIZES)
    finally:
        text.write_text(before, "utf-8")
    assert (code, out) == (2, "") and said.count("\n") == 1
    assert (
        "text.jsonl" in said
        and "is not what this run was trained" in said
        and "the run's " in said
        and "Bring the old text back" in said
    )
    code, out, said = give_averaged("eval", "run", *asked, *SIZES)
    assert (code, said) == (0, "") and "bits per byte" in out
