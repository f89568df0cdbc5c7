"""Whether what a run recorded of itself can be reckoned with: numbers where numbers are used, lists where lists are.

A key that is missing or null is a run that has not come so far; a value of another kind is a file that was changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossover.errors import RunError

# More than any run has of anything; sums and ratios of such numbers stay finite.
LARGEST = 1e30
COUNTS = ("unique_tokens", "data_tokens", "epochs", "flops", "flops_6nd", "seconds")
SPENT = ("probe_flops", "probe_seconds", "evaluation_flops", "evaluation_seconds", "skipped_steps", "rollbacks")
SIZES = ("parameters", "active_parameters", "unique_tokens", "train_tokens")
LOSSES = ("loss_nats", "standard_error_nats", "bits_per_byte", "standard_error_bits", "tokens", "text_bytes")
TABLES = ("budget", "versions", "choices", "machine", "branch", "vocabulary", "flops_per_token")
LISTS = ("document_nats", "document_bytes", "document_tokens")


def check_ledger(path: Path, ledger: Mapping[str, Any]) -> None:
    """Refuse a ledger that cannot be reckoned with.

    Args:
        path: Its file.
        ledger: What it says.

    Raises:
        RunError: A value is of another kind than the ledger has; the message names the key.
    """
    _each(str(path), ledger, (*COUNTS, *SPENT), _is_amount, "a number from 0 to 1e30")
    for name in ("exposures", "flops_by_objective"):
        _each(str(path), ledger, (name,), _is_table, "a mapping of numbers")
        amounts = ledger.get(name) or {}
        _each(f"{path}: {name}", amounts, tuple(amounts), _is_amount, "a number from 0 to 1e30")


def check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest that cannot be reckoned with.

    Args:
        path: Its file.
        manifest: What it says.

    Raises:
        RunError: A value is of another kind than the manifest has; the message names the key.
    """
    _each(str(path), manifest, SIZES, _is_amount, "a number from 0 to 1e30")
    _each(str(path), manifest, TABLES, _is_table, "a mapping")
    branch = manifest.get("branch") or {}
    _each(f"{path}: branch", branch, COUNTS, _is_amount, "a number from 0 to 1e30")


def check_evaluations(path: Path, rows: Sequence[Mapping[str, Any]], *, finished: bool) -> None:
    """Refuse evaluations that cannot be reckoned with.

    Args:
        path: Their file.
        rows: Its rows.
        finished: Whether the run has ended, so that every row has what evidence rests on.

    Raises:
        RunError: A row of a finished run lacks what every row has, or a value is of another kind; the message names
            the row and the key.
    """
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        _each(place, row, ("step", *COUNTS), _is_amount, "a number from 0 to 1e30")
        _each(place, row, LOSSES, _is_number, "a number, 1e30 at most")
        _each(place, row, ("split", "procedure"), _is_text, "text")
        _each(place, row, ("exact",), _is_truth, "true or false")
        _each(place, row, LISTS, _is_numbers, "a list of numbers")
        _each(place, row, ("mix",), _is_table, "a mapping")
        for name in ("procedure", "exact"):
            if finished and row.get(name) is None:
                raise RunError(f"{place}: {name} is missing; restore the file, or run again in another folder")


def _each(
    place: str, values: Mapping[str, Any], names: Sequence[str], fits: Callable[[Any], bool], expected: str
) -> None:
    for name in names:
        value = values.get(name)
        if value is not None and not fits(value):
            shown = repr(value) if _is_number(value) or isinstance(value, str) else f"a {type(value).__name__}"
            raise RunError(
                f"{place}: {name} is {shown[:60]}, expected {expected}; the file was changed by something else: "
                f"restore it, or run again in another folder"
            )


def _is_number(value: Any) -> bool:
    # Compared before it is made a float: a whole number may be too large for one.
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and -LARGEST <= value <= LARGEST and math.isfinite(value)


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(item) for item in value)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)
