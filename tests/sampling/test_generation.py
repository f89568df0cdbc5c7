"""Samplers draw what the model says: exactly its distribution, reproducibly, and nothing that is no token."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import tiny
from crossover.errors import RecipeError
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking

T = 8
GREEDY = Picking(temperature=0)


def samplers(picking: Picking = Picking(), context: int = T) -> list:  # noqa: B008
    orders = ("random", "confidence", "left_to_right")
    masked = [MaskedSampler(context, picking, order, count) for order in orders for count in (1, 3)]
    return [AutoregressiveSampler(picking), *masked]


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_the_same_seed_draws_the_same_text(sampler) -> None:
    model = tiny.model(tiny.vocabulary(40), T)
    prompt = [1, 2]
    torch.manual_seed(0)
    first = sampler.generate(model, prompt, 6, seed=5)
    torch.manual_seed(1)
    assert sampler.generate(model.train(), prompt, 6, seed=5) == first
    assert any(sampler.generate(model, prompt, 6, seed=seed) != first for seed in range(6, 12))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("prompt", [[], [3, 1, 4]])
def test_the_cache_changes_nothing(family, prompt) -> None:
    """Greedy text equals the likeliest next token of a fresh forward over everything so far."""
    words = tiny.vocabulary(40)
    for seed in range(3):
        model = tiny.model(words, 24, family, seed=seed)
        wanted = [words.bos_id, *prompt]
        for _ in range(16):
            count = len(wanted)
            with torch.no_grad():
                plan = model.plan(Pattern("causal"), count)
                states = model.states(torch.tensor([wanted]), torch.arange(count)[None], plan)
            token = int(model.logits(states[0, -1]).argmax())
            if token == words.eos_id:
                break
            wanted.append(token)
        drawn = AutoregressiveSampler(GREEDY).generate(model, prompt, 16, seed=0)
        assert drawn == wanted[1 + len(prompt) :]


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_only_text_is_drawn_and_the_asked_number_unless_the_document_ends(sampler) -> None:
    words, lengths = tiny.vocabulary(5), set()
    for seed in range(20):
        model = tiny.model(words, T, seed=seed)
        drawn = sampler.generate(model, [1], 7, seed=seed)
        assert all(0 <= token < words.predictable and token != words.eos_id for token in drawn)
        lengths.add(len(drawn))
    assert max(lengths) == 7 and len(lengths) > 1
    assert sampler.generate(model, [1], 0, seed=0) == []


def test_a_masked_sampler_reveals_the_window_in_the_passes_it_says(monkeypatch) -> None:
    words = tiny.vocabulary(30)
    model, shown = tiny.model(words, T), []
    states = model.states
    monkeypatch.setattr(model, "states", lambda inputs, *rest: shown.append(inputs.clone()) or states(inputs, *rest))
    MaskedSampler(T, order="left_to_right", tokens_per_pass=2).generate(model, [4], 5, seed=0)
    hidden = [[place for place in range(T + 1) if row[0, place] == words.mask_id] for row in shown]
    assert hidden == [list(range(first, T + 1)) for first in (2, 4, 6)], "what lies behind the wanted text stays hidden"
    assert all(int(row[0, 1]) == 4 for row in shown)


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_a_text_that_does_not_fit_is_refused(sampler) -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    assert isinstance(sampler.generate(model, [1] * 4, 4, seed=0), list)
    with pytest.raises(RecipeError, match=r"4 tokens\) and 5 new ones exceed the model's window of 8"):
        sampler.generate(model, [1] * 4, 5, seed=0)


def chain(model, text, order, pattern: Pattern) -> float:
    """Probability of drawing a text in an order, one token per pass."""
    words, context, logs = model.vocabulary, 2, 0.0
    for done in range(len(order)):
        hidden = set(order[done:])
        window = [words.bos_id, *(words.mask_id if place in hidden else text[place] for place in range(context))]
        with torch.no_grad():
            plan = model.plan(pattern, context + 1)
            states = model.states(torch.tensor([window]), torch.arange(context + 1)[None], plan)[0]
            logs += float(torch.log_softmax(model.logits(states), -1)[order[done], text[order[done]]])
    return math.exp(logs)


@pytest.mark.parametrize("kind", ["autoregressive", "random order", "left to right"])
def test_one_token_a_pass_is_an_exact_draw_from_the_declared_procedure(kind) -> None:
    words = tiny.vocabulary(3)
    object.__setattr__(words, "eos_id", 99)  # no document ends, so that every text has two tokens
    model = tiny.model(words, 2, seed=2)
    pattern = Pattern("causal" if kind == "autoregressive" else "full")
    orders = [(0, 1), (1, 0)] if kind == "random order" else [(0, 1)]
    texts = list(itertools.product(range(3), repeat=2))
    expected = np.array([np.mean([chain(model, text, order, pattern) for order in orders]) for text in texts])
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    masked = MaskedSampler(2, order="random" if kind == "random order" else "left_to_right")
    sampler = AutoregressiveSampler() if kind == "autoregressive" else masked
    draws = 300
    found = Counter(tuple(sampler.generate(model, [], 2, seed=seed)) for seed in range(draws))
    frequencies = np.array([found[text] for text in texts])
    keep = expected * draws > 5
    rest = ~keep
    observed = np.append(frequencies[keep], frequencies[rest].sum())
    wanted = np.append(expected[keep], expected[rest].sum()) * draws
    live = wanted > 1
    assert chisquare(observed[live], wanted[live] * observed[live].sum() / wanted[live].sum()).pvalue > 1e-3
    assert np.ptp(expected) > 0.1


def test_picking_truncates_and_reports_the_untruncated_probability() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    ids, certain = Picking(top_p=0.7).draw(logits, generator)
    assert set(ids.tolist()) == {0, 1}
    assert float((ids == 0).float().mean()) == pytest.approx(0.5 / 0.8, abs=0.03)
    torch.testing.assert_close(certain, torch.tensor([0.5, 0.3])[ids])
    sharp, _ = Picking(temperature=0.5).draw(logits, generator)
    squares = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    found = np.bincount(sharp.numpy(), minlength=4)
    assert chisquare(found, squares / squares.sum() * 4000).pvalue > 1e-3
    assert GREEDY.draw(logits, generator)[0].unique().tolist() == [0]


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}])
def test_settings_that_cannot_be_are_refused(options) -> None:
    with pytest.raises(RecipeError, match="temperature must not be negative"):
        Picking(**options)
    with pytest.raises(RecipeError, match="tokens_per_pass"):
        MaskedSampler(8, tokens_per_pass=0)


@pytest.mark.parametrize("sampler", [AutoregressiveSampler(), MaskedSampler(T)], ids=["ar", "masked"])
def test_a_broken_model_draws_nothing(sampler) -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    with torch.no_grad():
        model.inner.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RecipeError, match="not finite"):
        sampler.generate(model, [1], 3, seed=0)
