"""Slices of a step: dealt in their shares, grouped and joined without changing anything."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.objectives.mixing import Dealer, join, micro_batches
from crossover.records import Mix
from crossover.streams import stream

mixes = (
    st.lists(st.integers(0, 64), min_size=1, max_size=8)
    .filter(any)
    .map(lambda parts: Mix(tuple((f"kind {index}", part / sum(parts)) for index, part in enumerate(parts))))
)


@given(mixes, st.integers(1, 7))
def test_every_share_is_met_within_one_slice_at_all_times(mix: Mix, slices: int) -> None:
    dealer, counts = Dealer({}), dict.fromkeys(dict(mix.shares), 0)
    for step in range(40):
        dealer, kinds = dealer.deal(mix, slices)
        for index, kind in enumerate(kinds):
            counts[kind] += 1
            dealt = step * slices + index + 1
            for name, share in mix.shares:
                assert abs(counts[name] - share * dealt) < 1


@given(mixes, st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_dealing_does_not_depend_on_how_it_is_cut_into_steps(mix: Mix, cuts: list[int]) -> None:
    whole = Dealer({}).deal(mix, sum(cuts))[1]
    dealer, dealt = Dealer({}), ()
    for count in cuts:
        dealer, kinds = dealer.deal(mix, count)
        dealt += kinds
        dealer = Dealer(dict(dealer.debts))
    assert dealt == whole == Dealer({}).deal(mix, sum(cuts))[1]


@given(st.integers(2, 50), st.integers(1, 3))
def test_shares_that_move_are_followed_within_one_slice(steps: int, slices: int) -> None:
    before, after = Mix((("a", 1.0),)), Mix((("b", 0.75), ("a", 0.25)))
    dealer, owed, counts = Dealer({}), {"a": 0.0, "b": 0.0}, {"a": 0, "b": 0}
    for step in range(steps):
        mix = before.blend(after, step / (steps - 1))
        dealer, kinds = dealer.deal(mix, slices)
        for kind in kinds:
            counts[kind] += 1
        for name in owed:
            owed[name] += slices * mix.share(name)
            assert abs(counts[name] - owed[name]) < 1


def test_an_objective_without_a_share_gets_nothing() -> None:
    assert set(Dealer({}).deal(Mix((("a", 0.0), ("b", 1.0))), 50)[1]) == {"b"}
    dealer, _ = Dealer({}).deal(Mix((("a", 0.5), ("b", 0.5))), 3)
    dealer, kinds = dealer.deal(Mix((("b", 1.0),)), 5)
    assert set(kinds) == {"b"} and set(dealer.debts) == {"b"}


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20), st.integers(1, 6))
def test_micro_batches_hold_every_slice_once_and_one_kind_each(kinds: list[str], slices_each: int) -> None:
    groups = micro_batches(kinds, slices_each)
    assert sorted(index for _, slices in groups for index in slices) == list(range(len(kinds)))
    for kind, slices in groups:
        assert 1 <= len(slices) <= slices_each
        assert all(kinds[index] == kind for index in slices)
    for kind in set(kinds):
        assert sum(name == kind for name, _ in groups) == -(-kinds.count(kind) // slices_each)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(
    "objective",
    [
        Autoregressive(),
        Autoregressive(input_mask_rate=0.5, masked_input_weight=0.4),
        Masked(),
        Masked("bernoulli"),
        Block(4, clean="causal", autoregressive_weight=0.3),
    ],
    ids=repr,
)
def test_the_loss_of_joined_examples_is_the_sum_of_theirs(objective, separate) -> None:
    words = tiny.vocabulary(9, separate=separate)
    model = tiny.model(words, 8)
    examples = [
        objective.corrupt(stream(0, "t", index).integers(0, 9, (3, 8)), stream(0, "m", index), words)
        for index in range(3)
    ]
    joined = join(examples)
    assert joined.data_tokens == 72
    parts = sum(float(tiny.loss(model, example, 72).detach()) for example in examples)
    assert float(tiny.loss(model, joined).detach()) == pytest.approx(parts, rel=1e-5)
    assert np.concatenate([tiny.nats(model, example) for example in examples]) == pytest.approx(
        tiny.nats(model, joined), abs=1e-5
    )
    assert join(examples[:1]) is examples[0]
    assert replace(joined, data_tokens=24).pattern == examples[0].pattern
