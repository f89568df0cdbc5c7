"""Samplers draw reproducibly, alike with and without caches and batches, and nothing that is no token."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from crossover.errors import RecipeError
from crossover.records import Pattern
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import policy_of

T = 8
GREEDY = Picking(temperature=0)
POLICIES = (
    "first_hitting",
    "first_hitting(3)",
    "left_to_right(2)",
    "ancestral(5)",
    "remasking(6, 0.3)",
    "confidence",
    "confidence(3)",
    "margin(2)",
    "entropy(0.5)",
)


def samplers() -> list:
    masked = [MaskedSampler(policy=policy_of(name)) for name in POLICIES]
    blocks = [BlockSampler(4, policy=policy_of(name)) for name in POLICIES[::2]]
    others = [
        AutoregressiveSampler(Picking(0.7, top_k=20, top_p=0.9, min_p=0.01)),
        BlockSampler(2, clean="causal"),
        BlockSampler(1),
        BlockSampler(T),
        MaskedSampler(guidance=0.5),
    ]
    return [AutoregressiveSampler(), *masked, *blocks, *others]


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_the_same_seed_draws_the_same_text(sampler) -> None:
    model = tiny.model(tiny.vocabulary(40), T)
    prompt = [1, 2]
    torch.manual_seed(0)
    first = sampler.generate(model, prompt, 6, seed=5)
    torch.manual_seed(1)
    assert sampler.generate(model.train(), prompt, 6, seed=5) == first
    assert model.training, "a sampler leaves the model as it was"
    assert any(sampler.generate(model, prompt, 6, seed=seed) != first for seed in range(6, 12))


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_a_text_does_not_depend_on_its_batch(sampler, separate) -> None:
    """Prompts of different lengths, also with an end of document inside; each alone, in parts, and all together."""
    words = tiny.vocabulary(40, separate=separate)
    model = tiny.model(words, T)
    prompts = [[1, 2, 3], [4], [5, words.eos_id, 7, 8, 9], [1, 2, 3], [6] * 6, [10, 11], [12]]
    counts = [5, 7, 3, 5, 1, 4, 2]
    together = sampler.sample(model, prompts, counts, seed=3)
    alone = [
        sampler.sample(model, [prompt], [count], seed=3, first=number)[0]
        for number, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
    ]
    halves = [
        *sampler.sample(model, prompts[:3], counts[:3], 3),
        *sampler.sample(model, prompts[3:], counts[3:], 3, first=3),
    ]
    for other in (alone, halves):
        for mine, theirs in zip(together, other, strict=True):
            facts = [(item.number, item.window_ids, item.ids, item.ended, item.passes) for item in (mine, theirs)]
            assert facts[0] == facts[1]
            assert mine.flops == pytest.approx(theirs.flops), "the price of a text is its own"
    assert together[0].ids != together[3].ids, "prompts that are alike have random numbers of their own"


@pytest.mark.parametrize("prompt", [[], [3, 1, 4]])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
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
        for cached in (True, False):
            drawn = AutoregressiveSampler(GREEDY, cached=cached).generate(model, prompt, 16, seed=0)
            assert drawn == wanted[1 + len(prompt) :]
        model.pieces = None  # layers that we cannot drive ourselves run as transformers runs them
        assert AutoregressiveSampler(GREEDY).generate(model, prompt, 16, seed=0) == wanted[1 + len(prompt) :]


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=3), seed=st.integers(0, 50))
def test_cached_and_uncached_next_tokens_are_the_same(separate, lengths, seed) -> None:
    words = tiny.vocabulary(12, separate=separate)
    model = tiny.model(words, 24, kv_heads=2)
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 12, length).tolist() for length in lengths]
    one, other = (
        AutoregressiveSampler(cached=cached).sample(model, prompts, [24 - length for length in lengths], seed)
        for cached in (True, False)
    )
    assert [item.window_ids for item in one] == [item.window_ids for item in other]
    assert [item.passes for item in one] == [item.passes for item in other]


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_only_text_is_drawn_and_the_asked_number_unless_the_document_ends(sampler) -> None:
    words, lengths = tiny.vocabulary(5), set()
    for seed in range(12):
        model = tiny.model(words, T, seed=seed)
        made = sampler.sample(model, [[1]], 7, seed=seed)[0]
        assert all(0 <= token < words.predictable and token != words.eos_id for token in made.ids)
        assert made.window_ids == (1, *made.ids)
        assert (made.ended == "length") == (len(made.ids) == 7)
        lengths.add(len(made.ids))
    assert max(lengths) == 7 and len(lengths) > 1
    # Nothing wanted, nothing drawn, nothing run.
    nothing = sampler.sample(model, [[1]], 0, seed=0)[0]
    assert nothing.ids == () and nothing.passes == 0 and nothing.flops == 0
    assert sampler.sample(model, [], 3, seed=0) == ()


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_where_the_next_document_would_begin_this_one_ends(sampler) -> None:
    """Tokenizers give BOS an id below the mask's, so that a model can say it; it is no text all the same."""
    words, ended = replace(tiny.vocabulary(4), bos_id=0, eos_id=5), 0
    for seed in range(12):
        made = sampler.sample(tiny.model(words, T, seed=seed), [[1]], 7, seed=seed)[0]
        assert words.bos_id not in made.ids and made.window_ids == (1, *made.ids)
        assert (made.ended == "document") == (len(made.ids) < 7)
        ended += made.ended == "document"
    assert ended > 0


