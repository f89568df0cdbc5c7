"""A change of the mix that a run cannot reach, told with what to change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crossover.control.asking import unreachable_change

AMOUNTS = st.floats(1e3, 1e12)


@given(AMOUNTS, st.floats(0.1, 1.0), st.integers(100, 10**9))
def test_a_change_is_reached_before_the_decay_or_not_at_all(tokens: float, decay_from: float, unique: int) -> None:
    last = tokens * decay_from / unique
    assert not unreachable_change(last * 0.999, tokens, decay_from, unique)
    assert unreachable_change(last * 1.001, tokens, decay_from, unique)
    assert not unreachable_change(0.0, tokens, decay_from, unique), "a controller that plans no change has none to miss"


def test_it_says_what_is_wrong_and_what_to_do() -> None:
    told = unreachable_change(7.0, 1e6, 0.8, 100_000)
    assert not told, "eight epochs come before the decay"
    told = unreachable_change(8.0, 1e6, 0.8, 100_000)
    assert told.startswith("controller: the mix should change at 8 epochs, but the budget buys at most 8 before the")
    assert told.endswith("change it earlier, or raise the budget")
