"""The verdict in one sentence: what a person reads who reads nothing else, with all that would make it false."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossover.evidence.compare import ArmScore, Comparison
from crossover.evidence.plots import ArmCurves, best_so_far

# So many names fit into a sentence; the table has all of them.
NAMED = 3


def headline(comparison: Comparison, *, mismatches: int = 0, missing: int = 0) -> str:
    """Say who wins on the test text, by how much and how sure that is, in one sentence.

    Args:
        comparison: The arms on the test text, the best first.
        mismatches: How many keys differ that should not.
        missing: How many runs of the study are not finished.

    Returns:
        The sentence. It claims no order between arms that cannot be told apart, and says first what weakens it.
    """
    warnings = [
        *([f"not a matched comparison ({mismatches} thing{_s(mismatches)} differ{'' if mismatches > 1 else 's'})"]
          if mismatches else []),
        *([f"preliminary ({missing} run{_s(missing)} missing)"] if missing else []),
    ]  # fmt: skip
    told = _told(comparison)
    if not warnings:
        return told
    opening = ", ".join(warnings)
    return f"{opening[0].upper()}{opening[1:]}: {told}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _told(comparison: Comparison) -> str:
    best, rest = comparison.arms[0], comparison.arms[1:]
    bits = f"{best.bits_per_byte:.3f} bits per byte on test{_bound(best)}"
    if not rest:
        return f"{best.arm} reaches {bits}; there is no other arm to compare it with."
    level = [score for score in rest if not score.apart]
    if level:
        verb = "has" if len(level) == 1 else "have"
        numbers = f"{level[0].bits_per_byte:.3f}" if len(level) == 1 else f"{level[0].bits_per_byte:.3f} or more"
        others = _names(level)
        told = f"{best.arm} and {others} cannot be told apart: {best.arm} has {bits}, {others} {verb} {numbers}"
        apart = [score for score in rest if score.apart and score.arm == comparison.autoregressive]
        return f"{told}{f'; {best.arm} has {_less(apart[0])}' if apart else ''}."
    nearest = rest[0]
    told = f"{best.arm} is best on this text: {bits}, {_less(nearest)}"
    plain = next((score for score in rest[1:] if score.arm == comparison.autoregressive), None)
    return f"{told}{f' and {_less(plain)}' if plain else ''}."


def _less(score: ArmScore) -> str:
    low, high = score.difference_interval
    return f"{score.difference:.3f} [{low:.3f}, {high:.3f}] less than {score.arm}{_bound(score)}"


def _bound(score: ArmScore) -> str:
    return "" if score.exact else " (an upper bound)"


def _names(scores: Sequence[ArmScore]) -> str:
    names = [score.arm for score in scores[:NAMED]]
    more = [f"{len(scores) - NAMED} more"] if len(scores) > NAMED else []
    *first, last = [*names, *more]
    return f"{', '.join(first)} and {last}" if first else last


def standing(curves: Sequence[ArmCurves], *, finished: int, planned: int) -> str:
    """Say how a study stands before any run has been scored on the test text.

    Args:
        curves: What was measured on dev.
        finished: Runs that are finished.
        planned: Runs that there should be.

    Returns:
        One sentence; dev losses of runs under way say who is ahead now, not who will be.
    """
    opening = f"No verdict yet: {finished} of {planned} run{_s(planned)} {'has' if planned == 1 else 'have'} finished"
    if not curves:
        return f"{opening}."
    lows = [float(np.mean([best_so_far(curve)[-1] for curve in arm.curves[arm.headline]])) for arm in curves]
    place = int(np.argmin(lows))
    arm = curves[place]
    reached = max(float(curve.flops_E[-1]) for curve in arm.curves[arm.headline])
    lowest = "the lowest dev loss so far has" if len(curves) > 1 else "on dev so far"
    if len(curves) == 1:
        return f"{opening}; {lowest}, {arm.arm} has {lows[place]:.3f} bits per byte after {reached:.2g} FLOPs."
    return f"{opening}; {lowest} {arm.arm}, {lows[place]:.3f} bits per byte after {reached:.2g} FLOPs."
