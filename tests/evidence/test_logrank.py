"""The log-rank test over one pair of settings and over many: the textbook, scipy, enumeration, and its error rate."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crossover.errors import RunError
from crossover.evidence.censored import Passage
from crossover.evidence.logrank import logrank, logrank_sentence, stratified_logrank
from crossover.streams import stream
from evidence.followed import DRUG, PLACEBO, censored_data, passages, signed_times

few_times = st.lists(st.sampled_from([1, 2, 3, 4, -2, -4]), min_size=1, max_size=3)


def test_logrank_of_the_textbook():
    test = logrank(passages(DRUG), passages(PLACEBO))
    assert test.crossed == (9, 21) and test.expected == pytest.approx((19.25, 10.75), abs=0.005)
    assert test.statistic == pytest.approx(16.79, abs=0.005)
    assert (test.method, test.earlier, test.smallest_p_value) == ("chi-square", "second", 0.0)
    assert test.p_value == pytest.approx(stats.chi2.sf(16.793, 1), rel=1e-3)
    assert "placebo than in drug" in logrank_sentence(test, "drug", "placebo", "relapse")


@settings(max_examples=60, deadline=None)
@given(signed_times, signed_times)
def test_logrank_agrees_with_scipy_and_counts_arrangements(first, second):
    first, second = first[:5], second[:5]
    ours = logrank(passages(first), passages(second))
    if any(at > 0 for at in (*first, *second)):
        with np.errstate(all="ignore"):
            theirs = stats.logrank(censored_data(first), censored_data(second)).statistic ** 2
        assert ours.statistic == pytest.approx(theirs, abs=1e-9) or math.isnan(theirs)
    assert ours.method == "exact permutation"
    # Each arrangement tested anew gives the same share as the scores that are shared by all.
    both = [*first, *second]
    excesses = []
    for chosen in combinations(range(len(both)), len(first)):
        rest = [both[i] for i in range(len(both)) if i not in chosen]
        one = logrank(passages([both[i] for i in chosen]), passages(rest)) if len(both) < 7 else None
        excesses += [one.crossed[0] - one.expected[0]] if one else []
    if excesses:
        size = abs(ours.crossed[0] - ours.expected[0])
        assert ours.p_value == pytest.approx(np.mean([abs(one) >= size - 1e-9 for one in excesses]))


def test_three_seeds_against_three_can_show_little_and_say_so():
    test = logrank(passages([1, 2, 3]), passages([7, 8, -9]))
    assert test.p_value == test.smallest_p_value == pytest.approx(2 / 20)
    told = logrank_sentence(test, "small", "large", "masked")
    assert "no difference shown" in told and "cannot give less than 0.1" in told
    four = logrank(passages([1, 2, 3, 4]), passages([7, 8, -9, -9]))
    assert four.p_value == pytest.approx(2 / 70) and "earlier in small" in logrank_sentence(
        four, "small", "big", "masked"
    )


def test_the_exact_test_errs_no_more_than_it_states_and_chi_square_would():
    rng = stream(0, "null")
    simulations, exact, law = 400, 0, 0
    for _ in range(simulations):
        at, end = rng.exponential(1.0, 8), rng.exponential(3.0, 8)
        times = [float(a) if a <= e else -float(e) for a, e in zip(at, end, strict=True)]
        test = logrank(passages(times[:4]), passages(times[4:]))
        exact += test.p_value <= 0.05
        law += stats.chi2.sf(test.statistic, 1) <= 0.05
    assert exact <= 0.06 * simulations < law


def test_no_crossings_show_nothing():
    test = logrank(passages([-5, -6, -7]), passages([-5, -9, -9]))
    assert (test.p_value, test.statistic, test.earlier) == (1.0, 0.0, "neither")


def pairs_of(*pairs):
    return [(passages(first), passages(second)) for first, second in pairs]


def test_pairs_together_show_what_each_alone_cannot():
    pairs = pairs_of(([20, 21, 22], [25, 28, 30]), ([60, 61, 66], [70, 72, -80]), ([5, 6, 7], [8, 9, 9.5]))
    assert all(logrank(*pair).p_value == pytest.approx(0.1) for pair in pairs)
    test = stratified_logrank(pairs)
    # Each pair is ordered in full, which 1 of 20 arrangements is, either way round.
    assert test.p_value == test.smallest_p_value == pytest.approx(2 / 20**3)
    assert (test.earlier, test.seeds, test.crossed, test.method) == ("first", (9, 9), (9, 8), "exact permutation")


def test_a_difference_between_pairs_is_no_difference_within_them():
    # Seeds of the first setting are all early here only because most of them belong to the early pair.
    early, late = ([1, 2, 3, 4, 5, 6], [1.5, 4.5]), ([101.0, 104.0], [100, 102, 103, 105, 106, 107])
    pooled = logrank(passages(early[0] + late[0]), passages(early[1] + late[1]))
    test = stratified_logrank(pairs_of(early, late))
    assert pooled.p_value < 0.15 and pooled.earlier == "first"
    assert test.p_value > 0.5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(few_times, few_times), min_size=1, max_size=2))
def test_pairs_are_the_sum_of_pairs_and_their_enumeration(pairs):
    """The definition once more, by tests of single pairs: sums of excesses, over every arrangement of every pair."""
    made = pairs_of(*pairs)

    def excess(first, second):
        one = logrank(first, second)
        return one.crossed[0] - one.expected[0]

    def arrangements(first, second):
        both = [*first, *second]
        for chosen in combinations(range(len(both)), len(first)):
            rest = [both[i] for i in range(len(both)) if i not in chosen]
            yield excess([both[i] for i in chosen], rest)

    test = stratified_logrank(made)
    total = sum(excess(*pair) for pair in made)
    assert test.crossed[0] - test.expected[0] == pytest.approx(total, abs=1e-9)
    sums = np.array([sum(parts) for parts in product(*(list(arrangements(*pair)) for pair in made))])
    assert test.p_value == pytest.approx(np.mean(np.abs(sums) >= abs(total) - 1e-9))


def test_many_pairs_use_the_chi_square_law():
    rng = stream(3, "pairs")
    pairs = [(list(rng.exponential(1.0, 4)), list(rng.exponential(1.0, 4))) for _ in range(6)]
    test = stratified_logrank(pairs_of(*pairs))
    assert (test.method, test.smallest_p_value) == ("chi-square", 0.0)
    assert test.p_value == pytest.approx(stats.chi2.sf(test.statistic, 1))


def test_pairs_err_no_more_than_they_state():
    rng = stream(1, "strata")
    # Pairs differ a hundredfold, their settings not at all: no more than 5% of 400 trials may find a difference.
    found = [
        stratified_logrank(
            pairs_of(*((list(rng.exponential(size, 3)), list(rng.exponential(size, 3))) for size in (1, 10, 100)))
        ).p_value
        for _ in range(400)
    ]
    assert np.mean(np.array(found) <= 0.05) < stats.binom.ppf(0.999, 400, 0.05) / 400
    assert 0.4 < np.median(found) < 0.6


def test_what_was_not_followed_is_refused():
    with pytest.raises(RunError, match="no seed was followed"):
        logrank([], [Passage(0, 1.0, True)])
    with pytest.raises(RunError, match="seed 4: was followed up to"):
        stratified_logrank([([Passage(0, 1.0, True)], [Passage(4, float("nan"), True)])])
    with pytest.raises(ValueError, match="no pair"):
        stratified_logrank([])
