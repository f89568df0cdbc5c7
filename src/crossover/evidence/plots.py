"""Losses drawn: against compute with crossings and handovers, against epochs mode by mode, and on the test text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.common_grid import MATCHED_WITHIN, losses_at
from crossover.evidence.compare import Comparison
from crossover.evidence.crossing import Crossing
from crossover.evidence.curves import PROCEDURES, Curve
from crossover.evidence.page.drawing import (
    DASHES,
    INK,
    Figure,
    Sheet,
    colour_of,
    figure_of,
    frame,
    legend,
    marker_of,
    plain_logs,
    short,
)

# FLOPs and epochs at which a mix changed, and the kinds of evidence that it changed on (empty for a plan).
Handover = tuple[float, float, str]
# What comes before this share of a run's compute would flatten all that matters.
EARLY_SHARE = 0.1


@dataclass(frozen=True)
class ArmCurves:
    """All curves of an arm.

    Args:
        arm: Its name.
        headline: The mode that it is read in.
        curves: Curves by mode, one per seed.
        handovers: Where its mix changed and why, one list per seed.
        trunks: Where the curves are of decayed points, what the longest runs measured on their way; else none.
    """

    arm: str
    headline: str
    curves: Mapping[str, tuple[Curve, ...]]
    handovers: tuple[tuple[Handover, ...], ...]
    trunks: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)

    @property
    def measured(self) -> Mapping[str, tuple[Curve, ...]]:
        """Curves by mode with every evaluation of the runs on their way."""
        return self.trunks or self.curves


def best_so_far(curve: Curve) -> NDArray[np.float64]:
    """Give the lowest bits per byte up to each evaluation."""
    return np.minimum.accumulate(curve.bits_E)


def mean_curve(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Average best-so-far curves over seeds where all have begun.

    Args:
        curves: One per seed, E evaluations each.

    Returns:
        FLOPs, and bits per byte of each seed there (seeds, FLOPs).
    """
    start = max(curve.flops_E[0] for curve in curves)
    grid = curves[0].flops_E[curves[0].flops_E * (1 + MATCHED_WITHIN) >= start]
    # A seed that has only just begun may have nothing where the first one has already been measured.
    grid = grid if len(grid) else curves[0].flops_E[-1:]
    rows = [losses_at(curve, curve.bits_E[None], grid, "flops", best_so_far=True) for curve in curves]
    return grid, np.concatenate(rows)


def compute_figure(arms: Sequence[ArmCurves], crossings: Mapping[str, Crossing] | None = None) -> Figure:
    """Draw best-so-far dev loss against training FLOPs, every arm in every mode.

    Args:
        arms: Their curves.
        crossings: By arm, where it passes the arm that all are held against, at matched FLOPs.

    Returns:
        The figure.
    """
    found = {arm: one for arm, one in (crossings or {}).items() if one.status == "crossed" and one.root is not None}

    def draw(sheet: Sheet) -> None:
        axes = sheet.panels[0]
        spans = [span for index, arm in enumerate(arms) for mode in arm.curves
                 for span in _draw_mode(axes, arm, mode, index)]  # fmt: skip
        frame(axes, spans)
        axes.set_xscale("log")
        _skip_the_beginning(axes, arms)
        for index, arm in enumerate(arms):
            _mark_handovers(axes, arm, index)
            if arm.arm in found:
                _mark_crossing(axes, arm, index, found[arm.arm])
        plain_logs(axes)
        axes.set_xlabel("training FLOPs (logarithmic)")
        axes.set_ylabel("dev bits per byte, best so far")
        legend(sheet, [(index, f"{short(arm.arm)} ({arm.headline})") for index, arm in enumerate(arms)], beside=True)

    marks = " A cross in a bar: where an arm passes the one that it is held against, with its 95% interval."
    decayed = (
        " Each marker is a run whose learning rate decayed at that budget; pale: the longest run on its way there."
        if any(arm.trunks for arm in arms)
        else ""
    )
    caption = (
        "Lower is better. Bold: the mode an arm is read in, mean over seeds, its band from the lowest to the highest "
        "seed. Thin: its other modes. A diamond marks where the mix changes (in the first seed), with the evidence of "
        f"an online decision.{marks if found else ''}{decayed} What is above the frame, or before it, is in the CSV."
    )
    header = ("arm", "seed", "mode", "flops", "flops_6nd", "epochs", "bits_per_byte", "best_so_far")
    table = header, [row for arm in arms for row in _rows(arm)]
    return figure_of("loss-against-compute", "Loss against compute", caption, table, draw, height=4.1)


