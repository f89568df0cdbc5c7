"""Decayed points are few and lie apart: runs of one budget that end at different amounts must not be misread."""

from __future__ import annotations

import math

import numpy as np
import pytest

from crossover.evidence.crossing import find_crossing
from crossover.evidence.curves import Curve
from crossover.evidence.plots import mean_curve

DOCUMENTS = 60
BYTES = np.random.default_rng(0).uniform(50, 200, DOCUMENTS)


def law(flops: np.ndarray) -> np.ndarray:
    """Bits per byte of the holder."""
    return 3 - 0.3 * np.log2(flops / 1e11)


def arm(name: str, flops: list[float], shift: float = 0.0, per_epoch: float = 1e11, seeds: int = 3) -> list[Curve]:
    """Curves whose points lie on the law, moved by so many bits, with little noise."""
    at = np.array(flops)
    curves = []
    for seed in range(seeds):
        noise = np.random.default_rng([seed, len(name)]).normal(0, 0.002, len(at))
        nats = np.outer(math.log(2) * (law(at) + shift + noise), BYTES)
        curves.append(Curve(name, seed, "ar", True, at, at, at / per_epoch, nats, BYTES, is_decayed=True))
    return curves


def ends(budgets: list[float], step: float) -> list[float]:
    """A run ends with the step that reaches its budget."""
    return [math.ceil(budget / step) * step for budget in budgets]


BUDGETS = [1e11, 2e11, 4e11, 8e11, 1.6e12]


@pytest.mark.parametrize("steps", [(3.12e9 * 0.752, 3.12e9), (3.12e9, 3.12e9 * 0.752), (1e9, 7e9)])
def test_an_arm_that_is_ahead_everywhere_is_always_ahead(steps):
    holder, challenger = arm("ar", ends(BUDGETS, steps[0])), arm("masked", ends(BUDGETS, steps[1]), -0.05)
    found = find_crossing(holder, challenger)
    assert found.status == "always ahead"
    # Between two points the law is a line in the logarithm, so the reading is exact.
    assert np.allclose(found.lead_bits_by_point, 0.05, atol=0.006)


@pytest.mark.parametrize("ratio", [0.77, 1.13])
@pytest.mark.parametrize("budgets", [BUDGETS, [1e11, 1.1e11, 1.2e11, 4e11, 1e12]])
def test_equal_arms_of_other_prices_never_cross(ratio, budgets):
    holder, challenger = arm("ar", budgets), arm("masked", [ratio * budget for budget in budgets])
    found = find_crossing(holder, challenger)
    assert found.status == "not reached" and np.abs(found.lead_bits_by_point).max() < 0.01


def test_the_same_epoch_is_the_same_epoch_where_prices_differ():
    holder, challenger = arm("ar", BUDGETS), arm("masked", BUDGETS, -0.05, per_epoch=1.05e11)
    found = find_crossing(holder, challenger, axis="epochs", best_so_far=False)
    # At the same epoch the challenger has spent 5% more, which its law turns into 0.02 bits.
    assert found.status == "always ahead"
    assert np.allclose(found.lead_bits_by_point, 0.05 + 0.3 * math.log2(1.05), atol=0.006)


def test_a_planted_crossing_between_points_is_found():
    holder, at = arm("ar", BUDGETS), np.array(BUDGETS) * 0.9
    challenger = []
    for seed, curve in enumerate(arm("masked", list(at))):
        gap = 0.2 * np.log2(5e11 / at) / np.log2(10)
        nats = curve.nats_ED + np.outer(math.log(2) * gap, BYTES)
        challenger.append(Curve("masked", seed, "ar", True, at, at, at / 1e11, nats, BYTES, is_decayed=True))
    found = find_crossing(holder, challenger)
    assert found.status == "crossed" and found.root == pytest.approx(5e11, rel=0.05)
    assert found.ci is not None and found.ci[0] <= 5e11 <= found.ci[1]


def test_the_band_of_a_figure_reads_seeds_at_one_amount():
    first, second = arm("ar", BUDGETS, seeds=1)[0], arm("ar", [1.008 * budget for budget in BUDGETS], seeds=1)[0]
    grid, bits = mean_curve([first, Curve(**{**vars(second), "seed": 1})])
    assert len(grid) > 2 and np.abs(bits[0] - bits[1]).max() < 0.01
