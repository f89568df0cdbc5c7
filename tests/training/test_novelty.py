"""Novelty: in which contexts a token was a target already, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from crossover.data.loader import Loader
from crossover.errors import CheckpointError
from crossover.registry import component_of
from crossover.streams import stream
from crossover.training.probes import novelty
from crossover.training.probes.novelty import AUTOREGRESSIVE, Novelty, contexts

WORDS = tiny.vocabulary(50)
T = 16


def loader(tokens: int = 2048, seed: int = 0, slice_windows: int = 4) -> Loader:
    text = np.random.default_rng(3).zipf(1.5, tokens).clip(max=50) - 1
    return Loader(text, context=T, batch_tokens=T * slice_windows, slice_tokens=T * slice_windows, seed=seed)


def expose(found: Novelty, objective: str, first: int, steps: int) -> None:
    """Train on steps of one slice each."""
    made = component_of("objective", objective)
    for step in range(first, first + steps):
        example = made.corrupt(found.loader.batch(step, 0), stream(0, "mask", step, 0), WORDS)
        found.mark(found.loader.batch_indices(step, 0), example, WORDS.mask_id)


def by_hand(hidden_S: np.ndarray, *, looks_ahead: bool = True) -> list[int]:
    """Buckets of a block's tokens, word for word from the definition."""
    size, found = len(hidden_S), []
    for token in range(size):
        left = token == 0 or not hidden_S[token - 1]
        right = looks_ahead and token + 1 < size and not hidden_S[token + 1]
        found.append(4 * min(3, int(4 * hidden_S.sum() / size)) + 2 * left + right)
    return found


@pytest.mark.parametrize(("name", "size", "ahead"), [
    ("masked", T, True),
    ("masked(suffix_share=0.5)", T, True),
    ("masked(attention=causal)", T, False),
    ("block(4)", 4, True),
    ("block(4, clean=causal)", 4, True),
])  # fmt: skip
def test_buckets_are_those_of_the_definition(name, size, ahead):
    tokens = np.random.default_rng(0).integers(0, 50, (6, T))
    example = component_of("objective", name).corrupt(tokens, stream(0, "x"), WORDS)
    ((target_BT, bucket_BT),) = contexts(example, WORDS.mask_id)
    assert isinstance(bucket_BT, np.ndarray) and target_BT is not None and 0 < target_BT.sum() < target_BT.size
    # The loss says which tokens are targets, independently of the inputs.
    real = example.weights_R > 0
    assert sorted(example.targets_R[real]) == sorted(tokens[target_BT])
    for row in range(6):
        for start in range(0, T, size):
            own = slice(start, start + size)
            assert bucket_BT[row, own].tolist() == by_hand(target_BT[row, own], looks_ahead=ahead)


@pytest.mark.parametrize(
    "name", ["autoregressive", "autoregressive(input_mask_rate=0.3)", "autoregressive(orders=3)", "block(1)"]
)
def test_next_token_prediction_is_one_context(name):
    example = component_of("objective", name).corrupt(np.zeros((2, T), np.int64), stream(0, "x"), WORDS)
    assert list(contexts(example, WORDS.mask_id)) == [(None, AUTOREGRESSIVE)]


def test_a_clean_stream_with_a_loss_is_next_token_prediction_besides():
    made = component_of("objective", "block(4, clean=causal, autoregressive_weight=0.5)")
    example = made.corrupt(np.zeros((3, T), np.int64), stream(0, "x"), WORDS)
    first, second = contexts(example, WORDS.mask_id)
    assert first == (None, AUTOREGRESSIVE) and second[0] is not None


def test_next_token_prediction_is_new_in_the_first_epoch_only():
    found = Novelty(loader(), WORDS.size)
    steps = 2048 // (4 * T)
    expose(found, "autoregressive", 0, steps)
    row = found.row()
    assert row["new"] == pytest.approx(row["exposures"]) == pytest.approx(found.total)
    assert row["seen_K"] == pytest.approx([float(bucket == AUTOREGRESSIVE) for bucket in range(16)])
    expose(found, "autoregressive", steps, steps)
    row = found.row()
    assert row["new"] == 0.0 and row["exposures"] == pytest.approx(found.total)


def test_weights_lie_between_tokens_and_types():
    found = Novelty(loader(), WORDS.size)
    count_V = np.bincount(found.loader.tokens_U, minlength=WORDS.size)
    assert found.total == pytest.approx(len(found.loader.tokens_U)), "weights are of mean 1"
    expose(found, "autoregressive", 0, 1)
    index = found.loader.batch_indices(0, 0)
    every = count_V[found.loader.tokens_U] ** -0.5
    weights = count_V[found.loader.tokens_U[index]] ** -0.5 / every.mean()
    assert found.row()["exposures"] == pytest.approx(weights.sum())


