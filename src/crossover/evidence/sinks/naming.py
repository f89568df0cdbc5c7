"""Rows of the run folder as numbers under names that every sink shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

# Where a row stands; shown beside every step, so that a sink may take any of them as its axis.
CLOCK = ("data_tokens", "epochs", "flops", "flops_6nd", "seconds")
CARD = ("loss_nats", "standard_error_nats", "bits_per_byte", "standard_error_bits")
# What of a signal's row is no number of its own.
_PLACE = (*CLOCK, "step", "mix", "probe", "gear", "target", "asked")


def _number(value: Any) -> float | None:
    """Read a plain number, true and false included; everything else is none."""
    return float(value) if isinstance(value, int | float) else None


def _named(prefix: str, row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    found = {f"{prefix}/{key}": _number(row.get(key)) for key in keys}
    return {name: value for name, value in found.items() if value is not None}


def step_numbers(row: Mapping[str, Any], objectives: Iterable[str] = ()) -> dict[str, float]:
    """Name the numbers of an optimizer step.

    Args:
        row: A row of steps.jsonl.
        objectives: Objectives whose share is shown where it is 0 too.

    Returns:
        `train/...` (losses in nats per data token), `mix/<objective>` and `clock/...`.
    """
    losses, mix = row.get("losses") or {}, row.get("mix") or {}
    shares = {**dict.fromkeys(objectives, 0.0), **mix}
    return {
        **_named("train", row, ("loss_nats", "grad_norm", "learning_rate", "skipped")),
        **_named("train/losses", losses, losses),
        **_named("mix", shares, shares),
        **_named("clock", row, CLOCK),
    }


def evaluation_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of an evaluation, a row of evals.jsonl: `dev/<procedure>/bits_per_byte` and its like."""
    prefix = f"{row.get('split', 'dev')}/{row.get('procedure', 'loss')}"
    return {**_named(prefix, row, CARD), **_named("clock", row, CLOCK)}


def score_numbers(name: str, mapping: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of a final score: `scores/<name>/bits_per_byte` and its like."""
    return _named(f"scores/{name}", mapping, CARD)


def signal_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Name the numbers of a probe, or of the moment when the controller was asked.

    Args:
        row: A row of signals.jsonl.

    Returns:
        `signals/<probe>[/<gear>[/<target>]]/<what>`; of losses by unit of text, their mean over tokens, in nats.
        A probe's row brings `clock/...` too.
    """
    parts = [str(row[key]) for key in ("probe", "gear", "target") if row.get(key)] or ["asked"]
    # A probe is of the step just taken; the controller is asked about the next one, whose own row brings the clock.
    found = _named("clock", row, CLOCK) if row.get("probe") else {}
    for key, value in row.items():
        if key not in _PLACE:
            _unfold("/".join(["signals", *parts, key]), value, found, _unit_tokens(row, key))
    return found


def _unit_tokens(row: Mapping[str, Any], key: str) -> Any:
    """Give the tokens of the units that a probe's losses stand for."""
    return row.get({"control": "unit_tokens", "train": "train_unit_tokens"}.get(key, ""))


def _unfold(name: str, value: Any, found: dict[str, float], tokens: Any) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _unfold(f"{name}/{key}", inner, found, tokens)
    elif isinstance(value, list):
        # A list without tokens is a vector (bins, norms of parts): it has no mean worth a curve.
        if isinstance(tokens, list) and len(tokens) == len(value) and sum(tokens) > 0:
            found[name] = math.fsum(one * many for one, many in zip(value, tokens, strict=True)) / sum(tokens)
    elif (number := _number(value)) is not None:
        found[name] = number