def test_a_masked_sampler_reveals_the_window_in_the_passes_it_says(monkeypatch) -> None:
    words = tiny.vocabulary(30)
    model, shown, read = tiny.model(words, T), [], []
    states, logits = model.read_states, model.logits
    monkeypatch.setattr(
        model, "read_states", lambda inputs, *rest: shown.append(inputs.clone()) or states(inputs, *rest)
    )
    monkeypatch.setattr(model, "logits", lambda states: read.append(len(states)) or logits(states))
    MaskedSampler(policy=policy_of("left_to_right(2)")).generate(model, [4], 5, seed=0)
    hidden = [[place for place in range(T + 1) if row[0, place] == words.mask_id] for row in shown]
    assert hidden == [list(range(first, T + 1)) for first in (2, 4, 6)], "what lies behind the wanted text stays hidden"
    assert all(int(row[0, 1]) == 4 for row in shown)
    assert read == [2, 2, 1], "the head is computed where it is needed"


def test_what_cannot_change_the_text_any_more_is_not_computed() -> None:
    """As soon as a document has ended and nothing before its end is hidden, the rest is left alone."""
    words = tiny.vocabulary(5)
    for seed in range(30):
        model = tiny.model(words, T, seed=seed)
        for sampler in (
            MaskedSampler(policy=policy_of("left_to_right")),
            BlockSampler(4, policy=policy_of("left_to_right")),
        ):
            made = sampler.sample(model, [[]], T, seed=seed)[0]
            assert made.passes == min(T, len(made.ids) + 1)


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_a_text_that_does_not_fit_is_refused(sampler) -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    assert isinstance(sampler.generate(model, [1] * 4, 4, seed=0), list)
    with pytest.raises(RecipeError, match="-1 tokens cannot be drawn"):
        sampler.generate(model, [1] * 4, -1, seed=0)
    with pytest.raises(RecipeError, match=r"4 tokens\) and 5 new ones exceed the model's window of 8"):
        sampler.generate(model, [1] * 4, 5, seed=0)


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
@pytest.mark.parametrize("bad", [-1, 9, 11, 5000])
def test_ids_that_are_no_tokens_are_refused(sampler, bad) -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    with pytest.raises(RecipeError, match=f"prompt 1: id {bad} at place 2 is no token; ids run from 0 to 8"):
        sampler.sample(model, [[1], [1, 2, bad]], 1, seed=0)


@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_a_broken_model_draws_nothing(sampler) -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    with torch.no_grad():
        model.inner.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RecipeError, match="not finite"):
        sampler.generate(model, [1], 3, seed=0)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
@pytest.mark.parametrize("sampler", samplers(), ids=repr)
def test_a_single_logit_that_is_no_number_is_refused_by_place(monkeypatch, sampler, bad) -> None:
    """Minus infinity too: a model that a head of finite weights ends in never says it."""
    model = tiny.model(tiny.vocabulary(9), T)
    head = model.logits

    def broken(states):
        logits = head(states)
        logits[-1, 3] = bad
        return logits

    monkeypatch.setattr(model, "logits", broken)
    with pytest.raises(RecipeError, match=r"prompt 7, place [3-7]: .* not finite"):
        sampler.sample(model, [[1, 2, 3]], 5, seed=0, first=7)


def test_a_window_of_its_own_must_be_one_that_the_model_has_positions_for() -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    assert MaskedSampler(context=4).sample(model, [[1]], 3, seed=0)[0].passes <= 3
    with pytest.raises(RecipeError, match="exceed the model's window of 4"):
        MaskedSampler(context=4).generate(model, [1], 4, seed=0)
    with pytest.raises(RecipeError, match="a window of 9 tokens is more than the 8"):
        MaskedSampler(context=9).generate(model, [1], 4, seed=0)
    with pytest.raises(RecipeError, match="at least 1 token"):
        MaskedSampler(context=0)
