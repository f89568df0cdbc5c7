"""Whether what a run recorded of itself can be reckoned with: numbers where numbers are used, lists where lists are.

A key that is missing or null is a run that has not come so far; a value of another kind is a file that was changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossover.errors import RunError
from crossover.evidence.files import read_json, read_rows
from crossover.parsing import LARGEST_JSON_BYTES, parse_json, read_bounded

# More than any run has of anything; sums and ratios of such numbers stay finite.
LARGEST = 1e30
COUNTS = ("unique_tokens", "data_tokens", "epochs", "flops", "flops_6nd", "seconds")
SPENT = ("probe_flops", "probe_seconds", "evaluation_flops", "evaluation_seconds", "skipped_steps", "rollbacks")
SIZES = ("parameters", "active_parameters", "unique_tokens", "train_tokens")
LOSSES = ("loss_nats", "standard_error_nats", "bits_per_byte", "standard_error_bits", "tokens", "text_bytes")
TABLES = ("budget", "versions", "choices", "machine", "branch", "vocabulary", "flops_per_token")
LISTS = ("document_nats", "document_bytes", "document_tokens")
# What a curve is drawn from: every evaluation that was measured has all of it.
POINT = ("procedure", "exact", "flops", "epochs", "document_nats", "document_bytes")


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
    prices = manifest.get("flops_per_token") or {}
    _each(f"{path}: flops_per_token", prices, tuple(prices), _is_amount, "a number from 0 to 1e30")
    for name, key in (("vocabulary", "predictable"), ("budget", "amount")):
        _each(f"{path}: {name}", manifest.get(name) or {}, (key,), _is_amount, "a number from 0 to 1e30")
    branch = manifest.get("branch") or {}
    _each(f"{path}: branch", branch, COUNTS, _is_amount, "a number from 0 to 1e30")


def read_evaluations(path: Path, *, finished: bool) -> tuple[dict[str, Any], ...]:
    """Read the evaluations of a run.

    Args:
        path: Their file.
        finished: Whether the run has ended, so that every row has what evidence rests on.

    Returns:
        Its rows; none where it is missing.

    Raises:
        RunError: A row lacks what every row has, or a value is of another kind; the message names the row and the key.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        _each(place, row, ("step", *COUNTS), _is_amount, "a number from 0 to 1e30")
        _each(place, row, LOSSES, is_number, "a number, 1e30 at most")
        _each(place, row, ("split", "procedure"), _is_text, "text")
        _each(place, row, ("exact",), _is_truth, "true or false")
        _each(place, row, LISTS, _is_numbers, "a list of numbers")
        _each(place, row, ("mix",), _is_table, "a mapping")
        measured = row.get("bits_per_byte") is not None
        for name in POINT if measured else ("procedure", "exact") if finished else ():
            if row.get(name) is None:
                raise RunError(f"{place}: {name} is missing; restore the file, or run again in another folder")
        if measured and not 0 < len(row["document_nats"]) == len(row["document_bytes"]):
            raise RunError(f"{place}: document_nats and document_bytes are not of the same documents; restore the file")
    return rows


def read_decisions(path: Path) -> tuple[dict[str, Any], ...]:
    """Read the decisions of a run.

    Args:
        path: Their file.

    Returns:
        Its rows; none where it is missing.

    Raises:
        RunError: A row is broken, or a value is of another kind; the message names the row and the key.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        _each(place, row, ("step", *COUNTS), _is_amount, "a number from 0 to 1e30")
        _each(place, row, ("reason", "mark"), _is_text, "text")
        _each(place, row, ("mix", "before"), _is_shares, "objectives and their shares")
        _each(place, row, ("details",), _is_table, "a mapping")
        details = row.get("details") or {}
        _each(f"{place}: details", details, ("phase",), _is_text, "text")
        _each(f"{place}: details", details, ("way",), is_number, "a number")
        for name in ("step", "epochs", "mix"):
            if row.get(name) is None:
                raise RunError(f"{place}: {name} is missing; restore the file, or run again in another folder")
    return rows


def check_signals(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse signals in which a question or a probe cannot be told.

    Args:
        path: Their file.
        rows: Its rows.

    Raises:
        RunError: A value is of another kind; the message names the row and the key.
    """
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        _each(place, row, ("step", *COUNTS, "budget_fraction", "planned_epochs"), _is_amount, "a number from 0 to 1e30")
        # A probe of novelty counts exposures in one number; a question has them by objective.
        shared = ("exposures", "mix") if row.get("asked") else ("mix",)
        _each(place, row, shared, _is_shares, "a mapping of numbers")
        _each(place, row, ("probe", "gear"), _is_text, "text")


