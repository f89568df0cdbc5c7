"""Write the tables and figures of docs/results from finished studies and runs; the prose around them stays.

usage: python studies/results.py controllers stdlib-50k=runs/controllers-stdlib english-50k=runs/transfer-english ...
       python studies/results.py tasks runs/both-modes
       python studies/results.py crossings 10k-small=runs/reproduction-10k-small ...

A page has places such as `<!-- begin stdlib-50k -->` ... `<!-- end stdlib-50k -->`: what is between is replaced.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot, ticker

from crossover.evidence.censored import Passage
from crossover.evidence.crossing_lines import sentence_of
from crossover.evidence.crossings import crossings_of
from crossover.evidence.logrank import logrank_sentence, stratified_logrank

PAGES = Path(__file__).resolve().parent.parent / "docs" / "results"
TASKS = ("hellaswag", "arc_easy", "mmlu", "lambada", "blimp")
CHANCE = {"hellaswag": 0.25, "arc_easy": 0.25, "mmlu": 0.25, "lambada": 0.0, "blimp": 0.5}
MEASURES = ("acc", "acc_norm", "acc_bytes", "bits_per_byte")


def main() -> None:
    """Write a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=("controllers", "tasks", "crossings"))
    parser.add_argument(
        "sources", nargs="+", help="SETTING=STUDY for controllers and crossings, a run folder for tasks"
    )
    options = parser.parse_args()
    named = {name: Path(folder) for name, _, folder in (item.partition("=") for item in options.sources)}
    if options.page == "tasks":
        write_tasks(Path(options.sources[0]))
    elif options.page == "crossings":
        write_crossings(named)
    else:
        write_controllers(named)


def fill(page: str, name: str, text: str) -> None:
    """Replace what stands at a place of a page."""
    path = PAGES / page
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = path.read_text("utf-8").partition(begin)
    if not found or end not in rest:
        raise SystemExit(f"{path}: has no place called {name}")
    path.write_text(f"{before}{begin}{text.strip()}\n{end}{rest.partition(end)[2]}", "utf-8")


def keep(name: str, tree: Any) -> None:
    """Write numbers, to six digits."""
    (PAGES / name).write_text(json.dumps(_short(tree), separators=(",", ":")) + "\n", "utf-8")


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


# ---- controllers


def write_controllers(studies: Mapping[str, Path]) -> None:
    """Write the page of the controller studies."""
    reports = {name: _anonymous(folder) for name, folder in studies.items()}
    for name, (report, text) in reports.items():
        figure = f"controllers-{name}.svg"
        shutil.copy(studies[name] / "report" / "loss-against-compute.svg", PAGES / figure)
        decisions = [line for line in _section(text, "Decisions") if line.startswith(("| arm", "|---", "| online"))]
        parts = [
            report["verdict"],
            f"![Loss against compute]({figure})",
            *_paragraphs(text, "Against the best static arm"),
        ]
        parts += [*_paragraphs(text, "Are the runs matched?"), "What `online` decided:", "\n".join(decisions)]
        fill("controllers.md", name, "\n\n".join(parts))
    fill("controllers.md", "regrets", regrets({name: report for name, (report, _) in reports.items()}))
    wanted = ("verdict", "text", "arms", "regret", "crossings", "decisions", "tuning", "proof")
    keep("controllers.json", {name: {key: report[key] for key in wanted} for name, (report, _) in reports.items()})


def _anonymous(folder: Path) -> tuple[dict[str, Any], str]:
    """Read a report; where its text came from a file, the file's place is nobody's business."""

    def clean(text: str) -> str:
        return re.sub(r"(?<![\w.])/[\w./-]+\.jsonl(\.gz)?", "a text of the user", text)

    return json.loads(clean((folder / "report.json").read_text("utf-8"))), clean(
        (folder / "report.md").read_text("utf-8")
    )


def _section(text: str, title: str) -> list[str]:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    if found is None:
        raise SystemExit(f"the report has no section '{title}'; write it anew with `crossover report`")
    return found[1].strip().splitlines()


def _paragraphs(text: str, title: str) -> list[str]:
    return "\n".join(_section(text, title)).split("\n\n")


