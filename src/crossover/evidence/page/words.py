"""Numbers and recorded values as words, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crossover.evidence.files import dumps


def number(amount: Any, form: str = ".3f") -> str:
    """Write a number, or a dash where there is none."""
    return format(amount, form) if isinstance(amount, int | float) and not isinstance(amount, bool) else "-"


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


def decision_times(epochs_by_seed: Mapping[Any, Sequence[float]]) -> str:
    """Write the epochs of each seed's decisions, or a dash where no seed has one."""
    parts = [
        f"seed {seed}: {', '.join(f'{epochs:.2f}' for epochs in moments)}"
        for seed, moments in epochs_by_seed.items()
        if moments
    ]
    return "; ".join(parts) or "-"
