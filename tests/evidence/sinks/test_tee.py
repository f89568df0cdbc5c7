"""The run folder is the truth: sinks see what it records, catch up on what they missed, and never break a run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_runs
from crossover.errors import RecipeError, RunError
from crossover.evidence.match import prove_matched
from crossover.evidence.run import RunFolder
from crossover.evidence.sinks.tee import Tee, require_sinks
from crossover.recipe import resolve, to_tree
from crossover.registry import component_of
from evidence.sinks.shown import OPENED, Shown, ShownOfTest

RECIPE = {"name": "a", "seed": 0}
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # What survives a power cut is tested elsewhere; here it only takes time.
    monkeypatch.setattr("os.fsync", lambda _: None)
    OPENED.clear()
    yield
    OPENED.clear()


class Listed:
    """A recorder that lists what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.told.append((name, *arguments))


def calls(steps: int) -> list[tuple[Any, ...]]:
    """What training tells, call by call."""
    made: list[tuple[Any, ...]] = [("manifest", {"flops_per_token": {"masked": 1.0}}), ("cut_back", 0)]
    for step in range(1, steps + 1):
        made += [
            ("signal", {"step": step, "asked": True, "budget_fraction": 0.1}),
            ("decision", {"step": step, "mix": {"masked": 1.0}, "reason": "why"}),
            ("step", {"step": step, "loss_nats": 1.0 / step, "mix": {"masked": 1.0}}),
            ("progress", {"step": step}),
            ("evaluation", {"step": step, "procedure": "ar", "bits_per_byte": 2.0}),
            ("flush",),
            ("ledger", {"data_tokens": step}),
        ]
    return [*made, ("scores", "test-ar", {"bits_per_byte": 2.0})]


@settings(max_examples=60, deadline=None)
@given(fails_at=st.integers(-1, 40), error=st.sampled_from([RuntimeError, OSError, RunError, ZeroDivisionError]))
def test_whatever_a_sink_does_the_folder_hears_everything_and_other_sinks_go_on(
    fails_at: int, error: type[Exception]
) -> None:
    with tempfile.TemporaryDirectory() as place:
        OPENED.update(bad=Shown(fails_at=fails_at, error=error), good=Shown())
        folder, said = Listed(), []
        bad, good = ShownOfTest("bad"), ShownOfTest("good")
        # Two sinks of one kind are refused in a recipe; here they only need two names.
        tee = Tee(folder, Path(place), RECIPE, (), said.append)  # pyright: ignore[reportArgumentType]
        tee._closed = {"bad": bad, "good": good}
        script = calls(5)
        with tee:
            for name, *arguments in script:
                getattr(tee, name)(*arguments)
        assert folder.told == script
        assert OPENED["good"].series("train/loss_nats") == [(step, 1.0 / step) for step in range(1, 6)]
        assert OPENED["good"].closed == [False]
        failed = 1 <= fails_at <= OPENED["bad"].calls
        warned = [line for line in said if line.startswith("warning: sink bad failed and is switched off")]
        assert len(warned) == failed and all("\n" not in line for line in said)
        if failed:
            # It hears nothing more.
            assert OPENED["bad"].calls == fails_at and error.__name__ in warned[0]


def test_what_the_folder_refuses_no_sink_hears(tmp_path: Path) -> None:
    class Full(Listed):
        def step(self, row: Any) -> None:
            raise RunError("the disk is full")

    tee = Tee(Full(), tmp_path, RECIPE, (ShownOfTest(),))  # pyright: ignore[reportArgumentType]
    tee.manifest({})
    with pytest.raises(RunError, match="disk is full"):
        tee.step({"step": 1, "loss_nats": 1.0})
    assert OPENED["it"].fresh == []


# Steps taken before a kill, after which of them a checkpoint was made, whether the sink was there, and whether what it
# had not flushed was lost.
STARTS = st.tuples(st.integers(1, 6), st.sets(st.integers(1, 6)), st.booleans(), st.booleans())


@settings(max_examples=40, deadline=None)
@given(starts=st.lists(STARTS, max_size=4), lag_seconds=st.sampled_from([0.0, float("inf")]))
def test_after_any_interruptions_a_sink_shows_the_folders_rows_each_once(
    starts: list[tuple[int, set[int], bool, bool]], lag_seconds: float
) -> None:
    # A sink that lags may lose even what it was told before a checkpoint.
    OPENED["it"], checkpoint = Shown(lag_seconds=lag_seconds), 0
    folder = RunFolder(".")
    with tempfile.TemporaryDirectory() as place:
        for steps, saves, present, lost in [*starts, (6, {3, 6}, True, False)]:
            folder = RunFolder(Path(place) / "run", terminal=False).create(RECIPE)
            tee = Tee(folder, folder.path, RECIPE, (ShownOfTest(),) if present else ())
            tee.manifest({})
            tee.cut_back(checkpoint)
            begun = checkpoint
            for taken in range(1, steps + 1):
                step = begun + taken
                tee.step({"step": step, "loss_nats": 1.0 / step})
                if taken in saves:
                    tee.evaluation({"step": step, "split": "dev", "procedure": "ar", "bits_per_byte": float(step)})
                    tee.flush()
                    checkpoint = step
            folder.finish("interrupted")
            if lost:
                OPENED["it"].fresh = []
        for stream, key, name in (
            ("steps", "loss_nats", "train/loss_nats"),
            ("evals", "bits_per_byte", "dev/ar/bits_per_byte"),
        ):
            rows = tiny_runs.rows(folder.path, stream)
            assert OPENED["it"].series(name) == [(row["step"], row[key]) for row in rows]


