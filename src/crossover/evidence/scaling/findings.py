"""All that scaling laws say of measured points: a law per family, how families compare, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from crossover.errors import RunError, nearest
from crossover.evidence.scaling.bootstrap import runs_of
from crossover.evidence.scaling.choice import fit_family, with_overfitting, without_overfitting
from crossover.evidence.scaling.critical import (
    CriticalCompute,
    CriticalExponent,
    critical_compute,
    critical_exponent,
)
from crossover.evidence.scaling.design import distinct, too_few
from crossover.evidence.scaling.fit import FittedLaw, Ratio, fit_law, ratio
from crossover.evidence.scaling.frontier import Frontier, frontier
from crossover.evidence.scaling.laws import FLOPS_PER_PARAMETER_TOKEN, Form, Point
from crossover.evidence.scaling.reading import Measured

# Sizes that are told apart and texts between which a law is fitted, for its terms to be more than its form.
SIZES, TEXTS = 3, 2
# A frontier is shown at so many computes of its data, critical compute on so many texts.
COMPUTES, MOST_TEXTS = 4, 6
# A further size or text should differ by this factor.
STEP = 4.0


@dataclass(frozen=True)
class Findings:
    """What was found.

    Args:
        measured: The points.
        laws: The law of each family that could be fitted.
        upturns: Whether each law needs its overfitting term, in a sentence.
        missing: Why a family has no law, and which runs would give it.
        baseline: The family that others are held against, None with a single law.
        reuse: How many times longer a family can reuse its text than the baseline.
        frontiers: Compute-optimal losses of each family, on the text that most of its points have.
        critical: Where each family passes the baseline, and how that grows with the text.
    """

    measured: Measured
    laws: Mapping[str, FittedLaw]
    upturns: Mapping[str, str]
    missing: Mapping[str, str]
    baseline: str | None
    reuse: Mapping[str, Ratio]
    frontiers: Mapping[str, Frontier]
    critical: Mapping[str, CriticalExponent | CriticalCompute]


def findings_of(
    measured: Measured,
    *,
    form: Form | None = None,
    baseline: str | None = None,
    draws: int = 300,
    seed: int = 0,
) -> Findings:
    """Fit a law to each family and compare the families.

    Args:
        measured: The points.
        form: Which constants are free; the overfitting term is tried by itself.
        baseline: The family that the others are held against; by default next-token training.
        draws: Bootstrap draws.
        seed: Seed of the bootstrap.

    Returns:
        The laws and what follows from them; families with too few runs are told in `missing`.

    Raises:
        RunError: There is no such baseline.
    """
    if baseline is not None and baseline not in measured.points:
        raise RunError(f"no family called '{baseline}'; {nearest(baseline, measured.points)}")
    laws, upturns, missing = {}, {}, {}
    for family, points in measured.points.items():
        if lacking := _lacking(points, form or Form()):
            missing[family] = lacking
        else:
            law, upturns[family] = _fit(points, form or Form(), draws, seed)
            laws[family] = replace(law, mode=measured.modes[family], is_bound=family in measured.bounds)
    chosen = baseline or next((name for name in measured.plain if name in laws), next(iter(laws), None))
    holder = laws.get(chosen) if chosen is not None and len(laws) > 1 else None
    others = {name: law for name, law in laws.items() if holder is not None and name != chosen}
    return Findings(
        measured=measured,
        laws=laws,
        upturns=upturns,
        missing=missing,
        baseline=chosen if others else None,
        reuse={name: ratio(law, holder, "data_reuse") for name, law in others.items() if holder is not None},
        frontiers={name: _frontier(law, measured.points[name]) for name, law in laws.items()},
        critical={name: _critical(measured, holder, law) for name, law in others.items() if holder is not None},
    )


def _fit(points: Sequence[Point], form: Form, draws: int, seed: int) -> tuple[FittedLaw, str]:
    """Fit a family's law, with the overfitting term where there are runs enough to ask for it and it is needed."""
    most = len(with_overfitting(form).free)
    if int(runs_of(points).max()) + 1 > most:
        law, check = fit_family(points, form, draws=draws, seed=seed)
        return law, check.told
    law = fit_law(points, without_overfitting(form), draws=draws, seed=seed)
    return law, f"whether the overfitting term is needed was not asked: that takes more than {most} runs"


def _lacking(points: Sequence[Point], form: Form) -> str:
    """Say what is missing for a law, and which runs would give it; nothing where there is enough."""
    runs, free = int(runs_of(points).max()) + 1, len(without_overfitting(form).free)
    if runs > free and not {"irreducible_nats", "data_coefficient"} <= set(too_few(points, form)):
        return ""
    sizes = sorted({point.parameters for point in points})
    texts = sorted({point.unique_tokens for point in points})
    wanted = []
    if (lack := SIZES - distinct(sizes)) > 0:
        wanted.append(f"sizes such as {_further(sizes, lack)} parameters")
    if (lack := TEXTS - distinct(texts)) > 0:
        wanted.append(f"texts such as {_further(texts, lack)} unique tokens (data.unique_tokens)")
    if len({point.tokens / point.unique_tokens for point in points}) < 2:
        wanted.append("other numbers of epochs (other budgets)")
    further = ", and ".join(wanted) if wanted else "seeds, sizes or texts"
    there = f"{counted(runs, 'run')} of {counted(distinct(sizes), 'size')} on {counted(distinct(texts), 'text')}"
    return (
        f"{there} cannot give a law of {free} constants: it takes {free + 1} runs or more, of {SIZES} sizes and "
        f"{TEXTS} texts or more; add {further}, all with one tokenizer; or hold constants at values that are known"
    )


def counted(count: int, word: str) -> str:
    """Write a count and what is counted, such as "1 run" or "3 runs"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _further(values: Sequence[float], lack: int) -> str:
    """Name values beyond those there are, above and below in turn, as a study could add them."""
    low, high = values[0], values[-1]
    more = [high * STEP, low / STEP, high * STEP**2][:lack]
    return " and ".join(f"{value:.2g}" for value in sorted(more))


def _frontier(law: FittedLaw, points: Sequence[Point]) -> Frontier:
    """Give the frontier on the text that most points have, over the compute that was spent on it."""
    counts = Counter(point.unique_tokens for point in points)
    text = max(counts, key=lambda unique: (counts[unique], unique))
    flops = [
        FLOPS_PER_PARAMETER_TOKEN * point.parameters * point.tokens for point in points if point.unique_tokens == text
    ]
    return frontier(law, text, np.geomspace(min(flops), max(flops), COMPUTES if min(flops) < max(flops) else 1))


def _critical(measured: Measured, holder: FittedLaw, law: FittedLaw) -> CriticalExponent | CriticalCompute:
    """Find critical compute on texts that both families have seen, or on the smaller one's largest without any."""
    sides = [{point.unique_tokens for point in measured.points[each.family]} for each in (holder, law)]
    shared = sorted(sides[0] & sides[1]) or sorted(sides[1])
    if distinct(shared) == 1:
        return critical_compute(holder, law, shared[-1])
    places = np.linspace(0, len(shared) - 1, min(MOST_TEXTS, len(shared)))
    return critical_exponent(holder, law, [shared[round(place)] for place in places])
