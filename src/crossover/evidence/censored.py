"""Crossings over seeds as survival data: a seed that has not crossed by its last measurement is censored there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from crossover.errors import RunError
from crossover.evidence.crossing import CONFIDENCE, Crossing

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
    check_passages(passages)
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


def check_passages(passages: Sequence[Passage]) -> None:
    """Refuse a setting without seeds, and amounts that no run can have reached.

    Raises:
        RunError: A setting has no seed, or an amount is not a positive number.
    """
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
