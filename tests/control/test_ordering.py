"""Closed forms of what an objective trains, against what the objective itself does to windows of text."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossover.control.signals.ordering import (
    context_probabilities,
    counterfactual_novelty,
    direction_balance,
    directions,
    expected_novelty,
    hidden_counts,
    ordering_entropy,
)
from crossover.errors import RecipeError
from crossover.records import Mix, Vocabulary
from crossover.registry import component_of
from tiny import allowed

CONTEXT = 64
SIZES = (2, 4, 8, 16, 32)
GEARS = (
    "autoregressive",
    "autoregressive(0.3, rate=uniform)",
    "autoregressive(0.4, masked_input_weight=0.5)",
    "masked",
    "masked(suffix_share=0.5)",
    "masked(suffix_share=1.0)",
    "masked(attention=causal)",
    "masked(count=bernoulli, noise=clipped)",
    "masked(count=bernoulli, noise=cosine, eps=0.1, suffix_share=0.25)",
    "block(4, count=bernoulli)",
    "block(16, count=bernoulli, noise=clipped(0.2, 0.6))",
    "block(4, clean=causal, autoregressive_weight=0.5)",
    "block(1)",
    f"block({CONTEXT})",
    *(f"block({size})" for size in SIZES),
)
mixes = st.dictionaries(st.sampled_from(GEARS), st.integers(1, 9), min_size=1).map(
    lambda parts: Mix(tuple((name, part / sum(parts.values())) for name, part in parts.items()))
)


class Seen(NamedTuple):
    """Every target of some windows: which token it is, its weight, and which tokens of the window it sees."""

    row_R: np.ndarray
    column_R: np.ndarray
    weight_R: np.ndarray
    visible_RT: np.ndarray


def observe(name: str, tokens_BT: np.ndarray, ids: int, rng: np.random.Generator) -> Seen:
    """Read off the objective's own example who sees whom; a token's id says where it stands in the text."""
    context = tokens_BT.shape[1]
    words = Vocabulary(ids + 4, ids + 1, bos_id=ids + 1, eos_id=ids, mask_id=ids + 2)
    example = component_of("objective", name).corrupt(tokens_BT, rng, words)
    rows, inputs = example.inputs_BN.shape
    window_B = np.arange(rows) % len(tokens_BT)
    column_BI = np.zeros((len(tokens_BT), ids), np.int16)
    np.put_along_axis(column_BI, tokens_BT, np.arange(context, dtype=np.int16)[None], axis=1)
    shown = np.zeros((rows, inputs, context), np.float32)
    row, place = np.nonzero(example.inputs_BN < ids)
    shown[row, place, column_BI[window_B[row], example.inputs_BN[row, place]]] = 1
    visible_BNT = allowed(example.pattern, inputs).astype(np.float32) @ shown > 0
    reads = np.arange(rows * inputs) if example.reads_R is None else example.reads_R
    reads, targets, weights = (part[example.weights_R > 0] for part in (reads, example.targets_R, example.weights_R))
    row_R = reads // inputs
    return Seen(row_R, column_BI[window_B[row_R], targets], weights, visible_BNT[row_R, reads % inputs])


def buckets(seen: Seen, size: int) -> np.ndarray:
    """Put targets into buckets, from the words of their definition."""
    context = seen.visible_RT.shape[1]
    block_R = seen.row_R * (context // size) + seen.column_R // size
    hidden_R = np.bincount(block_R)[block_R]
    padded = np.pad(seen.visible_RT, ((0, 0), (1, 1)))
    padded[:, 0] = True
    each = np.arange(len(block_R))
    left, right = padded[each, seen.column_R], padded[each, seen.column_R + 2]
    right &= seen.column_R % size < size - 1
    return 4 * np.minimum(3, 4 * hidden_R // size) + 2 * left + right


def size_of(name: str, context: int) -> int:
    objective = component_of("objective", name)
    return {"autoregressive": 1, "masked": context}.get(objective.component_name) or objective.size


def text(windows: int) -> np.ndarray:
    return np.tile(np.arange(CONTEXT), (windows, 1))


def one(name: str) -> Mix:
    return Mix(((name, 1.0),))


def measured(name: str, windows: int = 2000, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Weighted numbers of targets of a window that see the token d before and d after them."""
    seen = observe(name, text(windows), CONTEXT, np.random.default_rng(seed))
    left, right = np.zeros(CONTEXT - 1), np.zeros(CONTEXT - 1)
    for d in range(1, CONTEXT):
        for counts, other_R in ((left, seen.column_R - d), (right, seen.column_R + d)):
            there = (other_R >= 0) & (other_R < CONTEXT)
            counts[d - 1] = seen.weight_R[there] @ seen.visible_RT[there, other_R[there]] / windows
    return left, right


