"""Figures as SVG that follow the page's light or dark, each with the numbers it was drawn from."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossover.evidence.compare import Comparison
from crossover.evidence.crossing import MATCHED_WITHIN
from crossover.evidence.curves import PROCEDURES, Curve

# Okabe and Ito's colours (told apart by colour-blind eyes) that show on white and on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#9A7D0A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = {"ar": "-", "l2r": "--", "nelbo": ":"}
# Matplotlib draws text in this colour; the page replaces it with its own.
INK = "#010203"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "crossover",
    "font.family": "sans-serif",
    "font.size": 11,
    # A `$` in an arm's name is a dollar, not mathematics.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


# FLOPs and epochs at which a mix changed, and the kinds of evidence that it changed on (empty for a plan).
Handover = tuple[float, float, str]


@dataclass(frozen=True)
class Figure:
    """A figure and what it shows.

    Args:
        name: File stem, such as "loss-against-compute".
        title: What it is.
        caption: How to read it.
        svg: For the page: no fixed size, the page's text colour.
        csv: The numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    svg: str
    csv: str

    @property
    def standalone(self) -> str:
        """The figure as a file: black on white."""
        white = '<rect width="100%" height="100%" fill="white"/>'
        body = self.svg.replace("currentColor", "#000000")
        return '<?xml version="1.0" encoding="utf-8"?>\n' + re.sub(r"(<svg[^>]*>)", rf"\1{white}", body, count=1)


@dataclass(frozen=True)
class ArmCurves:
    """All curves of an arm.

    Args:
        arm: Its name.
        headline: The mode that it is read in.
        curves: Curves by mode, one per seed.
        handovers: Where its mix changed and why, one list per seed.
    """

    arm: str
    headline: str
    curves: Mapping[str, tuple[Curve, ...]]
    handovers: tuple[tuple[Handover, ...], ...]


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
    rows = []
    for curve in curves:
        reached = np.searchsorted(curve.flops_E, grid * (1 + MATCHED_WITHIN), side="right") - 1
        rows.append(best_so_far(curve)[np.maximum(reached, 0)])
    return grid, np.stack(rows)


def compute_figure(arms: Sequence[ArmCurves]) -> Figure:
    """Draw best-so-far dev loss against training FLOPs, every arm in every mode."""
    rows: list[tuple[Any, ...]] = []
    with _figure(7.6, 4.6) as (figure, axes):
        tops = []
        for index, arm in enumerate(arms):
            for mode, curves in arm.curves.items():
                for curve in curves:
                    best = best_so_far(curve)
                    rows += [
                        (arm.arm, curve.seed, mode, flops, six, epochs, bits, low)
                        for flops, six, epochs, bits, low in zip(
                            curve.flops_E, curve.flops_6nd_E, curve.epochs_E, curve.bits_E, best, strict=True
                        )
                    ]
                tops += _draw_mode(axes, arm, mode, index)
            _mark_handovers(axes, arm, index)
        axes.set_xscale("log")
        _plain_logs(axes)
        _frame(axes, tops)
        axes.set_xlabel("training FLOPs (logarithmic)")
        axes.set_ylabel("dev bits per byte, best so far")
        _legend(axes, arms)
        svg = _svg(figure, "compute", "Best dev loss so far against training FLOPs")
    caption = (
        "Lower is better. Bold: the mode an arm is read in, mean over seeds, its band from the lowest to the highest "
        "seed. Thin: its other modes. A diamond and a dotted line mark where the mix changes (in the first seed), "
        "with the evidence of an online decision. Losses above the frame are cut off; the CSV has them."
    )
    header = ("arm", "seed", "mode", "flops", "flops_6nd", "epochs", "bits_per_byte", "best_so_far")
    return Figure("loss-against-compute", "Loss against compute", caption, svg, _csv(header, rows))


