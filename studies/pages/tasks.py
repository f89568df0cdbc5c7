"""The page of the downstream tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from pages.place import PAGES, fill, keep

TASKS = ("hellaswag", "arc_easy", "mmlu", "lambada", "blimp")
CHANCE = {"hellaswag": 0.25, "arc_easy": 0.25, "mmlu": 0.25, "lambada": 0.0, "blimp": 0.5}
MEASURES = ("acc", "acc_norm", "acc_bytes", "bits_per_byte")


def write_tasks(run: Path) -> None:
    """Write the page of the downstream tasks."""
    rows = [json.loads(path.read_text("utf-8")) for path in sorted((run / "scores" / "tasks").glob("[!.]*.json"))]
    whole = [row for row in rows if row["card"]["limit"] is None]
    whole.sort(key=lambda row: (TASKS.index(row["task"]), row["procedure"]))
    head = "| task | procedure | items | acc | acc_norm | acc_bytes | bits per byte | contexts cut | seconds | FLOPs |"
    lines = [head, "|---" * 10 + "|", *(_task_line(row) for row in whole)]
    fill("tasks.md", "table", "\n".join(lines))
    keep("tasks.json", [{key: value for key, value in row.items() if key != "answers"} for row in whole])
    draw_tasks(whole)


def _task_line(row: Mapping[str, Any]) -> str:
    card = row["card"]
    named = row["procedure"] + (f", {card['draws']} draws" if not card["exact"] else "")
    cells = [_measure(row["measures"].get(name)) for name in MEASURES]
    cut = f"{card['contexts_cut'] / card['requests']:.0%}"
    start = f"| {row['task']} | {named} | {row['items']:,} | {' | '.join(cells)}"
    return f"{start} | {cut} | {row['seconds']:,.0f} | {row['flops']:.2g} |"


def _measure(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{found['value']:.4f} ± {found['standard_error']:.4f}"


def draw_tasks(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracy and bits per byte of the right endings, 95% intervals, chance as a line."""
    procedures = list(dict.fromkeys(row["procedure"] for row in rows))
    matplotlib.rcParams["svg.hashsalt"] = "tasks"
    figure, panels = pyplot.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    for panel, name, title in zip(panels, ("acc", "bits_per_byte"), ("accuracy", "bits per byte"), strict=True):
        for index, procedure in enumerate(procedures):
            shown = [row for row in rows if row["procedure"] == procedure and name in row["measures"]]
            panel.errorbar(
                [row["measures"][name]["value"] for row in shown],
                [TASKS.index(row["task"]) + 0.18 * index for row in shown],
                xerr=[1.96 * row["measures"][name]["standard_error"] for row in shown],
                fmt="osd^v"[index % 5],
                capsize=2,
                label=procedure,
            )
        panel.set(yticks=range(len(TASKS)), yticklabels=TASKS, xlabel=title)
        panel.invert_yaxis()
    for place, task in enumerate(TASKS):
        panels[0].plot([CHANCE[task]] * 2, [place - 0.2, place + 0.55], color="0.6", linestyle=":")
    panels[1].legend(frameon=False)
    figure.savefig(PAGES / "tasks.svg", metadata={"Date": None})
