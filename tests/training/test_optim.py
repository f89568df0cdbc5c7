"""Learning rates follow their formulas, and optimizers come back bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from crossover.registry import component_of
from crossover.training import checkpoint
from crossover.training.optim import AdamW, Cosine, Muon, WarmupStableDecay

SCHEDULES = ["wsd(warmup_tokens=1000)", "cosine(warmup_tokens=1000)"]


@pytest.mark.parametrize("name", SCHEDULES)
@given(tokens=st.integers(0, 1000))
def test_warm_up_is_linear_in_tokens(name, tokens):
    schedule = component_of("learning_rate", name)
    assert schedule.factor(tokens, 0.0) == pytest.approx(tokens / 1000)


@given(fraction=st.floats(0, 0.7), tokens=st.integers(1000, 10**9))
def test_the_plateau_is_one(fraction, tokens):
    assert WarmupStableDecay(warmup_tokens=1000, decay_fraction=0.3).factor(tokens, fraction) == pytest.approx(1.0)


@given(final=st.floats(0, 1), decay=st.floats(0.01, 1), over=st.floats(1, 2))
def test_the_decay_ends_at_its_final_factor(final, decay, over):
    assert WarmupStableDecay(0, decay, final).factor(10, over) == pytest.approx(final, abs=1e-9)
    assert Cosine(0, final).factor(10, over) == pytest.approx(final, abs=1e-9)


@given(decay=st.floats(0.01, 1), way=st.floats(0, 1), final=st.floats(0, 1))
def test_the_decay_is_linear(decay, way, final):
    schedule = WarmupStableDecay(0, decay, final)
    fraction = schedule.decay_from + way * decay
    assert schedule.factor(1, fraction) == pytest.approx(1 - (1 - final) * way, abs=1e-6)


@given(fraction=st.floats(0, 1))
def test_the_cosine_is_a_cosine(fraction):
    expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * fraction))
    assert Cosine(warmup_tokens=0).factor(1, fraction) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*SCHEDULES, "wsd(warmup_tokens=0, decay_fraction=0)", "wsd(0, 1, 0.5)"])
@given(first=st.floats(0, 1), second=st.floats(0, 1))
def test_after_the_warm_up_the_rate_never_rises(name, first, second):
    schedule = component_of("learning_rate", name)
    early, late = sorted((first, second))
    assert 1 >= schedule.factor(10**6, early) >= schedule.factor(10**6, late) - 1e-12 >= -1e-12


def take_steps(workshop, first: int, count: int, kinds: tuple[str, ...]) -> None:
    for step in range(first, first + count):
        assert bool(workshop.stepper.run(step, kinds, 0.7).finite)


def weights(workshop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in workshop.model.inner.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


OPTIMIZERS = ["adamw(learning_rate=3e-3)", "muon(learning_rate=3e-3)"]
KINDS = ("autoregressive",) * 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_comes_back_bit_for_bit(tmp_path, workshop, optimizer):
    one = workshop(training__optimizer=optimizer)
    take_steps(one, 0, 3, KINDS)
    state = checkpoint.optimizer_tensors(one.stepper.optimizers)
    checkpoint.write_folder(tmp_path / "saved", {"model": weights(one), "optimizer": state}, {})
    take_steps(one, 3, 2, KINDS)

    two = workshop(training__optimizer=optimizer, seed=0)
    tensors, _ = checkpoint.load(tmp_path / "saved", ["model", "optimizer"])
    with torch.no_grad():
        for name, parameter in two.model.inner.named_parameters():
            parameter.copy_(tensors["model"][name])
    checkpoint.restore_optimizers(two.stepper.optimizers, tensors["optimizer"])
    assert same(checkpoint.optimizer_tensors(two.stepper.optimizers), tensors["optimizer"])
    take_steps(two, 3, 2, KINDS)
    assert same(weights(one), weights(two))
    assert same(*(checkpoint.optimizer_tensors(item.stepper.optimizers) for item in (one, two)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(monkeypatch, workshop, optimizer, value, where):
    shop = workshop(training__optimizer=optimizer)
    stepper = shop.stepper
    take_steps(shop, 0, 2, KINDS)
    kept, state = weights(shop), checkpoint.optimizer_tensors(stepper.optimizers)
    state = {name: tensor.clone() for name, tensor in state.items()}
    compute, embedding = type(stepper).loss, shop.model.inner.get_input_embeddings().weight
    if where == "loss":
        with monkeypatch.context() as broken:
            broken.setattr(type(stepper), "loss", lambda self, *given: compute(self, *given) * value)
            result = stepper.run(2, KINDS, 0.7)
    else:
        hook = embedding.register_hook(lambda grad: grad.index_fill(0, torch.tensor([3]), value))
        result = stepper.run(2, KINDS, 0.7)
        hook.remove()
        assert torch.isfinite(result.loss)
    assert not bool(result.finite)
    assert same(weights(shop), kept)
    assert same(checkpoint.optimizer_tensors(stepper.optimizers), state)
    # And the next step is as it would have been without the bad one.
    take_steps(shop, 3, 1, KINDS)
    other = workshop(training__optimizer=optimizer)
    take_steps(other, 0, 2, KINDS)
    take_steps(other, 3, 1, KINDS)
    assert same(weights(shop), weights(other))


def test_weight_decay_spares_the_norms(workshop):
    for name in ("adamw(weight_decay=0.3)", "muon(weight_decay=0.3)"):
        optimizers = workshop(training__optimizer=name).stepper.optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group in groups:
            dimensions = {item.ndim for item in group["params"]}
            assert group["weight_decay"] == (0.0 if dimensions == {1} else 0.3)
        shop = workshop(training__optimizer=name)
        trained = sum(item.numel() for group in groups for item in group["params"])
        assert trained == sum(item.numel() for item in shop.model.parameters())


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_weights_of_experts_decay_under_adamw(optimizer) -> None:
    """Stacked, they have three dimensions, which Muon does not take; routers are matrices like others."""
    words = tiny.vocabulary(9)
    named = dict(tiny.model(words, 8, "qwen3_moe").inner.named_parameters())
    where = {}
    for made in optimizer.build(named.items()):
        for group in made.param_groups:
            where |= {id(parameter): (type(made).__name__, group["weight_decay"]) for parameter in group["params"]}
    assert len(where) == len(named)
    matrices = type(optimizer).__name__
    for name, parameter in named.items():
        wanted = ("AdamW", 0.0) if "norm" in name else ("AdamW", 0.1) if ".experts." in name else (matrices, 0.1)
        assert where[id(parameter)] == (wanted if ".layers." in name or "norm" in name else ("AdamW", 0.1)), name
