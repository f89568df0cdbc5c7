"""Sparse models, and weights with noise, through the one step and the one loop: trained, resumed, scored, exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_runs
from crossover.hub.adopt import open_model
from crossover.model.shapes import active_parameters, parameters
from crossover.records import Pattern

MODEL = {"preset": "sparse-1m", "family": "qwen3_moe", "width": 32, "depth": 2, "heads": 2, "head_width": 16}
SPARSE = {**MODEL, "experts": 4, "experts_per_token": 2, "expert_width": 16}
# A handover through all three ways of training.
HANDOVER = {
    "name": "ramp",
    "from_epochs": 1,
    "to_epochs": 2,
    "before": "autoregressive",
    "after": {"masked": 0.5, "block(8)": 0.25, "autoregressive": 0.25},
}
CHANGES = {"model": SPARSE, "controller": HANDOVER, "training__checkpoint_every_tokens": 2048}
MUON = "muon(learning_rate=3e-3, weight_decay=0.3)"


def lines(notes: tiny_runs.Notes) -> list[str]:
    """Everything recorded but the clock on the wall."""
    rows = [*notes.steps, *notes.evaluations, *notes.decisions]
    return [json.dumps({key: row[key] for key in sorted(row) if not key.startswith("seconds")}) for row in rows]


@pytest.mark.parametrize("optimizer", ["adamw(learning_rate=3e-3)", MUON])
def test_a_sparse_model_learns_through_a_handover(trained, tmp_path, optimizer) -> None:
    notes = trained(**CHANGES, training__optimizer=optimizer)
    first, last = notes.steps[0]["losses"], notes.steps[-1]["losses"]
    assert last["autoregressive"] < 0.7 * first["autoregressive"]
    assert set(last) == {"autoregressive", "masked", "block(8)"}
    assert all(row["bits_per_byte"] > 0 for row in notes.evaluations) and notes.cards
    for row in notes.steps:
        usage = row["expert_usage"]
        assert 0 <= usage["least"] <= 1 <= usage["most"] <= 2 and 0 < usage["entropy"] <= 1
        assert row["balance_loss"] >= 0.9 and row["router_z_loss"] >= 0
    assert notes.facts["active_parameters"] < notes.facts["parameters"]
    opened, _, _ = open_model(tmp_path / "run" / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    ids = torch.arange(32)[None]
    with torch.no_grad():
        mine = opened.logits(opened.states(ids, ids, opened.plan(Pattern("causal"), 32)))
        wanted = theirs(ids).logits[..., : opened.vocabulary.predictable]
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def test_usage_does_not_depend_on_micro_batches_and_reported_nats_hold_no_auxiliary_loss(workshop) -> None:
    kinds = ("autoregressive", "masked", "autoregressive", "masked")
    results = []
    for together, factor in ((1, 0.01), (4, 0.01), (1, 5.0)):
        mix = {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}
        model = {**SPARSE, "balance_coefficient": factor}
        shop = workshop(model=model, controller=mix, mix={"slice_tokens": 128, "micro_batch_slices": together})
        results.append(shop.stepper.run(0, kinds, 1.0))
    one, whole, pressed = results
    torch.testing.assert_close(one.routing, whole.routing)
    torch.testing.assert_close(one.gradient_norm, whole.gradient_norm)
    assert torch.equal(one.loss, pressed.loss) and not torch.equal(one.gradient_norm, pressed.gradient_norm)
    # Six N D counts the parameters that a token meets.
    assert active_parameters(shop.shape) < parameters(shop.shape)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("noise", "kill_at"), [(0.0, 5), (0.3, 13)])
def test_a_killed_run_goes_on_bit_for_bit(trained, monkeypatch, tmp_path, noise, kill_at) -> None:
    """With dropout of experts and, in one case, noise on the weights."""
    from crossover.training import step

    model = {**SPARSE, "residual_dropout": 0.1, "parameter_noise": noise}
    changes = {**CHANGES, "model": model, "training__optimizer": MUON, "budget": {"tokens": 10_240}}
    changes |= {"controller": {**HANDOVER, "from_epochs": 0.25, "to_epochs": 0.75}}
    whole = trained("whole", **changes)
    taken = step.Stepper.run

    def run(self, number, *rest, **options):
        if number == kill_at:
            raise Killed
        return taken(self, number, *rest, **options)

    notes = tiny_runs.Notes()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(step.Stepper, "run", run)
        trained("cut", notes=notes, **changes)
    trained("cut", recorded=notes.facts, notes=notes, **changes)
    assert lines(notes) == lines(whole)
    for name in ("model.safetensors", "config.json"):
        assert (
            Path(tmp_path / "cut" / "model" / name).read_bytes() == (tmp_path / "whole" / "model" / name).read_bytes()
        )


def test_noise_moves_training_and_not_what_is_scored_or_kept(workshop) -> None:
    shops = [workshop(model__parameter_noise=noise) for noise in (0.0, 0.4)]
    results, weights, names = [], [], []
    for shop in shops:
        results.append(shop.stepper.run(0, ("autoregressive",) * 4, 0.0))
        weights.append([parameter.detach().clone() for parameter in shop.model.inner.parameters()])
        names.append([name for name, _ in shop.model.inner.named_parameters()])
    # At a learning rate of 0 a step leaves the weights as they were: the noise is gone, the loss had it.
    assert not torch.equal(results[0].loss, results[1].loss) and names[0] == names[1]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
    cards = [shop.evaluator.dev(shop.model)[0] for shop in shops]
    assert [card.bits_per_byte for card in cards[0].values()] == [card.bits_per_byte for card in cards[1].values()]


def test_noise_is_the_same_for_every_micro_batch_of_a_step(workshop) -> None:
    losses = []
    for together in (1, 4):
        shop = workshop(model__parameter_noise=0.3, mix={"slice_tokens": 128, "micro_batch_slices": together})
        results = [shop.stepper.run(step, ("autoregressive",) * 4, 1.0) for step in range(3)]
        losses.append([float(result.loss) for result in results])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
