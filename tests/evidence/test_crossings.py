from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from crossover.errors import RunError
from crossover.evidence.crossing import find_crossing, resample_seeds, sentence
from crossover.evidence.curves import Curve
from crossover.streams import stream

Make = Callable[..., Curve]
POINTS = 16
X = np.linspace(0, 1, POINTS)
HOLDER = 3.0 - 0.8 * X
# Meets the holder at X = 0.5, which is 10^10.5 FLOPs.
CHALLENGER = 3.3 - 1.4 * X
TRUE_ROOT = 10**10.5


def group(make: Make, losses: np.ndarray, arm: str, *, seeds: int = 2, **noise: float) -> list[Curve]:
    return [make(losses, arm=arm, seed=seed, **noise) for seed in range(seeds)]


def test_identical_curves_never_cross(make_curve: Make) -> None:
    curves = group(make_curve, HOLDER, "a", document_noise=0.1, seed_noise=0.05)
    result = find_crossing(curves, [replace(curve, arm="b") for curve in curves])
    assert result.status == "not reached" and result.lead_bits == 0 and not result.leads_at_end_only
    assert "does not pass" in sentence(result, "b", "a")


def test_a_planted_crossing_is_found_exactly_without_noise(make_curve: Make) -> None:
    result = find_crossing(group(make_curve, HOLDER, "a"), group(make_curve, CHALLENGER, "b"))
    assert result.status == "crossed" and result.root == pytest.approx(TRUE_ROOT, rel=1e-6)
    assert result.low is not None and result.high is not None and result.low <= TRUE_ROOT <= result.high
    at_6nd = find_crossing(group(make_curve, HOLDER, "a"), group(make_curve, CHALLENGER, "b"), axis="flops_6nd")
    assert at_6nd.root == pytest.approx(1.2 * TRUE_ROOT, rel=1e-6)


def test_planted_crossings_are_recovered_with_the_stated_coverage(make_curve: Make) -> None:
    found = covered = 0
    simulations = 120
    for case in range(simulations):
        noise = {"document_noise": 0.08, "seed_noise": 0.0, "documents": 60, "case": case}
        result = find_crossing(
            group(make_curve, HOLDER, "a", **noise), group(make_curve, CHALLENGER, "b", **noise), draws=200, seed=case
        )
        if result.status == "crossed" and result.ci is not None:
            found += 1
            covered += result.ci[0] <= TRUE_ROOT <= result.ci[1]
    assert found >= 0.95 * simulations
    assert covered >= 0.85 * found


def test_noise_alone_rarely_crosses(make_curve: Make) -> None:
    claims = 0
    simulations = 120
    for case in range(simulations):
        noise = {"document_noise": 0.08, "seed_noise": 0.02, "documents": 60, "case": case}
        claims += (
            find_crossing(
                group(make_curve, HOLDER, "a", seeds=4, **noise),
                group(make_curve, HOLDER, "b", seeds=4, **noise),
                draws=200,
                seed=case,
            ).status
            != "not reached"
        )
    assert claims <= 0.12 * simulations


def test_always_ahead_is_not_called_a_crossing(make_curve: Make) -> None:
    result = find_crossing(group(make_curve, HOLDER, "a"), group(make_curve, HOLDER - 0.5, "b"))
    assert result.status == "always ahead" and result.root is None


def test_a_lead_that_is_lost_again_is_told_and_not_claimed(make_curve: Make) -> None:
    flat = np.full(POINTS, HOLDER[POINTS // 2])
    for challenger in (flat, np.where(X < 0.15, HOLDER + 0.1, flat)):
        result = find_crossing(group(make_curve, HOLDER, "a"), group(make_curve, challenger, "b"))
        assert result.status == "not reached" and result.lost_again and result.lead_bits < 0
        assert "behind again" in sentence(result, "b", "a")


def test_a_lead_at_the_last_point_only_is_told_and_not_claimed(make_curve: Make) -> None:
    last = HOLDER + 0.2
    last[-1] = HOLDER[-1] - 0.3
    result = find_crossing(group(make_curve, HOLDER, "a"), group(make_curve, last, "b"))
    assert result.status == "not reached" and result.leads_at_end_only
    assert "last measurement" in sentence(result, "b", "a")


def test_overfitting_again_does_not_take_a_best_so_far_back_but_the_same_epoch_sees_it(make_curve: Make) -> None:
    overfit = np.concatenate([HOLDER[:8], np.full(8, HOLDER[7]) + 0.4 * np.arange(1, 9)])
    challenger = np.full(POINTS, HOLDER[7] + 0.3) + np.linspace(0.3, 0, POINTS)
    fair = find_crossing(group(make_curve, overfit, "a"), group(make_curve, challenger, "b"))
    latest = find_crossing(
        group(make_curve, overfit, "a"), group(make_curve, challenger, "b"), axis="epochs", best_so_far=False
    )
    assert fair.status == "not reached"
    assert latest.lead_bits > 1 and latest.status != "not reached"


def test_final_points_within_half_a_percent_belong_together(make_curve: Make) -> None:
    grid = np.geomspace(1e9, 1e12, POINTS)
    later = make_curve(CHALLENGER, arm="b", flops_E=grid * 1.003)
    result = find_crossing([make_curve(HOLDER, arm="a", flops_E=grid)], [later])
    assert result.points == POINTS
    assert result.lead_bits == pytest.approx(HOLDER[-1] - CHALLENGER[-1])


def test_other_documents_or_no_common_compute_is_an_error(make_curve: Make) -> None:
    with pytest.raises(RunError, match="different documents"):
        find_crossing([make_curve(HOLDER)], [make_curve(HOLDER, case=1)])
    with pytest.raises(RunError, match="common number"):
        find_crossing([make_curve([3.0], flops_E=[1e9])], [make_curve([3.0], flops_E=[5e9])])


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_resampled_seeds_show_the_variance_of_a_mean(seeds: int) -> None:
    values = stream(0, "values").standard_normal(seeds)
    weights = resample_seeds(stream(0, "draws"), seeds, 40_000)
    assert np.allclose(weights.sum(1), 1) and np.allclose(weights[0], 1 / seeds)
    assert (weights[1:] @ values).var() == pytest.approx(values.var(ddof=1) / seeds, rel=0.05)
