"""Numbers and recorded values as words, for the page and for Markdown alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from crossover.evidence.files import dumps

# Half a character, as "\ud800" in JSON makes one, or a byte of a file's name that is no text.
HALVES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Put a question mark in the place of every half character, which neither a file nor a page can hold."""
    return HALVES.sub("?", text)


def number(amount: Any, form: str = ".3f") -> str:
    """Write a number, or a dash where there is none."""
    if not isinstance(amount, int | float) or isinstance(amount, bool):
        return "-"
    if form.endswith("d") and isinstance(amount, float):
        # A count that someone recorded as 1000.0, or as 1.5: it is shown as it is.
        form = f"{form[:-1]}.10g"
    try:
        return format(amount, form)
    except OverflowError:
        return "more than can be shown"


def signed(amount: Any) -> str:
    """Write a difference with its sign."""
    return number(amount, "+.3f")


def value(item: Any) -> str:
    """Write any recorded value on one line."""
    if isinstance(item, float):
        return f"{item:.6g}"
    return item if isinstance(item, str) else dumps(item)


def norms(row: Mapping[str, Any]) -> str:
    """Write the gradient norm before and after a decision, or a dash where none was recorded."""
    before, after = row["grad_norm_before"], row["grad_norm_after"]
    return "-" if before is None and after is None else f"{number(before, '.3g')} → {number(after, '.3g')}"


def points_told(is_decayed: bool) -> str:
    """Say what a point of the curve against compute is, in a study of several budgets."""
    if is_decayed:
        return "Each point of the curve against compute is a run whose learning rate decayed at that budget."
    return (
        "Not every arm has its decayed points yet: those of the curve against compute were measured on the way, "
        "at a learning rate that had not decayed."
    )


def decision_times(epochs_by_seed: Mapping[Any, Sequence[float]]) -> str:
    """Write the epochs of each seed's decisions, or a dash where no seed has one."""
    parts = [
        f"seed {seed}: {', '.join(f'{epochs:.2f}' for epochs in moments)}"
        for seed, moments in epochs_by_seed.items()
        if moments
    ]
    return "; ".join(parts) or "-"
