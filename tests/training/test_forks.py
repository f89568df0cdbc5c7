"""A branch of a smaller budget is, bit for bit, the run that was trained from the start; only the decay is new."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossover.errors import RecipeError, RunError
from crossover.evidence.branches import begin_branch, forget_fork
from crossover.evidence.files import read_json
from crossover.evidence.run import RunFolder
from crossover.recipe import Recipe, to_tree

RAMP = {"name": "ramp", "from_epochs": 0.2, "to_epochs": 1.5, "before": "autoregressive",
        "after": {"masked": 0.5, "autoregressive": 0.5}}  # fmt: skip
ARMS: dict[str, tuple[str, float, float, dict[str, Any]]] = {
    "ramp, averages and dropout": ("tokens", 20_000, 12_000, {
        "controller": RAMP, "training__ema_decay": 0.9, "model__residual_dropout": 0.1}),
    "flops": ("flops", 3e9, 1.8e9, {"controller": "constant(masked)"}),
    "probes": ("flops", 3e9, 1.8e9, {
        "controller": {"name": "watch", "controller": "constant(autoregressive)", "signals": ["gap"]}}),
}  # fmt: skip


@pytest.fixture
def made(prepared: Callable[[Recipe], Any], recipe_of: Callable[..., Recipe]) -> Callable[..., dict[str, Any]]:
    """Train a recipe into a real run folder; give its streams and scores without clocks on the wall."""
    from crossover.training.train import train

    def make(folder: Path, fork_for: tuple[float, ...] = (), branch_of: Path | None = None, **changes: Any) -> Any:
        recipe = recipe_of(**changes)
        with RunFolder(folder, terminal=False).create(to_tree(recipe)) as recorder:
            if branch_of is not None:
                begin_branch(folder, branch_of)
            manifest = folder / "manifest.json"
            recorded = read_json(manifest) if manifest.exists() else None
            train(recipe, prepared(recipe), folder, recorder, recorded, fork_for=fork_for)
        return left(folder)

    return make


def left(folder: Path) -> dict[str, Any]:
    """All that a run left and that must be equal."""
    streams = {}
    for name in ("steps", "evals", "signals", "decisions"):
        path = folder / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        streams[name] = [{key: row[key] for key in row if not key.startswith("seconds")} for row in rows]
    scores = {path.name: read_json(path) for path in sorted((folder / "scores").glob("*.json"))}
    weights = (folder / "model" / "model.safetensors").read_bytes()
    return {**streams, "scores": scores, "weights": weights}


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_branch_is_the_run_from_the_start(arm: str, made: Callable[..., Any], tmp_path: Path) -> None:
    currency, large, small, changes = ARMS[arm]
    made(tmp_path / "trunk", (small,), budget={currency: large}, **changes)
    alone = made(tmp_path / "alone", budget={currency: small}, **changes)
    branch = made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget={currency: small}, **changes)
    begins = read_json(tmp_path / "branch" / "manifest.json")["branch"]
    assert 0 < begins["step"] < alone["steps"][-1]["step"]
    for row in alone["signals"]:
        # Recorded of the trunk, told of the branch: one rounding more.
        row |= {key: pytest.approx(row[key]) for key in ("budget_fraction", "planned_epochs") if key in row}
    assert branch == alone
    # It really went on: most of its steps were copied.
    assert begins["step"] / alone["steps"][-1]["step"] > 0.5


def test_a_branch_of_another_recipe_is_refused(made: Callable[..., Any], tmp_path: Path) -> None:
    made(tmp_path / "trunk", (7_000.0,), budget={"tokens": 12_000})
    with pytest.raises(RunError, match=r"training.clip_norm differ; only the budget may"):
        made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget={"tokens": 7_000}, training__clip_norm=0.5)


def test_without_a_fork_the_run_is_made_from_the_start(made: Callable[..., Any], tmp_path: Path) -> None:
    made(tmp_path / "trunk", budget={"tokens": 12_000})
    branch = made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget={"tokens": 7_000})
    assert branch == made(tmp_path / "alone", budget={"tokens": 7_000})
    assert read_json(tmp_path / "branch" / "manifest.json")["branch"]["step"] == 0


def test_seconds_go_on_across_a_fork(made: Callable[..., Any], tmp_path: Path) -> None:
    made(tmp_path / "trunk", (12_000.0,), budget={"tokens": 20_000})
    made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget={"tokens": 12_000})
    rows = [json.loads(line) for line in (tmp_path / "branch" / "steps.jsonl").read_text("utf-8").splitlines()]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("damage", ["checksum", "rescued", "gone"])
def test_a_fork_that_cannot_be_used_is_not(damage: str, made: Callable[..., Any], tmp_path: Path) -> None:
    # The ramp begins after the shorter run's end: alone such a recipe would be refused, as a branch it is not.
    late = {**RAMP, "from_epochs": 2.5, "to_epochs": 2.6}
    made(tmp_path / "trunk", (12_000.0,), budget={"tokens": 20_000}, controller=late)
    (fork,) = (tmp_path / "trunk" / "forks" / "12000").glob("step-*")
    if damage == "checksum":
        (fork / "model.safetensors").write_bytes(b"half")
    elif damage == "rescued":
        state = read_json(fork / "state.json")
        state["state"]["rollbacks"] = 1
        (fork / "state.json").write_text(json.dumps(state))
        sums = read_json(fork / "checksums.json")
        sums["state.json"] = hashlib.sha256((fork / "state.json").read_bytes()).hexdigest()
        (fork / "checksums.json").write_text(json.dumps(sums))
    else:
        forget_fork(tmp_path / "trunk", 12_000.0)
    branch = made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget={"tokens": 12_000}, controller=late)
    manifest = read_json(tmp_path / "branch" / "manifest.json")
    assert manifest["branch"]["step"] == 0 and manifest["versions"]
    assert [row["step"] for row in branch["steps"]] == list(range(1, 25))


@pytest.mark.parametrize(
    ("budget", "told"),
    [({"flops": 1e9}, "is no smaller budget than"), ({"tokens": 30_000}, "is no smaller budget than")],
)
def test_a_branch_in_another_currency_or_longer_is_refused(budget, told, made, tmp_path: Path) -> None:
    made(tmp_path / "trunk", (12_000.0,), budget={"tokens": 20_000})
    with pytest.raises(RunError, match=told):
        made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget=budget)


def test_an_open_interval_of_evaluations_is_refused(made: Callable[..., Any], tmp_path: Path) -> None:
    made(tmp_path / "trunk", (12_000.0,), budget={"tokens": 20_000}, scoring__every_tokens=None)
    with pytest.raises(RunError, match=r"scoring\.every_tokens is open"):
        made(tmp_path / "branch", branch_of=tmp_path / "trunk", budget={"tokens": 12_000}, scoring__every_tokens=None)


@pytest.mark.parametrize("amount", [0.0, -1.0, 20_000.0, 1e9])
def test_forks_that_no_run_could_begin_at_are_refused(amount: float, made: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected a budget between 0 and the recipe's 20000 tokens"):
        made(tmp_path / "trunk", (amount,), budget={"tokens": 20_000})