def test_a_sink_finds_its_memory_again_unless_it_has_moved(tmp_path: Path) -> None:
    def begin(label: str) -> Any:
        folder = RunFolder(tmp_path / "run", terminal=False).create(RECIPE)
        with folder, Tee(folder, folder.path, {**RECIPE, "sinks": []}, (ShownOfTest(label),)) as tee:
            tee.manifest({"data_hash": "d"})
        return OPENED[label].place

    first, again, moved = begin("here"), begin("here"), begin("there")
    assert (first.memory, again.memory, moved.memory) == ({}, {"id": 7}, {})
    assert again.recipe == RECIPE and again.facts == {"data_hash": "d"} and again.run == "a"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_extra_ends_the_command_before_anything_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    source = tiny_runs.write_text(tmp_path / "text.jsonl")
    recipe = tiny_runs.write_recipe(tmp_path / "recipe.yaml", source, sinks=[name])
    assert tiny_runs.command(monkeypatch, "train", recipe) == 2
    out, said = capsys.readouterr()
    expected = (
        f"error: sinks: {name}: needs the package {name}, which is not installed; pip install 'crossover-lm[{name}]'"
    )
    assert out == "" and said.startswith(expected) and said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "text.jsonl"]


def test_a_package_that_breaks_at_import_is_told_apart_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trackio.py").write_text("import nothing_of_this_name")
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RunError, match=r"is installed but cannot be imported.*nothing_of_this_name"):
        require_sinks([component_of("sink", "trackio")])


def test_a_sink_is_named_once() -> None:
    with pytest.raises(RecipeError, match="'shown_of_test' is named 2 times"):
        require_sinks([ShownOfTest("a"), ShownOfTest("b")])


def test_sinks_are_written_as_one_or_as_a_list_and_none_is_imported() -> None:
    one = resolve({"sinks": {"name": "wandb", "project": "p", "mode": "offline"}})
    assert to_tree(one)["sinks"][0] | {"name": "wandb", "project": "p", "mode": "offline"} == to_tree(one)["sinks"][0]
    assert [type(sink).__name__ for sink in resolve({"sinks": ["tensorboard", "trackio"]}).sinks] == [
        "TensorBoard",
        "Trackio",
    ]
    assert resolve(to_tree(one)) == one and resolve({}).sinks == ()
    with pytest.raises(RecipeError, match=r"sinks\.0\.mode: .*'offline'"):
        resolve({"sinks": [{"name": "wandb", "mode": "of"}]})
    with pytest.raises(RecipeError, match=r"sinks\.0: no sink called 'tensorbord'; did you mean 'tensorboard'"):
        resolve({"sinks": "tensorbord"})


def test_sinks_are_no_difference_between_matched_runs(plain_run: Callable[[str, int], dict[str, Any]]) -> None:
    shown, plain = plain_run("ar", 0), plain_run("masked", 0)
    shown["recipe"]["sinks"] = [{"name": "tensorboard"}]
    plain["recipe"]["sinks"] = []
    proof = prove_matched([shown, plain], vary="controller")
    assert not [item for item in proof.mismatches if "sinks" in item.key]
    assert proof.mismatches == prove_matched([plain_run("ar", 0), plain_run("masked", 0)], vary="controller").mismatches


def test_a_run_with_sinks_added_later_goes_on_and_trains_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    source = tiny_runs.write_text(tmp_path / "text.jsonl")
    recipe = tiny_runs.write_recipe(tmp_path / "recipe.yaml", source)

    def train(folder: str, *more: str) -> int:
        return tiny_runs.command(monkeypatch, "train", recipe, "--run-dir", tmp_path / folder, *more)

    # Stopped from inside by what no guard may swallow.
    OPENED["stops"] = Shown(fails_at=60, error=KeyboardInterrupt)
    assert train("run", "sinks=shown_of_test(stops)") != 0
    assert tiny_runs.read(tmp_path / "run" / "status.json")["state"] == "interrupted"
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints
    assert train("run", "sinks=shown_of_test(late)") == 0
    assert train("plain") == 0
    losses = [(row["step"], row["loss_nats"]) for row in tiny_runs.rows(tmp_path / "plain")]
    assert [(row["step"], row["loss_nats"]) for row in tiny_runs.rows(tmp_path / "run")] == losses
    # Told from the folder what it had missed, then by the run.
    assert OPENED["late"].series("train/loss_nats") == losses
    assert OPENED["late"].series("scores/test-ar/bits_per_byte")[0][0] == losses[-1][0]
    assert OPENED["stops"].closed == [True] and OPENED["late"].closed == [False]
    capsys.readouterr()
