"""A token is drawn from the distribution that the settings name, cut off in the documented order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from crossover.errors import RecipeError
from crossover.sampling import picking as module
from crossover.sampling.picking import Picking

CHANCES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = torch.log(torch.tensor(CHANCES, dtype=torch.float32))[None]


def by_hand(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Temperature, top-k, top-p, min-p, one after the other, token by token."""
    scores = logits / temperature
    chances = np.exp(scores - scores.max())
    order = sorted(range(len(chances)), key=lambda token: -chances[token])
    if top_k:
        order = order[:top_k]
    total, kept = chances[order].sum(), []
    for token in order:
        if sum(chances[kept]) / total < top_p:
            kept.append(token)
    best = max(chances[kept])
    kept = [token for token in kept if chances[token] >= min_p * best]
    found = np.zeros(len(chances))
    found[kept] = chances[kept] / chances[kept].sum()
    return found


@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True),
    temperature=st.sampled_from([0.01, 0.5, 1.0, 3.0]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.33, 0.77, 0.97, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.3, 1.0]),
)
def test_settings_compose_in_the_order_that_is_documented(logits, temperature, top_k, top_p, min_p) -> None:
    values = np.array(logits) / 10
    found = Picking(temperature, top_k, top_p, min_p).probabilities(torch.tensor(values)[None])[0].numpy()
    np.testing.assert_allclose(found, by_hand(values, temperature, top_k, top_p, min_p), atol=1e-9)


def test_draws_follow_the_distribution() -> None:
    uniforms = torch.from_numpy(np.random.default_rng(0).random(4000))
    for picking, expected in [
        (Picking(), CHANCES),
        (Picking(temperature=0.5), CHANCES**2 / (CHANCES**2).sum()),
        (Picking(top_k=3), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (Picking(top_p=0.7), np.array([0.625, 0.375, 0, 0])),
        (Picking(min_p=0.25), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
    ]:
        found = np.bincount(picking.draw(LOGITS.repeat(4000, 1), uniforms).numpy(), minlength=4)
        assert found[expected == 0].sum() == 0
        assert chisquare(found[expected > 0], expected[expected > 0] * 4000).pvalue > 1e-3


@pytest.mark.parametrize("cells", [1, 8, 13])
def test_working_in_parts_draws_the_same(monkeypatch, cells) -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 4))).float()
    uniforms, picking = torch.linspace(0, 0.99, 9, dtype=torch.float64), Picking(0.8, top_p=0.9)
    whole = picking.draw(logits, uniforms)
    monkeypatch.setattr(module, "CELLS", cells)
    assert len(module.in_parts(logits)) == -(-9 // max(1, cells // 4))
    assert torch.equal(picking.draw(logits, uniforms), whole)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 3))
def test_a_token_without_probability_is_never_drawn(uniform, barred) -> None:
    logits = LOGITS.clone()
    logits[0, barred] = float("-inf")
    ends = torch.tensor([uniform, 0.0, 1 - 2**-53], dtype=torch.float64)
    for picking in (Picking(), Picking(top_k=2), Picking(top_p=0.4), Picking(min_p=0.9), Picking(temperature=0)):
        drawn = picking.draw(logits.repeat(3, 1), ends)
        assert barred not in drawn
        if picking.temperature:
            assert (picking.probabilities(logits)[0][drawn] > 0).all()


def test_temperature_zero_takes_the_likeliest_and_a_tiny_one_nearly_so() -> None:
    uniforms = torch.linspace(0, 0.999, 50, dtype=torch.float64)
    for temperature in (0.0, 1e-30, 1e-300):
        drawn = Picking(temperature=temperature, top_k=3, min_p=0.1).draw(LOGITS.repeat(50, 1), uniforms)
        assert drawn.unique().tolist() == [0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad, temperature) -> None:
    logits = LOGITS.clone()
    logits[0, 2] = bad
    with pytest.raises(RecipeError, match="not finite"):
        Picking(temperature=temperature).draw(logits, torch.zeros(1))
    with pytest.raises(RecipeError, match="not finite"):
        Picking(temperature=temperature).draw(torch.full((1, 4), float("-inf")), torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": -1}, "temperature must be finite and not negative; it is -1"),
        ({"temperature": float("nan")}, "finite"),
        ({"top_p": 0}, "top_p must lie"),
        ({"top_p": 1.1}, "top_p must lie"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"min_p": 1.5}, "min_p must lie"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, expected) -> None:
    with pytest.raises(RecipeError, match=expected):
        Picking(**options)
