"""Crossings over seeds as survival data: a seed that has not crossed by its last measurement is censored there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossover.errors import RunError
from crossover.evidence.crossing import CONFIDENCE, Crossing

# Shape suffixes: N seeds of both settings, A arrangements of them.
# Ten seeds against ten make 184,756 arrangements, which takes well under a second.
EXACT_UP_TO = 200_000
ROUNDING = 1e-9


@dataclass(frozen=True)
class Passage:
    """One seed's crossing, or how far it was followed without one.

    Args:
        seed: The seed.
        at: FLOPs (or what is counted) of the crossing; of the last common measurement where there is none.
        crossed: False for a censored seed.
        before: The challenger led from the first common measurement on: it crossed no later than `at`.
    """

    seed: int
    at: float
    crossed: bool
    before: bool = False


@dataclass(frozen=True)
class Moment:
    """The Kaplan-Meier estimate after one amount of compute.

    Args:
        at: FLOPs (or what is counted).
        at_risk: Seeds that had neither crossed nor been censored before.
        crossed: Seeds that cross here.
        censored: Seeds that are censored here.
        share: Estimated share of seeds that have not crossed by then.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    at: float
    at_risk: int
    crossed: int
    censored: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Survival:
    """How long seeds go without a crossing.

    Args:
        moments: The estimate at each amount where a seed crossed or was censored.
        seeds: Number of seeds.
        crossed: How many crossed.
        last: The largest amount up to which any seed was followed.
        median: Where the share falls to one half; None when it is not reached.
        median_interval: Its 95% interval; an end that the data do not set is None.
    """

    moments: tuple[Moment, ...]
    seeds: int
    crossed: int
    last: float
    median: float | None
    median_interval: tuple[float | None, float | None]


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


def passages_of(crossings: Mapping[int, Crossing]) -> tuple[Passage, ...]:
    """Turn each seed's crossing into survival data; whatever is not an established crossing is censored.

    Args:
        crossings: What was found for each seed.

    Returns:
        Passages in the order of the seeds.
    """
    found = []
    for seed, crossing in sorted(crossings.items()):
        if crossing.status == "crossed" and crossing.root is not None:
            found.append(Passage(seed, crossing.root, True))
        elif crossing.status == "always ahead":
            found.append(Passage(seed, crossing.grid[0], True, before=True))
        else:
            found.append(Passage(seed, crossing.c_max, False))
    return tuple(found)


def kaplan_meier(passages: Sequence[Passage]) -> Survival:
    """Estimate the share of seeds that have not crossed, with Greenwood's variance on the log-log scale.

    S(C) is the product of 1 - d/n over crossings up to C (Kaplan and Meier 1958); the variance of ln S is the sum of
    d / (n (n - d)) (Greenwood 1926), and the interval is S^exp(+-z sqrt(variance) / ln S) (Kalbfleisch and Prentice).
    At S = 0 the formula has no value: the lower end is 0 and the upper end stays what it was. The median's interval
    is that of Brookmeyer and Crowley (1982). Greenwood's variance is 0 before the first crossing, so that alone would
    set a lower end from three seeds; n seeds lie on one side of a median with probability 2^-n, hence none is given
    for fewer than six.

    Args:
        passages: One per seed; at equal amounts crossings come before censorings.

    Returns:
        The estimate.

    Raises:
        RunError: There is no seed, or an amount is not a positive number.
    """
    _check(passages)
    z = _normal_quantile((1 + CONFIDENCE) / 2)
    at_risk, share, variance, high = len(passages), 1.0, 0.0, 1.0
    moments = []
    for at in sorted({passage.at for passage in passages}):
        crossed = sum(passage.crossed for passage in passages if passage.at == at)
        censored = sum(not passage.crossed for passage in passages if passage.at == at)
        low = moments[-1].low if moments else 1.0
        if crossed == at_risk:
            share, low = 0.0, 0.0
        elif crossed:
            share *= 1 - crossed / at_risk
            variance += crossed / (at_risk * (at_risk - crossed))
            width = math.exp(z * math.sqrt(variance) / -math.log(share))
            low, high = share**width, share ** (1 / width)
        moments.append(Moment(at, at_risk, crossed, censored, share, low, high))
        at_risk -= crossed + censored
    crossings = sum(passage.crossed for passage in passages)
    return Survival(tuple(moments), len(passages), crossings, moments[-1].at, *_median(moments))


