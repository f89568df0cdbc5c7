"""Parameter noise: a function of seed, step and name, seen by the gradient alone, and gone without a trace."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from crossover.model.noise import noisy_names, perturbed
from crossover.objectives.masked import Masked
from crossover.streams import stream

FAMILIES = ["llama", "qwen3", "qwen3_moe"]
WORDS = tiny.vocabulary(9)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.inner.named_parameters()}


def noisy(model, deviation: float, seed: int = 0, step: int = 0) -> dict[str, torch.Tensor]:
    with perturbed(model.inner, deviation, seed, step):
        return weights(model)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_acts_on_the_matrices_of_the_layers_alone(family) -> None:
    model = tiny.model(WORDS, 8, family, tied=False)
    clean, moved = weights(model), noisy(model, 0.3)
    acted = [name for name in clean if not torch.equal(clean[name], moved[name])]
    assert acted == noisy_names(model.inner)
    assert acted == [name for name in clean if "layers" in name and "norm" not in name]
    assert any("experts" in name for name in acted) == (family == "qwen3_moe")
    assert equal(noisy(model, 0.0), clean)


@settings(max_examples=20, deadline=None)
@given(deviation=st.floats(0.01, 0.9), seed=st.integers(0, 2**31), step=st.integers(0, 10**7))
def test_the_clean_weights_come_back_bit_for_bit(deviation, seed, step) -> None:
    model = tiny.model(WORDS, 8)
    with torch.no_grad():  # values that no multiplication could take back
        for parameter in model.inner.parameters():
            parameter.flatten()[:4] = torch.tensor([1e-42, -0.0, float("inf"), 3e38])
    clean = weights(model)
    bits = {name: value.view(torch.int32) for name, value in clean.items()}
    moved = noisy(model, deviation, seed, step)
    assert not equal(moved, clean)
    after = {name: value.view(torch.int32) for name, value in weights(model).items()}
    assert equal(after, bits)
    with pytest.raises(ValueError, match="in the middle"), perturbed(model.inner, deviation, seed, step):
        raise ValueError("in the middle of a step")
    assert equal({name: value.view(torch.int32) for name, value in weights(model).items()}, bits)


def test_noise_depends_on_seed_step_and_name_and_on_no_random_state() -> None:
    model = tiny.model(WORDS, 8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noisy(model, 0.2, seed=3, step=5)
    assert torch.equal(torch.get_rng_state(), before), "dropout must draw what it drew without noise"
    torch.manual_seed(2)
    assert equal(noisy(model, 0.2, seed=3, step=5), first)
    for seed, step in ((4, 5), (3, 6)):
        other = noisy(model, 0.2, seed=seed, step=step)
        assert all(not torch.equal(first[name], other[name]) for name in noisy_names(model.inner))
    clean = weights(model)
    layers = [clean[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1)]
    factors = [first[f"model.layers.{layer}.mlp.up_proj.weight"] / layers[layer] for layer in (0, 1)]
    assert not torch.allclose(*factors), "each matrix has noise of its own"


@pytest.mark.parametrize("deviation", [0.1, 0.5, 0.9])
def test_factors_are_normal_around_one(deviation) -> None:
    model = tiny.model(WORDS, 8, "qwen3_moe")
    clean = weights(model)
    factors = np.concatenate(
        [
            (noisy(model, deviation, step=step)[name] / clean[name]).flatten().numpy()
            for step in range(5)
            for name in noisy_names(model.inner)
        ]
    )
    z = (factors - 1) / deviation
    assert abs(z.mean()) < 4 / np.sqrt(len(z)) and z.std() == pytest.approx(1, abs=4 / np.sqrt(2 * len(z)))
    assert (np.abs(z) < 1.96).mean() == pytest.approx(0.95, abs=0.01)


def test_gradients_are_those_at_the_noisy_weights() -> None:
    example = Masked().corrupt(stream(0, "text").integers(0, 9, (3, 8)), stream(0, "mask"), WORDS)
    model, other = tiny.model(WORDS, 8), tiny.model(WORDS, 8)
    with perturbed(model.inner, 0.3, 1, 2):
        loss = tiny.loss(model, example)
        loss.backward()
    with torch.no_grad():
        for name, value in noisy(other, 0.3, 1, 2).items():
            other.inner.get_parameter(name).copy_(value)
    wanted = tiny.loss(other, example)
    wanted.backward()
    assert torch.equal(loss, wanted)
    pairs = zip(model.inner.parameters(), other.inner.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)
