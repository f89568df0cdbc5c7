"""Decisions under the curve: held-out loss, the mix and the readings of one run over the same epochs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossover.evidence.page.drawing import DASHES, Figure, Sheet, colour_of, figure_of, frame
from crossover.evidence.page.readings import STRIPS, Trace, strips_of, traces_of
from crossover.evidence.record import RunRecord
from crossover.evidence.view import View, changes, evidence_of

# Objectives and the mode that asks for the same have one colour.
PLACES = {"autoregressive": 0, "ar": 0, "masked": 1, "nelbo": 1, "l2r": 2}
# So many runs have their decisions drawn; the table below has all of them.
MOST_FIGURES = 10
# How much higher the loss is drawn than a strip of readings.
LOSS_HEIGHT = 2.2


@dataclass(frozen=True)
class Steered:
    """What is drawn of a run.

    Args:
        losses: By mode, epochs and bits per byte.
        mixes: Epochs from which on a mix was in force, the last one being the end of the run.
        marks: Epochs of its changes, with their evidence.
        strips: Readings by family.
        thresholds: Levels that the controller holds readings against.
    """

    losses: Mapping[str, tuple[list[float], list[float]]]
    mixes: Sequence[tuple[float, Mapping[str, float]]]
    marks: Sequence[tuple[float, str]]
    strips: Mapping[str, Sequence[Trace]]
    thresholds: Mapping[str, float]

    @property
    def objectives(self) -> tuple[str, ...]:
        """All objectives that ever had a share."""
        return tuple(dict.fromkeys(name for _, mix in self.mixes for name in mix))


def steering_figures(view: View) -> tuple[list[Figure], list[str]]:
    """Draw the decisions of the first run of each arm that has any, or whose signals were read.

    Args:
        view: The runs.

    Returns:
        The figures, and sentences on what could not be drawn.
    """
    figures, notes = [], []
    for arm, runs in view.arms.items():
        for run in runs:
            traces, why = traces_of(run.path)
            if why:
                notes.append(f"{arm}, seed {run.recipe.get('seed')}: no readings: {why}")
            if traces or changes(run):
                name = f"decisions-{len(figures) + 1}-{re.sub('[^A-Za-z0-9_-]+', '-', arm)[:40]}"
                figures.append(_figure(name, f"{arm}, seed {run.recipe.get('seed')}", _steered(run, traces)))
                break
    if len(figures) > MOST_FIGURES:
        notes.append(f"{len(figures) - MOST_FIGURES} more arms have decisions; the table has them")
    return figures[:MOST_FIGURES], notes


def _steered(run: RunRecord, traces: Mapping[str, Trace]) -> Steered:
    losses: dict[str, tuple[list[float], list[float]]] = {}
    for row in run.evals:
        if row.get("split", "dev") == "dev" and isinstance(row.get("bits_per_byte"), int | float):
            epochs, bits = losses.setdefault(str(row["procedure"]), ([], []))
            epochs.append(float(row["epochs"]))
            bits.append(float(row["bits_per_byte"]))
    told = [row for row in run.decisions if isinstance(row.get("mix"), Mapping)]
    mixes = [(float(row.get("epochs") or 0), row["mix"]) for row in told]
    ends = [run.ledger.get("epochs"), *(epochs[-1] for epochs, _ in losses.values()), *(at for at, _ in mixes)]
    end = max((float(at) for at in ends if isinstance(at, int | float)), default=0.0)
    thresholds: dict[str, float] = {}
    for row in run.decisions:
        held = (row.get("details") or {}).get("thresholds")
        pairs = held.items() if isinstance(held, Mapping) else ()
        thresholds |= {key: float(level) for key, level in pairs if isinstance(level, int | float)}
    return Steered(
        losses,
        [*mixes, (end, mixes[-1][1])] if mixes else [],
        [(float(row["epochs"]), " + ".join(evidence_of(row)) or "plan") for row in changes(run)],
        strips_of(traces),
        thresholds,
    )


def _figure(name: str, title: str, told: Steered) -> Figure:
    def draw(sheet: Sheet) -> None:
        _draw_losses(sheet.panels[0], told)
        _draw_mixes(sheet.panels[1], told)
        for axes, (family, traces) in zip(sheet.panels[2:], told.strips.items(), strict=True):
            _draw_strip(axes, family, traces, told.thresholds)
        end = max((at for at, _ in told.mixes), default=0.0)
        for axes in sheet.panels:
            axes.set_xlim(0, end * 1.02 or 1.0)
            for epochs, _ in told.marks:
                axes.axvline(epochs, color="#888888", lw=1.2, ls="--", zorder=0)
            if axes is not sheet.panels[-1]:
                axes.tick_params(labelbottom=False)
        sheet.panels[-1].set_xlabel("epochs of the unique text")

    heights = [LOSS_HEIGHT, 0.8, *(1.0 for _ in told.strips)]
    readings = (
        " Novelty: the share of a gear's supervision that the text has not given yet. Bands are one standard error; "
        "faint: a reading that is not ready to be used. Dotted: the level that the controller holds a reading against."
    )
    caption = (
        "One run, the same epochs in every strip. Dashed: where the mix changes, with the evidence of an online "
        f"decision.{readings if told.strips else ''}"
    )
    table = ("what", "name", "epochs", "value", "standard_error", "ready"), _rows(told)
    return figure_of(name, title, caption, table, draw, height=0.5 + 1.15 * sum(heights), panels=heights)


def _draw_losses(axes: Any, told: Steered) -> None:
    spans = []
    for place, (mode, (epochs, bits)) in enumerate(told.losses.items()):
        axes.plot(epochs, bits, color=_colour(mode, place), ls=DASHES.get(mode, "-."), lw=1.8, label=mode)
        later = [loss for at, loss in zip(epochs, bits, strict=True) if at >= 0.1 * epochs[-1]]
        spans.append((min(later), max(later)))
    frame(axes, spans)
    for epochs, label in told.marks:
        if label != "plan":
            axes.text(epochs, 0.97, f"{label} ", transform=axes.get_xaxis_transform(), rotation=90, fontsize=8,
                      ha="right", va="top", clip_on=True)  # fmt: skip
    _title(axes, "dev bits per byte")


def _draw_mixes(axes: Any, told: Steered) -> None:
    epochs, floor = [at for at, _ in told.mixes], np.zeros(len(told.mixes))
    for place, name in enumerate(told.objectives):
        top = floor + np.array([float(mix.get(name, 0.0)) for _, mix in told.mixes])
        axes.fill_between(epochs, floor, top, step="post", color=_colour(name, place), alpha=0.55, lw=0, label=name)
        floor = top
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1])
    _title(axes, "share of the mix")


def _draw_strip(axes: Any, family: str, traces: Sequence[Trace], thresholds: Mapping[str, float]) -> None:
    title, threshold, logarithmic = STRIPS.get(family, (family, "", False))
    for place, trace in enumerate(traces):
        colour, ready = _colour(trace.member, place), trace.ready_N
        value = np.where(ready & ((trace.value_N > 0) | (not logarithmic)), trace.value_N, np.nan)
        # A reading holds until there is another one.
        steps, member = {"drawstyle": "steps-post", "color": colour}, trace.member or "all"
        axes.plot(trace.epochs_N, trace.value_N, **steps, lw=0.8, alpha=0.35)
        axes.plot(trace.epochs_N, value, **steps, lw=1.5, label=member if len(traces) > 1 or trace.member else None)
        axes.fill_between(trace.epochs_N, value - trace.error_N, value + trace.error_N, step="post", color=colour,
                          alpha=0.15, lw=0)  # fmt: skip
    known = np.concatenate([trace.value_N[trace.ready_N] for trace in traces])
    if logarithmic and (known > 0).any():
        _plain_heights(axes, known[known > 0])
    elif len(known):
        low, high = np.quantile(known, [0.02, 0.98])
        frame(axes, [(float(low), float(high))])
        # No power of ten above the panel, where the title stands.
        axes.yaxis.set_major_formatter(lambda amount, _: f"{amount:.3g}".replace("e-0", "e-"))
    if threshold in thresholds:
        axes.axhline(thresholds[threshold], color="#888888", lw=1.2, ls=":")
    _title(axes, title)


def _plain_heights(axes: Any, known: Any) -> None:
    """Write a logarithmic axis in numbers that a person reads."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(float(known.min()) / 1.6, float(known.max()) * 1.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(lambda amount, _: f"{amount:.3g}".replace("e+0", "e"))


def _title(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.tick_params(axis="y", labelsize=8)
    if axes.get_legend_handles_labels()[0]:
        # Right above the panel, where it hides nothing.
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=4, frameon=False, fontsize=8, borderpad=0.1,
                    handlelength=1.4, columnspacing=1.0)  # fmt: skip


def _colour(name: str, place: int) -> str:
    return colour_of(PLACES.get(name, 3 + place))


def _rows(told: Steered) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for mode, (epochs, bits) in told.losses.items():
        rows += [("dev bits per byte", mode, at, loss, "", "") for at, loss in zip(epochs, bits, strict=True)]
    rows += [("share", name, at, float(share), "", "") for at, mix in told.mixes for name, share in mix.items()]
    rows += [("decision", label, at, "", "", "") for at, label in told.marks]
    for trace in (trace for traces in told.strips.values() for trace in traces):
        said = zip(trace.epochs_N, trace.value_N, trace.error_N, trace.ready_N, strict=True)
        rows += [("reading", trace.name, at, value, error, bool(ready)) for at, value, error, ready in said]
    return rows
