"""A study with a grid of budgets: decayed points for every arm alike, from the trunk where that is the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import tiny_runs
from crossover.errors import RecipeError
from crossover.evidence import study as study_module
from crossover.evidence.crossings import crossings_of
from crossover.evidence.definition import read_study
from crossover.evidence.files import read_json, read_rows
from crossover.evidence.study import run_study
from crossover.evidence.view import arm_curves, read_view
from crossover.evidence.workers import Fleet, Job


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two arms and three budgets whose runs are trained in this process, which has torch already."""

    def here(jobs: Sequence[Job], **options: Any) -> Fleet:
        fleet = Fleet([])
        for job in jobs:
            fleet.ended[job.name] = tiny_runs.command(monkeypatch, *job.command[3:])
        return fleet

    monkeypatch.setattr(study_module, "run_jobs", here)
    monkeypatch.setenv("CROSSOVER_CACHE", str(tmp_path / "cache"))
    tiny_runs.write_text(tmp_path / "text.jsonl")
    base = tiny_runs.tree(tmp_path / "text.jsonl")
    del base["controller"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    tree = {
        "name": "grid", "recipe": "base.yaml", "vary": "controller", "seeds": [0],
        "budget": {"tokens": 20_000}, "budgets": [8_000, 13_000],
        "arms": {"autoregressive": {"controller": "constant(autoregressive)"}, "dual": {"controller": "static_dual"}},
    }  # fmt: skip
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "grid.yaml"


def test_every_arm_has_a_decayed_point_at_every_budget(study: Path, tmp_path: Path) -> None:
    ended = run_study(study, folder=tmp_path / "made", notify=lambda line: None)
    assert ended.exit_code == 0 and len(ended.finished) == 6
    begins = {}
    for arm in ("autoregressive", "dual"):
        for label in ("8000", "13000"):
            run = tmp_path / "made" / arm / f"budget-{label}" / "seed-0"
            begins[arm, label] = read_json(run / "manifest.json").get("branch")
            last = [row["learning_rate"] for row in read_rows(run / "steps.jsonl")][-1]
            assert last < 0.5 * 3e-3, "the learning rate has not decayed"
    # The plan of the one does not depend on the horizon, the other's does: it ran once per budget.
    assert all(begins["autoregressive", label]["step"] > 0 for label in ("8000", "13000"))
    assert all(begins["dual", label]["step"] == 0 for label in ("8000", "13000"))
    shorter = [tmp_path / "made" / "dual" / f"budget-{label}" / "seed-0" for label in ("8000", "13000")]
    assert all(len(read_rows(run / "decisions.jsonl")) == 1 for run in shorter)
    assert not list((tmp_path / "made").glob("*/seed-0/forks/*")), "forks that were used are kept"
    _check_curves(tmp_path / "made")


def _check_curves(folder: Path) -> None:
    """The curves are the ends of the runs, and the crossing and the report are made of them."""
    (plain, dual) = arm_curves(read_view(folder))
    for arm in (plain, dual):
        (one,) = arm.curves[arm.headline]
        assert len(one.flops_E) == 3 and np.all(np.diff(one.flops_E) > 0)
        assert len(arm.trunks[arm.headline][0].flops_E) > 3
    ends = [read_rows(path / "evals.jsonl")[-1] for path in (
        folder / "autoregressive/budget-8000/seed-0", folder / "autoregressive/budget-13000/seed-0",
        folder / "autoregressive/seed-0")]  # fmt: skip
    rows = [row for row in ends if row["procedure"] == "ar"]
    assert plain.curves["ar"][0].bits_E == pytest.approx([row["bits_per_byte"] for row in rows])
    assert crossings_of([folder])
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["runs_planned"] == 6 and report["proof"]["matched"] and report["proof"]["runs"] == 6


def test_a_second_start_makes_nothing_anew(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(study, ["study.budgets=[8000]"], folder=tmp_path / "made", notify=lambda line: None)
    started: list[str] = []
    monkeypatch.setattr(study_module, "run_jobs", lambda jobs, **options: started.extend(job.name for job in jobs))
    ended = run_study(study, ["study.budgets=[8000]"], folder=tmp_path / "made", notify=lambda line: None)
    assert ended.exit_code == 0 and not started


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("study.budgets=[30000]", "between 0 and the budget's 20000"),
        ("study.budgets=5", "expected a list of tokens"),
        ("study.budgets=[8000, 8000]", "a budget stands twice"),
        ("study.budgets=[-1]", "between 0 and"),
    ],
)
def test_budgets_that_cannot_be_used_are_refused(study: Path, change: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        read_study(study, [change])


def test_minutes_are_no_grid(study: Path) -> None:
    with pytest.raises(RecipeError, match="minutes are converted run by run"):
        read_study(study, ["study.budget={minutes: 5}", "study.budgets=[1, 2]"])


def test_an_arm_without_its_points_takes_all_curves_back_to_the_trunks(study: Path, tmp_path: Path) -> None:
    run_study(study, folder=tmp_path / "made", notify=lambda line: None)
    (tmp_path / "made" / "dual" / "budget-8000" / "seed-0" / "status.json").unlink()
    view = read_view(tmp_path / "made")
    assert "dual/budget-8000/seed-0" in view.missing
    # Decayed points of one arm against points on the way of another would be no comparison.
    assert all(not arm.trunks for arm in arm_curves(view))