def _check(passages: Sequence[Passage]) -> None:
    if not passages:
        raise RunError("no seed was followed; survival over seeds needs at least one")
    for passage in passages:
        if not (math.isfinite(passage.at) and passage.at > 0):
            raise RunError(f"seed {passage.seed}: was followed up to {passage.at}; expected a positive finite number")


def _normal_quantile(share: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(share))


def _median(moments: Sequence[Moment]) -> tuple[float | None, tuple[float | None, float | None]]:
    def first(shares: Sequence[float]) -> float | None:
        return next((row.at for row, share in zip(moments, shares, strict=True) if share <= 0.5 + ROUNDING), None)

    begin = next((row.at_risk for row in moments if row.crossed), 0)
    bounded = 2.0**-begin <= (1 - CONFIDENCE) / 2
    low = first([row.low for row in moments]) if bounded else None
    return first([row.share for row in moments]), (low, first([row.high for row in moments]))


def logrank(first: Sequence[Passage], second: Sequence[Passage]) -> LogRank:
    """Test whether two settings cross at the same compute (Mantel 1966; Peto and Peto 1972).

    The excess of a setting's crossings is the sum over its seeds of (crossed - H(at)), with H the Nelson-Aalen
    estimate of both settings together. These scores do not depend on which seed belongs where, so the exact p-value is
    the share of arrangements with an excess as large. It asks that both settings are censored alike: runs of
    one setting that were given less compute than the other's weaken it.

    Args:
        first: Seeds of the first setting.
        second: Seeds of the second, independent of the first.

    Returns:
        The test: exact up to 200,000 arrangements (ten seeds against ten), the chi-square law beyond.

    Raises:
        RunError: A setting has no seed, or an amount is not a positive number.
    """
    _check(first)
    _check(second)
    both = [*first, *second]
    scores_N, variance = _scores(both, len(first))
    excess = float(scores_N[: len(first)].sum())
    crossed = sum(item.crossed for item in first), sum(item.crossed for item in second)
    statistic = excess**2 / variance if variance > 0 else 0.0
    exact = math.comb(len(both), len(first)) <= EXACT_UP_TO
    p_value, smallest = _permuted(scores_N, len(first), excess) if exact else (_chi_square(statistic), 0.0)
    return LogRank(
        seeds=(len(first), len(second)),
        crossed=crossed,
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


def _permuted(scores_N: NDArray[np.float64], firsts: int, excess: float) -> tuple[float, float]:
    chosen = np.fromiter(
        (place for places in combinations(range(len(scores_N)), firsts) for place in places), dtype=np.intp
    )
    size_A = np.abs(scores_N[chosen.reshape(-1, firsts)].sum(1))
    at_least = float((size_A >= abs(excess) - ROUNDING).mean())
    return at_least, float((size_A >= size_A.max() - ROUNDING).mean())


def _chi_square(statistic: float) -> float:
    # One degree of freedom: the square of a standard normal.
    return math.erfc(math.sqrt(statistic / 2))


def survival_sentence(survival: Survival, unit: str) -> str:
    """Say in words how many seeds cross, and by when half of them do.

    Args:
        survival: The estimate.
        unit: What is counted, such as "FLOPs".

    Returns:
        One sentence; a median that is not reached is said to be so.
    """
    told = f"{survival.crossed} of {survival.seeds} seeds cross by {survival.last:.3g} {unit}"
    censored = survival.seeds - survival.crossed
    told += f", {censored} censored" if censored else ""
    if survival.median is None:
        return f"{told}; Kaplan-Meier median not reached"
    low, high = survival.median_interval
    if low is None and high is None:
        return f"{told}; Kaplan-Meier median {survival.median:.3g} {unit} (too few seeds for an interval)"
    low_told = "no lower limit" if low is None else f"{low:.3g}"
    high_told = "not reached" if high is None else f"{high:.3g}"
    return f"{told}; Kaplan-Meier median {survival.median:.3g} {unit} [{low_told}, {high_told}]"


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
