"""Fixed masks: a token's fate hangs on its place in the text, not on when or where a window shows it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

import tiny
from crossover.data.loader import Loader
from crossover.objectives.masked import Masked, fixed_mask
from crossover.records import Example
from crossover.registry import label, parse_mix
from crossover.streams import stream
from crossover.training.step import Stepper

CONTEXT = 16
# Every token tells its place.
TEXT = np.arange(400)
MANY = tiny.vocabulary(len(TEXT))


def hidden_places(example: Example, places_BT: np.ndarray) -> set[int]:
    return set(places_BT[example.inputs_BN[:, 1:] == MANY.mask_id].tolist())


@given(st.integers(0, 3), st.integers(0, 350), st.integers(0, 350))
def test_a_token_is_hidden_or_not_wherever_its_window_begins(index: int, one: int, other: int) -> None:
    first, second = (np.arange(start, start + CONTEXT) % len(TEXT) for start in (one, other))
    known = dict(zip(first.tolist(), zip(*fixed_mask(index, first), strict=True), strict=True))
    for place, found in zip(second.tolist(), zip(*fixed_mask(index, second), strict=True), strict=True):
        assert known.get(place, found) == found


def test_one_fixed_mask_hides_the_same_tokens_in_every_epoch_and_fresh_masks_do_not() -> None:
    loader = Loader(TEXT, context=CONTEXT, batch_tokens=80, slice_tokens=80, seed=3)
    seen: dict[str, list[set[int]]] = {"fixed": [], "fresh": []}
    for epoch in range(4):
        fixed, fresh = set(), set()
        for step in range(epoch * 5, epoch * 5 + 5):
            places, tokens = loader.batch_indices(step, 0), loader.batch(step, 0)
            fixed |= hidden_places(Masked(masks=1).corrupt_at(tokens, places, stream(0, "m", step), MANY), places)
            fresh |= hidden_places(Masked().corrupt(tokens, stream(0, "m", step), MANY), places)
        seen["fixed"].append(fixed)
        seen["fresh"].append(fresh)
    assert all(found == seen["fixed"][0] for found in seen["fixed"])
    assert len(set().union(*seen["fixed"])) == len(seen["fixed"][0]) < 0.75 * len(TEXT)
    assert len(set().union(*seen["fresh"])) > 0.85 * len(TEXT)


@pytest.mark.parametrize("masks", [1, 3])
def test_k_fixed_masks_are_k_masks_each_taken_about_as_often(masks: int) -> None:
    places = np.tile(np.arange(32, 32 + CONTEXT), (600, 1))
    example = Masked(masks=masks).corrupt_at(TEXT[places], places, stream(1, "m"), MANY)
    _, counts = np.unique(example.inputs_BN, axis=0, return_counts=True)
    assert len(counts) == masks
    assert masks == 1 or chisquare(counts).pvalue > 1e-3


def test_every_piece_hides_l_tokens_with_weight_size_over_l_and_l_is_uniform() -> None:
    """Over whole pieces a fixed mask is a draw of `count: exact`, whose loss has the bound's expectation."""
    counts = []
    for piece in range(1500):
        hidden, weights = fixed_mask(0, np.arange(piece * 6, piece * 6 + 6))
        assert np.all(weights == 6 / hidden.sum())
        counts.append(int(hidden.sum()))
    assert chisquare(np.bincount(counts, minlength=7)[1:]).pvalue > 1e-3


def test_targets_and_weights_belong_to_the_hidden_tokens() -> None:
    loader = Loader(TEXT, context=CONTEXT, batch_tokens=160, slice_tokens=80, seed=0)
    for index in range(2):
        places, tokens = loader.batch_indices(7, index), loader.batch(7, index)
        example = Masked(masks=2).corrupt_at(tokens, places, stream(0, "m", index), MANY)
        real = example.weights_R > 0
        assert example.reads_R is not None and len(example.reads_R) % 5 == 0
        hidden = example.inputs_BN[:, 1:] == MANY.mask_id
        assert np.array_equal(example.targets_R[real], tokens[hidden])
        assert np.array_equal(example.inputs_BN[:, 1:][~hidden], tokens[~hidden])
        # State i predicts token i + 1: the read state is the one before the hidden token.
        row, column = np.nonzero(hidden)
        assert np.array_equal(example.reads_R[real], row * (CONTEXT + 1) + column)


def test_a_step_tells_an_objective_with_fixed_masks_where_its_tokens_lie() -> None:
    loader = Loader(TEXT, context=CONTEXT, batch_tokens=160, slice_tokens=80, seed=0)
    objective = Masked(masks=1)
    nothing: Any = None
    stepper = Stepper(
        nothing, nothing, {"masked(masks=1)": objective}, loader, MANY, (), seed=0, micro_batch_slices=2, clip_norm=1.0,
        precision="float32",
    )  # fmt: skip
    example = stepper.example(4, "masked(masks=1)", (0, 1))
    places = np.concatenate([loader.batch_indices(4, index) for index in (0, 1)])
    expected = np.stack([fixed_mask(0, row)[0] for row in places])
    assert np.array_equal(example.inputs_BN[:, 1:] == MANY.mask_id, expected)


def test_fixed_masks_are_no_bound_and_refuse_what_would_have_no_effect() -> None:
    assert Masked().is_bound and not Masked(masks=1).is_bound
    assert Masked(masks=4).workload(CONTEXT) == Masked().workload(CONTEXT)
    assert label(Masked(masks=4)) == "masked(masks=4)"
    assert [name for name, _ in parse_mix("masked(masks=16)").shares] == ["masked(masks=16)"]
    with pytest.raises(ValueError, match="masks"):
        Masked(masks=-1)
    with pytest.raises(ValueError, match="masks"):
        Masked(masks=1, count="bernoulli")
    with pytest.raises(ValueError, match="masks"):
        Masked(masks=1, suffix_share=0.5)