@pytest.mark.parametrize("name", GEARS)
def test_the_counts_of_context_are_those_of_the_objective(name: str) -> None:
    # Which windows are suffixes is drawn apart from their counts, so these need more of them.
    left, right = np.mean([measured(name, seed=seed) for seed in range(12 if "suffix_share=0" in name else 1)], axis=0)
    found, pairs = directions(name, CONTEXT), CONTEXT - np.arange(1, CONTEXT)
    for stretch in (slice(0, 1), slice(1, 4), slice(4, 16), slice(16, None)):
        total = pairs[stretch].sum()
        assert left[stretch].sum() / total == pytest.approx(found.left_D[stretch].sum() / total, abs=0.015)
        assert right[stretch].sum() / total == pytest.approx(found.right_D[stretch].sum() / total, abs=0.015)


def test_fixed_orders_see_to_the_right_as_often_as_the_noise_on_positions_says() -> None:
    name = "autoregressive(orders=8)"
    left, right = measured(name, 2000)
    found = directions(name, CONTEXT)
    # The eight orders are one draw of the noise, so the error is theirs and not the windows'.
    assert right.sum() == pytest.approx(found.right_D.sum(), rel=0.25)
    np.testing.assert_allclose(left + right, found.left_D + found.right_D)
    assert direction_balance(one(name), CONTEXT) > 0.1


@pytest.mark.parametrize(
    "parts",
    [
        {"autoregressive": 0.25, "block(8)": 0.75},
        {"masked": 0.5, "block(4)": 0.25, "autoregressive": 0.25},
        {"masked(suffix_share=0.5)": 0.5, "block(16)": 0.5},
    ],
)
def test_the_balance_of_a_mix_is_that_of_its_slices_together(parts: dict[str, float]) -> None:
    sides = [np.multiply(share, measured(name)) for name, share in parts.items()]
    left, right = np.sum(sides, axis=0)
    d = np.arange(1, CONTEXT)
    expected = np.average(2 * np.minimum(left, right) / (left + right), weights=(CONTEXT - d) / d)
    assert direction_balance(Mix(tuple(parts.items())), CONTEXT) == pytest.approx(expected, abs=0.01)


def test_the_published_table_of_balance_and_entropy() -> None:
    sizes = (2, 4, 8, 16, 32, 64)
    balance = [direction_balance(one(f"block({size})"), 128) for size in sizes]
    assert balance == pytest.approx([0.11, 0.24, 0.39, 0.54, 0.69, 0.85], abs=0.0055)
    flat = [direction_balance(one(f"block({size})"), 128, gamma=0) for size in sizes]
    assert flat == pytest.approx([(size - 1) / 127 for size in sizes])
    entropy = [ordering_entropy(one(f"block({size})"), 128) for size in sizes]
    assert entropy == pytest.approx([0.09, 0.21, 0.34, 0.49, 0.66, 0.83], abs=0.0055)


@given(st.floats(0, 1), st.integers(2, 300), st.floats(0, 3))
def test_next_token_training_takes_its_share_off_the_balance_of_masked(share: float, context: int, gamma: float):
    mix = Mix((("autoregressive", share), ("masked", 1 - share)))
    assert direction_balance(mix, context, gamma) == pytest.approx(1 - share)
    assert ordering_entropy(mix, context) == pytest.approx(1 - share)


@settings(deadline=None)
@given(mixes, st.sampled_from([CONTEXT, 128, 192]))
def test_balance_and_entropy_lie_between_none_and_all(mix: Mix, context: int) -> None:
    for value in (direction_balance(mix, context), ordering_entropy(mix, context)):
        assert -1e-12 <= value <= 1 + 1e-12


@given(st.sampled_from([2, 4, 8, 16, 32, 64]))
def test_larger_blocks_look_more_evenly(size: int) -> None:
    smaller, larger = one(f"block({size // 2})"), one(f"block({size})")
    assert direction_balance(smaller, 128) < direction_balance(larger, 128)
    assert ordering_entropy(smaller, 128) < ordering_entropy(larger, 128)


@pytest.mark.parametrize(("name", "expected"), [("autoregressive(orders=6)", 1.0), ("autoregressive(orders=2)", 0.387)])
def test_the_entropy_of_fixed_orders_counts_them(name: str, expected: float) -> None:
    assert ordering_entropy(one(name), 3) == pytest.approx(expected, abs=1e-3)


def test_a_window_of_one_token_has_neither_sides_nor_orders() -> None:
    assert direction_balance(one("masked"), 1) == ordering_entropy(one("masked"), 1) == 0
    np.testing.assert_allclose(context_probabilities("masked", 1), np.eye(16)[14])


