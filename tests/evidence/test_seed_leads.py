"""Few seeds: planted crossings are covered as stated, and equal arms cross no more often than stated."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from crossover.evidence.arms import Setting
from crossover.evidence.crossing import find_crossing, sentence
from crossover.evidence.crossings import arm_crossing
from crossover.evidence.curves import Curve
from crossover.evidence.published import level_curve, patterns
from crossover.evidence.seed_leads import confirmed
from crossover.streams import stream

POINTS = 16
X = np.linspace(0, 1, POINTS)
FLOPS = np.geomspace(1e18, 1e21, POINTS)
HOLDER = 3.0 - 0.8 * X
# Meets the holder at X = 0.5.
CHALLENGER = 3.3 - 1.4 * X
TRUE_ROOT = 10**19.5
SIMULATIONS = 120


def arm(name, losses, case, seeds, *, level=0.0, wobble=0.0, shift=0.0, stated=0.0):
    """Curves of an arm: each seed has its level and a wobble per evaluation; a shift is common to all its seeds."""
    rng = stream(case, f"arm-{name}")
    common = shift * rng.standard_normal()
    pattern_D = patterns(2)[int(name == "b")] if stated else np.zeros(1)
    nowhere = np.zeros((POINTS, 0))
    curves = []
    for seed in seeds:
        noise = common + level * rng.standard_normal() + wobble * rng.standard_normal(POINTS)
        like = Curve(name, seed, "table", True, FLOPS, FLOPS, FLOPS / 1e18, nowhere, np.zeros(0))
        curves.append(level_curve(like, losses + noise, np.full(POINTS, stated), pattern_D))
    return tuple(curves)


def crossing(case, challenger, seeds=(3, 3), offset=0, **noise):
    holder = arm("a", HOLDER, case, range(seeds[0]), **noise)
    other = arm("b", challenger, case, range(offset, offset + seeds[1]), **noise)
    stated = ("a", "b") if noise.get("stated") else ()
    setting = Setting("simulated", {"a": holder, "b": other}, ("a",), "nats per token", "epochs", 0, stated, ())
    return arm_crossing(setting, "a", "b", "flops", True, draws=100, seed=case)


@pytest.mark.parametrize(
    ("seeds", "offset"), [((2, 2), 0), ((3, 3), 0), ((5, 5), 0), ((3, 3), 100), ((3, 5), 0)], ids=str
)
@pytest.mark.parametrize("noise", [{"level": 0.02, "wobble": 0.01}, {"wobble": 0.02}], ids=str)
def test_noisy_equal_arms_cross_in_at_most_one_case_of_twenty(seeds, offset, noise):
    found = Counter(crossing(case, HOLDER, seeds, offset, **noise).status for case in range(SIMULATIONS))
    # Three standard errors of 5% in so many simulations.
    assert found["crossed"] + found["always ahead"] <= 0.05 * SIMULATIONS + 3 * math.sqrt(0.0475 * SIMULATIONS)
    assert found["crossed as drawn"] == 0


def test_documents_do_not_make_up_for_few_seeds(make_curve):
    claims = bare = 0
    for case in range(SIMULATIONS):
        noise = {"document_noise": 0.02, "seed_noise": 0.1, "case": case}
        arms = {name: tuple(make_curve(HOLDER, arm=name, seed=seed, **noise) for seed in (0, 1)) for name in "ab"}
        setting = Setting("simulated", arms, ("a",), "bits per byte", "epochs", 40, (), ())
        claims += arm_crossing(setting, "a", "b", "flops", True, draws=100, seed=case).status != "not reached"
        bare += find_crossing(arms["a"], arms["b"], draws=100, seed=case).status != "not reached"
    assert claims <= 0.1 * SIMULATIONS < bare


@pytest.mark.parametrize(("seeds", "offset"), [((3, 3), 0), ((5, 5), 0), ((3, 3), 100), ((4, 6), 0)], ids=str)
def test_planted_crossings_of_few_seeds_are_covered_as_stated(seeds, offset):
    found = [crossing(case, CHALLENGER, seeds, offset, level=0.02, wobble=0.005) for case in range(SIMULATIONS)]
    crossed = [one.interval for one in found if one.status == "crossed"]
    assert len(crossed) >= 0.9 * SIMULATIONS
    assert sum(low <= TRUE_ROOT <= high for low, high in crossed) >= 0.9 * len(crossed)
    lead = CHALLENGER[-1] - HOLDER[-1]
    assert sum(one.lead_interval[0] <= -lead <= one.lead_interval[1] for one in found) >= 0.9 * SIMULATIONS


def test_stated_standard_errors_cover_and_err_as_stated():
    noise = {"shift": 0.03, "stated": 0.03}
    found = [crossing(case, CHALLENGER, (1, 1), **noise) for case in range(SIMULATIONS)]
    crossed = [one.interval for one in found if one.status == "crossed"]
    assert len(crossed) >= 0.95 * SIMULATIONS
    assert sum(low <= TRUE_ROOT <= high for low, high in crossed) >= 0.9 * len(crossed)
    same = Counter(crossing(case, HOLDER, (1, 1), **noise).status for case in range(SIMULATIONS))
    assert same["crossed"] + same["always ahead"] <= 0.1 * SIMULATIONS


def test_single_curves_cross_by_chance_and_are_never_called_established():
    found = Counter(crossing(case, HOLDER, (1, 1), level=0.02, wobble=0.01).status for case in range(SIMULATIONS))
    # This is why a bare pair of curves gets no claim: chance alone draws a crossing in about one case of five.
    assert found["crossed"] == 0 and 0.1 * SIMULATIONS < found["crossed as drawn"] < 0.5 * SIMULATIONS


def test_a_claim_that_the_seeds_do_not_bear_is_taken_back_and_told():
    remarks = [
        one.remark
        for case in range(SIMULATIONS)
        if "do not establish" in (one := crossing(case, HOLDER, (2, 2), level=0.02, wobble=0.01)).remark
        and one.status == "not reached" and one.root is None and one.interval is None
    ]  # fmt: skip
    assert remarks and all("2 seeds do not establish the lead at the end" in remark for remark in remarks)


def test_a_lead_that_seeds_differ_on_is_wider_than_the_bootstrap_says():
    one = crossing(0, CHALLENGER, (2, 2), level=0.02)
    width = one.lead_interval[1] - one.lead_interval[0]
    # Two seeds: the t quantile with one degree of freedom is 12.7, against 2 of the normal law.
    leads = [arm("a", HOLDER, 0, range(2), level=0.02), arm("b", CHALLENGER, 0, range(2), level=0.02)]
    gaps = [a.bits_E[-1] - b.bits_E[-1] for a, b in zip(*leads, strict=True)]
    assert width == pytest.approx(2 * 12.706 * np.std(gaps, ddof=1) / math.sqrt(2), rel=1e-3)


def test_a_claim_that_was_taken_back_is_told_in_the_report_too() -> None:
    told = []
    for case in range(SIMULATIONS):
        pair = [arm(name, HOLDER, case, range(2), level=0.02, wobble=0.01) for name in "ab"]
        found = confirmed(find_crossing(*pair, axis="flops", draws=100, seed=case), *pair)
        if found.unconfirmed_bound is not None:
            assert found.status == "not reached" and found.root is None
            told.append(sentence(found, "masked", "ar"))
    assert told and all("on average, but 2 seeds do not establish that" in line for line in told)


def test_one_seed_is_left_as_it_is() -> None:
    pair = [arm(name, losses, 0, [0]) for name, losses in (("a", HOLDER), ("b", CHALLENGER))]
    found = find_crossing(*pair, axis="flops", draws=10)
    assert confirmed(found, *pair) == found


def test_the_order_in_which_seeds_are_read_does_not_matter() -> None:
    first, second = (arm(name, losses, 1, range(3), level=0.1) for name, losses in (("a", HOLDER), ("b", CHALLENGER)))
    found = find_crossing(first, second, axis="flops", draws=100)
    assert confirmed(found, first, second[::-1]) == confirmed(found, first, second)