def _draw_mode(axes: Any, arm: ArmCurves, mode: str, index: int) -> list[tuple[float, float]]:
    """Draw one mode of one arm; give the low and high that the frame should show."""
    colour, curves = COLOURS[index % len(COLOURS)], arm.curves[mode]
    grid, bits = mean_curve(curves)
    if mode != arm.headline:
        axes.plot(grid, bits.mean(0), color=colour, lw=0.9, ls=DASHES.get(mode, "-."), alpha=0.75)
        return []
    if len(curves) > 1:
        axes.fill_between(grid, bits.min(0), bits.max(0), color=colour, alpha=0.2, lw=0)
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(grid, bits.mean(0), color=colour, lw=2.4, marker=marker, ms=5, markevery=max(1, len(grid) // 6))
    # The first tenth of the budget would flatten all that matters.
    later = bits[:, grid >= 0.1 * grid[-1]]
    return [(float(later.min()), float(later.max()))]


def _frame(axes: Any, spans: Sequence[tuple[float, float]]) -> None:
    if spans:
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        room = max(high - low, 0.02 * high)
        axes.set_ylim(low - 0.08 * room, high + 0.12 * room)


def _mark_handovers(axes: Any, arm: ArmCurves, index: int) -> None:
    colour = COLOURS[index % len(COLOURS)]
    curves = arm.curves.get(arm.headline)
    for moments in arm.handovers[:1]:
        for flops, _, label in moments:
            axes.axvline(flops, color=colour, lw=1, ls=":", alpha=0.9)
            if label:
                axes.text(flops, 0.98, f" {label}", transform=axes.get_xaxis_transform(), rotation=90, fontsize=8,
                          color=colour, ha="right", va="top")  # fmt: skip
            if curves:
                grid, bits = mean_curve(curves)
                at = float(np.interp(np.log(flops), np.log(grid), bits.mean(0)))
                axes.plot([flops], [at], marker="D", ms=9, mfc="none", mec=colour, mew=2)


def epochs_figure(arms: Sequence[ArmCurves]) -> Figure:
    """Draw raw dev loss against epochs: one panel per mode, nothing smoothed, nothing best-so-far."""
    modes = list(dict.fromkeys(mode for arm in arms for mode in arm.curves))
    rows: list[tuple[Any, ...]] = []
    with _figure(7.6, 3.0 * max(1, len(modes)), panels=max(1, len(modes))) as (figure, panels):
        for axes, mode in zip(panels, modes, strict=False):
            spans = []
            for index, arm in enumerate(arms):
                for curve in arm.curves.get(mode, ()):
                    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                    axes.plot(curve.epochs_E, curve.bits_E, color=colour, lw=1.2, marker=marker, ms=3)
                    later = curve.bits_E[curve.epochs_E >= 0.1 * curve.epochs_E[-1]]
                    spans.append((float(later.min()), float(later.max())))
                    points = zip(curve.epochs_E, curve.bits_E, strict=True)
                    rows += [(arm.arm, curve.seed, mode, epochs, bits) for epochs, bits in points]
                for _, epochs, _ in arm.handovers[0] if arm.handovers else ():
                    axes.axvline(epochs, color=COLOURS[index % len(COLOURS)], lw=1, ls=":", alpha=0.9)
            _frame(axes, spans)
            axes.set_title(f"{mode}: {PROCEDURES.get(mode, mode)}", loc="left", fontsize=11)
            axes.set_ylabel("dev bits per byte")
        panels[-1].set_xlabel("epochs of the unique text")
        _legend(panels[0], arms)
        svg = _svg(figure, "epochs", "Dev loss of each mode against epochs")
    caption = "Every evaluation of every seed, not smoothed. A loss that rises again is overfitting."
    return Figure(
        "loss-against-epochs", "Each mode against epochs", caption, svg,
        _csv(("arm", "seed", "mode", "epochs", "bits_per_byte"), rows),
    )  # fmt: skip


def scores_figure(comparison: Comparison, order: Sequence[str]) -> Figure:
    """Draw the test scores with their intervals."""
    rows = []
    with _figure(7.6, 0.9 + 0.55 * len(comparison.arms)) as (figure, axes):
        for place, score in enumerate(reversed(comparison.arms)):
            index = order.index(score.arm)
            low, high = score.interval
            axes.plot([low, high], [place, place], color=COLOURS[index % len(COLOURS)], lw=2.4)
            face = COLOURS[index % len(COLOURS)] if score.exact else "none"
            axes.plot([score.bits_per_byte], [place], marker=MARKERS[index % len(MARKERS)], ms=8, mfc=face,
                      mec=COLOURS[index % len(COLOURS)], ls="none")  # fmt: skip
            rows.append((score.arm, score.procedure, score.exact, score.bits_per_byte, low, high, score.difference,
                         *score.difference_interval))  # fmt: skip
        axes.set_yticks(range(len(comparison.arms)), [score.arm for score in reversed(comparison.arms)])
        axes.set_ylim(-0.6, len(comparison.arms) - 0.4)
        axes.set_xlabel("test bits per byte (95% interval over documents and seeds)")
        svg = _svg(figure, "scores", "Test bits per byte of each arm")
    caption = (
        "Hollow: an upper bound. Intervals of single arms overlap more than the paired differences in the table, "
        "because all arms were scored on the same documents."
    )
    header = ("arm", "mode", "exact", "bits_per_byte", "low", "high", "difference", "difference_low", "difference_high")
    return Figure("test-scores", "Test scores", caption, svg, _csv(header, rows[::-1]))


class _figure:
    """A figure of matplotlib's object interface: no global state, no display."""

    def __init__(self, width: float, height: float, *, panels: int = 0) -> None:
        self._size, self._panels = (width, height), panels

    def __enter__(self) -> tuple[Any, Any]:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure as Canvas

        self._settings = matplotlib.rc_context(dict(SETTINGS))
        self._settings.__enter__()
        figure = Canvas(figsize=self._size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(max(1, self._panels), 1, squeeze=False)[:, 0]
        for one in axes:
            one.grid(visible=True, color="#888888", alpha=0.25, lw=0.6)
        return figure, list(axes) if self._panels else axes[0]

    def __exit__(self, *error: object) -> None:
        self._settings.__exit__(None, None, None)


def _legend(axes: Any, arms: Sequence[ArmCurves]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], lw=2.4, ms=5)
        for index in range(len(arms))
    ]
    axes.legend(handles, [f"{arm.arm} ({arm.headline})" for arm in arms], frameon=False, fontsize=10)


def _plain_logs(axes: Any) -> None:
    """Write powers of ten without mathematics, which is switched off."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axes.get_xlim()
    narrow = np.log10(high / low) < 1.5
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+", "e"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _svg(figure: Any, prefix: str, label: str) -> str:
    """Write the figure as SVG that can stand inside a page, with ids that no other figure has."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id=")([^"]+")', rf"\1{prefix}-\2", text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
