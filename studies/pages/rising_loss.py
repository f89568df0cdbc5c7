"""The page of the rising-loss study: held-out loss and a downstream task through runs that overfit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from numpy.typing import NDArray
from pages.place import PAGES, fill, keep, written

from crossover.evidence.compare import resample_documents
from crossover.evidence.curves import Curve, curve, headline_mode
from crossover.evidence.tracking import downstream_settings
from crossover.evidence.view import read_view

TASK, CHANCE, DRAWS = "blimp", 0.5, 4000
# What is read of each arm: on dev, and of the task its accuracy and its gold endings.
TITLES = {"dev": "dev, bits per byte", "accuracy": "BLiMP accuracy", "gold": "gold sentences, bits per byte"}


def write_rising_loss(folder: Path) -> None:
    """Write the page of the rising-loss study.

    Args:
        folder: The finished study, all checkpoints of its runs scored at BLiMP.
    """
    curves = _curves(folder)
    rows = [row for arm in curves["dev"] for row in _rows(arm, {name: arms[arm] for name, arms in curves.items()})]
    head = ("arm", "read by", "measure", "epoch of its lowest dev loss", "there", "at the end", "change")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(_line(row) for row in rows)]
    fill("rising_loss.md", "table", "\n".join(lines))
    tracks = {name: {arm: _track(name, group) for arm, group in arms.items()} for name, arms in curves.items()}
    keep("rising_loss.json", {"changes": rows, "curves": tracks})
    draw_rising_loss(tracks)


def _curves(folder: Path) -> dict[str, dict[str, list[Curve]]]:
    """Read the curves of dev, accuracy and gold endings of each arm, seed by seed."""
    by_measure = {setting.unit: setting for setting in downstream_settings([folder], TASK)}
    units = {"accuracy": next(unit for unit in by_measure if "byte" not in unit),
             "gold": next(unit for unit in by_measure if "byte" in unit)}  # fmt: skip
    arms = read_view(folder).arms
    dev = {
        arm: sorted((found for run in runs if (found := curve(arm, run, headline_mode(runs)[0]))), key=lambda c: c.seed)
        for arm, runs in arms.items()
    }
    task = {name: {arm: list(by_measure[unit].arms[arm]) for arm in arms} for name, unit in units.items()}
    counts = {f"{arm}, seed {one.seed}": len(one.epochs_E) for arm in arms for one in task["gold"][arm]}
    if len(set(counts.values())) > 1:
        told = "; ".join(f"{run}: {count}" for run, count in counts.items())
        raise SystemExit(f"not all checkpoints of all runs were scored at {TASK} ({told}); `crossover eval` goes on")
    return {"dev": dev, **task}


def _rows(arm: str, curves: Mapping[str, Sequence[Curve]]) -> list[dict[str, Any]]:
    """Hold the end of an arm's runs against where each run's dev loss was lowest, item by item."""
    # Only where a checkpoint was kept; the first evaluation comes before it.
    kept = [_nearest(dev, task.epochs_E) for dev, task in zip(curves["dev"], curves["accuracy"], strict=True)]
    lowest = [float(one.epochs_E[at[one.bits_E[at].argmin()]]) for one, at in zip(curves["dev"], kept, strict=True)]
    rows = []
    for name, group in curves.items():
        places = [int(_nearest(one, [epoch])[0]) for one, epoch in zip(group, lowest, strict=True)]
        ends = [int(_nearest(one, [task.epochs_E[-1]])[0]) for one, task in zip(group, curves["accuracy"], strict=True)]
        there_K, end_K = (_resampled(group, at) for at in (places, ends))
        if name == "accuracy":
            there_K, end_K = 1 - there_K, 1 - end_K
        change_K = end_K - there_K
        rows.append({"arm": arm, "procedure": group[0].procedure, "measure": name, "epochs_of_lowest": lowest,
                     "there": float(there_K[0]), "end": float(end_K[0]), "change": float(change_K[0]),
                     "change_interval": [float(end) for end in np.quantile(change_K[1:], [0.025, 0.975])]})  # fmt: skip
    return rows


def _nearest(one: Curve, epochs: Sequence[float] | NDArray[np.float64]) -> NDArray[np.intp]:
    """Find the evaluations of a curve at these epochs; one that is missing is an error of the study."""
    at = np.abs(one.epochs_E[None] - np.asarray(epochs)[:, None]).argmin(1)
    if not np.allclose(one.epochs_E[at], epochs, rtol=0.02):
        raise SystemExit(
            f"{one.arm}, seed {one.seed}: not evaluated at epochs {list(epochs)}; it has {list(one.epochs_E)}"
        )
    return at


def _resampled(group: Sequence[Curve], places: Sequence[int]) -> NDArray[np.float64]:
    nats_SD = np.stack([one.nats_ED[place] for one, place in zip(group, places, strict=True)])
    return resample_documents(nats_SD, group[0].bytes_D, [one.seed for one in group], DRAWS, 0)


def _line(row: Mapping[str, Any]) -> str:
    epochs = ", ".join(f"{epoch:.0f}" for epoch in row["epochs_of_lowest"])
    cells = (row["arm"], row["procedure"], TITLES[row["measure"]], epochs, f"{row['there']:.3f}", f"{row['end']:.3f}")
    return f"| {' | '.join(cells)} | {written(row['change'], row['change_interval'], signed=True)} |"


def _track(name: str, group: Sequence[Curve]) -> dict[str, list[Any]]:
    values = [(1 - one.bits_E if name == "accuracy" else one.bits_E).tolist() for one in group]
    return {"epochs": group[0].epochs_E.tolist(), "seeds": values}


def draw_rising_loss(tracks: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Draw the three measures against epochs: each seed thin, their mean thick."""
    matplotlib.rcParams["svg.hashsalt"] = "rising loss"
    figure, panels = pyplot.subplots(1, 3, figsize=(11.0, 3.6), layout="constrained")
    for panel, (name, arms) in zip(panels, tracks.items(), strict=True):
        for index, (arm, track) in enumerate(arms.items()):
            for seed in track["seeds"]:
                panel.plot(track["epochs"], seed, color=f"C{index}", linewidth=0.7, alpha=0.5)
            panel.plot(track["epochs"], np.mean(track["seeds"], 0), color=f"C{index}", linewidth=2, label=arm)
        panel.set(xlabel="epochs", title=TITLES[name])
    panels[1].axhline(CHANCE, color="0.6", linestyle=":")
    panels[0].legend(frameon=False)
    figure.savefig(PAGES / "rising_loss.svg", metadata={"Date": None})
