"""What the conditions of two numbers may differ in, and how a comparison is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossover.errors import RunError, nearest
from crossover.trees import differences

Differences = dict[str, tuple[Any, Any]]
# Settings that belong to a procedure; allowing `procedure` allows these where the two procedures differ.
_OF_PROCEDURE = ("exact", "draws", "positions", "block", "clean", "policy", "tokens_per_step", "is_greedy")
_MISSING = "not stated"


def settle(
    pairs: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
    allow: Sequence[str],
    first: Path | str,
    second: Path | str,
    *,
    advice: str | None = None,
) -> list[Differences]:
    """Say in what pairs of numbers differ that may, or refuse them all.

    Args:
        pairs: Of each pair, its name and the conditions of both numbers by dotted field.
        allow: Fields that may differ, or groups of them, such as "versions".
        first: The first model's place, for errors.
        second: The second model's place.
        advice: What to do about a refusal; None means that the caller takes `--allow`.

    Returns:
        Of each pair, the fields that differ and may, with both values.

    Raises:
        RunError: A name is no field, or fields differ that may not: each is named with both values.
    """
    _check_allowed(allow, [field for _, *sides in pairs for side in sides for field in side])
    found = [_differing(one, two) for _, one, two in pairs]
    refused: dict[tuple[str, str, str], list[str]] = {}
    for (name, _, _), fields in zip(pairs, found, strict=True):
        for field, (left, right) in fields.items():
            if not _is_allowed(field, allow):
                refused.setdefault((field, str(left), str(right)), []).append(name)
    if refused:
        raise RunError(_refusal(first, second, refused, advice))
    return found


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> Differences:
    """List the fields that differ; of settings that only follow from another procedure, the procedure alone."""
    found = differences(one, two)
    if "procedure" in found:
        found = {field: values for field, values in found.items() if field not in _OF_PROCEDURE}
    return {field: (one.get(field, _MISSING), two.get(field, _MISSING)) for field in found}


def _is_allowed(field: str, allow: Sequence[str]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in allow)


def _check_allowed(allow: Sequence[str], fields: Sequence[str]) -> None:
    known = dict.fromkeys(fields)
    for name in allow:
        if not any(_is_allowed(field, [name]) for field in known):
            groups = {field.partition(".")[0] for field in known}
            raise RunError(f"--allow {name}: the cards have no such field; {nearest(name, {*known, *groups})}")


def _refusal(
    first: Path | str, second: Path | str, refused: Mapping[tuple[str, str, str], Sequence[str]], advice: str | None
) -> str:
    lines = [
        f"  {field}: {left[:200]} in the first, {right[:200]} in the second ({', '.join(names)})"
        for (field, left, right), names in refused.items()
    ]
    fields = " ".join(f"--allow {field}" for field in dict.fromkeys(field for field, _, _ in refused))
    return (
        f"{first} and {second} cannot be compared; their cards differ in {len(lines)} thing(s) beside the weights:\n"
        + "\n".join(lines)
        + f"\n{advice or f'Score both alike, or say that it does not matter: {fields}'}"
    )
