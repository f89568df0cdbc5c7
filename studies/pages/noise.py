"""The page of the noise study: next-token training with noise of three kinds against masked training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from pages.place import PAGES, fill, keep, written

from crossover.evidence.compare import Sample, read_samples, resample_documents
from crossover.evidence.curves import curve, headline_mode
from crossover.evidence.record import RunRecord
from crossover.evidence.view import read_view

PLAIN, MASKED = "autoregressive", "masked"
KINDS = {"inputs": "inputs hidden", "dropout": "dropout at the layers' outputs", "weights": "noise on the weights"}
DRAWS = 4000


def write_noise(folder: Path) -> None:
    """Write the page of the noise study.

    Args:
        folder: The finished study; its arms are called `autoregressive`, `masked` and KIND_PERCENT.
    """
    arms = read_view(folder).arms
    best = read_samples(arms, draws=DRAWS)
    ends, epochs = zip(*(end_on_dev(arm, runs) for arm, runs in arms.items()), strict=True)
    rows = [_row(best[end.arm], best, end, {one.arm: one for one in ends}) for end in ends]
    rows = [{**row, "epoch_of_lowest": epoch} for row, epoch in zip(rows, epochs, strict=True)]
    head = (
        "arm",
        "read by",
        "lowest at epoch",
        "stopped there: test",
        "against next-token",
        "at the end: dev",
        "against masked",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(_line(row) for row in rows)]
    fill("noise.md", "table", "\n".join(lines))
    keep("noise.json", rows)
    draw_noise(rows)


def end_on_dev(arm: str, runs: Sequence[RunRecord]) -> tuple[Sample, float]:
    """Read an arm on dev at the end of its runs, in its headline mode, and resample that.

    Args:
        arm: The arm.
        runs: Its runs.

    Returns:
        The sample, and the mean epoch at which the runs were lowest.
    """
    procedure, exact = headline_mode(runs)
    curves = sorted((found for run in runs if (found := curve(arm, run, procedure))), key=lambda one: one.seed)
    seeds = tuple(one.seed for one in curves)
    bits_K = resample_documents(np.stack([one.nats_ED[-1] for one in curves]), curves[0].bytes_D, seeds, DRAWS, 0)
    epoch = float(np.mean([one.epochs_E[one.bits_E.argmin()] for one in curves]))
    return Sample(arm, procedure, exact, seeds, float("nan"), curves[0].bytes_D, bits_K), epoch


def _row(best: Sample, all_best: Mapping[str, Sample], end: Sample, all_ends: Mapping[str, Sample]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": end.arm, "mode": end.procedure, "exact": end.exact, "seeds": list(end.seeds)}
    for name, mine, other in (("best", best, all_best[PLAIN]), ("end", end, all_ends[MASKED])):
        gap, interval = mine.above(other)
        row |= {name: mine.bits_per_byte, f"{name}_interval": list(mine.interval), f"{name}_against": other.arm,
                f"{name}_difference": gap, f"{name}_difference_interval": list(interval)}  # fmt: skip
    return row


def _line(row: Mapping[str, Any]) -> str:
    mode = row["mode"] if row["exact"] else f"{row['mode']}, a bound"
    cells = [row["arm"], mode, f"{row['epoch_of_lowest']:.0f}"]
    for name in ("best", "end"):
        gap = written(row[f"{name}_difference"], row[f"{name}_difference_interval"], signed=True)
        cells += [written(row[name], row[f"{name}_interval"]), "-" if row["arm"] == row[f"{name}_against"] else gap]
    return f"| {' | '.join(cells)} |"


def draw_noise(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss where each run was best, and at the end, against the amount of each kind of noise."""
    matplotlib.rcParams["svg.hashsalt"] = "noise"
    figure, panels = pyplot.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    by = {row["arm"]: row for row in rows}
    for panel, name, title in zip(
        panels, ("best", "end"), ("test, stopped at the lowest dev loss", "dev, at the end"), strict=True
    ):
        for index, kind in enumerate(KINDS):
            mine = sorted((int(arm.rpartition("_")[2]), row) for arm, row in by.items() if re.match(f"{kind}_", arm))
            shown = [(0, by[PLAIN]), *mine]
            values = [row[name] for _, row in shown]
            spans = [
                [row[name] - row[f"{name}_interval"][0] for _, row in shown],
                [row[f"{name}_interval"][1] - row[name] for _, row in shown],
            ]
            # Side by side: the three kinds have the same amounts.
            places = [amount + 1.2 * (index - 1) for amount, _ in shown]
            panel.errorbar(places, values, yerr=spans, fmt=f"{'os^'[index]}-", capsize=2, label=KINDS[kind])
        panel.axhline(by[MASKED][name], color="0.3", linestyle="--", label="masked training")
        panel.axhspan(*by[MASKED][f"{name}_interval"], color="0.3", alpha=0.15, linewidth=0)
        panel.set(xlabel="noise in %", ylabel="bits per byte", title=title)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=4)
    figure.savefig(PAGES / "noise.svg", metadata={"Date": None})
