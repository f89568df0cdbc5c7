"""Blocks with a cache of the prefix draw exactly what the two-stream pattern of training says, token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from crossover.errors import RecipeError
from crossover.objectives.block import lay_out
from crossover.records import Pattern
from crossover.sampling import block, cached
from crossover.sampling.autoregressive import AutoregressiveSampler
from crossover.sampling.block import BlockSampler
from crossover.sampling.diffusion import MaskedSampler
from crossover.sampling.picking import Picking
from crossover.sampling.policies import policy_of

T = 12
CLEAN = ["block_causal", "causal"]


def two_stream_logits(model, asks, size: int, clean: str) -> torch.Tensor:
    """Logits at the asked places, all blocks and the whole clean stream side by side, nothing kept."""
    words, found = model.vocabulary, []
    for row, places in asks:
        window = np.array([row.window + [words.mask_id] * (T - len(row.window))])
        hidden = window == words.mask_id
        layout = lay_out(np.where(hidden, 0, window), hidden, size, T - size, words)
        inputs, documents = layout.inputs_BN, layout.documents_BN
        plan = model.plan(
            Pattern("two_stream", size, T - size, clean),
            inputs.shape[1],
            None if documents is None else tiny.tensor(documents),
        )
        with torch.no_grad():
            states = model.states(tiny.tensor(inputs), tiny.tensor(layout.positions_N)[None], plan)[0]
            found.append(model.logits(states[layout.read_T[places]]))
    return torch.cat(found)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("clean", CLEAN)
@pytest.mark.parametrize("size", [2, 3, 6])
def test_every_pass_equals_the_pattern_of_training(monkeypatch, size, clean, separate, family) -> None:
    words = tiny.vocabulary(9, separate=separate)
    model = tiny.model(words, T, family, kv_heads=2)
    predict, compared = block._Stream.predict, []

    def checked(stream, asks):
        wanted, found = two_stream_logits(model, asks, size, clean), predict(stream, asks)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
        compared.append(len(found))
        return found

    # Inside the prompts a document ends, in a clean block or in the noisy one.
    prompts = [[], [1, 8, 3, 4, 5], [1, 2, 8], [8, 1, 2, 3, 4, 8, 7], [words.mask_id, 2, 8, words.mask_id, 4]]
    counts = [T - len(prompt) for prompt in prompts]
    sampler = BlockSampler(size, policy=policy_of("confidence"), clean=clean)
    monkeypatch.setattr(block._Stream, "predict", checked)
    made = sampler.sample(model, prompts, counts, seed=1)
    assert len(compared) > 5
    monkeypatch.setattr(block._Stream, "predict", lambda stream, asks: two_stream_logits(model, asks, size, clean))
    assert [item.window_ids for item in made] == [
        item.window_ids for item in sampler.sample(model, prompts, counts, seed=1)
    ]


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([1, 2, 4, 6, 12]),
    clean=st.sampled_from(CLEAN),
    policy=st.sampled_from(["first_hitting", "ancestral(3)", "remasking(4, 0.4)", "margin(2)", "entropy(0.3)"]),
    lengths=st.lists(st.integers(0, T), min_size=1, max_size=4),
    separate=st.booleans(),
    seed=st.integers(0, 99),
)
def test_cached_and_uncached_blocks_are_the_same(size, clean, policy, lengths, separate, seed) -> None:
    model = tiny.model(tiny.vocabulary(9, separate=separate), T)
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, 9, length).tolist() for length in lengths]
    counts = [int(rng.integers(0, T - length + 1)) for length in lengths]
    one, other = (
        BlockSampler(size, Picking(), policy_of(policy), clean, cached).sample(model, prompts, counts, seed)
        for cached in (True, False)
    )
    assert [(item.window_ids, item.ended, item.passes) for item in one] == [
        (item.window_ids, item.ended, item.passes) for item in other
    ]


@pytest.mark.parametrize("clean", CLEAN)
def test_blocks_of_one_token_are_next_tokens_and_one_block_is_masked(clean) -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    for seed in range(4):
        prompts = [[1, 2, 3], [], [4] * 7]
        picking, policy = Picking(0.9, top_p=0.9), policy_of("confidence(2)")
        for size, same in ((1, AutoregressiveSampler(picking)), (T, MaskedSampler(picking, policy))):
            mine = BlockSampler(size, picking, policy, clean).sample(model, prompts, 5, seed)
            theirs = same.sample(model, prompts, 5, seed)
            for one, other in zip(mine, theirs, strict=True):
                assert (one.window_ids, one.passes, one.flops) == (other.window_ids, other.passes, other.flops)


def test_each_input_of_the_prefix_is_encoded_once(monkeypatch) -> None:
    model = tiny.model(tiny.vocabulary(40), T)
    shown, run = [], block.CachedBody.run

    def spy(body, inputs_BN, *rest):
        shown.append((len(body), inputs_BN[0].tolist()))
        return run(body, inputs_BN, *rest)

    monkeypatch.setattr(block.CachedBody, "run", spy)
    made = BlockSampler(4, policy=policy_of("left_to_right")).sample(model, [[1, 2, 3, 4, 5]], 7, seed=0)[0]
    whole = [model.vocabulary.bos_id, *made.window_ids]
    assert made.ended == "length", "the test needs a text of full length"
    # Before each pass: inputs kept, inputs run. The first pass of a block brings the clean block before it.
    assert [kept for kept, _ in shown] == [0, 4, 4, 4, 8, 8, 8]
    assert [len(inputs) for _, inputs in shown] == [9, 5, 5, 9, 5, 5, 5]
    clean = [token for _, inputs in shown if len(inputs) == 9 for token in inputs[:4]]
    assert clean == whole[:8]


def test_a_block_that_does_not_divide_the_window_is_refused() -> None:
    model = tiny.model(tiny.vocabulary(9), T)
    with pytest.raises(
        RecipeError, match="block size 5 does not divide the window of 12 tokens; use 1, 2, 3, 4, 6, 12"
    ):
        BlockSampler(5).generate(model, [], 3, seed=0)
    with pytest.raises(RecipeError, match="at least 1 token"):
        BlockSampler(0)
    with pytest.raises(RecipeError, match="block_causal or causal"):
        BlockSampler(4, clean="full")


def test_the_kept_prefix_stays_where_it_is(monkeypatch) -> None:
    """Joining the noisy block to it would copy it in each pass; it moves only when its room doubles."""
    model = tiny.model(tiny.vocabulary(300), 64)
    places, update = [], cached.Room.update

    def spy(room, *rest):
        shown = update(room, *rest)
        places.append((id(room), shown[0].data_ptr()))
        return shown

    monkeypatch.setattr(cached.Room, "update", spy)
    for sampler, rooms in ((BlockSampler(4), 4), (AutoregressiveSampler(), 6)):
        places.clear()
        made = sampler.sample(model, [[1, 2]], 62, seed=0)[0]
        assert made.passes == 62 and len(places) == 62 * 2, "the test needs a text of full length"
        assert len(set(places)) <= 2 * rooms