def chance_of_bucket() -> np.ndarray:
    """Probability per epoch that masked diffusion meets a token in each bucket, wherever it lies in a window."""
    chance = np.zeros((T, 16))
    for hidden in range(1, T + 1):
        bin_ = 4 * min(3, 4 * hidden // T)
        for place in range(T):
            neighbours = [place - 1] * (place > 0) + [place + 1] * (place < T - 1)
            for left in (True, False):
                for right in (True, False):
                    if (place == 0 and not left) or (place == T - 1 and right):
                        continue
                    sees = ([left] if place > 0 else []) + ([right] if place < T - 1 else [])
                    # Hypergeometric: this token hidden, then its neighbours one after the other.
                    odds, rest, free = hidden / T, hidden - 1, T - 1
                    for visible in sees:
                        odds *= ((free - rest) if visible else rest) / free
                        rest, free = rest - (not visible), free - 1
                    assert len(sees) == len(neighbours)
                    chance[place, bin_ + 2 * left + right] += odds / T
    return chance.mean(0)


@pytest.mark.parametrize("epochs", [1, 4])
def test_masked_training_fills_buckets_as_their_probabilities_say(epochs):
    size = 32_768
    found = Novelty(loader(size), WORDS.size)
    expose(found, "masked", 0, epochs * size // (4 * T))
    expected = 1 - (1 - chance_of_bucket()) ** epochs
    count_V = np.bincount(found.loader.tokens_U, minlength=WORDS.size)
    weights = np.maximum(count_V, 1)[found.loader.tokens_U] ** -0.5
    # Instances of a window share its number of hidden tokens, so that windows are what is independent.
    spread = (expected * (1 - expected) * (weights**2).sum() * T).clip(min=1e-12) ** 0.5 / weights.sum()
    assert (np.abs(np.array(found.row()["seen_K"]) - expected) < 4 * spread + 1e-3).all()
    assert expected.max() > 0.05 * epochs


def test_bits_survive_a_checkpoint():
    found, other = (Novelty(loader(), WORDS.size) for _ in range(2))
    expose(found, "masked", 0, 40)
    other.restore({name: tensor.clone() for name, tensor in found.tensors().items()})
    assert (other.bits_I == found.bits_I).all() and found.bits_I.max() > 255
    for part in (found, other):
        expose(part, "masked", 40, 40)
    assert found.row() == other.row()
    with pytest.raises(CheckpointError, match="tokens of text"):
        Novelty(loader(1000), WORDS.size).restore(found.tensors())


def test_a_checkpoint_is_not_changed_by_what_comes_after():
    found = Novelty(loader(), WORDS.size)
    tensors = found.tensors()
    expose(found, "masked", 0, 10)
    assert all(not value.any() for value in tensors.values())


def test_counts_are_those_of_the_bitset():
    found = Novelty(loader(), WORDS.size)
    expose(found, "masked", 0, 60)
    expose(found, "block(4)", 60, 60)
    count_V = np.bincount(found.loader.tokens_U, minlength=WORDS.size)
    weights = count_V[found.loader.tokens_U] ** -0.5
    weights = weights / weights.mean()
    set_KI = (found.bits_I[None] >> np.arange(16)[:, None]) & 1
    row = found.row()
    assert row["seen_K"] == pytest.approx((set_KI @ weights / weights.sum()).tolist())
    assert row["new"] == pytest.approx((set_KI @ weights).sum())


@settings(max_examples=20, deadline=None)
@given(size=st.integers(5, 60), steps=st.integers(1, 6), seed=st.integers(0, 9))
def test_an_instance_that_comes_twice_in_a_slice_is_new_once(size, steps, seed):
    """Texts shorter than a slice, and slices across the border of two epochs."""
    text = np.random.default_rng(seed).integers(0, 50, size)
    found = Novelty(Loader(text, context=T, batch_tokens=4 * T, slice_tokens=4 * T, seed=seed), WORDS.size)
    expose(found, "autoregressive", 0, steps)
    exposed = np.unique(np.concatenate([found.loader.batch_indices(step, 0).ravel() for step in range(steps)]))
    weights = np.bincount(text, minlength=WORDS.size)[text].astype(float) ** -0.5
    weights /= weights.mean()
    row = found.row()
    assert row["new"] == pytest.approx(weights[exposed].sum())
    assert row["exposures"] >= row["new"] - 1e-9


def test_long_texts_are_sampled(monkeypatch):
    monkeypatch.setattr(novelty, "MOST_INSTANCES", 1000)
    found = Novelty(loader(), WORDS.size)
    assert found.stride == 3 and len(found.bits_I) == 683
    expose(found, "autoregressive", 0, 2048 // (4 * T))
    row = found.row()
    assert row["seen_K"][AUTOREGRESSIVE] == pytest.approx(1.0) and row["new"] == pytest.approx(found.total)
    expose(found, "masked", 32, 20)
    assert found.row()["new"] > 0


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 200), step=st.integers(0, 20))
def test_indices_name_the_tokens_that_are_served(size, step):
    made = Loader(np.arange(size), context=4, batch_tokens=16, slice_tokens=8, seed=1)
    for index in range(2):
        assert (made.tokens_U[made.batch_indices(step, index)] == made.batch(step, index)).all()
