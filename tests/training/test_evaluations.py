"""When a run is scored, what that costs, and that the ledger tells."""

from __future__ import annotations

import pytest

from crossover.scoring.cost import EVALUATION_SHARE, cost_of

CONTROLLERS = ["constant(autoregressive)", "constant(masked)", "constant(block(8))",
               {"name": "constant", "mix": {"autoregressive": 0.5, "block(8)": 0.5}}]  # fmt: skip


@pytest.mark.parametrize("controller", CONTROLLERS, ids=str)
def test_costs_are_known_before_anything_runs(workshop, controller):
    shop = workshop(controller=controller, scoring__dev_positions=3, scoring__dev_draws=16, scoring__dev_windows=40)
    cost = cost_of(shop.recipe, shop.text)
    _, flops = shop.evaluator.dev(shop.model)
    # How many tokens each draw hides is random; nothing else is.
    assert cost.evaluation_flops == pytest.approx(flops, rel=0.02)
    assert cost.flops_per_token == pytest.approx(min(shop.flops_per_token.values()))
    assert cost.train_tokens == shop.train_tokens and cost.training_flops == 20_480 * cost.flops_per_token


def test_the_ledger_says_what_evaluations_took(trained):
    notes = trained()
    ledger = notes.ledgers[-1]
    assert 0 < ledger["evaluation_seconds"] < ledger["seconds"]
    assert ledger["evaluation_flops"] > 0
    told = [row["evaluation_seconds"] for row in notes.ledgers]
    assert told == sorted(told)


@pytest.mark.parametrize("controller", CONTROLLERS[:2], ids=str)
def test_by_default_evaluations_lie_on_epochs_and_stay_cheap(trained, prepared, recipe_of, controller):
    changes = {"controller": controller, "scoring__every_tokens": None, "budget": {"tokens": 60_000}}
    recipe = recipe_of(**changes)
    every = cost_of(recipe, prepared(recipe)).interval_tokens
    notes = trained(**changes)
    assert every % notes.facts["train_tokens"] == 0
    steps = [-(-tokens // 512) for tokens in range(every, 60_000, every)]
    assert sorted({row["step"] for row in notes.evaluations}) == sorted({1, *steps, 118})
    ledger = notes.ledgers[-1]
    spent = ledger["evaluation_flops"]
    assert spent / (spent + ledger["flops"]) <= EVALUATION_SHARE


def test_what_the_recipe_says_is_kept(workshop):
    assert workshop(scoring__every_tokens=777).evaluator.every_tokens == 777
