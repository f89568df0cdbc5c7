"""One step: what it computes, what it does not wait for, and on which settings it works."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

MIXED = ("autoregressive", "masked", "masked", "autoregressive")
MIX = {"name": "constant", "mix": {"autoregressive": 0.5, "masked": 0.5}}


def gradients(workshop, kinds: tuple[str, ...], step: int = 0) -> dict[str, torch.Tensor]:
    """Gradients of a step, clipping and optimizer left out."""
    stepper = replace(workshop.stepper, optimizers=(), clip_norm=1e30)
    stepper.run(step, kinds, 0.0)
    found = {name: value.grad.clone() for name, value in workshop.model.inner.named_parameters()}
    workshop.model.zero_grad(set_to_none=True)
    return found


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm."""
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return (apart / sum(float(value.square().sum()) for value in first.values())) ** 0.5


@pytest.mark.parametrize("controller", ["constant(autoregressive)", "constant(masked)", "constant(block(8))", MIX])
def test_micro_batches_do_not_change_the_gradient(workshop, controller):
    shops = [workshop(controller=controller, mix__micro_batch_slices=size) for size in (1, 2, 4)]
    names = list(shops[0].stepper.objectives)
    kinds = MIXED if len(names) == 2 else (names[0],) * 4
    whole = gradients(shops[2], kinds)
    assert all(float(value.abs().sum()) > 0 for value in whole.values())
    for shop in shops[:2]:
        assert distance(whole, gradients(shop, kinds)) < 1e-5
    # The measure would see one slice that counts twice.
    assert distance(whole, gradients(shops[0], kinds[:1] * 4, step=1)) > 1e-2


def test_a_step_is_the_mean_over_its_data_tokens(workshop):
    shop = workshop(controller=MIX)
    result = replace(shop.stepper, optimizers=()).run(0, MIXED, 0.0)
    shares = sum(0.5 * float(value) for value in result.losses.values())
    assert float(result.loss) == pytest.approx(shares, rel=1e-5)
    # Nearly uniform predictions at the start: ln V nats a token, for every objective in expectation.
    uniform = np.log(shop.text.vocabulary.predictable)
    assert float(result.losses["autoregressive"]) == pytest.approx(uniform, rel=0.05)


WAITS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")


@pytest.mark.parametrize("controller", ["constant(autoregressive)", "constant(masked)", "constant(block(8))", MIX])
def test_a_step_never_waits_for_the_device(monkeypatch, workshop, controller):
    shop = workshop(controller=controller)
    names = list(shop.stepper.objectives)
    kinds = MIXED if len(names) == 2 else (names[0],) * 4
    shop.stepper.run(0, kinds, 1.0)
    calls: list[str] = []

    def counting(name: str):
        original = getattr(torch.Tensor, name)

        def call(self, *arguments, **options):
            calls.append(name)
            return original(self, *arguments, **options)

        return call

    with monkeypatch.context() as watched:
        for name in WAITS:
            watched.setattr(torch.Tensor, name, counting(name), raising=True)
        result = shop.stepper.run(1, kinds, 1.0)
        during = list(calls)
        assert float(result.loss) > 0 and calls[len(during) :] == ["__float__"]
    assert during == []


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits_for_it(workshop):
    shop = workshop(controller=MIX)
    shop.stepper.run(0, MIXED, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        shop.stepper.run(1, MIXED, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def losses(shop, steps: int, kinds: tuple[str, ...]) -> list[float]:
    return [float(shop.stepper.run(step, kinds, 1.0).loss) for step in range(steps)]


SETTINGS = {
    "muon": {"training__optimizer": "muon(learning_rate=3e-3)"},
    "qwen3": {"model__family": "qwen3"},
    "bfloat16": {"training__precision": "bfloat16"},
    "documents apart": {"data__attend_across_documents": False},
    "untied": {"model__tied": False},
    "dropout": {"model__residual_dropout": 0.1, "model__attention_dropout": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_falls(workshop, name):
    shop = workshop(controller={"name": "constant", "mix": {"autoregressive": 0.5, "block(8)": 0.5}}, **SETTINGS[name])
    assert shop.choices.precision == ("bfloat16" if name == "bfloat16" else "float32")
    falling = losses(shop, 12, ("autoregressive", "block(8)") * 2)
    assert np.mean(falling[-3:]) < falling[0] - 0.5
    assert all(item.dtype == torch.float32 for item in shop.model.parameters())


def test_the_masked_loss_falls_with_documents_apart(workshop):
    shop = workshop(controller="constant(masked)", data__attend_across_documents=False)
    falling = losses(shop, 12, ("masked",) * 4)
    assert np.mean(falling[-3:]) < np.mean(falling[:2]) - 0.5


def test_documents_apart_is_another_computation(workshop):
    apart = workshop(data__attend_across_documents=False)
    together = workshop()
    kinds = ("autoregressive",) * 4
    assert losses(apart, 2, kinds) != losses(together, 2, kinds)


def test_bfloat16_stays_near_float32(workshop):
    kinds = ("autoregressive",) * 4
    exact = losses(workshop(), 4, kinds)
    rough = losses(workshop(training__precision="bfloat16"), 4, kinds)
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


def test_dropout_depends_on_the_step_and_on_nothing_else(workshop):
    shop = workshop(model__residual_dropout=0.3)
    kinds = ("autoregressive",) * 4
    first = gradients(shop, kinds)
    torch.manual_seed(99)
    again = gradients(shop, kinds)
    assert distance(first, again) == 0.0
