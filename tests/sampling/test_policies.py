"""Policies choose what they say, from what they are told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossover.errors import RecipeError
from crossover.sampling.policies import Told, Turn, policy_of


def turn(told: Told | None = None, *, hidden: int = 6, drawn: int = 0, step: int = 0, seed: int = 0) -> Turn:
    return Turn(hidden if told is None else len(told.first_R), drawn, step, np.random.default_rng(seed), told)


def told(first, second=None, entropy=None) -> Told:
    zeros = np.zeros(len(first))
    return Told(np.array(first), zeros if second is None else np.array(second), np.array(entropy or zeros))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("random", "first_hitting(1)"),
        ("first_hitting( 4 )", "first_hitting(4)"),
        ("left_to_right", "left_to_right(1)"),
        ("ancestral(32)", "ancestral(32)"),
        ("remasking(8,0.5)", "remasking(8, 0.5)"),
        ("remasking", "remasking(128, 0.02)"),
        ("confidence(2)", "confidence(2)"),
        ("margin", "margin(1)"),
        ("entropy(0.25)", "entropy(0.25)"),
    ],
)
def test_a_policy_has_a_name(name, canonical) -> None:
    assert policy_of(name).name == canonical
    assert policy_of(canonical) == policy_of(name)


def test_a_mistyped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'confidence'"):
        policy_of("confidense(3)")
    with pytest.raises(RecipeError, match="tokens_per_pass must be at least 1"):
        policy_of("margin(0)")


@given(st.lists(st.floats(0, 3), min_size=1, max_size=12), st.floats(0, 4))
def test_the_entropy_bound_holds_and_cannot_be_filled_further(entropies, gamma) -> None:
    chosen = policy_of(f"entropy({gamma!r})" if "e" not in repr(gamma) else "entropy(0)").choose(
        turn(told([0.5] * len(entropies), None, entropies))
    )
    bound = gamma if "e" not in repr(gamma) else 0.0
    picked = [entropies[place] for place in chosen.reveal]
    assert len(picked) == 1 or sum(picked) - max(picked) <= bound + 1e-9
    rest = sorted(set(range(len(entropies))) - set(chosen.reveal), key=lambda place: entropies[place])
    if rest:
        assert max(picked) <= entropies[rest[0]] + 1e-4, "the places of least doubt come first"
        more = [*picked, entropies[rest[0]]]
        assert sum(more) - max(more) > bound - 1e-4


def test_the_surest_places_come_first_and_the_leftmost_of_equals() -> None:
    chances = told([0.3, 0.9, 0.6, 0.9 - 1e-9, 0.2], [0.1, 0.8, 0.1, 0.05, 0.0])
    assert policy_of("confidence(3)").choose(turn(chances)).reveal == [1, 3, 2]
    assert policy_of("margin(2)").choose(turn(chances)).reveal == [3, 2]
    assert sorted(policy_of("confidence(9)").choose(turn(chances)).reveal) == [0, 1, 2, 3, 4]


@given(st.floats(0.1, 3), st.lists(st.floats(-4e-6, 4e-6), min_size=2, max_size=6))
def test_the_leftmost_of_equal_entropies_comes_first(entropy, noise) -> None:
    """Wherever they lie: rounding must not choose the place, or a text would depend on its batch."""
    entropies = [3.5, *(entropy + part for part in noise)]
    assert policy_of("entropy(0)").choose(turn(told([0.5] * len(entropies), None, entropies))).reveal == [1]


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_ancestral_reveals_evenly_over_time(steps) -> None:
    """A token is revealed in each of n steps with chance 1 / n, whatever happened before."""
    policy, count = policy_of(f"ancestral({steps})"), 20_000
    hidden, rng = count, np.random.default_rng(1)
    for step in range(steps):
        found = len(policy.choose(Turn(hidden, 0, step, rng)).reveal)
        assert found == pytest.approx(count / steps, abs=5 * (count / steps) ** 0.5 + 1)
        hidden -= found
    assert hidden == 0


@pytest.mark.parametrize("cap", [0.0, 0.05, 1.0])
def test_remasking_keeps_the_share_of_hidden_tokens_of_its_time(cap) -> None:
    policy, steps, count = policy_of(f"remasking(10, {cap})"), 10, 20_000
    hidden, again, rng = count, 0, np.random.default_rng(1)
    for step in range(steps):
        move = policy.choose(Turn(hidden, count - hidden, step, rng))
        hidden += len(move.hide) - len(move.reveal)
        again += len(move.hide)
        assert hidden == pytest.approx(count * (1 - (step + 1) / steps), abs=5 * count**0.5)
        assert policy.over(step) is False
    assert hidden == 0 and policy.over(steps)
    assert (again > 0) == (cap > 0)


def test_the_random_order_is_uniform() -> None:
    rng = np.random.default_rng(0)
    found = np.bincount([policy_of("first_hitting").choose(Turn(5, 0, 0, rng)).reveal[0] for _ in range(5000)])
    assert np.abs(found - 1000).max() < 5 * 800**0.5