def _rows(arm: ArmCurves) -> list[tuple[Any, ...]]:
    return [
        (arm.arm, curve.seed, mode, *numbers)
        for mode, curves in arm.curves.items()
        for curve in curves
        for numbers in zip(
            curve.flops_E, curve.flops_6nd_E, curve.epochs_E, curve.bits_E, best_so_far(curve), strict=True
        )
    ]


def _draw_mode(axes: Any, arm: ArmCurves, mode: str, index: int) -> list[tuple[float, float]]:
    """Draw one mode of one arm; give the low and high that the frame should show."""
    colour, curves = colour_of(index), arm.curves[mode]
    grid, bits = mean_curve(curves)
    if mode != arm.headline:
        axes.plot(grid, bits.mean(0), color=colour, lw=0.9, ls=DASHES.get(mode, "-."), alpha=0.7)
        return []
    if len(curves) > 1:
        axes.fill_between(grid, bits.min(0), bits.max(0), color=colour, alpha=0.2, lw=0)
    # A decayed point is a result of its own; of evaluations on the way, a few markers tell the arms apart.
    every = 1 if arm.trunks else max(1, len(grid) // 6)
    if arm.trunks.get(mode):
        way, before = mean_curve(arm.trunks[mode])
        axes.plot(way, before.mean(0), color=colour, lw=0.9, alpha=0.45)
    axes.plot(grid, bits.mean(0), color=colour, lw=2.2, marker=marker_of(index), ms=5, markevery=every)
    later = bits[:, grid >= EARLY_SHARE * grid[-1]]
    return [(float(later.min()), float(later.max()))]


def _skip_the_beginning(axes: Any, arms: Sequence[ArmCurves]) -> None:
    """Begin where the first curve comes down into the frame."""
    top, entries, ends = axes.get_ylim()[1], [], []
    for arm in arms:
        grid, bits = mean_curve(arm.curves[arm.headline])
        mean = bits.mean(0)
        first = int(np.argmax(mean <= top))
        at = _log(grid[first])
        if first > 0:
            share = (mean[first - 1] - top) / max(mean[first - 1] - mean[first], 1e-12)
            at = _log(grid[first - 1]) + share * (at - _log(grid[first - 1]))
        entries.append(float(np.exp(at)))
        ends.append(float(grid[-1]))
    low, high = min(entries), max(ends)
    if low < high:
        room = (high / low) ** 0.03
        axes.set_xlim(low / room, high * room)


def _log(flops: Any) -> Any:
    """Take the logarithm; an evaluation before the first step has spent nothing."""
    return np.log(np.maximum(flops, 1.0))


def _height(arm: ArmCurves, flops: float) -> float:
    """Read the mean curve of an arm at a compute."""
    grid, bits = mean_curve(arm.curves[arm.headline])
    return float(np.interp(_log(flops), _log(grid), bits.mean(0)))


def _mark_handovers(axes: Any, arm: ArmCurves, index: int) -> None:
    colour = colour_of(index)
    for flops, _, label in (moment for moments in arm.handovers[:1] for moment in moments):
        if label:
            axes.axvline(flops, color=colour, lw=1, ls=":", alpha=0.9)
            axes.text(flops, 0.98, f" {label}", transform=axes.get_xaxis_transform(), rotation=90, fontsize=8,
                      color=colour, ha="right", va="top", clip_on=True)  # fmt: skip
        axes.plot([flops], [_height(arm, flops)], marker="D", ms=9, mfc="none", mec=colour, mew=2)


def _mark_crossing(axes: Any, arm: ArmCurves, index: int, found: Crossing) -> None:
    root = float(found.root or 0.0)
    low, high = found.ci or (root, root)
    height = _height(arm, root)
    axes.axvspan(low, high, color=colour_of(index), alpha=0.1, lw=0)
    axes.plot([low, high], [height, height], color=INK, lw=1.4, marker="|", ms=9, zorder=5)
    axes.plot([root], [height], marker="X", ms=10, mfc=colour_of(index), mec=INK, mew=1.2, zorder=6)


def epochs_figure(arms: Sequence[ArmCurves]) -> Figure:
    """Draw raw dev loss against epochs: one panel per mode, nothing smoothed, nothing best-so-far."""
    modes = list(dict.fromkeys(mode for arm in arms for mode in arm.measured))

    def draw(sheet: Sheet) -> None:
        for axes, mode in zip(sheet.panels, modes, strict=True):
            spans = []
            for index, arm in enumerate(arms):
                for curve in arm.measured.get(mode, ()):
                    axes.plot(curve.epochs_E, curve.bits_E, color=colour_of(index), lw=1.1, marker=marker_of(index),
                              ms=3, markevery=max(1, len(curve.epochs_E) // 40))  # fmt: skip
                    later = curve.bits_E[curve.epochs_E >= EARLY_SHARE * curve.epochs_E[-1]]
                    spans.append((float(later.min()), float(later.max())))
                for _, epochs, _ in arm.handovers[0] if arm.handovers else ():
                    axes.axvline(epochs, color=colour_of(index), lw=1, ls=":", alpha=0.9)
            frame(axes, spans)
            axes.set_title(f"{mode}: {PROCEDURES.get(mode, mode)}", loc="left", fontsize=10)
            axes.set_ylabel("dev bits per byte")
        sheet.panels[-1].set_xlabel("epochs of the unique text")
        legend(sheet, [(index, short(arm.arm)) for index, arm in enumerate(arms)])

    caption = (
        "Every evaluation of every seed, not smoothed. A loss that rises again is overfitting. Dotted: a handover."
    )
    rows = [
        (arm.arm, curve.seed, mode, epochs, bits)
        for mode in modes
        for arm in arms
        for curve in arm.measured.get(mode, ())
        for epochs, bits in zip(curve.epochs_E, curve.bits_E, strict=True)
    ]
    table = ("arm", "seed", "mode", "epochs", "bits_per_byte"), rows
    return figure_of("loss-against-epochs", "Each mode against epochs", caption, table, draw,
                     height=0.8 + 2.5 * len(modes), panels=[1.0] * len(modes))  # fmt: skip


def scores_figure(comparison: Comparison, order: Sequence[str]) -> Figure:
    """Draw the test scores with their intervals.

    Args:
        comparison: The arms, the best first.
        order: All arms in the order of their colours.

    Returns:
        The figure.
    """

    def draw(sheet: Sheet) -> None:
        axes = sheet.panels[0]
        for place, score in enumerate(reversed(comparison.arms)):
            index = order.index(score.arm)
            axes.plot(score.interval, [place, place], color=colour_of(index), lw=2.4)
            face = colour_of(index) if score.exact else "none"
            axes.plot([score.bits_per_byte], [place], marker=marker_of(index), ms=8, mfc=face, mec=colour_of(index))
        axes.set_yticks(range(len(comparison.arms)), [short(score.arm) for score in reversed(comparison.arms)])
        axes.set_ylim(-0.6, len(comparison.arms) - 0.4)
        axes.set_xlabel("test bits per byte" + ("" if sheet.narrow else " (95% interval over documents and seeds)"))

    caption = (
        "With 95% intervals over documents and seeds. Hollow: an upper bound. Intervals of single arms overlap more "
        "than the paired differences in the table, because all arms were scored on the same documents."
    )
    header = ("arm", "mode", "exact", "bits_per_byte", "low", "high", "difference", "difference_low", "difference_high")
    rows = [
        (score.arm, score.procedure, score.exact, score.bits_per_byte, *score.interval, score.difference,
         *score.difference_interval)
        for score in comparison.arms
    ]  # fmt: skip
    return figure_of("test-scores", "Test scores", caption, (header, rows), draw,
                     height=0.9 + 0.36 * len(comparison.arms))  # fmt: skip
