from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from crossover.errors import RecipeError
from crossover.evidence.definition import read_study
from crossover.evidence.tune import Tune, draw_trials

BASE = {"name": "base", "data": {"unique_tokens": 20000}, "model": {"preset": "250k"}, "budget": {"tokens": 10000}}
STUDY = {
    "name": "small",
    "recipe": "base.yaml",
    "arms": {
        "ar": {"controller": "constant(autoregressive)"},
        "masked": {"controller": "constant(masked)", "set": {"model.residual_dropout": 0.1}},
    },
    "seeds": [0, 1],
    "budget": {"flops": "2e12"},
    "tunable": ["model.residual_dropout"],
}


def write(folder: Path, **changes: object) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
    return folder / "study.yaml"


def test_every_run_gets_a_resolved_recipe_that_differs_in_what_varies_only(tmp_path: Path) -> None:
    study = read_study(write(tmp_path), ["data.context=64", "training.batch_tokens=1024", "study.seeds=[3]"])
    recipes = {arm: study.recipe(arm, 3, chosen={}, budget=study.budget, threads=1, name=arm) for arm in study.arms}
    assert study.seeds == (3,) and study.jobs == 2
    assert recipes["ar"]["data"]["context"] == 64 and recipes["ar"]["training"]["threads"] == 1
    assert recipes["ar"]["budget"] == {"tokens": None, "flops": 2e12, "minutes": None}
    assert recipes["masked"]["model"]["residual_dropout"] == 0.1
    assert {key for key in recipes["ar"] if recipes["ar"][key] != recipes["masked"][key]} == {
        "name", "model", "controller"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, r"sedes: no such setting; did you mean 'seeds'"),
        ({"seeds": [0, 0]}, "stands twice"),
        ({"seeds": 3}, "list of whole numbers"),
        ({"budget": {"flops": 1, "tokens": 2}}, "exactly one of"),
        ({"budget": {"flop": 1}}, "did you mean 'flops'"),
        ({"jobs": 0}, "worker processes"),
        ({"arms": {}}, "at least one arm"),
        ({"arms": {"../up": {"controller": "constant(masked)"}}}, "an arm's name is a folder"),
        ({"arms": {"tune": {"controller": "constant(masked)"}}}, "an arm's name is a folder"),
        ({"arms": {"a": {"controler": "x"}}}, "did you mean 'controller'"),
        ({"arms": {"a": {"set": {}}}}, "must say its controller"),
        ({"arms": {"a": {"controller": "constant(maskd)"}}}, "did you mean 'masked'"),
        ({"tunable": []}, "tunable keys only"),
        (
            {"arms": {"a": {"controller": "constant(masked)"}, "b": {"controller": "constant(masked)"}}},
            "is the same as",
        ),
        ({"tune": {"trials": 2, "grid": {"model.residual_dropout": 1}}}, "list of values to try"),
        ({"tune": {"trials": 2, "gird": {}}}, "did you mean 'grid'"),
        ({"tune": {"trials": 1, "grid": {"model.residual_dropout": [0.1]}}}, r"has no effect, tune\.grid chooses it"),
        ({"recipe": "gone.yaml"}, r"gone\.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_study(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "override", ["seed=3", "budget.flops=1e9", "name=x", "controller=constant(masked)", "model.residual_dropout=0.2"]
)
def test_an_override_without_effect_is_an_error(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="has no effect"):
        read_study(write(tmp_path), [override])


def test_trials_are_seeded_and_without_replacement() -> None:
    tune = Tune(5, {"a": (1, 2, 3), "b": (0.1, 0.2)}, seed=3)
    trials = draw_trials(tune)
    assert trials == draw_trials(tune) and len({tuple(trial.values()) for trial in trials}) == 5
    assert trials != draw_trials(Tune(5, tune.grid, seed=4))
    with pytest.raises(RecipeError, match=r"7 are asked for but the grid has 6"):
        draw_trials(Tune(7, tune.grid))


def test_the_quickstart_study_resolves(root: Path) -> None:
    study = read_study(root / "studies" / "quickstart.yaml")
    assert list(study.arms) == ["autoregressive", "masked", "switch"]