def regrets(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Write what each arm loses to the best static arm of each setting, and at worst."""
    rows = {name: {row["arm"]: row for row in report["regret"]} for name, report in reports.items()}
    arms = next(iter(rows.values()))
    lines = [f"| arm | {' | '.join(f'{name} ({_seeds(reports[name])})' for name in rows)} | at worst |"]
    lines.append("|---" * (len(rows) + 2) + "|")
    worst = {arm: max(_lost(row[arm]) for row in rows.values()) for arm in arms}
    for arm in sorted(arms, key=lambda name: worst[name]):
        lines.append(f"| {arm} | {' | '.join(_regret(row[arm]) for row in rows.values())} | {worst[arm]:+.3f} |")
    return "\n".join(lines)


def _seeds(report: Mapping[str, Any]) -> str:
    count = report["arms"][0]["finished"]
    return f"{count} seed{'s' if count > 1 else ''}"


def _lost(row: Mapping[str, Any]) -> float:
    return 0.0 if row["regret_bits"] is None else float(row["regret_bits"])


def _regret(row: Mapping[str, Any]) -> str:
    if row["arm"] == row["against"]:
        return "the best static arm"
    low, high = row["regret_interval"]
    return f"{row['regret_bits']:+.3f} [{low:+.3f}, {high:+.3f}]"


# ---- downstream tasks


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


# ---- crossings


def write_crossings(studies: Mapping[str, Path]) -> None:
    """Write the page of the crossings by size of text and model; a setting is called TEXT-MODEL, such as 10k-small."""
    found = crossings_of(list(studies.values()))
    rows = [
        _crossing_row(name, folder, setting)
        for (name, folder), setting in zip(studies.items(), found.settings, strict=True)
    ]
    head = ("setting", "parameters", "followed", "same epoch: epochs", "same epoch: tokens", "each seed: epochs",
            "best so far, FLOPs")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row['cells'])} |" for row in rows]
    fill("crossings.md", "table", "\n".join(lines))
    losses = {name: _decayed_losses(folder) for name, folder in studies.items()}
    fill("crossings.md", "losses", _losses_table(losses))
    passages = {name: _at_epochs(one).passages for name, one in zip(studies, found.settings, strict=True)}
    tests = list(_crossing_tests(passages, {row["setting"]: row["unique_tokens"] for row in rows}))
    fill("crossings.md", "tests", "\n".join(f"- {what}: {told}." for what, told in tests))
    kept = [{key: row[key] for key in row if key != "cells"} for row in rows]
    keep("crossings.json", {"settings": kept, "tests": dict(tests), "dev_bits_per_byte": losses})
    draw_crossings(rows)


def _decayed_losses(folder: Path) -> dict[str, dict[str, float]]:
    """Read what each arm reaches on dev after so many epochs, its learning rate decayed: the mean over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    with (folder / "report" / "loss-against-compute.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            at = found.setdefault(row["arm"], {}).setdefault(f"{float(row['epochs']):.0f}", [])
            at.append(float(row["bits_per_byte"]))
    return {arm: {epochs: sum(each) / len(each) for epochs, each in rows.items()} for arm, rows in found.items()}


def _losses_table(losses: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    epochs = sorted({at for arms in losses.values() for rows in arms.values() for at in rows}, key=float)
    lines = [f"| setting | arm | {' | '.join(f'{at} epochs' for at in epochs)} |", "|---" * (len(epochs) + 2) + "|"]
    for name, arms in losses.items():
        for arm, rows in arms.items():
            shown = [f"{rows[at]:.3f}" if at in rows else "-" for at in epochs]
            lines.append(f"| {name} | {arm} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _at_epochs(setting: Any) -> Any:
    return next(one for one in setting.crossings if one.axis == "epochs")


def _crossing_row(name: str, folder: Path, setting: Any) -> dict[str, Any]:
    manifest = json.loads(next(folder.glob("*/seed-*/manifest.json")).read_text("utf-8"))
    epochs, flops = _at_epochs(setting), next(one for one in setting.crossings if one.axis == "flops")
    unique_tokens = manifest["train_tokens"]
    row = {"setting": name, "unique_tokens": unique_tokens, "parameters": manifest["parameters"],
           "status": epochs.status, "epochs": epochs.root, "interval": epochs.interval, "followed_epochs": epochs.c_max,
           "seeds": [{"seed": one.seed, "epochs": one.at, "crossed": one.crossed} for one in epochs.passages],
           "best_so_far": sentence_of(flops), "same_epoch": sentence_of(epochs)}  # fmt: skip
    each = ", ".join(f"{one.at:.1f}" if one.crossed else f"not by {one.at:.0f}" for one in epochs.passages)
    cells = (name, f"{row['parameters']:,}", f"{epochs.c_max:.0f}", _passed(epochs, ".1f"),
             _passed(epochs, ",.0f", unique_tokens), each, _passed(flops, ".2e"))  # fmt: skip
    return {**row, "cells": cells}


def _passed(one: Any, form: str, unit: float = 1.0) -> str:
    if one.status == "crossed" and one.interval is not None:
        low, high = (f"{unit * end:{form}}" for end in one.interval)
        return f"{unit * one.root:{form}} [{low}, {high}]"
    return one.status if one.status == "always ahead" else f"not by {unit * one.c_max:{form}}"


def _crossing_tests(
    passages: Mapping[str, Sequence[Passage]], unique_tokens: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Hold sizes against one another at each text, and texts at each size: one test over all pairs of a kind."""
    by = {tuple(name.rpartition("-")[::2]): name for name in passages}
    texts, models = (list(dict.fromkeys(key[part] for key in by)) for part in (0, 1))
    for one, other in combinations(models, 2):
        shared = [text for text in texts if (text, one) in by and (text, other) in by]
        pairs = [(passages[by[text, one]], passages[by[text, other]]) for text in shared]
        if pairs:
            yield f"epochs, {one} against {other}", logrank_sentence(stratified_logrank(pairs), one, other, "masked")
    for unit, (one, other) in product(("epochs", "tokens"), combinations(texts, 2)):
        scale = {name: 1.0 if unit == "epochs" else float(count) for name, count in unique_tokens.items()}
        shared = [model for model in models if (one, model) in by and (other, model) in by]
        named = [(by[one, model], by[other, model]) for model in shared]
        pairs = [(_scaled(passages[first], scale[first]), _scaled(passages[second], scale[second]))
                 for first, second in named]  # fmt: skip
        if pairs:
            yield f"{unit}, {one} against {other}", logrank_sentence(stratified_logrank(pairs), one, other, "masked")


def _scaled(passages: Sequence[Passage], scale: float) -> list[Passage]:
    return [replace(one, at=one.at * scale) for one in passages]


def draw_crossings(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw the epoch of each crossing against the text, a line for each model; what did not cross as an arrow."""
    matplotlib.rcParams["svg.hashsalt"] = "crossings"
    figure, panel = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    sizes = dict.fromkeys(row["parameters"] for row in rows)
    for index, size in enumerate(sizes):
        mine = sorted((row for row in rows if row["parameters"] == size), key=lambda row: row["unique_tokens"])
        crossed = [row for row in mine if row["interval"]]
        spans = [
            [row["epochs"] - row["interval"][0] for row in crossed],
            [row["interval"][1] - row["epochs"] for row in crossed],
        ]
        texts = [row["unique_tokens"] for row in crossed]
        panel.errorbar(texts, [row["epochs"] for row in crossed], yerr=spans, fmt=f"{'os^D'[index % 4]}-", capsize=3,
                       label=f"{size:,} parameters")  # fmt: skip
        for row in mine:
            if not row["interval"]:
                panel.plot(
                    row["unique_tokens"], row["followed_epochs"], f"C{index}", marker=r"$\uparrow$", markersize=14
                )
    panel.set(xscale="log", yscale="log", xlabel="unique tokens", ylabel="masked passes next-token at epoch")
    texts = sorted({row["unique_tokens"] for row in rows})
    panel.set_xticks(texts, [f"{text:,}" for text in texts])
    panel.minorticks_off()
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.savefig(PAGES / "crossings.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
