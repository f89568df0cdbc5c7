"""Seeds that have not crossed are censored: Kaplan-Meier, its median, and the log-rank test, against known answers."""

from __future__ import annotations

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crossover.errors import RunError
from crossover.evidence.censored import (
    Passage,
    kaplan_meier,
    logrank,
    logrank_sentence,
    passages_of,
    survival_sentence,
)
from crossover.evidence.crossing import find_crossing
from crossover.streams import stream

# Weeks of remission of 42 children (Freireich et al. 1963), the textbook example; negative: censored.
DRUG = (6, 6, 6, -6, 7, -9, 10, -10, -11, 13, 16, -17, -19, -20, 22, 23, -25, -32, -32, -34, -35)
PLACEBO = (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)
POINTS = 16
X = np.linspace(0, 1, POINTS)


def passages(signed):
    return [Passage(seed, float(abs(at)), at > 0) for seed, at in enumerate(signed)]


def censored_data(signed):
    return stats.CensoredData(
        uncensored=[at for at in signed if at > 0], right=[-at for at in signed if at < 0]
    )  # fmt: skip


def test_kaplan_meier_by_hand():
    # Four seeds: one crosses at 2, one is censored at 3, one crosses at 5, one is censored at 9.
    found = kaplan_meier(passages([2, -3, 5, -9]))
    counts = [(row.at_risk, row.crossed, row.censored) for row in found.moments]
    assert counts == [(4, 1, 0), (3, 0, 1), (2, 1, 0), (1, 0, 1)]
    assert [row.share for row in found.moments] == pytest.approx([3 / 4, 3 / 4, 3 / 8, 3 / 8])
    # Greenwood by hand: 1/(4*3), then 1/12 + 1/(2*1).
    width = math.exp(1.959964 * math.sqrt(1 / 12 + 1 / 2) / -math.log(3 / 8))
    assert found.moments[2].low == pytest.approx((3 / 8) ** width, rel=1e-6)
    assert found.moments[2].high == pytest.approx((3 / 8) ** (1 / width), rel=1e-6)
    assert (found.seeds, found.crossed, found.last, found.median) == (4, 2, 9.0, 5.0)


def test_kaplan_meier_of_the_textbook():
    found = kaplan_meier(passages(DRUG))
    shares = {row.at: round(row.share, 3) for row in found.moments if row.crossed}
    assert shares == {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    # R, survfit(conf.type = "log-log"): median 23 [13, NA].
    assert found.median == 23 and found.median_interval == (13, None)
    assert kaplan_meier(passages(PLACEBO)).median == 8
    assert "[13, not reached]" in survival_sentence(found, "weeks")


signed_times = st.lists(
    st.integers(1, 12).flatmap(lambda at: st.sampled_from([at, -at])), min_size=2, max_size=14
).filter(lambda times: any(at > 0 for at in times))


@settings(max_examples=80, deadline=None)
@given(signed_times)
def test_kaplan_meier_agrees_with_scipy(signed):
    theirs = stats.ecdf(censored_data(signed)).sf
    ours = {row.at: row for row in kaplan_meier(passages(signed)).moments}
    assert [ours[at].share for at in theirs.quantiles] == pytest.approx(theirs.probabilities)
    # At a share of 0 or 1 theirs has no value and says so.
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        interval = theirs.confidence_interval(method="log-log")
    for at, low, high in zip(theirs.quantiles, interval.low.probabilities, interval.high.probabilities, strict=True):
        if 0 < ours[at].share < 1:
            assert (ours[at].low, ours[at].high) == pytest.approx((low, high), abs=1e-9)
    assert all(0 <= row.low <= row.share <= row.high <= 1 for row in ours.values())


def test_a_median_that_is_not_reached_is_said_to_be_so():
    found = kaplan_meier(passages([3, -7, -8]))
    assert found.median is None and found.median_interval == (None, None)
    assert (
        survival_sentence(found, "FLOPs")
        == "1 of 3 seeds cross by 8 FLOPs, 2 censored; Kaplan-Meier median not reached"
    )
    nobody = kaplan_meier(passages([-5, -5, -6]))
    assert nobody.crossed == 0 and [row.share for row in nobody.moments] == [1.0, 1.0]


def test_few_seeds_give_no_interval_of_a_median():
    # All of n seeds lie above a median with probability 2^-n, more than 2.5% for five.
    assert kaplan_meier(passages(range(1, 6))).median_interval == (None, None)
    assert kaplan_meier(passages(range(1, 7))).median_interval[0] == 1.0
    assert "too few seeds" in survival_sentence(kaplan_meier(passages([2, 3, 4])), "FLOPs")


@pytest.mark.parametrize("seeds", [6, 8, 12])
def test_the_interval_of_the_median_covers_it(seeds):
    rng = stream(0, "median", seeds)
    simulations, covered = 500, 0
    for _ in range(simulations):
        cross, stop = rng.weibull(2.0, seeds), rng.uniform(0.5, 2.5, seeds)
        times = [float(at) if at <= end else -float(end) for at, end in zip(cross, stop, strict=True)]
        low, high = kaplan_meier(passages(times)).median_interval
        covered += (low or 0.0) <= math.sqrt(math.log(2)) <= (high or math.inf)
    assert covered >= 0.93 * simulations


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


def test_only_an_established_crossing_is_an_event(make_curve):
    holder = [make_curve(3 - 0.8 * X, seed=0)]
    last = 3.2 - 0.8 * X
    last[-1] = 1.9
    drawn = {
        0: 3.3 - 1.4 * X,  # crosses at 10^10.5
        1: 3.1 - 0.8 * X,  # never
        2: 2.5 - 0.8 * X,  # always ahead
        3: last,  # leads at the last point only
        4: np.where(X < 0.15, 3.3, 2.6),  # leads, and is behind again
    }
    found = passages_of(
        {seed: find_crossing(holder, [make_curve(losses, seed=seed, arm="b")]) for seed, losses in drawn.items()}
    )
    assert [(one.crossed, one.before) for one in found] == [
        (True, False), (False, False), (True, True), (False, False), (False, False)
    ]  # fmt: skip
    assert found[0].at == pytest.approx(10**10.5) and found[2].at == pytest.approx(1e9)
    assert {found[i].at for i in (1, 3, 4)} == {1e12}


@pytest.mark.parametrize("at", [0.0, -1.0, math.nan, math.inf])
def test_impossible_amounts_are_refused(at):
    with pytest.raises(RunError, match="seed 4: was followed up to"):
        kaplan_meier([Passage(4, at, True)])
    with pytest.raises(RunError, match="no seed was followed"):
        logrank([], [Passage(0, 1.0, True)])
