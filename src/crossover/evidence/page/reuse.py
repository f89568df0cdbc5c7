"""How often each arm saw the text, and as what: the data reuse ledger drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossover.evidence.page.drawing import Figure, Sheet, colour_of, figure_of, legend_below, short
from crossover.evidence.page.steering import PLACES


def reuse_figure(ledger: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the epochs of the unique text that each objective of each arm had.

    Args:
        ledger: Rows of the report's ledger, one per run.

    Returns:
        The figure, or None before any run has recorded its exposures.
    """
    epochs = _epochs(ledger)
    if not epochs:
        return None
    objectives = list(dict.fromkeys(name for shares in epochs.values() for name in shares))
    arms = list(epochs)

    def draw(sheet: Sheet) -> None:
        axes, left = sheet.panels[0], np.zeros(len(arms))
        places = np.arange(len(arms))[::-1]
        for place, name in enumerate(objectives):
            width = np.array([epochs[arm].get(name, 0.0) for arm in arms])
            axes.barh(places, width, left=left, color=colour_of(PLACES.get(name, 3 + place)), alpha=0.75, label=name,
                      height=0.62)  # fmt: skip
            left = left + width
        for at, total in zip(places, left, strict=True):
            axes.text(total, at, f" {total:.3g}", va="center", fontsize=9)
        axes.set_yticks(places, [short(arm) for arm in arms])
        axes.set_xlim(0, float(left.max()) * 1.12 or 1.0)
        axes.set_xlabel("epochs of the unique text")
        legend_below(sheet, *axes.get_legend_handles_labels())

    caption = "Exposures by objective, in epochs of the unique text: means over the runs of an arm."
    rows = [(arm, name, shares.get(name, 0.0)) for arm, shares in epochs.items() for name in objectives]
    return figure_of("data-reuse", "How often the text was seen, and as what", caption,
                     (("arm", "objective", "epochs"), rows), draw, height=1.2 + 0.34 * len(arms))  # fmt: skip


def _epochs(ledger: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Average exposures over the runs of each arm, in epochs."""
    by_arm: dict[str, list[dict[str, float]]] = {}
    for row in ledger:
        unique, exposures = row.get("unique_tokens"), row.get("exposures")
        if isinstance(unique, int | float) and unique > 0 and isinstance(exposures, Mapping) and exposures:
            by_arm.setdefault(str(row["arm"]), []).append(
                {str(name): tokens / unique for name, tokens in exposures.items() if isinstance(tokens, int | float)}
            )
    means = {}
    for arm, runs in by_arm.items():
        names = dict.fromkeys(name for run in runs for name in run)
        means[arm] = {name: float(np.mean([run.get(name, 0.0) for run in runs])) for name in names}
    return means
