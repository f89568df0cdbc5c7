"""What measured points can tell and what not: how many sizes and texts there are, repeats, upturns.

Shape suffix: K starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from crossover.evidence.scaling.laws import Floats, Form, Point

# Sizes and texts closer than this count as one.
ALIKE = 1.02
# A run turns up when it ends this share above its lowest loss.
UPTURN = 0.01
# A reuse constant of more than so many times the repeats in the data is read off a slight bend.
FAR_REUSE = 3.0
# Starts that end within this share of the best objective have found the same fit.
SAME_OPTIMUM = 1e-2


def distinct(values: Sequence[float]) -> int:
    """Count values that differ by more than rounding of sizes."""
    logs = np.sort(np.log(values))
    count, last = 0, -np.inf
    for log in logs:
        if log > last + np.log(ALIKE):
            count, last = count + 1, log
    return count


def too_few(points: Sequence[Point], form: Form) -> dict[str, str]:
    """Say which free constants have too few sizes or texts behind them, whatever the fit seems to say.

    E, A and alpha are told apart by sizes alone, B and beta by amounts of fresh text. The law's saturating terms
    would let the fit tell them apart with fewer, but then the form speaks and not the data.

    Args:
        points: The points.
        form: Which constants are free.

    Returns:
        The reason for each such constant.
    """
    found: dict[str, str] = {}
    texts = distinct([min(point.unique_tokens, point.tokens) for point in points])
    by_size = [n for n in ("irreducible_nats", "size_coefficient", "size_exponent") if n in form.free]
    if form.tied_exponents and texts > 1 and "size_exponent" in by_size:
        # Texts tell the one exponent that there is.
        by_size.remove("size_exponent")
    sizes = distinct([point.parameters for point in points])
    if sizes < len(by_size):
        for name in (*by_size, *(["size_reuse"] if "size_reuse" in form.free else [])):
            found[name] = f"the data have {sizes} size(s) and {len(by_size)} are needed"
    by_text = [n for n in ("data_coefficient", "data_exponent") if n in form.free]
    if texts < len(by_text):
        for name in by_text:
            found[name] = f"the data have {texts} amount(s) of fresh text and {len(by_text)} are needed"
    if "data_reuse" in form.free and sum(point.tokens > 1.5 * point.unique_tokens for point in points) < 2:
        found["data_reuse"] = "fewer than two points have seen their text more than 1.5 times"
    return found


def notes_on(
    points: Sequence[Point], form: Form, data_reuse: float, known: Mapping[str, bool], values_K: Floats
) -> tuple[str, ...]:
    """Say what a reader must know of a fit before its numbers.

    Args:
        points: The points.
        form: Which constants were free.
        data_reuse: R_D* as fitted.
        known: Whether the data pin each constant down.
        values_K: Objective that each start came down to, the best first.

    Returns:
        Sentences, none when all is well.
    """
    reasons, notes = too_few(points, form), []
    for name, identified in known.items():
        if not identified:
            why = reasons.get(name, "the data leave too wide a range of it open")
            notes.append(f"{name.replace('_', ' ')} is not identified: {why}")
    repeats = max(point.tokens / point.unique_tokens for point in points) - 1
    if known.get("data_reuse") and data_reuse > FAR_REUSE * repeats:
        notes.append(f"data reuse {data_reuse:.3g} lies far beyond the {repeats:.3g} repeats in the data")
    up, runs = upturns(points)
    if up and not form.overfitting:
        notes.append(
            f"{up} of {runs} runs end more than {UPTURN:.0%} above their lowest loss, which this form cannot follow: "
            f"add the overfitting term, or fit the best loss so far"
        )
    agreeing = int((values_K <= values_K[0] * (1 + SAME_OPTIMUM) + 1e-6).sum())
    if agreeing == 1 and len(values_K) > 1:
        notes.append(f"only 1 of {len(values_K)} starts found the best fit; another one may be missed")
    return tuple(notes)


def _by_run(points: Sequence[Point]) -> list[list[Point]]:
    """Group points by run and text and size, in the order of tokens."""
    runs: dict[tuple[str, str, int, float, float], list[Point]] = {}
    for each in points:
        runs.setdefault((each.family, each.group, each.seed, each.parameters, each.unique_tokens), []).append(each)
    return [sorted(run, key=lambda each: each.tokens) for run in runs.values()]


def upturns(points: Sequence[Point]) -> tuple[int, int]:
    """Count runs that end above their lowest loss.

    Args:
        points: The points.

    Returns:
        Runs that turn up, and all runs.
    """
    runs = _by_run(points)
    up = [run[-1].loss_nats > (1 + UPTURN) * min(point.loss_nats for point in run) for run in runs]
    return sum(up), len(runs)


def best_so_far(points: Sequence[Point]) -> tuple[Point, ...]:
    """Replace each loss by the lowest of its run up to there: what stopping early would have kept.

    Args:
        points: Points of any families; those of one (group, seed), size and text are one run.

    Returns:
        The points with losses that never rise within a run.
    """
    kept = []
    for run in _by_run(points):
        lowest = np.minimum.accumulate([point.loss_nats for point in run])
        kept += [replace(point, loss_nats=float(loss)) for point, loss in zip(run, lowest, strict=True)]
    return tuple(kept)
