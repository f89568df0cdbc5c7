"""Texts that the models of a study wrote, prompt by prompt side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossover.evidence.files import read_json
from crossover.evidence.record import RunRecord
from crossover.evidence.view import View

# A page is no place for a corpus: so many prompts, and so many letters of a text.
MOST_PROMPTS, MOST_LETTERS = 8, 4000
SHOWN = ("mode", "tokens", "passes", "flops", "tokens_per_second", "ended", "seed", "temperature", "unmasking")


def samples_of(view: View) -> dict[str, Any]:
    """Collect the texts that `crossover sample --out` left in `samples/` of the run folders.

    Args:
        view: The runs.

    Returns:
        `arms` that have any, `rows` with a `prompt` and a cell for each arm (or None), and how many prompts are `left`
        out; empty where no run has samples.

    Raises:
        RunError: A file of samples is no JSON object.
    """
    by_prompt: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, runs in view.arms.items():
        for run in runs:
            for prompt, cell in _written(run):
                # The first text of an arm for a prompt: seeds and further draws would be chosen by eye.
                by_prompt.setdefault(prompt, {}).setdefault(arm, cell)
    if not by_prompt:
        return {}
    arms = [arm for arm in view.arms if any(arm in cells for cells in by_prompt.values())]
    rows = [{"prompt": prompt, "cells": [cells.get(arm) for arm in arms]} for prompt, cells in by_prompt.items()]
    # Prompts that most arms answered come first: those are what can be compared.
    rows.sort(key=lambda row: -sum(cell is not None for cell in row["cells"]))
    return {"arms": arms, "rows": rows[:MOST_PROMPTS], "left": max(0, len(rows) - MOST_PROMPTS)}


def _written(run: RunRecord) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for path in sorted((run.path / "samples").glob("[!.]*.json")):
        texts = read_json(path).get("samples")
        for item in texts if isinstance(texts, list) else ():
            if isinstance(item, Mapping) and isinstance(item.get("text"), str):
                prompt = str(item.get("prompt") or "")
                found.append((prompt, {"run_seed": run.recipe.get("seed"), **_cell(prompt, item)}))
    return found


def _cell(prompt: str, item: Mapping[str, Any]) -> dict[str, Any]:
    text = item["text"]
    given = prompt if text.startswith(prompt) else ""
    drawn = text[len(given) :]
    cut = drawn[:MOST_LETTERS] + (" …" if len(drawn) > MOST_LETTERS else "")
    return {"given": given, "drawn": cut, **{key: item[key] for key in SHOWN if item.get(key) is not None}}
