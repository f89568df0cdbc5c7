"""Tuning with the same effort for every arm: the same trials, chosen on dev, their cost told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from crossover.errors import RecipeError, RunError
from crossover.evidence.curves import best_mode
from crossover.evidence.files import dumps, read_json, write_text
from crossover.evidence.record import RunRecord
from crossover.streams import stream


@dataclass(frozen=True)
class Tune:
    """How every arm is tuned.

    Args:
        trials: Trials of each arm.
        grid: Values to try by dotted key.
        seed: Seed of the draw and of the trials' runs.
        budget: Budget of a trial, or None for the study's own.
    """

    trials: int
    grid: Mapping[str, tuple[Any, ...]]
    seed: int = 0
    budget: Mapping[str, Any] | None = None


def draw_trials(tune: Tune) -> list[dict[str, Any]]:
    """Draw the trials, without replacement, from the product of the grid; every arm gets these.

    Args:
        tune: The grid, how many, and the seed.

    Returns:
        Settings by dotted key, one mapping per trial.

    Raises:
        RecipeError: The grid has fewer combinations than trials are asked for.
    """
    keys = list(tune.grid)
    combinations = [dict(zip(keys, values, strict=True)) for values in product(*tune.grid.values())]
    if tune.trials > len(combinations):
        raise RecipeError(
            f"tune.trials: {tune.trials} are asked for but the grid has {len(combinations)} combination(s); "
            f"lower tune.trials or add values to tune.grid"
        )
    order = stream(tune.seed, "tune").permutation(len(combinations))
    return [combinations[index] for index in order[: tune.trials]]


def choose(arm: str, trials: Sequence[Mapping[str, Any]], records: Sequence[RunRecord | None]) -> dict[str, Any]:
    """Choose an arm's settings by the best loss on dev.

    Args:
        arm: Its name, for errors.
        trials: The settings of each trial.
        records: What each trial left; None where it left nothing.

    Returns:
        `chosen` settings, the `procedure` they were chosen by and whether it is `exact`, every trial with its loss,
        and the FLOPs that all trials cost.

    Raises:
        RunError: No trial has been measured.
    """
    done = [record for record in records if record is not None and record.finished and record.evals]
    if not done:
        raise RunError(f"{arm}: none of its {len(trials)} tuning trials finished; see their logs in logs/")
    rows = []
    for settings, record in zip(trials, records, strict=True):
        ledger = record.ledger if record is not None else {}
        rows.append(
            {
                "settings": dict(settings),
                "state": record.status.get("state") if record is not None else "missing",
                **_best(record),
                "flops": float(ledger.get("flops") or 0) + float(ledger.get("evaluation_flops") or 0),
            }
        )
    best = min(rows, key=lambda row: math.inf if row["bits_per_byte"] is None else row["bits_per_byte"])
    return {
        "chosen": best["settings"],
        "chosen_on": "dev",
        "procedure": best["procedure"],
        "exact": best["exact"],
        "bits_per_byte": best["bits_per_byte"],
        "flops": sum(row["flops"] for row in rows),
        "trials": rows,
    }


def _best(record: RunRecord | None) -> dict[str, Any]:
    """Read a trial by the rule that its arm will be read by: its best mode on dev, from its final scores."""
    if record is None or not record.finished:
        return {"bits_per_byte": None, "procedure": None, "exact": None}
    cards = [card for name, card in record.scores.items() if name.startswith("dev-")]
    if not cards:
        procedure, _ = best_mode([record.evals])
        cards = [row for row in record.evals if row["procedure"] == procedure]
    best = min(cards, key=lambda card: (card["bits_per_byte"], not card["exact"]))
    return {name: best[name] for name in ("bits_per_byte", "procedure", "exact")}


def read_chosen(folder: Path) -> dict[str, Any]:
    """Read what tuning chose, by arm; empty before the first arm is through."""
    path = folder / "tune" / "chosen.json"
    return read_json(path) if path.exists() else {}


def write_chosen(folder: Path, chosen: Mapping[str, Any]) -> None:
    """Write what tuning chose, with all trials and their FLOPs."""
    write_text(folder / "tune" / "chosen.json", dumps(chosen, indent=2) + "\n")
