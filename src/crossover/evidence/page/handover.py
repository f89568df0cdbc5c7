"""Gradient norms around each change of the mix: drawn step by step, and as means before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossover.evidence.page.drawing import Figure, Sheet, colour_of, figure_of, short
from crossover.evidence.record import RunRecord
from crossover.evidence.view import NEAR_STEPS, View, change_steps

# Steps on each side of a change over which the norm is averaged; all that are kept are drawn.
AROUND_STEPS = 16
# Arms with a panel, and changes of one run in it; the CSV has no more, the table of decisions has all means.
MOST_ARMS, MOST_CHANGES = 6, 4


@dataclass(frozen=True)
class Norms:
    """Gradient norms around one change.

    Args:
        arm: The run's arm.
        seed: Its seed.
        step: The step that the change takes effect in.
        offsets: Steps from there on, negative before it.
        norms: The norm of each, before clipping.
    """

    arm: str
    seed: Any
    step: int
    offsets: tuple[int, ...]
    norms: tuple[float, ...]


def norms_figure(view: View) -> Figure | None:
    """Draw the gradient norm around each change of the mix.

    Args:
        view: The runs; steps.jsonl is read only where a run has a change.

    Returns:
        The figure, or None where no run has a change with norms around it.

    Raises:
        RunError: A steps.jsonl is broken.
    """
    found = {
        place: norms
        for place, (arm, runs) in enumerate(view.arms.items())
        if (norms := [one for run in runs for one in _around(arm, run, view.norms[run.path])])
    }
    if not found:
        return None
    shown = dict(list(found.items())[:MOST_ARMS])

    def draw(sheet: Sheet) -> None:
        for axes, (place, norms) in zip(sheet.panels, shown.items(), strict=True):
            _draw(axes, place, norms)
        sheet.panels[-1].set_xlabel("steps from the change on")

    left = f" {len(found) - len(shown)} more arms change their mix." if len(found) > len(shown) else ""
    caption = (
        "Before clipping. Thin: each change of each seed; bold: their mean. A peak behind the line is what the "
        f"change of the objective does to training.{left}"
    )
    rows = [
        (one.arm, one.seed, one.step, offset, norm)
        for norms in shown.values()
        for one in norms
        for offset, norm in zip(one.offsets, one.norms, strict=True)
    ]
    table = ("arm", "seed", "change_step", "steps_from_change", "grad_norm"), rows
    return figure_of("gradient-norms", "Gradient norms at the handover", caption, table, draw,
                     height=0.6 + 1.5 * len(shown), panels=[1.0] * len(shown))  # fmt: skip


def norms_around(run: RunRecord, recorded: Mapping[int, float]) -> dict[int, tuple[float | None, float | None]]:
    """Average the gradient norm over the 16 steps before and the 16 steps from each change on.

    Args:
        run: The run.
        recorded: Its norms by step.

    Returns:
        The two means by the step that a change takes effect in; None where no norm was recorded.
    """

    def mean(steps: range) -> float | None:
        known = [recorded[step] for step in steps if step in recorded]
        return float(np.mean(known)) if known else None

    # A decision's row carries the step that it takes effect in: that step is the first one after it.
    return {at: (mean(range(at - AROUND_STEPS, at)), mean(range(at, at + AROUND_STEPS))) for at in change_steps(run)}


def _around(arm: str, run: RunRecord, recorded: Mapping[int, float]) -> list[Norms]:
    found = []
    for start in change_steps(run)[:MOST_CHANGES]:
        offsets = tuple(at for at in range(-NEAR_STEPS, NEAR_STEPS + 1) if start + at in recorded)
        norms = tuple(recorded[start + at] for at in offsets)
        # One side alone shows no change.
        if offsets and offsets[0] < 0 <= offsets[-1]:
            found.append(Norms(arm, run.recipe.get("seed"), start, offsets, norms))
    return found


def _draw(axes: Any, place: int, norms: Sequence[Norms]) -> None:
    by_offset: dict[int, list[float]] = {}
    for one in norms:
        axes.plot(one.offsets, one.norms, color=colour_of(place), lw=0.7, alpha=0.5)
        for offset, norm in zip(one.offsets, one.norms, strict=True):
            by_offset.setdefault(offset, []).append(norm)
    if len(norms) > 1:
        offsets = sorted(by_offset)
        axes.plot(offsets, [float(np.mean(by_offset[at])) for at in offsets], color=colour_of(place), lw=2.0)
    axes.axvline(0, color="#888888", lw=1.2, ls="--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("norm")
    count = f"{len(norms)} change{'' if len(norms) == 1 else 's'}"
    axes.set_title(f"{short(norms[0].arm)}: {count}", loc="left", fontsize=9)
