"""The page of the crossings by size of text and model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot, ticker
from pages.place import PAGES, fill, keep

from crossover.evidence.censored import Passage
from crossover.evidence.crossing_lines import sentence_of
from crossover.evidence.crossings import crossings_of
from crossover.evidence.logrank import logrank_sentence, stratified_logrank


def write_crossings(studies: Mapping[str, Path]) -> None:
    """Write the page of the crossings by size of text and model.

    Args:
        studies: Study folders by setting, which is called TEXT-MODEL, such as 10k-small; a setting of the page that is
            not among them stays as it was, so that one can be added without the runs of the others.
    """
    found = crossings_of(list(studies.values())).settings
    rows = {row["setting"]: row for row in _written_before()}
    for (name, folder), setting in zip(studies.items(), found, strict=True):
        rows[name] = _crossing_row(name, folder, setting)
    ordered = sorted(rows.values(), key=lambda row: (row["unique_tokens"], row["parameters"]))
    head = ("setting", "parameters", "followed", "same epoch: epochs", "same epoch: tokens", "each seed: epochs",
            "best so far, FLOPs")  # fmt: skip
    lines = [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(_cells(row))} |" for row in ordered),
    ]
    fill("crossings.md", "table", "\n".join(lines))
    fill("crossings.md", "losses", _losses_table({row["setting"]: row["dev_bits_per_byte"] for row in ordered}))
    tests = list(_crossing_tests(ordered))
    fill("crossings.md", "tests", "\n".join(f"- {what}: {told}." for what, told in tests))
    keep("crossings.json", {"settings": ordered, "tests": dict(tests)})
    draw_crossings(ordered)


def _written_before() -> list[dict[str, Any]]:
    path = PAGES / "crossings.json"
    return json.loads(path.read_text("utf-8"))["settings"] if path.exists() else []


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
    return {"setting": name, "unique_tokens": manifest["train_tokens"], "parameters": manifest["parameters"],
            "status": epochs.status, "epochs": epochs.root, "interval": epochs.interval,
            "followed_epochs": epochs.c_max,
            "seeds": [{"seed": one.seed, "epochs": one.at, "crossed": one.crossed} for one in epochs.passages],
            "flops": {"status": flops.status, "at": flops.root, "interval": flops.interval, "followed": flops.c_max},
            "best_so_far": sentence_of(flops), "same_epoch": sentence_of(epochs),
            "dev_bits_per_byte": _decayed_losses(folder)}  # fmt: skip


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    each = ", ".join(
        f"{one['epochs']:.1f}" if one["crossed"] else f"not by {one['epochs']:.0f}" for one in row["seeds"]
    )
    epochs = {
        "status": row["status"],
        "at": row["epochs"],
        "interval": row["interval"],
        "followed": row["followed_epochs"],
    }
    return (row["setting"], f"{row['parameters']:,}", f"{row['followed_epochs']:.0f}", _passed(epochs, ".1f"),
            _passed(epochs, ",.0f", row["unique_tokens"]), each, _passed(row["flops"], ".2e"))  # fmt: skip


def _passed(one: Mapping[str, Any], form: str, unit: float = 1.0) -> str:
    if one["status"] == "crossed" and one["interval"] is not None:
        low, high = (f"{unit * end:{form}}" for end in one["interval"])
        return f"{unit * one['at']:{form}} [{low}, {high}]"
    return one["status"] if one["status"] == "always ahead" else f"not by {unit * one['followed']:{form}}"


def _crossing_tests(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Hold sizes against one another at each text, and texts at each size: one test over all pairs of a kind."""
    by = {tuple(row["setting"].rpartition("-")[::2]): row for row in rows}
    texts, models = (list(dict.fromkeys(key[part] for key in by)) for part in (0, 1))
    for one, other in combinations(models, 2):
        pairs = [(_passages(by[text, one]), _passages(by[text, other]))
                 for text in texts if (text, one) in by and (text, other) in by]  # fmt: skip
        if pairs:
            yield f"epochs, {one} against {other}", logrank_sentence(stratified_logrank(pairs), one, other, "masked")
    for unit, (one, other) in product(("epochs", "tokens"), combinations(texts, 2)):
        pairs = [(_passages(by[one, model], unit), _passages(by[other, model], unit))
                 for model in models if (one, model) in by and (other, model) in by]  # fmt: skip
        if pairs:
            yield f"{unit}, {one} against {other}", logrank_sentence(stratified_logrank(pairs), one, other, "masked")


def _passages(row: Mapping[str, Any], unit: str = "epochs") -> list[Passage]:
    scale = float(row["unique_tokens"]) if unit == "tokens" else 1.0
    return [Passage(one["seed"], one["epochs"] * scale, one["crossed"]) for one in row["seeds"]]


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