def read_score(path: Path) -> dict[str, Any]:
    """Read a final score, or what a run says of all of them.

    Args:
        path: Its file.

    Returns:
        What it says.

    Raises:
        RunError: It is no JSON object, a score of held-out text lacks what every one has, or a value is of another
            kind; the message names the key.
    """
    card = read_json(path)
    _each(str(path), card, LOSSES, is_number, "a number, 1e30 at most")
    _each(str(path), card, ("split", "procedure"), _is_text, "text")
    _each(str(path), card, ("exact",), _is_truth, "true or false")
    _each(str(path), card, LISTS[:1], are_scores, "a list of numbers")
    _each(str(path), card, LISTS[1:], _are_amounts, "a list of numbers, above 0 in all")
    _each(str(path), card, ("conditions",), _is_table, "a mapping")
    if path.stem == "summary":
        _each(str(path), card, ("headline",), _is_text, "text")
    if path.stem.startswith(("dev-", "test-")):
        _check_documents(path, card)
    return card


def _check_documents(path: Path, card: Mapping[str, Any]) -> None:
    for name in ("procedure", "exact", *LISTS):
        if card.get(name) is None:
            raise RunError(f"{path}: {name} is missing; restore the file, or score the run again")
    if len({len(card[name]) for name in LISTS}) > 1:
        raise RunError(f"{path}: {', '.join(LISTS)} are not equally long; restore the file, or score the run again")


def read_progress(folder: Path) -> dict[str, Any]:
    """Read where a run stands, for eyes: what cannot be shown is left out, and nothing of it is an error.

    Args:
        folder: The run folder.

    Returns:
        Texts, numbers and the mix by name; empty where it has shown nothing yet, or half a file.
    """
    try:
        row = parse_json(read_bounded(folder / "progress.json", LARGEST_JSON_BYTES))
    except (OSError, ValueError):
        return {}
    shown = row.items() if isinstance(row, dict) else ()
    return {name: value for name, value in shown if is_number(value) or _is_text(value) or _is_shares(value)}


def _each(
    place: str, values: Mapping[str, Any], names: Sequence[str], fits: Callable[[Any], bool], expected: str
) -> None:
    for name in names:
        value = values.get(name)
        if value is not None and not fits(value):
            shown = repr(value) if is_number(value) or isinstance(value, str) else f"a {type(value).__name__}"
            raise RunError(
                f"{place}: {name} is {shown[:60]}, expected {expected}; the file was changed by something else: "
                f"restore it, or run again in another folder"
            )


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number that can be reckoned with."""
    # Compared before it is made a float: a whole number may be too large for one.
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and -LARGEST <= value <= LARGEST and math.isfinite(value)


def _is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(is_number(item) for item in value)


def are_scores(value: Any) -> bool:
    """Say whether a value is a list of numbers, null standing for one that was not finite."""
    return isinstance(value, list) and all(item is None or is_number(item) for item in value)


def _are_amounts(value: Any) -> bool:
    return _is_numbers(value) and all(item >= 0 for item in value) and sum(value) > 0


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_shares(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_amount(share) for share in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)
