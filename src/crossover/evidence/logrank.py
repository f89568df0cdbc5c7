"""The log-rank test: whether the seeds of one setting cross earlier than those of another, over one pair or many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.censored import ROUNDING, Passage, check_passages
from crossover.evidence.crossing import CONFIDENCE

# Shape suffixes: N seeds of both settings of a pair, A arrangements of them.
# Ten seeds against ten make 184,756 arrangements, which takes well under a second.
EXACT_UP_TO = 200_000


@dataclass(frozen=True)
class LogRank:
    """Whether the seeds of one setting cross earlier than those of another.

    Args:
        seeds: Seeds of the first and of the second setting.
        crossed: How many of them crossed.
        expected: How many would have, had both settings one law.
        statistic: Squared standardised excess of the first setting's crossings.
        p_value: Two-sided probability of so large an excess by chance.
        smallest_p_value: The least that these seeds can give by permutation, 0 under the chi-square law.
        method: Where the p-value comes from.
        earlier: The setting that crosses earlier than expected: "first", "second" or "neither".
    """

    seeds: tuple[int, int]
    crossed: tuple[int, int]
    expected: tuple[float, float]
    statistic: float
    p_value: float
    smallest_p_value: float
    method: Literal["exact permutation", "chi-square"]
    earlier: Literal["first", "second", "neither"]


def logrank(first: Sequence[Passage], second: Sequence[Passage]) -> LogRank:
    """Test whether two settings cross at the same compute; see `stratified_logrank`, of which this is the one pair.

    Args:
        first: Seeds of the first setting.
        second: Seeds of the second, independent of the first.

    Returns:
        The test: exact up to 200,000 arrangements (ten seeds against ten), the chi-square law beyond.

    Raises:
        RunError: A setting has no seed, or an amount is not a positive number.
    """
    return stratified_logrank([(first, second)])


def stratified_logrank(pairs: Sequence[tuple[Sequence[Passage], Sequence[Passage]]]) -> LogRank:
    """Test over several pairs whether first settings cross earlier than second ones (Mantel 1966; Peto and Peto 1972).

    The excess of a setting's crossings is the sum over its seeds of (crossed - H(at)), with H the Nelson-Aalen
    estimate of both settings of the pair together; excesses and variances are added over pairs. The scores do not
    depend on which seed of a pair belongs where, so the exact p-value is the share of arrangements, made
    within each pair, with a sum as large. Amounts of different pairs are never compared. It asks that both settings of
    a pair are censored alike: runs that were given less compute than the other's weaken it.

    Args:
        pairs: Seeds of the first and of the second setting of each pair, all independent.

    Returns:
        The test: exact up to 200,000 arrangements in all, the chi-square law beyond.

    Raises:
        RunError: A setting has no seed, or an amount is not a positive number.
        ValueError: There is no pair.
    """
    if not pairs:
        raise ValueError("there is no pair of settings to compare")
    for passages in (side for pair in pairs for side in pair):
        check_passages(passages)
    found = [_scores([*first, *second], len(first)) for first, second in pairs]
    strata = [(scores_N, len(first)) for (scores_N, _), (first, _) in zip(found, pairs, strict=True)]
    excess = sum(float(scores_N[:firsts].sum()) for scores_N, firsts in strata)
    variance = sum(variance for _, variance in found)
    statistic = excess**2 / variance if variance > 0 else 0.0
    exact = math.prod(math.comb(len(scores_N), firsts) for scores_N, firsts in strata) <= EXACT_UP_TO
    p_value, smallest = _permuted(strata, excess) if exact else (_chi_square(statistic), 0.0)
    crossed = [sum(item.crossed for pair in pairs for item in pair[side]) for side in (0, 1)]
    return LogRank(
        seeds=(sum(len(first) for first, _ in pairs), sum(len(second) for _, second in pairs)),
        crossed=(crossed[0], crossed[1]),
        expected=(crossed[0] - excess, crossed[1] + excess),
        statistic=statistic,
        p_value=p_value,
        smallest_p_value=smallest,
        method="exact permutation" if exact else "chi-square",
        earlier="neither" if abs(excess) < ROUNDING else "first" if excess > 0 else "second",
    )


def _scores(both: Sequence[Passage], firsts: int) -> tuple[NDArray[np.float64], float]:
    """Give each seed's log-rank score, and the hypergeometric variance of the first setting's sum."""
    at_N = np.array([item.at for item in both])
    crossed_N = np.array([item.crossed for item in both])
    in_first_N = np.arange(len(both)) < firsts
    hazard_N, variance = np.zeros(len(both)), 0.0
    for at in np.unique(at_N[crossed_N]):
        followed_N = at_N >= at
        n, d = int(followed_N.sum()), int((crossed_N & (at_N == at)).sum())
        hazard_N[followed_N] += d / n
        share = int((followed_N & in_first_N).sum()) / n
        variance += d * share * (1 - share) * (n - d) / (n - 1) if n > 1 else 0.0
    return crossed_N - hazard_N, variance


def _permuted(strata: Sequence[tuple[NDArray[np.float64], int]], excess: float) -> tuple[float, float]:
    """Give the share of arrangements whose summed excess is as large as this one, and as the largest."""
    sums_A = np.zeros(1)
    for scores_N, firsts in strata:
        places = np.array(list(combinations(range(len(scores_N)), firsts)), dtype=np.intp)
        sums_A = np.add.outer(sums_A, scores_N[places].sum(1)).ravel()
    size_A = np.abs(sums_A)
    return float((size_A >= abs(excess) - ROUNDING).mean()), float((size_A >= size_A.max() - ROUNDING).mean())


def _chi_square(statistic: float) -> float:
    # One degree of freedom: the square of a standard normal.
    return math.erfc(math.sqrt(statistic / 2))


def logrank_sentence(test: LogRank, first: str, second: str, arm: str) -> str:
    """Say in words whether an arm crosses earlier in one setting than in another.

    Args:
        test: The test.
        first: Name of the first setting.
        second: Name of the second.
        arm: Name of the arm that crosses.

    Returns:
        One sentence, with the test that was used and what its seeds can show at all.
    """
    apart = test.p_value <= 1 - CONFIDENCE
    earlier = {"first": (first, second), "second": (second, first)}.get(test.earlier)
    told = f"{arm} crosses earlier in {earlier[0]} than in {earlier[1]}" if apart and earlier else (
        f"{arm}: no difference shown between {first} and {second}"
    )  # fmt: skip
    counts = f"{test.crossed[0]} of {test.seeds[0]} and {test.crossed[1]} of {test.seeds[1]} seeds cross"
    told += f" ({counts}; log-rank p = {test.p_value:.3g}, {test.method}"
    if test.smallest_p_value > 1 - CONFIDENCE:
        told += f"; these seeds cannot give less than {test.smallest_p_value:.3g}"
    return f"{told})"
