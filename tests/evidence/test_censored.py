"""Seeds that have not crossed are censored: Kaplan-Meier and its median, against known answers."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from crossover.errors import RunError
from crossover.evidence.censored import (
    Passage,
    kaplan_meier,
    passages_of,
    survival_sentence,
)
from crossover.evidence.crossing import find_crossing
from crossover.streams import stream
from evidence.followed import DRUG, PLACEBO, censored_data, passages, signed_times

POINTS = 16
X = np.linspace(0, 1, POINTS)


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
        kaplan_meier([])
