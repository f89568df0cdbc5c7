"""Every back end computes the pattern's mask, and the mask is what the pattern's words say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from crossover.model import attention
from crossover.model.shapes import live_entries
from crossover.records import Pattern

CPU = torch.device("cpu")
PATTERNS = [
    (Pattern("causal"), 13),
    (Pattern("full"), 13),
    (Pattern("block_causal", 4), 14),
    (Pattern("two_stream", 2, 6, "block_causal"), 6 + 4 * 3),
    (Pattern("two_stream", 4, 8, "block_causal"), 8 + 3 * 5),
    (Pattern("two_stream", 4, 8, "causal"), 8 + 3 * 5),
    (Pattern("two_stream", 2, 8, "causal"), 8 + 4 * 3),
]
IDS = [f"{pattern.kind}-{pattern.block}-{pattern.clean}-{pattern.clean_kind}" for pattern, _ in PATTERNS]


def borders(inputs: int) -> torch.Tensor:
    """Two rows of document numbers, the first input of each row seen by all."""
    rows = np.stack([np.arange(inputs) // 5, (np.arange(inputs) * 7 // 3) % 3])
    rows[:, 0] = -1
    return torch.from_numpy(rows)


def reference(query, key, value, mask_BNN, scale):
    """Masked softmax attention in float64, head by head."""
    groups = query.shape[1] // key.shape[1]
    mixed = torch.zeros_like(query, dtype=torch.float64)
    for head in range(query.shape[1]):
        keys, values = key[:, head // groups].double(), value[:, head // groups].double()
        scores = scale * query[:, head].double() @ keys.transpose(-1, -2)
        mixed[:, head] = torch.softmax(scores.masked_fill(~mask_BNN, float("-inf")), -1) @ values
    return mixed.transpose(1, 2)


def case(pattern, inputs, documents, kv_heads):
    generator = torch.Generator().manual_seed(inputs)
    query = torch.randn(2, 4, inputs, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(2, kv_heads, inputs, 8, generator=generator, requires_grad=True) for _ in range(2))
    numbers = borders(inputs) if documents else None
    rows = [tiny.allowed(pattern, inputs, None if numbers is None else numbers[row].numpy()) for row in range(2)]
    return query, key, value, numbers, torch.from_numpy(np.stack(rows))


def plan_for(pattern, inputs, numbers, back_end):
    if numbers is None:
        return attention.make_plan(pattern, inputs, CPU, torch.float32, back_end)
    return attention.make_document_plan(pattern, numbers, torch.float32, back_end)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("documents", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize(("pattern", "inputs"), PATTERNS, ids=IDS)
@pytest.mark.parametrize("back_end", ["tiled", "sdpa"])
def test_a_back_end_equals_the_definition_forward_and_backward(back_end, pattern, inputs, documents, kv_heads) -> None:
    query, key, value, numbers, mask = case(pattern, inputs, documents, kv_heads)
    pull = torch.randn(2, inputs, 4, 8, generator=torch.Generator().manual_seed(1))
    wanted = reference(query, key, value, mask, 0.3)
    expected = torch.autograd.grad((wanted * pull).sum(), (query, key, value))
    plan = plan_for(pattern, inputs, numbers, back_end)
    mixed, _ = attention.attend(torch.nn.Module(), query, key, value, None, scaling=0.3, plan=plan)
    torch.testing.assert_close(mixed.double(), wanted, rtol=0, atol=2e-6)
    for found, gradient in zip(torch.autograd.grad((mixed * pull).sum(), (query, key, value)), expected, strict=True):
        torch.testing.assert_close(found.double(), gradient.double(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("documents", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize(("pattern", "inputs"), PATTERNS, ids=IDS)
def test_flex_attention_equals_the_definition(pattern, inputs, documents) -> None:
    query, key, value, numbers, mask = case(pattern, inputs, documents, 2)
    query, key, value = query.detach(), key.detach(), value.detach()
    with torch.no_grad():
        plan = plan_for(pattern, inputs, numbers, "flex")
        mixed, _ = attention.attend(torch.nn.Module(), query, key, value, None, scaling=0.3, plan=plan)
        torch.testing.assert_close(mixed.double(), reference(query, key, value, mask, 0.3), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("pattern", "inputs"), PATTERNS, ids=IDS)
def test_the_predicate_says_what_the_words_say(pattern, inputs) -> None:
    assert np.array_equal(attention.mask_NN(pattern, inputs).numpy(), tiny.allowed(pattern, inputs))


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 7), st.sampled_from(["block_causal", "causal"]))
def test_live_entries_are_the_masks_true_entries(block: int, blocks: int, more: int, clean_kind: str) -> None:
    prefix = block * (blocks - 1)
    clean = prefix + more
    inputs = clean + blocks * (block + 1)
    patterns = [
        (Pattern("causal"), inputs),
        (Pattern("full"), inputs),
        (Pattern("block_causal", block), inputs),
        (Pattern("two_stream", block, clean, clean_kind), inputs),
    ]
    for pattern, count in patterns:
        assert live_entries(pattern, count) == int(attention.mask_NN(pattern, count).sum()), pattern


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize(("pattern", "inputs"), PATTERNS, ids=IDS)
def test_the_model_says_the_same_through_every_back_end(family, pattern, inputs) -> None:
    words = tiny.vocabulary(9)
    model = tiny.model(words, inputs, family)
    ids = torch.randint(0, words.size, (2, inputs), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(inputs)[None]
    for numbers in (None, borders(inputs)):
        rows = [tiny.allowed(pattern, inputs, None if numbers is None else numbers[row].numpy()) for row in range(2)]
        with torch.no_grad():
            wanted = model.states(ids, positions, tiny.dense_plan(np.stack(rows)))
            for back_end in ("tiled", "sdpa"):
                found = model.states(ids, positions, plan_for(pattern, inputs, numbers, back_end))
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("pattern", "inputs"), PATTERNS, ids=IDS)
def test_flex_attention_is_chosen_only_where_it_can_train(pattern, inputs) -> None:
    cuda = torch.device("cuda")
    for count in (inputs, 1 << 20):
        for low_precision in (False, True):
            chosen = attention.choose_back_end(pattern, count, CPU, low_precision=low_precision)
            assert chosen in ("tiled", "sdpa"), "FlexAttention has no backward on a CPU"
    assert attention.choose_back_end(pattern, inputs, cuda) == "flex"
    assert attention.choose_back_end(pattern, inputs, cuda, dropout=0.1) == "sdpa", "FlexAttention has no dropout"


def test_attention_dropout_keeps_the_mean_and_drops_in_both_streams() -> None:
    pattern, inputs = Pattern("two_stream", 4, 8, "block_causal"), 23
    query, key, value, _, mask = case(pattern, inputs, False, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        plan = attention.make_plan(pattern, inputs, CPU, torch.float32, "tiled")
        wide = tuple(part.repeat(200, 1, 1, 1) for part in (query, key, value))
        mixed, _ = attention.attend(torch.nn.Module(), *wide, None, scaling=0.3, dropout=0.2, plan=plan)
        mixed = mixed.unflatten(0, (200, 2))
        wanted = reference(query, key, value, mask, 0.3)
    assert bool((mixed.std(0) > 0).all())
    error = (mixed.mean(0) - wanted).abs() / (mixed.std(0) / 200**0.5)
    assert float(error.mean()) < 1.2 and float(error.max()) < 6