@given(
    st.sampled_from(["linear", "cosine", "polynomial", "polynomial(0.5)", "log_linear(0)", "clipped(0, 1)"]),
    st.integers(1, 200),
)
def test_every_bound_schedule_has_the_expectations_of_exact_counts(noise: str, size: int) -> None:
    exact = hidden_counts(size, "exact", component_of("noise", "linear"), 1e-3)
    drawn = hidden_counts(size, "bernoulli", component_of("noise", noise), 0.0)
    l_L = np.arange(size + 1)
    for law in (exact, drawn):
        assert law.probability_L.sum() == pytest.approx(1)
        assert law.weight_L @ l_L / size == pytest.approx(1)
        assert law.weight_L @ (l_L * (size - l_L)) == pytest.approx(size * (size - 1) / 2)
    if noise == "linear":
        np.testing.assert_allclose(drawn.probability_L, 1 / (size + 1))


@pytest.mark.parametrize("name", ["autoregressive", *(name for name in GEARS if "autoregressive" not in name)])
def test_context_probabilities_are_the_frequencies_of_the_objective(name: str) -> None:
    windows = 3000
    seen = observe(name, text(windows), CONTEXT, np.random.default_rng(3))
    found = np.bincount(buckets(seen, size_of(name, CONTEXT)), minlength=16) / (windows * CONTEXT)
    np.testing.assert_allclose(context_probabilities(name, CONTEXT), found, atol=0.01)


@given(st.sampled_from(GEARS))
def test_context_probabilities_sum_to_the_share_of_tokens_that_are_targets(name: str) -> None:
    probability_K = context_probabilities(name, CONTEXT)
    assert ((probability_K >= 0) & (probability_K <= 1 + 1e-12)).all()
    if "autoregressive" not in name:
        reads = component_of("objective", name).workload(CONTEXT).reads
        assert probability_K.sum() == pytest.approx(reads / CONTEXT, rel=1e-6)


def test_a_next_token_loss_beside_the_blocks_makes_every_token_a_target() -> None:
    alone, beside = (context_probabilities(f"block(4{rest})", CONTEXT) for rest in ("", ", clean=causal"))
    np.testing.assert_array_equal(alone, beside)
    both = context_probabilities("block(4, clean=causal, autoregressive_weight=0.5)", CONTEXT)
    assert both[14] == 1
    np.testing.assert_array_equal(np.delete(both, 14), np.delete(alone, 14))


def test_next_token_training_has_nothing_new_after_one_epoch() -> None:
    probability_K = context_probabilities("autoregressive", CONTEXT)
    assert [expected_novelty(probability_K, epochs) for epochs in (0, 1, 2)] == [1, 0, 0]


@given(st.sampled_from(GEARS), st.floats(0, 100), st.floats(0, 100))
def test_novelty_falls_as_the_text_repeats(name: str, one_epochs: float, other_epochs: float) -> None:
    probability_K = context_probabilities(name, CONTEXT)
    few, many = sorted((one_epochs, other_epochs))
    earlier, later = expected_novelty(probability_K, few), expected_novelty(probability_K, many)
    assert -1e-12 <= later <= earlier + 1e-12 <= 1 + 2e-12


@pytest.mark.parametrize("name", ["masked", "block(8)", "masked(suffix_share=0.5)"])
def test_novelty_of_real_passes_is_the_expected_one(name: str) -> None:
    # Many short texts, each cut at an offset of its own: one offset for all would tie their borders together.
    rng, texts, length = np.random.default_rng(11), 384, CONTEXT
    bits, probability_K = np.zeros((texts * length, 16), bool), context_probabilities(name, CONTEXT)
    realised, expected, counterfactual = [], [], []
    for epoch in range(12):
        offsets = rng.integers(length, size=(texts, 1))
        tokens_BT = length * np.arange(texts)[:, None] + (offsets + np.arange(length)) % length
        tokens_BT = tokens_BT.reshape(-1, CONTEXT)
        seen = observe(name, tokens_BT, texts * length, rng)
        token_R, bucket_R = tokens_BT[seen.row_R, seen.column_R], buckets(seen, size_of(name, CONTEXT))
        realised.append(1 - bits[token_R, bucket_R].mean())
        expected.append(expected_novelty(probability_K, epoch))
        counterfactual.append(counterfactual_novelty(probability_K, bits.mean(axis=0)))
        bits[token_R, bucket_R] = True
    # The targets of a window share its number of hidden tokens, so one pass scatters more than its targets would alone.
    for forecast in (expected, counterfactual):
        np.testing.assert_allclose(realised, forecast, atol=0.05)
        assert np.mean(realised) == pytest.approx(np.mean(forecast), abs=0.01)


@pytest.mark.parametrize("noise", ["cosine", "linear"])
def test_nothing_hidden_has_no_novelty(noise: str) -> None:
    assert expected_novelty(np.zeros(16), 3) == 0
    assert context_probabilities(f"masked(count=bernoulli, noise={noise})", CONTEXT).sum() > 0


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match="do not divide the context 64"):
        context_probabilities("block(5)", CONTEXT)
    with pytest.raises(RecipeError, match="did you mean 'masked'"):
        directions("maskd", CONTEXT)
